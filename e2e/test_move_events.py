# SPDX-License-Identifier: GPL-2.0-or-later
"""Interrupts for a TD that is moved, from those who do not know of it: none is lost, none arrives twice.

``irqfd_leaves_events`` in virt/kvm/eventfd.c and ``tdx_move_interrupts`` in arch/x86/kvm/vmx/tdx.c of flavour
``proposed``.  ``test_move.py`` raises every vector before each of ten moves.
"""

from __future__ import annotations

import errno
import select
from contextlib import ExitStack

import pytest

from e2e.moved_events import GSI, assert_arrives_once, assign, source_with_event
from e2e.moves import MOVES, count, counted, destination_of
from e2e.races import on
from fixtures.agent import syscalls
from fixtures.agent.call import batch_call
from fixtures.contracts.answers import refused
from fixtures.contracts.promises import Contract, Refusal
from fixtures.deadline import comes_true
from fixtures.guests import output
from fixtures.guests.launch import Launch
from fixtures.guests.output import INTERRUPT_VECTOR, INTERRUPTS_READY
from fixtures.guests.running import halted, in_system_call, once
from fixtures.host.base import TdxHost
from fixtures.kvm import abi, commands
from fixtures.kvm.abi import PAGE_SIZE, Request
from fixtures.kvm.errors import errno_of
from fixtures.kvm.exits import InterruptedExit
from fixtures.kvm.late import LateMemory
from fixtures.kvm.move import move_from
from fixtures.softseam.hold import held

pytestmark = MOVES

FOR_EVER = -1


@pytest.mark.parametrize("signals", [1, 2])
def test_event_of_the_dead_source_is_the_destinations(
    signals: int, launch: Launch, tdx_cleanup: ExitStack
) -> None:
    """The eventfd of a device that nobody stopped; signals that nobody has read count as one."""
    source, event = source_with_event(launch, tdx_cleanup)
    destination = move_from(source, to=destination_of(source, tdx_cleanup))
    for _ in range(signals):
        event.signal()
    source.close()
    assert_arrives_once(destination, event)


def test_event_of_the_dead_source_that_somebody_has_read_is_nobodys(
    launch: Launch, tdx_cleanup: ExitStack
) -> None:
    source, event = source_with_event(launch, tdx_cleanup)
    destination = move_from(source, to=destination_of(source, tdx_cleanup))
    event.signal()
    assert event.count() == 1
    source.close()
    assert event.count() == 0
    assign(destination, event.fd)
    (vcpu,) = destination.vcpus
    assert isinstance(once(vcpu, halted, vcpu.start).stop(), InterruptedExit)


def test_writes_that_the_source_counts_are_not_in_the_way(launch: Launch, tdx_cleanup: ExitStack) -> None:
    """KVM_IOEVENTFD is not moved: user space asks the destination for it."""
    source = launch("count")
    count(source)
    with source.td.ioeventfd(output.VALUE, 4, port=True), source.td.ioeventfd(0x40000000, 4):
        destination = move_from(source, to=destination_of(source, tdx_cleanup))
    assert count(destination) == counted(2)


def test_event_that_was_delivered_does_not_come_again_after_another_move(
    launch: Launch, tdx_cleanup: ExitStack
) -> None:
    """KVM delivers what is in an eventfd that it gets, and leaves it there."""
    source, event = source_with_event(launch, tdx_cleanup)
    first = move_from(source, to=destination_of(source, tdx_cleanup))
    event.signal()
    source.close()
    assert_arrives_once(first, event)
    second = move_from(first, to=destination_of(first, tdx_cleanup))
    first.close()
    assign(second, event.fd)
    (vcpu,) = second.vcpus
    assert isinstance(once(vcpu, halted, vcpu.start).stop(), InterruptedExit)


def test_event_of_the_dead_source_wakes_who_waits_for_it(launch: Launch, tdx_cleanup: ExitStack) -> None:
    """Its irqfd, which comes first, leaves it to others."""
    source, event = source_with_event(launch, tdx_cleanup)
    move_from(source, to=destination_of(source, tdx_cleanup))
    waiting = source.worker.start(syscalls.poll(event.fd, select.POLLIN, FOR_EVER))
    in_system_call(waiting, "poll")
    event.signal()
    assert comes_true(waiting.done), "nobody was woken"
    assert waiting.result() == select.POLLIN


@pytest.mark.tdx_host(cpus=2)
@pytest.mark.parametrize("rounds", [4, pytest.param(200, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_event_while_the_td_moves_arrives_exactly_once(
    rounds: int, launch: Launch, tdx_host: TdxHost
) -> None:
    """It is posted to the source's descriptor, and moves, or stays in the eventfd: later in each round."""
    for turn in range(rounds):
        with ExitStack() as cleanup:
            source, event = source_with_event(launch, cleanup)
            destination = destination_of(source, cleanup)
            places = tdx_host.agent.barrier(2)
            moving = destination.worker.start(
                commands.move_from(destination.td.fd, source.td.fd, barrier=places[0])
            )
            pause = [syscalls.ping()] * (7 * (turn + 1) % 30)
            signal = syscalls.eventfd_signal(event.fd)
            signalling = source.worker.start(batch_call([syscalls.barrier(places[1]), *pause, signal]))
            moving.result()
            signalling.result()
            source.close()
            assert_arrives_once(destination, event)


@pytest.mark.tdx_host(cpus=2)
@pytest.mark.tdx_needs("seamcall-fault-injection")
def test_interrupt_that_comes_while_the_vcpu_moves_does_not_stay_in_the_source(
    launch: Launch, tdx_host: TdxHost, tdx_cleanup: ExitStack, contract: Contract
) -> None:
    """The vCPU is given its descriptor in the destination, which is a SEAMCALL that lasts."""
    source, event = source_with_event(launch, tdx_cleanup)
    destination = destination_of(source, tdx_cleanup)
    move = commands.move_from(destination.td.fd, source.td.fd)
    with held(tdx_host.agent.files, "TDH.VP.WR", cpu=1) as hold:
        moving = destination.worker.start(on([1], move))
        assert hold.reached(moving.done)
        event.signal()
        with refused(contract, Refusal.VM_DEAD):
            source.td.signal_msi(INTERRUPT_VECTOR)
    assert moving.result().complete
    source.close()
    assert_arrives_once(destination, event)


def test_msi_of_the_dead_source_is_refused(
    launch: Launch, tdx_cleanup: ExitStack, contract: Contract
) -> None:
    source = launch("interrupt")
    assert output.numbers(source.vcpus[0], 2) == [1, INTERRUPTS_READY]
    destination = move_from(source, to=destination_of(source, tdx_cleanup))
    with refused(contract, Refusal.VM_DEAD):
        source.td.signal_msi(INTERRUPT_VECTOR)
    assert destination.td.signal_msi(INTERRUPT_VECTOR) == 1
    assert output.number_of(destination.vcpus[0].run()) == 2


LATE_INTERRUPTS = {
    Request.KVM_SIGNAL_MSI: bytes(abi.Msi(address_lo=0xFEE00000, data=INTERRUPT_VECTOR)),
    Request.KVM_IRQ_LINE: bytes(abi.IrqLevel(GSI, 1)),
}


@pytest.mark.tdx_needs("late-memory")
@pytest.mark.parametrize("request_", LATE_INTERRUPTS, ids=lambda request: request.name)
def test_interrupt_that_is_read_after_the_move_is_refused(
    request_: Request, launch: Launch, tdx_cleanup: ExitStack
) -> None:
    """The source was alive when the ioctl began."""
    source = launch("interrupt")
    assert output.numbers(source.vcpus[0], 2) == [1, INTERRUPTS_READY]
    source.td.set_msi_routes({GSI: (INTERRUPT_VECTOR, 0)})
    worker = source.worker
    with LateMemory.map(worker, PAGE_SIZE) as late:
        asking = worker.start(commands.ioctl(source.td.fd, request_, late.address))
        late.wanted()
        destination = move_from(source, to=destination_of(source, tdx_cleanup))
        late.give(LATE_INTERRUPTS[request_])
        assert errno_of(asking.result) == errno.EIO
    (vcpu,) = destination.vcpus
    assert isinstance(once(vcpu, halted, vcpu.start).stop(), InterruptedExit)
