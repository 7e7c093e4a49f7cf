# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory of a TD that QEMU moves: what is private and shared is known in the destination, and stays so.

Sources: ``tdx_kvm_take_over`` in target/i386/kvm/tdx.c and system/ram-block-attributes.c of our QEMU.
"""

from __future__ import annotations

import pytest

from e2e.moves import MOVES
from e2e.qemu_moves import kinds, moved_once
from e2e.resets import reset, resetting
from fixtures.deadline import until
from fixtures.findings import shows
from fixtures.guests.dump import shared_memory
from fixtures.guests.moving import moved
from fixtures.guests.qemu_tds import QemuTds
from fixtures.guests.typed import SHARED_GPA, ask, counts
from fixtures.host.hkids import Hkids
from fixtures.kvm.abi import PAGE_SIZE
from fixtures.qemu.td_command import FIXED_CLOCK

pytestmark = MOVES

MORE = {"qom-type": "memory-backend-ram", "id": "more", "size": 1 << 20, "share": True}
GMEM = "/[kvm-gmem] (deleted)"
ODD = 65544
"""Size of a memory in KiB of which the last two pages are no full word of bits."""


def test_memory_is_converted_in_the_destination_as_if_nothing_had_happened(movable_tds: QemuTds) -> None:
    source = movable_tds.run()
    assert counts(source) == [1, 1]
    assert ask(source, "p") == "private 0 0"
    destination = moved_once(movable_tds, source)
    assert ask(destination, "s") == "shared 0"
    assert counts(destination) == [2, 1]
    again = moved_once(movable_tds, destination)
    assert ask(again, "p") == "private 0 0"
    assert ask(again, "m") == "accepted 16"


def test_destination_knows_which_memory_is_shared(movable_tds: QemuTds) -> None:
    source = movable_tds.run()
    before = shared_memory(source)
    assert sum(size for _, size in before) == PAGE_SIZE
    destination = moved_once(movable_tds, source)
    assert shared_memory(destination) == before
    assert ask(destination, "p") == "private 0 0"
    assert shared_memory(moved_once(movable_tds, destination)) == []


@pytest.mark.tdx_finding("Q17", qemu=("11.1.1",))
def test_dump_has_shared_memory_where_the_guest_has_it(movable_tds: QemuTds) -> None:
    with shows("Q17"):
        assert shared_memory(movable_tds.run()) == [(SHARED_GPA, PAGE_SIZE)]


def test_memory_that_came_later_can_be_there_from_the_beginning_in_the_destination(
    movable_tds: QemuTds,
) -> None:
    """The two QEMUs have made their memory in another order."""
    source = movable_tds.run()
    source.execute("object-add", **MORE)
    more = ("-object", "memory-backend-ram,id=more,size=1M,share=on")
    assert counts(source) == [1, 1]
    before = shared_memory(source)
    destination = moved(source, movable_tds.destination(source, extra_args=more))
    assert counts(destination) == [2, 2]
    assert shared_memory(destination) == before


def test_shared_page_of_the_firmwares_memory_is_the_guests(movable_tds: QemuTds) -> None:
    source = movable_tds.run()
    assert ask(source, "h") == "firmware 1"
    destination = moved_once(movable_tds, source)
    assert ask(destination, "h") == "firmware 2"


def test_memory_that_came_and_went_is_not_moved(movable_tds: QemuTds) -> None:
    """Each backend has a guest_memfd of its own, and the second has the name of the first."""
    source = movable_tds.run()
    files = source.open_files
    for _ in range(2):
        source.execute("object-add", **MORE)
        assert kinds(source.open_files) - kinds(files) == {"/memfd:more (deleted)": 1, GMEM: 1}
        source.execute("object-del", id="more")
        until(lambda: source.open_files == files, "QEMU to close the memory")
    assert counts(moved_once(movable_tds, source)) == [1, 1]


def test_memory_that_nobody_uses_keeps_no_td_from_before_a_reset(hkids: Hkids, movable_tds: QemuTds) -> None:
    td = movable_tds.start(cpu=FIXED_CLOCK)
    td.execute("object-add", **MORE)
    with resetting(td):
        reset(td)
    assert hkids.taken == 1
    td.execute("object-del", id="more")
    assert td.status == "prelaunch"


def test_last_page_of_memory_of_an_odd_size_can_be_shared(movable_tds: QemuTds) -> None:
    backend = f"memory-backend-ram,id=odd,size={ODD}K,share=on"
    source = movable_tds.run(
        machine={"memory-backend": "odd"}, extra_args=("-object", backend, "-m", f"{ODD}K")
    )
    assert ask(source, "o") == "shared 0"
    assert counts(moved_once(movable_tds, source)) == [1, 1]
