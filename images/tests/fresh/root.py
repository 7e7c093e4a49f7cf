# SPDX-License-Identifier: GPL-2.0-or-later
"""A bare root folder, and commands in it that see no other."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from images import apt, isolation
from images.commands import Log, run
from images.errors import BuildError
from images.tests.fresh import network

HOME = "/root"
CHECKOUT = f"{HOME}/tdx-e2e"
CACHE = f"{HOME}/.cache/tdx-e2e"
_PACKAGES = ("git", "python3")
_CERTIFICATES = Path("/usr/local/share/ca-certificates")

_ENTER = """
set -e
root=$1 cache=$2
shift 2
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
if [ -n "$cache" ]; then
    mkdir -p "$root/root/.cache/tdx-e2e"
    mount --bind "$cache" "$root/root/.cache/tdx-e2e"
fi
exec chroot "$root" "$@"
"""


@dataclass(frozen=True)
class Root:
    """A root folder.

    :param cache: a cache of images that it shows in place of an empty one.
    """

    path: Path
    log: Log
    on_line: Callable[[str], None]
    cache: Path | None = None

    def install(self, suite: str, scratch: Path) -> None:
        """Make it: the essential packages of a suite, apt, git and python3.

        :raises BuildError: it cannot be made here.
        """
        mirror = apt.mirror(None, self.log)
        argv: list[str | Path] = [*_front(), "mmdebstrap", "--mode=root", "--variant=minbase"]
        argv += [f"--include={','.join(_PACKAGES)}", f"--keyring={apt.keyring()}"]
        argv += [suite, self.path, f"deb {mirror} {suite} main"]
        env = {"TMPDIR": str(scratch), "DEBIAN_FRONTEND": "noninteractive"}
        run(argv, log=self.log, what=f"making a root of {suite} failed", env=env, death="KILL")

    def connect(self) -> None:
        """Give it what this machine's network needs of apt, pip and TLS."""
        dump = run(["apt-config", "dump"], log=self.log, what="reading apt's configuration failed")
        (self.path / "etc/apt/apt.conf.d/90network").write_text(network.apt_settings(dump))
        shutil.copyfile("/etc/resolv.conf", self.path / "etc/resolv.conf")
        (self.path / "etc/hosts").write_text("127.0.0.1 localhost\n")
        if _CERTIFICATES.is_dir():
            inside = self.path / _CERTIFICATES.relative_to("/")
            shutil.copytree(_CERTIFICATES, inside, dirs_exist_ok=True)

    def clone(self, top: Path) -> str:
        """Clone the present commit of a checkout into it; returns the commit."""
        inside = self.path / CHECKOUT.lstrip("/")
        git = ["git", "-c", "safe.directory=*"]
        run([*git, "clone", "--quiet", "--no-local", top, inside], log=self.log, what="git clone failed")
        return run([*git, "-C", inside, "rev-parse", "HEAD"], log=self.log, what="git failed")[-1]

    def shell(self, command: str) -> None:
        """Run a shell command in the checkout.

        :raises CommandError: exit status other than 0.
        """
        env = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": HOME,
            "LANG": "C.UTF-8",
            **network.variables(os.environ, network.pip_files()),
        }
        run(
            [
                *(*_front(), "sh", "-c", _ENTER, "enter", self.path, self.cache or ""),
                *("env", "-i", f"--chdir={CHECKOUT}", *(f"{name}={value}" for name, value in env.items())),
                *("sh", "-c", command),
            ],
            log=self.log,
            what=f"{command} failed",
            on_line=self.on_line,
            death="KILL",
        )


def _front() -> tuple[str, ...]:
    """Return what keeps mounts and processes of a command in namespaces that end with it."""
    if isolation.here() is not isolation.OF_ROOT:
        raise BuildError("a bare root needs mounts of its own", hint="run as root with CAP_SYS_ADMIN")
    return isolation.OF_ROOT.front
