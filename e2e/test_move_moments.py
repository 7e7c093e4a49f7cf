# SPDX-License-Identifier: GPL-2.0-or-later
"""Moves at moments that last some µs, made to last: a task is parked at a function of the kernel.

``tdx_move_td`` in arch/x86/kvm/vmx/tdx.c, ``irqfd_inject`` in virt/kvm/eventfd.c and
``kvm_vm_ioctl_create_vcpu`` in virt/kvm/kvm_main.c, of flavour ``proposed``.
"""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

import pytest

from e2e.moved_events import GSI, assert_arrives_once, source_with_event
from e2e.moves import MOVES, count, counted, destination_of
from e2e.races import error_of, on
from fixtures.agent import syscalls
from fixtures.contracts.promises import Contract, Refusal
from fixtures.guests import output
from fixtures.guests.launch import Launch
from fixtures.guests.output import INTERRUPT_VECTOR, INTERRUPTS_READY
from fixtures.guests.running import begun
from fixtures.guests.vectors import VECTORS
from fixtures.host.base import TdxHost
from fixtures.host.park import parked
from fixtures.kvm import commands
from fixtures.kvm.errors import errno_of

pytestmark = [*MOVES, pytest.mark.tdx_host(cpus=2), pytest.mark.tdx_needs("parked-tasks")]

EVERYBODY = 0xFF
"""A destination that KVM does not deliver to in the eventfd's wake-up, but in work of its own."""


@pytest.mark.parametrize("whose", ["source", "destination"])
def test_move_waits_for_a_vcpu_that_is_being_created(
    whose: str, launch: Launch, tdx_host: TdxHost, tdx_cleanup: ExitStack, contract: Contract
) -> None:
    """It has its place and is no vCPU yet."""
    source = launch("count")
    count(source)
    destination = destination_of(source, tdx_cleanup)
    worker, vm = source.worker, {"source": source, "destination": destination}[whose].td.fd
    with parked(tdx_host, "kvm_arch_vcpu_create", cpu=1) as park:
        creating = worker.start(on([1], commands.create_vcpu(vm, 1)))
        assert park.reached(creating.done)
        moving = begun(worker, commands.move_from(destination.td.fd, source.td.fd))
        assert not moving.done()
    error = error_of(worker, partial(creating.result().__getitem__, 1))
    if whose == "source":
        assert error == contract.errno(Refusal.VCPU_AFTER_FINALIZE)
        moving.result()
        assert count(destination) == counted(2)
    else:
        assert error == 0
        assert errno_of(moving.result) == contract.errno(Refusal.MOVE_OTHER_VCPUS)
        assert count(source) == counted(2)


def test_move_waits_for_an_interrupt_that_is_being_delivered_to_the_source(
    launch: Launch, tdx_host: TdxHost, tdx_cleanup: ExitStack
) -> None:
    source, event = source_with_event(launch, tdx_cleanup)
    destination = destination_of(source, tdx_cleanup)
    worker = source.worker
    with parked(tdx_host, "__kvm_irq_delivery_to_apic", cpu=1) as park:
        telling = worker.start(on([1], commands.signal_msi(source.td.fd, INTERRUPT_VECTOR)))
        assert park.reached(telling.done)
        moving = begun(worker, commands.move_from(destination.td.fd, source.td.fd))
    moving.result()
    assert telling.result()[1] == 1
    source.close()
    assert_arrives_once(destination, event)


def test_interrupt_of_the_destination_that_comes_before_those_of_the_source_is_kept(
    launch: Launch, tdx_host: TdxHost, tdx_cleanup: ExitStack
) -> None:
    """The destination's APIC is enabled then, so that devices reach it."""
    source = launch("vectors")
    assert output.numbers(source.vcpus[0], 1) == [INTERRUPTS_READY]
    source.vcpus[0].complete()
    destination = destination_of(source, tdx_cleanup)
    worker = source.worker
    first, second = VECTORS[0], VECTORS[1]
    assert source.td.signal_msi(first) == 1
    with parked(tdx_host, "tdh_vp_wr", cpu=1) as park:
        moving = worker.start(on([1], commands.move_from(destination.td.fd, source.td.fd)))
        assert park.reached(moving.done)
        telling = worker.start(on([0], commands.signal_msi(destination.td.fd, second)))
        assert telling.result()[1] == 1
    moving.result()
    source.close()
    assert output.numbers(destination.vcpus[0], 2) == [second, first]


def test_event_whose_delivery_finds_the_source_dead_is_the_destinations(
    launch: Launch, tdx_host: TdxHost, tdx_cleanup: ExitStack
) -> None:
    """It was read from the eventfd when the source was alive."""
    source, event = source_with_event(launch, tdx_cleanup)
    source.td.set_msi_routes({GSI: (INTERRUPT_VECTOR, EVERYBODY)})
    destination = destination_of(source, tdx_cleanup)
    worker = source.worker
    with parked(tdx_host, "irqfd_inject", cpu=1) as park:
        signalling = worker.start(on([1], syscalls.eventfd_signal(event.fd)))
        # The signal may have returned: the work comes later.
        assert park.reached(lambda: False)
        worker.start(on([0], commands.move_from(destination.td.fd, source.td.fd))).result()
    signalling.result()
    source.close()
    assert_arrives_once(destination, event)
