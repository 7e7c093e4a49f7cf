# SPDX-License-Identifier: GPL-2.0-or-later
"""What comes while a SEAMCALL lasts waits for it or goes its own way: nothing fails for it.

softseam holds the call when it has done its work, with the locks that it took: a call that needs one of them
returns TDX_OPERAND_BUSY, which KVM may only see where it tries again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pytest

from e2e.races import (
    RACES,
    Ask,
    Prepare,
    Race,
    add_page,
    created,
    error_of,
    finalize,
    init_vcpu,
    init_vm,
    orders,
    placed,
    prepared,
    with_raw_vcpu,
)
from fixtures.agent import syscalls
from fixtures.agent.call import Call, batch_call
from fixtures.agent.client import Agent, Worker
from fixtures.guests.running import begun
from fixtures.host.base import TdxHost
from fixtures.host.hkids import Hkids
from fixtures.kvm import build
from fixtures.kvm.build import Assembly
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


def on(cpus: Sequence[int], call: Call[Any]) -> Call[Any]:
    """Make a call in a thread that runs on some CPUs only."""
    return batch_call([syscalls.affinity(cpus), call])


def errors_of(
    host: TdxHost, leaf: str, first: tuple[Worker, Call[Any]], *others: tuple[Worker, Call[Any]]
) -> tuple[bool, list[int]]:
    """Make requests, of which the first makes a SEAMCALL that lasts until the others have begun.

    It lasts on a CPU of its own, which writes back no package.

    :returns: whether it lasted (not if it was made elsewhere, or with interrupts off), and the errnos.
    """
    *usual, last = range(host.shape.cpus)
    with held(host.agent.files, leaf, last) as hold:
        worker, call = first
        jobs = [worker.start(on([last], call))]
        lasts = hold.reached(jobs[0].done)
        jobs += [begun(worker, on(usual, call)) for worker, call in others]
    return lasts, [error_of(job.worker, partial(job.result().__getitem__, 1)) for job in jobs]


def hold_in_races(race: Race, host: TdxHost, owner: Worker, most: int) -> None:
    """Let each request of a race be the first in turn, and its SEAMCALLs last in turn.

    :param most: number of SEAMCALLs of each request that have to last.
    """
    allowed = orders(race, owner)
    tried = 0
    for first in range(len(race.requests)):
        lasted = 0
        for leaf in leaves_of_request(race, first, host, owner):
            if lasted == most:
                break
            with prepared(race, owner) as requests:
                calls = [(owner, requests.pop(first)), *((owner, call) for call in requests)]
                lasts, found = errors_of(host, leaf, *calls)
            errors = (*found[1 : first + 1], found[0], *found[first + 1 :])
            assert errors in allowed, f"{errors} while {leaf} of request {first} lasts; in order: {allowed}"
            lasted += lasts
        tried += lasted
    assert tried


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
    name: str, most: int, tdx_host: TdxHost, owner: Worker, hkids: Hkids
) -> None:
    hold_in_races(RACES[name], tdx_host, owner, most)
    assert hkids.taken == 0


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


@pytest.mark.parametrize("other", ["init-vm", "end"])
@pytest.mark.parametrize("step", STEPS)
def test_td_comes_and_goes_while_a_seamcall_of_another_lasts(
    step: str, other: str, tdx_host: TdxHost, owner: Worker, hkids: Hkids
) -> None:
    """No SEAMCALL of one TD makes a step of another fail."""
    agent = tdx_host.agent
    prepare, ask = STEPS[step]
    prepare_other, ask_other = STEPS[other]
    with prepare(owner) as td:
        leaves = leaves_of(agent, partial(owner.call, ask(td)))
    tried = 0
    with agent.spawn() as neighbour:
        for leaf in leaves:
            with prepare(owner) as td, prepare_other(neighbour) as beside:
                lasted, found = errors_of(tdx_host, leaf, (owner, ask(td)), (neighbour, ask_other(beside)))
            assert found == [0, 0], f"while {leaf} lasts"
            tried += lasted
    assert tried
    assert hkids.taken == 0
