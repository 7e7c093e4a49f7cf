# SPDX-License-Identifier: GPL-2.0-or-later
"""A running TD's shared memory, which the host has late, forks, takes away and logs."""

from __future__ import annotations

import errno
import mmap
from dataclasses import replace

import pytest

from e2e.children import child
from fixtures.agent import syscalls
from fixtures.deadline import comes_true
from fixtures.guests import output
from fixtures.guests.execute import SHARED_VA, Executor, load, load_shared, store
from fixtures.guests.launch import Launch
from fixtures.kvm import abi, commands
from fixtures.kvm.abi import PAGE_SIZE
from fixtures.kvm.build import Assembly, Region
from fixtures.kvm.errors import errno_of
from fixtures.kvm.exits import MemoryFaultExit
from fixtures.kvm.late import LateMemory
from fixtures.kvm.memory import Memory
from fixtures.kvm.params import MemorySlot

SYS_MADVISE = 28  # x86-64
ELSEWHERE = 0x40000000
FROM_HOST, FROM_GUEST = 0x0BADCAFE, 0x600DF00D


def word(data: bytes) -> int:
    return int.from_bytes(data[:4], "little")


def give_shared_memory(built: Assembly, *gpas: int) -> Memory:
    """Add slots of shared memory, all of which are one page of the process."""
    memory = Memory.map(built.worker, PAGE_SIZE)
    memory.write(0, FROM_HOST.to_bytes(4, "little"))
    for gpa in gpas:
        built.td.set_slot(MemorySlot(built.free_slot, gpa, PAGE_SIZE, memory.address))
        built.free_slot += 1
    return memory


def test_memory_of_two_slots_is_taken_from_both(launch: Launch) -> None:
    built = launch("execute")
    guest = Executor(built)
    gpas = (ELSEWHERE, ELSEWHERE + 2 * PAGE_SIZE)
    memory = give_shared_memory(built, *gpas)
    reads = [load_shared(gpa) for gpa in gpas]
    assert [found["rax"] for found in guest.run(reads)] == [FROM_HOST, FROM_HOST]
    done = built.worker.call(syscalls.syscall(SYS_MADVISE, memory.address, PAGE_SIZE, mmap.MADV_DONTNEED))
    assert done.ret == 0
    assert [found["rax"] for found in guest.run(reads)] == [0, 0]


def test_child_does_not_see_what_the_guest_writes_after_the_fork(launch: Launch) -> None:
    """The guest has had the page before: it gets the parent's copy when it writes to it again."""
    built = launch("execute")
    guest = Executor(built)
    memory = give_shared_memory(built, ELSEWHERE)
    guest.run([store(SHARED_VA | ELSEWHERE, FROM_HOST)])
    with child(built.worker) as pid:
        guest.run([store(SHARED_VA | ELSEWHERE, FROM_GUEST)])
        assert word(memory.read(0, 4)) == FROM_GUEST
        look = ["dd", f"if=/proc/{pid}/mem", "bs=4", "count=1", f"skip={memory.address // 4}"]
        assert word(built.worker.agent.files.run(*look).stdout) == FROM_HOST


@pytest.mark.parametrize("memfd", [True, False], ids=["memfd", "no-memfd"])
def test_shared_memory_of_a_slot_that_is_made_anew_is_the_new_one(memfd: bool, launch: Launch) -> None:
    built = launch("execute")
    guest = Executor(built)
    built.place(Region(ELSEWHERE, PAGE_SIZE))
    built.td.set_memory_attributes(ELSEWHERE, PAGE_SIZE, private=False)
    (placed,) = built.placed[-1:]
    slot = placed.slot if memfd else replace(placed.slot, guest_memfd=0, flags=0)
    for value in (FROM_HOST, FROM_GUEST):
        built.td.delete_slot(slot.slot, slot.gpa)
        memory = Memory.map(built.worker, PAGE_SIZE)
        memory.write(0, value.to_bytes(4, "little"))
        built.td.set_slot(replace(slot, address=memory.address))
        (found,) = guest.run([load_shared(ELSEWHERE)])
        assert found["rax"] == value


@pytest.mark.tdx_needs("late-memory")
def test_shared_memory_that_comes_late_is_what_the_guest_finds(launch: Launch) -> None:
    """KVM lets the vCPU sleep, and maps the page when it has come (``kvm_arch_async_page_ready``)."""
    built = launch("execute")
    guest = Executor(built)
    with LateMemory.map(built.worker, PAGE_SIZE) as late:
        built.td.set_slot(MemorySlot(built.free_slot, ELSEWHERE, PAGE_SIZE, late.address))
        guest.begin([load_shared(ELSEWHERE)])
        reading = built.vcpus[0].start()
        late.wanted()
        late.give(FROM_HOST.to_bytes(4, "little"))
        output.number_of(reading.result())
        (again,) = guest.run([load_shared(ELSEWHERE)])
        assert (again.vector, again["rax"]) == (None, FROM_HOST)
        # There is no private page beside it.
        found = guest.run_to_exit([load(ELSEWHERE)])
    assert isinstance(found, MemoryFaultExit)
    assert (found.gpa, found.private) == (ELSEWHERE, True)


@pytest.mark.tdx_needs("late-memory")
def test_populating_with_shared_memory_that_does_not_come_ends_after_a_signal(launch: Launch) -> None:
    built = launch("accept")
    (vcpu,) = built.vcpus
    with LateMemory.map(built.worker, PAGE_SIZE) as late:
        built.td.set_slot(MemorySlot(built.free_slot, ELSEWHERE, PAGE_SIZE, late.address))
        populating = built.worker.start(commands.pre_fault_memory(vcpu.fd, ELSEWHERE, PAGE_SIZE))
        late.wanted()
        assert comes_true(lambda: not populating.interrupt()), "it waits on"
        assert errno_of(populating.result) == errno.EINTR
        late.give(b"")
        assert vcpu.pre_fault(ELSEWHERE, PAGE_SIZE) == 0


def test_each_write_of_the_guest_to_shared_memory_is_logged(launch: Launch) -> None:
    """The second to a page, too, after user space has read of the first."""
    built = launch("execute")
    guest = Executor(built)
    memory, bitmap = Memory.map(built.worker, 2 * PAGE_SIZE), Memory.map(built.worker, PAGE_SIZE)
    slot = MemorySlot(
        built.free_slot, ELSEWHERE, 2 * PAGE_SIZE, memory.address, flags=abi.KVM_MEM_LOG_DIRTY_PAGES
    )
    built.td.set_slot(slot)

    def dirty() -> int:
        built.worker.call(commands.get_dirty_log(built.td.fd, slot.slot, bitmap.address))
        return word(bitmap.read(0, 8))

    for pages in ([1], [1], [0], [0, 1], [1], []):
        guest.run([store(SHARED_VA | ELSEWHERE + page * PAGE_SIZE, FROM_GUEST) for page in pages])
        assert dirty() == sum(1 << page for page in pages)
