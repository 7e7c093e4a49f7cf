# SPDX-License-Identifier: GPL-2.0-or-later
"""Moves of TDs between QEMUs: what the tests of them have in common."""

from __future__ import annotations

from collections import Counter

from fixtures.agent.client import Worker
from fixtures.deadline import until
from fixtures.guests.moving import Destination, moved
from fixtures.guests.qemu_td import QemuTd
from fixtures.guests.qemu_tds import QemuTds
from fixtures.guests.typed import counts


def moved_once(tds: QemuTds, source: QemuTd, worker: Worker | None = None) -> Destination:
    """Move a TD to a new QEMU, and quit the old one."""
    destination = moved(source, tds.destination(source, worker))
    assert source.quit() == 0
    return destination


def kinds(files: list[str]) -> Counter[str]:
    """Count a QEMU's open files of KVM and of memory, by kind."""
    return Counter(name for name in files if "kvm" in name or "memfd" in name)


def assert_goes_on(td: QemuTd, step: int, *, stopped: bool) -> None:
    """Require that the TD counts on, and that the migration stopped it for a moment, or never."""
    until(lambda: td.status != "finish-migrate", "QEMU to decide who has the guest")
    assert td.status == "running"
    assert counts(td) == [step, step]
    seen = [event["event"] for event in td.events if event["event"] in ("STOP", "RESUME")]
    assert seen == (["STOP", "RESUME"] if stopped else [])
