# SPDX-License-Identifier: GPL-2.0-or-later
"""CPU packages: an HKID's key is programmed into each, and its cache lines are written back from each.

So every package needs a CPU that is online, from KVM_TDX_INIT_VM until the HKID is free again.  Sources:
``__tdx_td_init`` and ``tdx_mmu_release_hkid`` in arch/x86/kvm/vmx/tdx.c, ``tdx_offline_cpu`` in
arch/x86/virt/vmx/tdx/tdx.c.
"""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from fixtures.agent import syscalls
from fixtures.agent.client import Worker
from fixtures.contracts.answers import refused
from fixtures.contracts.promises import Contract, Refusal
from fixtures.host.base import TdxHost
from fixtures.host.cpus import Cpus
from fixtures.host.hkids import Hkids
from fixtures.kvm import build
from fixtures.kvm.defaults import default_params
from fixtures.kvm.device import Kvm
from fixtures.kvm.many import many_tds
from fixtures.softseam.truth import Truth

pytestmark = [
    pytest.mark.tdx_host(cpus=4, sockets=2),
    pytest.mark.tdx_needs("misc-cgroup", "cpu-hotplug", "several-packages"),
]


@pytest.fixture
def cpus(tdx_host: TdxHost, tdx_cleanup: ExitStack) -> Cpus:
    """The host's CPUs; all that were online are so again after the test."""
    found = Cpus.online_now(tdx_host.agent)
    tdx_cleanup.callback(found.restore)
    return found


def leave_one(cpus: Cpus) -> int:
    """Take all CPUs but one of the last package offline; gives the one."""
    last, *others = cpus.packages[max(cpus.packages)]
    cpus.offline(*others)
    return last


def test_all_but_one_cpu_of_a_package_can_go_while_an_hkid_is_in_use(kvm: Kvm, cpus: Cpus) -> None:
    many_tds(kvm, 1)
    left = leave_one(cpus)
    assert cpus.online & {*cpus.packages[max(cpus.packages)]} == {left}


def test_last_cpu_of_a_package_stays_while_an_hkid_is_in_use(
    kvm: Kvm, cpus: Cpus, contract: Contract
) -> None:
    many_tds(kvm, 1)
    last = leave_one(cpus)
    with refused(contract, Refusal.LAST_CPU_OFFLINE):
        cpus.offline(last)
    assert last in cpus.online


def test_last_cpu_of_a_package_may_go_when_no_hkid_is_in_use(kvm: Kvm, cpus: Cpus) -> None:
    (td,) = many_tds(kvm, 1)
    last = leave_one(cpus)
    td.close()
    cpus.offline(last)
    assert last not in cpus.online


def test_vm_without_an_hkid_keeps_no_cpu(kvm: Kvm, cpus: Cpus) -> None:
    last = leave_one(cpus)
    with kvm.create_td():
        cpus.offline(last)
        assert last not in cpus.online


def test_init_vm_with_a_package_offline_is_refused_and_holds_nothing(
    kvm: Kvm, cpus: Cpus, hkids: Hkids, contract: Contract
) -> None:
    params = default_params(kvm.worker)
    last = leave_one(cpus)
    cpus.offline(last)
    with kvm.create_td() as td:
        with refused(contract, Refusal.INIT_PACKAGE_OFFLINE):
            td.init_vm(params)
        assert hkids.taken == 0
        cpus.restore()
        td.init_vm(params)
        assert hkids.taken == 1


def test_one_cpu_of_each_package_is_enough_for_a_whole_life(owner: Worker, cpus: Cpus, hkids: Hkids) -> None:
    for package in cpus.packages.values():
        cpus.offline(*package[1:])
    with build.finalized(owner):
        assert hkids.taken == 1
    assert hkids.taken == 0


def test_vcpu_leaves_a_cpu_that_goes_offline(owner: Worker, cpus: Cpus, hkids: Hkids) -> None:
    """It was initialized there, so the TDX module has it associated with that CPU until it is flushed."""
    going = cpus.packages[max(cpus.packages)][-1]
    owner.call(syscalls.affinity([going]))
    with build.with_vcpus(owner):
        cpus.offline(going)
        assert hkids.taken == 1
    assert hkids.taken == 0


@pytest.mark.tdx_needs("ground-truth")
def test_key_is_programmed_in_every_package(kvm: Kvm, cpus: Cpus, tdx_host: TdxHost) -> None:
    many_tds(kvm, 1)
    (key,) = [key for key in Truth(tdx_host.agent).state().keys if key.tdr is not None]
    assert key.configured == sum(1 << package for package in cpus.packages)


@pytest.mark.tdx_needs("ground-truth")
def test_caches_are_written_back_once_in_every_package(kvm: Kvm, cpus: Cpus, tdx_host: TdxHost) -> None:
    (td,) = many_tds(kvm, 1)
    leaves = Truth(tdx_host.agent).leaves
    before = leaves()["TDH.PHYMEM.CACHE.WB"]
    td.close()
    after = leaves()["TDH.PHYMEM.CACHE.WB"]
    assert (after.calls - before.calls, after.errors) == (len(cpus.packages), before.errors)
