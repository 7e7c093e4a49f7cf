# SPDX-License-Identifier: GPL-2.0-or-later
"""Build the Linux that tests boot as a TD: kernel, initramfs, firmware, and a disk with all three."""

from __future__ import annotations

import shutil
from pathlib import Path

from images import ext4
from images.cache import Artefact, Cache, digest_files
from images.commands import require_tools
from images.errors import BuildError
from images.guests import compiled, cpio, modules, ovmf, packages
from images.guests.packages import Packages
from images.mmdebstrap import SUITE
from images.progress import Reporter
from images.recipe import Recipe, Work
from images.sources import first_that_builds
from images.tools import versions

KERNEL, INITRD, FIRMWARE = "vmlinuz", "initrd", "OVMF.fd"
OPEN_FIRMWARE = "OVMF.open.fd"
"""The same firmware without its platform key: it starts kernels that nobody has verified."""

IMAGE = "guests.ext4"
"""A disk with all of them, for a nested host."""

_HERE = Path(__file__).parent
_INPUTS = ("init/*.[ch]", "programs/*.c", "programs/*.sh")
_RECIPE = ("build.py", "compiled.py", "cpio.py", "modules.py", "ovmf.py")
_SHARED_RECIPE = ("ext4.py",)
_UUID = "3d7a2f10-7d3e-4c1b-9a56-0d0b1c3e5f04"
_TOOLS = ("apt-get", "dpkg", "dpkg-deb", "gpgv|sqv", "gcc", "ld", "mke2fs", "setpriv")
_BUSYBOX = "usr/bin/busybox"
_OVMF = "usr/share/ovmf"
_MODULES = "lib/modules"
_CONSOLE = (5, 1)


class Guests(Recipe):
    """Linux for TDs."""

    kind = "guests"
    label = SUITE
    what = "the Linux for TDs"
    tools = _TOOLS
    space = 400_000_000

    def __init__(self, made_of: Packages) -> None:
        self.made_of = made_of

    def inputs(self) -> dict[str, object]:
        return {
            "packages": self.made_of.identity(),
            "files": digest_files(_HERE, _INPUTS),
            "recipe": digest_files(_HERE, _RECIPE) | digest_files(_HERE.parent, _SHARED_RECIPE),
            "tools": versions("gcc", "ld", "mke2fs"),
        }

    def make(self, work: Work) -> dict[str, object]:
        kernel, busybox, firmware = (packages.unpack(work, source) for source in self.made_of.each())
        with work.reporter.step("guests: writing the images"):
            release = _one(kernel / "boot", "vmlinuz-*").name.removeprefix("vmlinuz-")
            disk = work.scratch / "disk"
            disk.mkdir()
            shutil.copyfile(kernel / f"boot/vmlinuz-{release}", disk / KERNEL)
            shutil.copyfile(_one(firmware / _OVMF, "OVMF.inteltdx*.fd"), disk / FIRMWARE)
            unlocked = ovmf.without(ovmf.PLATFORM_KEY, (disk / FIRMWARE).read_bytes())
            (disk / OPEN_FIRMWARE).write_bytes(unlocked)
            loaded = modules.read(_one(kernel, f"**/modules/{release}"))
            (disk / INITRD).write_bytes(_initrd(loaded, (busybox / _BUSYBOX).read_bytes(), work))
            ext4.make_image(disk, work.out / IMAGE, label="tdx-e2e-guests", uuid=_UUID, log=work.log)
            for path in disk.iterdir():
                path.rename(work.out / path.name)
        used = {source.package: source.version for source in self.made_of.each()}
        return {"version": release, "packages": used, "modules": list(loaded)}


def _one(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise BuildError(
            f"{folder.name} has {len(found)} files {pattern}, not one",
            hint="the package has changed; images/guests/build.py names its files",
        )
    return found[0]


def _initrd(loaded: dict[str, bytes], busybox: bytes, work: Work) -> bytes:
    programs = compiled.programs()
    scripts = sorted((_HERE / "programs").glob("*.sh"))
    autoload = "".join(f"{name}\n" for name in loaded).encode()
    return cpio.archive(
        [
            *map(cpio.folder, ("bin", "dev", "lib", _MODULES)),
            # The kernel opens it for init, which mounts /dev.
            cpio.character_device("dev/console", *_CONSOLE),
            cpio.program("init", compiled.build(work.scratch, work.log).read_bytes()),
            *(cpio.link(f"bin/{name}", "../init") for name in programs),
            *(cpio.program(f"bin/{script.stem}", script.read_bytes()) for script in scripts),
            cpio.program("bin/busybox", busybox),
            # Its shell finds the other commands in itself.
            cpio.link("bin/sh", "busybox"),
            *(cpio.file(f"{_MODULES}/{name}", content) for name, content in loaded.items()),
            cpio.file(f"{_MODULES}/autoload", autoload),
        ]
    )


def recipe(cache: Cache) -> Guests | None:
    """The recipe for the present inputs; None as long as no packages were chosen."""
    used = packages.recall(cache)
    return Guests(used) if used else None


def find(cache: Cache) -> Artefact | None:
    """The finished images for the present inputs, or None."""
    wanted = recipe(cache)
    return wanted.find(cache) if wanted else None


def ensure(cache: Cache, reporter: Reporter, *, mirror: str | None = None, refresh: bool = False) -> Artefact:
    """The images, built if they are not in the cache.

    :param mirror: URI of a Debian archive; the host's by default.
    :param refresh: ask the mirror for newer packages, though the cache has some.
    :raises BuildError: they cannot be built.
    """

    def build(candidate: Packages) -> Artefact:
        return Guests(candidate).ensure(cache, reporter, mirror=mirror)

    require_tools(_TOOLS, Guests.what)
    candidates = packages.candidates(cache, reporter, mirror=mirror, refresh=refresh)
    used, found = first_that_builds(candidates, build, reporter)
    packages.record(cache, used)
    return found
