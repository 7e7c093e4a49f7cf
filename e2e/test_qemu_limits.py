# SPDX-License-Identifier: GPL-2.0-or-later
"""Limits of TDs and vCPUs: a real QEMU reaches them, and is refused one more.

QEMU reads the limit of vCPUs from the VM fd (``kvm_init`` in accel/kvm/kvm-all.c), and prints what
KVM_TDX_INIT_VM returns (``tdx_ioctl_internal`` in target/i386/kvm/tdx.c).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from e2e.findings import F1
from fixtures.agent.client import Worker
from fixtures.cgroup import Cgroup
from fixtures.contracts.promises import Contract, Refusal
from fixtures.findings import shows
from fixtures.guests.qemu_td import QemuTd, complaints
from fixtures.guests.qemu_tds import QemuTds
from fixtures.host.base import TdxHost
from fixtures.host.hkids import Hkids
from fixtures.kvm import build
from fixtures.kvm.abi import Cap
from fixtures.kvm.device import Kvm
from fixtures.kvm.many import many_tds
from fixtures.qemu.errors import QemuLaunchFailed, QmpError, QmpGone

pytestmark = pytest.mark.tdx_needs("misc-cgroup")


def failure(start: Callable[[], QemuTd]) -> tuple[int | None, tuple[str, ...]]:
    """Return the exit status and the error messages of a QEMU that does not start."""
    with pytest.raises(QemuLaunchFailed) as caught:
        start()
    return caught.value.returncode, complaints(caught.value.output)


def init_vm_failed(messages: tuple[str, ...], number: int) -> bool:
    """Return whether QEMU reports that KVM_TDX_INIT_VM failed with an errno."""
    return any("KVM_TDX_INIT_VM" in one and os.strerror(number) in one for one in messages)


# HKIDs


@pytest.mark.tdx_host(keyids=3)
def test_every_hkid_can_be_a_qemu_tds_and_one_more_is_refused(
    hkids: Hkids, qemu_tds: QemuTds, contract: Contract
) -> None:
    tds = [qemu_tds.start() for _ in range(hkids.free)]
    assert hkids.free == 0
    status, messages = failure(qemu_tds.start)
    assert status == 1
    assert init_vm_failed(messages, contract.errno(Refusal.INIT_NO_HKID)), messages
    assert hkids.in_use == hkids.capacity
    assert [td.status for td in tds] == ["prelaunch"] * len(tds)
    assert tds[0].quit() == 0
    assert hkids.free == 1
    assert qemu_tds.start().status == "prelaunch"
    assert hkids.free == 0


def test_the_last_hkid_beside_raw_tds_is_as_good_as_any(
    hkids: Hkids, kvm: Kvm, qemu_tds: QemuTds, contract: Contract
) -> None:
    raw = many_tds(kvm, hkids.free - 1)
    td = qemu_tds.start()
    assert hkids.free == 0
    status, messages = failure(qemu_tds.start)
    assert status == 1
    assert init_vm_failed(messages, contract.errno(Refusal.INIT_NO_HKID)), messages
    assert td.quit() == 0
    assert hkids.free == 1
    assert len(raw) == hkids.in_use


@pytest.mark.tdx_finding("F1", **F1)
def test_over_the_cgroups_limit_is_refused_with_another_error(
    hkids: Hkids,
    tdx_host: TdxHost,
    tdx_cgroup: Cgroup,
    tdx_cleanup: ExitStack,
    qemu_tds: QemuTds,
    contract: Contract,
) -> None:
    tdx_cgroup.set_max(1)
    worker = tdx_cleanup.enter_context(tdx_host.agent.spawn(cgroup=tdx_cgroup.path))
    td = qemu_tds.start(worker)
    assert tdx_cgroup.current == 1
    status, messages = failure(lambda: qemu_tds.start(worker))
    assert status == 1
    assert init_vm_failed(messages, contract.errno(Refusal.INIT_CGROUP_MAX)), messages
    assert tdx_cgroup.events_local == 1
    with shows("F1"):
        assert tdx_cgroup.current == 1
    assert hkids.taken == 1
    assert td.quit() == 0
    assert qemu_tds.start(worker).status == "prelaunch"


def test_qemu_tds_hkid_is_charged_to_its_cgroup(
    tdx_host: TdxHost, tdx_cgroup: Cgroup, tdx_cleanup: ExitStack, qemu_tds: QemuTds
) -> None:
    worker = tdx_cleanup.enter_context(tdx_host.agent.spawn(cgroup=tdx_cgroup.path))
    td = qemu_tds.start(worker)
    assert (tdx_cgroup.current, tdx_cgroup.peak) == (1, 1)
    assert td.quit() == 0
    assert (tdx_cgroup.current, tdx_cgroup.peak) == (0, 1)


# vCPUs


@pytest.fixture
def limit(kvm: Kvm) -> int:
    """The number of vCPUs that the kernel allows a TD."""
    with kvm.create_td() as td:
        return td.check_extension(Cap.MAX_VCPUS)


def test_as_many_vcpus_as_the_limit_allows(limit: int, qemu_tds: QemuTds) -> None:
    td = qemu_tds.start(smp=str(limit))
    assert len(td.execute("query-cpus-fast")) == limit


def assert_too_many(start: Callable[[], QemuTd], asked: int, limit: int) -> None:
    """Require that QEMU refuses a number of vCPUs, and names it and the limit."""
    status, messages = failure(start)
    assert status == 1
    assert any(f"({asked})" in one and f"({limit})" in one for one in messages), messages


def test_one_vcpu_above_the_limit_is_refused(limit: int, hkids: Hkids, qemu_tds: QemuTds) -> None:
    assert_too_many(lambda: qemu_tds.start(smp=str(limit + 1)), limit + 1, limit)
    assert hkids.taken == 0


def test_maxcpus_above_the_limit_is_refused(limit: int, hkids: Hkids, qemu_tds: QemuTds) -> None:
    assert_too_many(lambda: qemu_tds.start(smp=f"1,maxcpus={limit + 1}"), limit + 1, limit)
    assert hkids.taken == 0


@pytest.mark.tdx_host(cpus=2)
@pytest.mark.tdx_finding("Q5", qemu=("11.1",))
def test_vcpu_cannot_be_plugged_into_a_td(hkids: Hkids, qemu_tds: QemuTds) -> None:
    td = qemu_tds.start(smp="1,maxcpus=2")
    (free,) = [slot for slot in td.execute("query-hotpluggable-cpus") if "qom-path" not in slot]
    with shows("Q5", QmpGone), pytest.raises(QmpError):
        td.execute("device_add", driver=free["type"], id="late", **free["props"])
    assert len(td.execute("query-cpus-fast")) == 1
    assert td.status == "prelaunch"
    assert hkids.taken == 1


# beside others


@pytest.mark.tdx_needs("plain-vm-run")
def test_beside_a_plain_vm(hkids: Hkids, qemu_tds: QemuTds) -> None:
    plain = qemu_tds.start(guest=None, firmware="", run=True)
    td = qemu_tds.start()
    assert hkids.taken == 1
    assert (plain.status, td.status) == ("running", "prelaunch")
    assert plain.quit() == 0
    assert hkids.taken == 1


def test_beside_raw_tds_that_come_and_go(hkids: Hkids, owner: Worker, qemu_tds: QemuTds) -> None:
    with build.finalized(owner):
        td = qemu_tds.start()
        assert hkids.taken == 2
    assert hkids.taken == 1
    assert td.status == "prelaunch"
