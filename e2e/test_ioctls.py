# SPDX-License-Identifier: GPL-2.0-or-later
"""Every ioctl of KVM at every stage of a TD's life, with its plain argument and its edges.

None makes the kernel warn, kills a TD, or moves an HKID, a charge or a page unless that is its purpose; the
TD goes on and runs.  The rows are made from the kernel's own headers; what each cell did is a table in the
run's artefact folder, ``ioctls-*.html`` (``python -m fixtures.report.ioctls compare`` compares two).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fixtures.findings import shows
from fixtures.ioctls.cells import Runner
from fixtures.ioctls.known import KNOWN
from fixtures.ioctls.outcomes import Outcome
from fixtures.ioctls.rules import broken
from fixtures.ioctls.stages import Stage

Record = Callable[[str, list[Outcome]], None]


@pytest.fixture(
    params=[
        pytest.param(stage, marks=pytest.mark.tdx_offers("move") if stage is Stage.MOVED else ())
        for stage in Stage
    ],
    ids=lambda stage: stage.replace(" ", "-"),
)
def stage(request: pytest.FixtureRequest) -> Stage:
    """Each stage of a TD's life."""
    found: Stage = request.param
    if found is Stage.MOVED:
        request.getfixturevalue("td_move")
    return found


def wrong(outcomes: list[Outcome]) -> list[str]:
    """Return what the outcomes of cells show to be wrong, one line each."""
    troubles = [f"{one.cell}: {one.text}, but {one.trouble}" for one in outcomes if one.trouble]
    return [*troubles, *broken(outcomes)]


def judge(ioctls: Runner, outcomes: list[Outcome]) -> None:
    found = wrong(outcomes) + ioctls.together
    assert not found, "\n".join(found)


def test_plain_argument_at_a_stage(stage: Stage, ioctls: Runner, record_ioctls: Record) -> None:
    outcomes = ioctls.stage(stage, edges=False)
    record_ioctls("plain", outcomes)
    judge(ioctls, outcomes)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_edges_of_arguments_at_a_stage(stage: Stage, ioctls: Runner, record_ioctls: Record) -> None:
    outcomes = ioctls.stage(stage, edges=True)
    record_ioctls("edges", outcomes)
    judge(ioctls, outcomes)


def places(ident: str) -> pytest.MarkDecorator:
    """Parametrize a test by the stages at which cells show a finding."""
    found = list(dict.fromkeys(stage for known in KNOWN[ident] for stage in known.stages))
    return pytest.mark.parametrize("place", found, ids=lambda stage: stage.replace(" ", "-"))


@pytest.mark.tdx_finding("F2", flavours=("upstream",))
@places("F2")
def test_finalizing_before_vcpus_are_initialized_is_refused(place: Stage, ioctls: Runner) -> None:
    outcomes = ioctls.finding("F2", place)
    assert outcomes
    with shows("F2"):
        assert not wrong(outcomes)


@pytest.mark.tdx_finding("F14", flavours=("upstream",))
@places("F14")
def test_number_of_pages_whose_bytes_overflow_is_refused(place: Stage, ioctls: Runner) -> None:
    outcomes = ioctls.finding("F14", place)
    assert outcomes
    with shows("F14"):
        assert not wrong(outcomes)


@pytest.mark.tdx_finding("F24", flavours=("upstream",))
@places("F24")
def test_flags_and_data_are_refused_of_commands_that_have_none(place: Stage, ioctls: Runner) -> None:
    outcomes = ioctls.finding("F24", place)
    assert outcomes
    with shows("F24"):
        assert not wrong(outcomes)
