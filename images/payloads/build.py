# SPDX-License-Identifier: GPL-2.0-or-later
"""Build the payloads: every ``NAME.S`` and ``NAME.c`` here becomes the flat image ``NAME.bin``.

A source names the begin of its image in a comment, ``payload: base=0xfffff000``; the image ends at 4 GiB and
holds the reset vector, as a TD's firmware does.  ``lib/*.S`` and ``lib/*.c`` are linked to the payloads that
refer to them; ``include/`` is on the search path.
"""

from __future__ import annotations

import re
from pathlib import Path

from images import freestanding
from images.cache import Artefact, Cache, digest_files
from images.commands import Log, run
from images.errors import BuildError
from images.freestanding import END
from images.progress import Reporter
from images.recipe import Recipe, Work
from images.tools import versions

_HERE = Path(__file__).parent
_INPUTS = ("*.S", "*.c", "*.h", "*.ld", "include/**/*.h", "lib/*.S", "lib/*.c", "build.py")
_TOOLS = (*freestanding.TOOLS, "ar", "setpriv")
_BASE = re.compile(r"payload:\s*base=(0x[0-9a-fA-F]+)")
_PAGE = 4096
_LONGEST = 1 << 20


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
    if base % _PAGE or not END - _LONGEST <= base < END:
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
        return {
            "files": digest_files(_HERE, _INPUTS) | digest_files(_HERE.parent, ("freestanding.py",)),
            "tools": versions("gcc", "ld", "objcopy"),
        }

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
    library = [_compile(source, sources, objects, log) for source in freestanding.sources(sources / "lib")]
    archive = objects / "lib.a"
    if library:
        run(["ar", "rcsD", archive, *library], log=log, what="archiving the payloads' library failed")
    bases: dict[str, int] = {}
    for source in freestanding.sources(sources):
        if source.stem in bases:
            raise BuildError(f"two payloads are named {source.stem}", hint=f"rename {source}")
        bases[source.stem] = base_of(source)
        freestanding.link(
            sources / "payload.ld",
            ("payload_base", bases[source.stem]),
            [_compile(source, sources, objects, log), *([archive] if library else [])],
            out / f"{source.stem}.bin",
            log,
            f"the payload {source.name}",
        )
    return bases


def _compile(source: Path, sources: Path, objects: Path, log: Log) -> Path:
    return freestanding.compile_source(source, [sources / "include"], objects, log, "the payload")


def find(cache: Cache) -> Artefact | None:
    """The finished payloads for the present sources, or None."""
    return Payloads().find(cache)


def ensure(cache: Cache, reporter: Reporter) -> Artefact:
    """The payloads, built if they are not in the cache.

    :raises BuildError: a payload does not build.
    """
    return Payloads().ensure(cache, reporter)
