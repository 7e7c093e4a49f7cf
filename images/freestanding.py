# SPDX-License-Identifier: GPL-2.0-or-later
"""Compile and link programs that run on nothing but a CPU, as flat images that end at 4 GiB."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from images.commands import Log, run
from images.errors import BuildError

END = 1 << 32
"""The address at which an image ends."""

TOOLS = ("gcc", "ld", "objcopy")

_FLAGS = (
    *("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-g0", "-ffreestanding", "-nostdlib", "-nostdinc"),
    *("-m64", "-fpie", "-fvisibility=hidden", "-mno-red-zone", "-mgeneral-regs-only", "-fcf-protection=none"),
    *("-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fno-exceptions", "-fno-builtin"),
    *("-fno-jump-tables", "-Wa,--noexecstack"),
)


def sources(folder: Path) -> list[Path]:
    """The C and assembler files of a folder."""
    return sorted([*folder.glob("*.S"), *folder.glob("*.c")])


def compile_source(source: Path, includes: Iterable[Path], objects: Path, log: Log, what: str) -> Path:
    """Compile one file, position-independent, without a red zone, SSE or a libc; returns the object.

    :param objects: folder for it.
    :param what: name of the program in messages.
    """
    target = objects / f"{source.parent.name}-{source.name}.o"
    searched = [word for folder in includes for word in ("-I", folder)]
    run(
        ["gcc", *_FLAGS, *searched, "-c", "-o", target, source],
        log=log,
        what=f"{what} {source.name} does not compile",
    )
    return target


def link(
    script: Path, base: tuple[str, int], objects: Sequence[Path], image: Path, log: Log, what: str
) -> None:
    """Link objects to a flat image.

    :param script: the linker's script, which names every section.
    :param base: symbol of the script, and its value, the address at which the image begins.
    :param what: name of the program in messages.
    :raises BuildError: the image does not end at 4 GiB.
    """
    linked = image.with_suffix(".elf")
    name, address = base
    run(
        [
            *("ld", "-nostdlib", "-static", "--no-dynamic-linker", "-z", "noexecstack"),
            *("--fatal-warnings", "--no-warn-rwx-segments", f"--defsym={name}={address:#x}"),
            "-T",
            script,
            "-o",
            linked,
            *objects,
        ],
        log=log,
        what=f"linking {what} failed",
    )
    run(["objcopy", "-O", "binary", linked, image], log=log, what=f"{what}: objcopy failed")
    linked.unlink()
    if image.stat().st_size != END - address:
        raise BuildError(
            f"{what}: the image has {image.stat().st_size} bytes instead of {END - address}",
            hint=f"{script.name} has to name every section of it",
            log=log.path,
        )
