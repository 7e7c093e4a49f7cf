# SPDX-License-Identifier: GPL-2.0-or-later
"""Every SEAMCALL that fails: each call of a TD's life, each code that the TDX module may give there.

Each cell is a life of its own, on a host that has to be as good afterwards as before: user space gets an
error or may try again, nothing is lost that need not be, and the next TD lives.  A rule of
:mod:`e2e.seamcalls` has to explain the outcome.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import pytest

from e2e.lives import Lives, Outcome
from e2e.seamcalls import MOVES, SCENARIOS, WHOLE, Cell, Rule, Steps, cells, rule_of, telling_cells
from fixtures.host.base import TdxHost
from fixtures.report import seamcalls_table
from fixtures.report.seamcalls_table import Row
from fixtures.softseam.inject import Injection

pytestmark = pytest.mark.tdx_needs(
    "misc-cgroup", "seamcall-fault-injection", "ground-truth", "snapshot", "cpu-hotplug"
)

FOR_EVER = 1 << 30
FINDINGS_IN = frozenset({"upstream", "upstream-debug"})
"""The flavours whose KVM has the findings that rules name."""
ENTER = "TDH.VP.ENTER"
LIVES_PER_ENTRY = 20
"""How many lives a fault of an entry gets: a vCPU that nothing interrupts enters less often than one that the
host's ticks interrupt, as on a busy machine."""
HKIDS_KEPT = 4
"""Number of HKIDs that a host has to have left; else it is put back to its snapshot."""


def lead(lives: Lives, scenario: tuple[Steps, Steps], cell: Cell, known: bool, look_after: bool) -> Row:
    """Lead a life with a fault; with ``look_after`` one without afterwards."""
    injection = Injection(cell.leaf, cell.nth, FOR_EVER if cell.ever else 1, cell.value)
    found = lives.lead(*scenario, injection)
    more = LIVES_PER_ENTRY - 1 if cell.leaf == ENTER and cell.nth > 1 else 0
    while more and not found.hits and not found.failed:
        found, more = lives.lead(*scenario, injection), more - 1
    right = rule_of(cell)
    rule = right.where_wrong() if right is not None and known and right.finding else right
    wrong = list(rule.differences(cell, found)) if rule else ["no rule explains it"]
    if not found.hits and "EINTR" not in found.failed:
        wrong.append("the kernel did not come to that call")
    spoilt = bool(rule and rule.spoils and found.pages)
    if look_after and not spoilt:
        after = lives.lead((), WHOLE)
        if after != Outcome(pages={}):
            spoilt = True
            wrong.append(f"the next TD: {after.failed or after}")
    if spoilt or lives.hkids_left < HKIDS_KEPT:
        lives.restore()
    shows = right is not None and rule is not right and list(right.differences(cell, found))
    return Row(
        cell.scenario,
        cell.leaf,
        cell.nth,
        cell.code,
        cell.ever,
        in_words(found, rule),
        rule.where if rule else "",
        rule.why if rule else "",
        right.finding if right and shows else "",
        "; ".join(wrong),
        asdict(found),
    )


def in_words(found: Outcome, rule: Rule | None) -> str:
    """What an outcome amounts to."""
    parts = [found.failed or "no step fails"]
    if found.failed:
        parts.append(
            {"dead": "the VM is dead", "": "then all goes well"}.get(found.then, f"then {found.then}")
        )
    if found.splats:
        parts.append("KVM warns")
    if found.hkids:
        parts.append(f"an HKID is lost{', and logged' if found.leak_logged else ''}")
    elif found.pages:
        parts.append("pages are lost")
    if rule and rule.spoils and found.pages:
        parts.append("and used again")
    return "; ".join(parts)


def sweep(
    host: TdxHost, payload: bytes, scenarios: Mapping[str, tuple[Steps, Steps]], *, whole: bool
) -> list[Row]:
    """Lead the lives of scenarios: with all faults, or with a telling one for each leaf."""
    rows: list[Row] = []
    known = host.facts.flavour in FINDINGS_IN
    with Lives(host, payload) as lives:
        for name, scenario in scenarios.items():
            calls = lives.calls(*scenario)
            # On a kernel that uses lost pages again, each such cell costs a host, and shows the same.
            chosen = [
                cell
                for cell in (cells if whole else telling_cells)(name, calls)
                if not (known and spoils(cell)) or (whole and cell.nth == 1 and cell.code == "SYS_NOT_READY")
            ]
            rows += [
                lead(lives, scenario, cell, known, look_after=whole or cell is chosen[-1]) for cell in chosen
            ]
    return rows


def spoils(cell: Cell) -> bool:
    """Return whether a kernel that has the finding of a cell spoils its host there."""
    rule = rule_of(cell)
    return bool(rule and rule.where_wrong().spoils)


def explained(rows: list[Row]) -> None:
    """Require that a rule explains each cell."""
    wrong = [
        f"{row.scenario}: call {row.nth} of {row.leaf} returns {row.code}{' for ever' if row.ever else ''}: "
        f"{row.ended}: {row.wrong}"
        for row in rows
        if row.wrong
    ]
    assert not wrong, f"{len(wrong)} of {len(rows)} cells are not explained:\n" + "\n".join(wrong)


def test_failure_of_each_leaf_is_explained(tdx_host: TdxHost, payloads: Mapping[str, bytes]) -> None:
    explained(sweep(tdx_host, payloads["convert"], SCENARIOS, whole=False))


@pytest.mark.tdx_offers("move")
@pytest.mark.usefixtures("td_move")
def test_failure_of_each_leaf_in_a_move_is_explained(
    tdx_host: TdxHost, payloads: Mapping[str, bytes]
) -> None:
    explained(sweep(tdx_host, payloads["convert"], MOVES, whole=False))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.tdx_each_kernel
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_failure_of_every_call_is_explained(
    scenario: str, tdx_host: TdxHost, payloads: Mapping[str, bytes], run_folder: Path
) -> None:
    rows = sweep(tdx_host, payloads["convert"], {scenario: SCENARIOS[scenario]}, whole=True)
    seamcalls_table.add(rows, tdx_host.facts, run_folder)
    explained(rows)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.tdx_offers("move")
@pytest.mark.usefixtures("td_move")
@pytest.mark.parametrize("scenario", MOVES)
def test_every_failure_of_every_call_of_a_move_is_explained(
    scenario: str, tdx_host: TdxHost, payloads: Mapping[str, bytes], run_folder: Path
) -> None:
    rows = sweep(tdx_host, payloads["convert"], {scenario: MOVES[scenario]}, whole=True)
    seamcalls_table.add(rows, tdx_host.facts, run_folder)
    explained(rows)
