# SPDX-License-Identifier: GPL-2.0-or-later
"""The variables in an image of OVMF.  Pure: no file is read.

Debian's OVMF for TDs has a platform key, which turns Secure Boot on.  With it a kernel that is started
directly has to be signed by one of the keys, or to be verified by a shim, which requires SBAT data: Debian's
is not, and has none.
Layouts: MdePkg/Include/Pi/PiFirmwareVolume.h and MdeModulePkg/Include/Guid/VariableFormat.h of edk2.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

from images.errors import BuildError

PLATFORM_KEY = "PK"

_AUTHENTICATED_STORE = UUID("aaf32c78-947b-439a-a180-2e144ec37792").bytes_le
_STORE_HEADER = struct.Struct("<16sIBBHI")
# start id, state, reserved, attributes, monotonic count, time, index of key, sizes of name and data, vendor
_VARIABLE = struct.Struct("<HBBIQ16sIII16s")
_START_ID = 0x55AA
_STATE_OFFSET = 2
_ADDED, _DELETED = 0x3F, 0xFD


@dataclass(frozen=True)
class Variable:
    """A variable that is in force; ``at`` is the offset of its header in the image."""

    name: str
    at: int


def variables(image: bytes) -> Iterator[Variable]:
    """The variables in force.

    :raises BuildError: the image has no store of variables.
    """
    store = image.find(_AUTHENTICATED_STORE)
    if store < 0:
        raise BuildError("the firmware has no store of variables", hint="images/guests/ovmf.py knows edk2's")
    size = _STORE_HEADER.unpack_from(image, store)[1]
    at, end = store + _STORE_HEADER.size, min(store + size, len(image) - _VARIABLE.size)
    while at < end:
        start, state, *_, name_size, data_size, _vendor = _VARIABLE.unpack_from(image, at)
        if start != _START_ID:
            return
        name = image[at + _VARIABLE.size :][:name_size].decode("utf-16-le").rstrip("\0")
        if state == _ADDED:
            yield Variable(name, at)
        # The next header is aligned in the store, as edk2 has it.
        at += -(-(_VARIABLE.size + name_size + data_size) // 4) * 4


def without(name: str, image: bytes) -> bytes:
    """The image with a variable marked as deleted.

    :raises BuildError: it has none of that name.
    """
    found = [variable for variable in variables(image) if variable.name == name]
    if not found:
        raise BuildError(f"the firmware has no variable {name}", hint="images/guests/ovmf.py names it")
    changed = bytearray(image)
    for variable in found:
        changed[variable.at + _STATE_OFFSET] &= _DELETED
    return bytes(changed)
