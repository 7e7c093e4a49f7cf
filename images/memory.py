# SPDX-License-Identifier: GPL-2.0-or-later
"""Which sources were used before, so that a later build or search of the same needs no network."""

from __future__ import annotations

import json
from typing import Generic, Protocol, TypeVar

from images.cache import Cache


class _Versioned(Protocol):
    @property
    def version(self) -> str: ...


SourceT = TypeVar("SourceT", bound=_Versioned)


class Memory(Generic[SourceT]):
    """The source that was used last for each request; one JSON file in the cache.

    :param name: of that file.
    :param kind: a dataclass whose fields are all text.
    """

    def __init__(self, cache: Cache, name: str, kind: type[SourceT]) -> None:
        self._path = cache.root / name
        self._kind = kind

    def recall(self, asked: str | None = None) -> SourceT | None:
        """The source that was used last for this request: a version, or None for any."""
        named = self._read().get(asked or "")
        return self._kind(**named) if named else None

    def remember(self, asked: str | None, source: SourceT) -> None:
        known = self._read()
        for key in {asked or "", source.version}:
            known[key] = dict(vars(source))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")
        new.replace(self._path)

    def _read(self) -> dict[str, dict[str, str]]:
        try:
            known: dict[str, dict[str, str]] = json.loads(self._path.read_text())
        except FileNotFoundError:
            return {}
        return known
