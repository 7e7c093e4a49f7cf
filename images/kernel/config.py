# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's configuration: a fragment on top of allnoconfig, and a check that all of it was taken."""

from __future__ import annotations

import re
from collections.abc import Mapping

_SET = re.compile(r"^(CONFIG_\w+)=(.*)$")
_NOT_SET = re.compile(r"^# (CONFIG_\w+) is not set$")


def parse(text: str) -> dict[str, str]:
    """Symbol → value of a .config or a fragment; ``n`` for a symbol that is not set."""
    values = {}
    for line in text.splitlines():
        if match := _SET.match(line.strip()):
            values[match[1]] = match[2]
        elif match := _NOT_SET.match(line.strip()):
            values[match[1]] = "n"
    return values


def not_taken(asked: Mapping[str, str], got: Mapping[str, str]) -> list[str]:
    """Symbols of the fragment that have another value in the .config, as ``CONFIG_X=y (is n)``."""
    return [
        f"{symbol}={value} (is {got.get(symbol, 'n')})"
        for symbol, value in asked.items()
        if got.get(symbol, "n") != value
    ]
