# SPDX-License-Identifier: GPL-2.0-or-later
"""The header with which each of QEMU's files begins, compiled once: a third of the compiler's time.

gcc reads ``osdep.h.gch/…`` in place of ``osdep.h`` where it was made with the same options, and the header
itself otherwise.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter

HEADER = "include/qemu/osdep.h"
FOLDER = f"{HEADER}.gch"
NEEDED = ("config-poison.h",)
"""Files that it includes and that a build makes."""
ENVIRONMENT = {"CCACHE_SLOPPINESS": "pch_defines,time_macros"}
"""Variables without which ccache keeps nothing that reads such a header."""

_MANY = 20
"""Files with the same options for which it pays."""
_WITH_VALUE = {"-MQ", "-MF", "-o", "-c"}


def commands(database: str, source: str) -> list[list[str]]:
    """Return a command for each set of options that many files are compiled with.

    :param database: meson's ``compile_commands.json``.
    :param source: QEMU's folder.
    """
    counts: Counter[tuple[str, ...]] = Counter()
    argv: dict[tuple[str, ...], list[str]] = {}
    for entry in json.loads(database):
        if not entry["file"].endswith(".c"):
            continue
        options = _options(shlex.split(entry["command"]))
        same = tuple(word for word in options if not word.startswith("-I"))
        counts[same] += 1
        argv.setdefault(same, options)
    return [
        [*argv[same], "-x", "c-header", "-o", f"{source}/{FOLDER}/{number}", f"{source}/{HEADER}"]
        for number, (same, count) in enumerate(counts.most_common())
        if count >= _MANY
    ]


def _options(words: list[str]) -> list[str]:
    """The words of a compiler's command without its input and outputs."""
    found = []
    left = iter(words)
    for word in left:
        if word in _WITH_VALUE:
            next(left)
        elif word != "-MD":
            found.append(word)
    return found
