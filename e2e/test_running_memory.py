# SPDX-License-Identifier: GPL-2.0-or-later
"""A running TD's memory: pages that it accepts, pages that it shares, and pages that are taken away."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest

from e2e.findings import F12
from fixtures.contracts.answers import refused
from fixtures.contracts.promises import Contract, Refusal
from fixtures.findings import shows
from fixtures.guests import output
from fixtures.guests.execute import Executor, load_shared
from fixtures.guests.launch import Launch
from fixtures.guests.running import inside, once
from fixtures.kvm import abi
from fixtures.kvm.abi import PAGE_SIZE
from fixtures.kvm.build import Assembly, Region
from fixtures.kvm.errors import errno_of
from fixtures.kvm.exits import InterruptedExit, MapGpaExit, MemoryFaultExit
from fixtures.kvm.memory import Memory
from fixtures.kvm.params import InitVmParams, MemorySlot
from fixtures.softseam.truth import Truth

BASE = 0x100000
PAGES = 16
ACCEPTED, ALREADY_ACCEPTED = 0, 0xB0A
FROM_HOST, FROM_GUEST = 0x0BADCAFE, 0x600DF00D

ONE_PAGE = (Region(BASE, PAGE_SIZE),)
MANY_PAGES = (Region(BASE, PAGES * PAGE_SIZE),)


def word(data: bytes) -> int:
    return int.from_bytes(data[:4], "little")


# private memory


def test_accepted_page_is_zero_and_keeps_what_the_guest_writes(launch: Launch) -> None:
    vcpu = launch("accept", regions=ONE_PAGE).vcpus[0]
    assert output.numbers(vcpu, 6) == [ACCEPTED, 0, ALREADY_ACCEPTED, 1, ALREADY_ACCEPTED, 2]


def test_pages_are_accepted_one_by_one_and_all_are_zero(launch: Launch) -> None:
    vcpu = launch("memory", regions=MANY_PAGES).vcpus[0]
    status_of_all, sum_of_all = output.numbers(vcpu, 2)
    assert (status_of_all, sum_of_all) == (ACCEPTED, 0)


@pytest.mark.tdx_needs("ground-truth")
def test_page_is_mapped_when_the_guest_accepts_it_and_not_before(launch: Launch, truth: Truth) -> None:
    built = launch("memory", regions=MANY_PAGES)
    (td,) = truth.tds()
    before = truth.state().pages_of(td.tdr)["reg"]
    calls = truth.leaves()["TDH.MEM.PAGE.AUG"].calls
    output.numbers(built.vcpus[0], 1)
    assert truth.state().pages_of(td.tdr)["reg"] - before == PAGES
    assert truth.leaves()["TDH.MEM.PAGE.AUG"].calls - calls == PAGES


def test_host_does_not_see_private_memory(launch: Launch) -> None:
    """The process has other memory mapped at the same place."""
    built = launch("accept", regions=ONE_PAGE)
    output.numbers(built.vcpus[0], 4)
    assert built.placed[-1].shared.read(0, PAGE_SIZE) == bytes(PAGE_SIZE)


def test_reading_a_page_that_is_not_accepted_is_the_end_of_the_vm(launch: Launch, contract: Contract) -> None:
    built = launch("pending", regions=ONE_PAGE)
    vcpu = built.vcpus[0]
    assert output.numbers(vcpu, 1) == [1]
    with refused(contract, Refusal.RUN_PENDING_PAGE):
        vcpu.run()
    with refused(contract, Refusal.VM_DEAD):
        vcpu.run()


def test_access_where_there_is_no_memory_leaves_to_user_space(launch: Launch) -> None:
    vcpu = launch("accept").vcpus[0]
    found = vcpu.run()
    assert isinstance(found, MemoryFaultExit)
    assert (found.gpa, found.size, found.private) == (BASE, PAGE_SIZE, True)


def test_access_where_memory_is_to_be_private_and_there_is_none_leaves_to_user_space(launch: Launch) -> None:
    """The guest and the attributes agree, and there is no slot."""
    built = launch("accept")
    built.td.set_memory_attributes(BASE, PAGE_SIZE, private=True)
    found = built.vcpus[0].run()
    assert isinstance(found, MemoryFaultExit)
    assert (found.gpa, found.size, found.private) == (BASE, PAGE_SIZE, True)
    built.place(*ONE_PAGE)
    assert output.numbers(built.vcpus[0], 2) == [ACCEPTED, 0]


def test_access_to_memory_that_was_not_accepted_is_the_end_of_the_td(launch: Launch) -> None:
    """Of a TD whose guest asked for no #VE for it, and not of the vCPU alone."""
    built = launch("pending", vcpus=2, regions=ONE_PAGE)
    guest, other = built.vcpus
    assert output.numbers(guest, 1) == [1]
    assert errno_of(guest.run) == errno.EIO
    assert errno_of(other.run) == errno.EIO
    assert errno_of(partial(built.td.set_memory_attributes, BASE, PAGE_SIZE, private=True)) == errno.EIO


def test_access_goes_on_when_user_space_puts_memory_there(launch: Launch) -> None:
    built = launch("accept")
    assert isinstance(built.vcpus[0].run(), MemoryFaultExit)
    built.place(*ONE_PAGE)
    assert output.numbers(built.vcpus[0], 2) == [ACCEPTED, 0]


# shared memory


@pytest.fixture
def sharing(launch: Launch) -> Assembly:
    """A guest that has requested that its first page be shared."""
    built = launch("memory", regions=MANY_PAGES)
    output.numbers(built.vcpus[0], 3)
    found = built.vcpus[0].run()
    assert isinstance(found, MapGpaExit)
    assert (found.gpa, found.size, found.private) == (BASE, PAGE_SIZE, False)
    return built


def share(built: Assembly, *, private: bool = False) -> None:
    built.td.set_memory_attributes(BASE, PAGE_SIZE, private=private)


def test_guest_and_host_see_each_others_writes_in_shared_memory(sharing: Assembly) -> None:
    memory = sharing.placed[-1].shared
    share(sharing)
    memory.write(0, FROM_HOST.to_bytes(4, "little"))
    assert output.numbers(sharing.vcpus[0], 2) == [0, FROM_HOST]
    sharing.vcpus[0].run()
    assert word(memory.read(0, 4)) == FROM_GUEST


def test_page_that_was_shared_is_private_again_and_zero(sharing: Assembly) -> None:
    share(sharing)
    output.numbers(sharing.vcpus[0], 2)
    found = sharing.vcpus[0].run()
    assert isinstance(found, MapGpaExit)
    assert (found.gpa, found.size, found.private) == (BASE, PAGE_SIZE, True)
    share(sharing, private=True)
    assert output.numbers(sharing.vcpus[0], 3) == [0, ACCEPTED, 0]
    assert word(sharing.placed[-1].shared.read(0, 4)) == FROM_GUEST


def test_shared_access_to_memory_that_stayed_private_leaves_to_user_space(sharing: Assembly) -> None:
    vcpu = sharing.vcpus[0]
    output.numbers(vcpu, 1)
    for _ in range(2):
        found = vcpu.run()
        assert isinstance(found, MemoryFaultExit)
        assert (found.gpa, found.size, found.private) == (BASE, PAGE_SIZE, False)


def test_private_access_to_memory_that_was_made_shared_leaves_to_user_space(launch: Launch) -> None:
    built = launch("accept", regions=ONE_PAGE)
    output.numbers(built.vcpus[0], 2)
    share(built)
    found = built.vcpus[0].run()
    assert isinstance(found, MemoryFaultExit)
    assert (found.gpa, found.size, found.private) == (BASE, PAGE_SIZE, True)


def test_shared_access_to_a_private_address_without_memory_leaves_to_user_space(launch: Launch) -> None:
    """As one with memory: it is no MMIO."""
    built = launch("execute")
    built.td.set_memory_attributes(ELSEWHERE, PAGE_SIZE, private=True)
    found = Executor(built).run_to_exit([load_shared(ELSEWHERE)])
    assert isinstance(found, MemoryFaultExit)
    assert (found.gpa, found.size, found.private) == (ELSEWHERE, PAGE_SIZE, False)


# memory that user space populates before the guest touches it


SHARED = InitVmParams().shared_bit
ELSEWHERE = 0x40000000
EPT_VIOLATION = 48


def test_memory_that_the_guest_made_shared_is_populated_as_shared(sharing: Assembly) -> None:
    vcpu, memory = sharing.vcpus[0], sharing.placed[-1].shared
    share(sharing)
    memory.write(0, FROM_HOST.to_bytes(4, "little"))
    assert vcpu.pre_fault(BASE, PAGE_SIZE) == 0
    assert output.numbers(vcpu, 2) == [0, FROM_HOST]
    vcpu.run()
    assert word(memory.read(0, 4)) == FROM_GUEST


def test_memory_that_is_shared_in_part_is_populated(sharing: Assembly) -> None:
    share(sharing)
    assert sharing.vcpus[0].pre_fault(BASE, PAGES * PAGE_SIZE) == 0
    assert output.numbers(sharing.vcpus[0], 2) == [0, 0]


def test_memory_that_is_private_again_is_populated_and_has_to_be_accepted(sharing: Assembly) -> None:
    vcpu = sharing.vcpus[0]
    share(sharing)
    output.numbers(vcpu, 2)
    vcpu.run()
    share(sharing, private=True)
    assert vcpu.pre_fault(BASE, PAGES * PAGE_SIZE) == 0
    assert output.numbers(vcpu, 3) == [0, ACCEPTED, 0]


@pytest.mark.tdx_needs("ground-truth")
def test_memory_that_is_shared_is_not_populated_as_private(sharing: Assembly, truth: Truth) -> None:
    """While the guest has only asked for it, the page is still its own."""
    vcpu = sharing.vcpus[0]
    (td,) = truth.tds()
    before = truth.state().pages_of(td.tdr)["reg"]
    assert vcpu.pre_fault(BASE, PAGE_SIZE) == 0
    assert truth.state().pages_of(td.tdr)["reg"] == before
    share(sharing)
    assert vcpu.pre_fault(BASE, PAGE_SIZE) == 0
    assert truth.state().pages_of(td.tdr)["reg"] == before - 1


def test_nothing_is_populated_where_there_is_no_slot(launch: Launch, contract: Contract) -> None:
    built = launch("accept")
    vcpu = built.vcpus[0]
    with refused(contract, Refusal.PRE_FAULT_NO_SLOT):
        vcpu.pre_fault(BASE, PAGE_SIZE)
    share(built, private=True)
    with refused(contract, Refusal.PRE_FAULT_NO_PRIVATE_SLOT):
        vcpu.pre_fault(BASE, PAGE_SIZE)
    built.place(*ONE_PAGE)
    assert vcpu.pre_fault(BASE, PAGE_SIZE) == 0
    assert output.numbers(vcpu, 2) == [ACCEPTED, 0]


def test_populating_ends_where_the_slot_ends(launch: Launch) -> None:
    built = launch("accept", regions=MANY_PAGES)
    assert built.vcpus[0].pre_fault(BASE, 2 * PAGES * PAGE_SIZE) == PAGES * PAGE_SIZE
    assert output.numbers(built.vcpus[0], 2) == [ACCEPTED, 0]


def test_shared_addresses_are_populated_without_their_shared_bit(launch: Launch, contract: Contract) -> None:
    vcpu = launch("accept", regions=ONE_PAGE).vcpus[0]
    with refused(contract, Refusal.PRE_FAULT_SHARED_GPA):
        vcpu.pre_fault(SHARED | BASE, PAGE_SIZE)


def add_shared_memory(built: Assembly) -> None:
    """Add a slot of shared memory, which contains a word of the host's."""
    memory = Memory.map(built.worker, PAGE_SIZE)
    memory.write(0, FROM_HOST.to_bytes(4, "little"))
    built.td.set_slot(MemorySlot(built.free_slot, ELSEWHERE, PAGE_SIZE, memory.address))


def test_shared_memory_is_added_to_a_td_that_runs(launch: Launch) -> None:
    built = launch("execute")
    guest = Executor(built)
    add_shared_memory(built)
    (found,) = guest.run([load_shared(ELSEWHERE)])
    assert (found.vector, found["rax"]) == (None, FROM_HOST)


@pytest.mark.tdx_finding("F12", **F12)
@pytest.mark.parametrize("by_user_space", [False, True], ids=["by-the-guest", "by-pre-fault"])
def test_shared_memory_is_added_where_it_was_missed_before(
    by_user_space: bool, launch: Launch, contract: Contract
) -> None:
    """What missed it leaves an entry for MMIO in the page tables, at which the guest gets a #VE."""
    built = launch("execute")
    guest = Executor(built)
    if by_user_space:
        with refused(contract, Refusal.PRE_FAULT_NO_SLOT):
            built.vcpus[0].pre_fault(ELSEWHERE, PAGE_SIZE)
    else:
        (before,) = guest.run([load_shared(ELSEWHERE)])
        assert before.ve is not None
        assert (before.ve.reason, before.ve.gpa) == (EPT_VIOLATION, SHARED | ELSEWHERE)
    add_shared_memory(built)
    (after,) = guest.run([load_shared(ELSEWHERE)])
    with shows("F12"):
        assert (after.vector, after["rax"]) == (None, FROM_HOST)


# memory whose changes are to be logged


def test_dirty_pages_of_private_memory_cannot_be_logged(launch: Launch, contract: Contract) -> None:
    built = launch("accept", regions=ONE_PAGE)
    vcpu, slot = built.vcpus[0], built.placed[-1].slot
    assert output.numbers(vcpu, 2) == [ACCEPTED, 0]
    logged = replace(slot, flags=slot.flags | abi.KVM_MEM_LOG_DIRTY_PAGES)
    with refused(contract, Refusal.SLOT_DIRTY_LOG):
        built.td.set_slot(logged)
    with refused(contract, Refusal.SLOT_DIRTY_LOG):
        built.td.set_slot(replace(logged, slot=built.free_slot, gpa=ELSEWHERE))
    with refused(contract, Refusal.SLOT_MEMFD_CHANGED):
        built.td.set_slot(replace(slot, flags=abi.KVM_MEM_LOG_DIRTY_PAGES))
    assert output.numbers(vcpu, 4) == [ALREADY_ACCEPTED, 1, ALREADY_ACCEPTED, 2]


# memory that is taken away from a TD that runs


def punch_hole(built: Assembly) -> None:
    built.memfds[-1].punch_hole()


def share_and_take_back(built: Assembly) -> None:
    share(built)
    share(built, private=True)


def delete_and_add_slot(built: Assembly) -> None:
    slot = built.placed[-1].slot
    built.td.set_slot(MemorySlot(slot.slot, slot.gpa, 0))
    built.td.set_slot(slot)


TAKEN_AWAY = pytest.mark.parametrize(
    "take_away",
    [
        pytest.param(punch_hole, id="punch-hole"),
        pytest.param(share_and_take_back, id="shared-and-back"),
        pytest.param(delete_and_add_slot, id="slot-deleted-and-added"),
    ],
)


@TAKEN_AWAY
def test_memory_that_was_taken_away_has_to_be_accepted_again_and_is_zero(
    take_away: Callable[[Assembly], None], launch: Launch
) -> None:
    built = launch("accept", regions=ONE_PAGE)
    vcpu = built.vcpus[0]
    assert output.numbers(vcpu, 4) == [ACCEPTED, 0, ALREADY_ACCEPTED, 1]
    take_away(built)
    assert output.numbers(vcpu, 4) == [ACCEPTED, 0, ALREADY_ACCEPTED, 3]


@TAKEN_AWAY
def test_initial_memory_that_was_taken_away_comes_back_zero(
    take_away: Callable[[Assembly], None], launch: Launch
) -> None:
    built = launch("accept", regions=[Region(BASE, PAGE_SIZE, b"initial")])
    vcpu = built.vcpus[0]
    assert output.numbers(vcpu, 2) == [ALREADY_ACCEPTED, word(b"initial")]
    take_away(built)
    assert output.numbers(vcpu, 2) == [ACCEPTED, 0]


@pytest.mark.tdx_needs("ground-truth")
@TAKEN_AWAY
def test_memory_that_was_taken_away_is_no_longer_the_modules(
    take_away: Callable[[Assembly], None], launch: Launch, truth: Truth
) -> None:
    built = launch("accept", regions=ONE_PAGE)
    (td,) = truth.tds()
    before = truth.state().pages_of(td.tdr)["reg"]
    output.numbers(built.vcpus[0], 2)
    assert truth.state().pages_of(td.tdr)["reg"] == before + 1
    take_away(built)
    assert truth.state().pages_of(td.tdr)["reg"] == before


def test_memory_is_taken_away_while_a_vcpu_is_in_the_guest(launch: Launch) -> None:
    """The module releases a page only when no vCPU can still have it in its TLB: KVM has to kick them."""
    built = launch("spin", vcpus=2, regions=ONE_PAGE)
    spinning, other = built.vcpus
    output.numbers(spinning, 1)
    running = once(spinning, inside, spinning.start)
    for _ in range(20):
        assert other.pre_fault(BASE, PAGE_SIZE) == 0
        punch_hole(built)
    assert not running.done()
    assert isinstance(running.stop(), InterruptedExit)


def test_td_whose_code_is_taken_away_ends(launch: Launch, contract: Contract) -> None:
    """The next instruction is fetched from a page that nobody has accepted."""
    built = launch("count", regions=ONE_PAGE)
    output.numbers(built.vcpus[0], 2)
    built.memfds[0].punch_hole()
    with refused(contract, Refusal.RUN_PENDING_PAGE):
        built.vcpus[0].run()


def test_closing_a_guest_memfd_takes_its_memory_away(launch: Launch) -> None:
    built = launch("accept", regions=ONE_PAGE)
    vcpu = built.vcpus[0]
    output.numbers(vcpu, 2)
    built.memfds[-1].close()
    found = vcpu.run()
    assert isinstance(found, MemoryFaultExit)
