# SPDX-License-Identifier: GPL-2.0-or-later
"""``system_reset`` of a TD by QMP."""

from __future__ import annotations

import signal

import pytest

from fixtures.findings import shows
from fixtures.guests.qemu_td import QemuTd
from fixtures.qemu.errors import QmpGone
from fixtures.qemu.qmp import Event

MAY_CRASH = pytest.mark.tdx_finding("Q11", qemu=("11.1",), race=True)
"""For each test that uses :func:`reset`."""


def resets(td: QemuTd) -> int:
    """Return the number of RESET events so far."""
    return sum(event["event"] == "RESET" for event in td.events)


def reset(td: QemuTd) -> Event:
    """Reset the TD, and return QEMU's event of it.

    :raises QmpGone: QEMU ended.
    """
    before = resets(td)
    try:
        td.execute("system_reset")
        return td.await_event("RESET", which=lambda _: resets(td) > before)
    except QmpGone:
        with shows("Q11"):
            assert td.wait() != -signal.SIGSEGV, "QEMU ended by SIGSEGV"
        raise
