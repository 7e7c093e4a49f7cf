# SPDX-License-Identifier: GPL-2.0-or-later
"""Moves of TDs that count: what the tests of KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM have in common."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import pytest

from fixtures.agent.client import Worker
from fixtures.guests import output
from fixtures.guests.output import COMMON
from fixtures.kvm.build import Assembly
from fixtures.kvm.move import prepare_destination
from fixtures.kvm.td import Td

MOVES = [
    pytest.mark.tdx_offers("move"),
    pytest.mark.usefixtures("td_move"),
    pytest.mark.tdx_needs("misc-cgroup"),
]
"""Marks of a file whose tests move TDs between VMs."""


def destination_of(
    source: Assembly,
    cleanup: ExitStack,
    worker: Worker | None = None,
    *,
    begin: Callable[[Td], object] = lambda td: None,
) -> Assembly:
    """A destination for a TD; the parameters are those of :func:`prepare_destination`."""
    return cleanup.enter_context(prepare_destination(source, worker, begin=begin))


def count(built: Assembly) -> list[int]:
    """Let each vCPU count once in its own and once in common memory, and complete its exit for a move."""
    told = []
    for vcpu in built.vcpus:
        told += output.numbers(vcpu, 2)
        vcpu.complete()
    return told


def counted(step: int, vcpus: int = 1) -> list[int]:
    """The numbers that the *step*-th call of :func:`count` returns."""
    return [
        value
        for index in range(vcpus)
        for value in (index << 24 | step, COMMON | ((step - 1) * vcpus + index + 1))
    ]
