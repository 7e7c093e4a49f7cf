# SPDX-License-Identifier: GPL-2.0-or-later
"""The charge of a TD's HKID moves with it (``misc_cg_try_transfer`` in kernel/cgroup/misc.c)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from e2e.moves import MOVES, count, counted, destination_of
from fixtures.agent.files import Files
from fixtures.cgroup import Cgroup
from fixtures.contracts.answers import refused
from fixtures.contracts.promises import Contract, Refusal
from fixtures.deadline import comes_true
from fixtures.guests.launch import Launch
from fixtures.host.base import TdxHost
from fixtures.kvm.abi import PAGE_SIZE, Cap, MoveRole
from fixtures.kvm.build import Assembly
from fixtures.kvm.move import move_from
from fixtures.kvm.td import Td

pytestmark = MOVES


@pytest.fixture
def pair(tdx_cgroup: Cgroup) -> tuple[Cgroup, Cgroup]:
    """A pair of sibling cgroups."""
    return tdx_cgroup.child("old"), tdx_cgroup.child("new")


def moved_between(
    pair: tuple[Cgroup, Cgroup],
    tdx_host: TdxHost,
    launch: Launch,
    cleanup: ExitStack,
    *,
    begin: Callable[[Td], object] = lambda td: None,
) -> tuple[Assembly, Assembly]:
    """A TD of a process in the first cgroup, and a destination for it in the second.

    :param begin: called with the destination before it has vCPUs.
    """
    old, new = (cleanup.enter_context(tdx_host.agent.spawn(cgroup=group.path)) for group in pair)
    source = launch("count", owner=old)
    count(source)
    return source, destination_of(source, cleanup, new, begin=begin)


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
    for group in (tdx_cgroup, pair[0]):
        group.set_max(0)
    move_from(source, to=destination)
    assert [group.current for group in (*pair, tdx_cgroup)] == [0, 1, 1]
    assert count(destination) == counted(2)


def test_limit_of_the_destination_refuses_the_move_and_both_go_on(
    pair: tuple[Cgroup, Cgroup], tdx_host: TdxHost, launch: Launch, tdx_cleanup: ExitStack, contract: Contract
) -> None:
    source, destination = moved_between(pair, tdx_host, launch, tdx_cleanup)
    second_ones_limit_decides(pair, source, destination, contract)


def second_ones_limit_decides(
    pair: tuple[Cgroup, Cgroup], source: Assembly, destination: Assembly, contract: Contract
) -> None:
    """Require that a move is refused at the limit of the second cgroup, and moves the charge below it."""
    pair[1].set_max(0)
    with refused(contract, Refusal.MOVE_CGROUP_MAX):
        move_from(source, to=destination)
    assert [group.current for group in pair] == [1, 0]
    assert pair[1].events_local == 1
    assert count(source) == counted(2)
    program = source.placed[0].region
    assert source.vcpus[0].pre_fault(program.gpa, PAGE_SIZE) == 0
    pair[1].set_max(1)
    move_from(source, to=destination)
    assert [group.current for group in pair] == [0, 1]
    assert count(destination) == counted(3)


def test_charge_moves_to_the_cgroup_to_which_the_process_has_gone(
    pair: tuple[Cgroup, Cgroup], tdx_host: TdxHost, launch: Launch, tdx_cleanup: ExitStack, contract: Contract
) -> None:
    """Both VMs are the process' own."""
    owner = tdx_cleanup.enter_context(tdx_host.agent.spawn(cgroup=pair[0].path))
    source = launch("count", owner=owner)
    count(source)
    destination = destination_of(source, tdx_cleanup)
    owner.enter_cgroup(pair[1].path)
    second_ones_limit_decides(pair, source, destination, contract)


def test_move_that_is_refused_for_another_reason_is_tried_with_no_charge(
    pair: tuple[Cgroup, Cgroup], tdx_host: TdxHost, launch: Launch, tdx_cleanup: ExitStack, contract: Contract
) -> None:
    source, destination = moved_between(pair, tdx_host, launch, tdx_cleanup)
    destination.td.create_vcpu(1)
    for limit in (0, 1):
        pair[1].set_max(limit)
        with refused(contract, Refusal.MOVE_OTHER_VCPUS):
            move_from(source, to=destination)
    assert (pair[1].current, pair[1].peak, pair[1].events_local) == (0, 0, 0)
    assert count(source) == counted(2)


def test_vm_whose_init_vm_failed_can_be_a_destination(
    pair: tuple[Cgroup, Cgroup], tdx_host: TdxHost, launch: Launch, tdx_cleanup: ExitStack, contract: Contract
) -> None:
    def fail(td: Td) -> None:
        right = td.default_params()
        with refused(contract, Refusal.INIT_NO_WIDTH):
            td.init_vm(right.replace(cpuid=()))
        pair[1].set_max(0)
        with refused(contract, Refusal.INIT_CGROUP_MAX):
            td.init_vm(right)
        pair[1].set_max(1)

    source, destination = moved_between(pair, tdx_host, launch, tdx_cleanup, begin=fail)
    assert destination.td.check_extension(Cap.VM_MOVE_ENC_CONTEXT_FROM) == MoveRole.DESTINATION
    move_from(source, to=destination)
    assert [group.current for group in pair] == [0, 1]
    assert count(destination) == counted(2)


def test_destination_of_a_refused_move_keeps_its_own_number_of_vcpus(
    pair: tuple[Cgroup, Cgroup], tdx_host: TdxHost, launch: Launch, tdx_cleanup: ExitStack, contract: Contract
) -> None:
    source, destination = moved_between(
        pair, tdx_host, launch, tdx_cleanup, begin=lambda td: td.enable_cap(Cap.MAX_VCPUS, 1)
    )
    pair[1].set_max(0)
    with refused(contract, Refusal.MOVE_CGROUP_MAX):
        move_from(source, to=destination)
    assert source.td.check_extension(Cap.MAX_VCPUS) > 1
    assert destination.td.check_extension(Cap.MAX_VCPUS) == 1


# cgroups above and below each other


@dataclass(frozen=True)
class Line:
    """Cgroups with processes: ``top/left/old`` has the TD, ``top/right/new`` the destination."""

    top: Cgroup
    left: Cgroup
    old: Cgroup
    right: Cgroup
    new: Cgroup

    @property
    def groups(self) -> tuple[Cgroup, ...]:
        return self.top, self.left, self.old, self.right, self.new

    @property
    def current(self) -> list[int]:
        return [group.current for group in self.groups]

    @property
    def peak(self) -> list[int]:
        return [group.peak for group in self.groups]

    @property
    def events(self) -> list[tuple[int, int]]:
        """``misc.events`` and ``misc.events.local`` of each."""
        return [(group.events, group.events_local) for group in self.groups]


@pytest.fixture
def line(tdx_cgroup: Cgroup) -> Line:
    left, right = tdx_cgroup.child("left"), tdx_cgroup.child("right")
    return Line(tdx_cgroup, left, left.child("old"), right, right.child("new"))


def test_charge_leaves_one_branch_and_comes_to_the_other(
    line: Line, tdx_host: TdxHost, launch: Launch, tdx_cleanup: ExitStack
) -> None:
    source, destination = moved_between((line.old, line.new), tdx_host, launch, tdx_cleanup)
    for group in (line.top, line.right, line.new):
        group.set_max(1)
    assert line.current == [1, 1, 1, 0, 0]
    move_from(source, to=destination)
    assert line.current == [1, 0, 0, 1, 1]
    assert line.peak == [1, 1, 1, 1, 1]
    assert line.events == [(0, 0)] * 5
    destination.close()
    assert line.current == [0] * 5


@pytest.mark.parametrize("full", ["right", "new"])
def test_limit_that_refuses_a_move_counts_it_and_leaves_no_charge(
    full: str, line: Line, tdx_host: TdxHost, launch: Launch, tdx_cleanup: ExitStack, contract: Contract
) -> None:
    source, destination = moved_between((line.old, line.new), tdx_host, launch, tdx_cleanup)
    at_limit = {"right": line.right, "new": line.new}[full]
    at_limit.set_max(0)
    with refused(contract, Refusal.MOVE_CGROUP_MAX):
        move_from(source, to=destination)
    assert line.current == [1, 1, 1, 0, 0]
    assert at_limit.peak == 0
    wanted = {
        "right": [(1, 0), (0, 0), (0, 0), (1, 1), (0, 0)],
        "new": [(1, 0), (0, 0), (0, 0), (1, 0), (1, 1)],
    }
    assert line.events == wanted[full]
    assert count(source) == counted(2)


@pytest.mark.parametrize("limit", [1, 0], ids=["at", "above"])
def test_move_within_a_cgroup_at_its_limit_or_above_changes_no_charge(
    limit: int, line: Line, tdx_host: TdxHost, launch: Launch, tdx_cleanup: ExitStack
) -> None:
    source, destination = moved_between((line.old, line.old), tdx_host, launch, tdx_cleanup)
    for group in (line.top, line.left, line.old):
        group.set_max(limit)
    move_from(source, to=destination)
    assert line.current == [1, 1, 1, 0, 0]
    assert line.peak == [1, 1, 1, 0, 0]
    assert count(destination) == counted(2)


def test_charge_moves_down_to_a_child(
    tdx_cgroup: Cgroup, tdx_host: TdxHost, launch: Launch, tdx_cleanup: ExitStack, contract: Contract
) -> None:
    """The process leaves: a cgroup with children has no processes of its own."""
    parent = tdx_cgroup.child("parent")
    owner = tdx_cleanup.enter_context(tdx_host.agent.spawn(cgroup=parent.path))
    source = launch("count", owner=owner)
    count(source)
    owner.enter_cgroup(tdx_cgroup.child("elsewhere").path)
    child = parent.child("child")
    mover = tdx_cleanup.enter_context(tdx_host.agent.spawn(cgroup=child.path))
    destination = destination_of(source, tdx_cleanup, mover)
    child.set_max(0)
    with refused(contract, Refusal.MOVE_CGROUP_MAX):
        move_from(source, to=destination)
    assert (parent.current, child.current) == (1, 0)
    child.set_max(1)
    move_from(source, to=destination)
    assert (parent.current, child.current, parent.peak) == (1, 1, 1)
    destination.close()
    assert (parent.current, child.current) == (0, 0)


def test_charge_comes_from_a_cgroup_that_was_removed(
    pair: tuple[Cgroup, Cgroup], tdx_cgroup: Cgroup, tdx_host: TdxHost, launch: Launch, tdx_cleanup: ExitStack
) -> None:
    """It stays with those above until the TD moves."""
    owner = tdx_cleanup.enter_context(tdx_host.agent.spawn(cgroup=pair[0].path))
    source = launch("count", owner=owner)
    count(source)
    owner.enter_cgroup(pair[1].path)
    pair[0].remove()
    assert (tdx_cgroup.current, pair[1].current) == (1, 0)
    built = move_from(source, to=destination_of(source, tdx_cleanup))
    assert (tdx_cgroup.current, pair[1].current) == (1, 1)
    assert count(built) == counted(2)
    built.close()
    assert (tdx_cgroup.current, pair[1].current) == (0, 0)


def dying(files: Files, group: Cgroup) -> int:
    """Number of removed cgroups below a cgroup that something still refers to."""
    text = files.read_text(f"{group.path}/cgroup.stat")
    return int(dict(row.split() for row in text.splitlines())["nr_dying_descendants"])


@pytest.mark.parametrize("refuse", [False, True], ids=["moved", "refused"])
def test_nothing_refers_to_a_cgroup_that_the_td_has_left(
    refuse: bool,
    pair: tuple[Cgroup, Cgroup],
    tdx_cgroup: Cgroup,
    tdx_host: TdxHost,
    launch: Launch,
    tdx_cleanup: ExitStack,
    contract: Contract,
) -> None:
    source, destination = moved_between(pair, tdx_host, launch, tdx_cleanup)
    left, other = source, destination
    if refuse:
        pair[1].set_max(0)
        with refused(contract, Refusal.MOVE_CGROUP_MAX):
            move_from(source, to=destination)
        left, other = destination, source
    else:
        move_from(source, to=destination)
    left.close()
    left.worker.kill()
    left.worker.wait()
    pair[int(refuse)].remove()
    freed = comes_true(lambda: dying(tdx_host.agent.files, tdx_cgroup) == 0)
    assert freed, "something still refers to the removed cgroup"
    assert count(other) == counted(2)
