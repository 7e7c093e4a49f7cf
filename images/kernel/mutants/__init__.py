# SPDX-License-Identifier: GPL-2.0-or-later
"""Small realistic faults, to prove that the suite can fail: each a patch, ``<area>/<name>.patch``.

A patch begins with lines like those of a mail; a line that begins with a space continues the one before::

    Breaks: what is wrong, and where
    Mistake: how a developer would come to write it
    Base: upstream
    Fixed-by: 0123456789ab ("KVM: TDX: Summary of Linux' fix"), of a bug of Linux' history that is put back
    Equivalent: why no test can tell it from the base, of one that changes nothing

``<base>+<name>`` names the kernel wherever a flavour is named.
"""

from __future__ import annotations

import email.parser
import re
from dataclasses import dataclass
from pathlib import Path

from images.errors import BuildError

HERE = Path(__file__).parent
SEPARATOR = "+"
"""Between the flavour and the mutant in the name of a kernel."""

_KEYS = ("Breaks", "Mistake", "Base", "Fixed-by", "Equivalent")
_NEEDED = ("Breaks", "Mistake", "Base")
_NAME = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_DIFF = re.compile(r"^(?=--- |diff --git )", re.MULTILINE)


@dataclass(frozen=True)
class Mutant:
    """A fault to put into a kernel.

    :param area: its folder; names the tests that are to find it.
    :param breaks: what is wrong, in a line.
    :param mistake: how a developer would come to write it.
    :param base: the flavour that it changes.
    :param fixed_by: the commit of Linux that fixed it, or empty.
    :param equivalent: why it changes nothing, or empty.
    """

    name: str
    area: str
    patch: Path
    breaks: str
    mistake: str
    base: str
    fixed_by: str = ""
    equivalent: str = ""

    @property
    def flavour(self) -> str:
        """The name of its kernel."""
        return f"{self.base}{SEPARATOR}{self.name}"


def read(patch: Path) -> Mutant:
    """Read a mutant from its patch.

    :raises BuildError: its header is wrong.
    """
    head, *diff = _DIFF.split(patch.read_text(), maxsplit=1)
    header = email.parser.HeaderParser().parsestr(head)
    values = {key: " ".join(str(value).split()) for key, value in header.items()}
    wrong = (
        [f"unknown key {key}" for key in values if key not in _KEYS]
        + [f"no {key}" for key in _NEEDED if not values.get(key)]
        + [f"{key} is empty" for key, value in values.items() if not value and key not in _NEEDED]
        + (["two of a key"] if len(header) != len(values) else [])
        + (["text that is not in a key"] if str(header.get_payload()).strip() else [])
        + ([] if diff else ["no change"])
        + ([] if _NAME.fullmatch(patch.stem) else ["its name is not words of small letters and dashes"])
    )
    if wrong:
        raise BuildError(
            f"mutant {patch.parent.name}/{patch.name}: {wrong[0]}",
            hint=f"a mutant's header has the lines {', '.join(_KEYS)}",
        )
    return Mutant(
        patch.stem,
        patch.parent.name,
        patch,
        breaks=values["Breaks"],
        mistake=values["Mistake"],
        base=values["Base"],
        fixed_by=values.get("Fixed-by", ""),
        equivalent=values.get("Equivalent", ""),
    )


def load(folder: Path = HERE) -> dict[str, Mutant]:
    """Return all mutants by name, in order of their areas.

    :raises BuildError: a header is wrong, or two have one name.
    """
    found: dict[str, Mutant] = {}
    for patch in sorted(folder.glob("*/*.patch")):
        mutant = read(patch)
        if mutant.name in found:
            raise BuildError(f"two mutants have the name {mutant.name}: {found[mutant.name].patch}, {patch}")
        found[mutant.name] = mutant
    return found


def get(name: str, folder: Path = HERE) -> Mutant:
    """Return one mutant.

    :raises BuildError: no mutant has that name, or its header is wrong.
    """
    # The name may be anything that a person typed, also a glob.
    for patch in folder.glob("*/*.patch"):
        if patch.stem == name:
            return read(patch)
    raise BuildError(f"there is no mutant {name!r}", hint=f"mutants: the patches in {folder}")
