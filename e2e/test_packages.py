# SPDX-License-Identifier: GPL-2.0-or-later
"""CPU packages: an HKID's key is programmed into each, and its cache lines are written back from each.

Every package therefore needs a CPU that is online, from KVM_TDX_INIT_VM until the HKID is free.  Sources:
``__tdx_td_init`` and ``tdx_mmu_release_hkid`` in arch/x86/kvm/vmx/tdx.c, ``tdx_offline_cpu`` in
arch/x86/virt/vmx/tdx/tdx.c.
"""

from __future__ import annotations

import pytest

from fixtures.agent import syscalls
from fixtures.agent.client import Worker
from fixtures.contracts.answers import refused
from fixtures.contracts.promises import Contract, Refusal
from fixtures.host.base import TdxHost
from fixtures.host.cpus import Cpus
from fixtures.host.hkids import Hkids
from fixtures.kvm import build
from fixtures.kvm.abi import PAGE_SIZE
from fixtures.kvm.build import Region
from fixtures.kvm.defaults import default_params
from fixtures.kvm.device import Kvm
from fixtures.kvm.fd import close_all
from fixtures.kvm.many import many_tds
from fixtures.softseam.truth import Truth

pytestmark = [
    pytest.mark.tdx_host(cpus=4, sockets=2),
    pytest.mark.tdx_needs("misc-cgroup", "cpu-hotplug", "several-packages"),
]


def leave_one(hotplug: Cpus) -> int:
    """Take all CPUs of the last package but one offline, and return that one."""
    last, *others = hotplug.packages[max(hotplug.packages)]
    hotplug.offline(*others)
    return last


def test_all_but_one_cpu_of_a_package_can_go_while_an_hkid_is_in_use(kvm: Kvm, hotplug: Cpus) -> None:
    many_tds(kvm, 1)
    left = leave_one(hotplug)
    assert hotplug.online & {*hotplug.packages[max(hotplug.packages)]} == {left}


def test_last_cpu_of_a_package_stays_while_an_hkid_is_in_use(
    kvm: Kvm, hotplug: Cpus, contract: Contract
) -> None:
    (td,) = many_tds(kvm, 1)
    last = leave_one(hotplug)
    for _ in range(3):
        with refused(contract, Refusal.LAST_CPU_OFFLINE):
            hotplug.offline(last)
        assert last in hotplug.online
    td.close()
    hotplug.offline(last)
    assert last not in hotplug.online


def test_last_cpu_of_a_package_may_go_when_no_hkid_is_in_use(kvm: Kvm, hotplug: Cpus) -> None:
    (td,) = many_tds(kvm, 1)
    last = leave_one(hotplug)
    td.close()
    hotplug.offline(last)
    assert last not in hotplug.online


def test_last_cpu_of_a_package_may_go_after_an_init_vm_that_found_no_hkid(
    kvm: Kvm, hotplug: Cpus, hkids: Hkids, contract: Contract
) -> None:
    tds = many_tds(kvm, hkids.free)
    with kvm.create_td() as td, refused(contract, Refusal.INIT_NO_HKID):
        td.init_vm()
    last = leave_one(hotplug)
    with refused(contract, Refusal.LAST_CPU_OFFLINE):
        hotplug.offline(last)
    close_all(*tds)
    hotplug.offline(last)
    assert last not in hotplug.online


def test_vm_without_an_hkid_keeps_no_cpu(kvm: Kvm, hotplug: Cpus) -> None:
    last = leave_one(hotplug)
    with kvm.create_td():
        hotplug.offline(last)
        assert last not in hotplug.online


def test_init_vm_with_a_package_offline_is_refused_and_holds_nothing(
    kvm: Kvm, hotplug: Cpus, hkids: Hkids, contract: Contract
) -> None:
    params = default_params(kvm.worker)
    last = leave_one(hotplug)
    hotplug.offline(last)
    with kvm.create_td() as td:
        with refused(contract, Refusal.INIT_PACKAGE_OFFLINE):
            td.init_vm(params)
        assert hkids.taken == 0
        hotplug.restore()
        td.init_vm(params)
        assert hkids.taken == 1


def test_each_life_is_whole_whichever_cpu_of_a_package_is_offline(
    owner: Worker, hotplug: Cpus, hkids: Hkids
) -> None:
    """Nothing is remembered of the CPUs that were there when the TD before ended."""
    with build.finalized(owner):
        pass
    for cpu in hotplug.packages[max(hotplug.packages)]:
        hotplug.offline(cpu)
        with build.finalized(owner):
            assert hkids.taken == 1
        assert hkids.taken == 0
        hotplug.restore()


def test_cpu_that_was_away_while_there_was_no_td_makes_tds_again(owner: Worker, hotplug: Cpus) -> None:
    """It has lost what KVM and the TDX module had set up for it."""
    cpu = hotplug.packages[max(hotplug.packages)][-1]
    hotplug.offline(cpu)
    hotplug.restore()
    assert owner.call(syscalls.affinity([cpu])) == [cpu]
    with build.finalized(owner):
        pass


def test_one_cpu_of_each_package_is_enough_for_a_whole_life(
    owner: Worker, hotplug: Cpus, hkids: Hkids
) -> None:
    for package in hotplug.packages.values():
        hotplug.offline(*package[1:])
    with build.finalized(owner):
        assert hkids.taken == 1
    assert hkids.taken == 0


def test_vcpu_leaves_a_cpu_that_goes_offline(owner: Worker, hotplug: Cpus, hkids: Hkids) -> None:
    """The TDX module associates a vCPU with the CPU that initialized it, until the vCPU is flushed."""
    going = hotplug.packages[max(hotplug.packages)][-1]
    owner.call(syscalls.affinity([going]))
    with build.with_vcpus(owner):
        hotplug.offline(going)
        assert hkids.taken == 1
    assert hkids.taken == 0


def test_vcpu_that_is_not_initialized_leaves_a_cpu_that_goes_offline(owner: Worker, hotplug: Cpus) -> None:
    """KVM keeps a list of vCPUs for each CPU: what it kept of this one would meet those that come later."""
    going = hotplug.packages[max(hotplug.packages)][-1]
    owner.call(syscalls.affinity([going]))
    with build.initialized(owner).create_vcpus() as built:
        hotplug.offline(going)
        built.initialize_vcpus().populate(Region.firmware(build.HALT)).finalize()
    for _ in range(2):
        hotplug.restore()
        assert owner.call(syscalls.affinity([going])) == [going]
        with build.finalized(owner):
            hotplug.offline(going)


def test_all_vcpus_leave_a_cpu_that_goes_offline(owner: Worker, hotplug: Cpus, hkids: Hkids) -> None:
    """Of one TD and of several."""
    going = hotplug.packages[max(hotplug.packages)][-1]
    owner.call(syscalls.affinity([going]))
    with build.initialized(owner).add_vcpus(2) as first, build.with_vcpus(owner) as second:
        hotplug.offline(going)
        for built in (first, second):
            built.populate(Region(0x100000, PAGE_SIZE, b"\x5a" * PAGE_SIZE)).finalize()
            for vcpu in built.vcpus:
                assert vcpu.pre_fault(0x100000, PAGE_SIZE) == 0
        assert hkids.taken == 2
    assert hkids.taken == 0


@pytest.mark.parametrize("then", ["end", "go-on"])
def test_vcpu_is_flushed_where_it_was(then: str, owner: Worker, tdx_host: TdxHost, hkids: Hkids) -> None:
    """Before the TD ends on another CPU, and before the vCPU is used there."""
    first, *_, last = range(tdx_host.shape.cpus)
    owner.call(syscalls.affinity([last]))
    with build.with_vcpus(owner) as built:
        owner.call(syscalls.affinity([first]))
        if then == "go-on":
            built.populate(Region(0x100000, PAGE_SIZE, b"\x5a" * PAGE_SIZE)).finalize()
            assert built.vcpus[0].pre_fault(0x100000, PAGE_SIZE) == 0
        assert hkids.taken == 1
    assert hkids.taken == 0


@pytest.mark.tdx_needs("ground-truth")
def test_key_is_programmed_in_every_package(kvm: Kvm, tdx_host: TdxHost) -> None:
    many_tds(kvm, 1)
    (key,) = [key for key in Truth(tdx_host.agent).state().keys if key.tdr is not None]
    assert key.configured == sum(1 << package for package in Cpus.online_now(tdx_host.agent).packages)


@pytest.mark.tdx_needs("ground-truth")
def test_caches_are_written_back_once_in_every_package(kvm: Kvm, tdx_host: TdxHost) -> None:
    (td,) = many_tds(kvm, 1)
    leaves = Truth(tdx_host.agent).leaves
    before = leaves()["TDH.PHYMEM.CACHE.WB"]
    td.close()
    after = leaves()["TDH.PHYMEM.CACHE.WB"]
    assert (after.calls - before.calls, after.errors) == (tdx_host.facts.packages, before.errors)
