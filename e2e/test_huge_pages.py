# SPDX-License-Identifier: GPL-2.0-or-later
"""Huge pages of a running TD's shared memory: none covers private memory, and none takes more than was asked.

Sources: ``kvm_arch_post_set_memory_attributes``, ``kvm_mmu_init_memslot_memory_attributes`` and
``kvm_arch_vcpu_pre_fault_memory`` in arch/x86/kvm/mmu/mmu.c.  ``test_move_huge_pages.py`` covers those of a
moved TD.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import pytest

from e2e.huge_pages import TWO_MIB, two_huge_pages
from fixtures.guests.execute import SHARED_VA, Executor, load
from fixtures.guests.launch import Launch
from fixtures.kvm.abi import PAGE_SIZE
from fixtures.kvm.build import Assembly, Region
from fixtures.kvm.exits import MemoryFaultExit
from fixtures.kvm.memory import Memory
from fixtures.kvm.params import MemorySlot

GPA = 1 << 30
SIZE = 2 * TWO_MIB


@pytest.fixture
def slot(built: Assembly, tdx_cleanup: ExitStack) -> MemorySlot:
    """A memory slot of two huge pages, which is shared."""
    memory = two_huge_pages(built.worker, tdx_cleanup)
    made = MemorySlot(built.free_slot, GPA, SIZE, memory.address)
    built.td.set_slot(made)
    built.vcpus[0].pre_fault(GPA, SIZE)
    if huge_pages(built) != 2:
        pytest.skip("this host has no huge pages for a TD's shared memory")
    return made


@pytest.fixture
def built(launch: Launch) -> Assembly:
    return launch("execute")


def huge_pages(built: Assembly) -> int:
    """The number of huge pages that KVM has mapped."""
    with built.td.stats_fd() as stats:
        return stats.read()["pages_2m"][0]


PRIVATE = {
    "first-page": (0, PAGE_SIZE),
    "last-page": (TWO_MIB - PAGE_SIZE, PAGE_SIZE),
    "end-of-one-and-begin-of-the-next": (TWO_MIB - PAGE_SIZE, 2 * PAGE_SIZE),
    "one-and-begin-of-the-next": (0, TWO_MIB + PAGE_SIZE),
}


@pytest.mark.parametrize("since", ["while-it-is-mapped", "before-the-slot"])
@pytest.mark.parametrize("part", PRIVATE)
def test_shared_access_to_a_private_part_leaves_to_user_space(
    part: str, since: str, built: Assembly, slot: MemorySlot
) -> None:
    """The rest of it is mapped, page by page."""
    offset, size = PRIVATE[part]
    if since == "before-the-slot":
        built.td.delete_slot(slot.slot, slot.gpa)
    built.td.set_memory_attributes(GPA + offset, size, private=True)
    if since == "before-the-slot":
        built.td.set_slot(slot)
    private = range(GPA + offset, GPA + offset + size, PAGE_SIZE)
    looked_at = {GPA + huge + at for huge in (0, TWO_MIB) for at in (0, TWO_MIB // 2, TWO_MIB - PAGE_SIZE)}
    guest = Executor(built)
    found = guest.run([load(SHARED_VA | gpa) for gpa in looked_at - {*private}])
    assert all(one.vector is None for one in found)
    left = guest.run_to_exit([load(SHARED_VA | private[-1])])
    assert isinstance(left, MemoryFaultExit)
    assert (left.gpa, left.private) == (private[-1], False)


def test_huge_page_comes_back_when_all_of_it_is_shared_again(built: Assembly, slot: MemorySlot) -> None:
    for private in (True, False):
        built.td.set_memory_attributes(GPA, PAGE_SIZE, private=private)
    assert built.vcpus[0].pre_fault(GPA, SIZE) == 0
    assert huge_pages(built) == 2


def test_pre_fault_ends_where_it_was_asked_to_though_a_huge_page_goes_on(
    built: Assembly, slot: MemorySlot
) -> None:
    (vcpu,) = built.vcpus
    assert vcpu.pre_fault(GPA, PAGE_SIZE) == 0
    assert vcpu.pre_fault(GPA + PAGE_SIZE, PAGE_SIZE) == 0
    # Behind the slot there is nothing.
    assert vcpu.pre_fault(GPA + SIZE - PAGE_SIZE, 2 * PAGE_SIZE) == PAGE_SIZE


def test_memory_that_is_not_aligned_like_the_guests_is_mapped_page_by_page(launch: Launch) -> None:
    """The words that the guest finds are those at their places in the process."""
    built = launch("execute")
    guest = Executor(built)
    built.place(Region(GPA, SIZE))
    slot = built.placed[-1].slot
    memory = Memory.map(built.worker, SIZE + TWO_MIB)
    built.td.delete_slot(slot.slot, slot.gpa)
    built.td.set_slot(replace(slot, address=memory.address + PAGE_SIZE))
    built.td.set_memory_attributes(GPA, SIZE, private=False)
    offsets = (0, TWO_MIB - PAGE_SIZE, TWO_MIB, SIZE - PAGE_SIZE)
    for number, offset in enumerate(offsets, start=1):
        memory.write(PAGE_SIZE + offset, number.to_bytes(4, "little"))
    found = guest.run([load(SHARED_VA | GPA + offset) for offset in offsets])
    assert [one["rax"] for one in found] == [1, 2, 3, 4]
    assert huge_pages(built) == 0
