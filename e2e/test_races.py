# SPDX-License-Identifier: GPL-2.0-or-later
"""Requests of one TD at the same instant: they end as if one had come after the other, in some order.

Each race first runs in all orders, one request after the other, on a TD each; a round of the race then has to
end as one of them did.
"""

from __future__ import annotations

from functools import partial

import pytest

from e2e.findings import F33
from e2e.races import PAGE, RACES, Race, error_of, on, orders, prepared
from fixtures.agent import syscalls
from fixtures.agent.call import batch_call
from fixtures.agent.client import Worker
from fixtures.findings import shows
from fixtures.host.base import TdxHost
from fixtures.host.cpus import Cpus
from fixtures.host.hkids import Hkids
from fixtures.kvm import build
from fixtures.kvm.build import HALT, Region
from fixtures.kvm.errors import KvmError

pytestmark = pytest.mark.tdx_needs("misc-cgroup")

FEW, MANY = 4, 1000


def run_race(race: Race, host: TdxHost, owner: Worker, rounds: int) -> None:
    """Run a race again and again; each round has to end as one of its orders.

    Each thread stays on a CPU: one that leaves it in the middle of KVM_TDX_INIT_VCPU meets F33.
    """
    allowed = orders(race, owner)
    seen: dict[tuple[int, ...], int] = {}
    for _ in range(rounds):
        with prepared(race, owner) as requests:
            places = host.agent.barrier(len(requests))
            jobs = [
                owner.start(on([number % host.shape.cpus], batch_call([syscalls.barrier(place), call])))
                for number, (place, call) in enumerate(zip(places, requests, strict=True))
            ]
            results = [job.result()[1] for job in jobs]
            errors = tuple(error_of(owner, partial(result.__getitem__, 1)) for result in results)
        seen[errors] = seen.get(errors, 0) + 1
        assert errors in allowed, (
            f"{errors} is the end of none of the orders {sorted(allowed)}; before: {seen}"
        )


@pytest.mark.parametrize("race", RACES)
def test_race_ends_as_one_of_its_orders(race: str, tdx_host: TdxHost, owner: Worker, hkids: Hkids) -> None:
    run_race(RACES[race], tdx_host, owner, FEW)
    assert hkids.taken == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("race", RACES)
def test_race_ends_as_one_of_its_orders_a_thousand_times(
    race: str, tdx_host: TdxHost, owner: Worker, hkids: Hkids
) -> None:
    run_race(RACES[race], tdx_host, owner, MANY)
    assert hkids.taken == 0


# CPUs that go and come


@pytest.mark.tdx_needs("cpu-hotplug")
def test_each_step_of_a_life_succeeds_while_a_cpu_goes_and_comes(
    tdx_host: TdxHost, owner: Worker, hotplug: Cpus, hkids: Hkids
) -> None:
    run_hotplug(tdx_host, owner, hotplug, 2)
    assert hkids.taken == 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.tdx_needs("cpu-hotplug")
@pytest.mark.tdx_finding("F33", **F33, race=True)
def test_each_step_of_a_life_succeeds_while_a_cpu_goes_and_comes_a_thousand_times(
    tdx_host: TdxHost, owner: Worker, hotplug: Cpus, hkids: Hkids
) -> None:
    with shows("F33", KvmError, match="EIO"):
        run_hotplug(tdx_host, owner, hotplug, MANY)
    assert hkids.taken == 0


def run_hotplug(host: TdxHost, owner: Worker, cpus: Cpus, rounds: int) -> None:
    """Make TDs as long as the last CPU goes offline and comes back."""
    switch = f"/sys/devices/system/cpu/cpu{max(cpus.all)}/online"
    toggles = [syscalls.write_file(switch, b"0"), syscalls.write_file(switch, b"1")]
    lives = 0
    with host.agent.spawn() as other:
        toggling = other.start(batch_call(toggles, repeat=rounds))
        while not toggling.done() or not lives:
            with build.finalized(owner, HALT, vcpus=len(cpus.all)) as td:
                make = Region(PAGE.gpa, PAGE.size)
                td.place(make)
                td.td.set_memory_attributes(PAGE.gpa, PAGE.size, private=False)
            lives += 1
        assert toggling.result(600).complete
