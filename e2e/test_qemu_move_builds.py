# SPDX-License-Identifier: GPL-2.0-or-later
"""A TD is moved between QEMUs of different builds, which is what a move is for, or one of them says why not.

The later build is ours with the patches of images/qemu/later, as a tree has it some releases on: it compares
one member more, what a reset does (``-no-reboot``), and words its refusals otherwise.  A stock QEMU knows
nothing of all that.  Sources: migration/cpr-guest.c of our QEMU, ``vmstate_subsection_load`` in
migration/vmstate.c.
"""

from __future__ import annotations

import pytest

from e2e.moves import MOVES
from fixtures.guests.moving import TAKE_OVER, Move, moved
from fixtures.guests.qemu_td import QemuTd, complaints
from fixtures.guests.qemu_tds import PLAIN, QemuTds
from fixtures.guests.typed import counts
from fixtures.host.hkids import Hkids
from fixtures.paths import QEMU
from fixtures.qemu.errors import QmpError
from fixtures.qemu.td_command import FIXED_CLOCK

pytestmark = [
    *MOVES,
    # The first test that needs the later build may have to compile it.
    pytest.mark.timeout(900),
]

NO_REBOOT = ("-no-reboot",)
"""An option that the later build compares, and ours does not know to be compared."""

NO_STATE = "in 'CprState'"
"""Debian's QEMU takes the guest for one of the VFIO devices, of which our build sends none (finding Q16)."""
NO_MEMBER = "VM subsection 'CprGuest/reset' in 'CprGuest' does not exist"
LATER_WORDS = "this QEMU is not made for the guest of the source"
ANOTHER_RESET = f"{LATER_WORDS}: what a reset does is 0 in the source, 1 here"


def assert_refused(move: Move, says: str) -> None:
    """Require that the destination ends with a reason, and that the source's TD never stopped."""
    source, destination = move.source, move.destination
    assert move.end() == "failed"
    assert destination.wait() == 1
    assert says in "\n".join(complaints(destination.output))
    assert source.status == "running"
    assert "STOP" not in [event["event"] for event in source.events]


@pytest.fixture
def later_tds(movable_tds: QemuTds, later_qemu: str) -> str:
    """The later build, beside TDs of ours."""
    assert movable_tds.spec.binary != later_qemu
    return later_qemu


# both can move TDs


@pytest.mark.parametrize("vcpus", [1, 2])
@pytest.mark.parametrize("first", ["ours", "later"])
@pytest.mark.tdx_host(cpus=2)
def test_moves_to_the_other_build_and_back(
    first: str, vcpus: int, hkids: Hkids, movable_tds: QemuTds, later_tds: str
) -> None:
    builds = [movable_tds.spec.binary, later_tds]
    if first == "later":
        builds.reverse()
    td: QemuTd = movable_tds.run(binary=builds[0], smp=str(vcpus))
    for step, binary in enumerate((builds[1], builds[0], builds[1]), 1):
        assert counts(td)[:2] == [step, step]
        source, td = td, moved(td, movable_tds.destination(td, binary=binary))
        assert source.quit() == 0
        assert hkids.taken == 1
    assert counts(td)[:2] == [4, 4]


def test_member_that_only_the_later_source_knows_is_refused(
    hkids: Hkids, movable_tds: QemuTds, later_tds: str
) -> None:
    """Our build cannot say what the member is, but that it is one more."""
    source = movable_tds.run(binary=later_tds, extra_args=NO_REBOOT)
    assert counts(source) == [1, 1]
    ours = movable_tds.spec.binary
    assert_refused(Move(source, movable_tds.destination(source, binary=ours)), NO_MEMBER)
    assert counts(source) == [2, 2]
    again = moved(source, movable_tds.destination(source))
    assert counts(again) == [3, 3]
    assert hkids.taken == 1


def test_member_that_only_the_later_destination_knows_is_compared_with_what_it_is_without(
    hkids: Hkids, movable_tds: QemuTds, later_tds: str
) -> None:
    source = movable_tds.run()
    assert counts(source) == [1, 1]
    unlike = movable_tds.destination(source, binary=later_tds, extra_args=NO_REBOOT)
    assert_refused(Move(source, unlike), ANOTHER_RESET)
    assert counts(source) == [2, 2]
    again = moved(source, movable_tds.destination(source, binary=later_tds))
    assert counts(again) == [3, 3]
    assert hkids.taken == 1


@pytest.mark.parametrize("first", ["ours", "later"])
def test_member_that_both_know_is_compared_whatever_the_words(
    first: str, hkids: Hkids, movable_tds: QemuTds, later_tds: str
) -> None:
    """Each says in its own words that there is another number of vCPUs."""
    ours = movable_tds.spec.binary
    binaries = [ours, later_tds] if first == "ours" else [later_tds, ours]
    source = movable_tds.run(binary=binaries[0])
    unlike = movable_tds.destination(source, binary=binaries[1], smp="1,maxcpus=2")
    words = "the guest to be taken over is not like this one"
    if first == "ours":
        words = LATER_WORDS
    assert_refused(Move(source, unlike), f"{words}: maxcpus is 1 in the source, 2 here")
    assert counts(source) == [1, 1]
    assert hkids.taken == 1


# one is a stock QEMU


def test_destination_that_is_a_stock_qemu(hkids: Hkids, movable_tds: QemuTds) -> None:
    source = movable_tds.run()
    assert_refused(Move(source, movable_tds.destination(source, binary=QEMU)), NO_STATE)
    assert counts(source) == [1, 1]
    again = moved(source, movable_tds.destination(source))
    assert counts(again) == [2, 2]
    assert hkids.taken == 1


def test_source_that_is_a_stock_qemu(hkids: Hkids, movable_tds: QemuTds) -> None:
    """It does not know the capability, without which the destination is not asked for anything."""
    ours = movable_tds.spec.binary
    source = movable_tds.run(binary=QEMU)
    destination = movable_tds.destination(source, binary=ours)
    with pytest.raises(QmpError, match=TAKE_OVER):
        Move(source, destination)
    assert source.status == "running"
    assert destination.program.alive
    assert counts(source) == [1, 1]
    assert hkids.taken == 1


def test_plain_guest_of_a_stock_qemu_is_no_td(movable_tds: QemuTds) -> None:
    """The destination, which is made for a TD, takes nothing else over."""
    td = movable_tds.spec
    source = movable_tds.start(**PLAIN, binary=QEMU)
    destination = movable_tds.destination(
        source,
        binary=td.binary,
        guest=td.guest,
        accel=td.accel,
        cpu=FIXED_CLOCK,
        machine=td.machine,
        firmware=td.firmware,
    )
    assert_refused(Move(source, destination), "the source has no private memory")
