# SPDX-License-Identifier: GPL-2.0-or-later
"""Faults in our QEMU's series: patches onto it."""

from __future__ import annotations

from pathlib import Path

import pytest

from images.cache import Cache
from images.errors import BuildError
from images.patching import paths_of
from images.qemu import build, mutants

HEADER = "Breaks: a move\nMistake: a guess\nBase: proposed\n\n"
DIFF = "--- a/x.c\n+++ b/x.c\n@@ -1 +1 @@\n-a\n+b\n"


def test_is_tested_on_its_base(tmp_path: Path) -> None:
    (tmp_path / "lost-key.patch").write_text(HEADER + DIFF)
    (found,) = mutants.load(tmp_path).values()
    assert (found.name, found.area, found.flavour) == ("lost-key", "qemu", "proposed")


def test_wrong_header_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lost-key.patch").write_text(DIFF)
    with pytest.raises(BuildError, match="no Breaks"):
        mutants.load(tmp_path)


def test_is_not_known_before_qemu(tmp_path: Path) -> None:
    mutant, *_ = mutants.load().values()
    assert mutants.key(Cache(tmp_path), mutant) == ""


def test_those_of_the_project_change_what_the_series_changes() -> None:
    ours = {path for patch in build.series() for path in paths_of(patch.read_bytes())}
    found = mutants.load()
    assert len(found) >= 10
    for mutant in found.values():
        assert set(paths_of(mutant.patch.read_bytes())) <= ours, mutant.name
