# SPDX-License-Identifier: GPL-2.0-or-later
"""The files of a tree after our patches and additions, worked out beside the tree.

The tree itself is written to by the caller, and only where a file's content differs from what is there:
``git am`` or ``patch`` in place would write each file once for each patch, and make would compile everything
that depends on it again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from images.commands import Log, run
from images.errors import BuildError, CommandError
from images.misfit import describe

_NAMED = re.compile(
    rb"^--- (?:a/)?([^\t\n\r]+).*\n\+\+\+ (?:b/|a/)?([^\t\n\r]+)|^rename from (.+)\nrename to (.+)$",
    re.MULTILINE,
)


class PatchError(BuildError):
    """A patch does not apply to this version.

    :param patch: the patch as a file of this project.
    :param misfit: its part that does not fit, in words.
    """

    def __init__(self, patch: Path, misfit: str, *, onto: str, otherwise: str, log: Path) -> None:
        self.misfit = f"{patch.parent.name}/{patch.name}: {misfit}"
        super().__init__(
            f"the patch {patch.parent.name}/{patch.name} does not apply to {onto}: {misfit}",
            hint=f"adapt {patch}, or {otherwise}",
            log=log,
        )


@dataclass(frozen=True)
class Changes:
    """The files that differ from the base.

    :param files: path → (content, executable).
    :param removed: paths that are removed.
    """

    files: Mapping[str, tuple[bytes, bool]]
    removed: frozenset[str]

    @property
    def paths(self) -> set[str]:
        return set(self.files) | self.removed


def paths_of(patch: bytes) -> list[str]:
    """The paths that a patch names, without a/ and b/, in order of appearance."""
    found: dict[str, None] = {}
    for match in _NAMED.finditer(patch):
        for name in match.groups():
            if name is not None and name.strip() != b"/dev/null":
                found[name.decode().strip()] = None
    return list(found)


def without(patch: bytes, passed_over: Callable[[str], bool]) -> bytes:
    """A patch, as ``git format-patch`` writes it, without its changes to some paths."""
    head, *files = re.split(rb"^(?=diff --git )", patch, flags=re.MULTILINE)
    return head + b"".join(file for file in files if not any(map(passed_over, paths_of(file))))


def work_out(
    original: Callable[[str], bytes | None],
    steps: Iterable[tuple[Path, ...] | Mapping[str, bytes]],
    work: Path,
    *,
    onto: str,
    otherwise: str,
    log: Log,
    left_out: Callable[[str], bool] = lambda path: False,
) -> Changes:
    """Apply patches and additions, in order, to the base's files.

    :param original: path → the base's content, None where the base has no such file.
    :param steps: each is a series of patches, or a mapping of path → content to add.
    :param work: an empty folder.
    :param onto: the base and its version, for the message: ``Linux 7.3.4``.
    :param otherwise: an alternative to adapting the patch, for the hint.
    :param left_out: path → whether the base may lack it, because no build reads it (documentation); a
        patch's changes to such a file are then passed over.
    :raises PatchError: naming the patch, the file and the hunk.
    """
    tree = work / "tree"
    tree.mkdir()
    touched: set[str] = set()

    def bring(path: str) -> None:
        if path not in touched:
            touched.add(path)
            content = original(path)
            if content is not None:
                _write(tree / path, content)

    for step in steps:
        if isinstance(step, Mapping):
            for path, content in step.items():
                touched.add(path)
                _write(tree / path, content)
            continue
        for patch in step:
            content = without(patch.read_bytes(), lambda path: left_out(path) and original(path) is None)
            for path in paths_of(content):
                bring(path)
            _apply(patch, content, tree, onto, otherwise, log)
    files = {path: (tree / path).read_bytes() for path in sorted(touched) if (tree / path).is_file()}
    return Changes(
        {path: (content, content.startswith(b"#!")) for path, content in files.items()},
        frozenset(path for path in touched if path not in files and original(path) is not None),
    )


def _apply(patch: Path, content: bytes, tree: Path, onto: str, otherwise: str, log: Log) -> None:
    part = tree.parent / patch.name
    part.write_bytes(content)
    command: list[str | Path] = ["patch", "-p1", "--batch", "--forward", "--no-backup-if-mismatch"]
    command += ["--reject-file=-", "-i", part]
    output: list[str] = []
    try:
        run(command, log=log, cwd=tree, what=f"{patch.name} does not apply", on_line=output.append)
    except CommandError as error:
        misfit = describe(content.decode(errors="replace"), output)
        raise PatchError(patch, misfit, onto=onto, otherwise=otherwise, log=log.path) from error


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
