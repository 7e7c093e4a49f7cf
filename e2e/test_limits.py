# SPDX-License-Identifier: GPL-2.0-or-later
"""Limits that the TDX module reports, at their edges: TDX works, or is off with a line and KVM lives on.

Each test boots a nested host whose module reports other values than softseam's own (``softseam.report``).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from fixtures import cgroup
from fixtures.findings import shows
from fixtures.host.base import TdxHost
from fixtures.host.facts import MISC_CAPACITY
from fixtures.host.nested import NestedHost
from fixtures.kvm import build
from fixtures.kvm.abi import Cap, VmType
from fixtures.kvm.device import Kvm

pytestmark = [pytest.mark.slow, pytest.mark.tdx_needs("hkid-pool-size-settable", "topology-settable")]

KEYIDS = "softseam.keyids={}"
MAX_TDMRS = "softseam.report=0x9100000100000008:{}"
MAX_RESERVED = "softseam.report=0x9100000100000009:{}"
PAMT_4K_ENTRY = "softseam.report=0x9100000100000010:{}"
PAMT_2M_ENTRY = "softseam.report=0x9100000100000011:{}"
PAMT_1G_ENTRY = "softseam.report=0x9100000100000012:{}"
FEATURES0 = "softseam.report=0x0a00000300000008:{}"
ATTRIBUTES_FIXED0 = "softseam.report=0x1900000300000000:{}"
ATTRIBUTES_FIXED1 = "softseam.report=0x1900000300000001:{}"
XFAM_FIXED0 = "softseam.report=0x1900000300000002:{}"
XFAM_FIXED1 = "softseam.report=0x1900000300000003:{}"
NUM_CPUID_CONFIG = "softseam.report=0x9900000100000004:{}"
MAX_VCPUS = "softseam.report=0x9900000100000008:{}"
"""Words of the kernel's command line; fields by their ids (``tdx_global_metadata.c``)."""

NO_RBP_MOD, TOPOLOGY_ENUM = 1 << 18, 1 << 20

Boot = Callable[[str], NestedHost]


@pytest.fixture
def boot(tdx_host: TdxHost, tdx_cleanup: ExitStack, tmp_path: Path) -> Boot:
    """A function that boots one more host, with words for the kernel's command line."""
    assert isinstance(tdx_host, NestedHost)
    like = tdx_host

    def start(cmdline: str) -> NestedHost:
        host = like.with_limits(tmp_path / "host", cmdline)
        tdx_cleanup.callback(host.close)
        host.start()
        return host

    return start


def lines_of(host: NestedHost) -> list[str]:
    """Return what the kernel's log says of TDX, without what it says on every host."""
    usual = r"BIOS enabled|Disable ACPI S3|module version|allocated for PAMT|Module initialized"
    texts = [record.text for record in host.agent.files.kmsg()]
    return [text for text in texts if "tdx" in text.lower() and not re.search(usual, text)]


def assert_works(host: NestedHost) -> None:
    off = [text for text in lines_of(host) if "disable" in text.lower()]
    assert not off
    with host.agent.spawn() as worker, build.finalized(worker):
        pass


def assert_off(host: NestedHost, line: str) -> None:
    """TDX is off with this line, no cgroup counts HKIDs, and KVM makes plain VMs."""
    assert [text for text in lines_of(host) if re.search(line, text)]
    with host.agent.spawn() as worker, Kvm.open(worker) as kvm:
        assert not kvm.check_extension(Cap.VM_TYPES) & 1 << VmType.TDX
        assert not cgroup.parse(host.agent.files.read_text(MISC_CAPACITY), cgroup.RESOURCE)
        with kvm.create_vm() as vm, vm.create_vcpu():
            pass


@pytest.mark.parametrize(
    "cmdline",
    [
        KEYIDS.format(2),
        KEYIDS.format(64),
        MAX_TDMRS.format(1),
        PAMT_4K_ENTRY.format(32),
        PAMT_2M_ENTRY.format(4096),
        PAMT_1G_ENTRY.format(4096),
        ATTRIBUTES_FIXED1.format(1 << 28),
        XFAM_FIXED0.format(3),
        MAX_VCPUS.format(2),
        MAX_VCPUS.format(65535),
    ],
)
def test_td_is_made_at_the_edge_of_a_limit(cmdline: str, boot: Boot) -> None:
    assert_works(boot(cmdline))


@pytest.mark.parametrize(
    ("cmdline", "line"),
    [
        (KEYIDS.format(0), "too few private KeyIDs|TDX not supported"),
        (KEYIDS.format(1), "too few private KeyIDs"),
        (MAX_RESERVED.format(0), "reserved areas exhausted"),
        (PAMT_4K_ENTRY.format(0), "initialization failed"),
        (FEATURES0.format(TOPOLOGY_ENUM), "RBP"),
        (NUM_CPUID_CONFIG.format(129), "initialization failed"),
    ],
)
def test_module_that_cannot_be_initialized_is_off_with_a_line(cmdline: str, line: str, boot: Boot) -> None:
    assert_off(boot(cmdline), line)


@pytest.mark.tdx_finding("F25", flavours=("upstream",))
@pytest.mark.parametrize(
    ("cmdline", "line"),
    [
        (MAX_VCPUS.format(1), "MAX_VCPU_PER_TD"),
        (FEATURES0.format(NO_RBP_MOD), "TDX"),
        (ATTRIBUTES_FIXED0.format(0), "TDX"),
        (ATTRIBUTES_FIXED1.format(1), "TDX"),
        (XFAM_FIXED1.format(1 << 63), "TDX"),
    ],
)
def test_module_that_kvm_cannot_use_is_off_with_a_line(cmdline: str, line: str, boot: Boot) -> None:
    host = boot(cmdline)
    with shows("F25"):
        assert host.agent.files.exists("/dev/kvm")
    assert_off(host, line)
