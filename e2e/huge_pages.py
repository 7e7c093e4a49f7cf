# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory of a host that KVM can map with huge pages, where the host has some."""

from __future__ import annotations

from contextlib import ExitStack

from fixtures.agent.client import Worker
from fixtures.kvm.memory import Memory

TWO_MIB = 2 << 20


def two_huge_pages(worker: Worker, cleanup: ExitStack) -> Memory:
    """Map 4 MiB that begin at a boundary of huge pages: Linux aligns what is as large as one."""
    memory = cleanup.enter_context(Memory.map(worker, 2 * TWO_MIB))
    assert memory.address % TWO_MIB == 0
    return memory
