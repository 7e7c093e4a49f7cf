# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's source on its way into a build root: a tarball with our patches, or a user's tree."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from images import trees
from images.commands import await_turn, run
from images.errors import BuildError
from images.patching import work_out
from images.qemu import source
from images.recipe import Work
from images.sources import Source

LEFT_OUT = "roms"
"""Firmware's sources: three quarters of the bytes, and no build of ours reads them."""

_SUBPROJECTS = "subprojects"
# git ignores what meson has downloaded, but a build needs it and may not download anything itself.
_DOWNLOADED = f"{_SUBPROJECTS}/keycodemapdb"


_OUTPUT = {".git", "build", "GNUmakefile", f"{_SUBPROJECTS}/packagecache"}
_OUTPUT_SUFFIXES = ("/.git", "/__pycache__", ".pyc")


class Origin(Protocol):
    """A QEMU source."""

    def version(self) -> str:
        """QEMU's version."""

    def identity(self) -> dict[str, object]:
        """Its part of a QEMU's inputs."""

    def bring(self, tree: Path, work: Work) -> None:
        """Make the folder ``tree`` of it."""


@dataclass(frozen=True)
class Tarball:
    """Upstream's tarball, and patches; see :mod:`images.qemu.source`."""

    source: Source
    patches: tuple[Path, ...]

    def version(self) -> str:
        return self.source.upstream

    def identity(self) -> dict[str, object]:
        return {"version": self.source.version, "sha256": self.source.sha256}

    def bring(self, tree: Path, work: Work) -> None:
        tarball = source.fetch(work, self.source)
        await_turn()
        with work.reporter.step("qemu: unpacking and patching the source"):
            tree.mkdir(parents=True)
            options = ("--strip-components=1", "--no-same-owner", f"--exclude=*/{LEFT_OUT}/*")
            argv: list[str | Path] = ["tar", "-x", *options, "-f", tarball, "-C", tree]
            run(argv, log=work.log, what=f"unpacking {tarball.name} failed")
            self._patch(tree, work)

    def _patch(self, tree: Path, work: Work) -> None:
        beside = work.scratch / "patching"
        beside.mkdir()

        def original(path: str) -> bytes | None:
            file = tree / path
            return file.read_bytes() if file.is_file() else None

        changes = work_out(
            original,
            [self.patches],
            beside,
            onto=f"QEMU {self.version()}",
            otherwise="build a tree of your own with --qemu-tree",
            log=work.log,
        )
        for path, (content, _) in changes.files.items():
            file = tree / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        for path in changes.removed:
            (tree / path).unlink()


class UserTree:
    """A user's tree, which is never written to.

    :raises BuildError: it is not a QEMU tree, or not a whole one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        if not all((self.folder / name).is_file() for name in ("configure", "meson.build", "VERSION")):
            raise BuildError(
                f"{folder} is not a QEMU source tree",
                hint="--qemu-tree takes the folder that has QEMU's configure in it",
            )
        if not (self.folder / _DOWNLOADED).is_dir():
            raise BuildError(
                f"{folder} has no {_DOWNLOADED}, which a build needs and git does not have",
                hint="run `meson subprojects download keycodemapdb` in it",
            )

    def version(self) -> str:
        """``11.1.1``, ``11.1.50``."""
        return (self.folder / "VERSION").read_text().strip()

    def identity(self) -> dict[str, object]:
        return trees.identity(self.folder, self.files())

    def bring(self, tree: Path, work: Work) -> None:
        await_turn()
        with work.reporter.step(f"qemu: copying {self.folder}"):
            self.copy_to(tree)

    def copy_to(self, target: Path) -> None:
        """Copy :meth:`files` into a folder, made here."""
        for path in self.files():
            copy = target / path
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.folder / path, copy, follow_symlinks=False)

    def files(self) -> dict[str, str]:
        """Path → fingerprint of every file that a build may read, without git's files and a build's output.

        Files below ``subprojects`` count even where git ignores them.
        """
        left_out = {LEFT_OUT, *self._build_folders()}

        def is_left_out(path: str) -> bool:
            top = path.partition("/")[0]
            return top in left_out or path in _OUTPUT or path.endswith(_OUTPUT_SUFFIXES)

        paths = trees.listed(self.folder, is_left_out)
        paths += trees.walk(self.folder, is_left_out, f"{_SUBPROJECTS}/")
        return trees.fingerprints(self.folder, sorted({path for path in paths if not is_left_out(path)}))

    def _build_folders(self) -> set[str]:
        """Folders that meson has built in, whatever their names."""
        return {path.name for path in self.folder.iterdir() if (path / "meson-private").is_dir()}
