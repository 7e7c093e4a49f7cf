# SPDX-License-Identifier: GPL-2.0-or-later
"""Archives in the format "newc", which Linux unpacks as an initramfs.  Pure: no file is read.

Every entry belongs to root and has no time, so that the same files always make the same archive; a device
node needs no root here.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass

_END = "TRAILER!!!"
_BLOCK = 512


@dataclass(frozen=True)
class Entry:
    """One file of an archive.

    :param path: without a leading slash; the folders above it have to be entries before it.
    :param mode: type and permissions.
    :param content: a file's bytes, a symbolic link's target.
    :param device: major and minor number of a node.
    """

    path: str
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


def folder(path: str) -> Entry:
    return Entry(path, stat.S_IFDIR | 0o755)


def program(path: str, content: bytes) -> Entry:
    return Entry(path, stat.S_IFREG | 0o755, content)


def file(path: str, content: bytes) -> Entry:
    return Entry(path, stat.S_IFREG | 0o644, content)


def link(path: str, target: str) -> Entry:
    """A symbolic link."""
    return Entry(path, stat.S_IFLNK | 0o777, os.fsencode(target))


def character_device(path: str, major: int, minor: int) -> Entry:
    return Entry(path, stat.S_IFCHR | 0o600, device=(major, minor))


def archive(entries: Iterable[Entry]) -> bytes:
    """The archive of some entries, in their order, padded to a multiple of 512 bytes."""
    out = bytearray()
    for number, entry in enumerate([*entries, Entry(_END, 0)], start=1):
        name = os.fsencode(entry.path) + b"\0"
        links = 2 if stat.S_ISDIR(entry.mode) else 1
        # inode, mode, owner, group, links, time, size, the archive's own device, the node's, name, checksum
        fields = (number, entry.mode, 0, 0, links, 0, len(entry.content), 0, 0, *entry.device, len(name), 0)
        out += b"070701" + b"".join(b"%08X" % value for value in fields) + name
        _pad(out, 4)
        out += entry.content
        _pad(out, 4)
    _pad(out, _BLOCK)
    return bytes(out)


def _pad(out: bytearray, size: int) -> None:
    out += bytes(-len(out) % size)
