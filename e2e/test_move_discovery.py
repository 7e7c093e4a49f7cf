# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_CHECK_EXTENSION of a VM: whether it can be a move's source or destination, and have links to memory.

``tdx_vm_move_enc_roles`` in arch/x86/kvm/vmx/tdx.c and KVM_CAP_GUEST_MEMFD_LINK in virt/kvm/kvm_main.c of
flavour ``proposed``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import pytest

from e2e.moves import MOVES, count, counted, destination_of
from fixtures.agent.client import Worker
from fixtures.contracts.answers import refused
from fixtures.contracts.promises import Contract, Refusal
from fixtures.guests.launch import Launch
from fixtures.kvm import build
from fixtures.kvm.abi import Cap, MoveRole
from fixtures.kvm.build import Assembly
from fixtures.kvm.device import Kvm
from fixtures.kvm.move import move_from

pytestmark = MOVES

NOTHING = MoveRole(0)


@pytest.mark.parametrize(
    ("make", "role"),
    [
        pytest.param(build.created, MoveRole.DESTINATION, id="created"),
        pytest.param(build.initialized, NOTHING, id="initialized"),
        pytest.param(build.with_vcpus, NOTHING, id="with-vcpus"),
        pytest.param(build.finalized, MoveRole.SOURCE, id="finalized"),
    ],
)
def test_role_in_a_move_is_that_of_the_tds_stage(
    make: Callable[[Worker], Assembly], role: MoveRole, owner: Worker
) -> None:
    with make(owner) as built:
        assert built.td.check_extension(Cap.VM_MOVE_ENC_CONTEXT_FROM) == role
        assert built.td.check_extension(Cap.GUEST_MEMFD_LINK) == 1


def test_moved_td_can_be_moved_on(launch: Launch, tdx_cleanup: ExitStack, contract: Contract) -> None:
    source = launch("count")
    destination = destination_of(source, tdx_cleanup)
    # A destination with vCPUs and memory is one still.
    assert destination.td.check_extension(Cap.VM_MOVE_ENC_CONTEXT_FROM) == MoveRole.DESTINATION
    move_from(source, to=destination)
    assert destination.td.check_extension(Cap.VM_MOVE_ENC_CONTEXT_FROM) == MoveRole.SOURCE
    with refused(contract, Refusal.VM_DEAD):
        source.td.check_extension(Cap.VM_MOVE_ENC_CONTEXT_FROM)
    assert count(destination) == counted(1)


def test_plain_vm_has_no_part_in_a_move(kvm: Kvm) -> None:
    """/dev/kvm returns what it always did, which is about VMs of any type."""
    with kvm.create_vm() as vm:
        assert vm.check_extension(Cap.VM_MOVE_ENC_CONTEXT_FROM) == 0
        assert vm.check_extension(Cap.GUEST_MEMFD_LINK) == 0
    assert kvm.check_extension(Cap.VM_MOVE_ENC_CONTEXT_FROM) == 1
    assert kvm.check_extension(Cap.GUEST_MEMFD_LINK) == 0
