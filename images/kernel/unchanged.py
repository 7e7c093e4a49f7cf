# SPDX-License-Identifier: GPL-2.0-or-later
"""The proof that the KVM under test is the base's: each of its files is compared with its origin."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from images.cache import file_sha256

FOLDERS = ("arch/x86/kvm", "virt/kvm", "virt/lib", "arch/x86/virt/vmx")
"""Folders that have to be equal file by file, without an added or a missing file."""

HEADERS = (
    "include/linux/kvm*.h",
    "include/kvm/*.h",
    "include/uapi/linux/kvm*.h",
    "include/trace/events/kvm.h",
    "arch/x86/include/asm/kvm*.h",
    "arch/x86/include/asm/vmx*.h",
    "arch/x86/include/uapi/asm/kvm*.h",
    "arch/x86/include/uapi/asm/vmx.h",
)
"""KVM's headers, which are in other folders."""


@dataclass(frozen=True)
class Comparison:
    """The comparison of a prepared tree with its base.

    :param compared: number of files that were compared.
    :param changed: paths that differ, are missing, or are not in the base.
    """

    compared: int
    changed: tuple[str, ...]


def is_guarded(path: str) -> bool:
    """Returns whether a path relative to the tree is KVM's."""
    if any(path.startswith(folder + "/") for folder in FOLDERS):
        return True
    return any(
        fnmatch.fnmatchcase(path, pattern) and path.count("/") == pattern.count("/") for pattern in HEADERS
    )


def guarded_files(tree: Path) -> dict[str, str]:
    """Path → SHA-256 of KVM's files in a tree on disk; a symbolic link is ``-> <its target>``."""
    paths = [path for folder in FOLDERS for path in (tree / folder).rglob("*")]
    paths += [path for pattern in HEADERS for path in tree.glob(pattern)]
    found = {}
    for path in paths:
        name = str(path.relative_to(tree))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = file_sha256(path)
    return found


def compare(base: Mapping[str, str], tree: Path) -> Comparison:
    """Compare a tree with its base's hashes (path → SHA-256)."""
    present = guarded_files(tree)
    paths = sorted(set(base) | set(present))
    return Comparison(len(paths), tuple(path for path in paths if base.get(path) != present.get(path)))
