# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM's uAPI headers as a kernel that was built has them: its source's, with its flavour's patches."""

from __future__ import annotations

from collections.abc import Callable

from images.cache import Cache
from images.kernel import flavours, source
from images.kernel.build import Request
from images.kernel.tree import KeptTree, UserTree
from images.patching import paths_of, work_out
from images.progress import Reporter

PATHS = ("arch/x86/include/uapi/asm/kvm.h", "include/uapi/linux/kvm.h")


def headers(cache: Cache, request: Request, reporter: Reporter) -> dict[str, str]:
    """Return path → text; empty where the source of the kernel is not kept.

    :raises PatchError: a patch of the flavour does not apply.
    """
    base = _base(cache, request)
    if base is None:
        return {}
    patches = flavours.get(request.flavour).patches
    concerned = tuple(patch for patch in patches if set(PATHS) & set(paths_of(patch.read_bytes())))
    with cache.new_log("uapi") as log, cache.scratch("uapi") as scratch:
        changes = work_out(
            lambda path: base(path) if path in PATHS else None,
            (concerned,),
            scratch,
            onto="its source",
            otherwise="build the kernel again",
            log=log,
            left_out=lambda path: path not in PATHS,
        )
    changed = {path: content for path, (content, _) in changes.files.items() if path in PATHS}
    found = {path: changed.get(path) or base(path) for path in PATHS}
    return {path: content.decode() for path, content in found.items() if content is not None}


def _base(cache: Cache, request: Request) -> Callable[[str], bytes | None] | None:
    if request.kernel_tree is not None:
        return UserTree(request.kernel_tree).read
    used = source.last_used(cache).recall(request.version)
    if used is None or not source.kept_folder(cache, used).is_dir():
        return None
    return KeptTree(source.kept_folder(cache, used)).original
