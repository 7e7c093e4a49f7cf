# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's packages that the guest is made of: their versions, chosen once and remembered; their files.

As long as the versions that were used last will do, no mirror is asked; the packages stay in the cache.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from images import apt, sources
from images.apt import NotThere, PrivateApt
from images.cache import Cache, file_sha256
from images.commands import run
from images.mmdebstrap import SUITE
from images.progress import Reporter
from images.recipe import Work, work_on
from images.sources import LastUsed, Source

KERNEL_PREFIX = "linux-image-"
KERNEL = r"\d\S*-cloud-amd64"
BUSYBOX = "busybox-static"
FIRMWARE = "ovmf-inteltdx"
FIRMWARE_SUITES = ("forky", "sid")
"""Where the firmware is: it is newer than the suite of the others."""


@dataclass(frozen=True)
class Packages:
    """One version of each package."""

    kernel: Source
    busybox: Source
    firmware: Source

    def each(self) -> tuple[Source, ...]:
        return self.kernel, self.busybox, self.firmware

    def identity(self) -> dict[str, object]:
        """Their part of a guest's inputs."""
        return {
            source.package: {"version": source.version, "sha256": source.sha256} for source in self.each()
        }


def _last_used(cache: Cache) -> LastUsed:
    return LastUsed(cache, "guests-used.json")


def recall(cache: Cache) -> Packages | None:
    """The packages that were used last, or None."""
    used = _last_used(cache)
    known = {field.name: used.recall(field.name) for field in dataclasses.fields(Packages)}
    found = {name: source for name, source in known.items() if source is not None}
    return Packages(**found) if len(found) == len(known) else None


def record(cache: Cache, packages: Packages) -> None:
    """Remember packages as those that were used last, and remove the files of others."""
    used = _last_used(cache)
    for field in dataclasses.fields(packages):
        used.record(field.name, getattr(packages, field.name))
    keep = {source.file_name for source in packages.each()}
    for pattern in (f"{KERNEL_PREFIX}*.deb", f"{BUSYBOX}_*.deb", f"{FIRMWARE}_*.deb"):
        for path in cache.sources.glob(pattern):
            if path.name not in keep:
                path.unlink()


def candidates(cache: Cache, reporter: Reporter, *, mirror: str | None, refresh: bool) -> Iterator[Packages]:
    """The packages to try; the mirror is asked only if those used last will not do.

    :param refresh: pass over the last ones used.
    :raises BuildError: no network, or the mirror lacks one.
    """
    known = None if refresh else recall(cache)
    if known is not None:
        yield known
    with cache.lock("package-lists", reporter), work_on(cache, reporter, mirror, "guest-packages") as work:
        listed = _listed(work)
    if listed != known:
        yield listed


def _listed(work: Work) -> Packages:
    [usual] = sources.clients(work, [SUITE])
    with work.reporter.step("guests: reading the package lists"):
        usual.update()
        kernel = _newest(usual, usual.versions(KERNEL_PREFIX, KERNEL), "a cloud kernel")
        busybox = _newest(usual, usual.package_versions(BUSYBOX), BUSYBOX)
        return Packages(kernel, busybox, _firmware(work))


def _firmware(work: Work) -> Source:
    *others, last = sources.clients(work, FIRMWARE_SUITES)
    for client in others:
        try:
            client.update()
            return _newest(client, client.package_versions(FIRMWARE), FIRMWARE)
        except NotThere as error:
            work.reporter.note(f"guests: {error.message}")
    last.update()
    return _newest(last, last.package_versions(FIRMWARE), FIRMWARE)


def _newest(client: PrivateApt, available: list[tuple[str, str]], what: str) -> Source:
    for package, version in sorted(available, key=lambda item: apt.version_key(item[1]), reverse=True):
        file = client.binary(package, version)
        if file is not None:
            return Source(package, version, file.path, file.sha256)
    raise NotThere(
        f"{client.mirror} does not have {what} in {client.suite}",
        hint=f"name another mirror with --mirror or {apt.MIRROR_ENV}",
    )


def fetch(work: Work, source: Source) -> Path:
    """The .deb of a package, downloaded into the cache unless it is there, whole.

    :raises NotThere: the mirror does not have it.
    """
    kept = work.cache.sources / source.file_name
    if kept.is_file() and file_sha256(kept) == source.sha256:
        return kept
    [client] = sources.clients(work, [SUITE])
    return sources.fetch(work, client, source, work.cache.sources)


def unpack(work: Work, source: Source) -> Path:
    """The folder with a package's files, below the scratch folder; its scripts are not run."""
    folder = work.scratch / source.package
    argv: list[str | Path] = ["dpkg-deb", "--extract", fetch(work, source), folder]
    run(argv, log=work.log, what=f"unpacking {source.package} failed")
    return folder
