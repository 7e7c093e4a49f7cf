# SPDX-License-Identifier: GPL-2.0-or-later
"""ext4 images of folders, made without a loop device and without root."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from images.commands import Log, run

_BLOCK = 4096
_INODE_RATIO_SLACK = 64
_EPOCH = "1"


def image_blocks(folder: Path, slack: float = 1.08) -> tuple[int, int]:
    """(blocks, inodes) that an image of ``folder`` needs; blocks of 4096 bytes.

    :param slack: share added for directories, extents and tables.
    """
    blocks = inodes = 0
    for base, folders, names in os.walk(folder):
        inodes += len(folders) + len(names)
        blocks += len(folders)
        for name in names:
            blocks += -(-(Path(base) / name).lstat().st_size // _BLOCK)
    inodes += _INODE_RATIO_SLACK
    tables = inodes * 256 // _BLOCK
    return int((blocks + tables) * slack) + 256, inodes


def make_image(
    folder: Path, image: Path, *, label: str, uuid: str, log: Log, under: tuple[str, ...] = ()
) -> None:
    """Write an ext4 image of ``folder``: no journal (it is always mounted read-only), owner root.

    :param uuid: of the file system; also seeds its hashes.
    :param under: words of a command that runs mke2fs, such as ``fakeroot -i state``.
    :raises CommandError: mke2fs failed.
    """
    blocks, inodes = image_blocks(folder)
    image.unlink(missing_ok=True)
    argv = [
        *under,
        "mke2fs",
        "-q",
        "-F",
        *("-t", "ext4"),
        *("-b", str(_BLOCK)),
        *("-N", str(inodes)),
        *("-m", "0"),
        *("-L", label),
        *("-U", uuid),
        *("-O", "^has_journal,^resize_inode,^metadata_csum"),
        *("-E", f"hash_seed={uuid},root_owner=0:0,lazy_itable_init=0,nodiscard"),
        *("-d", str(folder)),
        str(image),
        str(blocks),
    ]
    env = {"SOURCE_DATE_EPOCH": _EPOCH, "E2FSPROGS_FAKE_TIME": _EPOCH}
    run(argv, log=log, env=env, what=f"making {shlex.quote(image.name)} failed")
