# SPDX-License-Identifier: GPL-2.0-or-later
"""Wrong moves of a TD to another VM, one mistake at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace

from fixtures.contracts.promises import Refusal
from fixtures.kvm import build
from fixtures.kvm.build import Assembly, Region
from fixtures.kvm.device import Kvm
from fixtures.kvm.move import link_memory, prepare_destination

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
def _with_another_slot(
    source: Assembly, *, gpa: int | None = None, offset: int = 0, less: int = 0
) -> Iterator[Fds]:
    """A destination whose first memory slot is replaced."""
    with prepare_destination(source) as other:
        slot = other.placed[0].slot
        other.td.delete_slot(slot.slot, slot.gpa)
        other.td.set_slot(
            replace(
                slot,
                gpa=slot.gpa if gpa is None else gpa,
                guest_memfd_offset=slot.guest_memfd_offset + offset,
                size=slot.size - less,
            )
        )
        yield other.td.fd, source.td.fd


@contextmanager
def _not_finalized(source: Assembly, kvm: Kvm) -> Iterator[Fds]:
    with build.with_vcpus(source.worker) as young, prepare_destination(young) as other:
        yield other.td.fd, young.td.fd


@contextmanager
def _no_td(source: Assembly, kvm: Kvm) -> Iterator[Fds]:
    with kvm.create_vm() as vm, prepare_destination(source) as other:
        yield other.td.fd, vm.fd


@contextmanager
def _to_no_td(source: Assembly, kvm: Kvm) -> Iterator[Fds]:
    with kvm.create_vm() as vm:
        yield vm.fd, source.td.fd


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
    "another-part-of-the-memory": (
        Refusal.MOVE_OTHER_MEMORY,
        lambda source, kvm: _with_another_slot(source, offset=4096, less=4096),
    ),
    "not-finalized": (Refusal.MOVE_NOT_FINALIZED, _not_finalized),
    "no-td": (Refusal.MOVE_NO_TD, _no_td),
    "to-no-td": (Refusal.MOVE_TO_NO_TD, _to_no_td),
    "no-vm": (Refusal.MOVE_NO_VM, _no_vm),
    "itself": (Refusal.MOVE_ITSELF, _itself),
}
"""Keys are the ids of a test's parameters."""
