# SPDX-License-Identifier: GPL-2.0-or-later
"""Requests of one TD that may come at the same instant, and how they end one after the other."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from fixtures.agent import syscalls
from fixtures.agent.call import Call, batch_call
from fixtures.agent.client import Worker
from fixtures.agent.errors import RemoteOSError
from fixtures.kvm import abi, build, commands
from fixtures.kvm.abi import PAGE_SIZE
from fixtures.kvm.build import Assembly, Region
from fixtures.kvm.defaults import default_params, vcpu_cpuid
from fixtures.kvm.errors import KvmError
from fixtures.kvm.params import MemorySlot

PAGE = Region(0x40000000, PAGE_SIZE, b"\5" * PAGE_SIZE)
PRIVATE = abi.KVM_MEMORY_ATTRIBUTE_PRIVATE

Prepare = Callable[[Worker], Assembly]
Ask = Callable[[Assembly], Call[Any]]


@dataclass(frozen=True)
class Race:
    """Requests, and how to make the TD of which they are."""

    prepare: Prepare
    requests: tuple[Ask, ...]


def created(worker: Worker) -> Assembly:
    built = build.created(worker)
    built.td.split_irqchip()
    return built


def with_raw_vcpu(worker: Worker) -> Assembly:
    """A TD with a vCPU that has its CPUID and is not initialized."""
    built = build.initialized(worker).create_vcpus()
    built.vcpus[0].set_cpuid2()
    return built


def with_second_vcpu(worker: Worker) -> Assembly:
    """A TD with its firmware, a vCPU that is initialized, and one that is not."""
    built = build.populated(worker)
    built.create_vcpus()
    built.vcpus[1].set_cpuid2()
    return built


def placed(worker: Worker) -> Assembly:
    """A TD with a vCPU and a page that can be added."""
    return build.with_vcpus(worker).place(PAGE)


def with_empty_page(worker: Worker) -> Assembly:
    """A TD that may run, with two vCPUs and a page that it has not got yet."""
    return build.finalized(worker, vcpus=2).place(PAGE)


def init_vm(td: Assembly) -> Call[Any]:
    return commands.init_vm(td.td.fd, default_params(td.worker))


def capabilities(td: Assembly) -> Call[Any]:
    return commands.capabilities(td.td.fd)


def finalize(td: Assembly) -> Call[Any]:
    return commands.finalize_vm(td.td.fd)


def create_vcpu(ident: int) -> Ask:
    return lambda td: commands.create_vcpu(td.td.fd, ident)


def set_cpuid(index: int) -> Ask:
    return lambda td: commands.set_cpuid2(td.vcpus[index].fd, vcpu_cpuid(td.worker))


def init_vcpu(index: int) -> Ask:
    return lambda td: commands.init_vcpu(td.vcpus[index].fd)


def get_cpuid(index: int) -> Ask:
    return lambda td: commands.get_cpuid(td.vcpus[index].fd)


def add_page(td: Assembly) -> Call[Any]:
    return commands.init_mem_region(td.vcpus[0].fd, PAGE.data, PAGE.gpa)


def pre_fault(index: int) -> Ask:
    # How much is left is no fd.
    return lambda td: commands.pre_fault_memory(td.vcpus[index].fd, PAGE.gpa, PAGE_SIZE).map(str)


def delete_slot(td: Assembly) -> Call[Any]:
    slot = td.placed[-1].slot
    return commands.set_slot(td.td.fd, MemorySlot(slot.slot, slot.gpa, 0))


def punch_hole(index: int) -> Ask:
    """Take the memory of a slot from the guest: with its guest_memfd's lock and mmu_lock only."""

    def ask(td: Assembly) -> Call[Any]:
        memfd = td.placed[index].memfd
        return commands.punch_hole(memfd.fd, memfd.size)

    return ask


def make_shared(td: Assembly) -> Call[Any]:
    region = td.placed[-1].region
    return commands.set_memory_attributes(td.td.fd, region.gpa, region.size, 0)


def make_private(td: Assembly) -> Call[Any]:
    region = td.placed[-1].region
    return commands.set_memory_attributes(td.td.fd, region.gpa, region.size, PRIVATE)


def on(cpus: Sequence[int], call: Call[Any]) -> Call[Any]:
    """Make a call in a thread that runs on some CPUs only; its result is the second of the batch's."""
    return batch_call([syscalls.affinity(cpus), call, syscalls.affinity()])


def close_vm(td: Assembly) -> Call[Any]:
    td.td.closed = True
    return syscalls.close(td.td.fd)


def close_vcpu(td: Assembly) -> Call[Any]:
    td.vcpus[0].closed = True
    return syscalls.close(td.vcpus[0].fd)


RACES: Mapping[str, Race] = {
    "init-vm-twice": Race(created, (init_vm, init_vm)),
    "init-vm-capabilities": Race(created, (init_vm, capabilities)),
    "init-vm-create-vcpu": Race(created, (init_vm, create_vcpu(0))),
    "init-vm-close": Race(created, (init_vm, close_vm)),
    "create-vcpu-twice": Race(build.initialized, (create_vcpu(0), create_vcpu(0))),
    "create-vcpu-close": Race(build.initialized, (create_vcpu(0), close_vm)),
    "init-vcpu-twice": Race(with_raw_vcpu, (init_vcpu(0), init_vcpu(0))),
    "init-vcpu-get-cpuid": Race(with_raw_vcpu, (init_vcpu(0), get_cpuid(0))),
    "init-vcpu-set-cpuid": Race(with_raw_vcpu, (init_vcpu(0), set_cpuid(0))),
    "init-vcpu-create-vcpu": Race(with_raw_vcpu, (init_vcpu(0), create_vcpu(1))),
    "init-vcpu-close": Race(with_raw_vcpu, (init_vcpu(0), close_vcpu)),
    "init-vcpu-finalize": Race(with_second_vcpu, (init_vcpu(1), finalize)),
    "add-page-twice": Race(placed, (add_page, add_page)),
    "add-page-finalize": Race(placed, (add_page, finalize)),
    "add-page-delete-slot": Race(placed, (add_page, delete_slot)),
    "add-page-make-shared": Race(placed, (add_page, make_shared)),
    "add-page-get-cpuid": Race(placed, (add_page, get_cpuid(0))),
    "add-page-create-vcpu": Race(placed, (add_page, create_vcpu(1))),
    "finalize-twice": Race(build.populated, (finalize, finalize)),
    "finalize-get-cpuid": Race(build.populated, (finalize, get_cpuid(0))),
    "finalize-create-vcpu": Race(build.populated, (finalize, create_vcpu(1))),
    "finalize-delete-slot": Race(build.populated, (finalize, delete_slot)),
    "finalize-make-shared": Race(build.populated, (finalize, make_shared)),
    "finalize-close": Race(build.populated, (finalize, close_vm)),
    "make-shared-make-private": Race(build.finalized, (make_shared, make_private)),
    "make-shared-delete-slot": Race(build.finalized, (make_shared, delete_slot)),
    "pre-fault-twice": Race(with_empty_page, (pre_fault(0), pre_fault(1))),
    "pre-fault-make-shared": Race(with_empty_page, (pre_fault(0), make_shared)),
    "init-vcpu-add-page-finalize": Race(
        lambda worker: with_second_vcpu(worker).place(PAGE), (init_vcpu(1), add_page, finalize)
    ),
}


HOLES: Mapping[str, Race] = {
    "init-vcpu": Race(with_second_vcpu, (init_vcpu(1), punch_hole(-1))),
    "add-page": Race(placed, (add_page, punch_hole(-1))),
    "make-shared": Race(build.finalized, (make_shared, punch_hole(-1))),
    "pre-fault": Race(with_empty_page, (pre_fault(0), punch_hole(-1))),
}
"""Races with a hole in a guest_memfd, which takes none of the locks that other requests of a VM hold."""
HOLE_AND_FINALIZE = Race(build.populated, (finalize, punch_hole(-1)))
HOLE_AND_PAGE_ELSEWHERE = Race(lambda worker: build.populated(worker).place(PAGE), (add_page, punch_hole(0)))


def error_of(owner: Worker, result: Callable[[], object]) -> int:
    """The errno with which a request failed, 0 if it succeeded; closes the vCPU that it made."""
    try:
        made = result()
    except (KvmError, RemoteOSError) as error:
        return error.errno
    if isinstance(made, int):
        owner.close_fd(made)
    return 0


@contextmanager
def prepared(race: Race, owner: Worker) -> Iterator[list[Call[Any]]]:
    """The requests of a round, of a TD of its own."""
    with race.prepare(owner) as td:
        yield [request(td) for request in race.requests]


def orders(race: Race, owner: Worker) -> set[tuple[int, ...]]:
    """The errnos of the requests in each order, one after the other."""
    found = set()
    for order in itertools.permutations(range(len(race.requests))):
        with prepared(race, owner) as requests:
            errors = {index: error_of(owner, partial(owner.call, requests[index])) for index in order}
        found.add(tuple(errors[index] for index in range(len(requests))))
    return found
