# SPDX-License-Identifier: GPL-2.0-or-later
"""What the fixtures use of this package: find an image, or have it built.

Importing has no side effects.  ``find_*`` never build and never use the network; ``ensure_*`` build what is
missing, with progress on standard error, and raise :class:`images.errors.BuildError` when that fails.
``cache`` is where images live, the user's cache folder by default.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from images.cache import Artefact, Cache
from images.progress import Reporter, reporter


@dataclass(frozen=True)
class KernelImage:
    """A kernel and its modules.

    :param modules: folder with kvm.ko, kvm-intel.ko, irqbypass.ko … and ``autoload``, what init loads.
    :param modules_image: the same as a raw ext4 image, the guest's second disk
        (``tdx_e2e.modules=/dev/vdb``).
    :param vmlinux: for ``scripts/decode_stacktrace.sh``.
    :param version: of the base, e.g. ``7.3.4``.
    :param release: what ``uname -r`` says.
    :param patch_hash: 12 hexadecimal digits over hooks, softseam and the flavour's patches.
    """

    bzimage: Path
    modules: Path
    modules_image: Path
    vmlinux: Path
    system_map: Path
    config: Path
    log: Path
    flavour: str
    version: str
    release: str
    patch_hash: str
    content_hash: str


@dataclass(frozen=True)
class RootfsImage:
    """A raw ext4 image, mounted read-only by any number of guests.

    :param path: the guest's first disk, with ``root=/dev/vda ro init=/sbin/init``.  Besides Debian's QEMU it
        has ours, ``/usr/lib/tdx-e2e/qemu/qemu-system-x86_64``.
    """

    path: Path
    content_hash: str


def find_kernel(
    flavour: str = "upstream", kernel_tree: Path | None = None, *, cache: Cache | None = None
) -> KernelImage | None:
    """The kernel for the present inputs, if it is in the cache.

    :raises BuildError: there is no such flavour, or ``kernel_tree`` is no kernel tree.
    """
    from images.kernel import build

    found = build.find(cache or Cache(), build.Request(flavour, kernel_tree))
    return _kernel(found) if found else None


def ensure_kernel(
    flavour: str = "upstream",
    kernel_tree: Path | None = None,
    *,
    version: str | None = None,
    mirror: str | None = None,
    refresh: bool = False,
    cache: Cache | None = None,
    report: Reporter | None = None,
) -> KernelImage:
    """The kernel, built when missing: ten minutes from nothing, less than two after a change.

    :param kernel_tree: the user's tree instead of Debian's source; it is not modified.
    :param version: of Debian's source (``7.3``, ``7.3.4``, ``7.3.4-1~bpo13+1``); 7.3 by default.
    :param mirror: URI of a Debian archive; $TDX_E2E_MIRROR or the host's by default.
    :param refresh: ask the mirror whether there is a newer point release than the cache's.
    :raises BuildError: see the module.
    """
    from images.kernel import build

    request = build.Request(flavour, kernel_tree, version)
    return _kernel(
        build.ensure(cache or Cache(), request, report or reporter(), mirror=mirror, refresh=refresh)
    )


def find_rootfs(qemu_tree: Path | None = None, *, cache: Cache | None = None) -> RootfsImage | None:
    """The root file system for the present inputs, if it is in the cache.

    :raises BuildError: ``qemu_tree`` is no QEMU tree.
    """
    from images.rootfs import build

    found = build.find(cache or Cache(), qemu_tree)
    return _rootfs(found) if found else None


def ensure_rootfs(
    qemu_tree: Path | None = None,
    *,
    mirror: str | None = None,
    cache: Cache | None = None,
    report: Reporter | None = None,
) -> RootfsImage:
    """The root file system, built when missing: five minutes from nothing, one after a change.

    :param qemu_tree: the user's, built as it is instead of QEMU's source with our patches; it is not
        modified.
    :param mirror: URI of a Debian archive; $TDX_E2E_MIRROR or the host's by default.
    :raises BuildError: see the module.
    """
    from images.rootfs import build

    return _rootfs(build.ensure(cache or Cache(), report or reporter(), qemu_tree=qemu_tree, mirror=mirror))


def find_payloads(*, cache: Cache | None = None) -> dict[str, Path] | None:
    """Name → flat image for the present sources, if they are in the cache."""
    from images.payloads import build

    found = build.find(cache or Cache())
    return build.images_of(found) if found else None


def ensure_payloads(*, cache: Cache | None = None, report: Reporter | None = None) -> dict[str, Path]:
    """Name → flat image, built when missing (a second).

    An image ends at 4 GiB: it is loaded at 4 GiB minus its size, a multiple of 4096.

    :raises BuildError: see the module.
    """
    from images.payloads import build

    return build.images_of(build.ensure(cache or Cache(), report or reporter()))


def _kernel(artefact: Artefact) -> KernelImage:
    manifest = artefact.manifest()
    folder = artefact.path
    return KernelImage(
        bzimage=folder / "bzImage",
        modules=folder / "modules",
        modules_image=folder / "modules.ext4",
        vmlinux=folder / "vmlinux",
        system_map=folder / "System.map",
        config=folder / "config",
        log=folder / "build.log",
        flavour=manifest["flavour"],
        version=manifest["version"],
        release=manifest["release"],
        patch_hash=manifest["patch_hash"],
        content_hash=artefact.content_hash,
    )


def _rootfs(artefact: Artefact) -> RootfsImage:
    return RootfsImage(artefact.path / "rootfs.ext4", artefact.content_hash)
