# SPDX-License-Identifier: GPL-2.0-or-later
"""A base with the hooks, softseam and a flavour's patches, worked out beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from images.commands import Log
from images.kernel import flavours, needed
from images.kernel.flavours import Flavour
from images.patching import Changes, work_out

SOFTSEAM = "arch/x86/virt/softseam"
HOOKED = "arch/x86/include/asm/softseam.h"
"""A file of the hooks, which no Linux has."""

_HERE = Path(__file__).parent


def changes(
    flavour: Flavour,
    original: Callable[[str], bytes | None],
    folder: Path,
    *,
    onto: str,
    otherwise: str,
    log: Log,
) -> Changes:
    """Work out a flavour's files; a tree whose owner has merged the hooks keeps those.

    :param folder: an empty folder; the other parameters are those of :func:`images.patching.work_out`.
    :raises PatchError: a patch does not apply.
    """
    additions = {
        f"{SOFTSEAM}/{path.relative_to(_HERE / 'softseam')}": path.read_bytes()
        for path in sorted((_HERE / "softseam").rglob("*"))
        if path.is_file()
    }
    hooks = flavours.hook_patches() if original(HOOKED) is None else ()
    return work_out(
        original,
        (hooks, additions, flavour.patches),
        folder,
        onto=onto,
        otherwise=otherwise,
        log=log,
        left_out=lambda path: not needed.is_needed(path),
    )
