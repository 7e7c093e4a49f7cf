# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel tree that is kept for the next build: the base, changed in place and put back.

A file is written only when its content changes, so that make rebuilds what depends on it and nothing
else.  The list of files that differ from the base is on disk before the first of them is touched: a build
that is killed half-way leaves a tree that the next build puts right.

This is not a git work tree with ``git am``.  Going from one flavour to another by way of the base writes
every patched file twice, and make goes by the time of the writing: the hooks alone touch headers that half
of the kernel includes.  Debian's tarball has no repository, and a user's tree is built with its uncommitted
changes, without a write to its repository.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from images import trees
from images.cache import Cache, remove_tree
from images.errors import BuildError
from images.kernel import needed, source, unchanged
from images.patching import Changes
from images.recipe import Work
from images.sources import Source

OUT_BYTES = 700_000_000
"""Space that a build folder and the artefact need."""


class Base(Protocol):
    """The unchanged files of a kept tree."""

    def read(self, path: str) -> bytes | None:
        """The base's content of a path, None for a file that the base lacks."""

    def guarded(self) -> dict[str, str]:
        """Path → SHA-256 of KVM's files in the base."""


class Origin(Protocol):
    """A kernel source before our patches."""

    def version(self) -> str:
        """Linux's version."""

    def identity(self) -> dict[str, object]:
        """Its part of a kernel's inputs."""

    def identity_without(self, left_out: Callable[[str], bool]) -> dict[str, object]:
        """The same without some of a tree's paths."""

    def otherwise(self) -> str:
        """An alternative to adapting a patch to it, for a hint."""

    def kept_folder(self, cache: Cache) -> Path:
        """The folder of its tree in the cache."""

    def bring(self, tree: KeptTree, work: Work) -> Base:
        """Bring the kept tree up to date; the caller holds its lock."""


class KeptTree:
    """A source tree and its build folders in the cache.

    :param folder: ``src`` is the tree; the caller holds the tree's lock.
    :param config: name of the configuration.
    :param compiler: its version.  Each configuration and compiler has a build folder of its own: make's
        dependencies name the compiler's own headers by path.
    """

    def __init__(self, folder: Path, config: str = "", compiler: str = "") -> None:
        self.folder = folder
        self.src = folder / "src"
        compiler = re.sub(r"[^\w.+~-]+", "-", compiler).strip("-")
        self.out = folder / "-".join(filter(None, ("out", config, compiler)))
        self._originals = folder / "originals"
        self._state = folder / "changed.json"

    def changed_paths(self) -> dict[str, bool]:
        """Path that may differ from the base → whether the base has such a file."""
        try:
            changed: dict[str, bool] = json.loads(self._state.read_text())
        except FileNotFoundError:
            return {}
        return changed

    def original(self, path: str) -> bytes | None:
        """The base's content of a path, as it was before it was changed here."""
        changed = self.changed_paths()
        if path in changed:
            return (self._originals / path).read_bytes() if changed[path] else None
        here = self.src / path
        return here.read_bytes() if here.is_file() else None

    def apply(self, changes: Changes, base: Base) -> list[str]:
        """Make the tree the base plus ``changes``; returns the paths that were written or removed."""
        before = self.changed_paths()
        after = {path: before.get(path, base.read(path) is not None) for path in changes.paths}
        for path, existed in after.items():
            if existed and path not in before:
                content = base.read(path)
                assert content is not None
                _replace(self._originals / path, content, executable=False)
        self._record(before | after)
        moved = []
        for path in sorted(set(before) - set(after)):
            if self._set(path, base.read(path), None):
                moved.append(path)
        for path, (content, executable) in changes.files.items():
            if self._set(path, content, executable):
                moved.append(path)
        for path in changes.removed:
            if self._set(path, None, None):
                moved.append(path)
        self._record(after)
        return moved

    def _set(self, path: str, content: bytes | None, executable: bool | None) -> bool:
        here = self.src / path
        if content is None:
            if not here.exists():
                return False
            here.unlink()
            with contextlib.suppress(OSError):
                here.parent.rmdir()
            return True
        if here.is_file() and here.read_bytes() == content:
            return False
        if executable is None:
            executable = here.is_file() and bool(here.stat().st_mode & stat.S_IXUSR)
        _replace(here, content, executable=executable)
        return True

    def _record(self, changed: dict[str, bool]) -> None:
        _replace(self._state, json.dumps(changed, sort_keys=True, indent=1).encode(), executable=False)


@dataclass(frozen=True)
class Package:
    """A package of Debian's; see :mod:`images.kernel.source`."""

    source: Source

    def version(self) -> str:
        return self.source.upstream

    def identity(self) -> dict[str, object]:
        return {key: getattr(self.source, key) for key in ("package", "version", "sha256")}

    def identity_without(self, left_out: Callable[[str], bool]) -> dict[str, object]:
        # A package does not change.
        return self.identity()

    def otherwise(self) -> str:
        return "take another version with --kernel-version"

    def kept_folder(self, cache: Cache) -> Path:
        return source.kept_folder(cache, self.source)

    def bring(self, tree: KeptTree, work: Work) -> Base:
        """Fetch and unpack the package, unless it was."""
        facts = self._facts(tree) or self._fetch(tree, work)
        return PackageBase(tree, facts["kvm"])

    def _facts(self, tree: KeptTree) -> dict[str, Any] | None:
        """The record beside the tree; None without a tree, or for another package or choice of files."""
        try:
            facts: dict[str, Any] = json.loads((tree.folder / "package.json").read_text())
        except FileNotFoundError:
            return None
        same = facts.get("left_out") == list(needed.LEFT_OUT) and facts.get("sha256") == self.source.sha256
        return facts if same else None

    def _fetch(self, tree: KeptTree, work: Work) -> dict[str, Any]:
        work.cache.require_space(source.UNPACKED_BYTES + OUT_BYTES, "the kernel source")
        deb = source.fetch(work, self.source)
        whole = work.scratch / "tree"
        whole.mkdir()
        hashes = source.unpack(deb, whole / "src", work.log, work.reporter)
        (whole / "unpack.err").unlink(missing_ok=True)
        facts = {**self.identity(), "left_out": list(needed.LEFT_OUT), "kvm": hashes}
        (whole / "package.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
        tree.folder.parent.mkdir(parents=True, exist_ok=True)
        remove_tree(tree.folder)
        whole.rename(tree.folder)
        return facts


class PackageBase:
    """A package's files: those of the tree itself, as long as they are not changed there.

    :param hashes: of KVM's files, from the package's tarball.
    """

    def __init__(self, tree: KeptTree, hashes: dict[str, str]) -> None:
        self._tree = tree
        self._hashes = hashes

    def read(self, path: str) -> bytes | None:
        return self._tree.original(path)

    def guarded(self) -> dict[str, str]:
        return self._hashes


class UserTree:
    """A user's tree, which is never written to.

    :raises BuildError: it is not a kernel tree.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self._seen: dict[str, str] | None = None
        """The files of the last :meth:`identity`, so that a build looks at a tree once: half a second."""
        if not (self.folder / "arch/x86/kvm").is_dir() or not (self.folder / "Kbuild").is_file():
            raise BuildError(
                f"{folder} is not a Linux kernel tree",
                hint="--kernel-tree takes the folder that has arch/ in it",
            )

    def identity(self) -> dict[str, object]:
        self._seen = self.files()
        return trees.identity(self.folder, self._seen)

    def identity_without(self, left_out: Callable[[str], bool]) -> dict[str, object]:
        seen = self._seen or self.files()
        return trees.identity(self.folder, {path: mark for path, mark in seen.items() if not left_out(path)})

    def otherwise(self) -> str:
        return "merge its series into your tree with `git am -3`: a tree that has the hooks keeps its own"

    def kept_folder(self, cache: Cache) -> Path:
        key = hashlib.sha256(str(self.folder).encode()).hexdigest()[:12]
        return cache.trees / f"user-{self.folder.name}-{key}"

    def bring(self, tree: KeptTree, work: Work) -> Base:
        work.cache.require_space(source.UNPACKED_BYTES + OUT_BYTES, "the copy of the kernel tree")
        tree.folder.mkdir(parents=True, exist_ok=True)
        with work.reporter.step(f"kernel: copying what changed in {self.folder}"):
            moved = self.copy_to(tree, self._seen)
            work.log.note(f"{moved} files differed from the copy")
        return self

    def read(self, path: str) -> bytes | None:
        file = self.folder / path
        return file.read_bytes() if file.is_file() else None

    def guarded(self) -> dict[str, str]:
        sources = self._seen or self.files()
        return {
            path: hash_ for path, hash_ in unchanged.guarded_files(self.folder).items() if path in sources
        }

    def version(self) -> str:
        """``7.3.4`` or ``7.4.0-rc1``, from the Makefile."""
        values = {}
        for line in (self.folder / "Makefile").read_text().splitlines()[:10]:
            key, _, value = line.partition("=")
            values[key.strip()] = value.strip()
        numbers = ".".join(values.get(key) or "0" for key in ("VERSION", "PATCHLEVEL", "SUBLEVEL"))
        return numbers + values.get("EXTRAVERSION", "")

    def files(self) -> dict[str, str]:
        """Path → fingerprint of every file that a build reads, without the files that a build made."""
        return trees.fingerprints(
            self.folder, filter(needed.is_needed, trees.listed(self.folder, _is_output))
        )

    def copy_to(self, tree: KeptTree, now: dict[str, str] | None = None) -> int:
        """Bring a kept tree up to date; returns the number of files that were copied or removed.

        :param now: its :meth:`files`, as they are at this moment by default.

        Copies get the present time, so that make sees a file that was replaced by an older one.  The
        list of copies is written last: after an interrupted copy, its files are copied again.
        """
        listing = tree.folder / "copied.json"
        try:
            before: dict[str, str] = json.loads(listing.read_text())
        except FileNotFoundError:
            before = {}
        now = self.files() if now is None else now
        ours = tree.changed_paths()
        moved = 0
        for path in sorted(set(before) - set(now)):
            if path not in ours:
                (tree.src / path).unlink(missing_ok=True)
                moved += 1
        for path, mark in now.items():
            if before.get(path) == mark:
                continue
            moved += 1
            if path in ours:
                continue
            _copy(self.folder / path, tree.src / path)
        _replace(listing, json.dumps(now).encode(), executable=False)
        return moved


_OUTPUT_SUFFIXES = (".o", ".ko", ".a", ".mod", ".mod.c", ".cmd", ".order", ".lds.tmp")
_OUTPUT_PATHS = {
    ".git",
    ".config",
    ".config.old",
    "include/config",
    "include/generated",
    "arch/x86/include/generated",
    "vmlinux",
    "System.map",
    "Module.symvers",
    "modules.builtin",
    "modules.builtin.modinfo",
}


def _is_output(path: str) -> bool:
    return path in _OUTPUT_PATHS or path.endswith(_OUTPUT_SUFFIXES)


def _copy(source: Path, target: Path) -> None:
    if source.is_symlink():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.symlink_to(source.readlink())
        return
    executable = bool(source.stat().st_mode & stat.S_IXUSR)
    content = source.read_bytes()
    if not _same(target, content, executable):
        _replace(target, content, executable=executable)


def _same(target: Path, content: bytes, executable: bool) -> bool:
    return (
        target.is_file()
        and not target.is_symlink()
        and bool(target.stat().st_mode & stat.S_IXUSR) == executable
        and target.read_bytes() == content
    )


def _replace(path: Path, content: bytes, *, executable: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".tdx-e2e-new")
    new.write_bytes(content)
    new.chmod(0o755 if executable else 0o644)
    new.replace(path)
