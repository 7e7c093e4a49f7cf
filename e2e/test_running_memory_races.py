# SPDX-License-Identifier: GPL-2.0-or-later
"""A running TD's memory while other threads of its process change slots and attributes, and free pages."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from threading import Event
from typing import Any

import pytest

from e2e.findings import F13
from e2e.races import on
from fixtures.agent import syscalls
from fixtures.agent.call import Call, batch_call
from fixtures.agent.client import REQUEST_SECONDS, Worker
from fixtures.deadline import Deadline, until
from fixtures.errors import DeadlineExceeded
from fixtures.findings import shows
from fixtures.guests import output
from fixtures.guests.launch import Launch
from fixtures.guests.running import interrupted
from fixtures.host.base import TdxHost
from fixtures.host.park import parked
from fixtures.kvm import commands
from fixtures.kvm.abi import (
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
    PAGE_SIZE,
)
from fixtures.kvm.build import Assembly, Region
from fixtures.kvm.errors import KvmError
from fixtures.kvm.exits import Exit, InterruptedExit, MapGpaExit, MemoryFaultExit
from fixtures.kvm.memory import Memory
from fixtures.kvm.params import MemorySlot
from fixtures.kvm.vcpu import RunJob, Vcpu
from fixtures.softseam.inject import Injection, armed, still_armed
from fixtures.softseam.truth import Truth

ACCEPTED, ALREADY_ACCEPTED, BUSY = 0, 0xB0A, 0x80000200
TOUCHED = 0x100000
"""The page that the payload ``touch`` accepts."""
CONVERTED = 0x40000000
"""The memory of the payload ``convert``: four pages for each vCPU."""
WRONG = 1 << 31
"""Set in a number of ``convert`` that is the step at which something was wrong; it stops then."""
ELSEWHERE = 0x80000000
SHARED_ROUNDS = 200
SOME_TRIES, MANY_TRIES = 20, 1 << 31
NX_HUGE_PAGES = "/sys/module/kvm/parameters/nx_huge_pages"
"""A change makes the page tables of all VMs obsolete (``kvm_mmu_zap_all_fast``)."""
PRE_FAULT_SECONDS = 4.0
"""Limit for 100 pre-faults of one page, which take a few ms."""
CONVERSIONS = 100
ENTRY_SECONDS = 4.0
"""Limit for a conversion, which takes a few ms."""
LONG = pytest.mark.slow, pytest.mark.timeout(900)


@contextmanager
def again_and_again(worker: Worker, *calls: Call[Any]) -> Iterator[list[Any]]:
    """Execute calls in a thread of the worker, in order, again and again while the block runs.

    :returns: their results, in the order in which they ended; those of failed ioctls are exceptions.
    """
    results: list[Any] = []
    enough = Event()

    def repeat() -> None:
        while not enough.is_set():
            results.extend(worker.start(batch_call(calls, go_on=True, repeat=2)).result().results)

    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(repeat)
        try:
            yield results
        finally:
            enough.set()
            ended.result()


def errnos(results: Sequence[Any]) -> Counter[str]:
    """Count how calls ended."""
    failed = (getattr(result, "errno", 0) for result in results)
    return Counter(errno.errorcode[error] if error else "success" for error in failed)


def comes_and_goes(built: Assembly, slot: MemorySlot) -> list[Call[None]]:
    """Delete a memory slot and add it again."""
    return [
        commands.set_slot(built.td.fd, MemorySlot(slot.slot, slot.gpa, 0)),
        commands.set_slot(built.td.fd, slot),
    ]


# a memory slot that comes and goes


def touched_by(found: Exit, *, private: bool) -> str:
    """What a run of ``touch`` ended with: a page, none, or one that the host was at."""
    if isinstance(found, MemoryFaultExit):
        assert (found.gpa, found.private) == (TOUCHED, private)
        return "missed"
    return {ACCEPTED: "accepted", ALREADY_ACCEPTED: "still accepted", BUSY: "busy"}[output.number_of(found)]


def touch(vcpu: Vcpu, *, private: bool) -> str:
    """Run the guest until it has touched its page, or has missed it, or the host was at it meanwhile."""
    return touched_by(vcpu.start().result(), private=private)


@contextmanager
def trying_for_a_page(host: TdxHost, vcpu: Vcpu) -> Iterator[RunJob]:
    """A KVM_RUN that tries again and again to add a page, as the module stays busy."""
    busy = Injection("TDH.MEM.PAGE.AUG", count=MANY_TRIES)
    with vcpu.stats_fd() as stats, armed(host.agent.files, busy):
        running = vcpu.start()
        until(lambda: stats.read()["pf_taken"][0] > SOME_TRIES, "the vCPU to try again")
        yield running
        assert still_armed(host.agent.files)


@pytest.mark.tdx_needs("seamcall-fault-injection")
def test_slot_is_deleted_while_a_vcpu_tries_again_and_again_for_a_page_of_it(
    tdx_host: TdxHost, launch: Launch
) -> None:
    """Between two tries KVM has to look whether the slot is still there."""
    built = launch("touch", regions=[Region(TOUCHED, PAGE_SIZE)])
    (vcpu,) = built.vcpus
    slot = built.placed[-1].slot
    with trying_for_a_page(tdx_host, vcpu) as running:
        built.worker.start(commands.set_slot(built.td.fd, replace(slot, size=0))).result()
        assert touched_by(running.result(), private=True) == "missed"
    built.td.set_slot(slot)
    assert touch(vcpu, private=True) == "accepted"


@pytest.mark.tdx_needs("seamcall-fault-injection")
def test_vcpu_that_tries_again_and_again_for_a_page_leaves_for_a_signal(
    tdx_host: TdxHost, launch: Launch
) -> None:
    (vcpu,) = launch("touch", regions=[Region(TOUCHED, PAGE_SIZE)]).vcpus
    with trying_for_a_page(tdx_host, vcpu) as running:
        assert isinstance(running.stop(), InterruptedExit)
    assert touch(vcpu, private=True) == "accepted"


@pytest.mark.tdx_host(cpus=2)
@pytest.mark.parametrize(
    "rounds", [pytest.param(200, id="200-times"), pytest.param(1000, id="1000-times", marks=LONG)]
)
def test_guest_and_pre_fault_against_a_slot_that_comes_and_goes(rounds: int, launch: Launch) -> None:
    """All end: neither waits in the kernel for a slot whose deletion waits for it."""
    built = launch("touch", vcpus=2, regions=[Region(TOUCHED, PAGE_SIZE)])
    guest, other = built.vcpus
    slot = built.placed[-1].slot
    touched: Counter[str] = Counter()
    pre_fault = commands.pre_fault_memory(other.fd, TOUCHED, PAGE_SIZE)
    deadline = Deadline(30, "the guest and the pre-fault to meet every state of the slot")
    with again_and_again(built.worker, pre_fault) as populated:
        # EFAULT without a slot, EAGAIN while it is being deleted.
        while not (
            {"accepted", "missed"} <= set(touched) and {"success", "EFAULT"} <= set(errnos(populated))
        ):
            deadline.check()
            changing = built.worker.start(batch_call(comes_and_goes(built, slot), repeat=rounds))
            while not changing.done():
                touched[touch(guest, private=True)] += 1
            assert changing.result().complete
    assert set(errnos(populated)) <= {"success", "EFAULT", "EAGAIN"}
    assert touch(guest, private=True) in ("accepted", "still accepted")
    assert touch(guest, private=True) == "still accepted"


@pytest.mark.tdx_host(cpus=2)
def test_pre_fault_of_shared_memory_against_a_slot_that_comes_and_goes(launch: Launch) -> None:
    built = launch("touch", regions=[Region(TOUCHED, PAGE_SIZE)])
    built.td.set_memory_attributes(TOUCHED, PAGE_SIZE, private=False)
    pre_fault = commands.pre_fault_memory(built.vcpus[0].fd, TOUCHED, PAGE_SIZE)
    with again_and_again(built.worker, pre_fault) as populated:
        changing = built.worker.start(
            batch_call(comes_and_goes(built, built.placed[-1].slot), repeat=SHARED_ROUNDS)
        )
        assert changing.result().complete
    # ENOENT without a slot, EAGAIN while it is being deleted.
    assert set(errnos(populated)) <= {"success", "ENOENT", "EAGAIN"}
    assert errnos(populated)["success"]
    assert errnos(populated)["ENOENT"]


# a page that is taken away


@pytest.mark.tdx_host(cpus=2)
@pytest.mark.tdx_needs("seamcall-fault-injection", "ground-truth", "parked-tasks")
def test_no_vcpu_enters_while_kvm_tries_again_to_take_a_page_away(
    tdx_host: TdxHost, launch: Launch, truth: Truth
) -> None:
    """From before the vCPUs are told to leave; one that comes in between would make the try fail again."""
    built = launch("touch", regions=[Region(TOUCHED, PAGE_SIZE)])
    (vcpu,), worker = built.vcpus, built.worker
    assert touch(vcpu, private=True) == "accepted"
    hole = commands.punch_hole(built.memfds[-1].fd, PAGE_SIZE)
    with vcpu.stats_fd() as stats, armed(tdx_host.agent.files, Injection("TDH.MEM.RANGE.BLOCK")):
        with parked(tdx_host, "kvm_make_all_cpus_request", cpu=1) as park:
            punching = worker.start(on([1], hole))
            assert park.reached(punching.done)
            entries, tries = truth.leaves()["TDH.VP.ENTER"].calls, stats.read()["exits"][0]
            running = worker.start(on([0], commands.run(vcpu.fd, vcpu.run_page().address)))
            until(
                lambda: running.done() or stats.read()["exits"][0] > tries + SOME_TRIES,
                "the vCPU to try to enter",
            )
            assert truth.leaves()["TDH.VP.ENTER"].calls == entries
        assert punching.result().complete
    assert touched_by(running.result()[1], private=True) == "accepted"


# memory that is converted


def convert(built: Assembly, vcpu: Vcpu, rounds: int, seconds: float = REQUEST_SECONDS) -> list[int]:
    """Run a vCPU of the payload ``convert`` to its end, and grant what it asks for; returns what it wrote.

    :raises DeadlineExceeded: it did not come to its next request within that time, and was interrupted.
    """
    td, memfd = built.td, built.memfds[-1]
    told: list[int] = []
    run = commands.run(vcpu.fd, vcpu.run_page().address)
    granted: list[Call[Any]] = []
    while len(told) < rounds and not any(value & WRONG for value in told):
        running = built.worker.start(batch_call([*granted, run]))
        try:
            found = running.result(seconds)[-1]
        except DeadlineExceeded:
            interrupted(running)
            raise
        granted = []
        if not isinstance(found, MapGpaExit):
            told.append(output.number_of(found))
            continue
        attributes = KVM_MEMORY_ATTRIBUTE_PRIVATE if found.private else 0
        granted = [commands.set_memory_attributes(td.fd, found.gpa, found.size, attributes)]
        if not found.private:
            # As QEMU does: what was private there is of no use any more.
            granted.append(commands.punch_hole(memfd.fd, PAGE_SIZE, offset=found.gpa - CONVERTED))
    return told


# page tables that become obsolete


@contextmanager
def page_tables_become_obsolete(host: TdxHost) -> Iterator[None]:
    """Change a parameter of KVM again and again.  It is every VM's, so only a host of ours is good for it."""
    files = host.agent.files
    before = files.read_text(NX_HUGE_PAGES).strip()
    changes = [syscalls.write_file(NX_HUGE_PAGES, value) for value in (b"Y", b"N")]
    try:
        with host.agent.spawn() as other, again_and_again(other, *changes):
            yield
    finally:
        files.write(NX_HUGE_PAGES, before)


@pytest.mark.tdx_host(cpus=2)
@pytest.mark.tdx_needs("ground-truth")
@pytest.mark.tdx_finding("F13", **F13, race=True)
@pytest.mark.parametrize("private", [False, True], ids=["shared", "private"])
def test_pre_fault_ends_though_page_tables_become_obsolete(
    private: bool, launch: Launch, tdx_host: TdxHost
) -> None:
    built = launch("touch", regions=[Region(TOUCHED, PAGE_SIZE)])
    built.td.set_memory_attributes(TOUCHED, PAGE_SIZE, private=private)
    pre_fault = commands.pre_fault_memory(built.vcpus[0].fd, TOUCHED, PAGE_SIZE)
    with page_tables_become_obsolete(tdx_host):
        for _ in range(5):
            populating = built.worker.start(batch_call([pre_fault], repeat=100))
            try:
                with shows("F13", DeadlineExceeded):
                    assert populating.result(PRE_FAULT_SECONDS).complete
            finally:
                interrupted(populating)


@pytest.mark.tdx_host(cpus=2)
@pytest.mark.tdx_needs("ground-truth")
@pytest.mark.tdx_finding("F32", flavours=("upstream",), race=True)
def test_guest_goes_on_though_page_tables_become_obsolete(launch: Launch, tdx_host: TdxHost) -> None:
    """It converts memory; a page that it accepts is mapped by a fault that KVM repeats by itself."""
    built = launch("convert", rcx=CONVERSIONS, regions=[Region(CONVERTED, 4 * PAGE_SIZE)])
    with page_tables_become_obsolete(tdx_host), shows("F32", DeadlineExceeded):
        told = convert(built, built.vcpus[0], CONVERSIONS, ENTRY_SECONDS)
        assert told == list(range(1, CONVERSIONS + 1))


# a TD that dies


@pytest.mark.tdx_finding(
    "F20", flavours=("upstream",), splat=r"WARNING: \S*virt/kvm/kvm_main\.c:\d+ at kvm_vcpu_ioctl\+"
)
def test_pre_fault_meets_the_end_of_the_td(launch: Launch) -> None:
    """The guest of another vCPU kills the TD meanwhile: it reads memory that it has not accepted."""
    size = 256 << 20  # A second's work for an emulated machine, of which little is done.
    built = launch("pending", vcpus=2, regions=[Region(TOUCHED, PAGE_SIZE), Region(CONVERTED, size)])
    guest, other = built.vcpus
    assert output.numbers(guest, 1) == [1]
    with built.td.stats_fd() as stats:
        before = stats.read()["pages_4k"]
        populating = built.worker.start(commands.pre_fault_memory(other.fd, CONVERTED, size))
        until(lambda: populating.done() or stats.read()["pages_4k"] > before, "the first page to be added")
    with pytest.raises(KvmError, match="EIO"):
        guest.run()
    assert 0 < populating.result() < size


# neighbours of memory that is converted


@pytest.mark.tdx_host(cpus=8)
@pytest.mark.parametrize(
    "rounds",
    [
        pytest.param(5, id="5-times", marks=pytest.mark.timeout(400)),
        pytest.param(100, id="100-times", marks=LONG),
    ],
)
def test_neighbours_of_memory_that_eight_vcpus_convert_keep_their_bytes(
    rounds: int, launch: Launch, tdx_cleanup: ExitStack
) -> None:
    """Meanwhile other threads change, populate and free what lies between, and the slots around it."""
    vcpus = 8
    built = launch("convert", vcpus=vcpus, rcx=rounds, regions=[Region(CONVERTED, 4 * vcpus * PAGE_SIZE)])
    td, worker, memfd = built.td, built.worker, built.memfds[-1]
    unused = [(4 * index + 3) * PAGE_SIZE for index in range(vcpus)]
    around = Memory.map(worker, PAGE_SIZE)
    slot = MemorySlot(built.free_slot, ELSEWHERE, PAGE_SIZE, around.address)
    disturbances: dict[str, list[Call[Any]]] = {
        "holes": [commands.punch_hole(memfd.fd, PAGE_SIZE, offset=offset) for offset in unused],
        "attributes": [
            commands.set_memory_attributes(td.fd, CONVERTED + offset, PAGE_SIZE, private)
            for private in (0, KVM_MEMORY_ATTRIBUTE_PRIVATE)
            for offset in unused
        ],
        "slots": [
            commands.set_slot(td.fd, slot),
            commands.set_slot(td.fd, MemorySlot(slot.slot, slot.gpa, 0)),
        ],
        "populating": [
            commands.pre_fault_memory(built.vcpus[0].fd, CONVERTED + offset, PAGE_SIZE)
            for offset in unused[:2]
        ],
    }
    with ExitStack() as stack:
        results = {
            name: stack.enter_context(again_and_again(worker, *calls)) for name, calls in disturbances.items()
        }
        pool = stack.enter_context(ThreadPoolExecutor(vcpus))
        told = list(pool.map(lambda vcpu: convert(built, vcpu, rounds), built.vcpus))
    assert told == [[index << 24 | round_ for round_ in range(1, rounds + 1)] for index in range(vcpus)]
    assert all(results.values())
    # The attribute can change between KVM's two looks at it.
    assert set(errnos(results.pop("populating"))) <= {"success", "EFAULT", "EAGAIN"}
    assert {name: set(errnos(found)) for name, found in results.items()} == {
        name: {"success"} for name in results
    }
