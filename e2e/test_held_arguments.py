# SPDX-License-Identifier: GPL-2.0-or-later
"""Arguments that come late: KVM waits for memory in the middle of a request, and others ask meanwhile.

A page of the argument is missing until the test gives it (userfaultfd), so that nothing here needs luck.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from e2e.arguments import Ask, data_of, data_of_vcpu, parameters, region
from e2e.races import PAGE, RACES, add_page, error_of, init_vm, orders
from fixtures.agent.call import Call
from fixtures.agent.client import Worker
from fixtures.contracts.answers import refused
from fixtures.contracts.promises import Contract, Refusal
from fixtures.guests.running import begun
from fixtures.host.hkids import Hkids
from fixtures.kvm import abi, commands
from fixtures.kvm.abi import PAGE_SIZE, TdxCmdId
from fixtures.kvm.build import Assembly
from fixtures.kvm.cpuid import CpuidEntry
from fixtures.kvm.defaults import default_params
from fixtures.kvm.late import LateMemory
from fixtures.kvm.params import InitVmParams, Overrides

pytestmark = pytest.mark.tdx_needs("misc-cgroup", "late-memory")


# Other requests meanwhile


def source(_: Assembly) -> bytes:
    return PAGE.data


def add_from(td: Assembly, address: int) -> Call[Any]:
    return commands.init_mem_region(td.vcpus[0].fd, address, PAGE.gpa)


LATE: Mapping[str, tuple[Callable[[Assembly], Call[Any]], Callable[[Assembly], bytes], Ask]] = {
    "parameters": (init_vm, parameters, data_of(TdxCmdId.INIT_VM)),
    "region": (add_page, region, data_of_vcpu(TdxCmdId.INIT_MEM_REGION)),
    "source": (add_page, source, add_from),
}
"""What comes late: the request of a race that it belongs to, its content, and the request that reads it."""


@pytest.mark.parametrize(
    ("what", "name"),
    [
        (what, name)
        for what, (request, *_) in LATE.items()
        for name, race in RACES.items()
        if race.requests[0] is request
    ],
)
def test_request_that_comes_while_an_argument_is_read_ends_as_in_some_order(
    what: str, name: str, owner: Worker, hkids: Hkids
) -> None:
    race = RACES[name]
    _, content, ask = LATE[what]
    allowed = orders(race, owner)
    with LateMemory.map(owner, PAGE_SIZE) as memory, race.prepare(owner) as td:
        jobs = [owner.start(ask(td, memory.address))]
        memory.wanted()
        jobs += [begun(owner, request(td)) for request in race.requests[1:]]
        memory.give(content(td))
        errors = tuple(error_of(owner, job.result) for job in jobs)
    assert errors in allowed
    assert hkids.taken == 0


# A number that KVM reads twice


def two_leaves(td: Assembly) -> InitVmParams:
    """Parameters with one CPUID leaf more than a TD needs."""
    params = default_params(td.worker)
    there = {entry.key for entry in params.cpuid}
    leaves = [entry.key for entry in td.worker.call(commands.capabilities(td.td.fd)).cpuid]
    return params.replace(cpuid=(*params.cpuid, next(CpuidEntry(*key) for key in leaves if key not in there)))


def init_vm_late(td: Assembly, params: InitVmParams, entries: int) -> None:
    """KVM_TDX_INIT_VM whose number of CPUID entries changes while KVM waits for what is before it.

    :param entries: the new number.
    """
    at = abi.TdxInitVm.cpuid.offset
    data = params.pack()
    with LateMemory.map(td.worker, 2 * PAGE_SIZE) as memory:
        memory.write(PAGE_SIZE, data[at:])
        there = Overrides(data=memory.address + PAGE_SIZE - at)
        job = td.worker.start(commands.init_vm(td.td.fd, params, altered=there))
        memory.wanted()
        memory.write(PAGE_SIZE, entries.to_bytes(4, "little"))
        memory.give(bytes(PAGE_SIZE - at) + data[:at])
        job.result()


def test_parameters_may_come_late(td_created: Assembly, hkids: Hkids) -> None:
    params = two_leaves(td_created)
    init_vm_late(td_created, params, len(params.cpuid))
    assert hkids.taken == 1


def test_number_of_cpuid_entries_that_changes_while_it_is_read_is_refused(
    td_created: Assembly, contract: Contract, hkids: Hkids
) -> None:
    """KVM has read it to know how much to copy, and copies it: both numbers are right by themselves."""
    params = two_leaves(td_created)
    with refused(contract, Refusal.INIT_NENT_CHANGES):
        init_vm_late(td_created, params, len(params.cpuid) - 1)
    assert hkids.taken == 0
    td_created.td.init_vm()
