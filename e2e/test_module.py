# SPDX-License-Identifier: GPL-2.0-or-later
"""What the software TDX module checks of its host: a TD made by SEAMCALLs, which are also made out of order.

KVM makes each call in its place, so a module that checks nothing would make every KVM look right.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from fixtures.host.base import TdxHost
from fixtures.host.cpus import Cpus
from fixtures.softseam import host_rules, seamcall
from fixtures.softseam.codes import Code
from fixtures.softseam.host_rules import RCX, Stage, life
from fixtures.softseam.records import KeyState
from fixtures.softseam.seamcall import Seamcall
from fixtures.softseam.truth import Truth

pytestmark = pytest.mark.tdx_needs("ground-truth")

STAGES = [name for name, stage in life(0).items() if stage.rules]


@pytest.fixture
def hkid(truth: Truth, tdx_host: TdxHost) -> int:
    """The last HKID: KVM takes the first that is free."""
    seamcall.fill(tdx_host.agent, host_rules.donated())
    last = truth.state().keys[-1]
    assert last.state == KeyState.FREE
    return last.hkid


def codes(host: TdxHost, calls: Iterable[Seamcall]) -> list[str]:
    return [f"{done.rax:#x}" for done in seamcall.make(host.agent, tuple(calls))]


def live(host: TdxHost, stages: Iterable[Stage]) -> None:
    """Make the calls of stages, all of which succeed."""
    calls = [call for stage in stages for call in stage.calls]
    failed = [
        (call.line(), code) for call, code in zip(calls, codes(host, calls), strict=True) if code != "0x0"
    ]
    assert failed == []


@pytest.mark.tdx_host(cpus=2)
@pytest.mark.parametrize("stage", STAGES)
def test_call_out_of_order_is_refused_and_the_td_lives_on(stage: str, tdx_host: TdxHost, hkid: int) -> None:
    stages = life(hkid)
    there = [*stages].index(stage) + 1
    live(tdx_host, [*stages.values()][:there])
    rules = stages[stage].rules
    found = codes(tdx_host, (rule.call for rule in rules))
    assert dict(zip((rule.name for rule in rules), found, strict=True)) == {
        rule.name: f"{rule.code:#x}" for rule in rules
    }
    live(tdx_host, [*stages.values()][there:])


@pytest.mark.tdx_host(cpus=4, sockets=2)
@pytest.mark.tdx_needs("several-packages")
def test_key_is_configured_and_written_back_on_each_package(tdx_host: TdxHost, hkid: int) -> None:
    first, second = (cpus[0] for cpus in Cpus.online_now(tdx_host.agent).packages.values())
    tdr = host_rules.TDR
    config = [Seamcall("TDH.MNG.KEY.CONFIG", tdr, cpu=cpu) for cpu in (first, second)]
    write_back = [Seamcall("TDH.PHYMEM.CACHE.WB", cpu=cpu) for cpu in (first, second)]
    add = Seamcall("TDH.MNG.ADDCX", host_rules.TDCS[0], tdr)
    free = Seamcall("TDH.MNG.KEY.FREEID", tdr)
    reclaim = [Seamcall("TDH.PHYMEM.PAGE.RECLAIM", page) for page in (host_rules.TDCS[0], tdr)]
    wanted = [
        (Seamcall("TDH.MNG.CREATE", tdr, hkid), 0),
        (config[0], 0),
        (config[0], Code.KEY_CONFIGURED),
        (add, Code.TD_KEYS_NOT_CONFIGURED),
        (config[1], 0),
        (add, 0),
        (Seamcall("TDH.MNG.VPFLUSHDONE", tdr), 0),
        (write_back[0], 0),
        (free, Code.WBCACHE_NOT_COMPLETE),
        (write_back[1], 0),
        (free, 0),
        (reclaim[1], Code.TD_ASSOCIATED_PAGES_EXIST),
        (reclaim[0], 0),
        (reclaim[1], 0),
        (reclaim[1], Code.PAGE_METADATA_INCORRECT | RCX),
    ]
    assert codes(tdx_host, (call for call, _ in wanted)) == [f"{code:#x}" for _, code in wanted]
