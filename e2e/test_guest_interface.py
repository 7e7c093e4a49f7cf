# SPDX-License-Identifier: GPL-2.0-or-later
"""The interface between a TD and the TDX module: how each instruction ends in a TD.

The rows, and their sources, are data of :mod:`fixtures.guests.interface`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace

import pytest

from fixtures.agent.client import Worker
from fixtures.guests.execute import (
    RDTSC,
    RDTSCP,
    XGETBV,
    XSETBV,
    Executor,
    Outcome,
    Row,
    cpuid,
    rdmsr,
    read_cr,
    tdcall,
    write_cr,
    wrmsr,
)
from fixtures.guests.interface import (
    CONTROL_REGISTERS,
    DYNAMIC,
    FAULTING,
    INSTRUCTIONS,
    LEAVES,
    MSRS,
    PAT_AT_RESET,
    PORTS,
    ControlRegister,
    End,
    end_of,
)
from fixtures.guests.launch import Launch
from fixtures.kvm import build
from fixtures.kvm.abi import KVM_CPUID_FLAG_SIGNIFCANT_INDEX
from fixtures.kvm.build import Region, Stage
from fixtures.kvm.cpuid import ADDRESS_WIDTHS, CpuidEntry
from fixtures.kvm.device import Kvm
from fixtures.kvm.params import Capabilities, InitVmParams

OSXSAVE, OSFXSR, PCIDE = 1 << 18, 1 << 9, 1 << 17
PWT = 1 << 3
"""Bit of CR3 that belongs to a PCID where there are any."""
CPUID_PCID, CPUID_OSXSAVE = 1 << 17, 1 << 27
CPUID_TSC_DEADLINE = 1 << 24
TSC_DEADLINE = 0x6E0
EFER, EFER_SCE, EFER_NX = 0xC0000080, 1 << 0, 1 << 11
TSC, TSC_AUX, DEBUGCTL, TPR = 0x10, 0xC0000103, 0x1D9, 0x808
CR_ACCESS, CPUID_EXIT, IO_EXIT = 28, 10, 30
GIGAHERTZ, STEP_KHZ = 1_000_000, 25_000
"""In kHz."""


@pytest.fixture
def guest(launch: Launch) -> Executor:
    """A guest that executes the rows that the test chooses."""
    return Executor(launch("execute"))


def ends(guest: Executor, rows: dict[str, Row]) -> dict[str, str]:
    """Execute rows; returns how each ended."""
    return {name: end_of(found) for name, found in zip(rows, guest.run([*rows.values()]), strict=True)}


def ve_of(outcome: Outcome) -> tuple[str, int, int, int]:
    """Return how a row ended and, of a #VE, its reason, qualification and length."""
    ve = outcome.ve
    return (end_of(outcome), ve.reason, ve.qualification, ve.length) if ve else (end_of(outcome), 0, 0, 0)


# MSRs


def test_reads_of_msrs(guest: Executor) -> None:
    cases = [case for msrs in MSRS for case in msrs.reads()]
    assert ends(guest, {name: row for name, row, _ in cases}) == {name: str(end) for name, _, end in cases}


def test_writes_of_msrs(guest: Executor) -> None:
    cases = [case for msrs in MSRS for case in msrs.writes()]
    assert ends(guest, {name: row for name, row, _ in cases}) == {name: str(end) for name, _, end in cases}


def test_msrs_at_reset(guest: Executor) -> None:
    pat, efer, debugctl, aux = guest.run([rdmsr(0x277), rdmsr(EFER), rdmsr(DEBUGCTL), rdmsr(TSC_AUX)])
    assert pat["rax"] | pat["rdx"] << 32 == PAT_AT_RESET
    assert efer["rax"] & EFER_NX
    assert debugctl["rax"] == 0
    assert aux["rax"] == 0


def test_tsc_aux_keeps_what_was_written_and_rdtscp_returns_it(guest: Executor) -> None:
    written, read, seen = guest.run([wrmsr(TSC_AUX, 0x12345678), rdmsr(TSC_AUX), Row(RDTSCP)])
    assert (end_of(written), read["rax"], seen["rcx"]) == (End.DONE, 0x12345678, 0x12345678)


def test_efer_takes_its_own_value_and_sce(guest: Executor) -> None:
    now = guest.run([rdmsr(EFER)])[0]["rax"]
    rows = {
        "the same": wrmsr(EFER, now),
        "SCE changed": wrmsr(EFER, now ^ EFER_SCE),
        "SCE as before": wrmsr(EFER, now),
        "NX changed": wrmsr(EFER, now ^ EFER_NX),
        "SVME": wrmsr(EFER, now | 1 << 12),
    }
    assert ends(guest, rows) == {
        "the same": End.DONE,
        "SCE changed": End.DONE,
        "SCE as before": End.DONE,
        "NX changed": End.VE,
        "SVME": End.VE,
    }


def test_tsc_deadline_is_there_if_cpuid_offers_it(guest: Executor) -> None:
    offered, read, written = guest.run([cpuid(1), rdmsr(TSC_DEADLINE), wrmsr(TSC_DEADLINE, 0)])
    expected = End.VE if offered["rcx"] & CPUID_TSC_DEADLINE else End.GP
    assert (end_of(read), end_of(written)) == (expected, expected)


def test_tsc_starts_with_the_td(launch: Launch) -> None:
    older, younger = Executor(launch("execute")), Executor(launch("execute"))
    first, by_msr, last = older.run([Row(RDTSC), rdmsr(TSC), Row(RDTSC)])
    of_younger = younger.run([Row(RDTSC)])[0]
    values = [found["rax"] | found["rdx"] << 32 for found in (first, by_msr, last, of_younger)]
    assert values[0] < values[1] < values[2]
    # It was read last; on a TSC of the host's it would be the largest.
    assert values[3] < values[0]


def test_tsc_runs_at_the_rate_that_the_host_asked_for(
    launch: Launch, owner: Worker, tdx_cleanup: ExitStack, payloads: Mapping[str, bytes]
) -> None:
    """CPUID and RDTSC agree: against the TSC of another TD, read around the readings and between them."""
    built = tdx_cleanup.enter_context(build.created(owner))
    built.td.set_tsc_khz(GIGAHERTZ)
    built.init().add_vcpus().populate(Region.firmware(payloads["execute"]))
    other, asked = Executor(launch("execute")), Executor(built.finalize())
    rates = [guest.run([cpuid(0x15)])[0]["rbx"] * STEP_KHZ for guest in (other, asked)]
    assert rates[1] == GIGAHERTZ
    around = [tsc(other)]
    of_asked = [tsc(asked)]
    between = [tsc(other) for _ in range(20)]
    of_asked.append(tsc(asked))
    around.append(tsc(other))
    ratio = rates[1] / rates[0]
    passed = of_asked[1] - of_asked[0]
    assert ratio * 0.95 * (between[-1] - between[0]) < passed < ratio * 1.05 * (around[1] - around[0])


def test_tsc_has_the_hosts_rate_unless_another_is_asked_for(guest: Executor, kvm: Kvm) -> None:
    """To the 25 MHz of which a TD's rate is a multiple."""
    with kvm.create_vm() as vm:
        of_host = vm.get_tsc_khz()
    assert abs(guest.run([cpuid(0x15)])[0]["rbx"] * STEP_KHZ - of_host) < STEP_KHZ


def tsc(guest: Executor) -> int:
    """Let the guest execute for a while; returns its TSC then."""
    *_, by_msr, last, with_aux = guest.run([*(cpuid(0),) * 100, rdmsr(TSC), Row(RDTSC), Row(RDTSCP)])
    values = [found["rax"] | found["rdx"] << 32 for found in (by_msr, last, with_aux)]
    assert values == sorted(values)
    assert with_aux["rcx"] == 0
    return values[-1]


# CPUID


def test_leaves_of_cpuid(guest: Executor) -> None:
    rows = {leaf.name: leaf.row() for leaf in LEAVES}
    assert ends(guest, rows) == {leaf.name: str(leaf.end) for leaf in LEAVES}


def test_values_of_cpuid(guest: Executor) -> None:
    found = dict(zip(LEAVES, guest.run([leaf.row() for leaf in LEAVES]), strict=True))
    values = {
        (leaf.name, register): outcome[register]
        for leaf, outcome in found.items()
        for register, _ in leaf.values
    }
    assert values == {(leaf.name, register): value for leaf in LEAVES for register, value in leaf.values}
    set_bits = {
        (leaf.name, register): hex(outcome[register] & bits)
        for leaf, outcome in found.items()
        for register, bits in leaf.clear
        if outcome[register] & bits
    }
    assert set_bits == {}


def most(caps: Capabilities, params: InitVmParams) -> InitVmParams:
    """Every extended feature that the TD may have."""
    return params.replace(xfam=caps.xfam)


def least(caps: Capabilities, params: InitVmParams) -> InitVmParams:
    """Of CPUID's configurable bits only the width of addresses, which a TD must have."""
    return params.replace(cpuid=tuple(entry for entry in params.cpuid if entry.function == ADDRESS_WIDTHS))


def usual(caps: Capabilities, params: InitVmParams) -> InitVmParams:
    return params


@pytest.mark.parametrize("chosen", [usual, most, least], ids=lambda chosen: chosen.__name__)
def test_cpuid_is_what_get_cpuid_reports_to_the_host(
    chosen: Callable[[Capabilities, InitVmParams], InitVmParams],
    owner: Worker,
    tdx_cleanup: ExitStack,
    payloads: Mapping[str, bytes],
) -> None:
    """Bit for bit, but for what depends on the vCPU's state, and leaves that are the host's to answer."""
    built = tdx_cleanup.enter_context(build.created(owner))
    built.init(chosen(built.td.capabilities(), built.td.default_params())).add_vcpus()
    built.populate(Region.firmware(payloads["execute"]))
    reported = {entry.key: entry for entry in built.vcpus[0].get_cpuid()}
    guest = Executor(built.finalize())
    cr4 = guest.run([read_cr(4)])[0]["rax"]
    guest.run([write_cr(4, cr4 | OSXSAVE | OSFXSR)])
    outcomes = dict(zip(reported, guest.run([cpuid(*key) for key in reported]), strict=True))
    assert {key for key, outcome in outcomes.items() if end_of(outcome) == End.VE} <= {
        key for key in reported if key[0] in FAULTING
    }
    seen = {key: cpuid_of(key, outcome) for key, outcome in outcomes.items() if end_of(outcome) == End.DONE}
    assert {key: fixed(entry) for key, entry in seen.items()} == {
        key: fixed(replace(reported[key], flags=0)) for key in seen
    }
    assert len(seen) > 20


def cpuid_of(key: tuple[int, int], outcome: Outcome) -> CpuidEntry:
    """Return the registers of a CPUID that was executed."""
    eax, ebx, ecx, edx = (outcome[register] for register in ("rax", "rbx", "rcx", "rdx"))
    return CpuidEntry(*key, eax=eax, ebx=ebx, ecx=ecx, edx=edx)


def fixed(entry: CpuidEntry) -> CpuidEntry:
    """Return the entry without the bits that are computed when CPUID is executed."""
    for dynamic in DYNAMIC:
        if dynamic.key == entry.key:
            inverse = {name: 0xFFFFFFFF & ~getattr(dynamic, name) for name in ("eax", "ebx", "ecx", "edx")}
            return entry.masked(CpuidEntry(*entry.key, **inverse))
    return entry


def test_cpuid_that_get_cpuid_does_not_report_is_zero_or_the_hosts_to_answer(
    owner: Worker, tdx_cleanup: ExitStack, payloads: Mapping[str, bytes]
) -> None:
    built = tdx_cleanup.enter_context(build.at(Stage.POPULATED, owner, payloads["execute"]))
    reported = {entry.key: entry for entry in built.vcpus[0].get_cpuid()}
    guest = Executor(built.finalize())
    leaves = [leaf for base in (0, 0x80000000) for leaf in range(base, reported[base, 0].eax + 1)]
    without_subleaves = {entry.function for entry in reported.values() if not entry.flags}
    others = [
        (leaf, subleaf)
        for leaf in leaves
        for subleaf in range(64)
        if leaf not in without_subleaves and (leaf, subleaf) not in reported
    ]
    outcomes = dict(zip(others, guest.run([cpuid(*key) for key in others]), strict=True))
    answered = [cpuid_of(key, outcome) for key, outcome in outcomes.items() if end_of(outcome) == End.DONE]
    assert [entry for entry in answered if entry != CpuidEntry(*entry.key)] == []
    assert {end_of(outcome) for outcome in outcomes.values()} <= {End.DONE, End.VE}


def test_cache_and_cores_of_a_package_are_the_hosts_to_configure(launch: Launch, kvm: Kvm) -> None:
    with kvm.create_td() as td:
        params = td.default_params()
    leaf = CpuidEntry(
        4, 0, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, eax=5 << 26 | 3 << 14 | 1 << 5 | 1, ebx=7 << 22, ecx=63
    )
    others = tuple(entry for entry in params.cpuid if entry.key != leaf.key)
    guest = Executor(launch("execute", params=params.replace(cpuid=(*others, leaf))))
    found = cpuid_of(leaf.key, guest.run([cpuid(4)])[0])
    # EBX[11:0] is the size of a line, which is the CPU's.
    assert replace(found, ebx=found.ebx & ~0xFFF) == replace(leaf, flags=0)


def test_cpuid_has_osxsave_as_cr4_has_it(guest: Executor) -> None:
    cr4 = guest.run([read_cr(4)])[0]["rax"]
    rows = [write_cr(4, cr4 | OSXSAVE), cpuid(1), write_cr(4, cr4 & ~OSXSAVE), cpuid(1)]
    _, on, _, off = guest.run(rows)
    assert (on["rcx"] & CPUID_OSXSAVE, off["rcx"] & CPUID_OSXSAVE) == (CPUID_OSXSAVE, 0)


def test_cpuid_that_the_guest_wants_is_ve(guest: Executor) -> None:
    wanted, refused, off, again = guest.run([tdcall(5, rcx=1), cpuid(0), tdcall(5), cpuid(0)])
    assert (wanted["rax"], off["rax"]) == (0, 0)
    assert ve_of(refused)[:2] == (End.VE, CPUID_EXIT)
    assert end_of(again) == End.DONE


# other instructions


def test_instructions(guest: Executor) -> None:
    found = guest.run([instruction.row for instruction in INSTRUCTIONS])
    assert {
        instruction.name: ve_of(outcome)[:2] for instruction, outcome in zip(INSTRUCTIONS, found, strict=True)
    } == {instruction.name: (str(instruction.end), instruction.reason) for instruction in INSTRUCTIONS}


def test_ports(guest: Executor) -> None:
    found = guest.run([port.row for port in PORTS])
    assert {port.name: ve_of(outcome) for port, outcome in zip(PORTS, found, strict=True)} == {
        port.name: (End.VE, IO_EXIT, port.qualification, port.length) for port in PORTS
    }


@pytest.mark.parametrize("register", CONTROL_REGISTERS, ids=lambda register: register.name.replace(" ", "-"))
def test_writes_of_control_registers(guest: Executor, register: ControlRegister) -> None:
    now = guest.run([read_cr(register.number)])[0]["rax"]
    outcome, after = guest.run([register.row(now), read_cr(register.number)])
    assert end_of(outcome) == register.end
    if register.end == End.VE:
        assert ve_of(outcome) == (End.VE, CR_ACCESS, register.number, 3)
    expected = now & ~register.clear | register.set if register.end == End.DONE else now
    assert after["rax"] == expected


def test_cr8_is_the_priority_in_the_local_apic(guest: Executor) -> None:
    """CR8 has bits 7:4 of the task priority."""
    rows = [write_cr(8, 5), rdmsr(TPR), wrmsr(TPR, 0x3F), read_cr(8), write_cr(8, 0), rdmsr(TPR)]
    _, by_cr8, _, by_msr, _, none = guest.run(rows)
    assert (by_cr8["rax"], by_msr["rax"], none["rax"]) == (0x50, 3, 0)


def test_pcide_can_be_set_and_is_kept_if_cpuid_offers_it(guest: Executor) -> None:
    """A CPU with TDX has it; the nested host's need not (softseam.md)."""
    cr4, leaf = guest.run([read_cr(4), cpuid(1)])
    written, after = guest.run([write_cr(4, cr4["rax"] | PCIDE), read_cr(4)])
    assert end_of(written) == End.DONE
    assert after["rax"] == cr4["rax"] | (PCIDE if leaf["rcx"] & CPUID_PCID else 0)


def test_pcide_cannot_be_set_while_cr3_has_a_pcid(guest: Executor) -> None:
    cr3, cr4 = guest.run([read_cr(3), read_cr(4)])
    rows = [write_cr(3, cr3["rax"] | PWT), write_cr(4, cr4["rax"] | PCIDE), write_cr(3, cr3["rax"])]
    assert [end_of(outcome) for outcome in guest.run(rows)] == [End.DONE, End.GP, End.DONE]


def test_xcr0(guest: Executor) -> None:
    cr4 = guest.run([read_cr(4)])[0]["rax"]
    rows = {
        "OSXSAVE": write_cr(4, cr4 | OSXSAVE | OSFXSR),
        "at reset": Row(XGETBV),
        "x87 and SSE": Row(XSETBV, {"rax": 3}),
        "kept": Row(XGETBV),
        "without x87": Row(XSETBV, {"rax": 2}),
        "XCR1": Row(XSETBV, {"rcx": 1, "rax": 1}),
    }
    found = dict(zip(rows, guest.run([*rows.values()]), strict=True))
    assert {name: end_of(outcome) for name, outcome in found.items()} == {
        "OSXSAVE": End.DONE,
        "at reset": End.DONE,
        "x87 and SSE": End.DONE,
        "kept": End.DONE,
        "without x87": End.GP,
        "XCR1": End.GP,
    }
    assert (found["at reset"]["rax"], found["kept"]["rax"]) == (1, 3)
    # A round later, so after an exit to the host, which has its own value.
    assert guest.run([Row(XGETBV)])[0]["rax"] == 3
    # Refused, or under QEMU 7.2, which does not intercept it, gone at the next exit (softseam.md).
    guest.run([Row(XSETBV, {"rax": 7})])
    assert guest.run([Row(XGETBV)])[0]["rax"] == 3
