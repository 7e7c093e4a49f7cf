# SPDX-License-Identifier: GPL-2.0-or-later
"""Compile init and the programs of the guest into one static file, which is called by their names.

One libc for all of them: an initramfs is copied twice before Linux unpacks it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from images.commands import Log, run

FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Wshadow", "-Werror")

_HERE = Path(__file__).parent
_INIT = "init"


def programs() -> list[str]:
    """The names of the programs."""
    return sorted(path.stem for path in (_HERE / "programs").glob("*.c"))


def build(scratch: Path, log: Log) -> Path:
    """The file: init, unless its name is that of a program."""
    names = programs()
    sources = [(name, _HERE / f"programs/{name}.c") for name in names]
    sources += [(_INIT, path) for path in sorted((_HERE / _INIT).glob("*.c"))]
    chooser = scratch / "chooser.c"
    chooser.write_text(choose_by_name(names))
    objects = [_compile(chooser, (), scratch, log)]
    objects += [_compile(path, (f"-Dmain={name}_main",), scratch, log) for name, path in sources]
    made = scratch / "init"
    argv: list[str | Path] = ["gcc", "-static", "-s", "-o", made, *objects]
    run(argv, log=log, what="linking the guest's programs failed", hint="libc6-dev is needed")
    return made


def choose_by_name(names: Iterable[str]) -> str:
    """The source of a main() that calls ``<name>_main()``, and init's for any other name."""
    names = list(names)
    lines = ["#include <string.h>"]
    lines += [f"int {name}_main(int argc, char **argv);" for name in (*names, _INIT)]
    lines += ["int main(int argc, char **argv)", "{"]
    lines += ["const char *slash = strrchr(argv[0], '/'), *name = slash ? slash + 1 : argv[0];"]
    lines += [f'if (!strcmp(name, "{name}")) return {name}_main(argc, argv);' for name in names]
    lines += [f"return {_INIT}_main(argc, argv);", "}"]
    return "".join(f"{line}\n" for line in lines)


def _compile(source: Path, options: Iterable[str], scratch: Path, log: Log) -> Path:
    target = scratch / f"{source.stem}.o"
    argv: list[str | Path] = ["gcc", *FLAGS, *options, "-c", "-o", target, source]
    run(argv, log=log, what=f"the guest's {source.name} does not compile")
    return target
