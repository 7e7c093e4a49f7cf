# SPDX-License-Identifier: GPL-2.0-or-later
"""The firmware that starts a kernel: what a VMM reads of it."""

from __future__ import annotations

import hashlib
import re
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from images.cache import Cache
from images.firmware import build
from images.progress import Reporter
from images.tests.tdvf import BOOT_VOLUME, MEASURED, TD_HOB, TEMPORARY_MEMORY, guids, sections

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")

PAGE, UNIT, END = 4096, 64 << 10, 1 << 32

_FIRMWARE = Path(build.__file__).parent

_HASH_OF_INPUT = """
#include "sha384.h"

long read(int fd, void *to, u64 size);
long write(int fd, const void *from, u64 size);

int main(void)
{
	struct sha384 hash;
	u8 data[37], digest[SHA384_SIZE];
	long size;

	sha384_init(&hash);
	while ((size = read(0, data, sizeof(data))) > 0)
		sha384_update(&hash, data, size);
	sha384_final(&hash, digest);
	return write(1, digest, sizeof(digest)) != sizeof(digest);
}
"""


@pytest.fixture
def image(cache: Cache, report: Reporter) -> bytes:
    artefact = build.ensure(cache, report)
    assert build.find(cache) == artefact
    return (artefact.path / build.IMAGE).read_bytes()


def _layout() -> dict[str, int]:
    text = (_FIRMWARE / "layout.h").read_text()
    return {name: int(value, 16) for name, value in re.findall(r"#define (\w+)\s+(0x[0-9a-f]+)", text)}


def test_the_image_is_of_whole_units_and_starts_at_its_reset_vector(image: bytes) -> None:
    assert image
    assert len(image) % UNIT == 0
    base = END - len(image)
    opcode, distance = struct.unpack_from("<Bi", image, len(image) - 16)
    assert opcode == 0xE9
    assert base <= 0xFFFFFFF5 + distance < 0xFFFFFFF0


def test_the_metadata_name_all_of_the_image_and_the_memory_that_it_has_from_the_start(image: bytes) -> None:
    layout = _layout()
    assert len(guids(image)) == 1
    volume, hob, temporary = sections(image)
    assert volume == (0, len(image), END - len(image), len(image), BOOT_VOLUME, MEASURED)
    assert hob == (0, 0, layout["HOB_GPA"], layout["HOB_SIZE"], TD_HOB, 0)
    assert temporary == (0, 0, layout["MAILBOX_GPA"], layout["MAILBOX_SIZE"], TEMPORARY_MEMORY, 0)


def test_the_memory_that_it_has_from_the_start_does_not_overlap(image: bytes) -> None:
    placed = sorted(sections(image), key=lambda section: section.address)
    assert not [section for section in placed if section.address % PAGE or section.size % PAGE]
    ends = [0, *(section.address + section.size for section in placed)]
    assert all(end <= section.address for end, section in zip(ends, placed, strict=False))


def test_what_it_places_in_memory_does_not_overlap() -> None:
    layout = _layout()
    placed = [
        ("SETUP_GPA", "PARAMS_GPA"),
        ("PARAMS_GPA", "EFI_GPA"),
        ("EFI_GPA", "EFI_END"),
        ("CMDLINE_GPA", "UNACCEPTED_GPA"),
        ("UNACCEPTED_GPA", "LOW_END"),
        ("HOB_GPA", "MAILBOX_GPA"),
        ("MAILBOX_GPA", "LOG_GPA"),
        ("LOG_GPA", "KEPT_END"),
        ("ACPI_GPA", "ACPI_END"),
        ("SHARED_BUFFER_GPA", "FIRMWARE_GPA"),
    ]
    borders = [layout[name] for pair in placed for name in pair]
    assert borders == sorted(borders)
    for name in ("SETUP", "CMDLINE", "HOB", "MAILBOX", "LOG", "SHARED_BUFFER"):
        begin = layout[f"{name}_GPA"]
        end = begin + layout.get(f"{name}_SIZE", layout.get(f"{name}_MAX", 0))
        assert begin < end <= min(border for border in borders if border > begin), name


@pytest.mark.parametrize("size", [0, 1, 111, 112, 127, 128, 129, 255, 1000])
def test_sha384_is_that_of_hashlib(size: int, tmp_path: Path) -> None:
    (tmp_path / "main.c").write_text(_HASH_OF_INPUT)
    program = tmp_path / "main"
    folders = (_FIRMWARE, _FIRMWARE.parent / "payloads/include")
    command: list[str | Path] = ["gcc", "-fno-builtin", *(f"-I{folder}" for folder in folders), "-o", program]
    subprocess.run([*command, tmp_path / "main.c", _FIRMWARE / "sha384.c"], check=True, timeout=60)
    data = bytes(number * number % 251 for number in range(size))
    found = subprocess.run([program], input=data, capture_output=True, check=True, timeout=60).stdout
    assert found == hashlib.sha384(data).digest()
