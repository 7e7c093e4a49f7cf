# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's part of the root file system: a tar that is kept, so that a change of ours costs seconds.

Its versions are those that the mirror had when it was made; the manifest names them.
"""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

from images import apt, tools
from images.cache import Artefact, Cache, digest_inputs
from images.commands import Log, require_tools, run
from images.errors import CommandError
from images.progress import Reporter

KIND = "debian"
SUITE = "trixie"
PACKAGES = (
    *("python3", "openssh-server", "kmod", "iproute2"),
    # The first QEMU with TDs that can be reset, and a firmware with TDX metadata, are newer than the suite.
    *(
        f"{name}/trixie-backports"
        for name in ("qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios")
    ),
    "ovmf-inteltdx/forky",
)
NEWER_SUITES = ("trixie-backports", "forky")
TAR = "debian.tar"

_NEEDED_BYTES = 2_000_000_000
_TOOLS = {"mmdebstrap": "mmdebstrap", "setpriv": "util-linux", "unshare": "util-linux"}
_STATUS = "./var/lib/dpkg/status"
_OPTIONS = (
    "--variant=essential",
    "--format=tar",
    "--architectures=amd64",
    f"--include={','.join(PACKAGES)}",
    '--aptopt=APT::Install-Recommends "false"',
    '--aptopt=Acquire::Languages "none"',
    # Else apt would take everything from the newest suite.
    f'--aptopt=APT::Default-Release "{SUITE}"',
    *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "info", "locale", "i18n")),
)


def inputs() -> dict[str, object]:
    """What the packages are chosen by."""
    return {
        "suites": [SUITE, *NEWER_SUITES],
        "options": list(_OPTIONS),
        "tools": tools.versions("mmdebstrap"),
    }


def find(cache: Cache) -> Artefact | None:
    """The finished tar, or None."""
    return cache.find(KIND, SUITE, digest_inputs(inputs()))


def ensure(cache: Cache, reporter: Reporter, log: Log, *, mirror: str | None = None) -> Artefact:
    """The tar, made if it is not in the cache; the caller holds the lock of the root file system.

    :param mirror: URI of a Debian archive; the host's by default.
    :raises BuildError: no network, no mmdebstrap, a package that the mirror lacks.
    """
    require_tools(_TOOLS, "the root file system")
    if found := find(cache):
        return found
    wanted = inputs()
    cache.require_space(_NEEDED_BYTES, "the root file system")
    with cache.scratch(KIND) as scratch:
        out = scratch / "out"
        out.mkdir()
        with reporter.step("rootfs: installing Debian packages"):
            _bootstrap(out / TAR, scratch, apt.mirror(mirror, log), log)
        with tarfile.open(out / TAR) as tar:
            status = tar.extractfile(_STATUS)
            assert status is not None
            packages = _installed(status.read().decode())
        manifest = {"inputs": wanted, "packages": packages}
        return cache.publish(out, KIND, SUITE, digest_inputs(wanted), manifest)


def _bootstrap(tar: Path, scratch: Path, mirror: str, log: Log) -> None:
    as_root = os.geteuid() == 0
    argv: list[str | Path] = []
    if as_root:
        # Namespaces of its own: what mmdebstrap mounts and starts is gone with it, also after a SIGKILL.
        argv += ["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--"]
    argv += ["mmdebstrap", f"--mode={'root' if as_root else 'unshare'}", *_OPTIONS]
    argv += [f"--keyring={apt.keyring()}", SUITE, tar]
    argv.append(f"deb {mirror} {SUITE} main")
    # A mirror that stood still for some weeks is good enough: signatures are checked all the same.
    argv += [f"deb [check-valid-until=no] {mirror} {suite} main" for suite in NEWER_SUITES]
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


def _installed(status: str) -> dict[str, str]:
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
