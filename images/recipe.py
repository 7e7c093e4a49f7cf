# SPDX-License-Identifier: GPL-2.0-or-later
"""One image: its inputs, how it is made, and its way into the cache."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from images.cache import Artefact, Cache, digest_inputs
from images.commands import Log, require_tools
from images.errors import BuildError
from images.progress import Reporter


@dataclass(frozen=True)
class Work:
    """The surroundings of one build.

    :param scratch: a folder that is removed at the end.
    :param mirror: URI of a Debian archive, None for the one of the host's apt.
    """

    cache: Cache
    reporter: Reporter
    log: Log
    scratch: Path
    mirror: str | None = None

    @property
    def out(self) -> Path:
        """The folder that becomes the artefact."""
        return self.scratch / "out"


@contextlib.contextmanager
def work_on(cache: Cache, reporter: Reporter, mirror: str | None, name: str) -> Iterator[Work]:
    """A log and a scratch folder for a build; an error of the operating system names its file and the log."""
    with cache.new_log(name) as log, cache.scratch(name) as scratch:
        try:
            yield Work(cache, reporter, log, scratch, mirror)
        except OSError as error:
            if error.errno is None:
                raise
            raise BuildError(f"{error.strerror}: {error.filename}", log=log.path) from error


class Recipe(ABC):
    """An image that the cache may hold.

    :ivar kind: of the artefact.
    :ivar label: distinguishes artefacts of a kind, for a person.
    :ivar what: the image's name in messages.
    :ivar tools: the commands that a build runs, as :data:`images.needs.NEEDS` has them.
    :ivar space: bytes that a build needs.
    """

    kind: str
    label: str
    what: str
    tools: Collection[str]
    space: int

    @abstractmethod
    def inputs(self) -> dict[str, object]:
        """Everything that determines the image; the artefact's key is the hash of it."""

    @abstractmethod
    def make(self, work: Work) -> dict[str, object]:
        """Make the image in ``work.out``, an empty folder; returns facts for its manifest."""

    @property
    def lock(self) -> str:
        """Name of the lock that is held while the image is made."""
        return self.kind

    def key(self) -> str:
        """The content hash of the artefact."""
        return digest_inputs(self.inputs())

    def find(self, cache: Cache) -> Artefact | None:
        """The finished image for the present inputs, or None."""
        return cache.find(self.kind, self.label, self.key())

    def ensure(self, cache: Cache, reporter: Reporter, *, mirror: str | None = None) -> Artefact:
        """The image, made if it is not in the cache.

        :param mirror: URI of a Debian archive; the host's by default.
        :raises BuildError: it cannot be made; the cache is as it was.
        """
        require_tools(self.tools, self.what)
        inputs = self.inputs()
        if found := cache.find(self.kind, self.label, digest_inputs(inputs)):
            return found
        with cache.lock(self.lock, reporter) as waited:
            if waited:
                inputs = self.inputs()
            key = digest_inputs(inputs)
            if found := cache.find(self.kind, self.label, key):
                return found
            cache.require_space(self.space, self.what)
            first = len(reporter.timings)
            with work_on(cache, reporter, mirror, self.kind) as work:
                reporter.note(f"building {self.what}; log: {work.log.path}")
                work.out.mkdir()
                facts = self.make(work)
                manifest = {**facts, "inputs": inputs, "steps": dict(reporter.timings[first:])}
                (work.out / "build.log").write_bytes(work.log.path.read_bytes())
                return cache.publish(work.out, self.kind, self.label, key, manifest)
