# SPDX-License-Identifier: GPL-2.0-or-later
"""Moves of TDs against each other and against all else that a VM can be asked meanwhile; and many moves."""

from __future__ import annotations

import errno
import itertools
import signal
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest

from e2e.moves import MOVES, count, counted, destination_of
from fixtures.agent import syscalls
from fixtures.agent.call import BarrierSlot, BatchResult, Call, batch_call
from fixtures.agent.client import Job, Worker
from fixtures.contracts.promises import Contract, Promise, Refusal
from fixtures.guests.launch import Launch
from fixtures.host.base import TdxHost
from fixtures.host.hkids import Hkids
from fixtures.host.resources import MEMINFO, meminfo
from fixtures.kvm import abi, build, commands
from fixtures.kvm.abi import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, PAGE_SIZE, Request
from fixtures.kvm.build import Assembly, Region
from fixtures.kvm.errors import KvmError, errno_of
from fixtures.kvm.move import make_like, move_from, prepare_destination
from fixtures.kvm.params import MemorySlot
from fixtures.softseam.truth import Truth

pytestmark = MOVES

SYS_KILL = 62
LINKS = 4
THOUSAND = pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])
TIMES, WARM_UP = 10_000, 500
GROWTH_KIB = 1024
"""Slabs vary by some hundred KiB; if each move lost a single object of 128 bytes, it would be 1,200."""


def unreclaimable(host: TdxHost) -> int:
    """KiB of kernel memory in slabs that cannot be reclaimed."""
    return meminfo(host.agent.files.read_text(MEMINFO))["SUnreclaim"]


@pytest.mark.tdx_host(cpus=2)
def test_of_two_destinations_one_gets_the_td(
    launch: Launch, tdx_host: TdxHost, hkids: Hkids, tdx_cleanup: ExitStack, contract: Contract
) -> None:
    for _ in range(10):
        source = launch("count")
        count(source)
        destinations = [destination_of(source, tdx_cleanup) for _ in range(2)]
        jobs = [
            destination.worker.start(commands.move_from(destination.td.fd, source.td.fd, barrier=place))
            for destination, place in zip(destinations, tdx_host.agent.barrier(2), strict=True)
        ]
        ended = [errno_of(job.result) for job in jobs]
        assert sorted(ended)[0] == 0
        assert sorted(ended)[1] in (contract.errno(Refusal.MOVE_BUSY), contract.errno(Refusal.MOVE_DEAD))
        assert count(destinations[ended.index(0)]) == counted(2)
        assert hkids.taken == 1
        for built in (source, *destinations):
            built.close()


@pytest.mark.tdx_host(cpus=2)
def test_moves_that_cross_do_not_stand_in_each_others_way(
    launch: Launch, tdx_host: TdxHost, hkids: Hkids, tdx_cleanup: ExitStack, contract: Contract
) -> None:
    """Moves A to B and B to A at once: neither can be a destination, and locks are taken in one order."""
    for _ in range(10):
        pair = [launch("count") for _ in range(2)]
        jobs = [
            built.worker.start(commands.move_from(built.td.fd, other.td.fd, barrier=place))
            for built, other, place in zip(pair, reversed(pair), tdx_host.agent.barrier(2), strict=True)
        ]
        assert {errno_of(job.result) for job in jobs} <= {
            contract.errno(Refusal.MOVE_INITIALIZED),
            contract.errno(Refusal.MOVE_BUSY),
        }
        assert [count(built) for built in pair] == [counted(1), counted(1)]
        assert hkids.taken == 2
        for built in pair:
            built.close()


@pytest.mark.tdx_host(cpus=2)
@pytest.mark.parametrize("in_destination", [True, False], ids=["destination", "source"])
def test_vcpu_that_is_created_meanwhile_is_there_or_not(
    in_destination: bool,
    launch: Launch,
    owner: Worker,
    tdx_host: TdxHost,
    hkids: Hkids,
    contract: Contract,
) -> None:
    """In the destination it comes too late, or is one too many for the move; in the source too late.

    Rounds alternate which VM is made first, as locks are taken in the order of addresses.
    """
    busy, late = contract.errno(Refusal.MOVE_BUSY), contract.errno(Refusal.VCPU_AFTER_FINALIZE)
    wanted = {(0, late), (contract.errno(Refusal.MOVE_OTHER_VCPUS), 0), (busy, 0)}
    if not in_destination:
        wanted = {(0, late), (busy, late)}
    for turn in range(10):
        before = build.created(owner)
        source = launch("count")
        after = build.created(owner)
        count(source)
        destination, unused = (before, after) if turn % 2 else (after, before)
        unused.close()
        make_like(source, destination)
        first, second = tdx_host.agent.barrier(2)
        moving = destination.worker.start(commands.move_from(destination.td.fd, source.td.fd, barrier=first))
        vm = destination if in_destination else source
        creating = vm.worker.start(commands.create_vcpu(vm.td.fd, 1, barrier=second))
        moved, created = errno_of(moving.result), errno_of(creating.result)
        assert (moved, created) in wanted
        assert count(source if moved else destination) == counted(2)
        assert hkids.taken == 1
        source.close()
        destination.close()
        if not created:
            vm.worker.close_fd(creating.result())


@pytest.mark.tdx_host(cpus=2)
@pytest.mark.parametrize("rounds", [10, THOUSAND])
def test_destination_that_dies_while_the_move_waits_for_it_gets_nothing(
    rounds: int, owner: Worker, tdx_host: TdxHost, hkids: Hkids, tdx_cleanup: ExitStack, contract: Contract
) -> None:
    """The TD in the middle moves on, and its VM is dead when another would come.  Both have no memory."""
    for _ in range(rounds):
        with ExitStack() as cleanup:
            bare = [cleanup.enter_context(build.with_vcpus(owner)).finalize() for _ in range(2)]
            waiting, leaving = bare
            left = destination_of(leaving, cleanup)
            first, second = tdx_host.agent.barrier(2)
            moves = [
                owner.start(commands.move_from(left.td.fd, leaving.td.fd, barrier=first)),
                owner.start(commands.move_from(leaving.td.fd, waiting.td.fd, barrier=second)),
            ]
            there, gone = (errno_of(move.result) for move in moves)
            assert there in (0, contract.errno(Refusal.MOVE_BUSY))
            assert gone in {
                contract.errno(refusal)
                for refusal in (Refusal.MOVE_DEAD, Refusal.MOVE_INITIALIZED, Refusal.MOVE_BUSY)
            }
            move_from(waiting, to=destination_of(waiting, cleanup))
            assert hkids.taken == 2
        assert hkids.taken == 0


@pytest.mark.tdx_host(cpus=2)
@pytest.mark.tdx_needs("ground-truth")
@pytest.mark.parametrize("first", ["destination", "source"])
@pytest.mark.parametrize("rounds", [2, THOUSAND])
def test_memory_that_is_taken_meanwhile_is_in_neither(
    rounds: int,
    first: str,
    launch: Launch,
    tdx_host: TdxHost,
    hkids: Hkids,
    truth: Truth,
    contract: Contract,
) -> None:
    """A hole is punched into memory that the guest has, but does not use.

    KVM takes it from one VM after the other: the last that linked it comes first.  Between the two comes a
    third, which takes long, with slots for each page.  The move takes longer still until it moves anything,
    so that the hole begins later, by another time in each round.
    """
    spare = Region(0x100000, 64 * PAGE_SIZE, data=bytes(64 * PAGE_SIZE))
    for turn in range(rounds):
        with ExitStack() as cleanup:
            source = cleanup.enter_context(launch("count", regions=[spare]))
            count(source)
            slot, memfd = source.placed[-1].slot, source.placed[-1].memfd.fd
            early = destination_of(source, cleanup)
            links = bystander(source.worker, slot, memfd, cleanup)
            late = destination_of(source, cleanup)
            if first == "source":
                source, destination = move_from(source, to=late), early
            else:
                destination = late
            memfd = source.placed[-1].memfd.fd
            (td,) = truth.tds()
            before = truth.state().pages_of(td.tdr)["reg"]
            places = tdx_host.agent.barrier(2)
            pause = [syscalls.ping()] * (17 * (turn + 1) % 60)
            moving = destination.worker.start(
                commands.move_from(destination.td.fd, source.td.fd, barrier=places[0])
            )
            hole = syscalls.fallocate(memfd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 0, spare.size)
            punching = source.worker.start(batch_call([syscalls.barrier(places[1]), *pause, hole]))
            moved = errno_of(moving.result)
            assert moved in (0, contract.errno(Refusal.MOVE_BUSY))
            punched = punching.result().results[-1]
            # A hole that comes after the move finds that the memory is not the source's any more.
            assert punched.ret == 0 or (not moved and punched.errno == contract.errno(Refusal.LINK_HOLE))
            assert truth.state().pages_of(td.tdr)["reg"] == before - (0 if punched.ret else 64)
            assert count(source if moved else destination) == counted(2)
            source.worker.batch([syscalls.close(link) for link in links])
        assert hkids.taken == 0


def bystander(worker: Worker, slot: MemorySlot, memfd: int, cleanup: ExitStack) -> list[int]:
    """Link a guest_memfd to a VM, LINKS times, each with a memory slot for each page; returns the links."""
    vm = cleanup.enter_context(build.created(worker)).td.fd
    links = [worker.call(commands.link_guest_memfd(vm, memfd)) for _ in range(LINKS)]
    numbers = itertools.count()
    worker.batch(
        [
            commands.set_slot(
                vm,
                replace(
                    slot,
                    slot=(number := next(numbers)),
                    gpa=number * PAGE_SIZE,
                    size=PAGE_SIZE,
                    guest_memfd=link,
                    guest_memfd_offset=at,
                ),
            )
            for link in links
            for at in range(0, slot.size, PAGE_SIZE)
        ]
    )
    return links


@pytest.mark.tdx_host(cpus=2)
def test_source_that_is_killed_meanwhile_is_moved_or_gone(
    launch: Launch, tdx_host: TdxHost, hkids: Hkids, tdx_cleanup: ExitStack, contract: Contract
) -> None:
    """The end of its process closes the guest_memfds, which frees memory that is not the destination's."""
    new = tdx_cleanup.enter_context(tdx_host.agent.spawn())
    for _ in range(5):
        old = tdx_cleanup.enter_context(tdx_host.agent.spawn())
        source = launch("count", owner=old)
        count(source)
        destination = destination_of(source, tdx_cleanup, new)
        fd = old.send_fd(source.td.fd, new)
        first, second = tdx_host.agent.barrier(2)
        moving = new.start(commands.move_from(destination.td.fd, fd, barrier=first))
        new.start(batch_call([syscalls.barrier(second), syscalls.syscall(SYS_KILL, old.pid, signal.SIGKILL)]))
        old.wait()
        moved = errno_of(moving.result)
        assert moved in (0, contract.errno(Refusal.MOVE_OTHER_MEMORY), contract.errno(Refusal.MOVE_BUSY))
        if not moved:
            assert count(destination) == counted(2)
        new.close_fd(fd)
        assert hkids.taken == (0 if moved else 1)
        destination.close()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.tdx_needs("ground-truth")
def test_ten_thousand_moves_leave_nothing(
    launch: Launch, hkids: Hkids, tdx_host: TdxHost, truth: Truth
) -> None:
    built = launch("count")

    def move(times: int) -> Assembly:
        now = built
        for _ in range(times):
            destination = prepare_destination(now)
            move_from(now, to=destination)
            now.close()
            now = destination
        return now

    built = move(WARM_UP)
    pages, slab = truth.state().pages, unreclaimable(tdx_host)
    for round_ in range(10):
        built = move((TIMES - WARM_UP) // 10)
        assert count(built) == counted(round_ + 1)
    assert truth.state().pages == pages
    assert unreclaimable(tdx_host) - slab < GROWTH_KIB
    assert hkids.taken == 1


# what else the two VMs are asked meanwhile

SPARE = Region(0x100000, 4 * PAGE_SIZE)
BOTHERS: dict[str, Callable[[Assembly], list[Call[Any]]]] = {
    "interrupts": lambda vm: [commands.signal_msi(vm.td.fd, vector) for vector in (0x41, 0x82)],
    "slots": lambda vm: [
        commands.set_slot(vm.td.fd, MemorySlot(vm.placed[-1].slot.slot, SPARE.gpa, 0)),
        commands.set_slot(vm.td.fd, vm.placed[-1].slot),
    ],
    "attributes": lambda vm: [
        commands.set_memory_attributes(vm.td.fd, SPARE.gpa, SPARE.size, attributes)
        for attributes in (0, abi.KVM_MEMORY_ATTRIBUTE_PRIVATE)
    ],
    "commands": lambda vm: [
        commands.capabilities(vm.td.fd),
        commands.finalize_vm(vm.td.fd),
        commands.init_vcpu(vm.vcpus[0].fd),
        commands.init_mem_region(vm.vcpus[0].fd, bytes(PAGE_SIZE), SPARE.gpa),
        commands.get_cpuid(vm.vcpus[0].fd),
    ],
    "runs": lambda vm: [commands.ioctl(vm.vcpus[0].fd, Request.KVM_RUN)],
}
"""What another thread asks one of the two VMs; a run ends before the guest is entered."""
ENDS = {
    "interrupts": {0, errno.EIO},
    "slots": {0, errno.EIO},
    "attributes": {0, errno.EIO},
    "commands": {0, errno.EIO, errno.EINVAL},
    "runs": {errno.EINTR, errno.EIO},
}
"""Errnos of what a source is asked: EIO once it is dead, EINVAL for commands that a finalized TD refuses."""
OF_A_DESTINATION = {"runs": {errno.EINTR, errno.EINVAL}}
"""Where those of a destination differ: it cannot run before the move."""


def bother(vm: Assembly, kinds: Sequence[str], place: BarrierSlot) -> Job[BatchResult]:
    """Have another thread of a VM's process ask it for things again and again, from the barrier on."""
    calls = [call for kind in kinds for call in BOTHERS[kind](vm)]
    return vm.worker.start(batch_call([syscalls.barrier(place), *calls * 20], go_on=True))


def ends(vm: Assembly, kinds: Sequence[str], job: Job[BatchResult]) -> dict[str, set[int]]:
    """The errnos of what :func:`bother` asked for, by kind."""
    names = [kind for kind in kinds for _ in BOTHERS[kind](vm)] * 20
    found: dict[str, set[int]] = {kind: set() for kind in kinds}
    for name, one in zip(names, job.result().results[1:], strict=True):
        found[name].add(one.errno if isinstance(one, KvmError) else 0)
    return found


@pytest.mark.tdx_host(cpus=2)
@pytest.mark.parametrize(
    ("kinds", "rounds"),
    [
        pytest.param(tuple(BOTHERS), 2, id="all"),
        *(
            pytest.param((kind,), 1000, id=kind, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])
            for kind in BOTHERS
        ),
    ],
)
@pytest.mark.parametrize("whom", ["source", "destination"])
def test_whatever_a_vm_is_asked_meanwhile_the_td_is_whole(
    whom: str,
    kinds: tuple[str, ...],
    rounds: int,
    launch: Launch,
    tdx_host: TdxHost,
    hkids: Hkids,
    contract: Contract,
) -> None:
    """A source must not begin a TD of its own either, with another HKID."""
    for _ in range(rounds):
        with ExitStack() as cleanup:
            source = cleanup.enter_context(launch("count", regions=[SPARE]))
            count(source)
            destination = destination_of(source, cleanup)
            vm = {"source": source, "destination": destination}[whom]
            vm.vcpus[0].run_page().write(abi.RUN_IMMEDIATE_EXIT, b"\1")
            params = source.td.default_params()
            first, second, third = tdx_host.agent.barrier(3)
            job = bother(vm, kinds, first)
            again = source.worker.start(
                batch_call(
                    [syscalls.barrier(second), *[commands.init_vm(source.td.fd, params)] * 40], go_on=True
                )
            )
            moving = destination.worker.start(
                commands.move_from(destination.td.fd, source.td.fd, barrier=third)
            )
            moved = errno_of(moving.result)
            assert moved in (
                0,
                contract.errno(Refusal.MOVE_BUSY),
                contract.errno(Refusal.MOVE_OTHER_MEMORY),
            )
            for kind, found in ends(vm, kinds, job).items():
                other = OF_A_DESTINATION if whom == "destination" else {}
                assert found <= ENDS[kind] | other.get(kind, set()), kind
            initialized = {
                one.errno if isinstance(one, KvmError) else 0 for one in again.result().results[1:]
            }
            assert initialized <= {contract.errno(Promise.INIT_TWICE), contract.errno(Refusal.VM_DEAD)}
            assert hkids.taken == 1
            vm.vcpus[0].run_page().write(abi.RUN_IMMEDIATE_EXIT, b"\0")
            if moved:
                move_from(source, to=destination)
            assert count(destination) == counted(2)
        assert hkids.taken == 0
