# SPDX-License-Identifier: GPL-2.0-or-later
"""Mutants: their headers, and the flavours that they make."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from images.commands import Log
from images.errors import BuildError
from images.kernel import fit, flavours, mutants
from images.kernel.mutants import Mutant
from images.patching import Changes, paths_of

DIFF = """\
--- a/x.c
+++ b/x.c
@@ -1 +1 @@
-int x = 1;
+int x = 2;
"""

HEADER = """\
Breaks: x is 2,
 not 1.
Mistake: a typo.
Base: upstream
"""


def put(folder: Path, header: str = HEADER, diff: str = DIFF, name: str = "hkid/x-is-two") -> Path:
    path = folder / f"{name}.patch"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{header}\n{diff}")
    return path


def test_header_is_read(tmp_path: Path) -> None:
    path = put(tmp_path, HEADER + 'Fixed-by: 0123456789ab ("x: Make it 1")\nEquivalent: nobody reads x.\n')
    assert mutants.read(path) == Mutant(
        name="x-is-two",
        area="hkid",
        patch=path,
        breaks="x is 2, not 1.",
        mistake="a typo.",
        base="upstream",
        fixed_by='0123456789ab ("x: Make it 1")',
        equivalent="nobody reads x.",
    )
    assert mutants.read(path).flavour == "upstream+x-is-two"


@pytest.mark.parametrize(
    ("header", "diff", "complaint"),
    [
        (HEADER.replace("Mistake", "Error"), DIFF, "unknown key Error"),
        (HEADER.replace("Mistake: a typo.\n", ""), DIFF, "no Mistake"),
        (HEADER.replace("Mistake: a typo.", "Mistake:"), DIFF, "no Mistake"),
        (HEADER + "Equivalent:\n", DIFF, "Equivalent is empty"),
        (HEADER + "Base: proposed\n", DIFF, "two of a key"),
        (HEADER + "\nIt is a typo.\n", DIFF, "text that is not in a key"),
        (HEADER, "", "no change"),
    ],
)
def test_wrong_header_is_refused(tmp_path: Path, header: str, diff: str, complaint: str) -> None:
    with pytest.raises(BuildError, match=complaint):
        mutants.read(put(tmp_path, header, diff))


def test_name_is_a_word_of_a_file_name(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="its name is not words"):
        mutants.read(put(tmp_path, name="hkid/x_is_2"))


def test_two_of_one_name_are_refused(tmp_path: Path) -> None:
    put(tmp_path)
    put(tmp_path, name="cgroup/x-is-two")
    with pytest.raises(BuildError, match="two mutants have the name x-is-two"):
        mutants.load(tmp_path)


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """A copy of the table of flavours with one mutant of each base."""
    shutil.copyfile(flavours.HERE / "flavours.toml", tmp_path / "flavours.toml")
    shutil.copytree(flavours.HERE / "patches", tmp_path / "patches")
    put(tmp_path / "mutants")
    put(tmp_path / "mutants", HEADER.replace("upstream", "proposed"), name="move/x-is-three")
    return tmp_path


def test_flavour_with_a_mutant_is_its_base_with_one_patch_more(kernel: Path) -> None:
    base, mutated = flavours.get("proposed", kernel), flavours.get("proposed+x-is-three", kernel)
    assert mutated.patches == (*base.patches, kernel / "mutants/move/x-is-three.patch")
    assert (mutated.name, mutated.contract) == ("proposed+x-is-three", "proposed")
    assert flavours.base_of(mutated.name) == flavours.base_of("proposed") == "proposed"


def test_mutant_of_upstream_changes_kvm_and_keeps_the_contract(kernel: Path) -> None:
    assert flavours.get("upstream", kernel).kvm_unchanged
    mutated = flavours.get("upstream+x-is-two", kernel)
    assert (mutated.kvm_unchanged, mutated.contract) == (False, "upstream")


def test_mutant_goes_with_another_configuration_of_its_base(kernel: Path) -> None:
    mutated = flavours.get("proposed-debug+x-is-three", kernel)
    assert (mutated.config, mutated.contract) == ("debug", "proposed")


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("upstream+nothing", "there is no mutant 'nothing'"),
        ("upstream+*", "there is no mutant"),
        ("upstream+", "there is no mutant ''"),
        ("nothing+x-is-two", "there is no kernel flavour 'nothing'"),
        ("upstream+x-is-three", "the mutant x-is-three is not of flavour upstream"),
    ],
)
def test_kernel_that_does_not_exist_is_refused(kernel: Path, name: str, complaint: str) -> None:
    with pytest.raises(BuildError) as caught:
        flavours.get(name, kernel)
    assert complaint in str(caught.value)


def test_mutants_of_the_project_are_well_formed() -> None:
    found = mutants.load()
    assert len(found) >= 45
    assert sum(bool(mutant.fixed_by) for mutant in found.values()) >= 10
    known = flavours.load()
    for mutant in found.values():
        assert mutant.base in known, mutant.name
        assert all(
            path.startswith(("arch/x86/", "virt/", "kernel/cgroup/", "include/"))
            for path in paths_of(mutant.patch.read_bytes())
        ), mutant.name


def test_mutants_that_do_not_apply_to_their_base_are_named_with_the_hunk(
    tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base makes one line of x.c, and removes y.c."""
    base = Changes({"x.c": (b"int x = 1;\n", False)}, frozenset({"y.c"}))
    monkeypatch.setattr(fit, "_changes", lambda name, original, folder, log: base)
    source = {"x.c": b"int x;\n", "y.c": b"int x = 1;\n", "z.c": b"int x = 1;\n"}
    made = [
        mutants.read(put(tmp_path / "mutants", diff=DIFF.replace("x.c", path), name=f"hkid/{name}"))
        for path, name in (("x.c", "changed"), ("y.c", "removed"), ("z.c", "kept"))
    ]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    found = fit.mutant_misfits(made)(source.get, scratch, log)
    assert found.keys() == {"removed"}
    assert found["removed"].startswith("hkid/removed.patch: ")
