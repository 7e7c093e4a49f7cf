# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes of a TD that KVM_IOEVENTFD takes: they count in an eventfd, and the guest goes on without an exit.

Source: ``tdx_emulate_mmio``, ``tdx_emulate_io`` in arch/x86/kvm/vmx/tdx.c; virt/kvm/eventfd.c.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fixtures.guests.ghci import IO, MMIO
from fixtures.guests.mailbox import Mailbox, Registers
from fixtures.kvm.exits import Exit, IoExit, MmioExit
from fixtures.kvm.files import Ioeventfd
from fixtures.kvm.params import InitVmParams

OUT = 1
PORT, AREA, DOORBELL = 0x510, 0x40000000, 0x40000040
SIZE, DATA = 4, 0x12345678


def mmio(size: int = SIZE, data: int = DATA, address: int = DOORBELL) -> Registers:
    shared = InitVmParams().shared_bit
    return Registers(r11=MMIO, r12=size, r13=OUT, r14=shared | address, r15=data)


def io(size: int = SIZE, data: int = DATA, address: int = PORT) -> Registers:
    return Registers(r11=IO, r12=size, r13=OUT, r14=address, r15=data)


Write = Callable[..., Registers]

WAYS = [pytest.param(mmio, DOORBELL, MmioExit, id="mmio"), pytest.param(io, PORT, IoExit, id="port")]


def bind(mailbox: Mailbox, address: int, size: int = SIZE, data: int | None = None) -> Ioeventfd:
    return mailbox.built.td.ioeventfd(address, size, data=data, port=address == PORT)


def leaves(mailbox: Mailbox, registers: Registers, kind: type[Exit]) -> None:
    """A write goes to user space."""
    found = mailbox.begin(registers)
    assert isinstance(found, kind)
    assert mailbox.result().r10 == 0


@pytest.mark.parametrize(("write", "address", "kind"), WAYS)
def test_writes_of_its_size_are_counted_and_others_leave(
    write: Write, address: int, kind: type[Exit], mailbox: Mailbox
) -> None:
    with bind(mailbox, address) as event:
        assert [mailbox.call(write(data=data)).r10 for data in (0, DATA, 0xFFFFFFFF)] == [0, 0, 0]
        assert event.count() == 3
        leaves(mailbox, write(size=2), kind)
        leaves(mailbox, write(address=address + 8), kind)
        assert event.count() == 0
        event.deassign()
        leaves(mailbox, write(), kind)
        assert event.count() == 0


@pytest.mark.parametrize(("write", "address", "kind"), WAYS)
def test_writes_of_its_value_are_counted_and_others_leave(
    write: Write, address: int, kind: type[Exit], mailbox: Mailbox
) -> None:
    with bind(mailbox, address, data=DATA) as event:
        leaves(mailbox, write(data=DATA + 1), kind)
        assert event.count() == 0
        assert mailbox.call(write()).r10 == 0
        assert event.count() == 1


def test_writes_of_any_size_are_counted(mailbox: Mailbox) -> None:
    with bind(mailbox, DOORBELL, size=0) as event:
        assert [mailbox.call(mmio(size=size)).r10 for size in (1, 2, 4, 8)] == [0, 0, 0, 0]
        assert event.count() == 4
        event.deassign()
        leaves(mailbox, mmio(), MmioExit)
        assert event.count() == 0


def test_every_access_to_a_port_is_counted_as_an_exit(mailbox: Mailbox) -> None:
    """Whether it leaves to user space, as the payload's report that it is done does, or is refused."""
    with mailbox.vcpu.stats_fd() as stats, bind(mailbox, PORT):

        def exits(registers: Registers) -> int:
            before = stats.read()["io_exits"][0]
            mailbox.call(registers)
            return stats.read()["io_exits"][0] - before

        assert [exits(io()), exits(io(size=3))] == [2, 2]
