# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands of one TD against each other, and against a process that changes their arguments meanwhile."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import pytest

from fixtures.agent import syscalls
from fixtures.agent.call import Call, batch_call
from fixtures.agent.client import Job, Worker
from fixtures.guests import output
from fixtures.host.base import TdxHost
from fixtures.kvm import abi, build, commands
from fixtures.kvm.abi import PAGE_SIZE, TdxCmdId
from fixtures.kvm.build import Region
from fixtures.kvm.defaults import default_params
from fixtures.kvm.device import Kvm
from fixtures.kvm.errors import errno_of
from fixtures.kvm.memory import Memory

pytestmark = pytest.mark.tdx_host(cpus=2)

ROUNDS = [pytest.param(3, id="3-times"), pytest.param(1000, id="1000-times", marks=pytest.mark.slow)]
FLIPS = 1000
"""Number of times that another thread changes a number, in a second of an emulated machine."""
PAGE = Region(0x100000, PAGE_SIZE)


def while_flipping(
    worker: Worker, address: int, numbers: tuple[int, int], request: Callable[[], object]
) -> set[int]:
    """Make a request again and again while another thread writes two numbers in turn; return the errnos."""
    writes = [syscalls.mem_write(address, number.to_bytes(4, "little")) for number in numbers]
    flipping = worker.start(batch_call(writes, repeat=FLIPS))
    found = {errno_of(request)}
    while not flipping.done():
        found.add(errno_of(request))
    assert flipping.result().complete
    return found


def test_init_vm_while_the_number_of_its_entries_changes(kvm: Kvm) -> None:
    right = default_params(kvm.worker)
    number = len(right.cpuid)
    data = right.replace(nent=abi.KVM_MAX_CPUID_ENTRIES).pack()
    with Memory.map(kvm.worker, 4 * PAGE_SIZE) as memory:
        memory.write(0, data)
        call = commands.tdx

        def init() -> None:
            with kvm.create_td() as td:
                td.worker.call(call(td.fd, TdxCmdId.INIT_VM, memory.address))

        at = memory.address + abi.TdxInitVm.cpuid.offset
        found = while_flipping(kvm.worker, at, (number, abi.KVM_MAX_CPUID_ENTRIES), init)
    assert found <= {0, errno.EINVAL}
    with kvm.create_td() as td:
        td.init_vm()


@pytest.mark.parametrize(
    ("command", "offset"),
    [
        pytest.param(TdxCmdId.CAPABILITIES, abi.TdxCapabilities.cpuid.offset, id="capabilities"),
        pytest.param(TdxCmdId.GET_CPUID, 0, id="get-cpuid"),
    ],
)
def test_room_for_cpuid_changes_meanwhile(
    command: TdxCmdId, offset: int, owner: Worker, tdx_cleanup: ExitStack
) -> None:
    built = tdx_cleanup.enter_context(build.with_vcpus(owner))
    target = built.vcpus[0] if command == TdxCmdId.GET_CPUID else built.td
    with Memory.map(owner, 4 * PAGE_SIZE) as memory:
        found = while_flipping(
            owner,
            memory.address + offset,
            (0, abi.KVM_MAX_CPUID_ENTRIES),
            lambda: owner.call(commands.tdx(target.fd, command, memory.address)),
        )
    assert found <= {0, errno.E2BIG}


@pytest.mark.parametrize("rounds", ROUNDS)
def test_last_steps_of_the_construction_against_each_other(
    rounds: int, owner: Worker, tdx_host: TdxHost, payloads: Mapping[str, bytes]
) -> None:
    """KVM_TDX_INIT_VCPU, KVM_TDX_INIT_MEM_REGION and KVM_TDX_FINALIZE_VM, on three threads: each succeeds, or
    comes too late, or finds another one at work and can be repeated.
    """
    for _ in range(rounds):
        with build.with_vcpus(owner) as built:
            first = built.vcpus[0]
            late = built.td.create_vcpu(1)
            late.set_cpuid2()
            built.populate(Region.firmware(payloads["count"])).place(PAGE)
            steps: list[Call[Any]] = [
                commands.init_vcpu(late.fd),
                commands.init_mem_region(first.fd, b"\1", PAGE.gpa),
                commands.finalize_vm(built.td.fd),
            ]
            places = tdx_host.agent.barrier(len(steps))
            jobs: list[Job[Any]] = [
                owner.start(batch_call([syscalls.barrier(place), step]))
                for place, step in zip(places, steps, strict=True)
            ]
            init, add, finalize = (errno_of(lambda job=job: job.result()[-1]) for job in jobs)  # type: ignore[misc]
            assert init in (0, errno.EINVAL, errno.EBUSY)
            assert add in (0, errno.EINVAL, errno.EBUSY)
            assert finalize in (0, errno.EBUSY)
            if finalize:
                built.finalize()
            late.close()
            assert output.numbers(first, 1) == [1]
