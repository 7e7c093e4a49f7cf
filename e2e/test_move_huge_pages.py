# SPDX-License-Identifier: GPL-2.0-or-later
"""Huge pages of a moved TD's shared memory: where its slots have room for them and all is shared.

``kvm_mmu_take_over_memory_attributes`` in arch/x86/kvm/mmu/mmu.c of flavour ``proposed``.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import pytest

from e2e.huge_pages import TWO_MIB, two_huge_pages
from e2e.moves import MOVES, count, destination_of
from fixtures.guests.launch import Launch
from fixtures.kvm.abi import PAGE_SIZE
from fixtures.kvm.build import Assembly, Region
from fixtures.kvm.move import move_from

pytestmark = MOVES


def put_shared_memory_at(built: Assembly, offset: int, memfd: bool, cleanup: ExitStack) -> None:
    """Give the last two slots shared memory that begins this far behind a boundary of huge pages.

    Without *memfd* they lose their guest_memfds.
    """
    for placed in built.placed[-2:]:
        memory = two_huge_pages(built.worker, cleanup)
        built.td.delete_slot(placed.slot.slot, placed.slot.gpa)
        slot = replace(placed.slot, address=memory.address + offset)
        built.td.set_slot(slot if memfd else replace(slot, guest_memfd=0, flags=0))


@pytest.mark.parametrize("memfd", [True, False], ids=["memfd", "no-memfd"])
@pytest.mark.parametrize(
    ("source_offset", "offset"),
    [(0, 0), (0, PAGE_SIZE), (PAGE_SIZE, 0)],
    ids=["same", "not-in-the-destination", "not-in-the-source"],
)
def test_huge_page_is_where_a_slot_has_room_and_all_is_shared(
    source_offset: int, offset: int, memfd: bool, launch: Launch, tdx_cleanup: ExitStack
) -> None:
    """KVM keeps per slot where huge pages fit and where attributes are mixed."""
    shared, mixed = Region(1 << 30, TWO_MIB), Region((1 << 30) + TWO_MIB, TWO_MIB)
    source = launch("count")
    source.place(shared, mixed)
    put_shared_memory_at(source, source_offset, memfd, tdx_cleanup)
    source.td.set_memory_attributes(shared.gpa, shared.size, private=False)
    source.td.set_memory_attributes(mixed.gpa, PAGE_SIZE, private=False)
    count(source)
    destination = destination_of(source, tdx_cleanup)
    put_shared_memory_at(destination, offset, memfd, tdx_cleanup)
    built = move_from(source, to=destination)
    with built.td.stats_fd() as stats:
        huge: list[int] = []
        for region in (shared, mixed):
            assert built.vcpus[0].pre_fault(region.gpa, PAGE_SIZE) == 0
            huge += stats.read()["pages_2m"]
    if offset == 0 and huge[0] == 0:
        pytest.skip("this host has no huge page for a TD's shared memory")
    assert huge == ([0, 0] if offset else [1, 1])


@pytest.mark.parametrize("mixed", [False, True])
def test_huge_page_at_the_end_of_a_slot_that_begins_inside_of_another(
    mixed: bool, launch: Launch, tdx_cleanup: ExitStack
) -> None:
    """KVM knows of each that a slot has a part of, the first and the last too."""
    last = (1 << 30) + TWO_MIB
    source = launch("count")
    source.place(Region(last - TWO_MIB // 2, TWO_MIB // 2 + TWO_MIB))
    give_huge_pages(source, tdx_cleanup)
    source.td.set_memory_attributes(last, TWO_MIB - (PAGE_SIZE if mixed else 0), private=False)
    count(source)
    destination = destination_of(source, tdx_cleanup)
    give_huge_pages(destination, tdx_cleanup)
    built = move_from(source, to=destination)
    with built.td.stats_fd() as stats:
        assert built.vcpus[0].pre_fault(last, PAGE_SIZE) == 0
        (huge,) = stats.read()["pages_2m"]
    if huge == 0 and not mixed:
        pytest.skip("this host has no huge page for a TD's shared memory")
    assert huge == (0 if mixed else 1)


def give_huge_pages(built: Assembly, cleanup: ExitStack) -> None:
    """Give the last slot, whose second half or more is a huge page's, shared memory that has one there."""
    slot = built.placed[-1].slot
    memory = two_huge_pages(built.worker, cleanup)
    built.td.delete_slot(slot.slot, slot.gpa)
    built.td.set_slot(replace(slot, address=memory.address + TWO_MIB // 2))
