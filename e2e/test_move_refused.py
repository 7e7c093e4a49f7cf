# SPDX-License-Identifier: GPL-2.0-or-later
"""Moves of TDs and links to their memory that are refused; both VMs go on as before.

``tdx_check_move``, ``tdx_lock_two_vms`` in arch/x86/kvm/vmx/tdx.c and ``kvm_gmem_link`` in
virt/kvm/guest_memfd.c of flavour ``proposed``.
"""

from __future__ import annotations

import errno
from contextlib import ExitStack
from dataclasses import replace
from fcntl import F_GETFD, F_GETFL
from functools import partial

import pytest

from e2e.moves import MOVES, count, counted, destination_of
from e2e.wrong_moves import WRONG_MOVES
from fixtures.agent import syscalls
from fixtures.agent.call import batch_call
from fixtures.agent.client import Worker
from fixtures.contracts.answers import each_refused, refused
from fixtures.contracts.promises import Contract, Refusal
from fixtures.guests import output
from fixtures.guests.launch import Launch
from fixtures.guests.running import begun, inside, once, spin
from fixtures.host.base import TdxHost
from fixtures.host.hkids import Hkids
from fixtures.host.resources import MEMINFO, meminfo
from fixtures.kvm import build, commands
from fixtures.kvm.abi import FALLOC_FL_KEEP_SIZE, GUEST_MEMFD_FLAG_MMAP, KVM_MEM_GUEST_MEMFD, PAGE_SIZE
from fixtures.kvm.build import Region
from fixtures.kvm.device import Kvm
from fixtures.kvm.exits import InterruptedExit, MemoryFaultExit
from fixtures.kvm.files import GuestMemfd
from fixtures.kvm.memory import Memory
from fixtures.kvm.move import link_memory, make_like, move_from
from fixtures.kvm.params import MemorySlot
from fixtures.softseam import inject
from fixtures.softseam.inject import Injection

pytestmark = MOVES

SYS_FCNTL = 72  # x86-64
ANOTHER_KHZ = 1_000_000


@pytest.mark.parametrize("wrong", WRONG_MOVES)
def test_refused_moves_leave_both_as_they_were(
    wrong: str, launch: Launch, kvm: Kvm, contract: Contract, tdx_cleanup: ExitStack
) -> None:
    refusal, attempt = WRONG_MOVES[wrong]
    source = launch("count")
    assert count(source) == counted(1)
    with attempt(source, kvm) as (to, origin), refused(contract, refusal):
        source.worker.call(commands.move_from(to, origin))
    assert count(source) == counted(2)
    destination = move_from(source, to=destination_of(source, tdx_cleanup))
    assert count(destination) == counted(3)


@pytest.mark.tdx_needs("seamcall-fault-injection")
def test_destination_whose_failed_init_vm_left_it_an_hkid_is_refused(
    launch: Launch, tdx_host: TdxHost, tdx_cleanup: ExitStack, contract: Contract
) -> None:
    """KVM cannot free it as the TDX module says that vCPUs are not flushed; it tries again at the end."""
    source = launch("count")
    destination = destination_of(source, tdx_cleanup)
    faults = (
        Injection("TDH.MNG.INIT", code=inject.TDX_OPERAND_INVALID | 0x1234),
        Injection("TDH.MNG.VPFLUSHDONE", code=inject.TDX_FLUSHVP_NOT_DONE),
    )
    with (
        inject.armed(tdx_host.agent.files, *faults),
        refused(contract, Refusal.INIT_MODULE_REFUSES),
    ):
        destination.td.init_vm()
    with refused(contract, Refusal.MOVE_INITIALIZED):
        move_from(source, to=destination)
    assert count(source) == counted(1)


def test_vcpu_that_user_space_owes_an_answer_is_in_the_way(
    launch: Launch, tdx_cleanup: ExitStack, contract: Contract
) -> None:
    """The answer to MapGPA, until which the guest does not know what became of its memory."""
    source = launch("retry")
    (vcpu,) = source.vcpus
    found = vcpu.run()
    destination = destination_of(source, tdx_cleanup)
    with refused(contract, Refusal.MOVE_BUSY):
        move_from(source, to=destination)
    vcpu.answer(found, ret=errno.EINVAL)
    vcpu.complete()
    move_from(source, to=destination)
    assert output.numbers(destination.vcpus[0], 1)


@pytest.mark.parametrize("made", ["before", "after"])
def test_vcpu_that_runs_is_in_the_way(
    made: str, launch: Launch, owner: Worker, tdx_cleanup: ExitStack, contract: Contract
) -> None:
    """The destination is made before the source or after it: locks are taken in the order of addresses."""
    early = tdx_cleanup.enter_context(build.created(owner))
    source = launch("spin")
    destination = early if made == "before" else tdx_cleanup.enter_context(build.created(owner))
    make_like(source, destination)
    (running,) = spin(source)
    # Nothing stays locked, so that the second is refused alike.
    for _ in range(2):
        moving = begun(owner, commands.move_from(destination.td.fd, source.td.fd))
        assert moving.done(), "it waits for the vCPU"
        with refused(contract, Refusal.MOVE_BUSY):
            moving.result()
    assert not running.done()
    assert isinstance(running.stop(), InterruptedExit)
    move_from(source, to=destination)
    (vcpu,) = destination.vcpus
    once(vcpu, inside, vcpu.start).stop()


# links


def test_linked_memory_is_the_sources_until_the_move(
    launch: Launch, tdx_cleanup: ExitStack, contract: Contract
) -> None:
    """A destination that becomes a TD of its own cannot use the memory, and the source is unharmed."""
    source = launch("count")
    count(source)
    destination = destination_of(source, tdx_cleanup)
    destination.td.init_vm()
    destination.vcpus[0].init_vcpu()
    region = destination.placed[0].region
    with refused(contract, Refusal.REGION_LINKED):
        destination.vcpus[0].init_mem_region(bytes(4096), region.gpa)
    assert count(source) == counted(2)


def test_link_is_such_a_file_as_the_guest_memfd(launch: Launch, tdx_cleanup: ExitStack) -> None:
    """Its flags, and what it allocates; holes are its owner's."""
    source = launch("count", regions=[Region(0x100000, PAGE_SIZE)])
    worker = source.worker
    files = [vm.memfds[-1] for vm in (source, destination_of(source, tdx_cleanup))]
    for request in (F_GETFD, F_GETFL):
        first, second = (worker.call(syscalls.syscall(SYS_FCNTL, file.fd, request)) for file in files)
        assert first.ret == second.ret >= 0
    assert worker.call(syscalls.fallocate(files[1].fd, FALLOC_FL_KEEP_SIZE, 0, PAGE_SIZE)).ret == 0


def test_guest_that_needs_the_memory_of_another_vm_leaves_to_user_space(
    launch: Launch, owner: Worker
) -> None:
    """As everywhere, ``exit_reason`` only counts with EFAULT (Documentation/virt/kvm/api.rst)."""
    region = Region(0x100000, PAGE_SIZE)
    source, other = launch("count", regions=[region]), launch("accept")
    link_memory(other, source.placed[-1])
    other.td.set_memory_attributes(region.gpa, region.size, private=True)
    with other.placed[-1].memfd:
        found = other.vcpus[0].run()
    assert isinstance(found, MemoryFaultExit)
    assert (found.gpa, found.size, found.private) == (region.gpa, region.size, True)
    assert count(source) == counted(1)


def test_what_is_refused_through_a_link_allocates_nothing(launch: Launch, tdx_host: TdxHost) -> None:
    pages = 256
    region = Region(0x100000, pages * PAGE_SIZE)
    source, other = launch("count"), launch("count")
    source.place(region)
    link_memory(other, source.placed[-1])
    other.td.set_memory_attributes(region.gpa, region.size, private=True)
    asked = [
        commands.pre_fault_memory(other.vcpus[0].fd, region.gpa + index * PAGE_SIZE, PAGE_SIZE)
        for index in range(pages)
    ]
    with other.placed[-1].memfd:
        before = unevictable_pages(tdx_host)
        found = other.worker.call(batch_call(asked, go_on=True)).results
        after = unevictable_pages(tdx_host)
    assert {getattr(error, "errno", 0) for error in found} == {errno.EFAULT}
    assert after - before < pages // 2


def unevictable_pages(host: TdxHost) -> int:
    """Number of the host's pages that cannot be swapped, as those of guest_memfds; a few may be missing."""
    return meminfo(host.agent.files.read_text(MEMINFO))["Unevictable"] * 1024 // PAGE_SIZE


def test_link_does_not_keep_the_td(launch: Launch, owner: Worker, hkids: Hkids) -> None:
    with build.created(owner) as other, launch("count") as source:
        link_memory(other, *source.placed)
        assert hkids.taken == 1
        source.close()
        assert hkids.taken == 0


def test_linked_memory_can_be_taken_by_its_owner(launch: Launch, tdx_cleanup: ExitStack) -> None:
    """Before the move by the source, after it by the destination, whoever has a file of it still open."""
    first, second = (
        Region(0x100000, PAGE_SIZE, b"1" * PAGE_SIZE),
        Region(0x200000, PAGE_SIZE, b"2" * PAGE_SIZE),
    )
    source = launch("count", regions=[first, second])
    count(source)
    destination = destination_of(source, tdx_cleanup)
    source.placed[-2].memfd.punch_hole()
    move_from(source, to=destination)
    destination.placed[-1].memfd.punch_hole()
    assert count(destination) == counted(2)


def test_second_link_of_the_destination_may_be_closed(launch: Launch, tdx_cleanup: ExitStack) -> None:
    """The memory is that of the one in its slot."""
    spare = Region(0x100000, PAGE_SIZE)
    source = launch("count", regions=[spare])
    count(source)
    destination = destination_of(source, tdx_cleanup)
    links = [commands.link_guest_memfd(destination.td.fd, placed.memfd.fd) for placed in source.placed]
    again = [source.worker.call(link) for link in links]
    move_from(source, to=destination)
    for fd in again:
        source.worker.close_fd(fd)
    assert destination.vcpus[0].pre_fault(spare.gpa, spare.size) == 0
    assert count(destination) == counted(2)


def test_memory_of_which_a_slot_has_a_later_part_is_the_destinations(
    launch: Launch, tdx_cleanup: ExitStack
) -> None:
    """No slot has its begin."""
    source = launch("count")
    count(source)
    worker, gpa = source.worker, 0x300000
    memory = Memory.map(worker, PAGE_SIZE)
    memfd = source.td.create_guest_memfd(3 * PAGE_SIZE)
    slot = MemorySlot(
        *(source.free_slot, gpa, PAGE_SIZE, memory.address, memfd.fd),
        guest_memfd_offset=PAGE_SIZE,
        flags=KVM_MEM_GUEST_MEMFD,
    )
    source.td.set_slot(slot)
    source.td.set_memory_attributes(gpa, PAGE_SIZE, private=True)
    destination = destination_of(source, tdx_cleanup)
    linked = worker.call(commands.link_guest_memfd(destination.td.fd, memfd.fd))
    destination.td.set_slot(replace(slot, guest_memfd=linked))
    move_from(source, to=destination)
    assert destination.vcpus[0].pre_fault(gpa, PAGE_SIZE) == 0
    GuestMemfd(worker, linked, 3 * PAGE_SIZE).punch_hole()
    assert count(destination) == counted(2)


def test_destination_that_was_refused_can_still_be_given_a_clock(
    launch: Launch, owner: Worker, tdx_cleanup: ExitStack, contract: Contract
) -> None:
    source = launch("count")
    count(source)
    with build.created(owner) as destination:
        link_memory(destination, *source.placed)
        with refused(contract, Refusal.MOVE_OTHER_VCPUS):
            move_from(source, to=destination)
        destination.td.set_tsc_khz(ANOTHER_KHZ)
        assert destination.td.get_tsc_khz() == ANOTHER_KHZ
    assert count(source) == counted(2)


def test_link_punches_no_hole_into_the_sources_memory(
    launch: Launch, tdx_cleanup: ExitStack, contract: Contract
) -> None:
    """After the move it is the source's that cannot: ``test_move_state.py`` has that."""
    source = launch("count")
    count(source)
    destination = destination_of(source, tdx_cleanup)
    with refused(contract, Refusal.LINK_HOLE):
        destination.placed[0].memfd.punch_hole()
    # The guest's program is in this memory.
    assert count(source) == counted(2)


def test_link_that_is_closed_leaves_the_memory_to_the_source(
    launch: Launch, owner: Worker, tdx_cleanup: ExitStack
) -> None:
    """If that freed the pages, the next TD would be given them, which the TDX module refuses."""
    spare = Region(0x100000, 64 * PAGE_SIZE, data=bytes(64 * PAGE_SIZE))
    source = launch("count", regions=[spare])
    count(source)
    with build.created(owner) as other:
        for placed in source.placed:
            owner.close_fd(owner.call(commands.link_guest_memfd(other.td.fd, placed.memfd.fd)))
    assert count(launch("count", regions=[spare])) == counted(1)
    assert count(move_from(source, to=destination_of(source, tdx_cleanup))) == counted(2)


def test_links_are_refused(launch: Launch, kvm: Kvm, owner: Worker, contract: Contract) -> None:
    source = launch("count")
    memfd, null = source.memfds[0].fd, owner.open("/dev/null")
    with (
        build.created(owner) as other,
        kvm.create_vm() as plain,
        source.td.create_guest_memfd(PAGE_SIZE, flags=GUEST_MEMFD_FLAG_MMAP) as flagged,
    ):
        fd = other.td.fd
        linked = owner.call(commands.link_guest_memfd(fd, memfd))
        reserved = [tuple(int(index == field) for index in range(6)) for field in range(6)]
        links = {
            "flags": (Refusal.LINK_ARGUMENTS, commands.link_guest_memfd(fd, memfd, flags=1)),
            **{
                f"reserved {value}": (
                    Refusal.LINK_ARGUMENTS,
                    commands.link_guest_memfd(fd, memfd, reserved=value),
                )
                for value in reserved
            },
            "its own": (Refusal.LINK_OWN, commands.link_guest_memfd(source.td.fd, memfd)),
            "its own link": (Refusal.LINK_OWN, commands.link_guest_memfd(fd, linked)),
            "a VM": (Refusal.LINK_NO_MEMFD, commands.link_guest_memfd(fd, source.td.fd)),
            "a file": (Refusal.LINK_NO_MEMFD, commands.link_guest_memfd(fd, null)),
            "memfd with flags": (Refusal.LINK_FLAGGED, commands.link_guest_memfd(fd, flagged.fd)),
            "no fd": (Refusal.LINK_NO_FD, commands.link_guest_memfd(fd, (1 << 31) - 1)),
            "fd of 64 bits": (Refusal.LINK_NO_FD, commands.link_guest_memfd(fd, 1 << 32 | memfd)),
            "plain VM": (Refusal.LINK_PLAIN_VM, commands.link_guest_memfd(plain.fd, memfd)),
        }
        each_refused(
            contract, {name: (wanted, partial(owner.call, link)) for name, (wanted, link) in links.items()}
        )


def test_memory_of_a_closed_file_is_nobodys(
    launch: Launch, owner: Worker, tdx_cleanup: ExitStack, contract: Contract
) -> None:
    """A link of a link does not get it either, though its file may be where the closed one was."""
    source = launch("count")
    region = source.placed[0].region
    between = tdx_cleanup.enter_context(build.created(owner))
    linked = owner.call(commands.link_guest_memfd(between.td.fd, source.memfds[0].fd))
    thief = tdx_cleanup.enter_context(build.initialized(owner)).add_vcpus()
    source.close()
    link = owner.call(commands.link_guest_memfd(thief.td.fd, linked))
    memory = Memory.map(owner, region.size)
    thief.td.set_slot(MemorySlot(0, region.gpa, region.size, memory.address, link, flags=KVM_MEM_GUEST_MEMFD))
    thief.td.set_memory_attributes(region.gpa, region.size, private=True)
    with refused(contract, Refusal.REGION_LINKED):
        thief.vcpus[0].init_mem_region(bytes(PAGE_SIZE), region.gpa)
    GuestMemfd(owner, linked, region.size).punch_hole()
