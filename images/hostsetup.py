# SPDX-License-Identifier: GPL-2.0-or-later
"""Install the Debian packages that the machine needs.

This imports only the standard library and this package's errors: it runs on a bare python3, before anything
is installed.
"""

from __future__ import annotations

import getpass
import importlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from images.errors import BuildError
from images.needs import NEEDS, Need

_OLDEST_PYTHON = (3, 11)


def distribution() -> str:
    """The ``ID`` of os-release: ``debian``, ``fedora`` …"""
    try:
        return platform.freedesktop_os_release().get("ID", "")
    except OSError:
        return ""


def missing() -> list[Need]:
    """The packages that are not installed."""
    return [need for need in NEEDS if not need.is_met()]


def install_command(packages: list[str], *, as_root: bool) -> list[list[str]]:
    """The commands that install Debian packages, through sudo when not root."""
    front = [] if as_root else ["sudo"]
    get = [*front, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-o", "DPkg::Lock::Timeout=300"]
    return [[*get, "update"], [*get, "install", "--yes", "--no-install-recommends", *packages]]


def set_up(*, check_only: bool = False) -> int:
    """Install the missing packages, or print their names; returns the exit status.

    :raises BuildError: this machine cannot be used, or the installation failed.
    """
    if platform.machine() != "x86_64" or sys.platform != "linux":
        raise BuildError(
            f"this machine is {sys.platform} on {platform.machine()}; the suite needs Linux on x86_64"
        )
    if sys.version_info < _OLDEST_PYTHON:
        raise BuildError(
            f"Python {platform.python_version()} is too old: 3.11 or newer is needed",
            hint="Debian 12 and newer have it",
        )
    lacking = missing()
    if not lacking:
        print("setup-host: everything that is needed is installed")
        return _check_user()
    for need in lacking:
        print(f"setup-host: missing {need.package} ({need.what_for})")
    packages = [need.package for need in lacking]
    if distribution() != "debian":
        print("setup-host: on Debian these packages would be installed; install your distribution's:")
        print("  " + " ".join(packages))
        return 1
    if check_only:
        print("setup-host: to install: apt-get install " + " ".join(packages))
        return 1
    as_root = os.geteuid() == 0
    if not as_root and shutil.which("sudo") is None:
        raise BuildError(
            "installing packages needs root, and there is no sudo here",
            hint="as root: apt-get install " + " ".join(packages),
        )
    for command in install_command(packages, as_root=as_root):
        print("setup-host: " + shlex.join(command), flush=True)
        status = subprocess.run(
            command, check=False, stdin=None if sys.stdin.isatty() else subprocess.DEVNULL
        )
        if status.returncode:
            raise BuildError(
                f"{shlex.join(command)} failed with exit status {status.returncode}",
                hint="its output stands above; check the network, and that apt works here",
            )
    importlib.invalidate_caches()
    still = [need.package for need in missing()]
    if still:
        raise BuildError(
            f"{', '.join(still)} installed, and still not found",
            hint="python3 in the PATH should be Debian's" if "python3-venv" in still else "look at the PATH",
        )
    print("setup-host: done")
    return _check_user()


def _check_user() -> int:
    """Print what mmdebstrap lacks without root: subordinate ids; returns the exit status."""
    if os.geteuid() == 0:
        return 0
    user = getpass.getuser()
    for path in (Path("/etc/subuid"), Path("/etc/subgid")):
        lines = path.read_text().splitlines() if path.exists() else []
        if not any(line.split(":")[0] in {user, str(os.getuid())} for line in lines):
            print(f"setup-host: {user} has no subordinate ids in {path}, which a build without root needs")
            print(f"  sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}")
            return 1
    return 0
