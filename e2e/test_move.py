# SPDX-License-Identifier: GPL-2.0-or-later
"""Intra-host migration: a TD moves to another VM and keeps its HKID.

The destination has vCPUs and memory slots, but no KVM_TDX_INIT_VM and no HKID.  Linux cannot do it yet; the
tests cover flavour ``proposed`` (images/kernel/patches/move), ``tdx_vm_move_enc_context_from`` in
arch/x86/kvm/vmx/tdx.c.
"""

from __future__ import annotations

import errno
import itertools
import signal
from contextlib import ExitStack

import pytest

from e2e.wrong_moves import WRONG_MOVES
from fixtures.agent import syscalls
from fixtures.agent.call import batch_call
from fixtures.agent.client import Worker
from fixtures.cgroup import Cgroup
from fixtures.contracts.answers import refused
from fixtures.contracts.promises import Contract, Refusal
from fixtures.guests import output
from fixtures.guests.launch import Launch
from fixtures.guests.output import COMMON, INTERRUPT_VECTOR, INTERRUPTS_READY
from fixtures.guests.running import halted, inside, once, spin
from fixtures.guests.vectors import BY, VECTORS
from fixtures.host.base import TdxHost
from fixtures.host.hkids import Hkids
from fixtures.kvm import build, commands
from fixtures.kvm.abi import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
from fixtures.kvm.build import Assembly, Region
from fixtures.kvm.device import Kvm
from fixtures.kvm.errors import errno_of
from fixtures.kvm.exits import Exit, InterruptedExit, MapGpaExit
from fixtures.kvm.many import many_tds
from fixtures.kvm.move import move_from, prepare_destination
from fixtures.softseam.truth import Truth

pytestmark = [
    pytest.mark.tdx_offers("move"),
    pytest.mark.usefixtures("td_move"),
    pytest.mark.tdx_needs("misc-cgroup"),
]

MEMORY_STEPS = 9
"""The number of exits of the payload ``memory``: values, and requests to convert memory."""
RETRY_AT, TWO_MIB = 0x40000000, 1 << 21
"""The payload ``retry`` makes 8 MiB shared from there on; KVM asks user space for 2 MiB at a time."""
SYS_KILL = 62


def destination_of(source: Assembly, cleanup: ExitStack, worker: Worker | None = None) -> Assembly:
    """A destination for a TD."""
    return cleanup.enter_context(prepare_destination(source, worker))


def count(built: Assembly) -> list[int]:
    """Let each vCPU count once in its own and once in common memory, and complete its exit for a move."""
    told = []
    for vcpu in built.vcpus:
        told += output.numbers(vcpu, 2)
        vcpu.complete()
    return told


def counted(step: int, vcpus: int = 1) -> list[int]:
    """The numbers that the *step*-th call of :func:`count` returns."""
    return [
        value
        for index in range(vcpus)
        for value in (index << 24 | step, COMMON | ((step - 1) * vcpus + index + 1))
    ]


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
        assert output.numbers(vcpu, len(VECTORS)) == sorted(VECTORS, reverse=True)
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


# cgroups


@pytest.fixture
def pair(tdx_cgroup: Cgroup) -> tuple[Cgroup, Cgroup]:
    """A pair of sibling cgroups."""
    return tdx_cgroup.child("old"), tdx_cgroup.child("new")


def moved_between(
    pair: tuple[Cgroup, Cgroup], tdx_host: TdxHost, launch: Launch, cleanup: ExitStack
) -> tuple[Assembly, Assembly]:
    """A TD of a process in the first cgroup, and a destination for it in the second."""
    old, new = (cleanup.enter_context(tdx_host.agent.spawn(cgroup=group.path)) for group in pair)
    source = launch("count", owner=old)
    count(source)
    return source, destination_of(source, cleanup, new)


def test_charge_moves_to_the_destinations_cgroup(
    pair: tuple[Cgroup, Cgroup],
    tdx_cgroup: Cgroup,
    tdx_host: TdxHost,
    launch: Launch,
    tdx_cleanup: ExitStack,
) -> None:
    source, destination = moved_between(pair, tdx_host, launch, tdx_cleanup)
    assert [group.current for group in pair] == [1, 0]
    move_from(source, to=destination)
    assert [group.current for group in pair] == [0, 1]
    assert (tdx_cgroup.current, tdx_cgroup.peak) == (1, 1)
    source.close()
    assert [group.current for group in pair] == [0, 1]
    destination.close()
    assert [group.current for group in pair] == [0, 0]


def test_limits_of_the_source_and_of_what_both_have_in_common_do_not_matter(
    pair: tuple[Cgroup, Cgroup],
    tdx_cgroup: Cgroup,
    tdx_host: TdxHost,
    launch: Launch,
    tdx_cleanup: ExitStack,
) -> None:
    source, destination = moved_between(pair, tdx_host, launch, tdx_cleanup)
    tdx_cgroup.set_max(1)
    pair[0].set_max(0)
    move_from(source, to=destination)
    assert [group.current for group in (*pair, tdx_cgroup)] == [0, 1, 1]
    assert count(destination) == counted(2)


def test_limit_of_the_destination_refuses_the_move_and_both_go_on(
    pair: tuple[Cgroup, Cgroup], tdx_host: TdxHost, launch: Launch, tdx_cleanup: ExitStack, contract: Contract
) -> None:
    source, destination = moved_between(pair, tdx_host, launch, tdx_cleanup)
    pair[1].set_max(0)
    with refused(contract, Refusal.MOVE_CGROUP_MAX):
        move_from(source, to=destination)
    assert [group.current for group in pair] == [1, 0]
    assert pair[1].events_local == 1
    assert count(source) == counted(2)
    pair[1].set_max(1)
    move_from(source, to=destination)
    assert [group.current for group in pair] == [0, 1]
    assert count(destination) == counted(3)


# refusals, after which both still work


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


def test_vcpu_that_user_space_owes_an_answer_is_in_the_way(
    launch: Launch, tdx_cleanup: ExitStack, contract: Contract
) -> None:
    source = launch("count")
    output.numbers(source.vcpus[0], 2)
    destination = destination_of(source, tdx_cleanup)
    with refused(contract, Refusal.MOVE_BUSY):
        move_from(source, to=destination)
    source.vcpus[0].complete()
    move_from(source, to=destination)
    assert count(destination) == counted(2)


def test_vcpu_that_runs_is_in_the_way(launch: Launch, tdx_cleanup: ExitStack, contract: Contract) -> None:
    source = launch("spin")
    destination = destination_of(source, tdx_cleanup)
    (running,) = spin(source)
    with refused(contract, Refusal.MOVE_BUSY):
        move_from(source, to=destination)
    assert isinstance(running.stop(), InterruptedExit)
    move_from(source, to=destination)
    (vcpu,) = destination.vcpus
    once(vcpu, inside, vcpu.start).stop()


# the memory before and after


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


LINKS = {
    "flags": Refusal.LINK_ARGUMENTS,
    "reserved": Refusal.LINK_ARGUMENTS,
    "own": Refusal.LINK_OWN,
    "no memfd": Refusal.LINK_NO_MEMFD,
    "no fd": Refusal.LINK_NO_FD,
    "plain VM": Refusal.LINK_PLAIN_VM,
}


@pytest.mark.parametrize("wrong", LINKS)
def test_link_is_refused(wrong: str, launch: Launch, kvm: Kvm, owner: Worker, contract: Contract) -> None:
    source = launch("count")
    memfd = source.memfds[0].fd
    with build.created(owner) as other, kvm.create_vm() as plain:
        vm = {"own": source.td, "plain VM": plain}.get(wrong, other.td)
        fd = {"no memfd": source.td.fd, "no fd": (1 << 31) - 1}.get(wrong, memfd)
        flags, reserved = int(wrong == "flags"), int(wrong == "reserved")
        link = commands.link_guest_memfd(vm.fd, fd, flags=flags, reserved=(reserved, 0, 0, 0, 0, 0))
        with refused(contract, LINKS[wrong]):
            owner.call(link)


# races and many moves

MOVES, WARM_UP = 10_000, 500
GROWTH_KIB = 1024
"""Slabs vary by some hundred KiB; if each move lost a single object of 128 bytes, it would be 1,200."""


def unreclaimable(host: TdxHost) -> int:
    """KiB of kernel memory in slabs that cannot be reclaimed."""
    for line in host.agent.files.read_text("/proc/meminfo").splitlines():
        name, _, value = line.partition(":")
        if name == "SUnreclaim":
            return int(value.split()[0])
    raise AssertionError("/proc/meminfo has no SUnreclaim")


@pytest.mark.tdx_host(cpus=2)
def test_of_two_destinations_one_gets_the_td(
    launch: Launch, tdx_host: TdxHost, hkids: Hkids, tdx_cleanup: ExitStack, contract: Contract
) -> None:
    for _ in range(10):
        source = launch("count")
        count(source)
        destinations = [destination_of(source, tdx_cleanup) for _ in range(2)]
        jobs = [
            destination.worker.start(commands.move_from(destination.td.fd, source.td.fd, barrier=place))
            for destination, place in zip(destinations, tdx_host.agent.barrier(2), strict=True)
        ]
        ended = [errno_of(job.result) for job in jobs]
        assert sorted(ended)[0] == 0
        assert sorted(ended)[1] in (contract.errno(Refusal.MOVE_BUSY), contract.errno(Refusal.MOVE_DEAD))
        assert count(destinations[ended.index(0)]) == counted(2)
        assert hkids.taken == 1
        for built in (source, *destinations):
            built.close()


@pytest.mark.tdx_host(cpus=2)
def test_moves_that_cross_do_not_stand_in_each_others_way(
    launch: Launch, tdx_host: TdxHost, hkids: Hkids, tdx_cleanup: ExitStack, contract: Contract
) -> None:
    """Moves A to B and B to A at once: neither can be a destination, and locks are taken in one order."""
    for _ in range(10):
        pair = [launch("count") for _ in range(2)]
        jobs = [
            built.worker.start(commands.move_from(built.td.fd, other.td.fd, barrier=place))
            for built, other, place in zip(pair, reversed(pair), tdx_host.agent.barrier(2), strict=True)
        ]
        assert {errno_of(job.result) for job in jobs} <= {
            contract.errno(Refusal.MOVE_INITIALIZED),
            contract.errno(Refusal.MOVE_BUSY),
        }
        assert [count(built) for built in pair] == [counted(1), counted(1)]
        assert hkids.taken == 2
        for built in pair:
            built.close()


@pytest.mark.tdx_host(cpus=2)
def test_vcpu_that_is_created_meanwhile_is_there_or_not(
    launch: Launch, tdx_host: TdxHost, hkids: Hkids, tdx_cleanup: ExitStack, contract: Contract
) -> None:
    """Creates one more in the destination: it comes too late, or is one too many for the move."""
    for _ in range(10):
        source = launch("count")
        count(source)
        destination = destination_of(source, tdx_cleanup)
        first, second = tdx_host.agent.barrier(2)
        moving = destination.worker.start(commands.move_from(destination.td.fd, source.td.fd, barrier=first))
        creating = destination.worker.start(commands.create_vcpu(destination.td.fd, 1, barrier=second))
        moved, created = errno_of(moving.result), errno_of(creating.result)
        assert (moved, created) in (
            (0, contract.errno(Refusal.VCPU_AFTER_FINALIZE)),
            (contract.errno(Refusal.MOVE_OTHER_VCPUS), 0),
            (contract.errno(Refusal.MOVE_BUSY), 0),
        )
        assert count(source if moved else destination) == counted(2)
        assert hkids.taken == 1
        source.close()
        destination.close()
        if not created:
            destination.worker.close_fd(creating.result())


@pytest.mark.tdx_host(cpus=2)
def test_memory_can_be_taken_from_the_td_meanwhile(
    launch: Launch, tdx_host: TdxHost, hkids: Hkids, tdx_cleanup: ExitStack, contract: Contract
) -> None:
    """A hole is punched into memory that the guest has, but does not use."""
    spare = Region(0x100000, 64 * 4096, data=bytes(64 * 4096))
    for _ in range(10):
        source = launch("count", regions=[spare])
        count(source)
        destination = destination_of(source, tdx_cleanup)
        first, second = tdx_host.agent.barrier(2)
        moving = destination.worker.start(commands.move_from(destination.td.fd, source.td.fd, barrier=first))
        memfd = source.placed[-1].memfd.fd
        hole = syscalls.fallocate(memfd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, 0, spare.size)
        punching = source.worker.start(batch_call([syscalls.barrier(second), hole]))
        moved = errno_of(moving.result)
        # A walk of the page tables is in the way of the move; user space tries again.
        assert moved in (0, contract.errno(Refusal.MOVE_BUSY))
        assert punching.result()[1].ret == 0
        assert count(source if moved else destination) == counted(2)
        source.close()
        destination.close()
        assert hkids.taken == 0


@pytest.mark.tdx_host(cpus=2)
def test_source_that_is_killed_meanwhile_is_moved_or_gone(
    launch: Launch, tdx_host: TdxHost, hkids: Hkids, tdx_cleanup: ExitStack, contract: Contract
) -> None:
    """The end of its process closes the guest_memfds, which frees memory that is not the destination's."""
    new = tdx_cleanup.enter_context(tdx_host.agent.spawn())
    for _ in range(5):
        old = tdx_cleanup.enter_context(tdx_host.agent.spawn())
        source = launch("count", owner=old)
        count(source)
        destination = destination_of(source, tdx_cleanup, new)
        fd = old.send_fd(source.td.fd, new)
        first, second = tdx_host.agent.barrier(2)
        moving = new.start(commands.move_from(destination.td.fd, fd, barrier=first))
        new.start(batch_call([syscalls.barrier(second), syscalls.syscall(SYS_KILL, old.pid, signal.SIGKILL)]))
        old.wait()
        moved = errno_of(moving.result)
        assert moved in (0, contract.errno(Refusal.MOVE_OTHER_MEMORY), contract.errno(Refusal.MOVE_BUSY))
        if not moved:
            assert count(destination) == counted(2)
        new.close_fd(fd)
        assert hkids.taken == (0 if moved else 1)
        destination.close()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.tdx_needs("ground-truth")
def test_ten_thousand_moves_leave_nothing(
    launch: Launch, hkids: Hkids, tdx_host: TdxHost, truth: Truth
) -> None:
    built = launch("count")

    def move(times: int) -> Assembly:
        now = built
        for _ in range(times):
            destination = prepare_destination(now)
            move_from(now, to=destination)
            now.close()
            now = destination
        return now

    built = move(WARM_UP)
    pages, slab = truth.state().pages, unreclaimable(tdx_host)
    for round_ in range(10):
        built = move((MOVES - WARM_UP) // 10)
        assert count(built) == counted(round_ + 1)
    assert truth.state().pages == pages
    assert unreclaimable(tdx_host) - slab < GROWTH_KIB
    assert hkids.taken == 1
