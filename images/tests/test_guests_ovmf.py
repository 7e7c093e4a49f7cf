# SPDX-License-Identifier: GPL-2.0-or-later
"""Variables in an image of OVMF."""

from __future__ import annotations

import struct
from uuid import UUID

import pytest

from images.errors import BuildError
from images.guests import ovmf

STORE = UUID("aaf32c78-947b-439a-a180-2e144ec37792").bytes_le


def variable(name: str, data: bytes, state: int = 0x3F) -> bytes:
    encoded = name.encode("utf-16-le") + b"\0\0"
    header = struct.pack(
        "<HBBIQ16sIII16s", 0x55AA, state, 0, 7, 0, b"", 0, len(encoded), len(data), b"v" * 16
    )
    made = header + encoded + data
    return made + b"\xff" * (-len(made) % 4)


def image(*variables: bytes) -> bytes:
    body = b"".join(variables)
    header = struct.pack("<16sIBBHI", STORE, 28 + len(body) + 64, 0x5A, 0xFE, 0, 0)
    return b"\xee" * 72 + header + body + b"\xff" * 200


def test_variables_in_force_are_found_whatever_the_length_of_their_data() -> None:
    made = image(variable("KEK", b"a" * 5), variable("PK", b"old", state=0x3D), variable("PK", b"\xaa\x55x"))
    assert [found.name for found in ovmf.variables(made)] == ["KEK", "PK"]


def test_one_variable_is_deleted_and_nothing_else_changes() -> None:
    made = image(variable("KEK", b"a" * 5), variable("PK", b"key"), variable("db", b"certificates"))
    changed = ovmf.without("PK", made)
    assert [found.name for found in ovmf.variables(changed)] == ["KEK", "db"]
    different = [at for at, (old, new) in enumerate(zip(made, changed, strict=True)) if old != new]
    assert different == [next(found.at for found in ovmf.variables(made) if found.name == "PK") + 2]


def test_firmware_without_variables_is_refused() -> None:
    with pytest.raises(BuildError, match="no store of variables"):
        ovmf.without("PK", b"\xff" * 4096)
    with pytest.raises(BuildError, match="no variable PK"):
        ovmf.without("PK", image(variable("KEK", b"")))
