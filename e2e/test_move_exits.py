# SPDX-License-Identifier: GPL-2.0-or-later
"""Moves of a TD whose vCPU has exited and was not run again: what user space owes it, and what it does not.

``tdx_check_moved_vcpus`` in arch/x86/kvm/vmx/tdx.c of flavour ``proposed``.  A write needs no answer, a read
does, and the destination would not know it.
"""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from e2e.moves import MOVES, counted, destination_of
from fixtures.contracts.answers import refused
from fixtures.contracts.promises import Contract, Refusal
from fixtures.guests import mailbox, output
from fixtures.guests.launch import Launch
from fixtures.guests.mailbox import Mailbox, Registers
from fixtures.kvm.abi import PAGE_SIZE, TdVmCall
from fixtures.kvm.build import Assembly
from fixtures.kvm.exits import IoExit, MmioExit, TdVmCallExit
from fixtures.kvm.move import move_from
from fixtures.kvm.params import InitVmParams, MemorySlot

pytestmark = MOVES

IO, MMIO = 30, 48
READ, WRITE = 0, 1
PORT, AREA, SHARED = 0x510, 0x40000000, InitVmParams().shared_bit
ANSWER = b"\x44\x33\x22\x11"

Guest = tuple[Assembly, Mailbox, Assembly]


@pytest.fixture
def guest(launch: Launch, tdx_cleanup: ExitStack) -> Guest:
    """A guest that makes TDVMCALLs, and a destination for it, with the same shared memory."""
    source = launch("vmcall")
    box = Mailbox(source)
    box.vcpu.complete()
    destination = destination_of(source, tdx_cleanup)
    destination.td.set_slot(MemorySlot(mailbox.SLOT, mailbox.GPA, PAGE_SIZE, box.memory.address))
    return source, box, destination


def test_number_that_was_written_is_not_written_again(launch: Launch, tdx_cleanup: ExitStack) -> None:
    """As a VMM does that stops at any exit: the vCPU is not run once more to complete it."""
    built = launch("count")
    for step in range(1, 4):
        assert output.numbers(built.vcpus[0], 2) == counted(step)
        built = move_from(built, to=destination_of(built, tdx_cleanup))


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(Registers(r11=IO, r12=4, r13=WRITE, r14=PORT, r15=7), id="port"),
        pytest.param(Registers(r11=MMIO, r12=4, r13=WRITE, r14=SHARED | AREA, r15=7), id="mmio"),
    ],
)
def test_write_that_is_not_completed_is_not_in_the_way(call: Registers, guest: Guest) -> None:
    source, box, destination = guest
    found = box.begin(call)
    assert isinstance(found, IoExit | MmioExit)
    assert (found.write, found.data) == (True, b"\x07\0\0\0")
    move_from(source, to=destination)
    box.vcpu = destination.vcpus[0]
    assert box.result().r10 == 0


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(Registers(r11=IO, r12=4, r13=READ, r14=PORT), id="port"),
        pytest.param(Registers(r11=MMIO, r12=4, r13=READ, r14=SHARED | AREA), id="mmio"),
    ],
)
def test_read_is_in_the_way_until_it_is_completed(call: Registers, guest: Guest, contract: Contract) -> None:
    """The answer that user space gave the source arrives in the destination."""
    source, box, destination = guest
    found = box.begin(call)
    assert isinstance(found, IoExit | MmioExit)
    box.vcpu.answer(found, data=ANSWER)
    with refused(contract, Refusal.MOVE_BUSY):
        move_from(source, to=destination)
    box.vcpu.complete()
    move_from(source, to=destination)
    box.vcpu = destination.vcpus[0]
    result = box.result()
    assert (result.r10, result.r11) == (0, int.from_bytes(ANSWER, "little"))


def test_request_for_a_quote_is_in_the_way_until_it_is_answered(guest: Guest, contract: Contract) -> None:
    source, box, destination = guest
    call = Registers(r11=TdVmCall.GET_QUOTE, r12=SHARED | AREA, r13=PAGE_SIZE)
    assert isinstance(box.begin(call), TdVmCallExit)
    with refused(contract, Refusal.MOVE_BUSY):
        move_from(source, to=destination)
    box.vcpu.complete()
    move_from(source, to=destination)
    box.vcpu = destination.vcpus[0]
    box.result()
