# SPDX-License-Identifier: GPL-2.0-or-later
"""SEAMCALLs that last: other requests, a caller that is taken to another CPU, one that is killed.

Other requests wait or go their own way; none of it makes a request fail or leaves anything behind.  softseam
holds the call when it has done its work, with the locks that it took: a call that needs one of them
returns TDX_OPERAND_BUSY, which KVM may only see where it tries again.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pytest

from e2e.findings import F33, F34, F35
from e2e.races import (
    HOLE_AND_FINALIZE,
    HOLE_AND_PAGE_ELSEWHERE,
    HOLES,
    RACES,
    Ask,
    Prepare,
    Race,
    add_page,
    created,
    delete_slot,
    error_of,
    finalize,
    init_vcpu,
    init_vm,
    make_shared,
    on,
    orders,
    placed,
    pre_fault,
    prepared,
    with_empty_page,
    with_raw_vcpu,
)
from fixtures.agent import syscalls
from fixtures.agent.call import BatchResult, Call, batch_call
from fixtures.agent.client import Agent, Job, Worker
from fixtures.agent.errors import RemoteOSError
from fixtures.findings import shows
from fixtures.guests.running import begun
from fixtures.host.base import TdxHost
from fixtures.host.hkids import Hkids
from fixtures.kvm import abi, build
from fixtures.kvm.build import Assembly
from fixtures.kvm.errors import KvmError
from fixtures.softseam.hold import held
from fixtures.softseam.truth import Truth

pytestmark = [
    pytest.mark.tdx_needs("misc-cgroup", "seamcall-fault-injection", "ground-truth"),
    pytest.mark.tdx_host(cpus=4, sockets=2),
]


ALL = 100
LASTING = sorted(RACES.keys() - {"create-vcpu-twice"})
"""Races with a request that makes SEAMCALLs."""


def leaves_of(agent: Agent, request: Callable[[], object]) -> list[str]:
    """The SEAMCALLs that a request makes."""
    truth = Truth(agent)
    before = truth.leaves()
    request()
    return [name for name, leaf in truth.leaves().items() if leaf.calls != before[name].calls]


def errors_of(
    host: TdxHost, leaf: str, first: tuple[Worker, Call[Any]], *others: tuple[Worker, Call[Any]]
) -> tuple[bool, list[int]]:
    """Make requests, of which the first makes a SEAMCALL that lasts until the others have begun.

    It lasts on a CPU of its own, which writes back no package.  The others may spin, so CPU 0 is the agent's.

    :returns: whether it lasted (not if it was made elsewhere, or with interrupts off), and the errnos.
    """
    _, *usual, last = range(host.shape.cpus)
    with held(host.agent.files, leaf, last) as hold:
        worker, call = first
        jobs = [worker.start(on([last], call))]
        lasts = hold.reached(jobs[0].done)
        jobs += [begun(worker, on(usual, call)) for worker, call in others]
    return lasts, [error_of(job.worker, partial(job.result().__getitem__, 1)) for job in jobs]


def hold_in_races(
    race: Race, host: TdxHost, owner: Worker, gone: Callable[[], None], most: int = ALL, foremost: str = ""
) -> list[int]:
    """Let each request of a race be the first in turn, and its SEAMCALLs last in turn.

    :param gone: fails if a TD is left, after each round: the next one may get a page that the module keeps.
    :param most: number of SEAMCALLs of each request that have to last.
    :param foremost: the leaf that lasts before any other.
    :returns: how many of each request lasted.
    """
    allowed = orders(race, owner)
    lasted = [0] * len(race.requests)
    for first in range(len(race.requests)):
        leaves = leaves_of_request(race, first, host, owner)
        for leaf in sorted(leaves, key=foremost.__ne__):
            if lasted[first] == most:
                break
            with prepared(race, owner) as requests:
                calls = [(owner, requests.pop(first)), *((owner, call) for call in requests)]
                lasts, found = errors_of(host, leaf, *calls)
            errors = (*found[1 : first + 1], found[0], *found[first + 1 :])
            assert errors in allowed, f"{errors} while {leaf} of request {first} lasts; in order: {allowed}"
            try:
                gone()
            except AssertionError as error:
                error.add_note(f"after {leaf} of request {first} has lasted")
                raise
            lasted[first] += lasts
    return lasted


def leaves_of_request(race: Race, first: int, host: TdxHost, owner: Worker) -> list[str]:
    """The SEAMCALLs that a request of a race makes if it comes first."""
    with prepared(race, owner) as requests:
        call = requests.pop(first)
        leaves = leaves_of(host.agent, partial(error_of, owner, partial(owner.call, call)))
        for other in requests:
            error_of(owner, partial(owner.call, other))
    return leaves


@pytest.mark.parametrize(
    "most", [pytest.param(1, id="one"), pytest.param(ALL, id="all", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", LASTING)
def test_request_that_comes_while_a_seamcall_of_its_td_lasts_ends_as_in_some_order(
    name: str, most: int, tdx_host: TdxHost, owner: Worker, assert_gone: Callable[[], None]
) -> None:
    assert any(hold_in_races(RACES[name], tdx_host, owner, assert_gone, most))


@pytest.mark.parametrize("name", HOLES)
def test_hole_that_comes_while_a_seamcall_of_its_td_lasts_ends_as_in_some_order(
    name: str, tdx_host: TdxHost, owner: Worker, assert_gone: Callable[[], None]
) -> None:
    assert any(hold_in_races(HOLES[name], tdx_host, owner, assert_gone))


@pytest.mark.tdx_finding("F34", **F34)
def test_td_is_finalized_while_a_hole_takes_memory(
    tdx_host: TdxHost, owner: Worker, assert_gone: Callable[[], None]
) -> None:
    found = r"^the TDX module still keeps |while TDH\.MR\.FINALIZE "
    with shows("F34", AssertionError, match=found):
        lasted = hold_in_races(HOLE_AND_FINALIZE, tdx_host, owner, assert_gone, foremost="TDH.MR.FINALIZE")
    assert all(lasted)


@pytest.mark.tdx_finding("F35", **F35)
def test_page_is_measured_while_a_hole_takes_other_memory(
    tdx_host: TdxHost, owner: Worker, assert_gone: Callable[[], None]
) -> None:
    # While TDH.MR.EXTEND lasts the hole fails for sure, of which user space is not told, and the page stays
    # with the module; while another leaf does, it is by chance who meets whom afterwards.
    found = rf"^(the TDX module still keeps |\({errno.EIO}, 0\) while TDH\.MR\.EXTEND )"
    with shows("F35", AssertionError, match=found):
        lasted = hold_in_races(
            HOLE_AND_PAGE_ELSEWHERE, tdx_host, owner, assert_gone, foremost="TDH.MR.EXTEND"
        )
    assert all(lasted)


def leaves_of_step(prepare: Prepare, ask: Ask, agent: Agent, owner: Worker) -> list[str]:
    """The SEAMCALLs that a request of a TD of its own makes."""
    with prepare(owner) as td:
        return leaves_of(agent, partial(owner.call, ask(td)))


def end(td: Assembly) -> Call[Any]:
    """Close all that keeps the TD."""
    return batch_call([call for pin in td.pins() for call in pin.closing()])


STEPS: Mapping[str, tuple[Prepare, Ask]] = {
    "init-vm": (created, init_vm),
    "init-vcpu": (with_raw_vcpu, init_vcpu(0)),
    "add-page": (placed, add_page),
    "finalize": (build.populated, finalize),
    "end": (build.populated, end),
}


@pytest.mark.parametrize("other", ["init-vm", "add-page", "end"])
@pytest.mark.parametrize("step", STEPS)
def test_td_comes_and_goes_while_a_seamcall_of_another_lasts(
    step: str, other: str, tdx_host: TdxHost, owner: Worker, hkids: Hkids
) -> None:
    """No SEAMCALL of one TD makes a step of another fail."""
    agent = tdx_host.agent
    prepare, ask = STEPS[step]
    prepare_other, ask_other = STEPS[other]
    leaves = leaves_of_step(prepare, ask, agent, owner)
    tried = 0
    with agent.spawn() as neighbour:
        for leaf in leaves:
            with prepare(owner) as td, prepare_other(neighbour) as beside:
                lasted, found = errors_of(tdx_host, leaf, (owner, ask(td)), (neighbour, ask_other(beside)))
            assert found == [0, 0], f"while {leaf} lasts"
            tried += lasted
    assert tried
    assert hkids.taken == 0


# Threads that move


def move_threads(worker: Worker, mover: Worker, cpus: Sequence[int]) -> Job[BatchResult]:
    """Begin to take all threads of a worker to other CPUs: one that is in a SEAMCALL goes after it."""
    tasks = [int(name) for name in worker.agent.files.listdir(f"/proc/{worker.pid}/task")]
    return begun(mover, batch_call([syscalls.affinity(cpus, thread=task) for task in tasks], go_on=True))


MORE_STEPS: Mapping[str, tuple[Prepare, Ask]] = {
    **STEPS,
    "pre-fault": (with_empty_page, pre_fault(0)),
    "make-shared": (build.finalized, make_shared),
    "delete-slot": (build.finalized, delete_slot),
}


def move_after_each_seamcall(prepare: Prepare, ask: Ask, host: TdxHost, owner: Worker) -> None:
    """Make a request of a TD; after each of its SEAMCALLs in turn its thread goes on on another CPU.

    :raises AssertionError: it fails.
    :raises KvmError: it has killed the VM.
    """
    *usual, last = range(host.shape.cpus)
    agent = host.agent
    leaves = leaves_of_step(prepare, ask, agent, owner)
    moved = 0
    with agent.spawn() as mover:
        for leaf in leaves:
            with prepare(owner) as td:
                with held(agent.files, leaf, last) as hold:
                    job = owner.start(on([last], ask(td)))
                    lasts = hold.reached(job.done)
                    moving = move_threads(owner, mover, usual) if lasts else None
                done = job.result()
                assert error_of(owner, partial(done.__getitem__, 1)) == 0, f"after {leaf}"
                if not td.td.closed:
                    # A dead VM answers nothing.
                    td.td.check_extension(abi.Cap.MAX_VCPUS)
                if moving:
                    gone = [one for one in moving.result().results if isinstance(one, RemoteOSError)]
                    assert all(error.errno == errno.ESRCH for error in gone)
                    assert done[2] == usual
            moved += lasts
    assert moved


@pytest.mark.parametrize("step", sorted(MORE_STEPS.keys() - {"init-vcpu"}))
def test_step_succeeds_though_its_thread_moves_after_a_seamcall(
    step: str, tdx_host: TdxHost, owner: Worker, hkids: Hkids
) -> None:
    move_after_each_seamcall(*MORE_STEPS[step], tdx_host, owner)
    assert hkids.taken == 0


@pytest.mark.tdx_finding("F33", **F33)
def test_vcpu_is_initialized_though_its_thread_moves_after_a_seamcall(
    tdx_host: TdxHost, owner: Worker, hkids: Hkids
) -> None:
    with shows("F33", KvmError, match="EIO"):
        move_after_each_seamcall(*STEPS["init-vcpu"], tdx_host, owner)
    assert hkids.taken == 0


# Processes that die


@pytest.mark.parametrize("step", MORE_STEPS)
def test_nothing_is_left_of_a_process_that_is_killed_in_a_seamcall(
    step: str, tdx_host: TdxHost, owner: Worker, hkids: Hkids
) -> None:
    """All of the TD's files are closed while its last request returns; the ledger counts its pages."""
    *_, last = range(tdx_host.shape.cpus)
    agent = tdx_host.agent
    prepare, ask = MORE_STEPS[step]
    leaves = leaves_of_step(prepare, ask, agent, owner)
    tried = 0
    for leaf in leaves:
        with agent.spawn() as victim:
            request = ask(prepare(victim))
            with held(agent.files, leaf, last) as hold:
                job = victim.start(on([last], request))
                tried += hold.reached(job.done)
                victim.kill()
            victim.wait()
        assert hkids.taken == 0, f"after {leaf}"
    assert tried
