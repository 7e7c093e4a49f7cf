# SPDX-License-Identifier: GPL-2.0-or-later
"""HKIDs in the ``misc`` cgroup controller: charges, limits and events.

Sources: ``__tdx_td_init`` and ``tdx_hkid_free`` in arch/x86/kvm/vmx/tdx.c, kernel/cgroup/misc.c, and the
section "Misc" of Documentation/admin-guide/cgroup-v2.rst.

A refused charge triggers finding F1: the kernel uncharges what it never charged.  That shows in the ledger at
the end of each such test, and in some tests earlier; their other assertions hold on every kernel.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

from e2e.children import CLONE_VM, child, tdx_command
from e2e.findings import F1
from e2e.mistakes import INIT_VM
from fixtures.agent import syscalls
from fixtures.agent.client import Worker
from fixtures.agent.errors import RemoteOSError
from fixtures.cgroup import RESOURCE, UNLIMITED, Cgroup
from fixtures.contracts.answers import refused
from fixtures.contracts.promises import Contract, Refusal
from fixtures.findings import shows
from fixtures.host.base import TdxHost
from fixtures.host.hkids import Hkids
from fixtures.kvm.abi import PAGE_SIZE, TdxCmdId
from fixtures.kvm.device import Kvm
from fixtures.kvm.many import many_tds
from fixtures.kvm.memory import Memory

pytestmark = pytest.mark.tdx_needs("misc-cgroup")

WAKES_MS = 5000

books_wrong = pytest.mark.tdx_finding("F1", **F1)


@dataclass
class Family:
    """A cgroup with two children, and a process in each child with /dev/kvm open."""

    parent: Cgroup
    child: Cgroup
    sibling: Cgroup
    in_child: Kvm
    in_sibling: Kvm

    @property
    def current(self) -> dict[str, int]:
        return {"parent": self.parent.current, "child": self.child.current, "sibling": self.sibling.current}

    @property
    def peak(self) -> dict[str, int]:
        return {"parent": self.parent.peak, "child": self.child.peak, "sibling": self.sibling.peak}

    @property
    def events(self) -> dict[str, tuple[int, int]]:
        """``misc.events`` and ``misc.events.local`` of each."""
        cgroups = {"parent": self.parent, "child": self.child, "sibling": self.sibling}
        return {name: (one.events, one.events_local) for name, one in cgroups.items()}

    def __getitem__(self, name: str) -> Cgroup:
        return {"parent": self.parent, "child": self.child, "sibling": self.sibling}[name]


@pytest.fixture
def family(tdx_host: TdxHost, tdx_cgroup: Cgroup, tdx_cleanup: ExitStack) -> Family:
    child, sibling = tdx_cgroup.child("child"), tdx_cgroup.child("sibling")

    def process(group: Cgroup) -> Kvm:
        worker = tdx_cleanup.enter_context(tdx_host.agent.spawn(cgroup=group.path))
        return tdx_cleanup.enter_context(Kvm.open(worker))

    return Family(tdx_cgroup, child, sibling, process(child), process(sibling))


@pytest.fixture
def member(tdx_host: TdxHost, tdx_cgroup: Cgroup, tdx_cleanup: ExitStack) -> Kvm:
    """/dev/kvm, open in a process in the cgroup."""
    worker = tdx_cleanup.enter_context(tdx_host.agent.spawn(cgroup=tdx_cgroup.path))
    return tdx_cleanup.enter_context(Kvm.open(worker))


@contextmanager
def refused_td(kvm: Kvm, contract: Contract, refusal: Refusal = Refusal.INIT_CGROUP_MAX) -> Iterator[None]:
    """A TD whose KVM_TDX_INIT_VM is refused; it is open inside the block."""
    with kvm.create_td() as td:
        with refused(contract, refusal):
            td.init_vm()
        yield


# the cgroup that is charged


def test_creating_a_vm_charges_nobody(member: Kvm, tdx_cgroup: Cgroup) -> None:
    with member.create_td():
        assert tdx_cgroup.current == 0


def test_init_vm_charges_the_callers_cgroup_and_those_above_it(family: Family, hkids: Hkids) -> None:
    tds = many_tds(family.in_child, 2)
    assert family.current == {"parent": 2, "child": 2, "sibling": 0}
    assert hkids.taken == 2
    tds[0].close()
    assert family.current == {"parent": 1, "child": 1, "sibling": 0}
    tds[1].close()
    assert family.current == {"parent": 0, "child": 0, "sibling": 0}


def test_init_vm_charges_the_cgroup_of_the_process_that_calls_it_whoever_made_the_vm(
    family: Family,
) -> None:
    """A child that shares its parent's memory may use the parent's VM, in a cgroup of its own."""
    owner = family.in_child.worker
    memory = Memory.map(owner, PAGE_SIZE)
    with family.in_child.create_td() as td:
        init = tdx_command(td.fd, TdxCmdId.INIT_VM, td.default_params().pack(), memory)
        with child(owner, init.code, CLONE_VM) as pid:
            family.sibling.enter(pid)
            assert init.go_on() == 0
            assert family.current == {"parent": 1, "child": 0, "sibling": 1}
        assert family.current == {"parent": 1, "child": 0, "sibling": 1}
    assert family.current == {"parent": 0, "child": 0, "sibling": 0}


def test_parent_is_charged_for_all_its_children(family: Family) -> None:
    many_tds(family.in_child, 2)
    many_tds(family.in_sibling, 1)
    assert family.current == {"parent": 3, "child": 2, "sibling": 1}


def test_failed_init_vm_is_not_charged(member: Kvm, tdx_cgroup: Cgroup, contract: Contract) -> None:
    mistake = INIT_VM["cpuid-bit-that-the-module-refuses"]  # Found out only after the charge.
    with member.create_td() as td, refused(contract, mistake.refusal):
        mistake.make(td)
    assert (tdx_cgroup.current, tdx_cgroup.peak) == (0, 1)


def test_peak_is_the_most_that_there_ever_was(family: Family) -> None:
    first, second, third = many_tds(family.in_child, 3)
    second.close()
    third.close()
    many_tds(family.in_sibling, 1)
    assert family.current == {"parent": 2, "child": 1, "sibling": 1}
    assert family.peak == {"parent": 3, "child": 3, "sibling": 1}
    first.close()
    assert family.peak == {"parent": 3, "child": 3, "sibling": 1}


def test_charge_stays_when_the_process_moves(family: Family) -> None:
    (td,) = many_tds(family.in_child, 1)
    family.in_child.worker.enter_cgroup(family.sibling.path)
    assert family.current == {"parent": 1, "child": 1, "sibling": 0}
    (late,) = many_tds(family.in_child, 1)
    assert family.current == {"parent": 2, "child": 1, "sibling": 1}
    td.close()
    assert family.current == {"parent": 1, "child": 0, "sibling": 1}
    late.close()
    assert family.current == {"parent": 0, "child": 0, "sibling": 0}


def test_where_the_vm_was_created_does_not_matter(family: Family) -> None:
    with family.in_child.create_td() as td:
        family.in_child.worker.enter_cgroup(family.sibling.path)
        td.init_vm()
        assert family.current == {"parent": 1, "child": 0, "sibling": 1}


def test_charge_stays_when_another_process_holds_the_td(family: Family) -> None:
    (td,) = many_tds(family.in_child, 1)
    with td.give(family.in_sibling.worker):
        family.in_child.worker.close()
        assert family.current == {"parent": 1, "child": 1, "sibling": 0}
    assert family.current == {"parent": 0, "child": 0, "sibling": 0}


# cgroups that go


def test_cgroup_can_be_removed_after_its_tds(member: Kvm, tdx_cgroup: Cgroup) -> None:
    many_tds(member, 2)
    member.worker.close()
    tdx_cgroup.remove()


def test_charge_of_a_removed_cgroup_stays_with_those_above_until_the_td_is_gone(
    family: Family, hkids: Hkids
) -> None:
    (td,) = many_tds(family.in_child, 1)
    family.in_child.worker.enter_cgroup(family.sibling.path)
    family.child.remove()
    assert (family.parent.current, family.sibling.current, hkids.taken) == (1, 0, 1)
    td.close()
    assert (family.parent.current, family.sibling.current, hkids.taken) == (0, 0, 0)


# limits


def test_every_file_has_a_line_for_hkids_before_there_is_one(tdx_host: TdxHost, tdx_cgroup: Cgroup) -> None:
    files = {
        **dict.fromkeys(("misc.current", "misc.peak"), f"{RESOURCE} 0\n"),
        **dict.fromkeys(("misc.events", "misc.events.local"), f"{RESOURCE}.max 0\n"),
        "misc.max": f"{RESOURCE} max\n",
    }
    found = {name: tdx_host.agent.files.read_text(f"{tdx_cgroup.path}/{name}") for name in files}
    assert found == files


def test_there_is_no_limit_at_first(family: Family) -> None:
    assert (family.parent.max, family.child.max) == (UNLIMITED, UNLIMITED)


@pytest.mark.parametrize("limit", [1, 3])
def test_limit_admits_as_many(limit: int, member: Kvm, tdx_cgroup: Cgroup) -> None:
    tdx_cgroup.set_max(limit)
    many_tds(member, limit)
    assert (tdx_cgroup.current, tdx_cgroup.max) == (limit, limit)
    assert (tdx_cgroup.events, tdx_cgroup.events_local) == (0, 0)


@books_wrong
@pytest.mark.parametrize("limit", [0, 1, 3])
def test_limit_refuses_the_next(limit: int, member: Kvm, tdx_cgroup: Cgroup, contract: Contract) -> None:
    tdx_cgroup.set_max(limit)
    many_tds(member, limit)
    with refused_td(member, contract):
        assert (tdx_cgroup.events, tdx_cgroup.events_local) == (1, 1)


@books_wrong
def test_refused_td_changes_no_count(family: Family, hkids: Hkids, contract: Contract) -> None:
    family.child.set_max(1)
    many_tds(family.in_child, 1)
    many_tds(family.in_sibling, 1)
    with refused_td(family.in_child, contract), shows("F1"):
        assert family.current == {"parent": 2, "child": 1, "sibling": 1}
        assert hkids.taken == 2


@books_wrong
def test_refused_td_is_no_peak(family: Family, contract: Contract) -> None:
    family.child.set_max(1)
    many_tds(family.in_child, 1)
    with refused_td(family.in_child, contract):
        assert family.peak == {"parent": 1, "child": 1, "sibling": 0}


@books_wrong
def test_td_that_a_parent_refuses_is_charged_to_nobody(family: Family, contract: Contract) -> None:
    family.parent.set_max(1)
    many_tds(family.in_child, 1)
    with refused_td(family.in_sibling, contract), shows("F1"):
        assert family.current == {"parent": 1, "child": 1, "sibling": 0}


@books_wrong
def test_limit_holds_however_often_it_refuses(member: Kvm, tdx_cgroup: Cgroup, contract: Contract) -> None:
    tdx_cgroup.set_max(1)
    many_tds(member, 1)
    with refused_td(member, contract):
        assert tdx_cgroup.events_local == 1
    for refusals in (2, 3):
        with shows("F1", match="success"), refused_td(member, contract):
            assert tdx_cgroup.events_local == refusals


@books_wrong
def test_refused_td_is_admitted_once_there_is_room(
    member: Kvm, tdx_cgroup: Cgroup, contract: Contract
) -> None:
    tdx_cgroup.set_max(1)
    (td,) = many_tds(member, 1)
    with member.create_td() as late:
        with refused(contract, Refusal.INIT_CGROUP_MAX):
            late.init_vm()
        td.close()
        late.init_vm()
        with shows("F1"):
            assert tdx_cgroup.current == 1


@books_wrong
@pytest.mark.parametrize("new", [False, True], ids=["same-vm", "new-vm"])
def test_refused_td_is_charged_to_the_cgroup_in_which_it_is_tried_again(
    new: bool, family: Family, tdx_cleanup: ExitStack, contract: Contract
) -> None:
    kvm = family.in_child
    family.child.set_max(0)
    td = tdx_cleanup.enter_context(kvm.create_td())
    with refused(contract, Refusal.INIT_CGROUP_MAX):
        td.init_vm()
    kvm.worker.enter_cgroup(family.sibling.path)
    late = tdx_cleanup.enter_context(kvm.create_td()) if new else td
    late.init_vm()
    with shows("F1"):
        assert family.current == {"parent": 1, "child": 0, "sibling": 1}
    late.close()
    with shows("F1"):
        assert family.current == {"parent": 0, "child": 0, "sibling": 0}


@books_wrong
@pytest.mark.parametrize(
    ("limited", "events"),
    [
        pytest.param("child", {"parent": (1, 0), "child": (1, 1), "sibling": (0, 0)}, id="child"),
        pytest.param("parent", {"parent": (1, 1), "child": (0, 0), "sibling": (0, 0)}, id="parent"),
    ],
)
def test_refusal_is_an_event_of_the_limiting_cgroup_and_those_above_it(
    limited: str, events: dict[str, tuple[int, int]], family: Family, contract: Contract
) -> None:
    family[limited].set_max(0)
    with refused_td(family.in_child, contract):
        assert family.events == events


@books_wrong
def test_refusal_wakes_who_watches_the_events(family: Family, owner: Worker, contract: Contract) -> None:
    """A file of events is polled for POLLPRI (section "Core Interface Files" of cgroup-v2.rst)."""
    family.child.set_max(0)
    watched = {}
    for name in ("parent", "child", "sibling"):
        watched[name] = owner.call(syscalls.open_(f"{family[name].path}/misc.events", os.O_RDONLY))
        owner.call(syscalls.read(watched[name], 4096))
        assert not owner.call(syscalls.poll(watched[name], select.POLLPRI, 0))
    with refused_td(family.in_child, contract):
        # The kernel may put a notification off for a moment; the sibling is looked at last.
        woken = {
            name: bool(owner.call(syscalls.poll(fd, select.POLLPRI, 0 if name == "sibling" else WAKES_MS)))
            for name, fd in watched.items()
        }
    assert woken == {"parent": True, "child": True, "sibling": False}


@books_wrong
def test_parents_limit_is_for_all_its_children_together(family: Family, contract: Contract) -> None:
    family.parent.set_max(2)
    many_tds(family.in_child, 1)
    many_tds(family.in_sibling, 1)
    with refused_td(family.in_child, contract):
        assert family.events == {"parent": (1, 1), "child": (0, 0), "sibling": (0, 0)}


def test_childs_limit_is_not_its_siblings(family: Family) -> None:
    family.child.set_max(0)
    many_tds(family.in_sibling, 2)
    assert family.current == {"parent": 2, "child": 0, "sibling": 2}


def test_limit_below_what_is_in_use_takes_nothing_away(member: Kvm, tdx_cgroup: Cgroup) -> None:
    many_tds(member, 2)
    tdx_cgroup.set_max(1)
    assert (tdx_cgroup.current, tdx_cgroup.events) == (2, 0)


@books_wrong
def test_limit_below_what_is_in_use_refuses_the_next(
    member: Kvm, tdx_cgroup: Cgroup, contract: Contract
) -> None:
    many_tds(member, 2)
    tdx_cgroup.set_max(1)
    with refused_td(member, contract):
        assert tdx_cgroup.events_local == 1


def test_limit_is_not_inherited_by_a_child_that_comes_later(
    tdx_host: TdxHost, tdx_cgroup: Cgroup, tdx_cleanup: ExitStack
) -> None:
    """It holds for what is below it as long as it is there."""
    tdx_cgroup.set_max(1)
    child = tdx_cgroup.child("late")
    assert child.max == UNLIMITED
    worker = tdx_cleanup.enter_context(tdx_host.agent.spawn(cgroup=child.path))
    tdx_cgroup.set_max(UNLIMITED)
    many_tds(tdx_cleanup.enter_context(Kvm.open(worker)), 2)
    assert (child.current, child.events) == (2, 0)


@pytest.mark.parametrize("text", ["many", "-1", "1 2", str(1 << 64), ""], ids=repr)
def test_limit_that_is_no_number_is_refused_and_changes_nothing(
    text: str, tdx_host: TdxHost, tdx_cgroup: Cgroup
) -> None:
    tdx_cgroup.set_max(3)
    with pytest.raises(RemoteOSError) as caught:
        tdx_host.agent.files.write(f"{tdx_cgroup.path}/misc.max", f"{RESOURCE} {text}")
    assert caught.value.errno == (errno.ERANGE if text.isdecimal() else errno.EINVAL)
    assert tdx_cgroup.max == 3


@pytest.mark.parametrize("around", ["{}\n", "{} ", " {}", " {} \n"], ids=repr)
def test_limit_is_taken_with_what_a_shell_writes_around_it(
    around: str, tdx_host: TdxHost, tdx_cgroup: Cgroup
) -> None:
    for limit, value in (("3", 3), ("max", UNLIMITED)):
        text = around.format(f"{RESOURCE} {limit}")
        try:
            tdx_host.agent.files.write(f"{tdx_cgroup.path}/misc.max", text)
        except RemoteOSError as error:
            raise AssertionError(f"the kernel does not take it: {error}") from error
        assert tdx_cgroup.max == value


@pytest.mark.parametrize("limit", [1 << 20, 1 << 62], ids=hex)
def test_limit_may_be_above_what_there_is(limit: int, member: Kvm, tdx_cgroup: Cgroup) -> None:
    """One configuration does for hosts of all sizes."""
    tdx_cgroup.set_max(limit)
    assert tdx_cgroup.max == limit
    many_tds(member, 1)
    assert (tdx_cgroup.current, tdx_cgroup.events) == (1, 0)


def test_limit_can_be_lifted(member: Kvm, tdx_cgroup: Cgroup) -> None:
    tdx_cgroup.set_max(0)
    tdx_cgroup.set_max(UNLIMITED)
    assert tdx_cgroup.max == UNLIMITED
    many_tds(member, 1)
    assert tdx_cgroup.current == 1


def test_exhausted_pool_is_told_from_a_limit(
    owner: Worker, member: Kvm, tdx_cgroup: Cgroup, hkids: Hkids, contract: Contract
) -> None:
    """Without a free HKID the kernel does not try to charge the cgroup: ENOSPC, not EBUSY, and no event."""
    tdx_cgroup.set_max(0)
    with Kvm.open(owner) as elsewhere:
        tds = many_tds(elsewhere, hkids.free)
        with refused_td(member, contract, Refusal.INIT_NO_HKID):
            assert (tdx_cgroup.events, tdx_cgroup.events_local) == (0, 0)
        assert len(tds) == hkids.taken
