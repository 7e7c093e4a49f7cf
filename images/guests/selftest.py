# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's own test of a TD's report, tools/testing/selftests/tdx, from a kernel tree, as a disk.

The disk has no file system: its bytes are the program, so a guest copies the disk into a file and runs that.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from images.cache import Artefact, Cache, file_sha256
from images.commands import run
from images.errors import BuildError
from images.kernel import source
from images.kernel.tree import KeptTree
from images.progress import Reporter
from images.recipe import Recipe, Work
from images.tools import versions

IMAGE = "tdx_guest_test.img"

_SELFTESTS = Path("tools/testing/selftests")
_PROGRAM = _SELFTESTS / "tdx/tdx_guest_test.c"
_INTERFACE = Path("include/uapi/linux/tdx-guest.h")
_FILES = (_PROGRAM, _SELFTESTS / "kselftest.h", _SELFTESTS / "kselftest_harness.h", _INTERFACE)
_FLAGS = ("-O2", "-static", "-s")
_SECTOR = 512


class Selftest(Recipe):
    """The kernel's test of TDs.

    :param tree: the kernel's source.
    :raises BuildError: the tree lacks the test.
    """

    kind = "selftest"
    label = "tdx-guest"
    what = "the kernel's test of TDs"
    tools = ("gcc", "ld", "setpriv")
    space = 10_000_000

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        lacking = [str(path) for path in _FILES if not (tree / path).is_file()]
        if lacking:
            raise BuildError(
                f"{tree} has no {', '.join(lacking)}",
                hint="the kernel has them since Linux 6.2; build a newer",
            )

    def inputs(self) -> dict[str, object]:
        return {
            "files": {str(path): file_sha256(self.tree / path) for path in _FILES},
            "flags": list(_FLAGS),
            "recipe": file_sha256(Path(__file__)),
            "tools": versions("gcc", "ld"),
        }

    def make(self, work: Work) -> dict[str, object]:
        # Only this header of the kernel's: the others are those of the libc.
        headers, image = work.scratch / "include", work.out / IMAGE
        (headers / "linux").mkdir(parents=True)
        shutil.copy(self.tree / _INTERFACE, headers / "linux")
        # In the tree, as the program prints the name of its source.
        argv: list[str | Path] = ["gcc", *_FLAGS, "-I", headers, "-I", _SELFTESTS, "-o", image, _PROGRAM]
        run(argv, log=work.log, what=f"{_PROGRAM} does not compile", cwd=self.tree)
        with image.open("ab") as file:
            file.truncate(-(-file.tell() // _SECTOR) * _SECTOR)
        return {}


def ensure(cache: Cache, reporter: Reporter, *, tree: Path | None = None) -> Artefact:
    """The disk, built if it is not in the cache.

    :param tree: a kernel's source; by default Debian's, which the cache has once a kernel was built from it.
    :raises BuildError: it cannot be built.
    """
    return Selftest(tree or _kept(cache)).ensure(cache, reporter)


def find(cache: Cache) -> Artefact | None:
    """The finished disk for Debian's source, or None."""
    try:
        return Selftest(_kept(cache)).find(cache)
    except BuildError:
        return None


def _kept(cache: Cache) -> Path:
    used = source.last_used(cache).recall()
    tree = KeptTree(source.kept_folder(cache, used)).src if used else None
    if tree is None or not tree.is_dir():
        raise BuildError(
            "the cache has no kernel source with the kernel's test of TDs",
            hint="`python3 -m images build kernel` brings it, or name a tree",
        )
    return tree
