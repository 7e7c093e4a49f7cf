# SPDX-License-Identifier: GPL-2.0-or-later
"""Moves of TDs that wait for a lock, and requests that wait for a move.

``tdx_lock_two_vms``, ``tdx_acquire_vm_state_locks`` in arch/x86/kvm/vmx/tdx.c and ``kvm_vcpu_ioctl`` in
virt/kvm/kvm_main.c, of flavour ``proposed``.
"""

from __future__ import annotations

import errno
import signal
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest

from e2e.moves import MOVES, count, counted, destination_of
from e2e.races import error_of, on
from fixtures.agent.call import Call
from fixtures.agent.client import Job, Worker
from fixtures.contracts.answers import refused
from fixtures.contracts.promises import Contract, Refusal
from fixtures.guests import output
from fixtures.guests.launch import Launch
from fixtures.guests.output import INTERRUPT_VECTOR, INTERRUPTS_READY
from fixtures.guests.running import all_begun, begun, halted, once
from fixtures.host.base import TdxHost
from fixtures.host.hkids import Hkids
from fixtures.kvm import build, commands
from fixtures.kvm.abi import KVM_MEM_LOG_DIRTY_PAGES, PAGE_SIZE
from fixtures.kvm.build import Assembly, Region
from fixtures.kvm.errors import errno_of
from fixtures.kvm.exits import InterruptedExit
from fixtures.kvm.late import LateMemory
from fixtures.kvm.memory import Memory
from fixtures.kvm.move import move_from
from fixtures.kvm.params import MemorySlot
from fixtures.softseam.hold import held

pytestmark = [*MOVES, pytest.mark.tdx_host(cpus=2)]

PAGE = Region(0x100000, PAGE_SIZE, b"\x5a" * PAGE_SIZE)
PAIRS, MOST_PAIRS = 4, 12
"""Two VMs are locked in the order of their addresses, of which a test knows nothing."""


def test_mover_that_is_killed_while_it_waits_for_the_source_ends(
    launch: Launch, tdx_host: TdxHost, tdx_cleanup: ExitStack, hkids: Hkids, contract: Contract
) -> None:
    """The source is locked by a command that waits for its vCPU, and goes on to do so."""
    source = launch("interrupt")
    (vcpu,) = source.vcpus
    assert output.numbers(vcpu, 2) == [1, INTERRUPTS_READY]
    mover = tdx_cleanup.enter_context(tdx_host.agent.spawn())
    destination = destination_of(source, tdx_cleanup, mover)
    running = once(vcpu, halted, vcpu.start)
    locking = begun(source.worker, commands.finalize_vm(source.td.fd))
    with source.td.give(mover) as there:
        moving = begun(mover, commands.move_from(destination.td.fd, there.fd))
        assert not moving.done()
        mover.kill()
        assert mover.wait() == -signal.SIGKILL
    assert not locking.done()
    assert isinstance(running.stop(), InterruptedExit)
    assert errno_of(locking.result) == contract.errno(Refusal.FINALIZE_TWICE)
    moved = move_from(source, to=destination_of(source, tdx_cleanup))
    moved.td.signal_msi(INTERRUPT_VECTOR)
    assert output.number_of(moved.vcpus[0].run()) == 2
    assert hkids.taken == 1


def test_mover_that_is_killed_while_it_waits_for_its_own_vm_leaves_the_source_free(
    launch: Launch, tdx_host: TdxHost, hkids: Hkids, contract: Contract
) -> None:
    """The destination is locked by KVM_TDX_INIT_VM, which waits for a vCPU that waits for an INIT.

    The signal ends that, too: the move may get the lock at the last moment, and the TD goes with the process.
    """
    stayed = 0
    for _ in range(MOST_PAIRS):
        with ExitStack() as cleanup:
            source = cleanup.enter_context(launch("count", vcpus=2))
            count(source)
            mover = cleanup.enter_context(tdx_host.agent.spawn())
            destination = destination_of(source, cleanup, mover)
            there = cleanup.enter_context(source.td.give(mover))
            params = source.td.default_params()
            once(destination.vcpus[1], halted, destination.vcpus[1].start)
            locking = begun(mover, commands.init_vm(destination.td.fd, params))
            moving = begun(mover, commands.move_from(destination.td.fd, there.fd))
            assert not locking.done()
            assert not moving.done()
            mover.kill()
            assert mover.wait() == -signal.SIGKILL
            if not hkids.taken:
                with refused(contract, Refusal.VM_DEAD):
                    source.worker.call(commands.finalize_vm(source.td.fd))
                continue
            with refused(contract, Refusal.FINALIZE_TWICE):
                source.worker.call(commands.finalize_vm(source.td.fd))
            moved = move_from(source, to=destination_of(source, cleanup))
            assert count(moved) == counted(2, vcpus=2)
            assert hkids.taken == 1
        stayed += 1
        if stayed == PAIRS:
            return
    raise AssertionError(f"{stayed} of {MOST_PAIRS} TDs stayed")


@pytest.mark.tdx_needs("seamcall-fault-injection")
def test_requests_that_wait_for_a_move_find_the_source_dead(
    launch: Launch, tdx_host: TdxHost, tdx_cleanup: ExitStack
) -> None:
    """The move has the locks that they need, and waits for a page of the source to be made shared.

    That lasts in a SEAMCALL until all of them have begun.
    """
    source = launch("count", regions=[PAGE])
    count(source)
    destination = destination_of(source, tdx_cleanup)
    worker, vm, vcpu = source.worker, source.td.fd, source.vcpus[0].fd
    finalize, nmi = commands.finalize_vm(vm), commands.nmi(vcpu)
    requests: list[Call[Any]] = [finalize, finalize, nmi, nmi, commands.create_vcpu(vm, 1)]
    with held(tdx_host.agent.files, "TDH.MEM.RANGE.BLOCK", cpu=1) as hold:
        sharing = worker.start(on([1], commands.set_memory_attributes(vm, PAGE.gpa, PAGE.size, 0)))
        assert hold.reached(sharing.done)
        moving = begun(worker, on([0], commands.move_from(destination.td.fd, vm)))
        waiting = all_begun(worker, [on([0], request) for request in requests])
        done = [job.done() for job in (moving, *waiting)]
    assert not any(done)
    assert sharing.result().complete
    assert moving.result().complete
    found = [error_of(worker, partial(job.result().__getitem__, 1)) for job in waiting]
    assert found == [errno.EIO] * len(requests)
    assert count(destination) == counted(2)


def move_while(
    host: TdxHost, leaf: str, request: Call[Any], source: Assembly, destination: Assembly
) -> Job[Any]:
    """Begin a move that waits for a request, a SEAMCALL of which lasts meanwhile, and which then succeeds."""
    worker = source.worker
    with held(host.agent.files, leaf, cpu=1) as hold:
        asking = worker.start(on([1], request))
        assert hold.reached(asking.done)
        moving = begun(worker, commands.move_from(destination.td.fd, source.td.fd))
        assert not moving.done()
        # A signal that does not kill does not end it.
        assert moving.interrupt()
    assert asking.result().complete
    return moving


@pytest.mark.tdx_needs("seamcall-fault-injection")
def test_destination_that_becomes_a_td_while_the_move_waits_for_it_stays_that(
    launch: Launch, tdx_host: TdxHost, tdx_cleanup: ExitStack, hkids: Hkids, contract: Contract
) -> None:
    source = launch("count")
    count(source)
    destination = destination_of(source, tdx_cleanup)
    initialize = commands.init_vm(destination.td.fd, source.td.default_params())
    moving = move_while(tdx_host, "TDH.MNG.CREATE", initialize, source, destination)
    assert errno_of(moving.result) == contract.errno(Refusal.MOVE_INITIALIZED)
    assert count(source) == counted(2)
    assert hkids.taken == 2
    destination.close()
    assert hkids.taken == 1


@pytest.mark.tdx_needs("seamcall-fault-injection")
def test_source_that_is_finalized_while_the_move_waits_for_it_is_moved(
    tdx_host: TdxHost, owner: Worker, tdx_cleanup: ExitStack, hkids: Hkids
) -> None:
    source = tdx_cleanup.enter_context(build.populated(owner))
    destination = destination_of(source, tdx_cleanup)
    finalize = commands.finalize_vm(source.td.fd)
    move_while(tdx_host, "TDH.MR.FINALIZE", finalize, source, destination).result()
    source.close()
    assert hkids.taken == 1
    destination.close()
    assert hkids.taken == 0


@pytest.mark.tdx_needs("late-memory")
@pytest.mark.parametrize("whose", ["source", "destination"])
def test_move_waits_for_the_holder_of_a_vms_slots_lock(
    whose: str, launch: Launch, tdx_cleanup: ExitStack
) -> None:
    """KVM_GET_DIRTY_LOG holds it while it writes to memory that comes late."""
    source = launch("count")
    count(source)
    destination = destination_of(source, tdx_cleanup)
    worker = source.worker
    memory = tdx_cleanup.enter_context(Memory.map(worker, PAGE_SIZE))
    slot = MemorySlot(source.free_slot, 0x300000, PAGE_SIZE, memory.address, flags=KVM_MEM_LOG_DIRTY_PAGES)
    for vm in (source, destination):
        vm.td.set_slot(slot)
    log = {"source": source, "destination": destination}[whose].td.fd
    with LateMemory.map(worker, PAGE_SIZE) as late:
        reading = worker.start(commands.get_dirty_log(log, slot.slot, late.address))
        late.wanted()
        moving = begun(worker, commands.move_from(destination.td.fd, source.td.fd))
        assert not moving.done(), "it does not wait"
        late.give(b"")
        reading.result()
        moving.result()
    assert count(destination) == counted(2)
