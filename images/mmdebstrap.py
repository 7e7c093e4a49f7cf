# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian packages as one tar: made by mmdebstrap, kept in the cache, so that a change of ours costs seconds.

Its versions are those that the mirror had when it was made; the manifest names them.
"""

from __future__ import annotations

import os
import tarfile
from dataclasses import dataclass
from pathlib import Path

from images import apt, tools
from images.cache import Artefact, Cache, digest_inputs
from images.chroot import NAMESPACES
from images.commands import Log, require_tools, run
from images.errors import CommandError
from images.progress import Reporter

SUITE = "trixie"
TAR = "debian.tar"

_NEEDED_BYTES = 2_000_000_000
_TOOLS = {"mmdebstrap": "mmdebstrap", "setpriv": "util-linux", "unshare": "util-linux"}
_STATUS = "./var/lib/dpkg/status"
_NOT_UNPACKED = ("doc", "man", "info", "locale", "i18n")


@dataclass(frozen=True)
class DebianTar:
    """Some packages of :data:`SUITE`, and the essential ones.

    :param kind: of the artefact.
    :param packages: as apt takes them: ``NAME``, or ``NAME/SUITE`` for one of a newer suite.
    :param newer_suites: where apt looks besides, for what is named so or is not in the suite.
    :param title: begins the line of the step.
    :param what_for: what the packages are needed for, for messages.
    """

    kind: str
    packages: tuple[str, ...]
    newer_suites: tuple[str, ...]
    title: str
    what_for: str

    @property
    def options(self) -> tuple[str, ...]:
        return (
            "--variant=essential",
            "--format=tar",
            "--architectures=amd64",
            f"--include={','.join(self.packages)}",
            '--aptopt=APT::Install-Recommends "false"',
            '--aptopt=Acquire::Languages "none"',
            # Else apt would take everything from the newest suite.
            f'--aptopt=APT::Default-Release "{SUITE}"',
            *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _NOT_UNPACKED),
        )

    def inputs(self) -> dict[str, object]:
        """What the packages are chosen by."""
        return {
            "suites": [SUITE, *self.newer_suites],
            "options": list(self.options),
            "tools": tools.versions("mmdebstrap"),
        }

    def find(self, cache: Cache) -> Artefact | None:
        """The finished tar, or None."""
        return cache.find(self.kind, SUITE, digest_inputs(self.inputs()))

    def ensure(self, cache: Cache, reporter: Reporter, log: Log, *, mirror: str | None = None) -> Artefact:
        """The tar, made if it is not in the cache; the caller holds the lock of what it is made for.

        :param mirror: URI of a Debian archive; the host's by default.
        :raises BuildError: no network, no mmdebstrap, a package that the mirror lacks.
        """
        require_tools(_TOOLS, self.what_for)
        if found := self.find(cache):
            return found
        wanted = self.inputs()
        cache.require_space(_NEEDED_BYTES, self.what_for)
        with cache.scratch(self.kind) as scratch:
            out = scratch / "out"
            out.mkdir()
            with reporter.step(f"{self.title}: installing Debian packages"):
                self._make(out / TAR, scratch, apt.mirror(mirror, log), log)
            with tarfile.open(out / TAR) as tar:
                status = tar.extractfile(_STATUS)
                assert status is not None
                packages = installed(status.read().decode())
            manifest = {"inputs": wanted, "packages": packages}
            return cache.publish(out, self.kind, SUITE, digest_inputs(wanted), manifest)

    def _make(self, tar: Path, scratch: Path, mirror: str, log: Log) -> None:
        as_root = os.geteuid() == 0
        argv: list[str | Path] = []
        if as_root:
            # What mmdebstrap mounts and starts is gone with them, also after a SIGKILL.
            argv += [*NAMESPACES, "--mount-proc", "--"]
        argv += ["mmdebstrap", f"--mode={'root' if as_root else 'unshare'}", *self.options]
        argv += [f"--keyring={apt.keyring()}", SUITE, tar]
        argv.append(f"deb {mirror} {SUITE} main")
        # A mirror that stood still for some weeks is good enough: signatures are checked all the same.
        argv += [f"deb [check-valid-until=no] {mirror} {suite} main" for suite in self.newer_suites]
        env = {"DEBIAN_FRONTEND": "noninteractive"}
        # Without root mmdebstrap works as other users of ours, who may not enter a private home.
        env["TMPDIR"] = str(scratch) if as_root else "/var/tmp"
        # mmdebstrap goes on with its step after a SIGTERM, so we do not wait for its grace when we are dead.
        death = "KILL" if as_root else "TERM"
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
