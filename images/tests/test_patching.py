# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import difflib
import functools
from pathlib import Path

import pytest

from images import patching
from images.commands import Log
from images.patching import PatchError, paths_of

work_out = functools.partial(patching.work_out, onto="Linux 7.3", otherwise="take 7.3")
_BASE = {
    "arch/x86/Makefile": b"".join(b"line %d\n" % n for n in range(20)),
    "arch/x86/old.c": b"int old;\n",
    "scripts/run.sh": b"#!/bin/sh\n",
}


def _diff(path: str, old: bytes | None, new: bytes | None) -> str:
    """A patch of one file as git writes it."""
    before = [] if old is None else old.decode().splitlines(keepends=True)
    after = [] if new is None else new.decode().splitlines(keepends=True)
    names = "/dev/null" if old is None else f"a/{path}", "/dev/null" if new is None else f"b/{path}"
    return "".join(difflib.unified_diff(before, after, *names))


def _patch(folder: Path, name: str, *diffs: str) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("Subject: a change\n\n--- not a name ---\n---\n" + "".join(diffs))
    return path


@pytest.fixture
def work(tmp_path: Path) -> Path:
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def test_the_paths_of_a_patch_are_those_of_its_files_only() -> None:
    text = (
        "--- a message, no file\n"
        "--- a/arch/x86/Kconfig\t2026-01-01\n+++ b/arch/x86/Kconfig\t2026-01-02\n@@ -1 +1 @@\n--- -x\n+y\n"
        "--- /dev/null\n+++ b/new.c\n@@ -0,0 +1 @@\n+n\n--- a/gone.c\n+++ /dev/null\n@@ -1 +0,0 @@\n-g\n"
        "rename from a.c\nrename to b.c\n"
    )
    assert paths_of(text.encode()) == ["arch/x86/Kconfig", "new.c", "gone.c", "a.c", "b.c"]


def test_patches_and_additions_are_applied_in_order(tmp_path: Path, work: Path, log: Log) -> None:
    makefile = _BASE["arch/x86/Makefile"]
    once = makefile.replace(b"line 5\n", b"line five\n")
    first = _patch(
        tmp_path,
        "1.patch",
        _diff("arch/x86/Makefile", makefile, once),
        _diff("arch/x86/old.c", _BASE["arch/x86/old.c"], None),
        _diff("arch/x86/new.h", None, b"int n;\n"),
    )
    second = _patch(
        tmp_path, "2.patch", _diff("arch/x86/Makefile", once, once.replace(b"line five\n", b"line V\n"))
    )
    third = _patch(tmp_path, "3.patch", _diff("soft/a.c", b"int a;\n", b"int b;\n"))
    changes = work_out(_BASE.get, [(first,), {"soft/a.c": b"int a;\n"}, (second, third)], work, log=log)
    assert set(changes.files) == {"arch/x86/Makefile", "arch/x86/new.h", "soft/a.c"}
    assert changes.files["arch/x86/Makefile"][0] == makefile.replace(b"line 5\n", b"line V\n")
    assert changes.files["arch/x86/new.h"] == (b"int n;\n", False)
    assert changes.files["soft/a.c"][0] == b"int b;\n"
    assert changes.removed == {"arch/x86/old.c"}
    assert changes.paths == {*changes.files, "arch/x86/old.c"}


def test_a_script_stays_executable(tmp_path: Path, work: Path, log: Log) -> None:
    patch = _patch(tmp_path, "1.patch", _diff("scripts/run.sh", b"#!/bin/sh\n", b"#!/bin/sh\ntrue\n"))
    assert work_out(_BASE.get, [(patch,)], work, log=log).files["scripts/run.sh"][1]


def test_a_patch_that_does_not_apply_is_named_with_its_file_and_hunk(
    tmp_path: Path, work: Path, log: Log
) -> None:
    good = _diff("arch/x86/old.c", b"int old;\n", b"int older;\n")
    makefile = _BASE["arch/x86/Makefile"]
    other = makefile.replace(b"line 1", b"other 1")
    bad = _diff(
        "arch/x86/Makefile",
        other,
        other.replace(b"line 5\n", b"line five\n").replace(b"other 16\n", b"line sixteen\n"),
    )
    late = _diff("scripts/run.sh", b"#!/bin/bash\n", b"#!/bin/dash\n")
    patch = _patch(tmp_path / "hooks", "0001-hook.patch", good, bad, late)
    with pytest.raises(PatchError) as caught:
        work_out(_BASE.get, [(patch,)], work, onto="Linux 7.4.1", log=log)
    assert caught.value.message == (
        "the patch hooks/0001-hook.patch does not apply to Linux 7.4.1: "
        "arch/x86/Makefile, hunk 2 (@@ -14,7 +14,7 @@), and 1 more"
    )
    assert caught.value.log == log.path
    assert caught.value.hint == f"adapt {patch}, or take 7.3"


def test_a_patch_for_a_file_that_is_gone_is_named_too(tmp_path: Path, work: Path, log: Log) -> None:
    patch = _patch(tmp_path / "hooks", "2.patch", _diff("gone.c", b"a\n", b"b\n"))
    with pytest.raises(
        PatchError, match=r"hooks/2\.patch does not apply to Linux 7\.3: there is no gone\.c;"
    ):
        work_out(_BASE.get, [(patch,)], work, log=log)


def test_a_patch_that_is_already_there_does_not_apply(tmp_path: Path, work: Path, log: Log) -> None:
    patch = _patch(tmp_path, "1.patch", _diff("arch/x86/old.c", b"int older;\n", b"int old;\n"))
    with pytest.raises(PatchError, match=r": arch/x86/old\.c has the change already;"):
        work_out(_BASE.get, [(patch,)], work, log=log)


def test_a_file_that_a_patch_adds_may_not_be_there(tmp_path: Path, work: Path, log: Log) -> None:
    patch = _patch(tmp_path, "1.patch", _diff("arch/x86/old.c", None, b"int old;\n"))
    with pytest.raises(PatchError, match=r": arch/x86/old\.c has the change already;"):
        work_out(_BASE.get, [(patch,)], work, log=log)


def test_what_no_build_reads_may_be_missing_and_is_patched_where_it_is_there(
    tmp_path: Path, work: Path, log: Log
) -> None:
    text, better = b"old words\n", b"new words\n"
    diffs = (
        "diff --git a/Documentation/api.rst b/Documentation/api.rst\n",
        _diff("Documentation/api.rst", text, better),
        "diff --git a/arch/x86/old.c b/arch/x86/old.c\n",
        _diff("arch/x86/old.c", _BASE["arch/x86/old.c"], b"int young;\n"),
    )
    patch = _patch(tmp_path, "1.patch", *diffs)

    def files(base: dict[str, bytes], folder: str) -> dict[str, bytes]:
        (work / folder).mkdir()
        changes = work_out(
            base.get,
            [(patch,)],
            work / folder,
            log=log,
            left_out=lambda path: path.startswith("Documentation/"),
        )
        return {path: content for path, (content, _) in changes.files.items()}

    assert files(_BASE, "without") == {"arch/x86/old.c": b"int young;\n"}
    assert files(_BASE | {"Documentation/api.rst": text}, "with") == {
        "Documentation/api.rst": better,
        "arch/x86/old.c": b"int young;\n",
    }
