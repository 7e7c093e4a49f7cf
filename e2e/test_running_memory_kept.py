# SPDX-License-Identifier: GPL-2.0-or-later
"""A running TD's memory keeps its content, whatever user space does with what is beside it.

Sources: ``kvm_vm_set_mem_attributes``, ``kvm_mmu_unmap_gfn_range`` in virt/kvm/kvm_main.c;
``kvm_arch_pre_set_memory_attributes`` in arch/x86/kvm/mmu/mmu.c; virt/kvm/guest_memfd.c.
"""

from __future__ import annotations

import errno
import mmap
from collections.abc import Callable
from contextlib import suppress

import pytest

from fixtures.agent import syscalls
from fixtures.agent.call import Call, SyscallResult
from fixtures.agent.errors import WorkerDied
from fixtures.guests import output
from fixtures.guests.execute import SHARED_VA, Executor, Outcome, accept, load, store
from fixtures.guests.launch import Launch
from fixtures.host.base import TdxHost
from fixtures.kvm import abi
from fixtures.kvm.abi import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    GUEST_MEMFD_FLAG_INIT_SHARED,
    GUEST_MEMFD_FLAG_MMAP,
    KVM_MEM_GUEST_MEMFD,
    PAGE_SIZE,
)
from fixtures.kvm.build import Assembly, Region
from fixtures.kvm.device import Kvm
from fixtures.kvm.errors import errno_of
from fixtures.kvm.fd import Fd
from fixtures.kvm.files import GuestMemfd
from fixtures.kvm.memory import Memory
from fixtures.kvm.params import MemorySlot

BASE, ELSEWHERE = 0x100000, 0x40000000
VALUE, OTHER = 0x600DF00D, 0x0BADCAFE
SYS_READ, SYS_WRITE, SYS_MMAP, SYS_MADVISE, SYS_FTRUNCATE = 0, 1, 9, 28, 77
ZERO_RANGE = 0x10
"""fallocate(2)'s FALLOC_FL_ZERO_RANGE."""
MADV_DONTNEED, MADV_HWPOISON = 4, 100
EHWPOISON = 133

TWO_PAGES = Region(BASE, 2 * PAGE_SIZE)


def ends(found: list[Outcome]) -> list[tuple[int | None, str]]:
    """The exception that ended each, and RAX: what was read, or the status of a TDCALL."""
    return [(one.vector, hex(one["rax"])) for one in found]


@pytest.fixture
def built(launch: Launch) -> Assembly:
    """A TD with two pages that it has to accept."""
    return launch("execute", regions=[TWO_PAGES])


def place(built: Assembly, number: int, gpa: int, shared: Memory, memfd: GuestMemfd, offset: int) -> None:
    """Give a private page of a guest_memfd a slot, which is the free one with this number."""
    slot = MemorySlot(
        built.free_slot + number,
        gpa,
        PAGE_SIZE,
        shared.address,
        memfd.fd,
        guest_memfd_offset=offset,
        flags=abi.KVM_MEM_GUEST_MEMFD,
    )
    built.td.set_slot(slot)
    built.td.set_memory_attributes(gpa, PAGE_SIZE, private=True)


def test_initial_memory_keeps_its_content_when_it_is_populated_once_more(launch: Launch) -> None:
    region = Region(BASE, PAGE_SIZE, VALUE.to_bytes(4, "little"))
    built = launch("execute", regions=[region])
    assert built.vcpus[0].pre_fault(BASE, PAGE_SIZE) == 0
    assert ends(Executor(built).run([load(BASE)])) == [(None, hex(VALUE))]


def test_private_page_is_kept_when_its_neighbour_becomes_private_too(built: Assembly) -> None:
    """Both are made private by one request, of which the first page has nothing to change."""
    guest = Executor(built)
    built.td.set_memory_attributes(BASE + PAGE_SIZE, PAGE_SIZE, private=False)
    assert ends(guest.run([accept(BASE), store(BASE, VALUE)]))[0] == (None, "0x0")
    built.td.set_memory_attributes(BASE, 2 * PAGE_SIZE, private=True)
    second = BASE + PAGE_SIZE
    rows = [load(BASE), accept(second), store(second, OTHER), load(second)]
    assert ends(guest.run(rows)) == [
        (None, hex(VALUE)),
        (None, "0x0"),
        (None, hex(OTHER)),
        (None, hex(OTHER)),
    ]


def test_private_page_is_kept_when_its_neighbour_becomes_shared(built: Assembly) -> None:
    guest, second = Executor(built), BASE + PAGE_SIZE
    guest.run([accept(BASE), store(BASE, VALUE), accept(second), store(second, OTHER)])
    built.td.set_memory_attributes(second, PAGE_SIZE, private=False)
    assert ends(guest.run([load(BASE)])) == [(None, hex(VALUE))]


@pytest.mark.parametrize("shared", [0, 1], ids=["the-first-shared", "the-second-shared"])
def test_page_beside_what_becomes_shared_stays_private(shared: int, built: Assembly) -> None:
    built.td.set_memory_attributes(BASE + shared * PAGE_SIZE, PAGE_SIZE, private=False)
    kept = BASE + (1 - shared) * PAGE_SIZE
    rows = [accept(kept), store(kept, VALUE), load(kept)]
    assert ends(Executor(built).run(rows))[::2] == [(None, "0x0"), (None, hex(VALUE))]


def test_private_page_is_kept_when_the_shared_memory_at_its_place_is_discarded(built: Assembly) -> None:
    guest, memory = Executor(built), built.placed[-1].shared
    memory.write(0, OTHER.to_bytes(4, "little"))
    guest.run([accept(BASE), store(BASE, VALUE)])
    built.worker.call(syscalls.syscall(SYS_MADVISE, memory.address, PAGE_SIZE, MADV_DONTNEED))
    assert memory.read(0, 4) == bytes(4)
    assert ends(guest.run([load(BASE)])) == [(None, hex(VALUE))]


def test_private_page_is_kept_when_another_page_of_its_memory_is_taken_away(built: Assembly) -> None:
    guest, second = Executor(built), BASE + PAGE_SIZE
    guest.run([accept(BASE), store(BASE, VALUE), accept(second), store(second, OTHER)])
    built.memfds[-1].punch_hole(PAGE_SIZE, PAGE_SIZE)
    assert ends(guest.run([load(BASE), accept(second), load(second)])) == [
        (None, hex(VALUE)),
        (None, "0x0"),
        (None, "0x0"),
    ]


def test_private_page_is_kept_when_a_page_of_its_memory_that_no_slot_has_is_taken_away(
    launch: Launch,
) -> None:
    """The slot begins at the memory's second page."""
    built = launch("execute")
    with (
        built.td.create_guest_memfd(2 * PAGE_SIZE) as memfd,
        Memory.map(built.worker, PAGE_SIZE) as shared,
    ):
        place(built, 0, BASE, shared, memfd, PAGE_SIZE)
        guest = Executor(built)
        guest.run([accept(BASE), store(BASE, VALUE)])
        memfd.punch_hole(0, PAGE_SIZE)
        assert ends(guest.run([load(BASE)])) == [(None, hex(VALUE))]
        memfd.punch_hole(PAGE_SIZE, PAGE_SIZE)
        assert ends(guest.run([accept(BASE), load(BASE)])) == [(None, "0x0"), (None, "0x0")]


def test_private_page_is_kept_when_the_memory_of_the_slots_around_it_is_taken_away(launch: Launch) -> None:
    """One hole takes both pages of a memory; the slot of its second page begins where the kept page ends."""
    built = launch("execute", regions=[Region(BASE, PAGE_SIZE)])
    places = (ELSEWHERE, BASE + PAGE_SIZE)
    with (
        built.td.create_guest_memfd(2 * PAGE_SIZE) as memfd,
        Memory.map(built.worker, PAGE_SIZE) as shared,
    ):
        for number, gpa in enumerate(places):
            place(built, number, gpa, shared, memfd, number * PAGE_SIZE)
        guest = Executor(built)
        guest.run([row for gpa in (BASE, *places) for row in (accept(gpa), store(gpa, VALUE))])
        memfd.punch_hole(0, 2 * PAGE_SIZE)
        assert ends(guest.run([load(BASE)])) == [(None, hex(VALUE))]
        anew = guest.run([row for gpa in places for row in (accept(gpa), load(gpa))])
        assert ends(anew) == [(None, "0x0")] * 4
        # What is left of the memory's slots is still the memory's.
        built.td.delete_slot(built.free_slot, ELSEWHERE)
        memfd.punch_hole(PAGE_SIZE, PAGE_SIZE)
        assert ends(guest.run([accept(places[1]), load(places[1])])) == [(None, "0x0")] * 2


HALF = PAGE_SIZE // 2
REFUSED: dict[str, tuple[Callable[[GuestMemfd], Call[SyscallResult]], int]] = {
    "shrink": (lambda memfd: syscalls.syscall(SYS_FTRUNCATE, memfd.fd, 0), errno.EINVAL),
    "grow": (lambda memfd: syscalls.syscall(SYS_FTRUNCATE, memfd.fd, 2 * memfd.size), errno.EINVAL),
    "read": (lambda memfd: syscalls.syscall(SYS_READ, memfd.fd, 0, PAGE_SIZE), errno.EINVAL),
    "write": (lambda memfd: syscalls.syscall(SYS_WRITE, memfd.fd, 0, PAGE_SIZE), errno.EINVAL),
    "map": (lambda memfd: mapping(memfd, mmap.MAP_SHARED), errno.ENODEV),
    "hole-from-within-a-page": (lambda memfd: hole(memfd, HALF, PAGE_SIZE), errno.EINVAL),
    "hole-of-half-a-page": (lambda memfd: hole(memfd, 0, HALF), errno.EINVAL),
    "hole-of-nothing": (lambda memfd: hole(memfd, 0, 0), errno.EINVAL),
    "pages-beyond-the-end": (lambda memfd: pages(memfd, 0, 2 * memfd.size), errno.EINVAL),
    "pages-behind-the-end": (lambda memfd: pages(memfd, memfd.size, PAGE_SIZE), errno.EINVAL),
    "zeroes": (
        lambda memfd: syscalls.fallocate(memfd.fd, ZERO_RANGE | FALLOC_FL_KEEP_SIZE, 0, PAGE_SIZE),
        errno.EOPNOTSUPP,
    ),
}
"""What a file may be asked for and a guest_memfd refuses (``kvm_gmem_fops``, ``kvm_gmem_iops``)."""


def hole(memfd: GuestMemfd, offset: int, size: int) -> Call[SyscallResult]:
    return syscalls.fallocate(memfd.fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, offset, size)


def pages(memfd: GuestMemfd, offset: int, size: int) -> Call[SyscallResult]:
    return syscalls.fallocate(memfd.fd, FALLOC_FL_KEEP_SIZE, offset, size)


def mapping(memfd: Fd, flags: int) -> Call[SyscallResult]:
    return syscalls.syscall(SYS_MMAP, 0, PAGE_SIZE, mmap.PROT_READ, flags, memfd.fd, 0)


def test_private_page_is_kept_whatever_its_file_is_asked_for_in_vain(built: Assembly) -> None:
    guest, memfd = Executor(built), built.memfds[-1]
    guest.run([accept(BASE), store(BASE, VALUE)])
    answers = {name: built.worker.call(call(memfd)).errno for name, (call, _) in REFUSED.items()}
    assert answers == {name: error for name, (_, error) in REFUSED.items()}
    assert ends(guest.run([load(BASE)])) == [(None, hex(VALUE))]


def test_private_memory_that_can_be_mapped_is_not_seen_by_the_host(launch: Launch) -> None:
    """guest_memfd's flag MMAP allows the mapping; without INIT_SHARED there is nothing to see in it."""
    built = launch("execute")
    worker = built.worker
    with built.td.create_guest_memfd(PAGE_SIZE, flags=GUEST_MEMFD_FLAG_MMAP) as memfd:
        assert worker.call(mapping(memfd, mmap.MAP_PRIVATE)).errno == errno.EINVAL
        shared = syscalls.mmap(PAGE_SIZE, mmap.PROT_READ, mmap.MAP_SHARED, memfd.fd)
        with Memory(worker, worker.call(shared), PAGE_SIZE) as mapped:
            _reader, writer = worker.call(syscalls.pipe())
            told = worker.call(syscalls.syscall(SYS_WRITE, writer, mapped.address, 1))
            assert (told.ret, told.errno) == (-1, errno.EFAULT)


def test_memory_can_be_taken_by_another_process_that_has_its_file(launch: Launch, tdx_host: TdxHost) -> None:
    """The file is its own, whoever's the VM is."""
    built = launch("accept", regions=[Region(BASE, PAGE_SIZE)])
    assert output.numbers(built.vcpus[0], 2) == [0, 0]
    memfd = built.memfds[-1]
    with tdx_host.agent.spawn() as other, memfd.give(other) as there:
        GuestMemfd(other, there.fd, PAGE_SIZE).punch_hole()
    # It has to be accepted once more, and is zero.
    assert output.numbers(built.vcpus[0], 2) == [0, 0]


@pytest.mark.tdx_needs("snapshot")
def test_page_that_the_hardware_reports_as_broken_is_told_each_time_until_it_is_freed(
    kvm: Kvm, tdx_host: TdxHost
) -> None:
    """Of a plain VM, as only its guest_memfd can be mapped to break a page (``kvm_gmem_get_pfn``)."""
    tdx_host.poison("a page of its memory is broken")
    flags = GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED
    with (
        kvm.create_vm() as vm,
        vm.create_vcpu() as vcpu,
        vm.create_guest_memfd(PAGE_SIZE, flags=flags) as memfd,
    ):
        address = Memory.map(kvm.worker, PAGE_SIZE).address
        vm.set_slot(MemorySlot(0, BASE, PAGE_SIZE, address, memfd.fd, flags=KVM_MEM_GUEST_MEMFD))
        assert vcpu.pre_fault(BASE, PAGE_SIZE) == 0
        # Who breaks a page is told by a signal that it is.
        with tdx_host.agent.spawn() as victim, memfd.give(victim) as there, suppress(WorkerDied):
            mapped = victim.call(mapping(there, mmap.MAP_SHARED)).ret
            victim.call(syscalls.syscall(SYS_MADVISE, mapped, PAGE_SIZE, MADV_HWPOISON))
        for _ in range(2):
            assert errno_of(lambda: vcpu.pre_fault(BASE, PAGE_SIZE)) == EHWPOISON
        memfd.punch_hole()
        assert vcpu.pre_fault(BASE, PAGE_SIZE) == 0


def test_memory_that_user_space_may_only_read_can_be_read_by_the_guest(launch: Launch) -> None:
    built = launch("execute")
    worker = built.worker
    with Memory.map(worker, PAGE_SIZE) as memory:
        memory.write(0, VALUE.to_bytes(4, "little"))
        memory.make_read_only()
        built.td.set_slot(MemorySlot(built.free_slot, ELSEWHERE, PAGE_SIZE, memory.address))
        guest = Executor(built)
        assert ends(guest.run([load(SHARED_VA | ELSEWHERE)])) == [(None, hex(VALUE))]
