# SPDX-License-Identifier: GPL-2.0-or-later
"""Configure a kernel, unless its build folder is configured like that already."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from images import tools
from images.cache import digest_inputs, file_sha256
from images.errors import BuildError
from images.kernel import config
from images.kernel.make import run_make
from images.kernel.tree import KeptTree
from images.needs import search_path
from images.recipe import Work

_HERE = Path(__file__).parent
# Their versions are what Kconfig reads of the machine.
_PROBED = ("gcc", "ld", "make", "pahole", "rustc", "bindgen")
_VARIABLES = ("CROSS_COMPILE", "LLVM")
_KCONFIG = re.compile(r"^\t(\S+) \\$", re.MULTILINE)


Asked = dict[str, str]
"""Options and their values, by which a build folder is configured."""


def configure(tree: KeptTree, fragments: tuple[str, ...], work: Work) -> Asked:
    """Make ``.config``: the fragments on top of allnoconfig, and the defaults of those of KVM's options that
    no fragment sets: the tree is newer than the fragments, or a developer's.

    :param fragments: files of this folder; a later one overrides an earlier one.
    :returns: what they ask for, for :func:`record`.
    :raises BuildError: the kernel does not take what they ask for.
    """
    asked = _asked(fragments)
    mark = _mark(tree, asked)
    if mark and _record(tree).is_file() and _record(tree).read_text() == mark:
        work.log.note("the build folder is configured like that already")
        return asked
    with work.reporter.step("kernel: configuring"):
        tree.out.mkdir(exist_ok=True)
        fragment = tree.out / "fragment.config"
        fragment.write_text("".join(f"{symbol}={value}\n" for symbol, value in asked.items()))
        env = {"KCONFIG_ALLCONFIG": str(fragment)}
        run_make(tree, ["allnoconfig"], "configuring failed", work, env=env)
        dotconfig = tree.out / ".config"
        got = config.parse(dotconfig.read_text())
        left_open = config.left_open(asked, got, tree.src)
        if left_open:
            dotconfig.write_text(config.without(dotconfig.read_text(), left_open))
            run_make(tree, ["olddefconfig"], "configuring failed", work)
            got = config.parse(dotconfig.read_text())
    if left_open:
        values = ", ".join(f"{symbol}={got.get(symbol, 'n')}" for symbol in left_open)
        work.reporter.note(f"kernel: options of KVM that {fragments[0]} lacks have their defaults: {values}")
    refused = config.not_taken(asked, got, tree.src)
    if refused:
        raise BuildError(
            f"the kernel's configuration does not take {', '.join(refused)}",
            hint=f"a dependency is missing, or the symbol is gone: see {' and '.join(fragments)} in {_HERE}",
            log=work.log.path,
        )
    return asked


def record(tree: KeptTree, asked: Asked) -> None:
    """Record that the build folder is configured; make, which was called, has updated its list of the
    Kconfig files.

    :param asked: by :func:`configure`: the fragments may have changed since.
    """
    if mark := _mark(tree, asked):
        _record(tree).write_text(mark)


def _record(tree: KeptTree) -> Path:
    return tree.out / "configured"


def _asked(fragments: tuple[str, ...]) -> Asked:
    asked: Asked = {}
    for name in fragments:
        asked |= config.parse((_HERE / name).read_text())
    return asked


def _mark(tree: KeptTree, asked: Asked) -> str:
    """A hash over all that ``.config`` follows from and over itself, or an empty string if make has still to
    read them.  A Kconfig file that changes gets a new time (:mod:`images.kernel.tree`)."""
    synchronized = tree.out / "include/config/auto.conf"
    dotconfig = tree.out / ".config"
    try:
        names = _KCONFIG.findall(synchronized.with_suffix(".conf.cmd").read_text())
        read = {name: (tree.src / name).stat() for name in names}
        newest = max(status.st_mtime_ns for status in (dotconfig.stat(), *read.values()))
        if newest > synchronized.stat().st_mtime_ns:
            return ""
        made = file_sha256(dotconfig)
    except FileNotFoundError:
        return ""
    there = [tool for tool in _PROBED if shutil.which(tool, path=search_path())]
    return digest_inputs(
        {
            "asked": asked,
            "kconfig": {name: f"{status.st_size} {status.st_mtime_ns}" for name, status in read.items()},
            "config": made,
            "tools": tools.versions(*there),
            "environment": {name: os.environ.get(name) for name in _VARIABLES},
        }
    )
