# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian packages as one tar: made by mmdebstrap, kept in the cache, so that a change of ours costs seconds.

The packages have the versions that the mirror had when the tar was made; the manifest names them.
"""

from __future__ import annotations

import os
import tarfile
from dataclasses import dataclass
from pathlib import Path

from images import apt, isolation
from images.commands import Log, run
from images.errors import CommandError
from images.recipe import Recipe, Work
from images.tools import versions

SUITE = "trixie"
TAR = "debian.tar"

_TOOLS = ("mmdebstrap", "setpriv", "unshare")
_STATUS = "./var/lib/dpkg/status"
_NOT_UNPACKED = ("doc", "man", "info", "locale", "i18n")


@dataclass(frozen=True)
class DebianTar(Recipe):
    """Some packages of :data:`SUITE`, and the essential ones.

    :param packages: as apt takes them: ``NAME``, or ``NAME/SUITE`` for a package of a newer suite.
    :param newer_suites: further suites, for packages with such a suffix and packages that the suite lacks.
    :param title: begins the line of the step.
    """

    kind: str
    what: str
    packages: tuple[str, ...]
    newer_suites: tuple[str, ...]
    title: str

    label = SUITE
    space = 2_000_000_000
    tools = _TOOLS

    @property
    def options(self) -> tuple[str, ...]:
        return (
            "--variant=essential",
            "--format=tar",
            "--architectures=amd64",
            f"--include={','.join(self.packages)}",
            '--aptopt=APT::Install-Recommends "false"',
            '--aptopt=Acquire::Languages "none"',
            # Otherwise apt takes everything from the newest suite.
            f'--aptopt=APT::Default-Release "{SUITE}"',
            *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _NOT_UNPACKED),
        )

    def inputs(self) -> dict[str, object]:
        return {
            "suites": [SUITE, *self.newer_suites],
            "options": list(self.options),
            "tools": versions("mmdebstrap"),
        }

    def make(self, work: Work) -> dict[str, object]:
        tar = work.out / TAR
        with work.reporter.step(f"{self.title}: installing Debian packages"):
            self._install(tar, work.scratch, apt.mirror(work.mirror, work.log), work.log)
        with tarfile.open(tar) as archive:
            status = archive.extractfile(_STATUS)
            assert status is not None
            return {"packages": installed(status.read().decode())}

    def _install(self, tar: Path, scratch: Path, mirror: str, log: Log) -> None:
        as_root, way = os.geteuid() == 0, isolation.here()
        argv: list[str | Path] = []
        if as_root:
            # They take what mmdebstrap mounts and starts with them, also after a SIGKILL.
            argv += [*way.front]
        argv += ["mmdebstrap", f"--mode={'root' if as_root else 'unshare'}", *self.options]
        if not way.mounts:
            argv.append("--skip=chroot/mount")
        argv += [f"--keyring={apt.keyring()}", SUITE, tar]
        argv.append(f"deb {mirror} {SUITE} main")
        # A mirror that was not updated for some weeks will do: signatures are checked all the same.
        argv += [f"deb [check-valid-until=no] {mirror} {suite} main" for suite in self.newer_suites]
        env = {"DEBIAN_FRONTEND": "noninteractive"}
        # Without root mmdebstrap works as other users of ours, who may not enter a private home.
        env["TMPDIR"] = str(scratch) if as_root else "/var/tmp"
        # mmdebstrap goes on with its step after a SIGTERM; nobody waits for that when we are dead.
        death = way.death if as_root else "TERM"
        try:
            run(argv, log=log, env=env, what="mmdebstrap failed", hint=_hint(as_root), death=death)
        except CommandError as error:
            raise apt.explain(error, mirror, f"all of {SUITE}") from error


def _hint(as_root: bool) -> str:
    if as_root:
        return ""
    return "without root, mmdebstrap needs uidmap and your lines in /etc/subuid and /etc/subgid; or use sudo"


def installed(status: str) -> dict[str, str]:
    """Package → version, from the text of /var/lib/dpkg/status."""
    found = {}
    name = ""
    for line in status.splitlines():
        key, _, value = line.partition(": ")
        if key == "Package":
            name = value
        elif key == "Version":
            found[name] = value
    return found
