# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers of pages, sizes and offsets that overflow: the request is refused, and nothing of it was done."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import pytest

from fixtures.agent.client import Worker
from fixtures.contracts.answers import refused
from fixtures.contracts.promises import Contract, Refusal
from fixtures.findings import shows
from fixtures.guests import output
from fixtures.kvm import abi, build, commands, cpuid
from fixtures.kvm.abi import PAGE_SIZE, TdxCmdId
from fixtures.kvm.build import Assembly, Region
from fixtures.kvm.memory import Memory
from fixtures.kvm.params import InitVmParams, MemorySlot, Overrides

BASE = 0x100000
"""The page that the payload ``accept`` accepts."""
PAGES = 4
HUGE, MUCH = 1 << 34, 50
"""A size that takes a second page by page, and how much longer than one page it may take."""
LASTING, ENOUGH = (1 << 28, 1 << 30, 1 << 32), 4
"""Sizes of which one lasts for some signals at least."""
SHARED = InitVmParams().shared_bit
FILLED = b"\xa5"
NOT_THERE_BEFORE = 0
THERE = 0xB0A
"""What the module answers a guest that accepts a page which was added before the TD was finalized."""


@dataclass(frozen=True)
class Request:
    """The arguments of a KVM_TDX_INIT_MEM_REGION.

    :param source: ``None`` for memory with content.
    """

    pages: int = PAGES
    gpa: int = BASE
    source: int | None = None
    refusal: Refusal = Refusal.REGION_OVERFLOW


F14 = pytest.mark.tdx_finding("F14", flavours=("upstream",))


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(Request((1 << 52) + 1), id="pages-2**52+1", marks=F14),
        pytest.param(Request((1 << 52) + PAGES), id="pages-2**52+4", marks=F14),
        pytest.param(Request((1 << 63) + 2), id="pages-2**63+2", marks=F14),
        pytest.param(Request(1 << 52), id="pages-2**52"),
        pytest.param(Request((1 << 64) - 1), id="pages-all-ones"),
        pytest.param(Request(1, gpa=(1 << 64) - PAGE_SIZE), id="gpa-last-page"),
        pytest.param(Request(2, gpa=(1 << 64) - PAGE_SIZE), id="gpa-wraps"),
        pytest.param(
            Request(2, gpa=SHARED - PAGE_SIZE, refusal=Refusal.REGION_SHARED_GPA), id="gpa-gets-shared"
        ),
        pytest.param(
            Request(source=(1 << 64) - PAGE_SIZE, refusal=Refusal.REGION_SOURCE_WRAPS), id="source-wraps"
        ),
        pytest.param(
            Request(source=(1 << 63) - PAGE_SIZE, refusal=Refusal.REGION_SOURCE_UNMAPPED),
            id="source-in-no-space",
        ),
    ],
)
def test_region_adds_nothing(
    wrong: Request,
    owner: Worker,
    tdx_cleanup: ExitStack,
    contract: Contract,
    payloads: Mapping[str, bytes],
) -> None:
    built = tdx_cleanup.enter_context(build.with_vcpus(owner))
    (vcpu,) = built.place(Region(BASE, PAGES * PAGE_SIZE)).vcpus
    content, argument = Memory.map(owner, PAGES * PAGE_SIZE), Memory.map(owner, PAGE_SIZE)
    source = content.address if wrong.source is None else wrong.source
    asked = bytes(abi.TdxInitMemRegion(source, wrong.gpa, wrong.pages))
    argument.write(0, asked)
    altered = Overrides(data=argument.address)
    with refused(contract, wrong.refusal):
        owner.call(commands.init_mem_region(vcpu.fd, 0, 0, altered=altered))
    built.populate(Region.firmware(payloads["accept"])).finalize()
    with shows("F14"):
        assert argument.read(0, len(asked)) == asked
        assert output.numbers(vcpu, 2) == [NOT_THERE_BEFORE, 0]


@pytest.fixture
def ready(owner: Worker, tdx_cleanup: ExitStack, payloads: Mapping[str, bytes]) -> Assembly:
    """A finalized TD with a private memslot at 1 MiB, of which it has no page yet."""
    built = build.finalized(owner, payloads["accept"], regions=[Region(BASE, PAGES * PAGE_SIZE)])
    return tdx_cleanup.enter_context(built)


def mapped(built: Assembly) -> int:
    """Return the number of pages that KVM has mapped into a TD."""
    with built.td.stats_fd() as stats:
        return sum(stats.read()["pages_4k"])


@pytest.mark.parametrize(
    ("gpa", "size"),
    [
        pytest.param(BASE, 0, id="no-size"),
        pytest.param(BASE, (1 << 64) - BASE, id="ends-at-2**64"),
        pytest.param(BASE, (1 << 64) - PAGE_SIZE, id="wraps"),
        pytest.param((1 << 64) - PAGE_SIZE, PAGE_SIZE, id="last-page"),
        pytest.param(BASE, PAGE_SIZE + 1, id="size-not-in-pages"),
        pytest.param(BASE + 1, PAGE_SIZE, id="gpa-not-at-a-page"),
        pytest.param(SHARED | BASE, PAGE_SIZE, id="shared"),
    ],
)
def test_pre_fault_maps_nothing(gpa: int, size: int, ready: Assembly, contract: Contract) -> None:
    (vcpu,) = ready.vcpus
    before = mapped(ready)
    with Memory.map(ready.worker, PAGE_SIZE) as argument:
        asked = bytes(abi.PreFaultMemory(gpa, size))
        argument.write(0, asked)
        with refused(contract, Refusal.PRE_FAULT_RANGE):
            ready.worker.call(commands.ioctl(vcpu.fd, abi.Request.KVM_PRE_FAULT_MEMORY, argument.address))
        assert argument.read(0, len(asked)) == asked
    assert mapped(ready) == before
    assert output.numbers(vcpu, 2) == [NOT_THERE_BEFORE, 0]


def test_pre_fault_goes_up_to_where_shared_memory_begins(
    owner: Worker, tdx_cleanup: ExitStack, payloads: Mapping[str, bytes]
) -> None:
    top = Region(SHARED - PAGE_SIZE, PAGE_SIZE)
    built = tdx_cleanup.enter_context(build.finalized(owner, payloads["hello"], regions=[top]))
    assert built.vcpus[0].pre_fault(top.gpa, 2 * PAGE_SIZE) == PAGE_SIZE


@pytest.mark.parametrize(
    ("gpa", "size"),
    [
        pytest.param(BASE, 0, id="no-size"),
        pytest.param(BASE, (1 << 64) - PAGE_SIZE, id="wraps"),
        pytest.param((1 << 64) - PAGE_SIZE, PAGE_SIZE, id="ends-at-2**64"),
        pytest.param(BASE, PAGE_SIZE + 1, id="size-not-in-pages"),
    ],
)
def test_attributes_change_nothing(gpa: int, size: int, ready: Assembly, contract: Contract) -> None:
    (vcpu,) = ready.vcpus
    assert vcpu.pre_fault(BASE, PAGE_SIZE) == 0
    before = mapped(ready)
    with refused(contract, Refusal.ATTRIBUTES_RANGE):
        ready.td.set_memory_attributes(gpa, size, private=False)
    assert mapped(ready) == before
    assert output.numbers(vcpu, 2) == [NOT_THERE_BEFORE, 0]


@pytest.mark.tdx_finding("F21", flavours=("upstream",))
def test_attributes_of_a_huge_range_take_as_long_as_there_are_any(ready: Assembly) -> None:
    """All guest-physical addresses would take years, page by page, and no signal ends it."""

    def seconds(size: int) -> float:
        ready.td.set_memory_attributes(BASE, PAGE_SIZE, private=True)
        begin = time.monotonic()
        ready.td.set_memory_attributes(0, size, private=False)
        return time.monotonic() - begin

    little = min(seconds(BASE + PAGE_SIZE) for _ in range(3))
    with shows("F21"):
        assert seconds(HUGE) < MUCH * little


def test_signal_does_not_end_a_change_of_attributes(ready: Assembly) -> None:
    """Only one that kills may: user space kicks a vCPU whose thread converts memory for it."""
    signals = 0
    for size in LASTING:
        changing = ready.worker.start(
            commands.set_memory_attributes(ready.td.fd, BASE, size, abi.KVM_MEMORY_ATTRIBUTE_PRIVATE)
        )
        signals = 0
        while not changing.done():
            signals += changing.interrupt()
        changing.result()
        if signals >= ENOUGH:
            break
    assert signals >= ENOUGH, "it does not last"


SLOTS = {
    "size-wraps": {"gpa": BASE, "size": (1 << 64) - PAGE_SIZE},
    "offset-wraps": {"guest_memfd_offset": (1 << 64) - PAGE_SIZE, "size": 2 * PAGE_SIZE},
    "offset-ends-at-2**64": {"guest_memfd_offset": (1 << 64) - PAGE_SIZE},
    "offset-gets-negative": {"guest_memfd_offset": (1 << 63) - PAGE_SIZE, "size": 2 * PAGE_SIZE},
    "offset-negative": {"guest_memfd_offset": 1 << 63},
    "offset-not-at-a-page": {"guest_memfd_offset": 1},
    "beyond-the-guest_memfd": {"guest_memfd_offset": PAGES * PAGE_SIZE},
    "end-beyond-the-guest_memfd": {"guest_memfd_offset": (PAGES - 1) * PAGE_SIZE, "size": 2 * PAGE_SIZE},
    "gpa-wraps": {"gpa": (1 << 64) - PAGE_SIZE, "size": 2 * PAGE_SIZE},
    "begins-below-the-shared-bit": {"gpa": SHARED - PAGE_SIZE, "size": 2 * PAGE_SIZE},
    "address-wraps": {"address": (1 << 64) - PAGE_SIZE, "size": 2 * PAGE_SIZE},
}


@pytest.mark.parametrize("wrong", SLOTS.values(), ids=SLOTS)
def test_slot_is_not_made(wrong: Mapping[str, Any], ready: Assembly, contract: Contract) -> None:
    td, number = ready.td, ready.free_slot
    memfd = td.create_guest_memfd(PAGES * PAGE_SIZE)
    with Memory.map(ready.worker, PAGES * PAGE_SIZE) as shared, memfd:
        right = MemorySlot(
            number, 0x40000000, PAGE_SIZE, shared.address, memfd.fd, flags=abi.KVM_MEM_GUEST_MEMFD
        )
        with refused(contract, Refusal.SLOT_RANGE):
            td.set_slot(replace(right, **wrong))
        with refused(contract, Refusal.SLOT_DELETE_NONE):
            td.delete_slot(number)
        td.set_slot(right)
        assert output.numbers(ready.vcpus[0], 2) == [NOT_THERE_BEFORE, 0]


@pytest.mark.parametrize("size", [0, 1, (1 << 63), (1 << 64) - PAGE_SIZE, (1 << 64) - 1], ids=hex)
def test_guest_memfd_is_not_made(size: int, ready: Assembly, contract: Contract) -> None:
    with refused(contract, Refusal.MEMFD_SIZE):
        ready.td.create_guest_memfd(size)


@pytest.mark.parametrize(
    ("command", "offset"),
    [
        pytest.param(TdxCmdId.CAPABILITIES, abi.TdxCapabilities.cpuid.offset, id="capabilities"),
        pytest.param(TdxCmdId.GET_CPUID, 0, id="get-cpuid"),
    ],
)
def test_room_for_cpuid_may_be_all_ones(
    command: TdxCmdId, offset: int, owner: Worker, tdx_cleanup: ExitStack
) -> None:
    """KVM writes the entries that there are and their number, and nothing behind them."""
    built = tdx_cleanup.enter_context(build.with_vcpus(owner))
    target = built.vcpus[0] if command == TdxCmdId.GET_CPUID else built.td
    with Memory.map(owner, 4 * PAGE_SIZE) as memory:
        memory.write(0, FILLED * memory.size)
        memory.write(offset, bytes(abi.Cpuid2((1 << 32) - 1, 0)))
        owner.call(commands.tdx(target.fd, command, memory.address))
        found = memory.read(0, memory.size)
    entries = cpuid.unpack(found[offset:])
    assert entries
    end = offset + len(cpuid.pack(entries))
    assert found[end:] == FILLED * (len(found) - end)
