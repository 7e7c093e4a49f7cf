# SPDX-License-Identifier: GPL-2.0-or-later
"""Packages that the machine needs: the one list, for set-up and for each build.

Only the standard library: set-up runs on a bare python3.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

_SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")


@dataclass(frozen=True)
class Need:
    """A package that has to be installed.

    :param package: its name in Debian.
    :param shows: evidence of it on any distribution: commands, absolute paths, and ``python:NAME`` for
        modules of the running interpreter.  All of them have to exist; ``a|b`` is an alternative.
    """

    package: str
    what_for: str
    shows: tuple[str, ...]

    def is_met(self) -> bool:
        return all(map(is_there, self.shows))


_KEYRING = "/usr/share/keyrings/debian-archive-keyring"
NEEDS = (
    Need("tox", "running the suite and its checks", ("tox",)),
    Need("python3-venv", "tox's environments", ("python:venv", "python:ensurepip")),
    Need("qemu-system-x86", "the nested host", ("qemu-system-x86_64",)),
    Need("debian-archive-keyring", "signatures of packages", (f"{_KEYRING}.gpg|{_KEYRING}.pgp",)),
    Need("gpgv", "signatures of packages", ("gpgv|sqv",)),  # Its package decides which of them apt runs.
    Need("mmdebstrap", "the root file system", ("mmdebstrap",)),
    Need("uidmap", "the root file system, without root", ("newuidmap",)),
    Need("fakeroot", "the root file system", ("fakeroot",)),
    Need("e2fsprogs", "disk images", ("mke2fs",)),
    Need("gcc", "the kernel, init, payloads, firmware", ("gcc",)),
    Need("binutils", "the kernel, init, payloads, firmware", ("ld", "strip", "objcopy", "ar")),
    Need(
        "libc6-dev",
        "init, and the kernel's own tools",
        ("/usr/lib/x86_64-linux-gnu/libc.a|/usr/lib64/libc.a",),
    ),
    Need("make", "the kernel", ("make",)),
    Need("flex", "the kernel", ("flex",)),
    Need("bison", "the kernel", ("bison",)),
    Need("bc", "the kernel", ("bc",)),
    Need("perl", "the kernel", ("perl",)),
    Need("libelf-dev", "the kernel's objtool", ("/usr/include/gelf.h",)),
    Need("patch", "the kernel", ("patch",)),
    Need("xz-utils", "the kernel's source", ("xz",)),
    Need("tar", "the kernel's source, the root file system", ("tar",)),
    Need("coreutils", "the root in which QEMU is built", ("chroot",)),
    Need("mount", "the root in which QEMU is built", ("mount",)),
    Need("util-linux", "processes that end with the build", ("setpriv", "unshare", "chrt")),
    Need("apt", "the sources of kernel and QEMU", ("apt-get",)),
    Need("dpkg", "the sources of kernel and QEMU", ("dpkg", "dpkg-deb")),
)
"""Everything that a part of the project runs or needs; a build names its commands, this list the packages."""


def package_of(command: str) -> str:
    """The Debian package of a command that a build runs."""
    return next(need.package for need in NEEDS if command in need.shows)


def is_there(shown: str) -> bool:
    """Return whether a piece of evidence of :class:`Need` exists."""
    return any(map(_exists, shown.split("|")))


def _exists(item: str) -> bool:
    kind, _, name = item.rpartition(":")
    if kind == "python":
        return importlib.util.find_spec(name) is not None
    if item.startswith("/"):
        return Path(item).exists()
    return shutil.which(item, path=search_path()) is not None


def search_path() -> str:
    """Return the PATH of tools: the user's, and the sbin folders, which contain mke2fs."""
    path = os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin").split(":")
    return ":".join([*path, *(folder for folder in _SYSTEM_FOLDERS if folder not in path)])
