# SPDX-License-Identifier: GPL-2.0-or-later
"""An eventfd that interrupts a TD (payload ``interrupt``) and outlives the VM from which the TD is moved."""

from __future__ import annotations

from contextlib import ExitStack

from fixtures.guests import output
from fixtures.guests.launch import Launch
from fixtures.guests.output import INTERRUPT_VECTOR, INTERRUPTS_READY
from fixtures.guests.running import halted, once
from fixtures.kvm import commands
from fixtures.kvm.build import Assembly
from fixtures.kvm.exits import InterruptedExit
from fixtures.kvm.files import Irqfd

GSI = 5


def assign(to: Assembly, event: int) -> None:
    """Have an eventfd raise the interrupt of the payload ``interrupt``."""
    to.td.set_msi_routes({GSI: (INTERRUPT_VECTOR, 0)})
    to.worker.call(commands.irqfd(to.td.fd, event, GSI))


def source_with_event(launch: Launch, cleanup: ExitStack) -> tuple[Assembly, Irqfd]:
    """Return a TD that waits for the interrupt, and the eventfd that raises it."""
    source = cleanup.enter_context(launch("interrupt"))
    assert output.numbers(source.vcpus[0], 2) == [1, INTERRUPTS_READY]
    source.td.set_msi_routes({GSI: (INTERRUPT_VECTOR, 0)})
    return source, cleanup.enter_context(source.td.irqfd(GSI))


def assert_arrives_once(destination: Assembly, event: Irqfd) -> None:
    """Hand the eventfd to the destination, which has had no interrupt or has one pending."""
    assign(destination, event.fd)
    (vcpu,) = destination.vcpus
    assert output.number_of(vcpu.run()) == 2
    # It halts: there was one interrupt.
    assert isinstance(once(vcpu, halted, vcpu.start).stop(), InterruptedExit)
