# SPDX-License-Identifier: GPL-2.0-or-later
"""Wrong moves of a TD to another VM, one mistake at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

from fixtures.contracts.promises import Refusal
from fixtures.kvm import build
from fixtures.kvm.abi import KVM_MEM_LOG_DIRTY_PAGES, PAGE_SIZE, Cap
from fixtures.kvm.build import Assembly, Region
from fixtures.kvm.device import Kvm
from fixtures.kvm.memory import Memory
from fixtures.kvm.move import link_memory, move_from, prepare_destination
from fixtures.kvm.params import MemorySlot
from fixtures.kvm.td import Td

Fds = tuple[int, int]
"""The destination's and the source's file descriptor of one KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM."""
WrongMove = Callable[[Assembly, Kvm], AbstractContextManager[Fds]]


@contextmanager
def _no_vcpu(source: Assembly, kvm: Kvm) -> Iterator[Fds]:
    with build.created(source.worker) as other:
        link_memory(other, *source.placed)
        yield other.td.fd, source.td.fd


@contextmanager
def _no_memory(source: Assembly, kvm: Kvm) -> Iterator[Fds]:
    with build.created(source.worker) as other:
        other.create_vcpus(1)
        other.vcpus[0].set_cpuid2()
        yield other.td.fd, source.td.fd


@contextmanager
def _other_memory(source: Assembly, kvm: Kvm) -> Iterator[Fds]:
    with build.created(source.worker) as other:
        other.create_vcpus(1)
        other.vcpus[0].set_cpuid2()
        other.place(*(placed.region for placed in source.placed))
        yield other.td.fd, source.td.fd


@contextmanager
def _no_cpuid(source: Assembly, kvm: Kvm) -> Iterator[Fds]:
    with build.created(source.worker) as other:
        other.create_vcpus(1)
        link_memory(other, *source.placed)
        yield other.td.fd, source.td.fd


@contextmanager
def _other_id(source: Assembly, kvm: Kvm) -> Iterator[Fds]:
    with build.created(source.worker) as other:
        other.td.split_irqchip()
        with other.td.create_vcpu(1) as vcpu:
            vcpu.set_cpuid2()
            link_memory(other, *source.placed)
            yield other.td.fd, source.td.fd


@contextmanager
def _more_vcpus(source: Assembly, kvm: Kvm) -> Iterator[Fds]:
    with prepare_destination(source) as other:
        other.create_vcpus(1)
        yield other.td.fd, source.td.fd


@contextmanager
def _more_memory(source: Assembly, kvm: Kvm) -> Iterator[Fds]:
    with prepare_destination(source) as other:
        other.place(Region(0x100000, 4096))
        yield other.td.fd, source.td.fd


@contextmanager
def _with_another_slot(source: Assembly, *, gpa: int | None = None, less: int = 0) -> Iterator[Fds]:
    """A destination whose first memory slot is replaced."""
    with prepare_destination(source) as other:
        slot = other.placed[0].slot
        other.td.delete_slot(slot.slot, slot.gpa)
        other.td.set_slot(
            replace(
                slot,
                gpa=slot.gpa if gpa is None else gpa,
                size=slot.size - less,
            )
        )
        yield other.td.fd, source.td.fd


@contextmanager
def _not_finalized(source: Assembly, kvm: Kvm) -> Iterator[Fds]:
    with build.with_vcpus(source.worker) as young, prepare_destination(young) as other:
        yield other.td.fd, young.td.fd


@contextmanager
def _dead(source: Assembly, kvm: Kvm) -> Iterator[Fds]:
    """A source that was moved away."""
    with (
        build.finalized(source.worker) as old,
        prepare_destination(old) as new,
        prepare_destination(old) as other,
    ):
        move_from(old, to=new)
        yield other.td.fd, old.td.fd


@contextmanager
def _two_links(source: Assembly, kvm: Kvm) -> Iterator[Fds]:
    """A source whose slot is replaced by a link to the memory of another TD."""
    with build.created(source.worker) as thief:
        thief.init().add_vcpus()
        link_memory(thief, *source.placed)
        thief.finalize()
        with prepare_destination(source) as other:
            yield other.td.fd, thief.td.fd


@contextmanager
def _begun_with(source: Assembly, begin: Callable[[Td], object]) -> Iterator[Fds]:
    """A destination that differs in what is set before it has vCPUs."""
    with prepare_destination(source, begin=begin) as other:
        yield other.td.fd, source.td.fd


@contextmanager
def _other_number(source: Assembly, kvm: Kvm) -> Iterator[Fds]:
    """A destination with the same memory in a slot of another number."""
    with prepare_destination(source) as other:
        slot = other.placed[0].slot
        other.td.delete_slot(slot.slot, slot.gpa)
        other.td.set_slot(replace(slot, slot=slot.slot + 1))
        yield other.td.fd, source.td.fd


@contextmanager
def _other_flags(source: Assembly, kvm: Kvm) -> Iterator[Fds]:
    """Both have a slot of shared memory more, of which the destination logs what is written."""
    memory = Memory.map(source.worker, PAGE_SIZE)
    slot = MemorySlot(source.free_slot, 0x300000, PAGE_SIZE, memory.address)
    source.td.set_slot(slot)
    with prepare_destination(source) as other:
        other.td.set_slot(replace(slot, flags=KVM_MEM_LOG_DIRTY_PAGES))
        yield other.td.fd, source.td.fd
    source.td.delete_slot(slot.slot, slot.gpa)
    memory.close()


@contextmanager
def _other_part(source: Assembly, kvm: Kvm) -> Iterator[Fds]:
    """Both have one page more, of the same guest_memfd, but not the same page of it."""
    source.place(Region(0x300000, 2 * PAGE_SIZE))
    placed = source.placed[-1]
    slot = replace(placed.slot, size=PAGE_SIZE)
    with prepare_destination(source) as other:
        theirs = replace(other.placed[-1].slot, size=PAGE_SIZE, guest_memfd_offset=PAGE_SIZE)
        for td, its in ((source.td, slot), (other.td, theirs)):
            td.delete_slot(its.slot, its.gpa)
            td.set_slot(its)
        yield other.td.fd, source.td.fd
    source.td.delete_slot(slot.slot, slot.gpa)
    source.td.set_slot(placed.slot)


@contextmanager
def _closed_memory(source: Assembly, kvm: Kvm) -> Iterator[Fds]:
    """A destination whose guest_memfd is closed."""
    with prepare_destination(source) as other:
        other.placed[0].memfd.close()
        yield other.td.fd, source.td.fd


@contextmanager
def _closed_in_the_source(source: Assembly, kvm: Kvm) -> Iterator[Fds]:
    """A destination with a memory that its guest has lost, as the source's guest_memfd is closed."""
    source.place(Region(0x300000, PAGE_SIZE))
    lost = source.placed[-1]
    with prepare_destination(source) as other:
        lost.memfd.close()
        yield other.td.fd, source.td.fd
    source.td.delete_slot(lost.slot.slot, lost.slot.gpa)
    source.placed.remove(lost)
    lost.shared.close()


@contextmanager
def _no_td(source: Assembly, kvm: Kvm) -> Iterator[Fds]:
    with kvm.create_vm() as vm, prepare_destination(source) as other:
        yield other.td.fd, vm.fd


@contextmanager
def _no_td_but_like_one(source: Assembly, kvm: Kvm) -> Iterator[Fds]:
    """A plain VM with the number of RUNNABLE where KVM has a TD's state: in the identity map's address."""
    with kvm.create_vm() as vm, build.created(source.worker) as other:
        vm.set_identity_map_addr(2 << 32 | 0x1000)
        other.create_vcpus(1)
        other.vcpus[0].set_cpuid2()
        with vm.create_vcpu(0) as vcpu:
            vcpu.set_cpuid2()
            yield other.td.fd, vm.fd


@contextmanager
def _to_no_td(source: Assembly, kvm: Kvm) -> Iterator[Fds]:
    with kvm.create_vm() as vm:
        yield vm.fd, source.td.fd


@contextmanager
def _to_no_td_but_alike(source: Assembly, kvm: Kvm) -> Iterator[Fds]:
    """A plain VM with the vCPUs of a TD that has no memory; with local APICs in KVM it would have a slot."""
    with build.with_vcpus(source.worker) as bare, kvm.create_vm() as vm:
        bare.finalize()
        with vm.create_vcpu(0) as vcpu:
            vcpu.set_cpuid2()
            yield vm.fd, bare.td.fd


@contextmanager
def _no_fd(source: Assembly, kvm: Kvm) -> Iterator[Fds]:
    with prepare_destination(source) as other:
        yield other.td.fd, (1 << 31) - 1


@contextmanager
def _no_vm(source: Assembly, kvm: Kvm) -> Iterator[Fds]:
    with prepare_destination(source) as other:
        yield other.td.fd, source.vcpus[0].fd


@contextmanager
def _itself(source: Assembly, kvm: Kvm) -> Iterator[Fds]:
    yield source.td.fd, source.td.fd


WRONG_MOVES: dict[str, tuple[Refusal, WrongMove]] = {
    "no-vcpu": (Refusal.MOVE_OTHER_VCPUS, _no_vcpu),
    "no-memory": (Refusal.MOVE_OTHER_MEMORY, _no_memory),
    "other-memory": (Refusal.MOVE_OTHER_MEMORY, _other_memory),
    "no-cpuid": (Refusal.MOVE_OTHER_VCPUS, _no_cpuid),
    "other-id": (Refusal.MOVE_OTHER_VCPUS, _other_id),
    "more-vcpus": (Refusal.MOVE_OTHER_VCPUS, _more_vcpus),
    "more-memory": (Refusal.MOVE_OTHER_MEMORY, _more_memory),
    "memory-elsewhere": (
        Refusal.MOVE_OTHER_MEMORY,
        lambda source, kvm: _with_another_slot(source, gpa=0x100000),
    ),
    "less-memory": (Refusal.MOVE_OTHER_MEMORY, lambda source, kvm: _with_another_slot(source, less=4096)),
    "another-part-of-the-memory": (Refusal.MOVE_OTHER_MEMORY, _other_part),
    "memory-with-another-number": (Refusal.MOVE_OTHER_MEMORY, _other_number),
    "memory-with-other-flags": (Refusal.MOVE_OTHER_MEMORY, _other_flags),
    "memory-that-is-closed": (Refusal.MOVE_OTHER_MEMORY, _closed_memory),
    "memory-that-the-source-has-closed": (Refusal.MOVE_OTHER_MEMORY, _closed_in_the_source),
    "memory-of-a-third": (Refusal.MOVE_OTHER_MEMORY, _two_links),
    "other-tsc": (
        Refusal.MOVE_OTHER_CLOCK,
        lambda source, kvm: _begun_with(source, lambda td: td.set_tsc_khz(1_000_000)),
    ),
    "other-apic-clock": (
        Refusal.MOVE_OTHER_CLOCK,
        lambda source, kvm: _begun_with(source, lambda td: td.enable_cap(Cap.X86_APIC_BUS_CYCLES_NS, 40)),
    ),
    "dead": (Refusal.MOVE_DEAD, _dead),
    "not-finalized": (Refusal.MOVE_NOT_FINALIZED, _not_finalized),
    "no-td": (Refusal.MOVE_NO_TD, _no_td),
    "no-td-but-like-one": (Refusal.MOVE_NO_TD, _no_td_but_like_one),
    "to-no-td": (Refusal.MOVE_TO_NO_TD, _to_no_td),
    "to-no-td-but-alike": (Refusal.MOVE_TO_NO_TD, _to_no_td_but_alike),
    "no-vm": (Refusal.MOVE_NO_VM, _no_vm),
    "no-fd": (Refusal.MOVE_NO_VM, _no_fd),
    "itself": (Refusal.MOVE_ITSELF, _itself),
}
"""Keys are the ids of a test's parameters."""
