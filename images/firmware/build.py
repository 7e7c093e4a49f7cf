# SPDX-License-Identifier: GPL-2.0-or-later
"""Build the firmware: all sources here become one flat image for QEMU's ``-bios``.

It is written for QEMU's q35 and for Linux' 64-bit boot protocol, and trusts the VMM: for tests.  Its metadata
(``metadata.S``) are those of Intel's "TDX Virtual Firmware Design Guide".
"""

from __future__ import annotations

import re
from pathlib import Path

from images import freestanding
from images.cache import Artefact, Cache, digest_files
from images.errors import BuildError
from images.payloads import build as payloads
from images.progress import Reporter
from images.recipe import Recipe, Work
from images.tools import versions

IMAGE = "firmware.fd"

_HERE = Path(__file__).parent
_PAYLOADS = Path(payloads.__file__).parent
_SHARED = ("include/tdx.h", "lib/vmcall.S")
"""What it has of the payloads."""
_TOOLS = (*freestanding.TOOLS, "setpriv")
_BASE = re.compile(r"#define FIRMWARE_GPA\s+(0x[0-9a-f]+)")


class Firmware(Recipe):
    """The firmware."""

    kind = "firmware"
    label = "x86_64"
    what = "the firmware"
    tools = _TOOLS
    space = 10_000_000

    def inputs(self) -> dict[str, object]:
        return {
            "files": digest_files(_HERE, ("*.S", "*.c", "*.h", "*.ld", "build.py")),
            "shared": digest_files(_PAYLOADS, _SHARED) | digest_files(_HERE.parent, ("freestanding.py",)),
            "tools": versions("gcc", "ld", "objcopy"),
        }

    def make(self, work: Work) -> dict[str, object]:
        with work.reporter.step("firmware: building"):
            objects = work.scratch / "objects"
            objects.mkdir()
            base = _base()
            compiled = [
                freestanding.compile_source(
                    source, [_HERE, _PAYLOADS / "include"], objects, work.log, "the firmware's"
                )
                for source in (*freestanding.sources(_HERE), _PAYLOADS / "lib/vmcall.S")
            ]
            image = work.out / IMAGE
            freestanding.link(
                _HERE / "firmware.ld", ("firmware_base", base), compiled, image, work.log, "the firmware"
            )
        return {"base": hex(base)}


def _base() -> int:
    match = _BASE.search((_HERE / "layout.h").read_text())
    if match is None:
        raise BuildError("images/firmware/layout.h does not say where the firmware begins")
    return int(match[1], 16)


def find(cache: Cache) -> Artefact | None:
    """The finished firmware for the present sources, or None."""
    return Firmware().find(cache)


def ensure(cache: Cache, reporter: Reporter) -> Artefact:
    """The firmware, built if it is not in the cache.

    :raises BuildError: it does not build.
    """
    return Firmware().ensure(cache, reporter)
