# SPDX-License-Identifier: GPL-2.0-or-later
"""Build the payloads: every ``NAME.S`` and ``NAME.c`` here becomes the flat image ``NAME.bin``.

A source names the begin of its image in a comment, ``payload: base=0xfffff000``; the image ends at 4 GiB and
holds the reset vector, as a TD's firmware does.  ``lib/*.S`` and ``lib/*.c`` are linked to the payloads that
refer to them; ``include/`` is on the search path.  C is compiled position-independent, without a red zone,
SSE or a libc.
"""

from __future__ import annotations

import re
from pathlib import Path

from images.cache import Artefact, Cache, digest_files
from images.commands import Log, run
from images.errors import BuildError
from images.progress import Reporter
from images.recipe import Recipe, Work
from images.tools import versions

_HERE = Path(__file__).parent
_INPUTS = ("*.S", "*.c", "*.h", "*.ld", "include/**/*.h", "lib/*.S", "lib/*.c", "build.py")
_TOOLS = ("gcc", "ld", "ar", "objcopy", "setpriv")
_BASE = re.compile(r"payload:\s*base=(0x[0-9a-fA-F]+)")
_END = 1 << 32
_PAGE = 4096
_LONGEST = 1 << 20
_FLAGS = (
    *("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-g0", "-ffreestanding", "-nostdlib", "-nostdinc"),
    *("-m64", "-fpie", "-fvisibility=hidden", "-mno-red-zone", "-mgeneral-regs-only", "-fcf-protection=none"),
    *("-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fno-exceptions", "-fno-builtin"),
    *("-fno-jump-tables", "-Wa,--noexecstack"),
)


def base_of(source: Path) -> int:
    """The guest-physical address at which a payload's image begins; its size is 4 GiB minus that.

    :raises BuildError: the source names none, or an impossible one.
    """
    match = _BASE.search(source.read_text())
    if match is None:
        raise BuildError(
            f"{source} does not say where it is loaded", hint="add /* payload: base=0xfffff000 */"
        )
    base = int(match[1], 16)
    if base % _PAGE or not _END - _LONGEST <= base < _END:
        raise BuildError(
            f"{source}: base {base:#x} is not a page in the {_LONGEST >> 10} KiB below 4 GiB",
            hint="a payload of one page begins at 0xfffff000",
        )
    return base


class Payloads(Recipe):
    """All payloads, as flat images."""

    kind = "payloads"
    label = "x86_64"
    what = "the payloads"
    tools = _TOOLS
    space = 10_000_000

    def inputs(self) -> dict[str, object]:
        return {"files": digest_files(_HERE, _INPUTS), "tools": versions("gcc", "ld", "objcopy")}

    def make(self, work: Work) -> dict[str, object]:
        with work.reporter.step("payloads: building"):
            bases = build_all(_HERE, work.scratch, work.out, work.log)
        return {"bases": {name: hex(base) for name, base in bases.items()}}


def images_of(artefact: Artefact) -> dict[str, Path]:
    """Name → flat image."""
    return {path.stem: path for path in sorted(artefact.path.glob("*.bin"))}


def build_all(sources: Path, scratch: Path, out: Path, log: Log) -> dict[str, int]:
    """Build every payload of a folder into ``out``; returns name → base.  The objects go to ``scratch``."""
    out.mkdir(exist_ok=True)
    objects = scratch / "objects"
    objects.mkdir()
    library = [_compile(source, sources, objects, log) for source in _sources(sources / "lib")]
    archive = objects / "lib.a"
    if library:
        run(["ar", "rcsD", archive, *library], log=log, what="archiving the payloads' library failed")
    bases: dict[str, int] = {}
    for source in _sources(sources):
        if source.stem in bases:
            raise BuildError(f"two payloads are named {source.stem}", hint=f"rename {source}")
        base = bases[source.stem] = base_of(source)
        linked = objects / f"{source.stem}.elf"
        run(
            [
                *("ld", "-nostdlib", "-static", "--no-dynamic-linker", "-z", "noexecstack"),
                *("--fatal-warnings", "--no-warn-rwx-segments"),
                f"--defsym=payload_base={base:#x}",
                *("-T", sources / "payload.ld", "-o", linked),
                _compile(source, sources, objects, log),
                *([archive] if library else []),
            ],
            log=log,
            what=f"linking the payload {source.name} failed",
        )
        image = out / f"{source.stem}.bin"
        run(["objcopy", "-O", "binary", linked, image], log=log, what=f"{source.name}: objcopy failed")
        if image.stat().st_size != _END - base:
            raise BuildError(
                f"{source.name}: the image has {image.stat().st_size} bytes instead of {_END - base}",
                hint="payload.ld has to name every section of it",
                log=log.path,
            )
    return bases


def _sources(folder: Path) -> list[Path]:
    return sorted([*folder.glob("*.S"), *folder.glob("*.c")])


def _compile(source: Path, sources: Path, objects: Path, log: Log) -> Path:
    target = objects / f"{source.parent.name}-{source.name}.o"
    run(
        ["gcc", *_FLAGS, "-I", sources / "include", "-c", "-o", target, source],
        log=log,
        what=f"the payload {source.name} does not compile",
    )
    return target


def find(cache: Cache) -> Artefact | None:
    """The finished payloads for the present sources, or None."""
    return Payloads().find(cache)


def ensure(cache: Cache, reporter: Reporter) -> Artefact:
    """The payloads, built if they are not in the cache.

    :raises BuildError: a payload does not build.
    """
    return Payloads().ensure(cache, reporter)
