# SPDX-License-Identifier: GPL-2.0-or-later
"""Intra-host migration: a TD moves to another VM and keeps its HKID.

The destination has vCPUs and memory slots, but no KVM_TDX_INIT_VM and no HKID.  Linux cannot do it yet; the
tests cover flavour ``proposed`` (images/kernel/patches/move), ``tdx_vm_move_enc_context_from`` in
arch/x86/kvm/vmx/tdx.c.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from e2e.moves import MOVES, count, counted, destination_of
from fixtures.contracts.answers import refused
from fixtures.contracts.promises import Contract, Refusal
from fixtures.guests import output
from fixtures.guests.launch import Launch
from fixtures.guests.output import INTERRUPT_VECTOR, INTERRUPTS_READY
from fixtures.guests.running import halted, once
from fixtures.guests.vectors import BY, VECTORS, arrived
from fixtures.host.base import TdxHost
from fixtures.host.hkids import Hkids
from fixtures.kvm.build import Assembly, Region
from fixtures.kvm.device import Kvm
from fixtures.kvm.exits import Exit, InterruptedExit, MapGpaExit
from fixtures.kvm.many import many_tds
from fixtures.kvm.move import move_from
from fixtures.softseam.truth import Truth

pytestmark = MOVES

MEMORY_STEPS = 9
"""The number of exits of the payload ``memory``: values, and requests to convert memory."""
RETRY_AT, TWO_MIB = 0x40000000, 1 << 21
"""The payload ``retry`` makes 8 MiB shared from there on; KVM asks user space for 2 MiB at a time."""


def step(built: Assembly) -> int | str:
    """Run to the guest's next value, or to its next request to convert memory, which is granted."""
    vcpu = built.vcpus[0]
    found = vcpu.run()
    if isinstance(found, MapGpaExit):
        built.td.set_memory_attributes(found.gpa, found.size, private=found.private)
        told: int | str = "private" if found.private else "shared"
    else:
        told = output.number_of(found)
    vcpu.complete()
    return told


# it goes on


@pytest.mark.tdx_host(cpus=2)
@pytest.mark.parametrize("vcpus", [1, 2])
def test_counts_on_in_the_destination_without_a_lost_or_repeated_step(
    vcpus: int, launch: Launch, hkids: Hkids, tdx_cleanup: ExitStack
) -> None:
    source = launch("count", vcpus=vcpus)
    assert [count(source), count(source)] == [counted(1, vcpus), counted(2, vcpus)]
    destination = move_from(source, to=destination_of(source, tdx_cleanup))
    assert [count(destination), count(destination)] == [counted(3, vcpus), counted(4, vcpus)]
    assert hkids.taken == 1
    source.close()
    assert count(destination) == counted(5, vcpus)
    assert hkids.taken == 1
    destination.close()
    assert hkids.taken == 0


@pytest.mark.tdx_needs("ground-truth")
def test_module_sees_nothing_but_vcpus_that_change_their_place(
    launch: Launch, tdx_cleanup: ExitStack, truth: Truth
) -> None:
    """No key, page or TD is created, freed or changed at any instant, by the module's own history."""
    source = launch("count")
    count(source)
    before, leaves = truth.state(), truth.leaves()
    destination = move_from(source, to=destination_of(source, tdx_cleanup))
    called = {name for name, leaf in truth.leaves().items() if leaf.calls != leaves[name].calls}
    after = truth.state()
    assert called == {"TDH.VP.FLUSH", "TDH.VP.WR"}
    assert (after.keys, after.pages) == (before.keys, before.pages)
    assert [td.tdr for td in after.tds] == [td.tdr for td in before.tds]
    assert count(destination) == counted(2)


def test_pending_interrupt_is_taken_in_the_destination(launch: Launch, tdx_cleanup: ExitStack) -> None:
    source = launch("interrupt")
    assert output.numbers(source.vcpus[0], 2) == [1, INTERRUPTS_READY]
    source.vcpus[0].complete()
    assert source.td.signal_msi(INTERRUPT_VECTOR) == 1
    destination = move_from(source, to=destination_of(source, tdx_cleanup))
    assert output.number_of(destination.vcpus[0].run()) == 2
    running = destination.vcpus[0].start()
    assert destination.td.signal_msi(INTERRUPT_VECTOR) == 1
    assert output.number_of(running.result()) == 3


@pytest.mark.parametrize("raise_by", BY)
def test_each_vector_before_each_of_ten_moves_arrives_exactly_once(
    raise_by: str, launch: Launch, tdx_cleanup: ExitStack
) -> None:
    built = launch("vectors")
    assert output.numbers(built.vcpus[0], 1) == [INTERRUPTS_READY]
    for _ in range(10):
        built.vcpus[0].complete()
        BY[raise_by](built.td)()
        built = move_from(built, to=destination_of(built, tdx_cleanup))
        (vcpu,) = built.vcpus
        assert arrived(vcpu) == sorted(VECTORS, reverse=True)
        # None is left: the guest halts.  Its last exit is completed by that too.
        assert isinstance(once(vcpu, halted, vcpu.start).stop(), InterruptedExit)


def map_gpa_exit(found: Exit) -> MapGpaExit:
    assert isinstance(found, MapGpaExit)
    return found


def test_map_gpa_that_was_interrupted_goes_on_in_the_destination(
    launch: Launch, tdx_cleanup: ExitStack
) -> None:
    """At each of the 2 MiB user space answers EAGAIN, and moves the TD before the guest tries again."""
    built = launch("retry")
    found = map_gpa_exit(built.vcpus[0].run())
    for part in range(4):
        assert (found.gpa, found.size, found.private) == (RETRY_AT + part * TWO_MIB, TWO_MIB, False)
        built.vcpus[0].answer(found, ret=errno.EAGAIN)
        assert isinstance(built.vcpus[0].complete(), InterruptedExit)
        built = move_from(built, to=destination_of(built, tdx_cleanup))
        found = map_gpa_exit(built.vcpus[0].run())
        assert (found.gpa, found.private) == (RETRY_AT + part * TWO_MIB, False)
        if part < 3:
            found = map_gpa_exit(built.vcpus[0].run())
    assert output.numbers(built.vcpus[0], 2) == [5, 0]


def test_map_gpa_of_which_user_space_owes_a_part_is_in_the_way(
    launch: Launch, tdx_cleanup: ExitStack, contract: Contract
) -> None:
    source = launch("retry")
    (vcpu,) = source.vcpus
    map_gpa_exit(vcpu.run())
    destination = destination_of(source, tdx_cleanup)
    # To complete one part of the request is to be asked for the next.
    assert map_gpa_exit(vcpu.complete()).gpa == RETRY_AT + TWO_MIB
    with refused(contract, Refusal.MOVE_BUSY):
        move_from(source, to=destination)
    assert map_gpa_exit(vcpu.run()).gpa == RETRY_AT + 2 * TWO_MIB


def test_memory_is_accepted_and_converted_as_if_nothing_had_happened(
    launch: Launch, tdx_cleanup: ExitStack
) -> None:
    """A move comes before each of the guest's steps, also in the middle of its conversions."""
    region = Region(0x100000, 16 * 4096)
    still = launch("memory", regions=[region])
    wanted = [step(still) for _ in range(MEMORY_STEPS)]
    built = launch("memory", regions=[region])
    heard = []
    for _ in range(MEMORY_STEPS):
        built = move_from(built, to=destination_of(built, tdx_cleanup))
        heard.append(step(built))
    assert heard == wanted
    # Two conversions, and the values read there.
    assert wanted[3] == "shared"
    assert wanted[6] == "private"


def test_moves_ten_times_and_never_back_to_the_dead(
    launch: Launch, hkids: Hkids, tdx_cleanup: ExitStack, contract: Contract
) -> None:
    first = built = launch("count")
    for step in range(1, 11):
        assert count(built) == counted(step)
        built = move_from(built, to=destination_of(built, tdx_cleanup))
        assert hkids.taken == 1
    with refused(contract, Refusal.MOVE_DEAD):
        move_from(built, to=first)
    assert count(built) == counted(11)


def test_source_is_dead_and_closes_in_any_order(
    launch: Launch, hkids: Hkids, tdx_cleanup: ExitStack, contract: Contract
) -> None:
    for order in itertools.permutations(range(3)):
        source = launch("count")
        count(source)
        destination = move_from(source, to=destination_of(source, tdx_cleanup))
        with refused(contract, Refusal.VM_DEAD):
            source.td.init_vm()
        with refused(contract, Refusal.VM_DEAD):
            source.vcpus[0].run()
        pins = source.pins()
        for place in order:
            pins[place].close()
            assert hkids.taken == 1
        assert count(destination) == counted(2)
        destination.close()
        assert hkids.taken == 0


def test_td_ends_with_its_destination_though_the_source_is_still_open(
    launch: Launch, hkids: Hkids, tdx_cleanup: ExitStack, assert_gone: Callable[[], None]
) -> None:
    source = launch("count")
    count(source)
    move_from(source, to=destination_of(source, tdx_cleanup)).close()
    assert hkids.taken == 0
    assert_gone()


def test_goes_on_when_the_sources_process_is_killed(
    launch: Launch, tdx_host: TdxHost, hkids: Hkids, tdx_cleanup: ExitStack
) -> None:
    old, new = (tdx_cleanup.enter_context(tdx_host.agent.spawn()) for _ in range(2))
    source = launch("count", owner=old)
    count(source)
    destination = move_from(source, to=destination_of(source, tdx_cleanup, new))
    old.kill()
    old.wait()
    assert count(destination) == counted(2)
    assert hkids.taken == 1


def test_source_killed_before_the_move_takes_its_td_along(
    launch: Launch, tdx_host: TdxHost, hkids: Hkids, tdx_cleanup: ExitStack
) -> None:
    old, new = (tdx_cleanup.enter_context(tdx_host.agent.spawn()) for _ in range(2))
    source = launch("count", owner=old)
    destination = destination_of(source, tdx_cleanup, new)
    old.kill()
    old.wait()
    assert hkids.taken == 0
    destination.close()


# keys


@pytest.mark.parametrize(
    "keyids",
    [pytest.param(3, marks=pytest.mark.tdx_host(keyids=3)), pytest.param(None, id="usual")],
)
def test_moves_when_every_hkid_is_in_use(
    keyids: int | None, kvm: Kvm, launch: Launch, hkids: Hkids, tdx_cleanup: ExitStack
) -> None:
    assert keyids in (None, hkids.capacity + 1)
    source = launch("count")
    count(source)
    many_tds(kvm, hkids.free)
    assert hkids.free == 0
    destination = move_from(source, to=destination_of(source, tdx_cleanup))
    assert hkids.free == 0
    assert count(destination) == counted(2)


def test_naive_destination_takes_a_key_and_is_refused(
    launch: Launch, hkids: Hkids, tdx_cleanup: ExitStack, contract: Contract
) -> None:
    source = launch("count")
    count(source)
    destination = destination_of(source, tdx_cleanup)
    destination.td.init_vm()
    assert hkids.taken == 2
    with refused(contract, Refusal.MOVE_INITIALIZED):
        move_from(source, to=destination)
    assert count(source) == counted(2)
    destination.close()
    assert hkids.taken == 1


def test_naive_destination_cannot_be_had_when_every_hkid_is_in_use(
    kvm: Kvm, launch: Launch, hkids: Hkids, tdx_cleanup: ExitStack, contract: Contract
) -> None:
    source = launch("count")
    destination = destination_of(source, tdx_cleanup)
    many_tds(kvm, hkids.free)
    with refused(contract, Refusal.INIT_NO_HKID):
        destination.td.init_vm()
    move_from(source, to=destination)
    assert count(destination) == counted(1)
