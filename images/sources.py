# SPDX-License-Identifier: GPL-2.0-or-later
"""Upstream's source as Debian's archive has it: one version of it, which was used last, which builds.

The source that was used is recorded, so that a later build of the same needs no network.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from images import apt
from images.apt import NotThere, PrivateApt, RemoteFile
from images.cache import Artefact, Cache
from images.errors import BuildError
from images.patching import PatchError
from images.progress import Reporter
from images.recipe import Work

C = TypeVar("C")


@dataclass(frozen=True)
class Source:
    """One version of a source.

    :param package: Debian's package.
    :param version: of the package, or only upstream's part of it.
    :param path: of the file with the source, below the archive's URI.
    :param sha256: of that file, from the archive's signed lists.
    """

    package: str
    version: str
    path: str
    sha256: str

    @property
    def upstream(self) -> str:
        """``7.3.4`` of ``7.3.4-1~bpo13+1``, ``11.1.1`` of ``11.1.1+ds``."""
        return upstream_version(self.version).partition("+")[0]

    @property
    def file_name(self) -> str:
        return Path(self.path).name


def upstream_version(version: str) -> str:
    """``11.1.3+ds`` of ``1:11.1.3+ds-1~bpo13+1``."""
    without_epoch = version.rpartition(":")[2]
    return without_epoch.rpartition("-")[0] or without_epoch


class LastUsed:
    """The source that was used last for each request: one JSON file in the cache.

    :param name: of that file.
    """

    def __init__(self, cache: Cache, name: str) -> None:
        self._cache = cache
        self._name = name

    def recall(self, asked: str | None = None) -> Source | None:
        """The source that was used last for a request: a version, or None for any."""
        named = self._read().get(asked or "")
        return Source(**named) if named else None

    def record(self, asked: str | None, source: Source) -> None:
        """Remember the source for the request, and for its own version."""
        with self._cache.changing(self._name) as path:
            known = self._read()
            for key in {asked or "", source.version}:
                known[key] = asdict(source)
            new = path.with_suffix(".new")
            new.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")
            new.replace(path)

    def _read(self) -> dict[str, dict[str, str]]:
        try:
            known: dict[str, dict[str, str]] = json.loads((self._cache.root / self._name).read_text())
        except FileNotFoundError:
            return {}
        return known


def clients(work: Work, suites: Iterable[str], *, sources: bool = False) -> list[PrivateApt]:
    """An apt client for each of some suites of the mirror."""
    uri = apt.mirror(work.mirror, work.log)
    return [PrivateApt(work.cache, uri, suite, work.log, sources=sources) for suite in suites]


def fetch(work: Work, client: PrivateApt, source: Source, folder: Path) -> Path:
    """Download a source into a folder, made if it is missing.

    :param client: of any suite: the file is named by its path and checked by its hash.
    :raises NotThere: the mirror does not have it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / source.file_name
    with work.reporter.step(f"{source.package}: downloading {source.version}"):
        client.fetch(RemoteFile(source.path, source.sha256), target)
    return target


def first_that_builds(
    candidates: Iterable[C], build: Callable[[C], Artefact], reporter: Reporter
) -> tuple[C, Artefact]:
    """Build from the first source that the mirror has and our patches apply to.

    :raises BuildError: there is none; the message names each patch that does not apply.
    """
    refused: list[BuildError] = []
    try:
        for candidate in candidates:
            try:
                return candidate, build(candidate)
            except (NotThere, PatchError) as error:
                reporter.note(error.message)
                refused.append(error)
    except BuildError as error:
        # Raised where the mirror was asked for more; it must not hide what was wrong with the source before.
        refused.append(error)
    # A patch that does not apply is ours to mend; a source that a mirror lacks is not.
    telling = [error for error in refused if not isinstance(error, NotThere)] or refused
    if len(telling) == 1:
        raise telling[0]
    message = "; ".join(error.message for error in telling)
    raise BuildError(message, hint=telling[0].hint, log=telling[0].log) from telling[0]
