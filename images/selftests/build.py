# SPDX-License-Identifier: GPL-2.0-or-later
"""Build ``tools/testing/selftests/kvm`` of a kernel tree, which is not written to, as static programs."""

from __future__ import annotations

import os
import re
from pathlib import Path

from images.cache import Artefact, digest_files
from images.commands import run
from images.errors import BuildError
from images.kernel.tree import UserTree
from images.recipe import Recipe, Work
from images.tools import versions

FOLDER = Path("tools/testing/selftests/kvm")
_MAKEFILES = ("Makefile.kvm", "Makefile")
"""Where the list of programs is, in a tree of today and in one before 6.14."""
_LISTED = re.compile(r"^TEST_GEN_PROGS_(?:COMMON|x86|x86_64)\s*\+?=\s*([\w/-]+)\s*$", re.MULTILINE)


def programs(tree: Path) -> list[str]:
    """The programs that a tree's Makefile lists for x86: ``x86/smm_test``.

    :raises BuildError: it is not a kernel tree, or lists none.
    """
    for name in _MAKEFILES:
        makefile = tree / FOLDER / name
        found = _LISTED.findall(makefile.read_text()) if makefile.is_file() else []
        if found:
            return list(dict.fromkeys(found))
    raise BuildError(
        f"{tree} has no selftests of KVM for x86",
        hint="--tdx-selftests takes the folder of a kernel tree that has tools/testing/selftests/kvm in it",
    )


def matching(listed: list[str], word: str) -> list[str]:
    """Those whose name contains a word; all of them if none does, as it may be the name of a case."""
    return [name for name in listed if word.lower() in name.lower()] or listed


class Selftests(Recipe):
    """Programs of one tree.

    :param wanted: of :func:`programs`.
    """

    kind = "selftests"
    what = "the tree's KVM selftests"
    tools = ("make", "gcc", "ld", "strip", "perl")
    space = 1_000_000_000

    def __init__(self, tree: Path, wanted: list[str]) -> None:
        self.tree = UserTree(tree)
        self.wanted = wanted
        self.label = self.tree.folder.name

    def inputs(self) -> dict[str, object]:
        return {
            "tree": self.tree.identity(),
            "programs": self.wanted,
            "files": digest_files(Path(__file__).parent, ("*.py",)),
            "tools": versions("gcc", "ld", "make"),
        }

    def make(self, work: Work) -> dict[str, object]:
        objects, headers = work.scratch / "objects", work.scratch / "headers"
        jobs = f"-j{(os.cpu_count() or 1) + 1}"
        with work.reporter.step("selftests: the tree's headers"):
            run(
                [
                    *("make", "-C", self.tree.folder, f"O={work.scratch / 'kernel'}", "ARCH=x86", jobs),
                    *("headers_install", f"INSTALL_HDR_PATH={headers}"),
                ],
                log=work.log,
                what="the tree's headers cannot be installed",
                hint="`make mrproper` in the tree, if it was built in place",
            )
        include = headers / "include"
        with work.reporter.step("selftests: building"):
            run(
                [
                    *("make", "-C", self.tree.folder / FOLDER, "ARCH=x86", jobs, f"OUTPUT={objects}"),
                    *(f"KHDR_INCLUDES=-isystem {include}", f"LINUX_HDR_PATH={include}", "LDFLAGS=-static"),
                    *(objects / name for name in self.wanted),
                ],
                log=work.log,
                what="the tree's KVM selftests do not build",
            )
        for name in self.wanted:
            target = work.out / Path(name).name
            run(["strip", "-o", target, objects / name], log=work.log, what=f"{name} cannot be stripped")
        return {"version": self.tree.version(), "programs": self.wanted}


def programs_of(artefact: Artefact) -> dict[str, Path]:
    """Name without its folder → static program."""
    names = [Path(name).name for name in artefact.manifest()["programs"]]
    return {name: artefact.path / name for name in names}
