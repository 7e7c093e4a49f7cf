# SPDX-License-Identifier: GPL-2.0-or-later
"""Which flavours' patches, and which mutants', apply to a kernel source, found without building it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from images.cache import Cache
from images.commands import Log
from images.kernel import flavours, patched, source
from images.kernel.mutants import Mutant
from images.kernel.tree import KeptTree
from images.patching import Changes, PatchError, work_out
from images.progress import Reporter

Original = Callable[[str], bytes | None]
"""Path → the source's content, None where it has no such file."""
Look = Callable[[Original, Path, Log], dict[str, str]]
"""Its parameters are those of :func:`misfits`."""


def misfits(original: Original, scratch: Path, log: Log) -> dict[str, str]:
    """Return flavour → the patch, file and hunk that do not fit, empty where all of them apply.

    The patches of ``upstream``, the hooks, are part of every flavour.

    :param scratch: an empty folder.
    """
    found = {}
    for name in flavours.load():
        try:
            _changes(name, original, scratch / name, log)
        except PatchError as error:
            found[name] = error.misfit
        else:
            found[name] = ""
    return found


def mutant_misfits(mutants: Iterable[Mutant]) -> Look:
    """Return what finds mutant → the file and hunk that do not fit; mutants that apply are not in it.

    :raises PatchError: the patches of a mutant's base do not apply.
    """

    def look(original: Original, scratch: Path, log: Log) -> dict[str, str]:
        bases: dict[str, Original] = {}
        found = {}
        for mutant in mutants:
            if mutant.base not in bases:
                changes = _changes(mutant.base, original, scratch / mutant.base, log)
                bases[mutant.base] = _after(changes, original)
            folder = scratch / mutant.flavour
            folder.mkdir()
            try:
                work_out(
                    bases[mutant.base],
                    [(mutant.patch,)],
                    folder,
                    onto=f"flavour {mutant.base}",
                    otherwise="",
                    log=log,
                )
            except PatchError as error:
                found[mutant.name] = error.misfit
        return found

    return look


def of_kept(cache: Cache, version: str | None, reporter: Reporter, look: Look) -> dict[str, str] | None:
    """Return what ``look`` finds in a version that was built from Debian's source; None without its tree."""
    used = source.last_used(cache).recall(version)
    if used is None:
        return None
    tree = KeptTree(source.kept_folder(cache, used))
    with (
        cache.lock(f"tree-{tree.folder.name}", reporter),
        cache.new_log("patches") as log,
        cache.scratch("patches") as scratch,
    ):
        return look(tree.original, scratch, log) if tree.src.is_dir() else None


def _changes(name: str, original: Original, folder: Path, log: Log) -> Changes:
    folder.mkdir()
    return patched.changes(flavours.get(name), original, folder, onto="it", otherwise="", log=log)


def _after(changes: Changes, original: Original) -> Original:
    """Return the files of a source with changes."""

    def content(path: str) -> bytes | None:
        if path in changes.files:
            return changes.files[path][0]
        return None if path in changes.removed else original(path)

    return content
