# SPDX-License-Identifier: GPL-2.0-or-later
"""Moves of a TD between QEMUs that the kernel refuses, when all has been loaded: the source has it back.

Sources: ``tdx_kvm_take_over`` in target/i386/kvm/tdx.c and ``migration_iteration_finish`` in
migration/migration.c of our QEMU.
"""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from e2e.qemu_moves import assert_goes_on
from fixtures.agent.client import Worker
from fixtures.cgroup import Cgroup
from fixtures.deadline import until
from fixtures.guests.moving import Destination, Move, moved
from fixtures.guests.qemu_td import QemuTd
from fixtures.guests.qemu_tds import QemuTds
from fixtures.guests.typed import counts
from fixtures.host.base import TdxHost
from fixtures.host.hkids import Hkids
from fixtures.qemu.td_command import FIXED_CLOCK

pytestmark = [
    pytest.mark.tdx_needs("misc-cgroup"),
    pytest.mark.tdx_offers("move"),
    pytest.mark.usefixtures("td_move"),
]

SAYS = "KVM does not move the TD: Device or resource busy"
DISK = ("-blockdev", "driver=null-co,node-name=disk,size=1048576", "-device", "virtio-blk-pci,drive=disk")


@pytest.fixture
def elsewhere(tdx_host: TdxHost, tdx_cgroup: Cgroup, tdx_cleanup: ExitStack) -> Worker:
    """A worker whose cgroup is at its limit, so that the kernel moves no TD to a QEMU of its."""
    tdx_cgroup.set_max(0)
    return tdx_cleanup.enter_context(tdx_host.agent.spawn(cgroup=tdx_cgroup.path))


def refused(source: QemuTd, destination: Destination) -> None:
    """Have a move refused, which ends the destination, and wait until the source has decided what it does."""
    assert Move(source, destination).end() == "failed"
    assert destination.wait() == 1
    assert SAYS in destination.output
    until(lambda: source.status != "finish-migrate", "QEMU to decide who has the guest")


def test_td_goes_on_and_can_be_moved_when_the_limit_is_higher(
    tdx_cgroup: Cgroup, elsewhere: Worker, hkids: Hkids, movable_tds: QemuTds
) -> None:
    source = movable_tds.run()
    before = source.open_files
    destination = movable_tds.destination(source, elsewhere)
    refused(source, destination)
    assert "misc.max" in destination.output
    assert_goes_on(source, 1, stopped=True)
    assert (tdx_cgroup.current, tdx_cgroup.events_local, hkids.taken) == (0, 1, 1)
    assert source.open_files == before
    source.execute("migrate_cancel")
    tdx_cgroup.set_max(1)
    again = moved(source, movable_tds.destination(source, elsewhere))
    assert counts(again) == [2, 2]
    assert (tdx_cgroup.current, hkids.taken) == (1, 1)


@pytest.mark.parametrize("status", ["paused", "prelaunch"])
def test_td_that_did_not_run_does_not_run_afterwards(
    status: str, tdx_cgroup: Cgroup, elsewhere: Worker, movable_tds: QemuTds
) -> None:
    source = movable_tds.start(cpu=FIXED_CLOCK) if status == "prelaunch" else movable_tds.run()
    if status == "paused":
        source.execute("stop")
    seen = len(source.events)
    refused(source, movable_tds.destination(source, elsewhere))
    tdx_cgroup.set_max(1)
    again = moved(source, movable_tds.destination(source, elsewhere))
    assert [event["event"] for event in source.events[seen:] if event["event"] == "RESUME"] == []
    assert again.status == status


def test_disks_are_the_sources_again(elsewhere: Worker, movable_tds: QemuTds) -> None:
    """A guest that writes to one that is not ends its QEMU."""
    source = movable_tds.run(extra_args=DISK)

    def active() -> dict[str, bool]:
        return {node["node-name"]: node["active"] for node in source.execute("query-named-block-nodes")}

    assert active() == {"disk": True}
    refused(source, movable_tds.destination(source, elsewhere))
    assert active() == {"disk": True}
    assert_goes_on(source, 1, stopped=True)


def test_destination_that_lives_on_keeps_nothing_of_the_source(
    elsewhere: Worker, hkids: Hkids, movable_tds: QemuTds
) -> None:
    source = movable_tds.run()
    destination = movable_tds.destination(source, elsewhere, deferred=True)
    move = Move(source, destination)
    destination.connect()
    destination.listen(**{"exit-on-error": False})
    assert move.end() == "failed"
    assert_goes_on(source, 1, stopped=True)
    assert SAYS in destination.execute("query-migrate")["error-desc"]
    assert source.quit() == 0
    assert hkids.taken == 0
    assert destination.program.alive
