# SPDX-License-Identifier: GPL-2.0-or-later
"""The files of a kernel tree that a build for x86 reads: half of the bytes, two thirds of the files."""

from __future__ import annotations

import fnmatch
import re

_OTHER_ARCHITECTURES = (
    *("alpha", "arc", "arm", "arm64", "csky", "hexagon", "loongarch", "m68k", "microblaze", "mips"),
    *("nios2", "openrisc", "parisc", "powerpc", "riscv", "s390", "sh", "sparc", "xtensa"),
)
LEFT_OUT = (
    *(f"arch/{name}/*.{kind}" for name in _OTHER_ARCHITECTURES for kind in ("[chS]", "dts*")),
    "Documentation/[a-z]*",
    "drivers/gpu/drm/amd/include/*",
)
"""Patterns of the files that it does not read, ``*`` matching slashes too; every Kconfig stays."""

_LEFT_OUT = re.compile("|".join(fnmatch.translate(pattern) for pattern in LEFT_OUT))


def is_needed(path: str) -> bool:
    """Returns whether a build may read a path relative to the tree."""
    return _LEFT_OUT.match(path) is None
