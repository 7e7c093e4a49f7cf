# SPDX-License-Identifier: GPL-2.0-or-later
"""Build the nested host's root file system."""

from __future__ import annotations

import shutil
from pathlib import Path

from images import ext4
from images.cache import Artefact, Cache, digest_files, remove_tree
from images.commands import Log, require_tools, run
from images.mmdebstrap import SUITE, TAR
from images.progress import Reporter
from images.qemu import build as qemu_build
from images.recipe import Recipe, Work
from images.rootfs.debian import DEBIAN
from images.tools import versions

IMAGE = "rootfs.ext4"

_HERE = Path(__file__).parent
_INPUTS = ("init.c", "bootstrap.py", "sshd_config")
_UUID = "3d7a2f10-7d3e-4c1b-9a56-0d0b1c3e5f01"
_TOOLS = ("mke2fs", "fakeroot", "gcc", "tar", "setpriv")
_NOT_IN_IMAGE = (
    "./dev/*",
    "./etc/ssh/ssh_host_*",
    "./var/cache/*",
    "./var/lib/apt/*",
    "./var/lib/dpkg/info/*",
    "./usr/lib/x86_64-linux-gnu/gconv/*",
    "./usr/lib/systemd/*",
    "./usr/lib/x86_64-linux-gnu/systemd/*",
)
_EMPTY_FOLDERS = ("dev", "proc", "sys", "run", "tmp", "root", "var/tmp", "var/log", "usr/lib/tdx-e2e")
_QEMU = "usr/lib/tdx-e2e/qemu"


class Rootfs(Recipe):
    """The nested host's root file system.

    :param qemu: key of the QEMU that it takes along.
    :param binary: that QEMU; only :meth:`make` needs it.
    """

    kind = "rootfs"
    what = "the root file system"
    space = 1_000_000_000
    tools = _TOOLS

    def __init__(self, qemu: str, *, of_tree: bool = False, binary: Path | None = None) -> None:
        self.label = f"{SUITE}-tree" if of_tree else SUITE
        self._qemu = qemu
        self._binary = binary

    def inputs(self) -> dict[str, object]:
        return {
            "base": DEBIAN.key(),
            "qemu": self._qemu,
            "files": digest_files(_HERE, _INPUTS),
            "recipe": digest_files(_HERE, ("build.py",)) | digest_files(_HERE.parent, ("ext4.py",)),
            "tools": versions("gcc", "ld", "mke2fs"),
        }

    def make(self, work: Work) -> dict[str, object]:
        assert self._binary is not None
        debian = DEBIAN.ensure(work.cache, work.reporter, mirror=work.mirror)
        _build(debian.path / TAR, self._binary, work)
        return {"packages": debian.manifest()["packages"]}


def _build(tar: Path, qemu: Path, work: Work) -> None:
    tree, state = work.scratch / "tree", work.scratch / "owners"
    tree.mkdir()
    with work.reporter.step("rootfs: unpacking"):
        excludes = [f"--exclude={pattern}" for pattern in _NOT_IN_IMAGE]
        # fakeroot records the owners that the files ought to have; mke2fs gets them from it.
        run(
            [
                *("fakeroot", "-s", str(state), "--"),
                *("tar", "-x", "-p", "--numeric-owner", *excludes, "-f", str(tar), "-C", str(tree)),
            ],
            log=work.log,
            what="unpacking the root file system failed",
        )
        _install_ours(tree, qemu, work.log)
    with work.reporter.step("rootfs: writing the image"):
        under = ("fakeroot", "-i", str(state), "--")
        image = work.out / IMAGE
        ext4.make_image(tree, image, label="tdx-e2e-root", uuid=_UUID, log=work.log, under=under)
    remove_tree(tree)


def _install_ours(tree: Path, qemu: Path, log: Log) -> None:
    for name in _EMPTY_FOLDERS:
        (tree / name).mkdir(parents=True, exist_ok=True)
    init = tree / "usr/sbin/init"
    init.unlink(missing_ok=True)
    run(
        ["gcc", "-static", "-O2", "-Wall", "-Wextra", "-Werror", "-s", "-o", init, _HERE / "init.c"],
        log=log,
        what="compiling init failed",
        hint="libc6-dev is needed",
    )
    _write(tree / "usr/lib/tdx-e2e/bootstrap.py", (_HERE / "bootstrap.py").read_text())
    (tree / _QEMU).mkdir()
    shutil.copyfile(qemu, tree / _QEMU / qemu.name)
    (tree / _QEMU / qemu.name).chmod(0o755)
    _write(tree / "etc/ssh/tdx_e2e_sshd_config", (_HERE / "sshd_config").read_text())
    _write(tree / "etc/hostname", "tdx-e2e\n")
    _write(tree / "etc/hosts", "127.0.0.1 localhost tdx-e2e\n")
    _write(tree / "usr/sbin/poweroff", "#!/bin/sh\nexec kill -USR2 1\n", 0o755)
    _write(tree / "usr/sbin/reboot", "#!/bin/sh\nexec kill -TERM 1\n", 0o755)


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(mode)


def find(cache: Cache, qemu_tree: Path | None = None) -> Artefact | None:
    """The finished image for the present inputs, or None.

    :param qemu_tree: a user's QEMU tree, whose binary the image has instead of ours.
    :raises BuildError: it is not a QEMU tree.
    """
    qemu = qemu_build.recipe(cache, qemu_tree)
    return Rootfs(qemu.key(), of_tree=qemu_tree is not None).find(cache) if qemu else None


def ensure(
    cache: Cache, reporter: Reporter, *, qemu_tree: Path | None = None, mirror: str | None = None
) -> Artefact:
    """The image, built if it is not in the cache, and before it the QEMU that it takes along.

    :param qemu_tree: see :func:`find`.
    :param mirror: URI of a Debian archive; the host's by default.
    :raises BuildError: it cannot be built.
    """
    require_tools(_TOOLS, Rootfs.what)
    if found := find(cache, qemu_tree):
        return found
    qemu = qemu_build.ensure(cache, reporter, tree=qemu_tree, mirror=mirror)
    binary = qemu.path / qemu_build.BINARY
    image = Rootfs(qemu.content_hash, of_tree=qemu_tree is not None, binary=binary)
    return image.ensure(cache, reporter, mirror=mirror)
