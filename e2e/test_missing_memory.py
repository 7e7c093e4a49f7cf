# SPDX-License-Identifier: GPL-2.0-or-later
"""Requests for which the kernel lacks memory: they fail, take nothing, and can be made again.

Each is made by a child of a TD's owner, which may have one page more in each round, until that is enough: so
each allocation that is charged to who asks for it (GFP_KERNEL_ACCOUNT) fails once.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count

import pytest

from e2e.children import CLONE_VM, Waiting, child, tdx_command
from fixtures.agent.client import Worker
from fixtures.cgroup import Cgroup
from fixtures.host.base import TdxHost
from fixtures.kvm import build
from fixtures.kvm.abi import PAGE_SIZE, Request, TdxCmdId, TdxInitMemRegion
from fixtures.kvm.build import Assembly, Region
from fixtures.kvm.memory import Memory

pytestmark = pytest.mark.tdx_needs("misc-cgroup")


@dataclass(frozen=True)
class Step:
    """A request that a child of the owner's makes, and how the owner makes it afterwards."""

    begin: Callable[[Worker], Assembly]
    by_a_child: Callable[[Assembly, Memory], Waiting]
    again: Callable[[Assembly], object]


def with_raw_vcpu(owner: Worker) -> Assembly:
    built = build.initialized(owner).create_vcpus()
    built.vcpus[0].set_cpuid2()
    return built


def init_vm_by_a_child(built: Assembly, memory: Memory) -> Waiting:
    return tdx_command(built.td.fd, TdxCmdId.INIT_VM, built.td.default_params().pack(), memory)


def add_page_by_a_child(built: Assembly, memory: Memory) -> Waiting:
    where = bytes(TdxInitMemRegion(memory.address, PLACE.gpa, 1))
    return tdx_command(built.vcpus[0].fd, TdxCmdId.INIT_MEM_REGION, where, memory)


PLACE = Region(1 << 32, PAGE_SIZE)
STEPS: Mapping[str, Step] = {
    "init-vm": Step(build.created, init_vm_by_a_child, lambda built: built.td.init_vm()),
    "create-vcpu": Step(
        build.initialized,
        lambda built, memory: Waiting(memory, built.td.fd, Request.KVM_CREATE_VCPU, 0),
        lambda built: built.create_vcpus(),
    ),
    "init-vcpu": Step(
        with_raw_vcpu,
        lambda built, memory: tdx_command(built.vcpus[0].fd, TdxCmdId.INIT_VCPU, 0, memory),
        lambda built: built.vcpus[0].init_vcpu(),
    ),
    "add-page": Step(
        lambda owner: build.with_vcpus(owner).place(PLACE),
        add_page_by_a_child,
        lambda built: built.vcpus[0].init_mem_region(bytes(PAGE_SIZE), PLACE.gpa),
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "add-page" else ()) for name in STEPS]
)
def test_takes_nothing_and_can_be_made_again(
    name: str, tdx_host: TdxHost, owner: Worker, tdx_cgroup: Cgroup, assert_gone: Callable[[], None]
) -> None:
    step, memory = STEPS[name], Memory.map(owner, PAGE_SIZE)
    for pages in count():
        poor = tdx_cgroup.child(f"{pages}-pages")
        poor.limit_memory(pages * PAGE_SIZE)
        with step.begin(owner) as built:
            asking = step.by_a_child(built, memory)
            with child(owner, asking.code, CLONE_VM) as pid:
                # Otherwise it is killed instead of being told that there is no memory.
                tdx_host.agent.files.write(f"/proc/{pid}/oom_score_adj", "-1000")
                poor.enter(pid)
                result = asking.go_on()
            if result < 0:
                assert (result, poor.current) == (-errno.ENOMEM, 0)
                step.again(built)
        assert_gone()
        if result >= 0:
            break
    assert pages > 1
