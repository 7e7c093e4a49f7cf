# SPDX-License-Identifier: GPL-2.0-or-later
"""The later build of our QEMU: the series, and patches onto it."""

from __future__ import annotations

from pathlib import Path

import pytest

from images.cache import Artefact, Cache
from images.patching import paths_of
from images.progress import Reporter
from images.qemu import build, later, source
from images.recipe import Recipe
from images.sources import Source

USED = Source("qemu", "11.1.1+ds", "p", "aa")


def test_begins_with_the_series_and_changes_nothing_else() -> None:
    ours, found = build.series(), later.patches()
    assert found[: len(ours)] == ours
    more = found[len(ours) :]
    assert more
    changed = {path for patch in ours for path in paths_of(patch.read_bytes())}
    assert {path for patch in more for path in paths_of(patch.read_bytes())} <= changed


def test_adds_a_member_by_a_subsection_and_rewords_a_refusal() -> None:
    ours = "".join(patch.read_text() for patch in build.series())
    more = "".join(patch.read_text() for patch in later.patches()[len(build.series()) :])
    assert '+    .name = "CprGuest/reset",' in more
    assert "CprGuest/reset" not in ours
    assert '-        error_setg(errp, "the guest to be taken over is not like this one: %s",' in more


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """The recipes that would have been followed."""
    found: list[Recipe] = []

    def ensure(recipe: Recipe, *_: object, **__: object) -> Artefact:
        found.append(recipe)
        return Artefact(tmp_path, recipe.kind, recipe.label, recipe.key())

    monkeypatch.setattr(Recipe, "ensure", ensure)
    monkeypatch.setattr("images.tools.version", lambda _: "1")
    monkeypatch.setattr("images.qemu.build.require_tools", lambda *_: None)
    return found


def test_is_made_of_the_source_of_ours(cache: Cache, report: Reporter, made: list[Recipe]) -> None:
    source.last_used(cache).record(None, USED)
    artefact = later.ensure(cache, report)
    [recipe] = made
    assert isinstance(recipe, build.Qemu)
    assert recipe.origin.version() == "11.1.1"
    assert (artefact.kind, artefact.label) == ("qemu", "later")
    ours = build.recipe(cache)
    assert ours is not None
    assert ours.label == "patched"
    assert recipe.key() != ours.key()


def test_ours_is_built_first_where_no_source_is_known(
    cache: Cache, report: Reporter, made: list[Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "candidates", lambda *_, **__: iter([USED]))
    later.ensure(cache, report)
    assert [recipe.label for recipe in made] == ["patched", "later"]
