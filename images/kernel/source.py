# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's ``linux-source-*`` packages: choose a version, unpack it."""

from __future__ import annotations

import hashlib
import re
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from images import apt, sources
from images.cache import Cache
from images.commands import Log, child, failure
from images.errors import BuildError
from images.kernel import needed, unchanged
from images.progress import Reporter
from images.recipe import Work, work_on
from images.sources import LastUsed, Source, upstream_version

SUITE = "trixie-backports"
SERIES = "7.3"
FIRST = (6, 16)
"""The first Linux whose KVM runs TDs."""
UNPACKED_BYTES = 1_500_000_000
"""Space that fetching and unpacking needs at its height."""

_PREFIX = "linux-source-"
_TARBALL_BYTES = 1_720_000_000
_BLOCK = 1 << 20


def last_used(cache: Cache) -> LastUsed:
    """The sources of the cache's kernels."""
    return LastUsed(cache, "kernel-used.json")


def kept_folder(cache: Cache, source: Source) -> Path:
    """The folder of a source's tree in the cache."""
    return cache.trees / f"{source.package}_{source.version}"


def matches(asked: str, package: str, version: str) -> bool:
    """Returns whether a package is the requested version: ``7.3``, ``7.3.4`` or Debian's whole version."""
    return asked in {version, upstream_version(version), package.removeprefix(_PREFIX), package}


def choose(available: list[tuple[str, str]], asked: str | None) -> list[tuple[str, str]]:
    """Candidates among (package, version), best first.

    If a version is requested, only that; otherwise the newest of :data:`SERIES`, or, when that is gone, the
    newest of each series, newest series first.
    """
    if asked is not None:
        return newest_first([item for item in available if matches(asked, *item)])[:1]
    usual = [item for item in available if item[0] == f"{_PREFIX}{SERIES}"]
    if usual:
        return newest_first(usual)[:1]
    return newest_of_each(available)


def newest_of_each(available: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The newest (package, version) of each series, newest series first."""
    best: dict[str, tuple[str, str]] = {}
    for item in newest_first(available):
        best.setdefault(item[0], item)
    return sorted(best.values(), key=lambda item: _numbers(item[0]), reverse=True)


def newest_first(items: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """(package, version) sorted by Debian's order of versions."""
    return sorted(items, key=lambda item: apt.version_key(item[1]), reverse=True)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"\d+", text))


def candidates(
    cache: Cache, reporter: Reporter, *, mirror: str | None, asked: str | None, refresh: bool
) -> Iterator[Source]:
    """The sources to try, best first; the mirror is asked only if the last one used will not do.

    :param asked: a version, None for the usual series.
    :param refresh: pass over the last one used.
    :raises BuildError: no network, or the mirror has none.
    """
    known = None if refresh else last_used(cache).recall(asked)
    if known is not None:
        yield known
        if kept_folder(cache, known).is_dir():
            # The mirror had it, so a patch does not apply: no reason for another version.
            return
    with cache.lock("package-lists", reporter), work_on(cache, reporter, mirror, "kernel-source") as work:
        listed = _listed(work, asked)
    yield from (source for source in listed if source != known)


def offered(cache: Cache, reporter: Reporter, *, mirror: str | None) -> list[str]:
    """The versions of a mirror whose KVM can be a TDX host: the newest of each series, oldest first.

    :raises BuildError: no network.
    """
    with cache.lock("package-lists", reporter), work_on(cache, reporter, mirror, "kernel-source") as work:
        _, available = _available(work)
    return tdx_hosts(available)


def tdx_hosts(available: list[tuple[str, str]]) -> list[str]:
    """The newest version of each series that can be a TDX host, oldest first."""
    series = newest_of_each([item for item in available if _numbers(item[0]) >= FIRST])
    return [version for _, version in reversed(series)]


def _available(work: Work) -> tuple[apt.PrivateApt, list[tuple[str, str]]]:
    [client] = sources.clients(work, [SUITE])
    with work.reporter.step("kernel: reading the package lists"):
        client.update()
        return client, client.versions(_PREFIX, r"\d+\.\d+")


def _listed(work: Work, asked: str | None) -> list[Source]:
    client, available = _available(work)
    chosen = choose(available, asked)
    if not chosen:
        have = ", ".join(version for _, version in newest_first(available)) or "none"
        what = f"version {asked} of the kernel source" if asked else "a linux-source package"
        raise BuildError(
            f"{client.mirror} has no {what} in {SUITE}",
            hint=f"it has: {have}; --kernel-version takes another, --mirror another mirror",
            log=work.log.path,
        )
    if not asked and chosen[0][0] != f"{_PREFIX}{SERIES}":
        package, version = chosen[0]
        work.reporter.note(f"kernel: {_PREFIX}{SERIES} is gone from {SUITE}; taking {package} {version}")
    files = [(package, version, client.binary(package, version)) for package, version in chosen]
    return [Source(package, version, file.path, file.sha256) for package, version, file in files if file]


def fetch(work: Work, source: Source) -> Path:
    """Download a package into the scratch folder; returns the .deb."""
    [client] = sources.clients(work, [SUITE])
    return sources.fetch(work, client, source, work.scratch / "deb")


class _Tee:
    """A stream that copies whatever is read from it to a second one."""

    def __init__(self, source: IO[bytes], sink: IO[bytes], on_bytes: Callable[[int], None]) -> None:
        self._source = source
        self._sink = sink
        self._on_bytes = on_bytes

    def read(self, size: int) -> bytes:
        data = self._source.read(size)
        self._sink.write(data)
        self._on_bytes(len(data))
        return data


def unpack(deb: Path, folder: Path, log: Log, reporter: Reporter) -> dict[str, str]:
    """Unpack the kernel tree of a .deb into ``folder``, made here.

    :returns: path → SHA-256 of KVM's files in the package's tarball, computed from the stream, before
        anything was written to the disk.
    """
    folder.mkdir()
    excludes = [f"--exclude=*/{pattern}" for pattern in needed.LEFT_OUT]
    pipeline = (
        'dpkg-deb --fsys-tarfile "$1" | tar -xO --wildcards "./usr/src/linux-source-*.tar.xz" | xz -dc -T0'
    )
    unxz = ["bash", "-o", "pipefail", "-c", pipeline, "unpack", str(deb)]
    untar = ["tar", "-x", "--strip-components=1", "--no-same-owner", *excludes, "-C", str(folder)]
    hashes: dict[str, str] = {}
    with (
        reporter.step("kernel: unpacking the source", total=_TARBALL_BYTES) as step,
        (folder.parent / "unpack.err").open("w+b") as complaints,
        child(unxz, log=log, stderr=complaints) as reader,
        child(untar, log=log, stdin=subprocess.PIPE, stdout=complaints, stderr=complaints) as writer,
    ):
        assert reader.stdout is not None
        assert writer.stdin is not None
        try:
            tee = _Tee(reader.stdout, writer.stdin, step.advance)
            with tarfile.open(fileobj=tee, mode="r|", bufsize=_BLOCK) as members:  # type: ignore[call-overload]
                for member in members:
                    name = member.name.partition("/")[2]
                    if not unchanged.is_guarded(name):
                        continue
                    if member.issym():
                        hashes[name] = f"-> {member.linkname}"
                    elif content := members.extractfile(member):
                        hashes[name] = hashlib.file_digest(content, "sha256").hexdigest()
            while tee.read(_BLOCK):
                pass
            writer.stdin.close()
            broken = ""
        except (tarfile.TarError, BrokenPipeError) as error:
            broken = str(error) or type(error).__name__
            writer.stdin.close()
        status = writer.wait() or reader.wait()
        complaints.seek(0)
        printed = complaints.read().decode(errors="replace")
        log.write(printed)
    if status or broken:
        lines = (*printed.splitlines()[-20:], *([broken] if broken else []))
        raise failure("unpacking the kernel source failed", status or 1, lines, log=log.path)
    if not hashes:
        raise BuildError(f"{deb.name} holds no kernel with KVM", log=log.path)
    return hashes
