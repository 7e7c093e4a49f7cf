# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_TDX_INIT_VM and KVM_TDX_FINALIZE_VM: accepted parameters, and their effect in the TDX module.

``test_hkid.py`` covers the mistakes of :mod:`e2e.mistakes`: each is refused, holds no HKID and can be
corrected.  ``test_faults.py`` covers SEAMCALLs that fail.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import pytest

from e2e.findings import F2
from e2e.mistakes import FEATURES, HLE, RTM, WAITPKG
from fixtures.agent import syscalls
from fixtures.contracts.answers import each_refused, refused
from fixtures.contracts.promises import Contract, Refusal
from fixtures.findings import shows
from fixtures.kvm import abi, commands, cpuid
from fixtures.kvm.build import Assembly
from fixtures.kvm.cpuid import CpuidEntry
from fixtures.kvm.defaults import supported_cpuid
from fixtures.kvm.device import Kvm
from fixtures.kvm.errors import KvmError, errno_of
from fixtures.kvm.memory import Memory
from fixtures.kvm.params import Capabilities, InitVmParams, Overrides
from fixtures.kvm.td import Td
from fixtures.softseam.inject import TDX_OPERAND_INVALID
from fixtures.softseam.truth import Truth

REGISTERS = ("eax", "ebx", "ecx", "edx")
KVMS_OWN = {(FEATURES, "ebx"): HLE | RTM, (FEATURES, "ecx"): WAITPKG}
"""CPUID bits that KVM refuses before it calls the module."""
STATUS = 0xFFFFFFFF00000000
"""The bits of a completion code that contain the kind of error; the lower bits contain the operand."""

Change = Callable[[InitVmParams, Capabilities], InitVmParams]


@pytest.fixture
def td(kvm: Kvm, tdx_cleanup: ExitStack) -> Td:
    """A TD before KVM_TDX_INIT_VM."""
    return tdx_cleanup.enter_context(kvm.create_td())


def errors_of(td: Td, attempts: list[InitVmParams]) -> list[KvmError]:
    """Try INIT_VM with each of the parameters, all of which have to be refused, in one round trip."""
    batch = [commands.init_vm(td.fd, attempt) for attempt in attempts]
    results = td.worker.batch(batch, go_on=True).results
    accepted = [attempt for attempt, result in zip(attempts, results, strict=True) if result is None]
    assert not accepted
    return list(results)


def missing_bits(mask: int, width: int) -> list[int]:
    """List the bits of a register that are clear in ``mask``."""
    return [1 << bit for bit in range(width) if not mask >> bit & 1]


# accepted by INIT_VM

ACCEPTED: dict[str, Change] = {
    "nothing-but-the-width": lambda right, _: right.replace(
        cpuid=(CpuidEntry(cpuid.ADDRESS_WIDTHS, eax=48 << 16),)
    ),
    "no-attribute": lambda right, _: right.replace(attributes=0),
    "every-attribute-offered": lambda right, caps: right.replace(attributes=caps.attributes),
    "no-feature-beyond-the-fixed-ones": lambda right, _: right.replace(xfam=0),
    "every-feature-offered": lambda right, caps: right.replace(xfam=caps.xfam),
    "configuration-id": lambda right, _: right.replace(mrconfigid=b"\xa5" * 48),
    "owner": lambda right, _: right.replace(mrowner=b"\x5a" * 48),
    "owner-configuration": lambda right, _: right.replace(mrownerconfig=b"\xff" * 48),
    "entries-in-any-order": lambda right, _: right.replace(cpuid=right.cpuid[::-1]),
}


def test_init_vm_accepts(kvm: Kvm, td: Td) -> None:
    right, caps = td.default_params(), td.capabilities()
    for name, change in ACCEPTED.items():
        with kvm.create_td() as other:
            try:
                other.init_vm(change(right, caps))
            except KvmError as error:
                pytest.fail(f"{name}: {error}")


@pytest.mark.tdx_needs("ground-truth")
@pytest.mark.parametrize("attributes", [0, abi.TDX_TD_ATTR_SEPT_VE_DISABLE])
def test_module_gets_the_attributes(attributes: int, td: Td, truth: Truth) -> None:
    td.init_vm(td.default_params().replace(attributes=attributes))
    assert [known.attributes for known in truth.tds()] == [attributes]


@pytest.mark.tdx_needs("ground-truth")
def test_module_gets_the_features_and_those_that_are_fixed(td: Td, truth: Truth) -> None:
    offered = td.capabilities().xfam
    extra = offered & ~abi.XFAM_X87_SSE
    assert extra
    td.init_vm(td.default_params().replace(xfam=extra))
    assert [known.xfam for known in truth.tds()] == [offered]


@pytest.mark.tdx_needs("ground-truth")
def test_module_gets_the_width(td: Td, truth: Truth) -> None:
    td.init_vm(td.default_params().with_width(48))
    assert [known.gpaw for known in truth.tds()] == [48]


def test_width_of_52_is_accepted_where_kvm_can_map_it(td: Td, contract: Contract) -> None:
    (widths,) = [leaf for leaf in supported_cpuid(td.worker) if leaf.function == cpuid.ADDRESS_WIDTHS]
    params = td.default_params().with_width(52)
    if widths.eax >> 16 & 0xFF > 48:
        td.init_vm(params)
    else:
        with refused(contract, Refusal.INIT_WIDTH_52_UNSUPPORTED):
            td.init_vm(params)


TOPOLOGY = 0x1F
LEVELS = (
    CpuidEntry(TOPOLOGY, 0, eax=0, ebx=1, ecx=1 << 8),
    CpuidEntry(TOPOLOGY, 1, eax=4, ebx=16, ecx=2 << 8 | 1),
)
"""One thread in each of 16 cores."""


@pytest.mark.tdx_finding("F16", flavours=("upstream",))
@pytest.mark.parametrize("flagged", [True, False], ids=["flags-as-reported", "no-flags"])
def test_init_vm_takes_what_the_capabilities_report_and_keeps_it(flagged: bool, td: Td) -> None:
    """Each entry goes back as it was reported, with values of its own; what its flags say does not matter."""
    offered = {entry.key: entry for entry in td.capabilities().cpuid}
    right = td.default_params()
    values = {entry.key: entry for entry in (*right.cpuid, *LEVELS)}
    asked = [replace(values[key], flags=offered[key].flags) for key in offered if key in values]
    given = asked if flagged else [replace(entry, flags=0) for entry in asked]
    with shows("F16", match="EINVAL"):
        td.init_vm(right.replace(cpuid=tuple(given)))
    td.split_irqchip()
    with td.create_vcpu() as vcpu:
        kept = {entry.key: entry for entry in vcpu.get_cpuid()}
    configured = [entry for entry in asked if entry.function != cpuid.ADDRESS_WIDTHS]
    assert [kept[entry.key].masked(offered[entry.key]) for entry in configured] == configured


# refused by INIT_VM, beyond single mistakes


def test_every_attribute_that_is_not_offered_is_refused(td: Td, contract: Contract) -> None:
    right = td.default_params()
    bits = missing_bits(td.capabilities().attributes, 64)
    errors = errors_of(td, [right.replace(attributes=right.attributes | bit) for bit in bits])
    assert {error.errno for error in errors} == {contract.errno(Refusal.INIT_ATTRIBUTES)}


def test_every_feature_that_is_not_offered_is_refused(td: Td, contract: Contract) -> None:
    right = td.default_params()
    bits = missing_bits(td.capabilities().xfam, 64)
    errors = errors_of(td, [right.replace(xfam=right.xfam | bit) for bit in bits])
    assert {error.errno for error in errors} == {contract.errno(Refusal.INIT_XFAM)}


def test_every_width_but_48_and_52_is_refused(td: Td, contract: Contract) -> None:
    right = td.default_params()
    widths = sorted(set(range(256)) - {48, 52})
    errors = errors_of(td, [right.with_width(width) for width in widths])
    assert {error.errno for error in errors} == {contract.errno(Refusal.INIT_WIDTH)}


def test_every_reserved_word_is_looked_at(td: Td, contract: Contract) -> None:
    right = td.default_params()
    words = [tuple(int(index == wrong) << 63 for index in range(12)) for wrong in range(12)]
    errors = errors_of(td, [right.replace(reserved=reserved) for reserved in words])
    assert {error.errno for error in errors} == {contract.errno(Refusal.INIT_RESERVED)}


def test_cpuid_bit_that_cannot_be_configured_is_refused_in_every_register(td: Td, contract: Contract) -> None:
    """The module refuses them: KVM itself checks only TSX, WAITPKG and the width."""
    right = td.default_params()
    attempts = []
    for leaf in td.capabilities().cpuid:
        others = [entry for entry in right.cpuid if entry.key != leaf.key]
        entry = CpuidEntry(*leaf.key, abi.KVM_CPUID_FLAG_SIGNIFCANT_INDEX)
        if leaf.function == cpuid.ADDRESS_WIDTHS:
            entry = entry.with_registers(eax=48 << 16)
        for register in REGISTERS:
            mask = getattr(leaf, register) | KVMS_OWN.get((leaf.function, register), 0)
            for bit in missing_bits(mask, 32)[-1:]:
                wrong = entry.with_registers(**{register: getattr(entry, register) | bit})
                attempts.append(right.replace(cpuid=(*others, wrong)))
    answer = contract.answer(Refusal.INIT_MODULE_REFUSES)
    errors = errors_of(td, attempts)
    assert {(error.errno, error.hw_error & STATUS) for error in errors} == {
        (answer.errno, TDX_OPERAND_INVALID)
    }


@pytest.mark.tdx_finding("F17", flavours=("upstream",), splat=r"WARNING: arch/x86/kvm/vmx/tdx\.c:\d+")
def test_topology_that_the_module_refuses_is_the_callers_mistake(td: Td, contract: Contract) -> None:
    threads, cores = (
        replace(level, flags=abi.KVM_CPUID_FLAG_SIGNIFCANT_INDEX, ecx=level.ecx & 0xFF | 1 << 8)
        for level in LEVELS
    )
    right = td.default_params()
    with shows("F17", match="EIO"), refused(contract, Refusal.INIT_MODULE_REFUSES):
        td.init_vm(right.replace(cpuid=(*right.cpuid, threads, cores)))
    td.init_vm(right)


UNPLACED: dict[str, Callable[[InitVmParams], InitVmParams]] = {
    "leaf-twice": lambda right: right.replace(cpuid=(*right.cpuid, right.cpuid[0])),
    "unknown-sub-leaf": lambda right: right.replace(
        cpuid=(*right.cpuid, CpuidEntry(cpuid.ADDRESS_WIDTHS, index=1))
    ),
    "entry-of-zeroes": lambda right: right.replace(nent=len(right.cpuid) + 1),
}


def test_cpuid_entry_that_finds_no_place_is_refused(td: Td, contract: Contract) -> None:
    right = td.default_params()
    requests = {
        name: (Refusal.INIT_CPUID_UNKNOWN, partial(td.init_vm, change(right)))
        for name, change in UNPLACED.items()
    }
    each_refused(contract, requests)


def test_parameters_that_end_too_early_are_refused(td: Td, contract: Contract) -> None:
    data = td.default_params().pack()
    with Memory.map(td.worker, 2 * abi.PAGE_SIZE) as memory:
        start = abi.PAGE_SIZE - len(data) + 1
        memory.write(start, data)
        td.worker.call(syscalls.munmap(memory.address + abi.PAGE_SIZE, abi.PAGE_SIZE))
        altered = Overrides(data=memory.address + start)
        with refused(contract, Refusal.INIT_BAD_POINTER):
            td.worker.call(commands.init_vm(td.fd, InitVmParams(), altered=altered))


# FINALIZE_VM


def test_finalize_before_init_vm_is_refused(td: Td, contract: Contract) -> None:
    with refused(contract, Refusal.FINALIZE_BEFORE_INIT):
        td.finalize()


def test_finalize_after_an_init_vm_that_failed_is_refused(td: Td, contract: Contract) -> None:
    with refused(contract, Refusal.INIT_MODULE_REFUSES):
        td.init_vm(td.default_params().with_entry(1, edx=1))
    with refused(contract, Refusal.FINALIZE_BEFORE_INIT):
        td.finalize()


def test_second_finalize_is_refused(td_finalized: Assembly, contract: Contract) -> None:
    with refused(contract, Refusal.FINALIZE_TWICE):
        td_finalized.td.finalize()


@pytest.mark.tdx_finding("F24", flavours=("upstream",))
@pytest.mark.parametrize(
    "altered",
    [Overrides(flags=1), Overrides(data=1), Overrides(data=1 << 63)],
    ids=["flag", "data", "address"],
)
def test_finalize_with_what_it_has_no_use_for_is_refused(altered: Overrides, td_populated: Assembly) -> None:
    worker, td = td_populated.worker, td_populated.td
    with shows("F24"):
        assert errno_of(partial(worker.call, commands.finalize_vm(td.fd, altered=altered))) == errno.EINVAL
    td.finalize()


def test_td_without_memory_can_be_finalized(td_with_vcpus: Assembly) -> None:
    td_with_vcpus.finalize()


@pytest.mark.tdx_needs("ground-truth")
def test_finalized_td_is_runnable_in_the_module(td_populated: Assembly, truth: Truth) -> None:
    assert [td.op for td in truth.tds()] == ["initialized"]
    td_populated.finalize()
    assert [td.op for td in truth.tds()] == ["runnable"]


@pytest.mark.tdx_finding("F2", **F2)
def test_finalize_without_an_initialized_vcpu_is_refused_without_a_warning(
    kvm: Kvm, contract: Contract
) -> None:
    for vcpus in range(2):
        with kvm.create_td() as td:
            td.split_irqchip()
            td.init_vm()
            for ident in range(vcpus):
                td.create_vcpu(ident)
            with shows("F2", match="EIO"), refused(contract, Refusal.FINALIZE_NO_VCPU):
                td.finalize()


# the frequency of the TSC


@pytest.mark.tdx_finding("F36", flavours=("upstream",))
def test_frequency_of_the_tsc_is_what_the_module_was_told(td: Td, contract: Contract) -> None:
    """KVM reckons with the other one, e.g. for TSC deadlines, and cannot change the TD's."""
    td.set_tsc_khz(1_000_000)
    td.init_vm()
    with shows("F36"), refused(contract, Refusal.TSC_KHZ_AFTER_INIT):
        td.set_tsc_khz(2_000_000)
    assert td.get_tsc_khz() == 1_000_000
