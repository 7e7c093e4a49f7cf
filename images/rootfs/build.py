# SPDX-License-Identifier: GPL-2.0-or-later
"""Building the nested host's root file system."""

from __future__ import annotations

import shutil
from pathlib import Path

from images import ext4, tools
from images.cache import Artefact, Cache, digest_files, digest_inputs, remove_tree
from images.commands import Log, require_tools, run
from images.mmdebstrap import SUITE, TAR
from images.progress import Reporter
from images.qemu import build as qemu_build
from images.rootfs.base import DEBIAN

KIND = "rootfs"
IMAGE = "rootfs.ext4"

_HERE = Path(__file__).parent
_INPUTS = ("init.c", "bootstrap.py", "sshd_config")
_UUID = "3d7a2f10-7d3e-4c1b-9a56-0d0b1c3e5f01"
_NEEDED_BYTES = 1_000_000_000
_TOOLS = {
    "mke2fs": "e2fsprogs",
    "fakeroot": "fakeroot",
    "gcc": "gcc",
    "tar": "tar",
    "setpriv": "util-linux",
}
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


def inputs(qemu: str) -> dict[str, object]:
    """Everything that the image is made from.

    :param qemu: content hash of the QEMU that it takes along.
    """
    return {
        "base": digest_inputs(DEBIAN.inputs()),
        "qemu": qemu,
        "files": digest_files(_HERE, _INPUTS),
        "recipe": digest_files(_HERE, ("build.py",)) | digest_files(_HERE.parent, ("ext4.py",)),
        "tools": tools.versions("gcc", "ld", "mke2fs"),
    }


def _label(qemu_tree: Path | None) -> str:
    return SUITE if qemu_tree is None else f"{SUITE}-tree"


def find(cache: Cache, qemu_tree: Path | None = None) -> Artefact | None:
    """The finished image for the present inputs, or None.

    :param qemu_tree: a QEMU tree of the user's, whose binary it has instead of ours.
    :raises BuildError: it is no QEMU tree.
    """
    qemu = qemu_build.content_hash(cache, qemu_tree)
    return cache.find(KIND, _label(qemu_tree), digest_inputs(inputs(qemu))) if qemu else None


def ensure(
    cache: Cache, reporter: Reporter, *, qemu_tree: Path | None = None, mirror: str | None = None
) -> Artefact:
    """The image, built if it is not in the cache, and before it the QEMU that it takes along.

    :param qemu_tree: see :func:`find`.
    :param mirror: URI of a Debian archive; the host's by default.
    :raises BuildError: it cannot be built.
    """
    require_tools(_TOOLS, "the root file system")
    if found := find(cache, qemu_tree):
        return found
    # Its own lock is released before ours is taken.
    qemu = qemu_build.ensure(cache, reporter, tree=qemu_tree, mirror=mirror)
    wanted = inputs(qemu.content_hash)
    content_hash, label = digest_inputs(wanted), _label(qemu_tree)
    with cache.lock(KIND, reporter):
        if found := cache.find(KIND, label, content_hash):
            return found
        cache.require_space(_NEEDED_BYTES, "the root file system")
        with cache.new_log(KIND) as log, cache.scratch(KIND) as scratch:
            reporter.note(f"building the root file system; log: {log.path}")
            first = len(reporter.timings)
            packages = DEBIAN.ensure(cache, reporter, log, mirror=mirror)
            _build(scratch, packages.path / TAR, qemu.path / qemu_build.BINARY, reporter, log)
            manifest = {
                "inputs": wanted,
                "packages": packages.manifest()["packages"],
                "steps": dict(reporter.timings[first:]),
            }
            out = scratch / "out"
            (out / "build.log").write_bytes(log.path.read_bytes())
            return cache.publish(out, KIND, label, content_hash, manifest)


def _build(scratch: Path, tar: Path, qemu: Path, reporter: Reporter, log: Log) -> None:
    """Leaves the image in ``scratch/out``."""
    tree, out, state = (scratch / name for name in ("tree", "out", "owners"))
    out.mkdir()
    tree.mkdir()
    with reporter.step("rootfs: unpacking"):
        excludes = [f"--exclude={pattern}" for pattern in _NOT_IN_IMAGE]
        # fakeroot remembers the owners that the files ought to have, and tells mke2fs.
        run(
            [
                *("fakeroot", "-s", str(state), "--"),
                *("tar", "-x", "-p", "--numeric-owner", *excludes, "-f", str(tar), "-C", str(tree)),
            ],
            log=log,
            what="unpacking the root file system failed",
        )
        _install_ours(tree, qemu, log)
    with reporter.step("rootfs: writing the image"):
        under = ("fakeroot", "-i", str(state), "--")
        ext4.make_image(tree, out / IMAGE, label="tdx-e2e-root", uuid=_UUID, log=log, under=under)
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
