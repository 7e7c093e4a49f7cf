# SPDX-License-Identifier: GPL-2.0-or-later
"""Moves of TDs between QEMUs that come after one another: what the tests of them have in common."""

from __future__ import annotations

from collections import Counter

from fixtures.agent.client import Worker
from fixtures.guests.moving import Destination, moved
from fixtures.guests.qemu_td import QemuTd
from fixtures.guests.qemu_tds import QemuTds


def moved_once(tds: QemuTds, source: QemuTd, worker: Worker | None = None) -> Destination:
    """Move a TD to a new QEMU, and quit the old one."""
    destination = moved(source, tds.destination(source, worker))
    assert source.quit() == 0
    return destination


def kinds(files: list[str]) -> Counter[str]:
    """Count a QEMU's open files of KVM and of memory, by kind."""
    return Counter(name for name in files if "kvm" in name or "memfd" in name)
