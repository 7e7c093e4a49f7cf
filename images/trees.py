# SPDX-License-Identifier: GPL-2.0-or-later
"""Users' source trees, which are never written to: their source files, and whether these have changed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from images.commands import environment


def listed(folder: Path, is_output: Callable[[str], bool]) -> list[str]:
    """Paths of the sources below a folder.

    In a git work tree these are git's files and new files that it does not ignore; elsewhere, all files but
    a build's output.
    """
    if (folder / ".git").exists():
        command = ["git", "-c", f"safe.directory={folder}", "-C", str(folder)]
        command += ["ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        done = subprocess.run(command, env=environment(), capture_output=True, check=False)
        if done.returncode == 0:
            return [name for name in done.stdout.decode(errors="surrogateescape").split("\0") if name]
    return walk(folder, is_output)


def walk(folder: Path, is_output: Callable[[str], bool], below: str = "") -> list[str]:
    """Paths of all files below a folder, or below one in it (``name/``), without a build's output."""
    found = []
    with os.scandir(folder / below) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = f"{below}{entry.name}"
            if is_output(path):
                continue
            if entry.is_dir(follow_symlinks=False):
                found += walk(folder, is_output, path + "/")
            else:
                found.append(path)
    return found


def fingerprints(folder: Path, paths: Iterable[str]) -> dict[str, str]:
    """Path → size, times and mode of those of ``paths`` that are files."""
    found = {}
    # Not by Path.lstat(), which takes a second for a kernel's files.
    above = f"{folder}/"
    for path in paths:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            status = os.lstat(above + path)
            if not stat.S_ISDIR(status.st_mode):
                times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
                found[path] = f"{status.st_size} {times} {status.st_mode:o}"
    return found


def identity(folder: Path, files: Mapping[str, str]) -> dict[str, object]:
    """A tree's part of the inputs of an image that is built from it.

    :param files: its :func:`fingerprints`.
    """
    text = json.dumps(files, sort_keys=True)
    return {"tree": str(folder), "files": hashlib.sha256(text.encode()).hexdigest()}
