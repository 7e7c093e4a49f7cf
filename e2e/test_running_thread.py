# SPDX-License-Identifier: GPL-2.0-or-later
"""What a thread has of its CPU and gets back after KVM_RUN of a TD, which loses it (TDH.VP.ENTER)."""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from typing import Any

import pytest

from fixtures.agent import syscalls
from fixtures.agent.call import Call, Earlier
from fixtures.agent.client import Worker
from fixtures.guests.launch import Launch
from fixtures.guests.output import VALUE
from fixtures.kvm import commands
from fixtures.kvm.abi import PAGE_SIZE
from fixtures.kvm.exits import Exit
from fixtures.kvm.memory import Memory

# x86-64
SYS_WRITE, SYS_ARCH_PRCTL, SYS_PERF_EVENT_OPEN, SYS_PKEY_MPROTECT, SYS_PKEY_ALLOC = 1, 158, 298, 329, 330
SET_GS, GET_GS = 0x1001, 0x1004
WATCHED = 1024
_ATTRIBUTES = struct.Struct("<II5QIIQQ")
"""``struct perf_event_attr`` up to ``bp_len`` (PERF_ATTR_SIZE_VER1)."""
_BREAKPOINT, _ON_WRITE, _NOT_IN_THE_KERNEL = 5, 2, 1 << 5


@dataclass(frozen=True)
class Runs:
    """A request that runs a TD's vCPU, and memory for what is done around it."""

    worker: Worker
    run: Call[list[Exit]]
    memory: Memory


@pytest.fixture
def td(launch: Launch) -> Runs:
    """A TD that counts."""
    built = launch("count")
    (vcpu,), worker = built.vcpus, built.worker
    run = commands.run_port(vcpu.fd, vcpu.run_page().address, VALUE, 2)
    return Runs(worker, run, Memory.map(worker, PAGE_SIZE))


def test_gs_base_whatever_it_was_when_the_vcpu_ran_first(td: Runs) -> None:
    """``tdx_prepare_switch_to_host``."""
    for base in (0x1234000, 0x5678000, 0):
        put, got = (
            syscalls.syscall(SYS_ARCH_PRCTL, *what) for what in ((SET_GS, base), (GET_GS, td.memory.address))
        )
        td.worker.batch([put, td.run, got])
        assert hex(int.from_bytes(td.memory.read(0, 8), "little")) == hex(base)


def test_protection_keys_of_now(td: Runs) -> None:
    """``kvm_load_host_pkru``; not those that it had when the vCPU ran first."""
    _, pipe = td.worker.call(syscalls.pipe())
    write = syscalls.syscall(SYS_WRITE, pipe, td.memory.address, 1)
    give_another = [
        # The thread may use it, as it may no other than the first until then.
        syscalls.syscall(SYS_PKEY_ALLOC, 0, 0),
        syscalls.syscall(SYS_PKEY_MPROTECT, td.memory.address, PAGE_SIZE, mmap.PROT_READ, Earlier(3)),
    ]
    steps: list[Call[Any]] = [syscalls.affinity([1]), td.run, write, *give_another, write, td.run, write]
    done = td.worker.batch(steps, go_on=True)
    assert [done[index].errno for index in (2, 3, 4, 5, 7)] == [0, 0, 0, 0, 0]


def test_watchpoints(td: Runs) -> None:
    """``hw_breakpoint_restore``."""
    watched = td.memory.address + WATCHED
    td.memory.write(
        0,
        _ATTRIBUTES.pack(
            *(_BREAKPOINT, _ATTRIBUTES.size),
            *(0, 0, 0, 0, _NOT_IN_THE_KERNEL),
            *(0, _ON_WRITE, watched, 8),
        ),
    )
    begin = syscalls.syscall(SYS_PERF_EVENT_OPEN, td.memory.address, 0, -1, -1, 0)
    look: list[Call[Any]] = [syscalls.mem_write(watched, bytes(8)), syscalls.read(Earlier(0), 8)]
    done = td.worker.batch([begin, *look, td.run, *look, *look])
    td.worker.close_fd(done[0].ret)
    seen = [int.from_bytes(done[index], "little") for index in (2, 5, 7)]
    assert 0 < seen[0] < seen[1] < seen[2]
