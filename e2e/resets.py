# SPDX-License-Identifier: GPL-2.0-or-later
"""Resets of a TD, by QMP or by the guest; QEMU may crash in each (finding Q11)."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from fixtures.errors import DeadlineExceeded
from fixtures.findings import shows
from fixtures.guests.qemu_td import QemuTd
from fixtures.qemu.errors import QmpGone, ended_by_itself
from fixtures.qemu.qmp import Event

MAY_CRASH = pytest.mark.tdx_finding("Q11", qemu=("11.1",), race=True)
"""For each test that uses :func:`resetting`."""


def resets(td: QemuTd) -> int:
    """Return the number of RESET events so far."""
    return sum(event["event"] == "RESET" for event in td.events)


def reset(td: QemuTd) -> Event:
    """Reset the TD, and return QEMU's event of it.

    :raises QmpGone: QEMU ended.
    """
    before = resets(td)
    td.execute("system_reset")
    return td.await_event("RESET", which=lambda _: resets(td) > before)


@contextmanager
def resetting(td: QemuTd) -> Iterator[None]:
    """A block in which the TD is reset, which it should outlive, and that waits until it is.

    :raises AssertionError: QEMU ended by itself.
    """
    try:
        yield
    except (QmpGone, DeadlineExceeded) as error:
        # A QEMU that lives on has not crashed: the block's own error stands.
        with suppress(DeadlineExceeded):
            status = td.wait()
            with shows("Q11"):
                assert status != -signal.SIGSEGV, "QEMU ended by SIGSEGV"
            if ended_by_itself(status):
                raise AssertionError(f"QEMU ended with status {status}: {td.output[-200:]}") from error
        raise
