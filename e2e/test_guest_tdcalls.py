# SPDX-License-Identifier: GPL-2.0-or-later
"""The leaves of TDCALL: how they end, what they return, and what they change for the guest.

The rows, and their sources, are data of :mod:`fixtures.guests.tdcalls`.
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha384

import pytest

from fixtures.guests import report
from fixtures.guests.execute import DF, SPARE_GPA, VE, Executor, Row, cpuid, rdmsr, tdcall
from fixtures.guests.interface import End, end_of
from fixtures.guests.launch import Launch
from fixtures.guests.report import Report
from fixtures.guests.tdcalls import (
    ACCEPT,
    ATTRIBUTES,
    CALLS,
    CODE,
    CPUID_SUPERVISOR_VE,
    ENUM_TOPOLOGY,
    FIRST_FIELD,
    GPAW,
    ID,
    MAX_VCPUS,
    MRTD,
    NONE,
    NUM_VCPUS,
    PAGE_ALREADY_ACCEPTED,
    PAGE_SIZE_MISMATCH,
    REPORT,
    RTMR,
    RTMR_EXTEND,
    SUCCESS,
    SYS_RD,
    SYS_RDALL,
    TD_CTLS,
    TSC_FREQUENCY,
    VEINFO_GET,
    VERSION_1,
    VM_RD,
    VM_WR,
    VP_WR,
    XFAM,
    Call,
)
from fixtures.kvm.abi import PAGE_SIZE
from fixtures.kvm.build import Region
from fixtures.kvm.defaults import default_params
from fixtures.kvm.params import InitVmParams

AREA = 0x40000000
CPUID_EXIT, RDMSR_EXIT, EPT_VIOLATION = 10, 31, 48
READ, WRITE, GLA_VALID, GLA_FINAL = 1 << 0, 1 << 1, 1 << 7, 1 << 8
APIC_ID = 0x802
WORDS = 6
"""Of 8 bytes in a measurement register."""


@pytest.fixture
def guest(launch: Launch) -> Executor:
    """A guest that executes the rows that the test chooses."""
    return Executor(launch("execute"))


def differences(call: Call, found: dict[str, int]) -> dict[str, str]:
    """Return what a call returned otherwise than its row states."""
    wanted = {"rax": (call.code, NONE)} | {name: (value, bits) for name, value, bits in call.registers}
    return {
        name: f"{found[name] & bits:#x} instead of {value & bits:#x}"
        for name, (value, bits) in wanted.items()
        if (found[name] ^ value) & bits
    }


def test_tdcalls(guest: Executor) -> None:
    found = guest.run([call.row for call in CALLS])
    wrong = {
        f"{call.name} ({call.source.name})": differences(call, dict(outcome.registers))
        for call, outcome in zip(CALLS, found, strict=True)
    }
    assert {name: what for name, what in wrong.items() if what} == {}


def test_page_that_is_accepted_is_zero_and_cannot_be_accepted_again(launch: Launch) -> None:
    guest = Executor(launch("execute", regions=[Region(AREA, PAGE_SIZE)]))
    first, again, read = guest.run([tdcall(ACCEPT, rcx=AREA), tdcall(ACCEPT, rcx=AREA), load(AREA)])
    assert (first["rax"], again["rax"]) == (SUCCESS, PAGE_ALREADY_ACCEPTED)
    assert (end_of(read), read["rax"]) == (End.DONE, 0)


def test_large_page_is_not_accepted_where_small_ones_are_pending(launch: Launch) -> None:
    guest = Executor(launch("execute", regions=[Region(AREA, PAGE_SIZE)]))
    found = guest.run([tdcall(ACCEPT, rcx=AREA | 1)])[0]
    assert hex(found["rax"]) == hex(PAGE_SIZE_MISMATCH | 1)


def test_ve_while_the_module_has_another_is_a_double_fault(guest: Executor) -> None:
    first, second, info, third = guest.run(
        [replace(cpuid(2), leave_ve=True), rdmsr(APIC_ID), tdcall(VEINFO_GET), rdmsr(APIC_ID)]
    )
    assert (first.vector, second.vector, second.error, second.offset) == (VE, DF, 0, 0)
    # What it has is that of the first.
    assert (info["rax"], info["rcx"]) == (SUCCESS, CPUID_EXIT)
    assert third.ve
    assert third.ve.reason == RDMSR_EXIT


# measurements


def load(address: int) -> Row:
    """MOV from memory to RAX."""
    return Row(b"\x48\x8b\x02", {"rdx": address, "rax": 0x5A})


def store(address: int) -> Row:
    """MOV from RAX to memory."""
    return Row(b"\x48\x89\x02", {"rdx": address, "rax": 0x5A})


def taken(guest: Executor, data: bytes = bytes(64)) -> Report:
    """Let the guest take a report, into memory that it shares."""
    guest.write_spare(bytes(report.SIZE) + data)
    found = guest.run([tdcall(REPORT, rcx=SPARE_GPA, rdx=SPARE_GPA + report.SIZE)])[0]
    assert hex(found["rax"]) == hex(SUCCESS)
    return Report.unpack(guest.read_spare(report.SIZE))


def owned(params: InitVmParams) -> InitVmParams:
    """Return parameters with an owner and configurations of the TD."""
    return params.replace(mrconfigid=bytes([1] * 48), mrowner=bytes([2] * 48), mrownerconfig=bytes([3] * 48))


def test_report_has_what_the_td_is_made_of(launch: Launch) -> None:
    built = launch("execute")
    params = owned(default_params(built.worker))
    guest = Executor(launch("execute", params=params))
    data = bytes(range(64))
    found = taken(guest, data)
    assert found.kind == (report.TYPE_TDX, 0, 0)
    assert found.data == data
    assert (found.attributes, found.xfam) == (params.attributes, params.xfam)
    assert (found.mrconfigid, found.mrowner, found.mrownerconfig) == (
        params.mrconfigid,
        params.mrowner,
        params.mrownerconfig,
    )
    assert found.rtmrs == (bytes(48),) * 4
    assert (found.servtd_hash, found.reserved) == (bytes(48), bytes(64))
    assert found.info_hash == sha384(found.info).digest()
    assert found.tcb_hash == sha384(found.tcb_info).digest()


def test_mrtd_is_the_hash_of_each_page_in_order(launch: Launch) -> None:
    regions = [
        Region(AREA, 2 * PAGE_SIZE, bytes(range(256)) * 32),
        Region(AREA * 2, PAGE_SIZE, b"\1" * PAGE_SIZE, False),
    ]
    built = launch("execute", regions=regions)
    found = taken(Executor(built))
    assert found.mrtd == report.mrtd([placed.region for placed in built.placed])


def test_mrtd_differs_with_one_byte(launch: Launch) -> None:
    def mrtd(data: bytes) -> bytes:
        return taken(Executor(launch("execute", regions=[Region(AREA, PAGE_SIZE, data)]))).mrtd

    first, same, other = mrtd(bytes(PAGE_SIZE)), mrtd(bytes(PAGE_SIZE)), mrtd(bytes(PAGE_SIZE - 1) + b"\1")
    assert first == same
    assert first != other


def test_rtmr_is_extended_in_the_report_and_for_vm_rd(launch: Launch) -> None:
    data = bytes(range(100, 148))
    guest = Executor(launch("execute", regions=[Region(AREA, PAGE_SIZE, data.ljust(PAGE_SIZE, b"\0"))]))
    extend = tdcall(RTMR_EXTEND, rcx=AREA, rdx=2)
    assert [found["rax"] for found in guest.run([extend, extend])] == [SUCCESS, SUCCESS]
    wanted = report.extended(report.extended(bytes(48), data), data)
    assert taken(guest).rtmrs == (bytes(48), bytes(48), wanted, bytes(48))
    assert field(guest, RTMR + 2 * WORDS, WORDS) == wanted


def field(guest: Executor, ident: int, words: int) -> bytes:
    """Let the guest read a field of its TD of several elements."""
    found = guest.run([tdcall(VM_RD, rdx=ident + n) for n in range(words)])
    return b"".join(outcome["r8"].to_bytes(8, "little") for outcome in found)


def test_report_goes_to_private_memory_too(launch: Launch) -> None:
    guest = Executor(launch("execute", regions=[Region(AREA, PAGE_SIZE, b"\xff" * PAGE_SIZE)]))
    written, head = guest.run([tdcall(REPORT, rcx=AREA, rdx=CODE), load(AREA)])
    assert (written["rax"], head["rax"]) == (SUCCESS, report.TYPE_TDX)


# metadata


def test_fields_of_the_td_name_one_another(guest: Executor) -> None:
    """Follow the ids from the first field on; every one can be read."""
    found = guest.run([tdcall(VM_RD | VERSION_1, rdx=NONE)])[0]
    assert hex(found["rax"]) == hex(FIRST_FIELD)
    seen: dict[int, int] = {}
    while found["rdx"] != NONE:
        ident = found["rdx"]
        assert ident not in seen
        found = guest.run([tdcall(VM_RD | VERSION_1, rdx=ident)])[0]
        assert hex(found["rax"]) == hex(SUCCESS)
        seen[ident & ID] = found["r8"]
    wanted = (ATTRIBUTES, XFAM, NUM_VCPUS, MAX_VCPUS, GPAW, TSC_FREQUENCY, TD_CTLS, MRTD + 5, RTMR + 23)
    assert {ident & ID for ident in wanted} <= set(seen)


def test_vm_rd_and_the_report_have_the_same_mrtd(guest: Executor) -> None:
    assert field(guest, MRTD, WORDS) == taken(guest).mrtd


def test_sys_rdall_has_what_sys_rd_returns(launch: Launch) -> None:
    guest = Executor(launch("execute", regions=[Region(AREA, PAGE_SIZE, bytes(PAGE_SIZE))]))
    listed, head = guest.run([tdcall(SYS_RDALL, rdx=AREA, r8=NONE), load(AREA)])
    assert (listed["rax"], listed["r8"]) == (SUCCESS, NONE)
    size, sequences = head["rax"] & 0xFFFF, head["rax"] >> 16 & 0xFFFF
    words = [found["rax"] for found in guest.run([load(AREA + at) for at in range(8, size, 8)])]
    fields: dict[int, int] = {}
    for _ in range(sequences):
        header, *words = words
        count = (header >> 38 & 0x1FF) + 1
        first = header & ~(0x1FF << 38)
        fields |= {first + n: words[n] for n in range(count)}
        words = words[count:]
    assert words == []
    read = guest.run([tdcall(SYS_RD, rdx=ident) for ident in fields])
    assert [found["r8"] for found in read] == [*fields.values()]


def test_cpuid_that_the_guest_wants_by_vp_wr_is_ve(guest: Executor) -> None:
    on = tdcall(VP_WR, rdx=CPUID_SUPERVISOR_VE, r8=1, r9=0xFF)
    off = tdcall(VP_WR, rdx=CPUID_SUPERVISOR_VE, r9=0xFF)
    _, refused, _, again = guest.run([on, cpuid(0), off, cpuid(0)])
    assert (end_of(refused), end_of(again)) == (End.VE, End.DONE)


def test_topology_is_there_for_a_guest_that_asks(launch: Launch) -> None:
    guest = Executor(launch("execute", vcpus=2), vcpu=1)
    leaves = [cpuid(1), cpuid(0xB), cpuid(0xB, 1), cpuid(0x1F), cpuid(0x1F, 1), rdmsr(APIC_ID)]
    before = guest.run(leaves)
    assert [end_of(found) for found in before] == [End.DONE, *(End.VE,) * 5]
    assert guest.run([tdcall(VM_WR, rdx=TD_CTLS, r8=ENUM_TOPOLOGY, r9=ENUM_TOPOLOGY)])[0]["rax"] == SUCCESS
    leaf1, *topology, apic_id = guest.run(leaves)
    assert [end_of(found) for found in (leaf1, *topology, apic_id)] == [End.DONE] * 6
    assert (leaf1["rbx"] >> 24, apic_id["rax"], apic_id["rdx"]) == (1, 1, 0)
    assert [found["rdx"] for found in topology] == [1] * 4
    # Threads, then cores, in the older leaf; as the host configured it in the newer one.
    assert [found["rcx"] for found in topology[:2]] == [0x100, 0x201]
    assert [found["rcx"] >> 8 for found in topology[2:]] == [1, 2]
    # The shift of the widest level leaves no vCPU outside.
    assert 1 >> topology[1]["rax"] == 0


# memory that is not accepted, or not there


def test_access_to_shared_memory_that_is_not_there_is_ve_with_its_addresses(guest: Executor) -> None:
    va, gpa = (1 << 39) + 0x90000123, 1 << 47 | 0x90000123
    load_found, store_found = guest.run([load(va), store(va)])
    assert load_found.ve
    assert store_found.ve
    for ve, access in ((load_found.ve, READ), (store_found.ve, WRITE)):
        assert (ve.reason, ve.gpa, ve.gla) == (EPT_VIOLATION, gpa, va)
        assert ve.qualification & (READ | WRITE | GLA_VALID | GLA_FINAL) == access | GLA_VALID | GLA_FINAL


ADDRESSES = {
    "disp32": Row(b"\x8b\x82\x23\x01\x00\x00", {"rdx": (1 << 39) + 0x90000000}),
    "SIB": Row(b"\x8b\x04\xca", {"rdx": (1 << 39) + 0x90000003, "rcx": 0x24}),
    "R12": Row(b"\x41\x8b\x44\x24\x20", {"r12": (1 << 39) + 0x90000103}),
    "RBP and R9": Row(b"\x42\x8b\x44\x0d\x23", {"rbp": (1 << 39) + 0x90000000, "r9": 0x100}),
    "moffs": Row(b"\xa1" + ((1 << 39) + 0x90000123).to_bytes(8, "little")),
    "LODSD": Row(b"\xad", {"rsi": (1 << 39) + 0x90000123}),
    "STOSB": Row(b"\xaa", {"rdi": (1 << 39) + 0x90000123, "rsi": 0x90000123}),
}


def test_linear_address_of_a_ve_is_that_of_the_instructions_operand(guest: Executor) -> None:
    found = dict(zip(ADDRESSES, guest.run([*ADDRESSES.values()]), strict=True))
    assert {name: hex(outcome.ve.gla) for name, outcome in found.items() if outcome.ve} == dict.fromkeys(
        ADDRESSES, hex((1 << 39) + 0x90000123)
    )


def test_pending_page_is_ve_if_the_host_asked_for_it(launch: Launch) -> None:
    built = launch("execute")
    params = default_params(built.worker).replace(attributes=0)
    guest = Executor(launch("execute", params=params, regions=[Region(AREA, PAGE_SIZE)]))
    loaded, extended, accepted, again = guest.run(
        [load(AREA + 0x123), tdcall(RTMR_EXTEND, rcx=AREA), tdcall(ACCEPT, rcx=AREA), load(AREA + 0x123)]
    )
    assert loaded.ve
    assert (loaded.ve.reason, loaded.ve.gpa, loaded.ve.gla) == (EPT_VIOLATION, AREA + 0x123, AREA + 0x123)
    assert extended.ve
    assert (extended.ve.reason, extended.ve.gpa) == (EPT_VIOLATION, AREA)
    assert (accepted["rax"], end_of(again)) == (SUCCESS, End.DONE)
