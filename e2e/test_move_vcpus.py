# SPDX-License-Identifier: GPL-2.0-or-later
"""The vCPUs of a TD that moves: who they are, and how many there may be.

``tdx_check_moved_vcpus``, ``tdx_move_vcpu_state`` and ``tdx_move_td`` in arch/x86/kvm/vmx/tdx.c of flavour
``proposed``.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

import pytest

from e2e.moves import MOVES, count, counted, destination_of
from fixtures.agent.client import Worker
from fixtures.guests.launch import Launch
from fixtures.kvm import build, commands
from fixtures.kvm.abi import MSR_IA32_APICBASE_BSP, Cap, MpStateValue
from fixtures.kvm.build import Region
from fixtures.kvm.move import link_memory, move_from

pytestmark = MOVES


def test_vcpus_are_those_of_the_same_id(launch: Launch, tdx_cleanup: ExitStack) -> None:
    """They were made in another order in the destination."""
    source = launch("count", vcpus=2)
    assert count(source) == counted(1, 2)
    with build.created(source.worker) as built:
        built.td.split_irqchip()
        for ident in (1, 0):
            built.vcpus.insert(0, built.td.create_vcpu(ident))
            built.vcpus[0].set_cpuid2()
        link_memory(built, *source.placed)
        move_from(source, to=built)
        assert count(built) == counted(2, 2)


@pytest.mark.tdx_host(cpus=2)
def test_vcpu_that_was_never_initialized_stays_so(
    owner: Worker, tdx_cleanup: ExitStack, payloads: Mapping[str, bytes]
) -> None:
    """It has no CPUID, and needs none in the destination."""
    source = tdx_cleanup.enter_context(build.created(owner)).init().add_vcpus()
    tdx_cleanup.enter_context(source.td.create_vcpu(1))
    source.populate(Region.firmware(payloads["count"])).finalize()
    assert count(source) == counted(1)
    built = destination_of(source, tdx_cleanup)
    second = tdx_cleanup.enter_context(built.td.create_vcpu(1))
    move_from(source, to=built)
    assert count(built) == counted(2)
    assert second.mp_state() == MpStateValue.UNINITIALIZED


@pytest.mark.tdx_host(cpus=2)
def test_boot_cpu_is_that_of_the_td(
    owner: Worker, tdx_cleanup: ExitStack, payloads: Mapping[str, bytes]
) -> None:
    """The destination chose none."""
    source = tdx_cleanup.enter_context(build.created(owner))
    owner.call(commands.set_boot_cpu_id(source.td.fd, 1))
    source.init().add_vcpus(2).populate(Region.firmware(payloads["count"])).finalize()
    before = [vcpu.apic_base() for vcpu in source.vcpus]
    assert [bool(base & MSR_IA32_APICBASE_BSP) for base in before] == [False, True]
    built = move_from(source, to=destination_of(source, tdx_cleanup))
    assert [vcpu.apic_base() for vcpu in built.vcpus] == before


@pytest.mark.tdx_host(cpus=2)
def test_number_of_vcpus_is_that_of_the_td(
    owner: Worker, tdx_cleanup: ExitStack, payloads: Mapping[str, bytes]
) -> None:
    source = tdx_cleanup.enter_context(build.created(owner))
    source.td.enable_cap(Cap.MAX_VCPUS, 1)
    source.init().add_vcpus().populate(Region.firmware(payloads["count"])).finalize()
    built = destination_of(source, tdx_cleanup)
    assert built.td.check_extension(Cap.MAX_VCPUS) > 1
    move_from(source, to=built)
    assert built.td.check_extension(Cap.MAX_VCPUS) == 1
