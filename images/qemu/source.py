# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's source: upstream's tarball as Debian has it, chosen among suites, fetched, kept in the cache.

What was chosen is remembered, so that a later build needs no network.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from images import apt
from images.apt import NotThere, PrivateApt, RemoteFile
from images.cache import Cache, file_sha256
from images.commands import Log
from images.memory import Memory
from images.progress import Reporter

SERIES = "11."
SUITES = ("trixie-backports", "forky", "sid")
_PACKAGE = "qemu"


@dataclass(frozen=True)
class Source:
    """One version of QEMU's source.

    :param version: upstream's, with what Debian says of its tarball: ``11.1.1+ds``.
    :param path: of the tarball, below the archive's URI.
    """

    version: str
    path: str
    sha256: str

    @property
    def upstream(self) -> str:
        """``11.1.1`` of ``11.1.1+ds``."""
        return self.version.partition("+")[0]

    @property
    def file_name(self) -> str:
        return Path(self.path).name


PINNED = Source(
    "11.1.1+ds",
    "pool/main/q/qemu/qemu_11.1.1+ds.orig.tar.xz",
    "0b1376e75dbe3e2fea4e408f8669f88a723f419f36a5b7d74cc6a4cfe07e4f5e",
)
"""The last resort: a mirror's files may outlive the lists that name them, and its lists its files."""


def upstream_version(version: str) -> str:
    """``11.1.3+ds`` of ``1:11.1.3+ds-1~bpo13+1``."""
    without_epoch = version.rpartition(":")[2]
    return without_epoch.rpartition("-")[0] or without_epoch


def choose(available: list[str]) -> list[str]:
    """Those of Debian's versions to try, best first: the newest of each of :data:`SERIES`."""
    usable = [version for version in available if upstream_version(version).startswith(SERIES)]
    found: dict[str, str] = {}
    for version in sorted(usable, key=apt.version_key, reverse=True):
        found.setdefault(upstream_version(version), version)
    return list(found.values())


def memory(cache: Cache) -> Memory[Source]:
    """Which source was used before."""
    return Memory(cache, "qemu-source.json", Source)


def kept(cache: Cache, source: Source) -> Path | None:
    """The tarball, if it is in the cache, whole."""
    tarball = cache.sources / source.file_name
    return tarball if tarball.is_file() and file_sha256(tarball) == source.sha256 else None


def forget_others(cache: Cache, source: Source) -> None:
    """Remove the tarballs of other versions."""
    for path in cache.sources.glob(f"{_PACKAGE}_*"):
        if path.name != source.file_name:
            path.unlink()


class Archive:
    """The mirror's QEMU sources.

    :param mirror: URI, or None for the host's.
    """

    def __init__(self, cache: Cache, mirror: str | None, log: Log, reporter: Reporter) -> None:
        self._cache = cache
        self._reporter = reporter
        uri = apt.mirror(mirror, log)
        self._clients = {suite: PrivateApt(cache, uri, suite, log, sources=True) for suite in SUITES}

    def candidates(self) -> list[Source]:
        """What to try, best first; the mirror need not have all of it.

        :raises BuildError: no network, or lists that cannot be trusted.
        """
        suite_of: dict[str, str] = {}
        with self._reporter.step("qemu: reading the package lists"):
            for suite, client in self._clients.items():
                try:
                    client.update()
                except NotThere as error:
                    self._reporter.note(f"qemu: {error.message}")
                    continue
                suite_of |= dict.fromkeys(client.source_versions(_PACKAGE), suite)
            found = []
            for version in choose(list(suite_of)):
                file = self._clients[suite_of[version]].original(_PACKAGE, version)
                if file is not None:
                    found.append(Source(upstream_version(version), file.path, file.sha256))
        return found if PINNED in found else [*found, PINNED]

    def fetch(self, source: Source) -> Path:
        """The tarball, downloaded into the cache.

        :raises NotThere: the mirror does not have it.
        """
        with self._reporter.step(f"qemu: downloading the source of {source.upstream}"):
            self._cache.sources.mkdir(parents=True, exist_ok=True)
            target = self._cache.sources / source.file_name
            # Any of the clients will do: which lists it has makes no difference.
            client = next(iter(self._clients.values()))
            client.fetch(RemoteFile(source.path, source.sha256), target)
        return target
