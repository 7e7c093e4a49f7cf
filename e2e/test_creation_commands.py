# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks common to all commands of KVM_MEMORY_ENCRYPT_OP, and KVM_TDX_CAPABILITIES."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from e2e.mistakes import FEATURES, HLE, RTM, WAITPKG
from fixtures.agent import syscalls
from fixtures.agent.client import Worker
from fixtures.contracts.answers import each_refused, refused
from fixtures.contracts.promises import Contract, Refusal
from fixtures.guests.launch import Launch
from fixtures.host.base import TdxHost
from fixtures.kvm import abi, build, commands, cpuid
from fixtures.kvm.abi import Cap, TdxCmdId
from fixtures.kvm.build import Assembly, Region, Stage
from fixtures.kvm.device import Kvm
from fixtures.kvm.fd import Fd
from fixtures.kvm.memory import Memory
from fixtures.kvm.params import UNALTERED, Capabilities, Overrides
from images.kernel import flavours

OF_VM = (TdxCmdId.CAPABILITIES, TdxCmdId.INIT_VM, TdxCmdId.FINALIZE_VM)
OF_VCPU = (TdxCmdId.INIT_VCPU, TdxCmdId.INIT_MEM_REGION, TdxCmdId.GET_CPUID)
UNKNOWN = (max(TdxCmdId) + 1, 0xFFFFFFFF)
NO_STRUCT = Overrides(command=0)


Rows = dict[str, tuple[Refusal, Callable[[], object]]]


def send(fd: Fd, command: TdxCmdId, altered: Overrides = UNALTERED) -> None:
    """Execute a command on an fd of any kind."""
    fd.worker.call(commands.tdx(fd.fd, command, altered=altered))


def each(idents: tuple[TdxCmdId, ...], fd: Fd, refusal: Refusal, altered: Overrides = UNALTERED) -> Rows:
    """Rows for several commands that are refused in the same way."""
    return {ident.name: (refusal, partial(send, fd, ident, altered)) for ident in idents}


# struct kvm_tdx_cmd


def test_command_at_a_bad_address_is_refused_on_a_vm(td_created: Assembly, contract: Contract) -> None:
    with refused(contract, Refusal.CMD_BAD_POINTER):
        send(td_created.td, TdxCmdId.CAPABILITIES, NO_STRUCT)


def test_command_at_a_bad_address_is_refused_on_a_vcpu(td_with_vcpus: Assembly, contract: Contract) -> None:
    with refused(contract, Refusal.CMD_BAD_POINTER):
        send(td_with_vcpus.vcpus[0], TdxCmdId.INIT_VCPU, NO_STRUCT)


def test_command_with_hw_error_set_is_refused(td_with_vcpus: Assembly, contract: Contract) -> None:
    altered = Overrides(hw_error=1 << 63)
    td, vcpu = td_with_vcpus.td, td_with_vcpus.vcpus[0]
    each_refused(contract, each(OF_VM, td, Refusal.CMD_HW_ERROR_SET, altered))
    each_refused(contract, each(OF_VCPU, vcpu, Refusal.CMD_HW_ERROR_SET, altered))


# which fd


def test_unknown_command_is_refused_on_a_vm(td_initialized: Assembly, contract: Contract) -> None:
    for ident in UNKNOWN:
        with refused(contract, Refusal.CMD_UNKNOWN_ON_VM):
            send(td_initialized.td, TdxCmdId.CAPABILITIES, Overrides(ident=ident))


def test_unknown_command_is_refused_on_a_vcpu(td_with_vcpus: Assembly, contract: Contract) -> None:
    for ident in UNKNOWN:
        with refused(contract, Refusal.CMD_UNKNOWN_ON_VCPU):
            send(td_with_vcpus.vcpus[0], TdxCmdId.INIT_VCPU, Overrides(ident=ident))


def test_command_of_a_vcpu_is_refused_on_a_vm(td_with_vcpus: Assembly, contract: Contract) -> None:
    each_refused(contract, each(OF_VCPU, td_with_vcpus.td, Refusal.CMD_UNKNOWN_ON_VM))


def test_command_of_a_vm_is_refused_on_a_vcpu(td_with_vcpus: Assembly, contract: Contract) -> None:
    each_refused(contract, each(OF_VM, td_with_vcpus.vcpus[0], Refusal.CMD_UNKNOWN_ON_VCPU))


def test_command_is_refused_on_a_plain_vm(kvm: Kvm, contract: Contract) -> None:
    with kvm.create_vm() as vm:
        each_refused(contract, each(OF_VM + OF_VCPU, vm, Refusal.CMD_ON_PLAIN_VM))


def test_command_is_refused_on_a_plain_vcpu(kvm: Kvm, contract: Contract) -> None:
    with kvm.create_vm() as vm, vm.create_vcpu() as vcpu:
        each_refused(contract, each(OF_VM + OF_VCPU, vcpu, Refusal.CMD_ON_PLAIN_VCPU))


def test_command_is_refused_on_the_device(kvm: Kvm, contract: Contract) -> None:
    with refused(contract, Refusal.CMD_ON_DEVICE):
        send(kvm, TdxCmdId.CAPABILITIES)


def test_command_is_refused_on_a_guest_memfd(td_created: Assembly, contract: Contract) -> None:
    with td_created.td.create_guest_memfd(abi.PAGE_SIZE) as memfd, refused(contract, Refusal.CMD_ON_MEMFD):
        send(memfd, TdxCmdId.CAPABILITIES)


# another process, a dead VM


def test_command_of_another_process_is_refused(
    tdx_host: TdxHost, td_with_vcpus: Assembly, contract: Contract
) -> None:
    with tdx_host.agent.spawn() as other:
        vm, vcpu = td_with_vcpus.td.give(other), td_with_vcpus.vcpus[0].give(other)
        each_refused(contract, each(OF_VM, vm, Refusal.OTHER_PROCESS))
        each_refused(contract, each(OF_VCPU, vcpu, Refusal.OTHER_PROCESS))


def test_everything_is_refused_on_a_dead_vm(dead: Assembly, contract: Contract) -> None:
    vm: Rows = {
        "CREATE_VCPU": (Refusal.VM_DEAD, lambda: dead.td.create_vcpu(1)),
        "CHECK_EXTENSION": (Refusal.VM_DEAD, lambda: dead.td.check_extension(Cap.MAX_VCPUS)),
        "RUN": (Refusal.VM_DEAD, dead.vcpus[0].run),
    }
    each_refused(contract, vm | each(OF_VM, dead.td, Refusal.VM_DEAD))
    each_refused(contract, each(OF_VCPU, dead.vcpus[0], Refusal.VM_DEAD))


@pytest.fixture
def dead(launch: Launch, contract: Contract) -> Assembly:
    """A TD that KVM killed because its guest read a page that it had not accepted."""
    built = launch("pending", regions=[Region(0x100000, abi.PAGE_SIZE)])
    built.vcpus[0].run()
    with refused(contract, Refusal.RUN_PENDING_PAGE):
        built.vcpus[0].run()
    return built


# CAPABILITIES


@pytest.fixture
def capabilities(td_created: Assembly) -> Capabilities:
    return td_created.td.capabilities()


def test_capabilities_are_the_same_at_every_stage(owner: Worker, capabilities: Capabilities) -> None:
    for stage in (Stage.INITIALIZED, Stage.WITH_VCPUS, Stage.POPULATED, Stage.FINALIZED):
        with build.at(stage, owner) as built:
            assert built.td.capabilities() == capabilities, stage


@pytest.fixture
def our_kernel(tdx_host: TdxHost) -> None:
    """Skip the test on kernels that we did not build: a newer one may rightly offer more than Linux 7.3.4."""
    flavour = flavours.base_of(tdx_host.facts.flavour)
    if flavour not in flavours.load():
        pytest.skip(
            f"pins what Linux 7.3.4 offers, this kernel is {flavour or 'unknown'}; run with --tdx-flavour"
        )


@pytest.mark.usefixtures("our_kernel")
def test_capabilities_offer_no_attribute_but_sept_ve_disable(capabilities: Capabilities) -> None:
    assert capabilities.attributes == abi.TDX_TD_ATTR_SEPT_VE_DISABLE


def test_capabilities_offer_x87_and_sse(capabilities: Capabilities) -> None:
    assert capabilities.xfam & abi.XFAM_X87_SSE == abi.XFAM_X87_SSE


def test_capabilities_offer_the_whole_width_field_for_configuration(capabilities: Capabilities) -> None:
    (width,) = [leaf for leaf in capabilities.cpuid if leaf.function == cpuid.ADDRESS_WIDTHS]
    assert width.eax & 0xFF0000 == 0xFF0000


@pytest.mark.usefixtures("our_kernel")
def test_capabilities_offer_neither_tsx_nor_waitpkg(capabilities: Capabilities) -> None:
    features = [leaf for leaf in capabilities.cpuid if leaf.key == (FEATURES, 0)]
    assert features
    assert not any(leaf.ebx & (HLE | RTM) or leaf.ecx & WAITPKG for leaf in features)


def test_capabilities_name_each_leaf_once(capabilities: Capabilities) -> None:
    names = [leaf.key for leaf in capabilities.cpuid]
    assert len(set(names)) == len(names)


def test_capabilities_fit_into_exactly_the_room_that_they_need(
    td_created: Assembly, capabilities: Capabilities
) -> None:
    assert td_created.td.capabilities(room=len(capabilities.cpuid)) == capabilities


def test_capabilities_are_refused_without_room_for_all_leaves(
    td_created: Assembly, capabilities: Capabilities, contract: Contract
) -> None:
    for room in (0, len(capabilities.cpuid) - 1):
        with refused(contract, Refusal.CAPS_NENT_TOO_SMALL):
            td_created.td.capabilities(room=room)


def test_capabilities_with_flags_are_refused(td_created: Assembly, contract: Contract) -> None:
    with refused(contract, Refusal.CAPS_FLAGS):
        td_created.worker.call(commands.capabilities(td_created.td.fd, altered=Overrides(flags=1)))


def test_capabilities_to_a_bad_address_are_refused(td_created: Assembly, contract: Contract) -> None:
    with refused(contract, Refusal.CAPS_BAD_POINTER):
        td_created.worker.call(commands.capabilities(td_created.td.fd, altered=Overrides(data=0)))


def test_capabilities_to_memory_that_ends_too_early_are_refused(
    td_created: Assembly, contract: Contract
) -> None:
    worker = td_created.worker
    with Memory.map(worker, 2 * abi.PAGE_SIZE) as memory:
        # The count of entries is the last thing that can be reached.
        start = abi.PAGE_SIZE - abi.TdxCapabilities.cpuid.offset - 8
        memory.write(
            start + abi.TdxCapabilities.cpuid.offset, abi.KVM_MAX_CPUID_ENTRIES.to_bytes(4, "little")
        )
        worker.call(syscalls.munmap(memory.address + abi.PAGE_SIZE, abi.PAGE_SIZE))
        altered = Overrides(data=memory.address + start)
        with refused(contract, Refusal.CAPS_BAD_POINTER):
            worker.call(commands.capabilities(td_created.td.fd, altered=altered))
