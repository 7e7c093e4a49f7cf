# SPDX-License-Identifier: GPL-2.0-or-later
"""Building the payloads: every ``NAME.S`` and ``NAME.c`` here becomes the flat image ``NAME.bin``.

A source says where its image begins in a comment, ``payload: base=0xfffff000``; the image ends at 4 GiB and
holds the reset vector, as a TD's firmware does.  ``lib/*.S`` and ``lib/*.c`` are linked to the payloads that
refer to them; ``include/`` is on the search path.  C is compiled position-independent, without a red zone,
SSE or a libc.
"""

from __future__ import annotations

import re
from pathlib import Path

from images import tools
from images.cache import Artefact, Cache, digest_files, digest_inputs
from images.commands import Log, require_tools, run
from images.errors import BuildError
from images.progress import Reporter

KIND = "payloads"
_HERE = Path(__file__).parent
_LABEL = "x86_64"
_INPUTS = ("*.S", "*.c", "*.h", "*.ld", "include/**/*.h", "lib/*.S", "lib/*.c", "build.py")
_TOOLS = {"gcc": "gcc", "ld": "binutils", "ar": "binutils", "objcopy": "binutils", "setpriv": "util-linux"}
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

    :raises BuildError: the source does not say, or says something impossible.
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


def inputs() -> dict[str, object]:
    """Everything that the payloads are made from."""
    return {"files": digest_files(_HERE, _INPUTS), "tools": tools.versions("gcc", "ld", "objcopy")}


def find(cache: Cache) -> Artefact | None:
    """The finished payloads for the present sources, or None."""
    return cache.find(KIND, _LABEL, digest_inputs(inputs()))


def ensure(cache: Cache, reporter: Reporter) -> Artefact:
    """The payloads, built if they are not in the cache.

    :raises BuildError: one does not build.
    """
    require_tools(_TOOLS, "the payloads")
    wanted = inputs()
    content_hash = digest_inputs(wanted)
    if found := cache.find(KIND, _LABEL, content_hash):
        return found
    with cache.lock(KIND, reporter):
        if found := cache.find(KIND, _LABEL, content_hash):
            return found
        with (
            cache.new_log(KIND) as log,
            cache.scratch(KIND) as scratch,
            reporter.step("payloads: building"),
        ):
            out = scratch / "out"
            bases = build_all(_HERE, scratch, out, log)
            manifest = {"inputs": wanted, "bases": {name: hex(base) for name, base in bases.items()}}
            return cache.publish(out, KIND, _LABEL, content_hash, manifest)


def images_of(artefact: Artefact) -> dict[str, Path]:
    """Name → flat image."""
    return {path.stem: path for path in sorted(artefact.path.glob("*.bin"))}


def build_all(sources: Path, scratch: Path, out: Path, log: Log) -> dict[str, int]:
    """Build every payload of a folder; returns name → base.  ``scratch`` takes the objects."""
    out.mkdir()
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
                hint="everything has to stand in sections that payload.ld knows",
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
