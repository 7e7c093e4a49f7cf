# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory slots with a guest_memfd: a part of a file is one slot's, and a slot is made once.

Sources: ``kvm_gmem_bind`` in virt/kvm/guest_memfd.c, ``kvm_set_memory_region`` in virt/kvm/kvm_main.c.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from fixtures.contracts.answers import refused
from fixtures.contracts.promises import Contract, Refusal
from fixtures.guests.execute import Executor, accept, load, store
from fixtures.guests.launch import Launch
from fixtures.kvm import abi
from fixtures.kvm.abi import PAGE_SIZE
from fixtures.kvm.build import Assembly
from fixtures.kvm.device import Kvm
from fixtures.kvm.errors import errno_of
from fixtures.kvm.files import GuestMemfd
from fixtures.kvm.memory import Memory
from fixtures.kvm.params import MemorySlot

GPA, ELSEWHERE = 0x40000000, 0x50000000
VALUE = 0x600DF00D
PAGES = 6
FIRST, LAST = 2, 3
"""The pages of the file that the slot has."""


class Guest:
    """A TD with a slot in the midst of a guest_memfd, where it has left a value in each page."""

    def __init__(self, built: Assembly, memfd: GuestMemfd, shared: Memory) -> None:
        self.td = built.td
        self.memfd = memfd
        self.slot = MemorySlot(
            built.free_slot,
            GPA,
            (LAST + 1 - FIRST) * PAGE_SIZE,
            shared.address,
            memfd.fd,
            guest_memfd_offset=FIRST * PAGE_SIZE,
            flags=abi.KVM_MEM_GUEST_MEMFD,
        )
        self.td.set_slot(self.slot)
        self.td.set_memory_attributes(GPA, self.slot.size, private=True)
        self._executor = Executor(built)
        self._places = range(GPA, GPA + self.slot.size, PAGE_SIZE)
        self._executor.run([row for gpa in self._places for row in (accept(gpa), store(gpa, VALUE))])

    def another(self, first: int, last: int) -> MemorySlot:
        """A slot elsewhere with a part of the file."""
        return replace(
            self.slot,
            slot=self.slot.slot + 1,
            gpa=ELSEWHERE,
            size=(last + 1 - first) * PAGE_SIZE,
            guest_memfd_offset=first * PAGE_SIZE,
        )

    def finds_its_values(self) -> bool:
        """Return whether its memory is what it was."""
        loads = [load(gpa) for gpa in self._places]
        return [found["rax"] for found in self._executor.run(loads)] == [VALUE] * 2


@pytest.fixture
def guest(launch: Launch) -> Iterator[Guest]:
    built = launch("execute")
    memfd = built.td.create_guest_memfd(PAGES * PAGE_SIZE)
    with Memory.map(built.worker, PAGES * PAGE_SIZE) as shared, memfd:
        yield Guest(built, memfd, shared)


@pytest.mark.parametrize(
    ("first", "last"),
    [(1, 2), (2, 2), (2, 3), (3, 3), (3, 4), (0, 5)],
    ids=["head", "first-page", "the-same", "last-page", "tail", "around"],
)
def test_part_of_a_file_is_no_second_slots(first: int, last: int, guest: Guest) -> None:
    assert errno_of(partial(guest.td.set_slot, guest.another(first, last))) == errno.EEXIST
    assert guest.finds_its_values()


@pytest.mark.parametrize(("first", "last"), [(0, 1), (4, 5)], ids=["before", "behind"])
def test_part_of_a_file_beside_is_another_slots(first: int, last: int, guest: Guest) -> None:
    guest.td.set_slot(guest.another(first, last))
    assert guest.finds_its_values()


CHANGES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "another-part": {"guest_memfd_offset": 0},
    "another-address": {"gpa": ELSEWHERE},
    "smaller": {"size": PAGE_SIZE},
    "without-a-file": {"flags": 0},
    "read-only": {"flags": abi.KVM_MEM_GUEST_MEMFD | abi.KVM_MEM_READONLY},
}


@pytest.mark.parametrize("name", CHANGES)
def test_slot_is_not_set_again(name: str, guest: Guest, contract: Contract) -> None:
    with refused(contract, Refusal.SLOT_MEMFD_CHANGED):
        guest.td.set_slot(replace(guest.slot, **CHANGES[name]))
    assert guest.finds_its_values()


def test_slot_is_not_given_another_file(guest: Guest, contract: Contract) -> None:
    with (
        guest.td.create_guest_memfd(PAGES * PAGE_SIZE) as other,
        refused(contract, Refusal.SLOT_MEMFD_CHANGED),
    ):
        guest.td.set_slot(replace(guest.slot, guest_memfd=other.fd))
    assert guest.finds_its_values()


def test_file_of_another_vm_is_refused(guest: Guest) -> None:
    with Kvm.open(guest.td.worker) as kvm, kvm.create_td() as other:
        assert errno_of(partial(other.set_slot, guest.slot)) == errno.EINVAL
    assert guest.finds_its_values()


def test_no_slot_of_a_td_is_read_only(guest: Guest) -> None:
    assert guest.td.check_extension(abi.Cap.READONLY_MEM) == 0
    read_only = replace(guest.another(0, 0), flags=abi.KVM_MEM_READONLY)
    assert errno_of(partial(guest.td.set_slot, read_only)) == errno.EINVAL


def test_part_of_a_file_is_free_again_with_its_slot(guest: Guest) -> None:
    guest.td.delete_slot(guest.slot.slot, GPA)
    guest.td.set_slot(guest.another(1, 4))
    assert errno_of(partial(guest.td.set_slot, guest.slot)) == errno.EEXIST
