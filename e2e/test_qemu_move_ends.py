# SPDX-License-Identifier: GPL-2.0-or-later
"""Moves of a TD between QEMUs that end early: killed, cancelled, or with nobody at the monitor.

At most one of the two QEMUs has the TD afterwards, and no HKID is lost.  "During" is the point where the
source is stopped and the destination ready (capability ``pause-before-switchover``).
"""

from __future__ import annotations

import signal
from contextlib import ExitStack

import pytest

from e2e.moves import MOVES
from e2e.races import on
from e2e.resets import reset, resetting
from fixtures.agent import syscalls
from fixtures.deadline import Deadline, comes_true
from fixtures.errors import HarnessError
from fixtures.guests.moving import CAPABILITIES, PAUSE, PAUSED, Destination, Move, moved
from fixtures.guests.qemu_td import LAUNCH_SECONDS, QemuTd
from fixtures.guests.qemu_tds import QemuTds
from fixtures.guests.typed import counts
from fixtures.host.base import TdxHost
from fixtures.host.hkids import Hkids
from fixtures.kvm import commands
from fixtures.kvm.device import Kvm
from fixtures.qemu.errors import QmpError
from fixtures.qemu.td_command import QMP
from fixtures.softseam.hold import held

pytestmark = MOVES


MIGRATING = "mig/src/main\n"
"""The name of QEMU's thread (migration/migration.h)."""
TOO_LATE = "The destination takes the guest over, cannot cancel"


def kill(td: QemuTd) -> None:
    """Kill a QEMU, and wait until the kernel has freed what it held."""
    td.program.signal(signal.SIGKILL)
    assert td.wait() == -signal.SIGKILL


def error_of(td: QemuTd, command: str) -> str:
    """Execute a command, and return QEMU's error message, empty if it succeeds."""
    try:
        td.execute(command)
    except QmpError as error:
        return error.desc
    return ""


@pytest.fixture
def source(hkids: Hkids, movable_tds: QemuTds) -> QemuTd:
    """A running TD that has counted once; it is the only TD."""
    td = movable_tds.run()
    assert counts(td) == [1, 1]
    return td


@pytest.fixture
def destination(movable_tds: QemuTds, source: QemuTd) -> Destination:
    """A QEMU that waits for the TD of ``source``."""
    return movable_tds.destination(source)


@pytest.fixture
def half_way(source: QemuTd, destination: Destination) -> Move:
    """A move that waits in ``pre-switchover``, with both QEMUs stopped."""
    move = Move(source, destination, capabilities=[*CAPABILITIES, PAUSE])
    destination.connect()
    assert move.until(PAUSED, "failed") == PAUSED
    assert source.status == "finish-migrate"
    return move


def proceed(source: QemuTd) -> None:
    """Continue a move that waits in ``pre-switchover``."""
    source.execute("migrate-continue", state=PAUSED)


def assert_has_lost_nothing(td: QemuTd, hkids: Hkids) -> None:
    """Require that this QEMU has the TD, and that the TD has lost no step and no HKID."""
    assert counts(td) == [2, 2]
    assert td.status == "running"
    assert hkids.taken == 1


# one of them is to be reset


def test_td_cannot_be_reset_where_it_was(source: QemuTd, destination: Destination, hkids: Hkids) -> None:
    moved(source, destination)
    assert error_of(source, "system_reset") == "the destination has taken the guest over"
    assert source.status == "postmigrate"
    assert source.quit() == 0
    assert_has_lost_nothing(destination, hkids)


def test_td_cannot_be_reset_where_it_will_be(half_way: Move, hkids: Hkids) -> None:
    assert error_of(half_way.destination, "system_reset") == "the source still has the guest"
    proceed(half_way.source)
    assert half_way.end() == "completed"
    half_way.destination.await_event("RESUME")
    assert_has_lost_nothing(half_way.destination, hkids)


def test_td_is_reset_while_its_destination_does_not_answer(
    source: QemuTd, destination: Destination, hkids: Hkids, movable_tds: QemuTds
) -> None:
    """It begins anew where it is; the VM from before, which was sent, goes with the destination."""
    destination.program.signal(signal.SIGSTOP)
    move = Move(source, destination)
    with resetting(source):
        reset(source)
    source.execute("migrate_cancel")
    assert move.end() == "cancelled"
    source.console.wait_for("^ready, 1 vCPUs$", Deadline(10, "the payload after a reset"))
    assert source.status == "running"
    kill(destination)
    assert hkids.taken == 1


# the source is killed


def test_source_killed_before_takes_its_td_along(
    source: QemuTd, destination: Destination, hkids: Hkids
) -> None:
    """The destination keeps waiting."""
    kill(source)
    assert hkids.taken == 0
    assert destination.program.alive


def test_source_killed_during_takes_its_td_along(half_way: Move, hkids: Hkids) -> None:
    """The destination, which has its VM, ends with a reason."""
    kill(half_way.source)
    assert half_way.destination.wait() == 1
    assert "load of migration failed" in half_way.destination.output
    assert hkids.taken == 0


def test_source_killed_after_does_not_matter(source: QemuTd, destination: Destination, hkids: Hkids) -> None:
    moved(source, destination)
    kill(source)
    assert_has_lost_nothing(destination, hkids)


def test_source_killed_before_the_destination_looked(
    source: QemuTd, destination: Destination, hkids: Hkids
) -> None:
    """The fds that the source has sent hold its VM, so the HKID is freed when the destination is gone."""
    destination.program.signal(signal.SIGSTOP)
    Move(source, destination)
    kill(source)
    destination.program.signal(signal.SIGCONT)
    destination.connect()
    assert destination.status == "inmigrate"
    assert destination.quit() == 0
    assert hkids.taken == 0


# the destination is killed


def test_destination_killed_before_is_not_found(
    source: QemuTd, destination: Destination, hkids: Hkids
) -> None:
    kill(destination)
    with pytest.raises(QmpError, match="Connection refused"):
        Move(source, destination)
    assert_has_lost_nothing(source, hkids)


def test_destination_killed_before_it_looked(source: QemuTd, destination: Destination, hkids: Hkids) -> None:
    """The source has sent its file descriptors, and waits for an answer."""
    destination.program.signal(signal.SIGSTOP)
    move = Move(source, destination)
    kill(destination)
    assert move.end() == "failed"
    assert_has_lost_nothing(source, hkids)


def test_destination_killed_during_leaves_the_td_where_it_was(half_way: Move, hkids: Hkids) -> None:
    kill(half_way.destination)
    proceed(half_way.source)
    assert half_way.end() == "failed"
    assert_has_lost_nothing(half_way.source, hkids)


def test_destination_killed_after_takes_the_td_along(
    source: QemuTd, destination: Destination, hkids: Hkids
) -> None:
    """The source has nothing left to run."""
    moved(source, destination)
    kill(destination)
    assert hkids.taken == 0
    assert source.status == "postmigrate"


@pytest.mark.tdx_host(cpus=2)
@pytest.mark.tdx_needs("seamcall-fault-injection")
@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
def test_destination_killed_when_the_kernel_has_moved_the_td_takes_it_along(
    stopped: bool,
    source: QemuTd,
    tdx_host: TdxHost,
    tdx_cleanup: ExitStack,
    movable_tds: QemuTds,
    hkids: Hkids,
) -> None:
    """The source is told nothing, and has nothing left to run."""
    if stopped:
        source.execute("stop")
    files = tdx_host.agent.files
    worker = tdx_cleanup.enter_context(tdx_host.agent.spawn())
    destination = movable_tds.destination(source, worker)
    threads = files.listdir(f"/proc/{destination.program.pid}/task")
    worker.batch([syscalls.affinity([1], thread=int(thread)) for thread in threads])
    with held(files, "TDH.VP.WR", cpu=1) as hold:
        move = Move(source, destination)
        assert hold.reached(lambda: not destination.program.alive, LAUNCH_SECONDS), destination.output
        destination.program.signal(signal.SIGKILL)
    assert destination.wait() == -signal.SIGKILL
    assert move.end() == "failed"
    assert source.status == "postmigrate"
    assert "the destination has taken the guest over" in source.output
    assert hkids.taken == 0


# it is cancelled


def test_cancelled_before_the_destination_looked(
    source: QemuTd, destination: Destination, hkids: Hkids
) -> None:
    destination.program.signal(signal.SIGSTOP)
    move = Move(source, destination)
    source.execute("migrate_cancel")
    assert move.end() == "cancelled"
    assert_has_lost_nothing(source, hkids)
    destination.program.signal(signal.SIGCONT)
    destination.connect()
    assert destination.quit() == 0
    assert hkids.taken == 1


def test_cancelled_leaves_no_file_open(source: QemuTd, movable_tds: QemuTds) -> None:
    """Sockets to the destination, and what is to be sent to it."""
    before = source.open_files, source.open_sockets
    for _ in range(2):
        destination = movable_tds.destination(source)
        destination.program.signal(signal.SIGSTOP)
        move = Move(source, destination)
        source.execute("migrate_cancel")
        assert move.end() == "cancelled"
        kill(destination)
        assert comes_true(lambda: before == (source.open_files, source.open_sockets))


def test_cancelled_when_there_is_nothing_to_cancel(source: QemuTd, destination: Destination) -> None:
    assert error_of(source, "migrate_cancel") == ""
    taken = moved(source, destination)
    assert error_of(source, "migrate_cancel") == ""
    assert error_of(taken, "migrate_cancel") == ""
    assert (source.status, taken.status) == ("postmigrate", "running")


def test_cancelled_half_way(half_way: Move, hkids: Hkids, movable_tds: QemuTds) -> None:
    source = half_way.source
    source.execute("migrate_cancel")
    assert half_way.end() == "cancelled"
    assert half_way.destination.wait() == 1
    assert "load of migration failed" in half_way.destination.output
    assert_has_lost_nothing(source, hkids)
    again = moved(source, movable_tds.destination(source))
    assert counts(again) == [3, 3]
    assert hkids.taken == 1


def test_cancelled_when_all_is_sent(half_way: Move, hkids: Hkids) -> None:
    """The destination has it all, but the guest runs where it was: it must not be taken from there."""
    half_way.destination.program.signal(signal.SIGSTOP)
    proceed(half_way.source)
    half_way.until("device")
    half_way.source.execute("migrate_cancel")
    assert half_way.end() == "cancelled"
    half_way.source.await_event("RESUME")
    half_way.destination.program.signal(signal.SIGCONT)
    assert half_way.destination.wait() == 1
    assert "the source does not let the guest go" in half_way.destination.output
    assert_has_lost_nothing(half_way.source, hkids)


@pytest.mark.tdx_host(cpus=2)
@pytest.mark.tdx_needs("seamcall-fault-injection")
def test_cancelled_twice_before_the_first_has_ended(
    half_way: Move, tdx_host: TdxHost, kvm: Kvm, hkids: Hkids
) -> None:
    """The thread that migrates waits for its CPU, on which a SEAMCALL of another TD lasts."""
    source, files = half_way.source, tdx_host.agent.files
    other = kvm.create_td()
    with other, held(files, "TDH.MNG.CREATE", cpu=1) as hold:
        making = kvm.worker.start(on([1], commands.init_vm(other.fd, other.default_params())))
        assert hold.reached(making.done)
        for thread in files.listdir(f"/proc/{source.program.pid}/task"):
            if files.read_text(f"/proc/{source.program.pid}/task/{thread}/comm") == MIGRATING:
                source.program.worker.call(syscalls.affinity([1], thread=int(thread)))
                break
        else:
            raise HarnessError("QEMU has no thread that migrates")
        first, second, then = source.execute_together("migrate_cancel", "migrate_cancel", "query-migrate")
        assert then["status"] == "cancelling"
        assert (first, second) == ({}, {})
    assert making.result().complete
    other.close()
    assert half_way.end() == "cancelled"
    assert_has_lost_nothing(source, hkids)


def test_cancelled_at_any_moment_is_moved_or_not(hkids: Hkids, movable_tds: QemuTds) -> None:
    """Either the command fails because it is too late, or the TD stays with the source."""
    td: QemuTd = movable_tds.run()
    for step in range(1, 7):
        assert counts(td) == [step, step]
        destination = movable_tds.destination(td)
        move = Move(td, destination, capabilities=[*CAPABILITIES, PAUSE])
        destination.connect()
        assert move.until(PAUSED, "failed") == PAUSED
        proceed(td)
        # Each time a little later.
        for _ in range(step - 1):
            td.execute("query-status")
        refusal = error_of(td, "migrate_cancel")
        ended = move.end()
        assert (refusal, ended) in (("", "cancelled"), ("", "completed"), (TOO_LATE, "completed"))
        if ended == "completed":
            destination.await_event("RESUME")
            td = destination
        else:
            # It runs before the event; the destination ends, unless it has the TD.
            assert td.status == "running"
            assert destination.wait() == 1
        assert hkids.taken == 1
    assert counts(td) == [7, 7]


# the monitor is closed


def test_monitor_of_the_source_vanishes(half_way: Move, hkids: Hkids) -> None:
    """The last command over the monitor was to continue."""
    proceed(half_way.source)
    half_way.source.program.hang_up(QMP)
    destination = half_way.destination
    destination.await_event("RESUME")
    assert_has_lost_nothing(destination, hkids)
    kill(half_way.source)
    assert hkids.taken == 1


def test_monitor_of_the_destination_vanishes(half_way: Move, hkids: Hkids) -> None:
    destination = half_way.destination
    destination.program.hang_up(QMP)
    proceed(half_way.source)
    assert half_way.end() == "completed"
    assert counts(destination) == [2, 2]
    assert hkids.taken == 1
