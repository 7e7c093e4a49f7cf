# SPDX-License-Identifier: GPL-2.0-or-later
"""Private pages that the TDX module does not give back: they are lost, and nothing else is."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from fixtures.agent.client import Worker
from fixtures.findings import shows
from fixtures.guests import output
from fixtures.host.base import TdxHost
from fixtures.host.hkids import Hkids
from fixtures.kvm import build
from fixtures.kvm.abi import PAGE_SIZE
from fixtures.kvm.build import Assembly, Region
from fixtures.softseam import inject
from fixtures.softseam.inject import Injection
from fixtures.softseam.truth import Truth

pytestmark = pytest.mark.tdx_needs("misc-cgroup", "seamcall-fault-injection", "ground-truth")

OWNED = 32
"""Number of pages that are taken away from a TD in vain."""
NEXT = 48
"""Number of TDs that are made then."""
AT_ONCE = 8
"""The same where the next allocation takes what was freed last."""
OWN = Region(0x100000, OWNED * PAGE_SIZE, b"\x5a" * OWNED * PAGE_SIZE, measure=False)


@pytest.mark.tdx_splat_expected(r"WARNING: arch/x86/kvm/vmx/tdx\.[ch]:\d+")
@pytest.mark.tdx_leak_expected("the module still owns the pages, and they keep the TD's root")
@pytest.mark.tdx_finding("F18", flavours=("upstream",))
@pytest.mark.parametrize("how", ["closed", "freed"])
@pytest.mark.parametrize("leaf", ["TDH.MEM.RANGE.BLOCK", "TDH.MEM.PAGE.REMOVE"])
def test_pages_that_cannot_be_removed_go_to_nobody_else(
    leaf: str,
    how: str,
    tdx_host: TdxHost,
    owner: Worker,
    td_with_vcpus: Assembly,
    hkids: Hkids,
    payloads: Mapping[str, bytes],
) -> None:
    """The TD's memory is freed while the TD lives, or with it.  The HKID comes back all the same."""
    td_with_vcpus.populate(OWN)
    (td,) = Truth(tdx_host.agent).tds()
    with inject.armed(tdx_host.agent.files, Injection(leaf, code=inject.TDX_SYS_NOT_READY, count=1 << 31)):
        if how == "freed":
            td_with_vcpus.memfds[0].punch_hole()
        td_with_vcpus.close()
    assert hkids.taken == -1
    assert Truth(tdx_host.agent).state().pages_of(td.tdr)["reg"] == OWNED
    with shows("F18"):
        for _ in range(NEXT):
            with build.finalized(owner, payloads["count"], regions=[OWN]) as built:
                assert output.numbers(built.vcpus[0], 1) == [1]


@pytest.mark.tdx_splat_expected(r"WARNING: arch/x86/kvm/vmx/tdx\.[ch]:\d+")
@pytest.mark.tdx_leak_expected("the module still owns the pages, and they keep the TD's root")
def test_control_pages_that_are_not_given_back_go_to_nobody_else(
    tdx_host: TdxHost, owner: Worker, td_with_vcpus: Assembly, hkids: Hkids, payloads: Mapping[str, bytes]
) -> None:
    busy = Injection("TDH.PHYMEM.PAGE.RECLAIM", code=inject.TDX_OPERAND_BUSY, count=1 << 31)
    with inject.armed(tdx_host.agent.files, busy):
        td_with_vcpus.close()
    assert hkids.taken == -1
    for _ in range(AT_ONCE):
        with build.finalized(owner, payloads["count"]) as built:
            assert output.numbers(built.vcpus[0], 1) == [1]
