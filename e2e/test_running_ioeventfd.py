# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes of a TD without an exit: those that KVM_IOEVENTFD counts in an eventfd, and those kept in the ring.

Source: ``tdx_emulate_mmio``, ``tdx_emulate_io`` in arch/x86/kvm/vmx/tdx.c; virt/kvm/.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from fixtures.guests.execute import Executor, Row, vmcall
from fixtures.guests.ghci import IO, MMIO
from fixtures.guests.launch import Launch
from fixtures.guests.mailbox import Mailbox, Registers
from fixtures.kvm import commands
from fixtures.kvm.abi import PAGE_SIZE, Cap
from fixtures.kvm.build import Assembly
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


# the ring


RING_HEAD = struct.Struct("<II")
"""``struct kvm_coalesced_mmio_ring``: where user space reads next, and where KVM writes next."""
ENTRY = struct.Struct("<QIIQ")
"""``struct kvm_coalesced_mmio``: address, size in bytes, whether it is a port, data."""
ROOM = (PAGE_SIZE - RING_HEAD.size) // ENTRY.size - 1
"""One place stays empty, so that a full ring is not an empty one."""


def row(asked: Registers) -> Row:
    """A TDVMCALL for the payload ``execute``."""
    return vmcall(asked.r11, r12=asked.r12, r13=asked.r13, r14=asked.r14, r15=asked.r15)


def ring(built: Assembly) -> tuple[int, list[tuple[int, ...]]]:
    """Where user space reads next, and the writes in the ring from its begin."""
    page = built.td.check_extension(Cap.COALESCED_MMIO)
    data = built.vcpus[0].run_page().read(page * PAGE_SIZE, PAGE_SIZE)
    first, last = RING_HEAD.unpack_from(data)
    return first, [ENTRY.unpack_from(data, RING_HEAD.size + index * ENTRY.size) for index in range(last)]


@pytest.mark.parametrize(("write", "address", "kind"), WAYS)
def test_write_for_which_the_ring_has_no_room_leaves(
    write: Write, address: int, kind: type[Exit], launch: Launch
) -> None:
    built = launch("execute")
    guest, port = Executor(built), kind is IoExit
    built.worker.call(commands.register_coalesced_mmio(built.td.fd, address, SIZE, port=port))
    found = guest.run_to_exit([row(write(data=data)) for data in range(ROOM + 1)])
    assert isinstance(found, MmioExit | IoExit)
    assert int.from_bytes(found.data, "little") == ROOM
    assert ring(built) == (0, [(address, SIZE, int(port), data) for data in range(ROOM)])
