# SPDX-License-Identifier: GPL-2.0-or-later
"""Arguments that another thread changes while KVM reads them: a command works with one value or the other.

What KVM has checked must be what it uses.  A number that it reads twice may differ the second time, and then
KVM works on memory that it never allocated, which a kernel with KASAN shows.  Where KVM is known to have done
that, e2e/test_held_arguments.py does not depend on chance.
"""

from __future__ import annotations

import errno
import itertools
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from e2e.arguments import (
    Ask,
    command,
    data_of,
    data_of_vcpu,
    entries,
    finalize,
    no_capabilities,
    parameters,
    region,
)
from e2e.races import error_of, placed
from fixtures.agent import syscalls
from fixtures.agent.call import Call
from fixtures.agent.client import Worker
from fixtures.host.hkids import Hkids
from fixtures.kvm import abi, build
from fixtures.kvm.abi import PAGE_SIZE, TdxCmdId
from fixtures.kvm.build import Assembly
from fixtures.kvm.memory import Memory

pytestmark = pytest.mark.tdx_needs("misc-cgroup")

FEW, MOST = 4, 500
CHANGES = 512
STAY = 8192
"""Bytes that are copied from one change to the next."""
LARGEST = b"\xff\xff\xff\x7f"
_IOVEC = struct.Struct("<QQ")
_WRITEV, _PREADV, _MEMFD_CREATE = 20, 295, 319  # x86-64


@dataclass(frozen=True)
class Changing:
    """A command with a number in memory that another thread changes, to another value and back.

    :param argument: the memory as it should be.
    :param offset: of the number, in bytes.
    :param other: the other value.
    :param ask: makes the request with the memory at this address.
    :param errors: the errnos of the other value, or of a change that KVM notices.
    """

    prepare: Callable[[Worker], Assembly]
    argument: Callable[[Assembly], bytes]
    offset: int
    other: bytes
    ask: Ask
    errors: frozenset[int]


_CPUID_OF_VM = abi.TdxInitVm.cpuid.offset
_INVALID, _TOO_BIG = frozenset({errno.EINVAL}), frozenset({errno.E2BIG})

CHANGING = {
    "init-vm-nent": Changing(
        build.created, parameters, _CPUID_OF_VM, LARGEST, data_of(TdxCmdId.INIT_VM), _TOO_BIG | _INVALID
    ),
    "init-vm-padding": Changing(
        build.created, parameters, _CPUID_OF_VM + 4, LARGEST, data_of(TdxCmdId.INIT_VM), _INVALID
    ),
    "init-vm-reserved": Changing(
        build.created, parameters, abi.TdxInitVm.reserved.offset, LARGEST, data_of(TdxCmdId.INIT_VM), _INVALID
    ),
    "capabilities-nent": Changing(
        build.created,
        no_capabilities,
        abi.TdxCapabilities.cpuid.offset,
        bytes(4),
        data_of(TdxCmdId.CAPABILITIES),
        _TOO_BIG,
    ),
    "get-cpuid-nent": Changing(
        build.with_vcpus,
        lambda _: entries(abi.KVM_MAX_CPUID_ENTRIES),
        0,
        bytes(4),
        data_of_vcpu(TdxCmdId.GET_CPUID),
        _TOO_BIG,
    ),
    "add-page-number": Changing(
        placed,
        region,
        abi.TdxInitMemRegion.nr_pages.offset,
        LARGEST,
        data_of_vcpu(TdxCmdId.INIT_MEM_REGION),
        _INVALID,
    ),
    "command-number": Changing(build.populated, command, abi.TdxCmd.id.offset, LARGEST, finalize, _INVALID),
    "command-error": Changing(
        build.populated, command, abi.TdxCmd.hw_error.offset, LARGEST, finalize, _INVALID
    ),
}


@contextmanager
def changer(worker: Worker, address: int, right: bytes, other: bytes) -> Iterator[Call[Any]]:
    """A system call that changes a number CHANGES times, each time after STAY bytes were copied.

    It is one preadv(2): of a file that has the values by turns, one for the number, the rest for nobody.
    """
    with ExitStack() as cleanup:
        blocks, iovecs = 2 * STAY, 2 * CHANGES * _IOVEC.size
        # The page at the end has the file's name, which is empty.
        memory = cleanup.enter_context(Memory.map(worker, blocks + iovecs + PAGE_SIZE))
        memory.write(0, other)
        memory.write(STAY, right)
        memory.write(blocks, _IOVEC.pack(memory.address, blocks) * (CHANGES // 2))
        there = memory.address + blocks
        values = worker.call(syscalls.syscall(_MEMFD_CREATE, there + iovecs, 0)).ret
        cleanup.callback(worker.close_fd, values)
        assert worker.call(syscalls.syscall(_WRITEV, values, there, CHANGES // 2)).ret == CHANGES * STAY
        number, rest = len(right), STAY - len(right)
        memory.write(blocks, (_IOVEC.pack(address, number) + _IOVEC.pack(memory.address, rest)) * CHANGES)
        yield syscalls.syscall(_PREADV, values, there, 2 * CHANGES, 0, 0)


def ends(case: Changing, owner: Worker) -> Iterator[int]:
    """Make requests, each of a TD of its own, while their number changes; their errnos, 0 for success."""
    with case.prepare(owner) as td:
        right = case.argument(td)[case.offset :][: len(case.other)]
    with (
        Memory.map(owner, 4 * PAGE_SIZE) as memory,
        changer(owner, memory.address + case.offset, right, case.other) as change,
    ):
        while True:
            with case.prepare(owner) as td:
                memory.write(0, case.argument(td))
                changing = owner.start(change)
                asking = owner.start(case.ask(td, memory.address))
                ended = error_of(owner, asking.result)
                assert changing.result().ret == CHANGES * STAY
            yield ended


def run_changing(case: Changing, owner: Worker, least: int) -> None:
    """Let a number change while it is read, until each of its values has been found, and so many times."""
    found: Counter[int] = Counter()
    for ended in itertools.islice(ends(case, owner), MOST):
        assert ended in {0, *case.errors}, f"errno {ended}; before: {dict(found)}"
        found[ended] += 1
        if found.total() >= least and found[0] and len(found) > 1:
            return
    pytest.fail(f"the number was never seen to change: {dict(found)}")


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "rounds", [pytest.param(FEW, id="few"), pytest.param(MOST, id="many", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("case", CHANGING)
def test_number_that_changes_while_it_is_read_is_one_or_the_other(
    case: str, rounds: int, owner: Worker, hkids: Hkids
) -> None:
    run_changing(CHANGING[case], owner, rounds)
    assert hkids.taken == 0
