# SPDX-License-Identifier: GPL-2.0-or-later
"""Migration of a TD by a stock QEMU: refused with a reason, and the TD goes on.

No released QEMU can migrate a TD.  Its answer must be safe: the TD keeps running, with its memory and its
HKID.  Sources: migration/options.c and migration/migration.c of QEMU 11.1.
"""

from __future__ import annotations

import signal
from contextlib import suppress
from typing import Any

import pytest

from fixtures.findings import shows
from fixtures.guests.moving import OTHER_MODES, PAUSE, PAUSED, PLAIN_CAPABILITIES, Move, set_mode
from fixtures.guests.qemu_td import QemuTd
from fixtures.guests.qemu_tds import PLAIN, QemuTds
from fixtures.host.hkids import Hkids
from fixtures.qemu.errors import QmpError, QmpGone
from fixtures.qemu.td_command import FIXED_CLOCK

pytestmark = pytest.mark.tdx_needs("misc-cgroup")

INVTSC = "invtsc"
"""Found in the reason for which no QEMU migrates a guest with such a clock."""


def channel(kind: str) -> dict[str, Any]:
    """A migration channel to a socket on which nobody listens."""
    address = {"transport": "socket", "type": "unix", "path": f"/nonexistent/{kind}"}
    return {"channel-type": kind, "addr": address}


def choose(td: QemuTd, mode: str) -> None:
    """Set the migration's mode, and enable events for its steps."""
    set_mode(td, mode)
    td.execute("migrate-set-capabilities", capabilities=[{"capability": "events", "state": True}])


def finish(td: QemuTd, **to: Any) -> str:
    """Migrate, and return the last status of the migration."""
    td.execute("migrate", **to)
    ends = ("completed", "failed", "cancelled")
    return str(td.await_event("MIGRATION", which=lambda data: data["status"] in ends)["data"]["status"])


# as it comes


def test_says_why_it_cannot_be_migrated(qemu_td: QemuTd) -> None:
    (reason,) = qemu_td.execute("query-migrate")["blocked-reasons"]
    assert INVTSC in reason


@pytest.mark.parametrize("mode", OTHER_MODES)
def test_is_refused_with_a_reason_and_goes_on(
    mode: str, migration_file: str, hkids: Hkids, qemu_td: QemuTd
) -> None:
    choose(qemu_td, mode)
    with pytest.raises(QmpError, match=INVTSC):
        qemu_td.execute("migrate", uri=migration_file)
    assert qemu_td.status == "prelaunch"
    assert hkids.taken == 1


def test_cpr_transfer_is_refused_with_a_reason_and_it_goes_on(hkids: Hkids, qemu_td: QemuTd) -> None:
    choose(qemu_td, "cpr-transfer")
    with pytest.raises(QmpError, match=f"{INVTSC}|is not compatible with CPR"):
        qemu_td.execute("migrate", channels=[channel("main"), channel("cpr")])
    assert qemu_td.status == "prelaunch"
    assert hkids.taken == 1


# with a clock that QEMU considers migratable


@pytest.mark.tdx_finding("Q6", qemu=("11.1",))
@pytest.mark.parametrize("mode", OTHER_MODES)
def test_outlives_a_migration_that_nothing_blocks(
    mode: str, migration_file: str, hkids: Hkids, qemu_tds: QemuTds
) -> None:
    td = qemu_tds.start(cpu=FIXED_CLOCK)
    choose(td, mode)
    # A refusal is as good as a failure.
    with shows("Q6", QmpGone), suppress(QmpError):
        assert finish(td, uri=migration_file) == "failed"
    assert td.status == "prelaunch"
    assert hkids.taken == 1


@pytest.mark.parametrize("mode", OTHER_MODES)
def test_hkid_comes_back_however_the_migration_ends(
    mode: str, migration_file: str, hkids: Hkids, qemu_tds: QemuTds
) -> None:
    td = qemu_tds.start(cpu=FIXED_CLOCK)
    choose(td, mode)
    with suppress(QmpError, QmpGone):
        finish(td, uri=migration_file)
    td.close()
    assert hkids.taken == 0


def test_cpr_transfer_names_the_memory_that_it_cannot_take(hkids: Hkids, qemu_tds: QemuTds) -> None:
    td = qemu_tds.start(cpu=FIXED_CLOCK)
    choose(td, "cpr-transfer")
    with pytest.raises(QmpError, match=r"Memory region \S+ .*CPR"):
        td.execute("migrate", channels=[channel("main"), channel("cpr")])
    assert td.status == "prelaunch"
    assert hkids.taken == 1


def test_cpr_transfer_of_memory_in_files_names_what_it_cannot_take(hkids: Hkids, qemu_tds: QemuTds) -> None:
    """Private memory remains when all other requirements of CPR are met, also on a kernel that moves TDs."""
    td = qemu_tds.start(cpu=FIXED_CLOCK, movable=True)
    choose(td, "cpr-transfer")
    with pytest.raises(QmpError, match=r"Memory region \S+ .*guest_memfd"):
        td.execute("migrate", channels=[channel("main"), channel("cpr")])
    assert td.status == "prelaunch"
    assert hkids.taken == 1


@pytest.mark.tdx_finding("Q6", qemu=("11.1",))
def test_outlives_cpr_exec_with_memory_in_files(migration_file: str, hkids: Hkids, qemu_tds: QemuTds) -> None:
    td = qemu_tds.start(cpu=FIXED_CLOCK, movable=True)
    choose(td, "cpr-exec")
    with shows("Q6", QmpGone), suppress(QmpError):
        assert finish(td, uri=migration_file) == "failed"
    assert td.status == "prelaunch"
    assert hkids.taken == 1


# not only TDs


def resumes(td: QemuTd) -> bool:
    """Return whether a QEMU resumes its guest; false if it ends."""
    try:
        td.await_event("RESUME")
    except QmpGone:
        return False
    return True


@pytest.mark.tdx_finding("Q9", qemu=("11.1",))
def test_guest_whose_transfer_is_cancelled_runs_on_one_side_only(qemu_tds: QemuTds) -> None:
    """Cancelled when all is sent, before the destination has read it; both use the same memory."""
    source = qemu_tds.start(**PLAIN)
    destination = qemu_tds.destination(source)
    move = Move(source, destination, capabilities=[*PLAIN_CAPABILITIES, PAUSE])
    destination.connect()
    assert move.until(PAUSED, "failed") == PAUSED
    destination.program.signal(signal.SIGSTOP)
    source.execute("migrate-continue", state=PAUSED)
    move.until("device")
    source.execute("migrate_cancel")
    assert move.end() == "cancelled"
    assert resumes(source)
    destination.program.signal(signal.SIGCONT)
    with shows("Q9"):
        assert not resumes(destination)
