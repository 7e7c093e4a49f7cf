# SPDX-License-Identifier: GPL-2.0-or-later
"""A QEMU tree of the user's, only ever read."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from images import trees
from images.errors import BuildError

LEFT_OUT = "roms"
"""Firmware's sources: three quarters of the bytes, and no build of ours reads them."""

_SUBPROJECTS = "subprojects"
# git ignores what meson has downloaded, but a build needs it and may not download anything itself.
_DOWNLOADED = f"{_SUBPROJECTS}/keycodemapdb"


_OUTPUT = {".git", "build", "GNUmakefile", f"{_SUBPROJECTS}/packagecache"}
_OUTPUT_SUFFIXES = ("/.git", "/__pycache__", ".pyc")


class UserTree:
    """A tree of the user's.

    :raises BuildError: it is no QEMU tree, or not a whole one.
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
                f"{folder} has no {_DOWNLOADED}, which a build needs and git does not bring along",
                hint="run `meson subprojects download keycodemapdb` in it",
            )

    def version(self) -> str:
        """``11.1.1``, ``11.1.50``."""
        return (self.folder / "VERSION").read_text().strip()

    def files(self) -> dict[str, str]:
        """Path → fingerprint of every file that a build may read; git's own and what it made are left out.

        What is below ``subprojects`` counts even where git ignores it.
        """
        left_out = {LEFT_OUT, *self._build_folders()}

        def is_left_out(path: str) -> bool:
            top = path.partition("/")[0]
            return top in left_out or path in _OUTPUT or path.endswith(_OUTPUT_SUFFIXES)

        paths = trees.listed(self.folder, is_left_out)
        paths += trees.walk(self.folder, is_left_out, f"{_SUBPROJECTS}/")
        return trees.fingerprints(self.folder, sorted({path for path in paths if not is_left_out(path)}))

    def copy_to(self, target: Path, files: Mapping[str, str]) -> None:
        """Copy the files that :meth:`files` named into a folder, made here."""
        for path in files:
            copy = target / path
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.folder / path, copy, follow_symlinks=False)

    def _build_folders(self) -> set[str]:
        """Folders that meson has built in, whatever they are called."""
        return {path.name for path in self.folder.iterdir() if (path / "meson-private").is_dir()}
