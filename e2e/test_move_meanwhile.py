# SPDX-License-Identifier: GPL-2.0-or-later
"""Moves of TDs that come in the middle of something else, at a point that is known.

``tdx_check_move`` in arch/x86/kvm/vmx/tdx.c and ``tdp_mmu_check_mirror_root`` in arch/x86/kvm/mmu/tdp_mmu.c
of flavour ``proposed``.
"""

from __future__ import annotations

import errno
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest

from e2e.moves import MOVES, count, counted, destination_of
from e2e.races import on
from fixtures.agent import syscalls
from fixtures.agent.call import Call, batch_call
from fixtures.agent.client import Worker
from fixtures.cgroup import Cgroup
from fixtures.contracts.answers import refused
from fixtures.contracts.promises import Contract, Refusal
from fixtures.errors import HarnessError
from fixtures.guests.launch import Launch
from fixtures.guests.running import asleep, begun, halted, once
from fixtures.host.base import TdxHost
from fixtures.host.hkids import Hkids
from fixtures.kvm import build, commands
from fixtures.kvm.abi import PAGE_SIZE, Request
from fixtures.kvm.build import Region
from fixtures.kvm.errors import KvmError, errno_of
from fixtures.kvm.exits import InterruptedExit
from fixtures.kvm.memory import Memory
from fixtures.kvm.move import make_like, move_from
from fixtures.kvm.params import MemorySlot
from fixtures.softseam import inject
from fixtures.softseam.hold import held
from fixtures.softseam.inject import Injection
from fixtures.softseam.truth import Truth

pytestmark = MOVES

SYS_MINCORE, SYS_MADVISE = 27, 28
MADV_DONTNEED, MADV_NOHUGEPAGE, MADV_POPULATE_WRITE = 4, 15, 23
SHARED = 64 << 20
"""Bytes; in small pages the kernel takes some ten milliseconds to free them."""
HOLE = Region(0x100000, 16 * PAGE_SIZE, bytes(16 * PAGE_SIZE))
ONE_PAGE = Region(0x200000, PAGE_SIZE, bytes(PAGE_SIZE))
PAIRS = 10
ATTEMPTS = 40
PAUSES = (5, 10, 20, 40, 80)
"""Numbers of messages that the moves come later than what they are to meet."""


@pytest.mark.tdx_host(cpus=2)
@pytest.mark.tdx_needs("seamcall-fault-injection")
@pytest.mark.tdx_splat_expected(r"WARNING: arch/x86/kvm/vmx/tdx\.[ch]:\d+")
def test_destination_that_dies_while_the_move_waits_for_it_is_refused(
    launch: Launch, tdx_host: TdxHost, hkids: Hkids, tdx_cleanup: ExitStack, contract: Contract
) -> None:
    """The move waits for KVM_TDX_INIT_VM, which the TDX module fails, and that for a vCPU.

    KVM_RUN of a vCPU that nobody has started sleeps until an INIT comes.
    """
    source = launch("count", vcpus=2)
    count(source)
    destination = destination_of(source, tdx_cleanup)
    worker, vcpu, params = source.worker, destination.vcpus[1], source.td.default_params()
    running = once(vcpu, halted, vcpu.start)
    with inject.armed(tdx_host.agent.files, Injection("TDH.MNG.CREATE", code=inject.TDX_SYS_NOT_READY)):
        dying = worker.start(commands.init_vm(destination.td.fd, params))
        asleep(dying, Request.KVM_MEMORY_ENCRYPT_OP)
        moving = worker.start(commands.move_from(destination.td.fd, source.td.fd))
        asleep(moving, Request.KVM_ENABLE_CAP)
        assert isinstance(running.stop(), InterruptedExit)
        assert errno_of(dying.result) == errno.EIO
        assert errno_of(moving.result) == contract.errno(Refusal.MOVE_DEAD)
    assert count(source) == counted(2, vcpus=2)
    assert hkids.taken == 1


@pytest.mark.tdx_host(cpus=2)
def test_moves_that_cross_wait_for_the_same_vm_first(
    launch: Launch, tdx_cleanup: ExitStack, contract: Contract
) -> None:
    """Both come while both VMs are locked by a KVM_TDX_INIT_VM that waits for a vCPU."""
    source = launch("count", vcpus=2)
    worker, params = source.worker, source.td.default_params()
    pair = [destination_of(source, tdx_cleanup) for _ in range(2)]
    running = [once(vm.vcpus[1], halted, vm.vcpus[1].start) for vm in pair]
    initializing = [begun(worker, commands.init_vm(vm.td.fd, params)) for vm in pair]
    moving = [
        begun(worker, commands.move_from(to.td.fd, of.td.fd))
        for to, of in zip(pair, reversed(pair), strict=True)
    ]
    assert not any(job.done() for job in initializing)
    assert not any(job.done() for job in moving)
    assert all(isinstance(job.stop(), InterruptedExit) for job in running)
    assert [job.result() for job in initializing] == [None, None]
    assert {errno_of(job.result) for job in moving} == {contract.errno(Refusal.MOVE_INITIALIZED)}


@pytest.mark.tdx_host(cpus=2)
def test_destination_whose_memory_is_being_taken_is_refused(
    launch: Launch, tdx_host: TdxHost, tdx_cleanup: ExitStack, contract: Contract
) -> None:
    """The process frees shared memory of the destination, page after page."""
    for pause in PAUSES:
        with ExitStack() as cleanup:
            source = cleanup.enter_context(launch("count"))
            count(source)
            destination = destination_of(source, cleanup)
            memory = [cleanup.enter_context(Memory.map(source.worker, SHARED)) for _ in range(2)]
            for vm, its in zip((source, destination), memory, strict=True):
                vm.td.set_slot(MemorySlot(source.free_slot, 0x40000000, SHARED, its.address))
            attempts = moves_while_memory_goes(
                tdx_host,
                source.worker,
                memory[1],
                commands.move_from(destination.td.fd, source.td.fd),
                pause,
            )
            errors = [error for _, error, _ in attempts]
            moved = 0 in errors
            assert count(destination if moved else source) == counted(2)
        # What was moved is dead, whatever its memory does.
        tried = attempts[: errors.index(0) + 1] if moved else attempts
        inside = [error for first, error, last in tried if last and not first]
        if inside:
            assert set(inside) == {contract.errno(Refusal.MOVE_BUSY)}
            return
    raise AssertionError("no move began while memory was being freed")


def moves_while_memory_goes(
    host: TdxHost, worker: Worker, memory: Memory, move: Call[int], pause: int
) -> list[tuple[bool, int, bool]]:
    """Free memory, and try a move meanwhile.

    :returns: for each attempt, whether the first page was there before it, its errno, and whether the last
        page was there after it.
    """
    for advice in (MADV_NOHUGEPAGE, MADV_POPULATE_WRITE):
        worker.call(syscalls.syscall(SYS_MADVISE, memory.address, SHARED, advice))
    with Memory.map(worker, PAGE_SIZE) as found:

        def there(offset: int) -> list[Call[Any]]:
            asked = syscalls.syscall(SYS_MINCORE, memory.address + offset, PAGE_SIZE, found.address)
            return [asked, syscalls.mem_read(found.address, 1)]

        attempt = [*there(0), move, *there(SHARED - PAGE_SIZE)]
        first, second = host.agent.barrier(2)
        free = syscalls.syscall(SYS_MADVISE, memory.address, SHARED, MADV_DONTNEED)
        freeing = worker.start(batch_call([syscalls.barrier(first), free]))
        trying = worker.start(
            batch_call(
                [syscalls.barrier(second), *[syscalls.ping()] * pause, *attempt * ATTEMPTS], go_on=True
            )
        )
        assert freeing.result().results[-1].ret == 0
        results = trying.result().results[1 + pause :]
    return [
        (before == b"\1", moved.errno if isinstance(moved, KvmError) else 0, after == b"\1")
        for _, before, moved, _, after in zip(*[iter(results)] * len(attempt), strict=True)
    ]


@pytest.mark.tdx_host(cpus=3)
@pytest.mark.tdx_needs("seamcall-fault-injection")
@pytest.mark.parametrize("first", ["destination", "source"])
def test_move_while_memory_is_taken_from_the_guest_is_refused(
    first: str,
    launch: Launch,
    tdx_host: TdxHost,
    tdx_cgroup: Cgroup,
    tdx_cleanup: ExitStack,
    hkids: Hkids,
    contract: Contract,
) -> None:
    """A hole is punched, in one VM after the other: the last that linked the memory comes first.

    The move waits for an mmu_lock that the hole gives back between two pages.
    """
    old, new = (tdx_cgroup.child(name) for name in ("old", "new"))
    owner, mover = (
        tdx_cleanup.enter_context(tdx_host.agent.spawn(cgroup=group.path)) for group in (old, new)
    )
    source = launch("count", regions=[HOLE], owner=owner)
    count(source)
    destination = destination_of(source, tdx_cleanup, mover)
    if first == "source":
        source = move_from(source, to=destination_of(source, tdx_cleanup, owner))
    there = tdx_cleanup.enter_context(source.td.give(mover))
    hole = commands.punch_hole(source.memfds[-1].fd, HOLE.size)
    with held(tdx_host.agent.files, "TDH.MEM.PAGE.REMOVE", cpu=1) as hold:
        punching = owner.start(on([1], hole))
        assert hold.reached(punching.done)
        moving = begun(mover, on([2], commands.move_from(destination.td.fd, there.fd)))
        assert not moving.done()
    assert punching.result().complete
    with refused(contract, Refusal.MOVE_BUSY):
        moving.result()[1]
    assert [group.current for group in (old, new)] == [1, 0]
    assert count(source) == counted(2)
    assert source.vcpus[0].pre_fault(HOLE.gpa, PAGE_SIZE) == 0
    assert count(move_from(source, to=destination)) == counted(3)
    assert hkids.taken == 1


@pytest.mark.tdx_host(cpus=4)
@pytest.mark.tdx_needs("seamcall-fault-injection", "ground-truth")
def test_memory_that_is_closed_while_the_move_waits_is_taken_from_the_td(
    launch: Launch, tdx_host: TdxHost, truth: Truth, contract: Contract
) -> None:
    """The move has compared both VMs' memory, and waits for the mmu_lock of a hole in the source's.

    By the order of the VMs' addresses the hole may come to the destination first, and refuse the move: rounds
    alternate which of the two is made first.
    """
    for turn in range(PAIRS):
        with ExitStack() as cleanup:
            first = cleanup.enter_context(launch("count", regions=[ONE_PAGE, HOLE]))
            count(first)
            worker = first.worker
            pair = [cleanup.enter_context(build.created(worker)) for _ in range(2)]
            destination, source = pair if turn % 2 else reversed(pair)
            # The hole comes to the last that linked the memory first.
            for vm in (destination, source):
                make_like(first, vm)
            move_from(first, to=source)
            page = source.memfds[-2]
            (td,) = truth.tds()
            before = truth.state().pages_of(td.tdr)["reg"]
            closed = destination.memfds[-1]
            with held(tdx_host.agent.files, "TDH.MEM.PAGE.REMOVE", cpu=1) as hold:
                punching = worker.start(on([1], commands.punch_hole(page.fd, page.size)))
                assert hold.reached(punching.done)
                moving = begun(worker, on([2], commands.move_from(destination.td.fd, source.td.fd)))
                closed.closed = True
                closing = begun(worker, on([3], syscalls.close(closed.fd)))
                assert not moving.done()
            assert punching.result().complete
            moved = errno_of(partial(moving.result().__getitem__, 1))
            assert closing.result().complete
            assert moved in (0, contract.errno(Refusal.MOVE_BUSY))
            assert count(source if moved else destination) == counted(2)
            if not moved:
                gone = ONE_PAGE.size + HOLE.size
                assert truth.state().pages_of(td.tdr)["reg"] == before - gone // PAGE_SIZE
                return
    raise HarnessError(f"the hole came to the destination before the move, {PAIRS} times")
