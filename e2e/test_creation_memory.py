# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_TDX_INIT_MEM_REGION: a TD's initial memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import pytest

from fixtures.agent.client import Worker
from fixtures.contracts.answers import each_refused, refused
from fixtures.contracts.promises import Contract, Refusal
from fixtures.deadline import until
from fixtures.guests import output
from fixtures.guests.launch import Launch
from fixtures.guests.running import interrupted
from fixtures.kvm import abi, build, commands
from fixtures.kvm.abi import PAGE_SIZE
from fixtures.kvm.build import Assembly, Region
from fixtures.kvm.errors import errno_of
from fixtures.kvm.memory import Memory
from fixtures.kvm.params import UNALTERED, InitVmParams, MemorySlot, Overrides
from fixtures.kvm.vcpu import Vcpu
from fixtures.softseam.truth import Truth

BASE = 0x100000
TWO_MIB = 1 << 21
RANGES = 50
"""More than the page tables for which KVM has memory ready (KVM_ARCH_NR_OBJS_PER_MEMORY_CACHE, 40)."""
PAGES = 4
PLAIN_SLOT = 0x40000000
SHARED = InitVmParams().shared_bit
ALREADY_ACCEPTED = 0xB0A
CHUNKS = PAGE_SIZE // 256
"""TDH.MR.EXTEND measures 256 bytes at a time."""


@dataclass(frozen=True)
class Request:
    """The arguments of one INIT_MEM_REGION.

    :param source: offset from a page of the process' memory; ``None`` is address 0.
    """

    gpa: int = BASE
    pages: int = 1
    source: int | None = 0
    altered: Overrides = UNALTERED


@dataclass(frozen=True)
class EmptySlot:
    """A TD with one vCPU, an empty private memslot at 1 MiB, and memory to be copied into it."""

    built: Assembly
    source: Memory

    @property
    def vcpu(self) -> Vcpu:
        return self.built.vcpus[0]

    def add(self, request: Request = Request()) -> None:
        """KVM_TDX_INIT_MEM_REGION."""
        address = 0 if request.source is None else self.source.address + request.source
        self.built.worker.call(
            commands.init_mem_region(
                self.vcpu.fd, address, request.gpa, request.pages, altered=request.altered
            )
        )

    def add_region(self, altered: Overrides, *, measure: bool = True) -> None:
        """KVM_TDX_INIT_MEM_REGION with a structure that stands in the process' memory."""
        call = commands.init_mem_region(self.vcpu.fd, 0, 0, measure=measure, altered=altered)
        self.built.worker.call(call)


@pytest.fixture
def empty(owner: Worker, tdx_cleanup: ExitStack) -> EmptySlot:
    built = tdx_cleanup.enter_context(build.with_vcpus(owner))
    built.place(Region(BASE, PAGES * PAGE_SIZE))
    return EmptySlot(built, Memory.map(owner, PAGES * PAGE_SIZE))


# refused, and possible right afterwards

MISTAKES: dict[str, tuple[Refusal, Request]] = {
    "flags": (Refusal.REGION_FLAGS, Request(altered=Overrides(flags=2))),
    "region-at-a-bad-address": (Refusal.REGION_BAD_POINTER, Request(altered=Overrides(data=0))),
    "source-not-at-a-page": (Refusal.REGION_SOURCE_MISALIGNED, Request(source=8)),
    "source-0": (Refusal.REGION_SOURCE_ZERO, Request(source=None)),
    "source-not-mapped": (Refusal.REGION_SOURCE_UNMAPPED, Request(source=-(1 << 30))),
    "gpa-not-at-a-page": (Refusal.REGION_GPA_MISALIGNED, Request(gpa=BASE + 8)),
    "no-pages": (Refusal.REGION_NO_PAGES, Request(pages=0)),
    "pages-that-overflow": (Refusal.REGION_OVERFLOW, Request(pages=1 << 52)),
    "end-that-overflows": (Refusal.REGION_OVERFLOW, Request(pages=(1 << 52) - 1)),
    "shared-gpa": (Refusal.REGION_SHARED_GPA, Request(gpa=SHARED | BASE)),
    "end-that-is-shared": (Refusal.REGION_SHARED_GPA, Request(gpa=SHARED - PAGE_SIZE, pages=2)),
    "gpa-without-a-slot": (Refusal.REGION_NO_SLOT, Request(gpa=BASE - PAGE_SIZE)),
}


def test_wrong_region_is_refused_and_can_be_put_right(empty: EmptySlot, contract: Contract) -> None:
    requests = {name: (refusal, partial(empty.add, wrong)) for name, (refusal, wrong) in MISTAKES.items()}
    each_refused(contract, requests)
    empty.add()


def test_slot_without_a_guest_memfd_is_refused(empty: EmptySlot, contract: Contract) -> None:
    td = empty.built.td
    with Memory.map(td.worker, PAGE_SIZE) as shared:
        td.set_slot(MemorySlot(5, PLAIN_SLOT, PAGE_SIZE, shared.address))
        with refused(contract, Refusal.REGION_SLOT_WITHOUT_MEMFD):
            empty.add(Request(gpa=PLAIN_SLOT))


def test_memory_that_is_not_private_is_refused_until_it_is(empty: EmptySlot, contract: Contract) -> None:
    empty.built.td.set_memory_attributes(BASE, PAGE_SIZE, private=False)
    with refused(contract, Refusal.REGION_NOT_PRIVATE):
        empty.add()
    empty.built.td.set_memory_attributes(BASE, PAGE_SIZE, private=True)
    empty.add()


def test_page_that_is_there_is_refused(empty: EmptySlot, contract: Contract) -> None:
    empty.add()
    with refused(contract, Refusal.REGION_TWICE):
        empty.add()
    empty.add(Request(gpa=BASE + PAGE_SIZE))


def test_vcpu_that_is_not_initialized_adds_none(empty: EmptySlot, contract: Contract) -> None:
    late = empty.built.td.create_vcpu(1)
    with refused(contract, Refusal.REGION_VCPU_NOT_INITIALIZED):
        late.init_mem_region(empty.source.address, BASE)


def test_finalized_td_takes_none(empty: EmptySlot, contract: Contract) -> None:
    empty.built.finalize()
    with refused(contract, Refusal.REGION_FINALIZED):
        empty.add()


def test_memory_cannot_be_mapped_ahead_before_finalize(empty: EmptySlot, contract: Contract) -> None:
    with refused(contract, Refusal.PRE_FAULT_TOO_EARLY):
        empty.vcpu.pre_fault(BASE, PAGE_SIZE)
    empty.built.finalize()
    assert empty.vcpu.pre_fault(BASE, PAGE_SIZE) == 0


# regions of several pages


@pytest.mark.tdx_needs("ground-truth")
def test_region_that_ends_in_shared_addresses_adds_nothing(
    td_with_vcpus: Assembly, contract: Contract, truth: Truth
) -> None:
    """The errno alone is that of a region whose second page has no slot."""
    last = SHARED - PAGE_SIZE
    td_with_vcpus.place(Region(last, PAGE_SIZE))
    with (
        Memory.map(td_with_vcpus.worker, 2 * PAGE_SIZE) as source,
        refused(contract, Refusal.REGION_SHARED_GPA),
    ):
        td_with_vcpus.vcpus[0].init_mem_region(source.address, last, 2)
    (td,) = truth.tds()
    assert "reg" not in truth.state().pages_of(td.tdr)


@pytest.fixture
def region(owner: Worker) -> Memory:
    """Memory for a ``struct kvm_tdx_init_mem_region`` that can be read after the call."""
    return Memory.map(owner, PAGE_SIZE)


def write_region(memory: Memory, empty: EmptySlot, pages: int) -> Overrides:
    memory.write(0, bytes(abi.TdxInitMemRegion(empty.source.address, BASE, pages)))
    return Overrides(data=memory.address)


def read_region(memory: Memory) -> tuple[int, int, int]:
    """Read source, GPA and the number of pages that are left."""
    found = abi.TdxInitMemRegion.from_buffer_copy(memory.read(0, 24))
    return found.source_addr, found.gpa, found.nr_pages


def test_region_that_is_done_has_nothing_left(empty: EmptySlot, region: Memory) -> None:
    empty.add_region(write_region(region, empty, PAGES))
    size = PAGES * PAGE_SIZE
    assert read_region(region) == (empty.source.address + size, BASE + size, 0)


def test_region_that_fails_half_way_tells_where(empty: EmptySlot, region: Memory, contract: Contract) -> None:
    altered = write_region(region, empty, PAGES + 2)
    with refused(contract, Refusal.REGION_NO_SLOT):
        empty.add_region(altered)
    size = PAGES * PAGE_SIZE
    assert read_region(region) == (empty.source.address + size, BASE + size, 2)


def test_region_that_a_signal_interrupts_can_be_taken_up_again(
    owner: Worker, tdx_cleanup: ExitStack, region: Memory, contract: Contract
) -> None:
    pages = 65536  # Several seconds' work for an emulated machine, of which little is done.
    built = tdx_cleanup.enter_context(build.with_vcpus(owner))
    built.place(Region(BASE, pages * PAGE_SIZE))
    empty = EmptySlot(built, Memory.map(owner, pages * PAGE_SIZE))
    altered = write_region(region, empty, pages)
    with built.td.stats_fd() as stats:
        job = owner.start(commands.init_mem_region(empty.vcpu.fd, 0, 0, measure=False, altered=altered))
        until(lambda: job.done() or stats.read()["pages_4k"] != (0,), "the first page to be added")
    with refused(contract, Refusal.REGION_INTERRUPTED):
        interrupted(job)
    source, gpa, left = read_region(region)
    done = (pages - left) * PAGE_SIZE
    assert 0 < left < pages
    assert (source, gpa) == (empty.source.address + done, BASE + done)
    region.write(abi.TdxInitMemRegion.nr_pages.offset, (8).to_bytes(8, "little"))
    empty.add_region(altered, measure=False)
    assert read_region(region) == (source + 8 * PAGE_SIZE, gpa + 8 * PAGE_SIZE, 0)


# the memory afterwards


def test_guest_finds_the_bytes_and_need_not_accept_them(launch: Launch) -> None:
    data = (0x12345678).to_bytes(4, "little")
    built = launch("accept", regions=[Region(BASE, PAGE_SIZE, data)])
    assert output.numbers(built.vcpus[0], 2) == [ALREADY_ACCEPTED, 0x12345678]


def test_source_may_change_afterwards(empty: EmptySlot, payloads: Mapping[str, bytes]) -> None:
    empty.source.write(0, b"\1")
    empty.add()
    empty.source.write(0, b"\2")
    empty.built.populate(Region.firmware(payloads["accept"])).finalize()
    assert output.numbers(empty.vcpu, 2) == [ALREADY_ACCEPTED, 1]


def test_source_may_be_read_only(empty: EmptySlot, payloads: Mapping[str, bytes]) -> None:
    """As the mapping of a firmware's file may be."""
    empty.source.write(0, b"\3")
    empty.source.make_read_only()
    empty.add()
    empty.built.populate(Region.firmware(payloads["accept"])).finalize()
    assert output.numbers(empty.vcpu, 2) == [ALREADY_ACCEPTED, 3]


@pytest.mark.tdx_needs("ground-truth")
@pytest.mark.parametrize(
    ("measure", "chunks"),
    [pytest.param(True, CHUNKS, id="measured"), pytest.param(False, 0, id="not-measured")],
)
def test_pages_are_added_and_measured_as_asked(
    measure: bool, chunks: int, empty: EmptySlot, truth: Truth
) -> None:
    before = truth.leaves()
    empty.vcpu.init_mem_region(empty.source.address, BASE, PAGES, measure=measure)
    after = truth.leaves()
    assert after["TDH.MEM.PAGE.ADD"].calls - before["TDH.MEM.PAGE.ADD"].calls == PAGES
    assert after["TDH.MR.EXTEND"].calls - before["TDH.MR.EXTEND"].calls == PAGES * chunks


@pytest.mark.tdx_needs("ground-truth")
@pytest.mark.parametrize(
    "take_away",
    [
        pytest.param(lambda built: built.memfds[0].punch_hole(), id="punch-hole"),
        pytest.param(
            lambda built: built.td.set_memory_attributes(BASE, PAGES * PAGE_SIZE, private=False),
            id="made-shared",
        ),
        pytest.param(lambda built: built.td.delete_slot(built.placed[0].slot.slot, BASE), id="slot-deleted"),
    ],
)
def test_memory_that_is_taken_away_is_removed_from_the_module(
    take_away: Callable[[Assembly], None], empty: EmptySlot, truth: Truth
) -> None:
    empty.vcpu.init_mem_region(empty.source.address, BASE, PAGES)
    (td,) = truth.tds()
    assert truth.state().pages_of(td.tdr)["reg"] == PAGES
    take_away(empty.built)
    assert "reg" not in truth.state().pages_of(td.tdr)


@pytest.mark.tdx_needs("ground-truth")
@pytest.mark.parametrize("first", [0, 1, PAGES - 1], ids="from-page-{}".format)
def test_hole_takes_its_own_pages_where_the_slot_begins_inside_of_the_file(
    first: int, td_with_vcpus: Assembly, owner: Worker, truth: Truth
) -> None:
    """What is left is that which the module refuses to add again."""
    before = 3
    td, vcpu = td_with_vcpus.td, td_with_vcpus.vcpus[0]
    size = PAGES * PAGE_SIZE
    with (
        td.create_guest_memfd(size + before * PAGE_SIZE) as memfd,
        Memory.map(owner, size) as shared,
    ):
        flags = abi.KVM_MEM_GUEST_MEMFD
        td.set_slot(MemorySlot(9, BASE, size, shared.address, memfd.fd, before * PAGE_SIZE, flags))
        td.set_memory_attributes(BASE, size, private=True)
        vcpu.init_mem_region(shared.address, BASE, PAGES)
        memfd.punch_hole((before + first) * PAGE_SIZE, PAGE_SIZE)
        for page in range(PAGES):
            added = partial(vcpu.init_mem_region, shared.address, BASE + page * PAGE_SIZE, 1)
            assert (errno_of(added) == 0) == (page == first), page


def test_page_that_was_taken_away_can_be_added_again(empty: EmptySlot) -> None:
    empty.add()
    empty.built.memfds[0].punch_hole(0, PAGE_SIZE)
    empty.add()


def test_any_vcpu_that_is_initialized_may_bring_memory(td_initialized: Assembly) -> None:
    """The first one is not, and has nothing to do with it."""
    built = td_initialized.create_vcpus(2).place(Region(BASE, PAGE_SIZE))
    vcpu = built.vcpus[1]
    vcpu.set_cpuid2()
    vcpu.init_vcpu()
    vcpu.init_mem_region(b"\x5a" * PAGE_SIZE, BASE)


def test_memory_may_be_anywhere_in_more_places_than_kvm_keeps_page_tables_for(owner: Worker) -> None:
    with build.finalized(owner) as built:
        (vcpu,) = built.vcpus
        first = 1 << 32
        built.place(Region(first, RANGES * TWO_MIB))
        for index in range(RANGES):
            assert vcpu.pre_fault(first + index * TWO_MIB, PAGE_SIZE) == 0
