# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from images import trees
from images.cache import Cache, digest_files
from images.errors import BuildError
from images.kernel import tree as tree_module
from images.kernel.tree import KeptTree, PackageBase, UserTree
from images.patching import Changes
from images.progress import Reporter
from images.recipe import work_on

_FILES = {
    "Kbuild": "obj-y += x\n",
    "Makefile": "# SPDX\nVERSION = 7\nPATCHLEVEL = 4\nSUBLEVEL = 0\nEXTRAVERSION = -rc2\nNAME = x\n",
    "arch/x86/kvm/vmx.c": "int vmx;\n",
    "arch/x86/include/asm/msr.h": "int msr;\n",
    "arch/x86/virt/Makefile": "obj-y += vmx/\n",
    "scripts/run.sh": "#!/bin/sh\n",
}


def _fill(folder: Path) -> None:
    for name, text in _FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, ns=(10**18, 10**18))
    (folder / "scripts/run.sh").chmod(0o755)


def _changes(files: dict[str, str], *removed: str) -> Changes:
    return Changes({path: (text.encode(), False) for path, text in files.items()}, frozenset(removed))


@pytest.fixture
def kept(tmp_path: Path) -> KeptTree:
    tree = KeptTree(tmp_path / "kept")
    _fill(tree.src)
    return tree


@pytest.fixture
def user(tmp_path: Path) -> UserTree:
    _fill(tmp_path / "user")
    return UserTree(tmp_path / "user")


def _contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_changes_come_and_go_without_leaving_anything(kept: KeptTree) -> None:
    base = PackageBase(kept, {})
    kept.apply(
        _changes({"arch/x86/include/asm/msr.h": "int hooked;\n", "soft/a.c": "int a;\n"}, "scripts/run.sh"),
        base,
    )
    assert _contents(kept.src) == {
        **{path: text for path, text in _FILES.items() if path != "scripts/run.sh"},
        "arch/x86/include/asm/msr.h": "int hooked;\n",
        "soft/a.c": "int a;\n",
    }
    assert base.read("arch/x86/include/asm/msr.h") == b"int msr;\n"
    assert base.read("scripts/run.sh") == b"#!/bin/sh\n"
    assert base.read("soft/a.c") is None
    moved = kept.apply(_changes({"soft/b.c": "int b;\n"}), base)
    assert set(moved) == {"arch/x86/include/asm/msr.h", "soft/a.c", "scripts/run.sh", "soft/b.c"}
    assert _contents(kept.src) == {**_FILES, "soft/b.c": "int b;\n"}
    kept.apply(_changes({}), base)
    assert _contents(kept.src) == _FILES
    assert not (kept.src / "soft").exists()


def test_a_file_that_stays_the_same_is_not_touched(kept: KeptTree) -> None:
    base = PackageBase(kept, {})
    changes = _changes({"arch/x86/include/asm/msr.h": "int hooked;\n", "soft/a.c": "int a;\n"})
    kept.apply(changes, base)
    for name in ("arch/x86/include/asm/msr.h", "soft/a.c"):
        os.utime(kept.src / name, ns=(10**18, 10**18))
    assert kept.apply(changes, base) == []
    moved = kept.apply(
        _changes({"arch/x86/include/asm/msr.h": "int hooked;\n", "soft/a.c": "int aa;\n"}), base
    )
    assert moved == ["soft/a.c"]
    assert (kept.src / "arch/x86/include/asm/msr.h").stat().st_mtime_ns == 10**18
    assert (kept.src / "soft/a.c").stat().st_mtime_ns > 10**18


def test_a_build_killed_half_way_is_put_right_by_the_next(
    kept: KeptTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = PackageBase(kept, {})

    class Killed(Exception):
        pass

    def die(self: KeptTree, path: str, content: bytes | None, executable: bool | None) -> bool:
        if path == "soft/a.c":
            raise Killed
        return real(self, path, content, executable)

    real = KeptTree._set
    changes = _changes({"arch/x86/virt/Makefile": "obj-y += hooked\n", "soft/a.c": "int a;\n"})
    with monkeypatch.context() as patched:
        patched.setattr(KeptTree, "_set", die)
        with pytest.raises(Killed):
            kept.apply(changes, base)
    assert (kept.src / "arch/x86/virt/Makefile").read_text() == "obj-y += hooked\n"
    again = KeptTree(kept.folder)
    again.apply(_changes({}), PackageBase(again, {}))
    assert _contents(kept.src) == _FILES


def test_the_users_tree_is_copied_and_never_written(user: UserTree, tmp_path: Path) -> None:
    before = digest_files(user.folder)
    tree = KeptTree(tmp_path / "kept")
    assert user.copy_to(tree) == len(_FILES)
    tree.apply(_changes({"arch/x86/kvm/vmx.c": "int hooked;\n", "soft/a.c": "int a;\n"}, "Kbuild"), user)
    assert digest_files(user.folder) == before
    assert (tree.src / "scripts/run.sh").stat().st_mode & 0o777 == 0o755
    assert (tree.src / "arch/x86/kvm/vmx.c").read_text() == "int hooked;\n"
    assert not (tree.src / "Kbuild").exists()
    tree.apply(_changes({}), user)
    assert _contents(tree.src) == _FILES


def test_only_what_the_user_changed_is_copied_again(user: UserTree, tmp_path: Path) -> None:
    tree = KeptTree(tmp_path / "kept")
    user.copy_to(tree)
    tree.apply(_changes({"arch/x86/virt/Makefile": "obj-y += hooked\n"}), user)
    for path in tree.src.rglob("*"):
        os.utime(path, ns=(10**18, 10**18))
    assert user.copy_to(tree) == 0
    # An older file than before, and one that we have changed too.
    (user.folder / "arch/x86/kvm/vmx.c").write_text("int older;\n")
    os.utime(user.folder / "arch/x86/kvm/vmx.c", ns=(10**17, 10**17))
    (user.folder / "arch/x86/virt/Makefile").write_text("obj-y += users\n")
    (user.folder / "new.c").write_text("int n;\n")
    (user.folder / "Kbuild").unlink()
    assert user.copy_to(tree) == 4
    assert (tree.src / "arch/x86/kvm/vmx.c").read_text() == "int older;\n"
    assert (tree.src / "arch/x86/kvm/vmx.c").stat().st_mtime_ns > 10**18
    assert (tree.src / "arch/x86/include/asm/msr.h").stat().st_mtime_ns == 10**18
    assert (tree.src / "arch/x86/virt/Makefile").read_text() == "obj-y += hooked\n"
    assert (tree.src / "new.c").exists()
    assert not (tree.src / "Kbuild").exists()
    tree.apply(_changes({}), user)
    assert _contents(tree.src) == _contents(user.folder)


def test_a_build_looks_at_the_users_tree_once(
    user: UserTree, tmp_path: Path, cache: Cache, report: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Path] = []
    listed = trees.listed

    def counted(folder: Path, is_output: Callable[[str], bool]) -> list[str]:
        looks.append(folder)
        return listed(folder, is_output)

    monkeypatch.setattr(trees, "listed", counted)
    tree = KeptTree(tmp_path / "kept")
    with work_on(cache, report, None, "kernel") as work:
        first = user.identity()
        base = user.bring(tree, work)
        assert set(base.guarded()) == {"arch/x86/kvm/vmx.c"}
        assert looks == [user.folder]
        (user.folder / "arch/x86/kvm/vmx.c").write_text("int other;\n")
        (user.folder / "arch/x86/kvm/new.c").write_text("int n;\n")
        assert user.identity() != first
        user.bring(tree, work)
        assert set(base.guarded()) == {"arch/x86/kvm/vmx.c", "arch/x86/kvm/new.c"}
    assert looks == [user.folder] * 2
    assert _contents(tree.src) == _contents(user.folder)


def test_a_copy_that_was_interrupted_is_completed(
    user: UserTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = KeptTree(tmp_path / "kept")
    user.copy_to(tree)
    (user.folder / "arch/x86/kvm/vmx.c").write_text("int one;\n")

    class Killed(Exception):
        pass

    def die(path: Path, content: bytes, *, executable: bool) -> None:
        if path.name == "vmx.c":
            path.write_bytes(b"int ")
            raise Killed
        real(path, content, executable=executable)

    real = tree_module._replace
    with monkeypatch.context() as patched:
        patched.setattr(tree_module, "_replace", die)
        with pytest.raises(Killed):
            user.copy_to(tree)
    # The user goes back to what was there first: time and content are those of the last whole copy.
    (user.folder / "arch/x86/kvm/vmx.c").write_text(_FILES["arch/x86/kvm/vmx.c"])
    user.copy_to(tree)
    assert _contents(tree.src) == _FILES


def test_what_a_build_left_in_the_users_tree_is_not_copied(user: UserTree, tmp_path: Path) -> None:
    for name in (".config", "include/config/auto.conf", "include/generated/x.h", "vmlinux", "a.o", "m/x.ko"):
        path = user.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("made")
    assert set(user.files()) == set(_FILES)
    tree = KeptTree(tmp_path / "kept")
    user.copy_to(tree)
    assert _contents(tree.src) == _FILES


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_in_a_git_tree_git_says_what_is_a_source(user: UserTree) -> None:
    def git(*words: str) -> None:
        subprocess.run(["git", "-C", user.folder, *words], check=True, capture_output=True)

    git("init", "-q")
    (user.folder / ".gitignore").write_text("*.lds\n")
    git("add", ".")
    (user.folder / "ignored.lds").write_text("made")
    (user.folder / "untracked.c").write_text("new")
    (user.folder / "Kbuild").unlink()
    assert set(user.files()) == {*(set(_FILES) - {"Kbuild"}), ".gitignore", "untracked.c"}


def test_a_symbolic_link_is_a_source_wherever_it_leads(user: UserTree) -> None:
    (user.folder / "link").symlink_to("nowhere")
    before = user.files()
    assert set(before) == {*_FILES, "link"}
    (user.folder / "nowhere").touch()
    assert user.files()["link"] == before["link"]


def test_what_no_build_for_x86_reads_is_not_copied(user: UserTree) -> None:
    for name in ("arch/arm/kernel/x.c", "arch/arm/Kconfig", "Documentation/x.rst", "Documentation/Kconfig"):
        path = user.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert set(user.files()) == {*_FILES, "arch/arm/Kconfig", "Documentation/Kconfig"}


def test_the_fingerprint_tells_every_change(user: UserTree) -> None:
    before = user.files()
    (user.folder / "Kbuild").write_text("obj-y += y\n")
    assert user.files() != before
    assert user.version() == "7.4.0-rc2"


def test_a_folder_that_is_no_kernel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="is not a Linux kernel tree"):
        UserTree(tmp_path)
