# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of a patch that do not fit its base, read from the output of GNU patch."""

from __future__ import annotations

import re
from collections.abc import Iterable

_FILE = re.compile(r"(?:patching|checking) file '?(.+?)'?|The next patch would create the file '?(.+?)'?,")
_MISSING = re.compile(r"\|\+\+\+ (?:b/)?([^\t]+).*")
_HUNK = re.compile(r"Hunk #(\d+) FAILED.*")
_THERE = ("previously applied", "which already exists")
_HEAD = re.compile(r"^@@ -.*$", re.MULTILINE)


def describe(patch: str, output: Iterable[str]) -> str:
    """Return the first misfit, with the first line of its hunk, and the number of the others.

    :param patch: the patch as git writes it.
    :param output: what GNU patch printed about it.
    """
    found = _read(patch, output)
    if not found:
        return "the log has its output"
    return found[0] + (f", and {len(found) - 1} more" if found[1:] else "")


def _read(patch: str, output: Iterable[str]) -> list[str]:
    found = []
    path = ""
    for line in output:
        if match := _FILE.fullmatch(line):
            path = match[1] or match[2]
        elif match := _MISSING.fullmatch(line):
            # Quoted only where patch does not find the file.
            found.append(f"there is no {match[1].strip()}")
        elif match := _HUNK.fullmatch(line):
            found.append(_hunk(patch, path, int(match[1])))
        elif any(words in line for words in _THERE):
            found.append(f"{path} has the change already")
    return found


def _hunk(patch: str, path: str, number: int) -> str:
    own = patch.partition(f"\n+++ b/{path}\n")[2].partition("\ndiff --git ")[0]
    heads = _HEAD.findall(own)
    return f"{path}, hunk {number}" + (f" ({heads[number - 1]})" if number <= len(heads) else "")
