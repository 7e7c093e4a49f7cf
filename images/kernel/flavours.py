# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernels that can be built: those of ``flavours.toml``, and these with a mutant, ``upstream+leak``."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from images.errors import BuildError
from images.kernel import mutants
from images.kernel.mutants import Mutant

HERE = Path(__file__).parent
DEFAULT = "upstream"
OF_A_RUN = (DEFAULT, "proposed")
"""The flavours of a run that names none: Linux as it is, and what only our series offer."""


def of_a_run(version: str | None) -> tuple[str, ...]:
    """The flavours of a run that names none.

    :param version: of Linux, if it names one: our series need not apply to it.
    """
    return (DEFAULT,) if version else OF_A_RUN


@dataclass(frozen=True)
class Flavour:
    """A kernel to build.

    :param patches: its patches, in order, without the hooks.
    :param kvm_unchanged: the build proves that KVM's sources are those of the base.
    :param contract: the API contract that it has to keep, a name of fixtures/contracts.
    :param config: name of a configuration on top of the usual one, or empty.
    """

    name: str
    summary: str
    patches: tuple[Path, ...]
    kvm_unchanged: bool
    contract: str
    config: str = ""

    @property
    def fragments(self) -> tuple[str, ...]:
        """The files of its configuration, in this folder; a later file overrides an earlier one."""
        return ("fragment.config", *([f"{self.config}.config"] if self.config else []))


def hook_patches(folder: Path = HERE) -> tuple[Path, ...]:
    """The patches of every flavour, outside KVM, in order."""
    return tuple(sorted((folder / "patches/hooks").glob("*.patch")))


def load(folder: Path = HERE) -> dict[str, Flavour]:
    """All flavours by name.

    :raises BuildError: the file is wrong, or a series has no patch.
    """
    path = folder / "flavours.toml"
    try:
        tables = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise BuildError(f"{path}: {error}") from error
    found = {}
    for name, table in tables.items():
        unknown = set(table) - {"summary", "series", "kvm_unchanged", "contract", "config"}
        if unknown:
            raise BuildError(f"{path}: flavour {name}: unknown key {', '.join(sorted(unknown))}")
        patches: list[Path] = []
        for series in table.get("series", []):
            own = sorted((folder / "patches" / series).glob("*.patch"))
            if not own:
                raise BuildError(f"{path}: flavour {name}: patches/{series} has no patch")
            patches += own
        found[name] = Flavour(
            name,
            table.get("summary", ""),
            tuple(patches),
            bool(table.get("kvm_unchanged", False)),
            table.get("contract", name),
            table.get("config", ""),
        )
    return found


def base_of(name: str) -> str:
    """Return the name of a flavour without its mutant."""
    return name.partition(mutants.SEPARATOR)[0]


def get(name: str, folder: Path = HERE) -> Flavour:
    """One flavour, also with a mutant.

    :raises BuildError: no flavour or no mutant has that name, or the mutant is not of that flavour.
    """
    known = load(folder)
    base, with_mutant, mutant = name.partition(mutants.SEPARATOR)
    if base not in known:
        raise BuildError(f"there is no kernel flavour {base!r}", hint=f"flavours: {', '.join(sorted(known))}")
    if not with_mutant:
        return known[base]
    return _mutated(known[base], mutants.get(mutant, folder / "mutants"), known)


def _mutated(flavour: Flavour, mutant: Mutant, known: Mapping[str, Flavour]) -> Flavour:
    fitting = known.get(mutant.base)
    if fitting is None or fitting.patches != flavour.patches:
        raise BuildError(
            f"the mutant {mutant.name} is not of flavour {flavour.name}", hint=f"it is {mutant.flavour}"
        )
    return dataclasses.replace(
        flavour,
        name=f"{flavour.name}{mutants.SEPARATOR}{mutant.name}",
        summary=f"{flavour.name}, and wrong on purpose: {mutant.breaks}",
        patches=(*flavour.patches, mutant.patch),
        kvm_unchanged=False,
    )
