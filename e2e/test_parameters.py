# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM's module parameters at their edges: TDX works, or is off with one clear line and KVM lives on."""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from e2e.findings import F1
from fixtures import cgroup
from fixtures.agent import syscalls
from fixtures.agent.client import Worker
from fixtures.cgroup import Cgroup
from fixtures.contracts.answers import refused
from fixtures.contracts.promises import Contract, Refusal
from fixtures.guests import output
from fixtures.guests.launch import Launch
from fixtures.host import kvm_modules
from fixtures.host.base import TdxHost
from fixtures.host.cpus import Cpus
from fixtures.host.facts import MISC_CAPACITY
from fixtures.host.hkids import Hkids
from fixtures.kvm.abi import Cap, VmType
from fixtures.kvm.device import Kvm
from fixtures.kvm.errors import errno_of

SWITCHES_MODULES = pytest.mark.tdx_needs("snapshot", "misc-cgroup")
"""For tests that load KVM with other parameters: their host is put back afterwards."""


@dataclass(frozen=True)
class Setting:
    """Parameters with which KVM is loaded.

    :param kvm: of kvm.
    :param intel: of kvm_intel, instead of or besides the usual ones.
    :param line: what the kernel's one line says when TDX is off; empty where TDX works.
    """

    kvm: str = ""
    intel: str = ""
    line: str = ""

    def load(self, host: TdxHost) -> list[str]:
        """Load KVM so; returns the kernel's lines about it."""
        host.poison(f"KVM was loaded with {self}")
        before = host.agent.files.kmsg(-1)[-1].sequence
        kvm_modules.reload(host.agent, common=self.kvm, parameters=f"{kvm_modules.USUAL} {self.intel}")
        return [message.text for message in host.agent.files.kmsg(before)]

    def __str__(self) -> str:
        return " ".join(filter(None, (self.kvm, self.intel)))


def assert_works(launch: Launch, hkids: Hkids) -> None:
    with launch("hello") as built:
        assert output.read_line(built.vcpus[0]) == "hello from vCPU 0"
        assert hkids.taken == 1
    assert hkids.taken == 0


# whether TDX is on

WITHOUT_TDX = (
    Setting(intel="ept=0", line="EPT is required for TDX"),
    Setting(intel="eptad=0", line="TDP MMU and MMIO caching and EPT A/D bit is required for TDX"),
    Setting(intel="enable_apicv=0", line="APICv is required for TDX"),
    Setting(kvm="tdp_mmu=0", line="TDP MMU and MMIO caching and EPT A/D bit is required for TDX"),
    Setting(kvm="mmio_caching=0", line="TDP MMU and MMIO caching and EPT A/D bit is required for TDX"),
)
"""What TDX needs, switched off (``tdx_hardware_setup``)."""


@SWITCHES_MODULES
@pytest.mark.parametrize("setting", WITHOUT_TDX, ids=str)
def test_kvm_without_what_tdx_needs_says_so_in_one_line_and_has_plain_vms(
    setting: Setting, tdx_host: TdxHost, owner: Worker
) -> None:
    lines = setting.load(tdx_host)
    about = [line for line in lines if re.search(r"\bTDX\b", line)]
    assert len(about) == 1
    assert setting.line in about[0]
    with Kvm.open(owner) as kvm:
        assert not kvm.check_extension(Cap.VM_TYPES) & 1 << VmType.TDX
        assert errno_of(kvm.create_td)
        with kvm.create_vm() as vm, vm.create_vcpu():
            pass


@SWITCHES_MODULES
def test_kvm_with_tdx_off_says_nothing_of_it(tdx_host: TdxHost, owner: Worker) -> None:
    lines = Setting(intel="tdx=0").load(tdx_host)
    assert not [line for line in lines if re.search(r"\bTDX\b", line, re.IGNORECASE)]
    with Kvm.open(owner) as kvm:
        assert not kvm.check_extension(Cap.VM_TYPES) & 1 << VmType.TDX


# nested virtualization, unloading


@SWITCHES_MODULES
def test_td_runs_on_a_kvm_that_has_nested_virtualization(
    tdx_host: TdxHost, launch: Launch, hkids: Hkids
) -> None:
    Setting(intel="nested=1").load(tdx_host)
    assert_works(launch, hkids)


@SWITCHES_MODULES
@pytest.mark.tdx_host(cpus=2)
@pytest.mark.tdx_needs("cpu-hotplug")
def test_td_runs_on_a_cpu_that_was_offline_when_kvm_was_loaded(
    tdx_host: TdxHost, hotplug: Cpus, owner: Worker, launch: Launch
) -> None:
    stays, *_, late = sorted(hotplug.all)
    hotplug.offline(late)
    Setting().load(tdx_host)
    hotplug.restore()
    owner.call(syscalls.affinity([late]))
    built = launch("hello", vcpus=2)
    assert output.read_line(built.vcpus[0]) == "hello from vCPU 0"
    owner.call(syscalls.affinity([stays]))
    hotplug.offline(late)
    assert output.read_line(built.vcpus[1]) == "hello from vCPU 1"


@SWITCHES_MODULES
def test_cgroups_tell_of_tds_after_kvm_is_unloaded(
    tdx_host: TdxHost, tdx_cgroup: Cgroup, tdx_cleanup: ExitStack
) -> None:
    worker = tdx_cleanup.enter_context(tdx_host.agent.spawn(cgroup=tdx_cgroup.path))
    with Kvm.open(worker) as kvm, ExitStack() as tds:
        for _ in range(2):
            tds.enter_context(kvm.create_td()).init_vm()
    unload(tdx_host)
    assert not cgroup.parse(tdx_host.agent.files.read_text(MISC_CAPACITY), cgroup.RESOURCE)
    assert (tdx_cgroup.current, tdx_cgroup.peak) == (0, 2)


@SWITCHES_MODULES
@pytest.mark.tdx_finding("F1", **F1)
def test_cgroups_tell_of_refusals_after_kvm_is_unloaded(
    tdx_host: TdxHost, tdx_cgroup: Cgroup, tdx_cleanup: ExitStack, contract: Contract
) -> None:
    tdx_cgroup.set_max(0)
    worker = tdx_cleanup.enter_context(tdx_host.agent.spawn(cgroup=tdx_cgroup.path))
    with Kvm.open(worker) as kvm, kvm.create_td() as td, refused(contract, Refusal.INIT_CGROUP_MAX):
        td.init_vm()
    unload(tdx_host)
    assert (tdx_cgroup.events, tdx_cgroup.events_local) == (1, 1)


def unload(host: TdxHost) -> None:
    """Unload KVM's part for Intel."""
    host.poison("KVM is not loaded")
    assert host.agent.files.run("rmmod", "kvm_intel").returncode == 0


def test_kvm_with_a_living_td_is_not_unloaded(tdx_host: TdxHost, launch: Launch, hkids: Hkids) -> None:
    built = launch("hello")
    done = tdx_host.agent.files.run("rmmod", "kvm_intel")
    assert done.returncode
    assert b"in use" in done.stderr
    assert output.read_line(built.vcpus[0]) == "hello from vCPU 0"
    assert hkids.taken == 1
