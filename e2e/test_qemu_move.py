# SPDX-License-Identifier: GPL-2.0-or-later
"""``migrate`` over QMP moves a running TD to another QEMU, without another HKID and without losing one.

No QEMU can do it yet; ours can (images/qemu/patches), in the mode cpr-transfer, on a kernel that moves TDs
(flavour ``proposed``).  The guest is the payload ``console``.  Sources: ``tdx_kvm_take_over`` in
target/i386/kvm/tdx.c there, ``qmp_migrate`` in migration/migration.c.
"""

from __future__ import annotations

import itertools
from contextlib import ExitStack

import pytest

from e2e.moves import MOVES
from e2e.qemu_moves import kinds, moved_once
from e2e.resets import reset, resetting
from fixtures.agent.client import Worker
from fixtures.cgroup import Cgroup
from fixtures.deadline import Deadline, until
from fixtures.guests import output
from fixtures.guests.ghci import RETRY
from fixtures.guests.launch import Launch
from fixtures.guests.moving import MODE, PLAIN_CAPABILITIES, TAKE_OVER, Move, moved, set_mode
from fixtures.guests.output import COMMON
from fixtures.guests.qemu_td import QemuTd
from fixtures.guests.qemu_tds import QemuTds
from fixtures.guests.quotes import MOST_QUOTES, QuoteService
from fixtures.guests.typed import AFTER_RESET, ask, await_answer, counts, joined, parse_counts
from fixtures.host.base import TdxHost
from fixtures.host.hkids import Hkids
from fixtures.kvm.device import Kvm
from fixtures.kvm.many import many_tds
from fixtures.qemu.td_command import FIXED_CLOCK
from fixtures.softseam.truth import Truth

pytestmark = MOVES

STEPS = ["setup", "active", "device", "completed"]


def names(td: QemuTd, *which: str) -> list[str]:
    """List the events with some names, in order."""
    return [event["event"] for event in td.events if event["event"] in which]


# it goes on


@pytest.mark.tdx_host(cpus=2)
@pytest.mark.parametrize("vcpus", [1, 2])
def test_counts_on_without_a_lost_or_repeated_step(vcpus: int, hkids: Hkids, movable_tds: QemuTds) -> None:
    """The guest counts in private and shared memory, and prints, also while it is moved within a line."""
    source = movable_tds.run(smp=str(vcpus))
    source.console.send_line("a")
    source.console.wait_for(r"^count 5 ", Deadline(10, "the guest's first steps"))
    move = Move(source, destination := movable_tds.destination(source))
    destination.connect()
    assert move.end() == "completed"
    assert move.statuses == STEPS
    assert (source.status, destination.status) == ("postmigrate", "running")
    assert hkids.taken == 1
    destination.console.wait_for(r"^count \d+ \d+", Deadline(10, "steps in the destination"))
    destination.console.send_line("x")
    destination.console.wait_for("^stopped$", Deadline(10, "the guest's answer"))
    assert source.quit() == 0
    source.console.join(5)
    _, *lines, last = joined(source.console.since(0), destination.console.since(0))
    assert last == "stopped"
    steps = [parse_counts(line) for line in lines]
    assert [step[:2] for step in steps] == [[number, number] for number in range(1, len(steps) + 1)]
    assert all(before[2:] <= after[2:] for before, after in itertools.pairwise(steps))
    assert hkids.taken == 1
    assert counts(destination)[0] == len(steps) + 1
    assert destination.quit() == 0
    assert hkids.taken == 0


def test_every_vcpu_goes_on(movable_tds: QemuTds) -> None:
    source = movable_tds.run(smp="2")
    before = counts(source)
    destination = moved_once(movable_tds, source)
    first, second = counts(destination), counts(destination)
    assert before[2] < first[2] < second[2]
    assert len(destination.execute("query-cpus-fast")) == 2


def test_moves_where_the_command_line_switches_the_capability_on(movable_tds: QemuTds) -> None:
    names = (TAKE_OVER, *(f"x-{name}" for name in PLAIN_CAPABILITIES))
    switched = [("-global", f"migration.{name}=on") for name in names]
    source = movable_tds.run(extra_args=tuple(itertools.chain(*switched)))
    assert counts(source) == [1, 1]
    states = source.execute("query-migrate-capabilities")
    assert {one["capability"] for one in states if one["state"]} >= {TAKE_OVER, *PLAIN_CAPABILITIES}
    set_mode(source, MODE)
    destination = movable_tds.destination(source, extra_args=())
    source.execute("migrate", channels=destination.channels)
    destination.connect()
    source.await_event("MIGRATION", which=lambda data: data["status"] == "completed")
    assert counts(destination) == [2, 2]


def test_events_tell_of_the_move(movable_tds: QemuTds) -> None:
    source = movable_tds.run()
    destination = moved(source, movable_tds.destination(source))
    # An event may arrive after the answer from which the move is known to have ended.
    source.await_event("STOP")
    destination.await_event("RESUME")
    assert names(source, "STOP", "RESUME") == ["STOP"]
    assert names(destination, "STOP", "RESUME") == ["RESUME"]
    assert source.execute("query-migrate")["status"] == "completed"


@pytest.mark.tdx_needs("ground-truth")
def test_module_sees_no_key_change_at_any_instant(movable_tds: QemuTds, truth: Truth, hkids: Hkids) -> None:
    """No key or page changes from before the destination starts until the source is gone."""
    source = movable_tds.run()
    counts(source)
    last, pages = truth.history()[-1], truth.state().pages
    destination = moved_once(movable_tds, source)
    counts(destination)
    assert truth.history(last.seq) == ()
    assert last.in_use == hkids.in_use
    assert truth.state().pages == pages


@pytest.mark.parametrize("cpu", [FIXED_CLOCK, f"{FIXED_CLOCK},lmce=on"], ids=["usual", "lmce"])
def test_msrs_that_kvm_emulates_move_along(cpu: str, movable_tds: QemuTds) -> None:
    """MTRRs, machine check banks, MISC_ENABLE and KVM's poll control, which no one but QEMU can carry."""
    source = movable_tds.run(cpu=cpu)
    reset_values = ask(source, "v").split()
    written = ask(source, "M").split()
    assert not {"refused"} & {*reset_values, *written}
    assert all(before != after for before, after in zip(reset_values[1:], written[1:], strict=True))
    destination = moved_once(movable_tds, source)
    assert ask(destination, "v").split() == written
    again = moved_once(movable_tds, destination)
    assert ask(again, "v").split() == written


@pytest.mark.tdx_host(cpus=2)
def test_msrs_of_each_vcpu_are_its_own_also_in_the_destination(movable_tds: QemuTds) -> None:
    source = movable_tds.run(smp="2")
    written = [ask(source, letter).split() for letter in "MW"]
    assert "refused" not in {*written[0], *written[1]}
    assert written[0] != written[1]
    destination = moved_once(movable_tds, source)
    assert [ask(destination, letter).split() for letter in "vV"] == written


# keys


def test_moves_when_every_hkid_is_in_use(kvm: Kvm, hkids: Hkids, movable_tds: QemuTds) -> None:
    """The destination starts although no key is free."""
    source = movable_tds.run()
    assert counts(source) == [1, 1]
    many_tds(kvm, hkids.free)
    assert hkids.free == 0
    destination = moved_once(movable_tds, source)
    assert hkids.free == 0
    assert counts(destination) == [2, 2]
    assert destination.quit() == 0
    assert hkids.free == 1


@pytest.fixture
def pair(tdx_cgroup: Cgroup, tdx_host: TdxHost, tdx_cleanup: ExitStack) -> list[tuple[Cgroup, Worker]]:
    """A pair of sibling cgroups with a process in each."""
    groups = [tdx_cgroup.child("old"), tdx_cgroup.child("new")]
    spawn = tdx_host.agent.spawn
    return [(group, tdx_cleanup.enter_context(spawn(cgroup=group.path))) for group in groups]


def test_moves_at_its_cgroups_limit(pair: list[tuple[Cgroup, Worker]], movable_tds: QemuTds) -> None:
    (group, worker), _ = pair
    group.set_max(1)
    source = movable_tds.run(worker)
    assert group.current == 1
    destination = moved_once(movable_tds, source, worker)
    assert (group.current, group.peak) == (1, 1)
    assert counts(destination) == [1, 1]
    assert destination.quit() == 0
    assert group.current == 0


def test_charge_moves_to_the_destinations_cgroup(
    pair: list[tuple[Cgroup, Worker]], tdx_cgroup: Cgroup, movable_tds: QemuTds
) -> None:
    (old, first), (new, second) = pair
    tdx_cgroup.set_max(1)
    source = movable_tds.run(first)
    assert (old.current, new.current) == (1, 0)
    destination = moved(source, movable_tds.destination(source, second))
    assert (old.current, new.current) == (0, 1)
    assert (tdx_cgroup.current, tdx_cgroup.peak) == (1, 1)
    assert source.quit() == 0
    assert counts(destination) == [1, 1]
    assert destination.quit() == 0
    assert (old.current, new.current) == (0, 0)


def test_moves_ten_times_to_and_fro(
    pair: list[tuple[Cgroup, Worker]], hkids: Hkids, movable_tds: QemuTds
) -> None:
    td: QemuTd = movable_tds.run(pair[0][1])
    files = kinds(td.open_files)
    assert files["anon_inode:kvm-vm"] == 1
    for step in range(1, 11):
        assert counts(td) == [step, step]
        td = moved_once(movable_tds, td, pair[step % 2][1])
        assert [group.current for group, _ in pair] == [(step + 1) % 2, step % 2]
        assert hkids.taken == 1
    assert counts(td) == [11, 11]
    assert kinds(td.open_files) == files


# the TD at its new QEMU


def test_stop_and_cont_after_a_move(movable_tds: QemuTds) -> None:
    td = moved_once(movable_tds, movable_tds.run())
    td.execute("stop")
    assert td.status == "paused"
    before = td.console.position
    td.console.send_line("c")
    td.execute("cont")
    assert await_answer(td, "c", since=before) == "count 1 1"


def test_stopped_td_is_moved_and_stays_stopped(hkids: Hkids, movable_tds: QemuTds) -> None:
    source = movable_tds.run()
    assert counts(source) == [1, 1]
    source.execute("stop")
    td = moved_once(movable_tds, source)
    assert td.status == "paused"
    assert hkids.taken == 1
    td.execute("cont")
    assert counts(td) == [2, 2]


def test_td_does_not_run_in_a_destination_that_is_told_to_wait(hkids: Hkids, movable_tds: QemuTds) -> None:
    source = movable_tds.run()
    assert counts(source) == [1, 1]
    td = moved(source, movable_tds.destination(source, extra_args=("-S",)))
    until(lambda: td.status != "inmigrate", "the destination to have the TD")
    assert td.status in ("paused", "prelaunch")
    td.execute("cont")
    assert counts(td) == [2, 2]
    assert hkids.taken == 1


def test_td_in_prelaunch_is_moved_and_begins_there(movable_tds: QemuTds) -> None:
    source = movable_tds.start(cpu=FIXED_CLOCK)
    td = moved_once(movable_tds, source)
    assert td.status == "prelaunch"
    td.execute("cont")
    td.console.wait_for("^ready, 1 vCPUs$", Deadline(10, "the payload"))


@pytest.mark.parametrize("vcpus", [1, 2])
def test_system_reset_after_a_move_starts_it_anew(vcpus: int, hkids: Hkids, movable_tds: QemuTds) -> None:
    source = movable_tds.run(smp=str(vcpus))
    assert counts(source)[:2] == [1, 1]
    td = moved_once(movable_tds, source)
    before = td.console.position
    with resetting(td):
        reset(td)
    td.console.wait_for(f"^ready, {vcpus} vCPUs$", Deadline(10, "the payload after a reset"), since=before)
    assert counts(td)[:2] == AFTER_RESET
    assert hkids.taken == 1


@pytest.mark.parametrize("cpu", [FIXED_CLOCK, "host"], ids=["fixed-clock", "clock-of-the-host"])
def test_moves_after_a_reset(cpu: str, hkids: Hkids, movable_tds: QemuTds) -> None:
    """Moves the VM and the private memory of the reset, in place of those that QEMU began with.

    A file that is open before the first VM, and closed, leaves its number to the second.
    """
    source = movable_tds.run(cpu=cpu, extra_args=("-chardev", "file,id=spare,path=/dev/null"))
    assert counts(source) == [1, 1]
    source.execute("chardev-remove", id="spare")
    with resetting(source):
        assert ask(source, "r") == "ready, 1 vCPUs"
    assert hkids.taken == 1
    td = moved_once(movable_tds, source)
    assert counts(td) == AFTER_RESET
    assert hkids.taken == 1


def test_moves_and_is_reset_after_somebody_has_asked_what_a_td_can_be_told(
    hkids: Hkids, movable_tds: QemuTds
) -> None:
    """QEMU makes an object of the type to answer, which is no guest."""
    source = movable_tds.run()
    assert counts(source) == [1, 1]
    for _ in range(2):
        assert source.execute("qom-list-properties", typename="tdx-guest")
    td = moved_once(movable_tds, source)
    assert td.execute("qom-list-properties", typename="tdx-guest")
    before = td.console.position
    with resetting(td):
        reset(td)
    td.console.wait_for("^ready, 1 vCPUs$", Deadline(10, "the payload after a reset"), since=before)
    assert hkids.taken == 1


def test_guest_ends_itself_after_a_move(hkids: Hkids, movable_tds: QemuTds) -> None:
    td = moved_once(movable_tds, movable_tds.run(extra_args=("-no-reboot",)))
    td.console.send_line("r")
    assert td.await_event("SHUTDOWN")["data"] == {"guest": True, "reason": "guest-reset"}
    assert td.wait() == 0
    assert hkids.taken == 0


def test_guest_is_interrupted_for_a_quote_in_the_destination_if_it_wanted_it_in_the_source(
    movable_tds: QemuTds, quotes: QuoteService
) -> None:
    source = movable_tds.run(**quotes.change)
    assert ask(source, "n") == "notify 0"
    td = moved_once(movable_tds, source)
    quotes.ask(td).answer(b"a quote")
    assert ask(td, "w") == "quote 0"
    assert ask(td, "i") == "notified 1"


def test_guest_is_interrupted_after_a_move_when_there_is_no_quote(
    movable_tds: QemuTds, quotes: QuoteService
) -> None:
    source = movable_tds.run(**quotes.change)
    assert ask(source, "n") == "notify 0"
    td = moved_once(movable_tds, source)
    quotes.ask(td).hang_up()
    quotes.await_end(td)
    assert ask(td, "w") != "quote 0"
    assert ask(td, "i") == "notified 1"


def test_seventeenth_quote_in_flight_is_to_be_asked_for_again_after_a_move(
    movable_tds: QemuTds, quotes: QuoteService
) -> None:
    td = moved_once(movable_tds, movable_tds.run(**quotes.change))
    requests = [quotes.ask(td) for _ in range(MOST_QUOTES)]
    assert ask(td, "q") == f"quote {RETRY}"
    for request in requests:
        request.answer(b"a quote")


def test_fatal_error_after_a_move_is_an_event(movable_tds: QemuTds) -> None:
    td = moved_once(movable_tds, movable_tds.run())
    td.console.send_line("f")
    info = td.await_event("GUEST_PANICKED")["data"]["info"]
    assert info == {"type": "tdx", "error-code": 0xDEAD0000, "message": "payload"}


# beside others


def test_beside_a_raw_td(hkids: Hkids, launch: Launch, movable_tds: QemuTds) -> None:
    raw = launch("count").vcpus[0]
    source = movable_tds.run()
    assert (output.numbers(raw, 2), counts(source)) == ([1, COMMON | 1], [1, 1])
    td = moved_once(movable_tds, source)
    assert (output.numbers(raw, 2), counts(td)) == ([2, COMMON | 2], [2, 2])
    assert hkids.taken == 2


@pytest.mark.tdx_host(cpus=2)
def test_two_tds_cross(
    pair: list[tuple[Cgroup, Worker]], kvm: Kvm, hkids: Hkids, movable_tds: QemuTds
) -> None:
    """Each TD moves to where the other comes from, at once, with every HKID in use and at both limits."""
    sources = [movable_tds.run(worker) for _, worker in pair]
    for source, steps in zip(sources, (1, 2), strict=True):
        for step in range(1, steps + 1):
            assert counts(source) == [step, step]
    many_tds(kvm, hkids.free)
    (_, first), (_, second) = pair
    destinations = [movable_tds.destination(sources[0], second), movable_tds.destination(sources[1], first)]
    moves = [Move(*both) for both in zip(sources, destinations, strict=True)]
    for destination in destinations:
        destination.connect()
    assert [move.end() for move in moves] == ["completed", "completed"]
    assert [source.quit() for source in sources] == [0, 0]
    assert [counts(td) for td in destinations] == [[2, 2], [3, 3]]
    assert [group.current for group, _ in pair] == [1, 1]
    assert hkids.free == 0
