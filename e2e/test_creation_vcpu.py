# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_TDX_INIT_VCPU, KVM_TDX_GET_CPUID, and KVM_RUN before the TD can run."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial

import pytest

from e2e.mistakes import FEATURES
from fixtures.agent.client import Worker
from fixtures.contracts.answers import refused
from fixtures.contracts.promises import Contract, Refusal
from fixtures.findings import shows
from fixtures.guests import output
from fixtures.kvm import abi, build, commands, cpuid
from fixtures.kvm.abi import Cap, MpStateValue
from fixtures.kvm.build import Assembly, Region
from fixtures.kvm.cpuid import CpuidEntry
from fixtures.kvm.defaults import default_params, supported_cpuid
from fixtures.kvm.errors import errno_of
from fixtures.kvm.memory import Memory
from fixtures.kvm.params import Overrides
from fixtures.kvm.vcpu import Vcpu
from fixtures.softseam.truth import Truth

OF_THE_HOST = 0
"""The argument of KVM_SET_TSC_KHZ for the host's own rate, which needs no scaling."""
X87_AND_SSE = 3
FMA, AVX, F16C = 1 << 12, 1 << 28, 1 << 29
AVX2, PKU = 1 << 5, 1 << 3
OSXSAVE, OSPKE = 1 << 27, 1 << 4
XSTATE = 0xD
DISABLE_EXITS_HLT = 1 << 1


@pytest.fixture
def vcpu(td_initialized: Assembly) -> Vcpu:
    """A vCPU that was created, has its CPUID, and is not initialized."""
    made = td_initialized.td.create_vcpu()
    made.set_cpuid2()
    return made


def test_rate_of_a_vcpus_tsc_cannot_be_set(vcpu: Vcpu) -> None:
    """It is the TD's, and the module's to scale (``kvm_arch_vcpu_ioctl`` in x86.c)."""

    def refusals() -> set[int]:
        return {
            errno_of(partial(vcpu.worker.call, commands.set_tsc_khz(vcpu.fd, khz)))
            for khz in (OF_THE_HOST, 1_500_000)
        }

    assert refusals() == {errno.EINVAL}
    vcpu.init_vcpu()
    assert refusals() == {errno.EINVAL}


def test_registers_of_a_vcpu_can_neither_be_seen_nor_changed(vcpu: Vcpu, contract: Contract) -> None:
    """From its creation on, though it has no registers before KVM_TDX_INIT_VCPU."""

    def assert_closed() -> None:
        for request in abi.OF_REGISTERS:
            with refused(contract, Refusal.VCPU_STATE):
                vcpu.worker.call(commands.ioctl(vcpu.fd, request, bytes(abi.PAGE_SIZE)))

    assert_closed()
    vcpu.init_vcpu()
    assert_closed()


# INIT_VCPU


def test_init_vcpu_with_flags_is_refused_and_can_be_tried_again(vcpu: Vcpu, contract: Contract) -> None:
    with refused(contract, Refusal.INIT_VCPU_FLAGS):
        vcpu.worker.call(commands.init_vcpu(vcpu.fd, altered=Overrides(flags=1)))
    vcpu.init_vcpu()


def test_init_vcpu_without_x2apic_is_refused_until_its_cpuid_has_it(vcpu: Vcpu, contract: Contract) -> None:
    vcpu.set_cpuid2(cpuid.with_x2apic(supported_cpuid(vcpu.worker), present=False))
    with refused(contract, Refusal.INIT_VCPU_NO_X2APIC):
        vcpu.init_vcpu()
    vcpu.set_cpuid2()
    vcpu.init_vcpu()


def test_init_vcpu_without_a_cpuid_is_refused(td_initialized: Assembly, contract: Contract) -> None:
    vcpu = td_initialized.td.create_vcpu()
    with refused(contract, Refusal.INIT_VCPU_NO_X2APIC):
        vcpu.init_vcpu()


def test_second_init_vcpu_is_refused(vcpu: Vcpu, contract: Contract) -> None:
    vcpu.init_vcpu()
    with refused(contract, Refusal.INIT_VCPU_TWICE):
        vcpu.init_vcpu()


def test_init_vcpu_after_finalize_is_refused(
    vcpu: Vcpu, td_initialized: Assembly, contract: Contract
) -> None:
    late = td_initialized.td.create_vcpu(1)
    late.set_cpuid2()
    vcpu.init_vcpu()
    td_initialized.finalize()
    with refused(contract, Refusal.INIT_VCPU_FINALIZED):
        late.init_vcpu()


def test_init_vcpu_makes_each_vcpu_runnable(td_initialized: Assembly) -> None:
    """A TD lacks INIT and SIPI: all of its vCPUs begin at the reset vector."""
    vcpus = [td_initialized.td.create_vcpu(ident) for ident in range(2)]
    assert vcpus[1].mp_state() == MpStateValue.UNINITIALIZED
    for vcpu in vcpus:
        vcpu.set_cpuid2()
        vcpu.init_vcpu()
    assert [vcpu.mp_state() for vcpu in vcpus] == [MpStateValue.RUNNABLE] * 2


ALIASED = pytest.mark.tdx_finding(
    "F15",
    flavours=("upstream",),
    splat=r"WARNING: arch/x86/kvm/vmx/main\.c:\d+ at vt_refresh_apicv_exec_ctrl\+",
)


@pytest.mark.parametrize(
    "ident",
    [
        1,
        255,
        pytest.param(256, marks=ALIASED),
        pytest.param(512, marks=ALIASED),
    ],
)
def test_vcpu_runs_though_another_one_is_not_initialized(
    ident: int, owner: Worker, tdx_cleanup: ExitStack, payloads: Mapping[str, bytes]
) -> None:
    built = tdx_cleanup.enter_context(build.initialized(owner)).create_vcpus()
    built.td.create_vcpu(ident)
    built.initialize_vcpus().populate(Region.firmware(payloads["count"])).finalize()
    with shows("F15", match="EIO"):
        assert output.numbers(built.vcpus[0], 2) == [1, output.COMMON | 1]


@pytest.mark.parametrize("disabled", [0, DISABLE_EXITS_HLT], ids=["exits-of-hlt", "no-exits-of-hlt"])
def test_vcpu_runs_once_user_space_has_made_it_runnable_again(
    disabled: int, td_created: Assembly, payloads: Mapping[str, bytes]
) -> None:
    """A VMM may ask for no exits of HLT, which a TD has all the same: KVM cannot look at its VMCS."""
    td_created.td.enable_cap(Cap.X86_DISABLE_EXITS, disabled)
    built = td_created.init().add_vcpus().populate(Region.firmware(payloads["count"])).finalize()
    vcpu = built.vcpus[0]
    for state in (MpStateValue.HALTED, MpStateValue.RUNNABLE):
        vcpu.worker.call(commands.set_mp_state(vcpu.fd, state))
        assert vcpu.mp_state() == state
    assert output.numbers(vcpu, 2) == [1, output.COMMON | 1]


@pytest.mark.tdx_needs("ground-truth")
def test_module_has_a_vcpu_from_init_vcpu_on(vcpu: Vcpu, truth: Truth) -> None:
    assert [td.vcpus for td in truth.tds()] == [0]
    vcpu.init_vcpu()
    assert [td.vcpus for td in truth.tds()] == [1]
    assert [(known.state, known.x2apic_id) for known in truth.vcpus()] == [("ready", vcpu.id)]


# GET_CPUID


def test_get_cpuid_tells_what_init_vm_configured(vcpu: Vcpu) -> None:
    told = {entry.key: entry for entry in vcpu.get_cpuid()}
    for asked in default_params(vcpu.worker).cpuid:
        assert asked.masked(told[asked.key]) == asked


def test_vcpu_takes_the_cpuid_that_is_reported_and_keeps_it(vcpu: Vcpu) -> None:
    reported = vcpu.get_cpuid()
    vcpu.set_cpuid2(reported)
    kept = vcpu.worker.call(commands.get_cpuid2(vcpu.fd))
    assert [without_runtime(entry) for entry in kept] == [without_runtime(entry) for entry in reported]


def without_runtime(entry: CpuidEntry) -> CpuidEntry:
    """Clear the bits that KVM derives from control registers (``kvm_update_cpuid_runtime``)."""
    if entry.key == (1, 0):
        return entry.with_registers(ecx=entry.ecx & ~OSXSAVE)
    if entry.key == (FEATURES, 0):
        return entry.with_registers(ecx=entry.ecx & ~OSPKE)
    if entry.key in ((XSTATE, 0), (XSTATE, 1)):
        return entry.with_registers(ebx=0)
    return entry


def test_get_cpuid_tells_the_fixed_bits(vcpu: Vcpu) -> None:
    told = {entry.key: entry for entry in vcpu.get_cpuid()}
    assert told[1, 0].ecx & cpuid.X2APIC
    assert told[cpuid.ADDRESS_WIDTHS, 0].eax >> 16 & 0xFF == 48


def test_get_cpuid_tells_of_no_feature_whose_state_xfam_lacks(vcpu: Vcpu) -> None:
    assert default_params(vcpu.worker).xfam == X87_AND_SSE
    told = {entry.key: entry for entry in vcpu.get_cpuid()}
    assert not told[1, 0].ecx & (FMA | AVX | F16C)
    assert not told[FEATURES, 0].ebx & AVX2
    assert not told[FEATURES, 0].ecx & PKU


def test_get_cpuid_is_the_same_before_and_after_init_vcpu(vcpu: Vcpu) -> None:
    before = vcpu.get_cpuid()
    vcpu.init_vcpu()
    assert vcpu.get_cpuid() == before


def test_get_cpuid_without_room_is_refused_and_tells_how_much_it_needs(
    vcpu: Vcpu, contract: Contract
) -> None:
    needed = len(vcpu.get_cpuid())
    with Memory.map(vcpu.worker, abi.PAGE_SIZE) as memory:
        memory.write(0, cpuid.pack((), nent=needed - 1))
        with refused(contract, Refusal.GET_CPUID_NENT_TOO_SMALL):
            vcpu.worker.call(commands.get_cpuid(vcpu.fd, altered=Overrides(data=memory.address)))
        assert int.from_bytes(memory.read(0, 4), "little") == needed
    assert len(vcpu.get_cpuid(room=needed)) == needed


def test_get_cpuid_to_a_bad_address_is_refused(vcpu: Vcpu, contract: Contract) -> None:
    with refused(contract, Refusal.GET_CPUID_BAD_POINTER):
        vcpu.worker.call(commands.get_cpuid(vcpu.fd, altered=Overrides(data=0)))


def test_get_cpuid_after_finalize_is_refused(td_finalized: Assembly, contract: Contract) -> None:
    with refused(contract, Refusal.GET_CPUID_FINALIZED):
        td_finalized.vcpus[0].get_cpuid()


# KVM_RUN


def test_run_before_init_vcpu_is_refused(vcpu: Vcpu, contract: Contract) -> None:
    with refused(contract, Refusal.RUN_BEFORE_INIT_VCPU):
        vcpu.run()


def test_run_before_finalize_is_refused(td_populated: Assembly, contract: Contract) -> None:
    with refused(contract, Refusal.RUN_BEFORE_FINALIZE):
        td_populated.vcpus[0].run()


def test_run_of_a_vcpu_that_was_not_initialized_in_time_is_refused(
    vcpu: Vcpu, td_initialized: Assembly, contract: Contract
) -> None:
    other = td_initialized.td.create_vcpu(1)
    other.set_cpuid2()
    other.init_vcpu()
    td_initialized.finalize()
    with refused(contract, Refusal.RUN_BEFORE_INIT_VCPU):
        vcpu.run()
