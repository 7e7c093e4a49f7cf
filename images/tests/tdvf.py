# SPDX-License-Identifier: GPL-2.0-or-later
"""TDX metadata of a firmware, read as QEMU reads them (hw/i386/tdvf.c, hw/i386/pc_sysfw_ovmf.c)."""

from __future__ import annotations

import struct
import uuid
from typing import NamedTuple

TABLE = uuid.UUID("96b582de-1fb2-45f7-baea-a366c55a082d")
METADATA_OFFSET = uuid.UUID("e47a6535-984a-4798-865e-4685a7bf8ec2")
BOOT_VOLUME, TD_HOB, TEMPORARY_MEMORY = 0, 2, 3
MEASURED = 1


class Section(NamedTuple):
    """A part of a TD's memory that exists before its first instruction.

    :param offset: of its content in the image, and ``raw``, its size there.
    """

    offset: int
    raw: int
    address: int
    size: int
    kind: int
    attributes: int


def guids(image: bytes) -> dict[uuid.UUID, bytes]:
    """The entries of the table of GUIDs, which is read from its end."""
    end = len(image) - 48
    assert uuid.UUID(bytes_le=image[end : end + 16]) == TABLE
    (length,) = struct.unpack("<H", image[end - 2 : end])
    start, at = end + 16 - length, end - 2
    found = {}
    while at > start:
        (size,) = struct.unpack("<H", image[at - 18 : at - 16])
        found[uuid.UUID(bytes_le=image[at - 16 : at])] = image[at - size : at - 18]
        at -= size
    assert at == start
    return found


def sections(image: bytes) -> list[Section]:
    """The sections that the metadata list."""
    (distance,) = struct.unpack("<I", guids(image)[METADATA_OFFSET])
    metadata = image[len(image) - distance :]
    signature, length, version, count = struct.unpack("<4sIII", metadata[:16])
    assert (signature, length, version) == (b"TDVF", 16 + count * 32, 1)
    return [Section(*words) for words in struct.iter_unpack("<IIQQII", metadata[16:length])]
