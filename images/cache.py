# SPDX-License-Identifier: GPL-2.0-or-later
"""The image cache: whole images, each found by the hash of its inputs.

::

    artefacts/<kind>-<label>-<hash>/   finished images; manifest.json in each
    apt/                               private state of the apt client
    sources/, trees/, ccache/          QEMU's source, kernel trees, compiled files: kept for the next build
    scratch/<name>/ + <name>.lock      a build under way; its process holds the lock until it ends
    locks/, logs/
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from images.commands import Log
from images.errors import BuildError
from images.progress import Reporter

MANIFEST = "manifest.json"
CACHE_ENV = "TDX_E2E_CACHE"
_HASH_DIGITS = 16
_KEPT_LOGS = 40


def cache_root(override: Path | None = None) -> Path:
    """The cache's folder: ``override``, $TDX_E2E_CACHE, $XDG_CACHE_HOME/tdx-e2e or ~/.cache/tdx-e2e."""
    if override is not None:
        return override.absolute()
    if named := os.environ.get(CACHE_ENV):
        return Path(named).absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache").absolute() / "tdx-e2e"


def digest_inputs(inputs: Mapping[str, object]) -> str:
    """The content hash of a set of inputs: 16 hexadecimal digits of a SHA-256 over sorted JSON."""
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_DIGITS]


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_files(folder: Path, patterns: Iterable[str] = ("**/*",)) -> dict[str, str]:
    """Relative path → SHA-256 of every regular file below ``folder`` that matches one of the globs.

    The executable bit counts.  A folder that does not exist has no files.
    """
    found: dict[str, str] = {}
    for pattern in patterns:
        for path in folder.glob(pattern):
            name = path.relative_to(folder)
            if path.is_file() and "__pycache__" not in name.parts:
                mode = "x" if path.stat().st_mode & stat.S_IXUSR else "-"
                found[str(name)] = mode + file_sha256(path)
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class Artefact:
    """A finished image in the cache."""

    path: Path
    kind: str
    label: str
    content_hash: str

    def manifest(self) -> dict[str, Any]:
        """The inputs of the image, and the seconds of each step that made it."""
        manifest: dict[str, Any] = json.loads((self.path / MANIFEST).read_text())
        return manifest

    def size(self) -> int:
        """Bytes that the image occupies on disk; holes do not count."""
        return disk_usage(self.path)


def disk_usage(folder: Path) -> int:
    """Bytes allocated to everything below ``folder``."""
    total = 0
    for base, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += (Path(base) / name).lstat().st_blocks * 512
    return total


class Cache:
    """The cache below one folder.

    :param root: made when something is first written; see :func:`cache_root`.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = cache_root(root)
        self.apt = self.root / "apt"
        self.sources = self.root / "sources"
        self.trees = self.root / "trees"
        self.ccache = self.root / "ccache"
        self._artefacts = self.root / "artefacts"
        self._scratch = self.root / "scratch"
        self._locks = self.root / "locks"
        self._logs = self.root / "logs"

    def path_of(self, kind: str, label: str, content_hash: str) -> Path:
        return self._artefacts / "-".join(filter(None, (kind, label, content_hash)))

    def find(self, kind: str, label: str, content_hash: str) -> Artefact | None:
        """The finished artefact, or None."""
        path = self.path_of(kind, label, content_hash)
        return Artefact(path, kind, label, content_hash) if (path / MANIFEST).is_file() else None

    def artefacts(self) -> list[Artefact]:
        """All finished artefacts, newest first."""
        paths = [manifest.parent for manifest in self._artefacts.glob(f"*/{MANIFEST}")]
        found = []
        for path in sorted(paths, key=lambda p: p.stat().st_mtime, reverse=True):
            kind, _, rest = path.name.partition("-")
            label, _, content_hash = rest.rpartition("-")
            found.append(Artefact(path, kind, label, content_hash))
        return found

    @contextlib.contextmanager
    def lock(self, name: str, reporter: Reporter) -> Iterator[bool]:
        """Hold the lock ``name``; if another process holds it, print that and wait.

        :returns: whether it had to wait.
        """
        path = self._lock_file(name)
        waited = False
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(_locked(path, wait=False))
            except BlockingIOError:
                waited = True
                with reporter.step(f"waiting for another process that builds {name}"):
                    held.enter_context(_locked(path))
            yield waited

    @contextlib.contextmanager
    def changing(self, name: str) -> Iterator[Path]:
        """Have a file of the cache for oneself while it is read and replaced; returns its path."""
        with _locked(self._lock_file(name)):
            yield self.root / name

    @contextlib.contextmanager
    def scratch(self, name: str) -> Iterator[Path]:
        """A new folder for one build, removed when the block is left, whatever happens.

        Folders that killed builds left behind are removed first.
        """
        self.remove_stale_scratch()
        with contextlib.ExitStack() as held:
            with self._gate():
                folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._scratch))
                guard = _guard_of(folder)
                held.enter_context(_locked(guard))
            try:
                yield folder
            finally:
                remove_tree(folder)
                guard.unlink(missing_ok=True)

    def remove_stale_scratch(self) -> int:
        """Remove scratch folders whose process is gone; returns their number."""
        if not self._scratch.is_dir():
            return 0
        removed = 0
        with self._gate():
            for folder in [path for path in self._scratch.iterdir() if path.is_dir()]:
                guard = _guard_of(folder)
                # In use, or still written to by a child of its killed builder: left for the next time.
                with contextlib.suppress(OSError), _locked(guard, wait=False):
                    remove_tree(folder)
                    guard.unlink(missing_ok=True)
                    removed += 1
        return removed

    @contextlib.contextmanager
    def _gate(self) -> Iterator[None]:
        """Excludes the creation of a scratch folder from the search for stale ones."""
        self._make(self._scratch)
        with _locked(self._scratch / "gate"):
            yield

    def _lock_file(self, name: str) -> Path:
        self._make(self._locks)
        return self._locks / f"{name}.lock"

    def publish(
        self, folder: Path, kind: str, label: str, content_hash: str, manifest: Mapping[str, object]
    ) -> Artefact:
        """Turn a scratch folder that holds a finished image into an artefact, in one rename.

        The caller holds the artefact's lock.
        """
        target = self.path_of(kind, label, content_hash)
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
        folder.chmod(0o755)
        self._make(self._artefacts)
        if target.exists():
            remove_tree(target)
        folder.rename(target)
        return Artefact(target, kind, label, content_hash)

    def new_log(self, name: str) -> Log:
        """Returns a log file for one build; removes the oldest logs."""
        self._make(self._logs)
        logs = sorted(self._logs.glob("*.log"))
        for old in logs[: max(0, len(logs) - _KEPT_LOGS)]:
            old.unlink(missing_ok=True)
        return Log(self._logs / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}-{os.getpid()}.log")

    def usage(self) -> int:
        """Bytes on disk of the whole cache."""
        return disk_usage(self.root)

    def discard(self, artefact: Artefact) -> None:
        """Remove an artefact: from :meth:`find` at once, then its files."""
        with self.scratch("discarded") as scratch:
            artefact.path.rename(scratch / artefact.path.name)

    def remove_all(self) -> None:
        """Remove everything but the locks.

        :raises BuildError: a build is under way.
        """
        with contextlib.ExitStack() as held:
            for path in sorted(self._locks.glob("*.lock")):
                try:
                    held.enter_context(_locked(path, wait=False))
                except BlockingIOError as error:
                    raise BuildError(
                        f"{path.stem} is being built", hint="clean again when that build has ended"
                    ) from error
            self.remove_stale_scratch()
            for path in self.root.iterdir() if self.root.is_dir() else ():
                if path == self._locks:
                    continue
                if path.is_dir():
                    remove_tree(path)
                else:
                    path.unlink()

    def require_space(self, needed: int, what: str) -> None:
        """Raise :class:`BuildError` unless ``needed`` bytes are free where the cache is."""
        self._make(self.root)
        free = shutil.disk_usage(self.root).free
        if free < needed:
            raise BuildError(
                f"{what} needs {needed / 1e9:.1f} GB of free space, {self.root} has {free / 1e9:.1f} GB",
                hint=f"`python -m images clean`, or put the cache elsewhere with {CACHE_ENV}",
            )

    def _make(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BuildError(
                f"cannot make the cache folder {folder}: {error.strerror}",
                hint=f"put the cache elsewhere with {CACHE_ENV} or --cache",
            ) from error


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a file, made if it is missing, until the block is left or this process has ended.

    :raises BlockingIOError: another process holds it, and ``wait`` is false.
    """
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def _guard_of(folder: Path) -> Path:
    return folder.with_name(folder.name + ".lock")


def remove_tree(folder: Path) -> None:
    """Remove a folder, unless something is mounted below it.

    :raises BuildError: something is mounted below it.
    """
    if not folder.exists():
        return
    mounted = mounts_below(folder, Path("/proc/self/mountinfo").read_text())
    if mounted:
        raise BuildError(f"{mounted[0]} is still mounted", hint=f"umount {mounted[0]}")
    shutil.rmtree(folder)


def mounts_below(folder: Path, mountinfo: str) -> list[str]:
    """Mount points below a folder, from the text of /proc/self/mountinfo."""
    prefix = str(folder.resolve()) + "/"
    points = [line.split()[4].replace("\\040", " ") for line in mountinfo.splitlines()]
    return [point for point in points if point.startswith(prefix)]
