# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's ``linux-source-*`` packages: choosing one, fetching it, unpacking it.

What was chosen is remembered, so that a later build of the same version needs no network.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from images import apt
from images.cache import Cache, file_sha256
from images.commands import Log, child, failure
from images.errors import BuildError
from images.kernel import needed, unchanged
from images.memory import Memory
from images.progress import Reporter

SUITE = "trixie-backports"
SERIES = "7.3"
UNPACKED_BYTES = 1_500_000_000
"""Space that fetching and unpacking takes, at its height."""

_PREFIX = "linux-source-"
_TARBALL_BYTES = 1_720_000_000
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Source:
    """One version of a kernel source package.

    :param sha256: of the .deb as it was fetched; the archive's signature covered it.
    """

    package: str
    version: str
    sha256: str

    @property
    def series(self) -> str:
        """``7.3`` of ``linux-source-7.3``."""
        return self.package.removeprefix("linux-source-")

    @property
    def upstream(self) -> str:
        """``7.3.4`` of ``7.3.4-1~bpo13+1``."""
        return self.version.rpartition("-")[0] or self.version


def matches(asked: str, package: str, version: str) -> bool:
    """Whether a package is the version that was asked for: ``7.3``, ``7.3.4`` or Debian's whole version."""
    upstream = version.rpartition("-")[0] or version
    return asked in {version, upstream, package.removeprefix("linux-source-"), package}


def choose(available: list[tuple[str, str]], asked: str | None) -> list[tuple[str, str]]:
    """Candidates among (package, version), best first.

    Asked for a version, only that; otherwise the newest of :data:`SERIES`, or, when that is gone, the
    newest of each series, newest series first.
    """
    if asked is not None:
        return newest_first([item for item in available if matches(asked, *item)])[:1]
    usual = [item for item in available if item[0] == f"linux-source-{SERIES}"]
    if usual:
        return newest_first(usual)[:1]
    best: dict[str, tuple[str, str]] = {}
    for item in newest_first(available):
        best.setdefault(item[0], item)
    return sorted(best.values(), key=lambda item: _numbers(item[0]), reverse=True)


def newest_first(items: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """(package, version) sorted by Debian's order of versions."""
    return sorted(items, key=lambda item: apt.version_key(item[1]), reverse=True)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"\d+", text))


def memory(cache: Cache) -> Memory[Source]:
    """Which sources were fetched before."""
    return Memory(cache, "kernel-sources.json", Source)


class Archive:
    """The mirror's kernel sources.

    :param mirror: URI, or None for the host's.
    """

    def __init__(self, cache: Cache, mirror: str | None, log: Log, reporter: Reporter) -> None:
        self._reporter = reporter
        self._log = log
        self._apt = apt.PrivateApt(cache, apt.mirror(mirror, log), SUITE, log)

    def candidates(self, asked: str | None) -> list[tuple[str, str]]:
        """(package, version) to try, best first.

        :raises BuildError: no network, or the mirror has none.
        """
        with self._reporter.step("kernel: reading the package lists"):
            self._apt.update()
            available = self._apt.versions(_PREFIX, r"\d+\.\d+")
        found = choose(available, asked)
        if not found:
            have = ", ".join(version for _, version in newest_first(available)) or "none"
            what = f"version {asked} of the kernel source" if asked else "a linux-source package"
            raise BuildError(
                f"{self._apt.mirror} has no {what} in {SUITE}",
                hint=f"it has: {have}; --kernel-version takes another, --mirror another mirror",
                log=self._log.path,
            )
        if not asked and found[0][0] != f"linux-source-{SERIES}":
            self._reporter.note(
                f"kernel: linux-source-{SERIES} is gone from {SUITE}; taking {found[0][0]} {found[0][1]}"
            )
        return found

    def fetch(self, package: str, version: str, scratch: Path) -> tuple[Source, Path]:
        """Download a package into ``scratch``; returns it and the .deb."""
        with self._reporter.step(f"kernel: downloading {package} {version}"):
            folder = scratch / "deb"
            folder.mkdir(exist_ok=True)
            deb = self._apt.download(package, version, folder)
        return Source(package, version, file_sha256(deb)), deb


class _Tee:
    """A stream whose reader hands everything on to a second one."""

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

    :returns: path → SHA-256 of KVM's files, as they stand in the package's tarball: read from the stream
        before anything touched the disk.
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
        said = complaints.read().decode(errors="replace")
        log.write(said)
    if status or broken:
        lines = (*said.splitlines()[-20:], *([broken] if broken else []))
        raise failure("unpacking the kernel source failed", status or 1, lines, log=log.path)
    if not hashes:
        raise BuildError(f"{deb.name} holds no kernel with KVM", log=log.path)
    return hashes
