# SPDX-License-Identifier: GPL-2.0-or-later
"""Resets of a TD, by QMP or by the guest; a stock QEMU may crash in each (finding Q11)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

import pytest

from fixtures.errors import DeadlineExceeded
from fixtures.findings import shows
from fixtures.guests.qemu_td import QemuTd
from fixtures.kvm.abi import PAGE_SIZE
from fixtures.qemu.errors import QmpGone, ended_by_itself
from fixtures.qemu.qmp import Event

MAY_CRASH = pytest.mark.tdx_finding("Q11", qemu=("11.1",), race=True)
"""For each test that uses :func:`resetting_stock`."""

IMMEDIATE_EXIT = 1
"""Offset in struct kvm_run."""

_SEGFAULT = re.compile(r"segfault at (?P<address>[0-9a-f]+) ip .* error (?P<error>[0-9a-f]+)")
_WRITE = 1 << 1
"""A bit of the CPU's error code of a page fault."""


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


def stores_that_fault(lines: Iterable[str]) -> list[int]:
    """Return the addresses of those segmentation faults in a kernel log that are stores."""
    found = filter(None, map(_SEGFAULT.search, lines))
    return [int(fault["address"], 16) for fault in found if int(fault["error"], 16) & _WRITE]


class KickCrash(AssertionError):
    """QEMU crashed as it kicked a vCPU: finding Q11."""


@contextmanager
def resetting(td: QemuTd) -> Iterator[None]:
    """A block in which the TD is reset, which it should outlive, and that waits until it is.

    :raises KickCrash: QEMU ended by a store to ``kvm_run->immediate_exit``.
    :raises AssertionError: QEMU ended by itself.
    """
    files = td.program.worker.agent.files
    before = files.kmsg()[-1].sequence
    try:
        yield
    except (QmpGone, DeadlineExceeded) as error:
        # A QEMU that lives on has not crashed: the block's own error stands.
        with suppress(DeadlineExceeded):
            status = td.wait()
            stores = stores_that_fault(message.text for message in files.kmsg(before))
            if any(address % PAGE_SIZE == IMMEDIATE_EXIT for address in stores):
                raise KickCrash(f"QEMU ended with status {status} at kvm_run->immediate_exit") from error
            if ended_by_itself(status):
                raise AssertionError(f"QEMU ended with status {status}: {td.output[-200:]}") from error
        raise


@contextmanager
def resetting_stock(td: QemuTd) -> Iterator[None]:
    """The same for a stock QEMU, which may crash by finding Q11."""
    with shows("Q11", KickCrash), resetting(td):
        yield
