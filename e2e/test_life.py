# SPDX-License-Identifier: GPL-2.0-or-later
"""The SEAMCALLs of a TD's life: each as often as its vCPUs, its pages and the host's packages want.

What a TD does is right as long as KVM makes all calls, also those whose lack shows on a real machine only,
now and then: a page that is not written back before it is used again, a package that does not know a key.
Sources: ``__tdx_td_init``, ``tdx_td_vcpu_init``, ``tdx_sept_remove_leaf_spte``, ``tdx_mmu_release_hkid`` and
``tdx_reclaim_td_control_pages`` in arch/x86/kvm/vmx/tdx.c.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from fixtures.agent.client import Worker
from fixtures.host.base import TdxHost
from fixtures.kvm import build
from fixtures.kvm.abi import PAGE_SIZE
from fixtures.kvm.build import Assembly, Region
from fixtures.softseam.truth import Truth

pytestmark = pytest.mark.tdx_needs("ground-truth")

PAGES = 5
CHUNKS = PAGE_SIZE // 256
OWN = Region(0x100000, PAGES * PAGE_SIZE, b"\x5a" * PAGES * PAGE_SIZE, measure=False)
CODE = 1
"""Pages of the payload, which are measured."""
VCPUS = 2
VARIABLE = ("TDH.VP.ENTER", "TDH.VP.WR", "TDH.VP.RD", "TDH.MNG.RD", "TDH.PHYMEM.PAGE.RDMD")
"""Leaves of which the number of calls is KVM's own affair."""


@pytest.fixture
def truth(tdx_host: TdxHost) -> Truth:
    return Truth(tdx_host.agent)


@contextmanager
def calls(truth: Truth) -> Iterator[Counter[str]]:
    """Count the SEAMCALLs made inside of the block, by leaf, into what it yields; none of them may fail."""
    found: Counter[str] = Counter()
    before = truth.leaves()
    yield found
    after = truth.leaves()
    made = {name: leaf.calls - (before[name].calls if name in before else 0) for name, leaf in after.items()}
    found.update({name: number for name, number in made.items() if number and name not in VARIABLE})
    failed = {
        name: leaf.errors - (before[name].errors if name in before else 0) for name, leaf in after.items()
    }
    # A vCPU that is not associated with a CPU is flushed in vain, which is no error of KVM's.
    assert not {name for name, number in failed.items() if number and name != "TDH.VP.FLUSH"}


@pytest.fixture
def whole(owner: Worker, truth: Truth) -> Iterator[tuple[Assembly, Counter[str], Counter[str]]]:
    """A finalized TD, the calls that made it, and its pages by type."""
    with calls(truth) as made:
        built = build.finalized(owner, vcpus=VCPUS, regions=[OWN])
    with built:
        (td,) = truth.tds()
        yield built, made, Counter(truth.state().pages_of(td.tdr))


def control_pages(pages: Counter[str]) -> int:
    """Return the number of the TD's control pages without the TDR, which owns the others."""
    return sum(number for kind, number in pages.items() if kind not in ("reg", "ept"))


@pytest.mark.tdx_host(cpus=2)
def test_td_is_made_by_as_many_calls_as_it_has_parts(
    whole: tuple[Assembly, Counter[str], Counter[str]], tdx_host: TdxHost
) -> None:
    _, made, pages = whole
    assert pages["reg"] == PAGES + CODE
    own_pages = {"TDH.MNG.ADDCX": made.pop("TDH.MNG.ADDCX"), "TDH.VP.ADDCX": made.pop("TDH.VP.ADDCX")}
    # Each vCPU's first page comes with the call that creates it.
    assert sum(own_pages.values()) == control_pages(pages) - VCPUS
    assert own_pages["TDH.VP.ADDCX"] % VCPUS == 0
    made.pop("TDH.VP.FLUSH", None)
    assert made == {
        "TDH.MNG.CREATE": 1,
        "TDH.MNG.KEY.CONFIG": tdx_host.facts.packages,
        "TDH.MNG.INIT": 1,
        "TDH.VP.CREATE": VCPUS,
        "TDH.VP.INIT": VCPUS,
        "TDH.MEM.SEPT.ADD": pages["ept"],
        "TDH.MEM.PAGE.ADD": PAGES + CODE,
        "TDH.MR.EXTEND": CODE * CHUNKS,
        "TDH.MR.FINALIZE": 1,
    }


@pytest.mark.tdx_host(cpus=2)
def test_td_is_ended_by_as_many_calls_as_it_has_parts(
    whole: tuple[Assembly, Counter[str], Counter[str]], truth: Truth, tdx_host: TdxHost
) -> None:
    built, _, pages = whole
    with calls(truth) as made:
        built.close()
    assert made.pop("TDH.VP.FLUSH") >= VCPUS
    assert made == {
        "TDH.MEM.RANGE.BLOCK": pages["reg"],
        "TDH.MEM.TRACK": pages["reg"],
        "TDH.MEM.PAGE.REMOVE": pages["reg"],
        "TDH.MNG.VPFLUSHDONE": 1,
        "TDH.PHYMEM.CACHE.WB": tdx_host.facts.packages,
        "TDH.MNG.KEY.FREEID": 1,
        "TDH.PHYMEM.PAGE.RECLAIM": 1 + control_pages(pages) + pages["ept"],
        # Each private page with the TD's key, and the TDR with the module's.
        "TDH.PHYMEM.PAGE.WBINVD": pages["reg"] + 1,
    }


@pytest.mark.tdx_host(cpus=2)
@pytest.mark.parametrize(
    "take",
    [
        pytest.param(lambda built: built.memfds[1].punch_hole(PAGE_SIZE, 2 * PAGE_SIZE), id="hole"),
        pytest.param(
            lambda built: built.td.set_memory_attributes(OWN.gpa + PAGE_SIZE, 2 * PAGE_SIZE, private=False),
            id="made-shared",
        ),
    ],
)
def test_pages_are_taken_away_by_four_calls_each(
    take: Callable[[Assembly], None], whole: tuple[Assembly, Counter[str], Counter[str]], truth: Truth
) -> None:
    built, _, pages = whole
    with calls(truth) as made:
        take(built)
    assert made == dict.fromkeys(
        ("TDH.MEM.RANGE.BLOCK", "TDH.MEM.TRACK", "TDH.MEM.PAGE.REMOVE", "TDH.PHYMEM.PAGE.WBINVD"), 2
    )
    (td,) = truth.tds()
    assert truth.state().pages_of(td.tdr)["reg"] == pages["reg"] - 2
