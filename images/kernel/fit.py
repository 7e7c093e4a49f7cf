# SPDX-License-Identifier: GPL-2.0-or-later
"""Which flavours' patches apply to a kernel source, found without building it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from images.cache import Cache
from images.commands import Log
from images.kernel import flavours, patched, source
from images.kernel.tree import KeptTree
from images.patching import PatchError
from images.progress import Reporter


def misfits(
    original: Callable[[str], bytes | None],
    scratch: Path,
    log: Log,
) -> dict[str, str]:
    """Return flavour → the patch, file and hunk that do not fit, empty where all of them apply.

    The patches of ``upstream``, the hooks, are part of every flavour.

    :param original: path → the source's content, None where it has no such file.
    :param scratch: an empty folder.
    """
    found = {}
    for name, flavour in flavours.load().items():
        folder = scratch / name
        folder.mkdir()
        try:
            patched.changes(flavour, original, folder, onto="it", otherwise="", log=log)
        except PatchError as error:
            found[name] = error.misfit
        else:
            found[name] = ""
    return found


def misfits_of_kept(cache: Cache, version: str | None, reporter: Reporter) -> dict[str, str]:
    """Return the same for a version that was built from Debian's source; empty without its tree."""
    used = source.last_used(cache).recall(version)
    if used is None:
        return {}
    tree = KeptTree(source.kept_folder(cache, used))
    with (
        cache.lock(f"tree-{tree.folder.name}", reporter),
        cache.new_log("patches") as log,
        cache.scratch("patches") as scratch,
    ):
        return misfits(tree.original, scratch, log) if tree.src.is_dir() else {}
