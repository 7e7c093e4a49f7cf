# SPDX-License-Identifier: GPL-2.0-or-later
"""Build the nested host's root file system."""

from __future__ import annotations

from pathlib import Path

from images import ext4
from images.cache import digest_files, remove_tree
from images.commands import Log, run
from images.mmdebstrap import SUITE, TAR
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
_EMPTY_FOLDERS = ("dev", "proc", "sys", "run", "tmp", "root", "var/tmp", "var/log", "usr/lib/tdx-e2e/qemu")


class Rootfs(Recipe):
    """The nested host's root file system."""

    kind = "rootfs"
    label = SUITE
    what = "the root file system"
    space = 1_000_000_000
    tools = _TOOLS

    def inputs(self) -> dict[str, object]:
        return {
            "base": DEBIAN.key(),
            "files": digest_files(_HERE, _INPUTS),
            "recipe": digest_files(_HERE, ("build.py",)) | digest_files(_HERE.parent, ("ext4.py",)),
            "tools": versions("gcc", "ld", "mke2fs"),
        }

    def make(self, work: Work) -> dict[str, object]:
        debian = DEBIAN.ensure(work.cache, work.reporter, mirror=work.mirror)
        _build(debian.path / TAR, work)
        return {"packages": debian.manifest()["packages"]}


def _build(tar: Path, work: Work) -> None:
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
        _install_ours(tree, work.log)
    with work.reporter.step("rootfs: writing the image"):
        under = ("fakeroot", "-i", str(state), "--")
        image = work.out / IMAGE
        ext4.make_image(tree, image, label="tdx-e2e-root", uuid=_UUID, log=work.log, under=under)
    remove_tree(tree)


def _install_ours(tree: Path, log: Log) -> None:
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
    _write(tree / "etc/ssh/tdx_e2e_sshd_config", (_HERE / "sshd_config").read_text())
    _write(tree / "etc/hostname", "tdx-e2e\n")
    _write(tree / "etc/hosts", "127.0.0.1 localhost tdx-e2e\n")
    _write(tree / "usr/sbin/poweroff", "#!/bin/sh\nexec kill -USR2 1\n", 0o755)
    _write(tree / "usr/sbin/reboot", "#!/bin/sh\nexec kill -TERM 1\n", 0o755)


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    path.unlink(missing_ok=True)
    path.write_text(text)
    path.chmod(mode)


ROOTFS = Rootfs()
