# SPDX-License-Identifier: GPL-2.0-or-later
"""Small realistic faults in our QEMU's series, to prove that the suite can fail.

Each is a patch onto that series, with the header of :mod:`images.kernel.mutants`; its base is the kernel on
which it is tested.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from images.cache import Cache, digest_inputs, file_sha256
from images.errors import BuildError
from images.kernel import mutants
from images.kernel.mutants import Mutant
from images.progress import Reporter
from images.qemu import build, source
from images.qemu.tree import Tarball
from images.recipe import work_on

HERE = Path(__file__).parent
AREA = "qemu"


class QemuMutant(Mutant):
    """A fault to put into our QEMU."""

    @property
    def flavour(self) -> str:
        """The kernel that it is tested on."""
        return self.base


def load(folder: Path = HERE) -> dict[str, QemuMutant]:
    """Return all of them by name.

    :raises BuildError: a header is wrong.
    """
    found = (mutants.read(patch) for patch in sorted(folder.glob("*.patch")))
    return {one.name: QemuMutant(**dataclasses.asdict(one) | {"area": AREA}) for one in found}


def key(cache: Cache, mutant: QemuMutant) -> str:
    """Return a hash over what its QEMU is made of; empty before the first build of QEMU."""
    recipe = build.recipe(cache)
    return digest_inputs({"qemu": recipe.key(), "mutant": file_sha256(mutant.patch)}) if recipe else ""


def make(cache: Cache, reporter: Reporter, mutant: QemuMutant, tree: Path) -> Path:
    """Make a source tree of our QEMU with a mutant, and build it; returns the image of its disk.

    :param tree: a folder that does not exist yet.
    :raises BuildError: the mutant does not apply or build, or there was no QEMU yet.
    """
    used = source.last_used(cache).recall()
    if used is None:
        raise BuildError("no source of QEMU is known yet", hint="python -m images build qemu")
    with work_on(cache, reporter, None, "qemu-mutant") as work:
        Tarball(used, (*build.series(), mutant.patch)).bring(tree, work)
    return build.ensure(cache, reporter, tree=tree).path / build.IMAGE
