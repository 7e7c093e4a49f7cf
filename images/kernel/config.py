# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's configuration: a fragment on top of allnoconfig, and checks of what became of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

KVM_KCONFIG = ("virt/kvm/Kconfig", "arch/x86/kvm/Kconfig")
"""Files of a kernel tree with KVM's own options."""

NOT_EVERYWHERE = {
    "CONFIG_PROC_SYSCTL": "fs/proc/Kconfig",
    "CONFIG_KVM_IOAPIC": "arch/x86/kvm/Kconfig",
}
"""Symbol of the fragment → the file that defines it in those kernels that have it: until 7.2 PROC_SYSCTL
selects SYSCTL, and before 6.17 what KVM_IOAPIC switches is always there."""

_SET = re.compile(r"^(CONFIG_\w+)=(.*)$")
_NOT_SET = re.compile(r"^# (CONFIG_\w+) is not set$")
_ENTRY = re.compile(r"^(?:menu)?config (\w+)$")
_PROMPT = re.compile(r"^\s+(?:(?:bool|tristate|int|hex|string)\s+|prompt\s+)[\"']")


def parse(text: str) -> dict[str, str]:
    """Symbol → value of a .config or a fragment; ``n`` for a symbol that is not set."""
    values = {}
    for line in text.splitlines():
        if match := _SET.match(line.strip()):
            values[match[1]] = match[2]
        elif match := _NOT_SET.match(line.strip()):
            values[match[1]] = "n"
    return values


def not_taken(asked: Mapping[str, str], got: Mapping[str, str], tree: Path) -> list[str]:
    """Symbols of the fragment that have another value in the .config, as ``CONFIG_X=y (is n)``.

    :param tree: the kernel's; it may lack the symbols of :data:`NOT_EVERYWHERE`.
    """
    return [
        f"{symbol}={value} (is {got.get(symbol, 'n')})"
        for symbol, value in asked.items()
        if got.get(symbol, "n") != value
        and not (symbol in NOT_EVERYWHERE and not _defines(tree / NOT_EVERYWHERE[symbol], symbol))
    ]


def left_open(asked: Mapping[str, str], got: Mapping[str, str], tree: Path) -> list[str]:
    """KVM's options that a user of this configuration could set, and that the fragment does not."""
    options = [option for name in KVM_KCONFIG for option in _options((tree / name).read_text())]
    return [option for option in options if option in got and option not in asked]


def without(text: str, symbols: list[str]) -> str:
    """A .config without the lines of some symbols; ``make olddefconfig`` gives these their defaults."""
    return "".join(line for line in text.splitlines(keepends=True) if not parse(line).keys() & set(symbols))


def _defines(kconfig: Path, symbol: str) -> bool:
    entries = (_ENTRY.match(line) for line in kconfig.read_text().splitlines())
    return any(f"CONFIG_{entry[1]}" == symbol for entry in entries if entry)


def _options(kconfig: str) -> list[str]:
    """Symbols of a Kconfig file that have a prompt: those that a user can set."""
    found = []
    symbol = ""
    for line in kconfig.splitlines():
        if entry := _ENTRY.match(line):
            symbol = f"CONFIG_{entry[1]}"
        elif line[:1].strip():
            symbol = ""
        elif symbol and _PROMPT.match(line):
            found.append(symbol)
    return found
