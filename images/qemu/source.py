# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's source: upstream's tarball as Debian has it, chosen among suites, kept in the cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from images import apt, sources
from images.apt import NotThere, PrivateApt
from images.cache import Cache, file_sha256
from images.progress import Reporter
from images.recipe import Work, work_on
from images.sources import LastUsed, Source, upstream_version

SERIES = "11."
SUITES = ("trixie-backports", "forky", "sid")
_PACKAGE = "qemu"

PINNED = Source(
    _PACKAGE,
    "11.1.1+ds",
    "pool/main/q/qemu/qemu_11.1.1+ds.orig.tar.xz",
    "0b1376e75dbe3e2fea4e408f8669f88a723f419f36a5b7d74cc6a4cfe07e4f5e",
)
"""The last resort: a mirror may keep a file that its lists no longer name, or list a file that it lacks."""


def last_used(cache: Cache) -> LastUsed:
    """The source of the cache's QEMU."""
    return LastUsed(cache, "qemu-used.json")


def choose(available: list[str]) -> list[str]:
    """Candidates among Debian's versions, best first: each upstream version of :data:`SERIES` once."""
    usable = [version for version in available if upstream_version(version).startswith(SERIES)]
    found: dict[str, str] = {}
    for version in sorted(usable, key=apt.version_key, reverse=True):
        found.setdefault(upstream_version(version), version)
    return list(found.values())


def candidates(cache: Cache, reporter: Reporter, *, mirror: str | None, refresh: bool) -> Iterator[Source]:
    """The sources to try, best first; the mirror is asked only if the last one used will not do.

    :param refresh: pass over the last one used.
    :raises BuildError: no network, or lists that cannot be trusted.
    """
    known = None if refresh else last_used(cache).recall()
    if known is not None:
        yield known
    with cache.lock("package-lists", reporter), work_on(cache, reporter, mirror, "qemu-source") as work:
        listed = _listed(work)
    yield from (source for source in listed if source != known)


def _listed(work: Work) -> list[Source]:
    clients: dict[str, PrivateApt] = {}
    with work.reporter.step("qemu: reading the package lists"):
        for client in sources.clients(work, SUITES, sources=True):
            try:
                client.update()
            except NotThere as error:
                work.reporter.note(f"qemu: {error.message}")
                continue
            clients |= dict.fromkeys(client.source_versions(_PACKAGE), client)
        found = []
        for version in choose(list(clients)):
            file = clients[version].original(_PACKAGE, version)
            if file is not None:
                found.append(Source(_PACKAGE, upstream_version(version), file.path, file.sha256))
    return found if PINNED in found else [*found, PINNED]


def fetch(work: Work, source: Source) -> Path:
    """Returns the tarball, downloaded into the cache unless it is there, whole.

    :raises NotThere: the mirror does not have it.
    """
    folder = work.cache.sources
    kept = folder / source.file_name
    if kept.is_file() and file_sha256(kept) == source.sha256:
        return kept
    client, *_ = sources.clients(work, SUITES, sources=True)
    return sources.fetch(work, client, source, folder)


def forget_others(cache: Cache, source: Source) -> None:
    """Remove the tarballs of other versions."""
    for path in cache.sources.glob(f"{_PACKAGE}_*"):
        if path.name != source.file_name:
            path.unlink()
