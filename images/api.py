# SPDX-License-Identifier: GPL-2.0-or-later
"""The images that the fixtures use, built when they are missing.

Importing is cheap and has no side effects.  Builds report their progress on standard error and raise
:class:`images.errors.BuildError` when they fail.  ``cache`` is the user's cache folder by default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from images.cache import Cache
from images.machine import BootImages
from images.progress import Reporter, reporter

if TYPE_CHECKING:
    from images.kernel.mutants import Mutant


@dataclass(frozen=True)
class KernelImage:
    """A kernel and its modules.

    :param modules: folder with kvm.ko, kvm-intel.ko, irqbypass.ko … and ``autoload``, the list for init.
    :param modules_image: the same as a raw ext4 image, the guest's second disk
        (``tdx_e2e.modules=/dev/vdb``).
    :param flavour: its name; ``<flavour>-tree`` if a user's tree was built, which may hold more than that.
    :param patch_hash: 12 hexadecimal digits over hooks, softseam and the flavour's patches.
    """

    bzimage: Path
    modules: Path
    modules_image: Path
    flavour: str
    patch_hash: str


@dataclass(frozen=True)
class GuestImages:
    """Linux for TDs: Debian's kernel and firmware as they are, and an initramfs of ours.

    :param kernel: for QEMU's ``-kernel``.
    :param initrd: for ``-initrd``; ``images/guests/init`` describes what it does.
    :param firmware: for ``-bios``; its keys are Microsoft's, so it starts this kernel only behind a shim.
    :param open_firmware: the same without its platform key, so without Secure Boot.
    :param image: a raw ext4 image with the others, for a nested host.
    :param kernel_release: what ``uname -r`` prints in the guest.
    """

    kernel: Path
    initrd: Path
    firmware: Path
    open_firmware: Path
    image: Path
    kernel_release: str


def ensure_kernel(
    flavour: str = "upstream",
    kernel_tree: Path | None = None,
    *,
    version: str | None = None,
    mirror: str | None = None,
    cache: Cache | None = None,
    report: Reporter | None = None,
) -> KernelImage:
    """Returns the kernel, built when missing: ten minutes from nothing, less than two after a change.

    :param kernel_tree: a user's tree instead of Debian's source; it is not modified.
    :param version: of Debian's source (``7.3``, ``7.3.4``, ``7.3.4-1~bpo13+1``); 7.3 by default.
    :param mirror: URI of a Debian archive; $TDX_E2E_MIRROR or the host's by default.
    :raises BuildError: see the module.
    """
    from images.kernel import build

    request = build.Request(flavour, kernel_tree, version)
    found = build.ensure(cache or Cache(), request, report or reporter(), mirror=mirror)
    return KernelImage(
        bzimage=found.path / build.BZIMAGE,
        modules=found.path / build.MODULES,
        modules_image=found.path / build.MODULES_IMAGE,
        flavour=found.label,
        patch_hash=found.manifest()["patch_hash"],
    )


def kernel_versions(
    *, mirror: str | None = None, cache: Cache | None = None, report: Reporter | None = None
) -> list[str]:
    """Returns the versions of Debian's source that can be TDX hosts: the newest of each series, oldest first.

    :raises BuildError: no network.
    """
    from images.kernel import source

    return source.offered(cache or Cache(), report or reporter(), mirror=mirror)


def kernel_misfits(
    version: str | None = None,
    *,
    cache: Cache | None = None,
    report: Reporter | None = None,
) -> dict[str, str]:
    """Returns flavour → why its patches do not apply to a version that was built, empty where they do.

    :param version: None for the usual one.
    """
    from images.kernel import fit

    return fit.of_kept(cache or Cache(), version, report or reporter(), fit.misfits) or {}


def mutant_misfits(
    mutants: Sequence[Mutant], *, cache: Cache | None = None, report: Reporter | None = None
) -> dict[str, str] | None:
    """Returns mutant → why it does not apply to the usual version; None without the tree of its build.

    :raises BuildError: the patches of a mutant's base do not apply.
    """
    from images.kernel import fit

    return fit.of_kept(cache or Cache(), None, report or reporter(), fit.mutant_misfits(mutants))


def kernel_key(flavour: str, *, cache: Cache | None = None) -> str:
    """Returns the content hash of a kernel from Debian's source, built or not; empty before its first build.

    :raises BuildError: the flavour does not exist.
    """
    from images.kernel import build

    return build.key(cache or Cache(), build.Request(flavour))


def forget(image: Path, *, cache: Cache | None = None) -> None:
    """Remove the artefact that contains a file from the cache."""
    store = cache or Cache()
    for made in store.artefacts():
        if made.path == image.parent:
            store.discard(made)


def kernel_headers(
    flavour: str = "upstream",
    kernel_tree: Path | None = None,
    *,
    version: str | None = None,
    cache: Cache | None = None,
    report: Reporter | None = None,
) -> dict[str, str]:
    """Returns path → text of KVM's uAPI headers, as a kernel that was built has them; empty without source.

    :raises BuildError: see the module.  The parameters are those of :func:`ensure_kernel`.
    """
    from images.kernel import build, uapi

    return uapi.headers(cache or Cache(), build.Request(flavour, kernel_tree, version), report or reporter())


def ensure_rootfs(
    *, mirror: str | None = None, cache: Cache | None = None, report: Reporter | None = None
) -> Path:
    """Returns the image of the root file system, built when missing: a minute from nothing.

    :raises BuildError: see the module.  The parameters are those of :func:`ensure_kernel`.
    """
    from images.rootfs.build import IMAGE, ROOTFS

    return ROOTFS.ensure(cache or Cache(), report or reporter(), mirror=mirror).path / IMAGE


def ensure_qemu(
    tree: Path | None = None,
    *,
    mirror: str | None = None,
    cache: Cache | None = None,
    report: Reporter | None = None,
) -> Path:
    """Returns the image of a disk with the QEMU that moves TDs, built when missing: three minutes.

    :param tree: a user's QEMU instead of upstream's with our patches; it is not modified.
    :raises BuildError: see the module.  The other parameters are those of :func:`ensure_kernel`.
    """
    from images.qemu import build

    return build.ensure(cache or Cache(), report or reporter(), tree=tree, mirror=mirror).path / build.IMAGE


def ensure_selftests(
    tree: Path, word: str = "", *, cache: Cache | None = None, report: Reporter | None = None
) -> dict[str, Path]:
    """Returns name → program of a kernel tree's KVM selftests, static, built when missing: minutes.

    :param tree: a user's kernel tree; it is not modified.
    :param word: build only those whose name contains it, if there are any.
    :raises BuildError: see the module.  The other parameters are those of :func:`ensure_kernel`.
    """
    from images.selftests import build

    recipe = build.Selftests(tree, build.matching(build.programs(tree), word))
    return build.programs_of(recipe.ensure(cache or Cache(), report or reporter()))


def ensure_guests(
    *, mirror: str | None = None, cache: Cache | None = None, report: Reporter | None = None
) -> GuestImages:
    """Returns the Linux for TDs, built when missing: a minute from nothing.

    :raises BuildError: see the module.  The parameters are those of :func:`ensure_kernel`.
    """
    from images.guests import build

    found = build.ensure(cache or Cache(), report or reporter(), mirror=mirror)
    return GuestImages(
        kernel=found.path / build.KERNEL,
        initrd=found.path / build.INITRD,
        firmware=found.path / build.FIRMWARE,
        open_firmware=found.path / build.OPEN_FIRMWARE,
        image=found.path / build.IMAGE,
        kernel_release=found.manifest()["version"],
    )


def ensure_guest_selftest(
    kernel_tree: Path | None = None, *, cache: Cache | None = None, report: Reporter | None = None
) -> Path:
    """Returns a disk whose bytes are the kernel's tdx_guest_test, for a guest to copy and run.

    :param kernel_tree: a kernel's source; by default Debian's, which is there once a kernel was built.
    :raises BuildError: there is none, or the test does not compile.
    """
    from images.guests import selftest

    return selftest.ensure(cache or Cache(), report or reporter(), tree=kernel_tree).path / selftest.IMAGE


def boot_images(
    kernel: KernelImage, rootfs: Path, qemu: Path | None = None, guests: Path | None = None
) -> BootImages:
    """Returns the files that a nested host boots."""
    return BootImages(
        kernel=kernel.bzimage,
        modules=kernel.modules_image,
        rootfs=rootfs,
        flavour=kernel.flavour,
        patch_hash=kernel.patch_hash,
        qemu=qemu,
        guests=guests,
    )


def ensure_payloads(*, cache: Cache | None = None, report: Reporter | None = None) -> dict[str, Path]:
    """Returns name → flat image, built when missing (a second).

    An image ends at 4 GiB: it is loaded at 4 GiB minus its size, a multiple of 4096.

    :raises BuildError: see the module.
    """
    from images.payloads import build

    return build.images_of(build.ensure(cache or Cache(), report or reporter()))


def ensure_firmware(*, cache: Cache | None = None, report: Reporter | None = None) -> Path:
    """Returns the firmware with which a TD starts the kernel of QEMU's ``-kernel``, built when missing.

    :raises BuildError: see the module.
    """
    from images.firmware import build

    return build.ensure(cache or Cache(), report or reporter()).path / build.IMAGE
