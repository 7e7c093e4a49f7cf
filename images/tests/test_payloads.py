# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest

from images.cache import Cache
from images.commands import Log
from images.errors import BuildError
from images.payloads import build
from images.progress import Reporter

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")

_RESET = '\t.section .reset, "ax"\n\t.globl reset\nreset:\n\tjmp start\n'
_START = '\t.section .text.start, "ax"\n\t.globl start\nstart:\n\tcall main\n\thlt\n'


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "sources"
    (folder / "lib").mkdir(parents=True)
    (folder / "include").mkdir()
    shutil.copy(Path(build.__file__).parent / "payload.ld", folder)
    return folder


def _build(sources: Path, log: Log) -> dict[str, bytes]:
    scratch = sources.parent / "scratch"
    scratch.mkdir()
    build.build_all(sources, scratch, scratch / "out", log)
    return {path.stem: path.read_bytes() for path in (scratch / "out").iterdir()}


def test_every_payload_of_ours_starts_at_its_reset_vector(cache: Cache, report: Reporter) -> None:
    artefact = build.ensure(cache, report)
    images = build.images_of(artefact)
    bases = artefact.manifest()["bases"]
    assert set(images) == set(bases)
    assert "spin" in images
    for name, path in images.items():
        image, base = path.read_bytes(), int(bases[name], 16)
        assert len(image) == (1 << 32) - base
        opcode, distance = struct.unpack_from("<Bi", image, len(image) - 16)
        assert opcode == 0xE9, name
        assert base <= 0xFFFFFFF5 + distance < 0xFFFFFFF0, name
    assert build.find(cache) == artefact


def test_a_payload_is_laid_out_as_firmware(sources: Path, log: Log) -> None:
    (sources / "tiny.S").write_text(
        "/* payload: base=0xfffff000 */\n\t.text\n\tnop\n" + _START.replace("call main", "incq %rax") + _RESET
    )
    image = _build(sources, log)["tiny"]
    assert len(image) == 4096
    assert image[:5].hex() == "48ffc0f4" + "90"
    assert image[8:16].hex() == "f4" * 8
    assert struct.unpack_from("<Bi", image, 0xFF0) == (0xE9, 0xFFFFF000 - 0xFFFFFFF5)
    assert image[0xFF5:].hex() == "f4" * 11


def test_c_with_a_start_from_the_library_and_a_header(sources: Path, log: Log) -> None:
    (sources / "include/answer.h").write_text("#define ANSWER 0x11223344\n")
    (sources / "lib/start.S").write_text(_START + _RESET)
    (sources / "lib/unused.S").write_text("\t.text\n\t.globl unused\nunused:\n\t.quad 0x5566778899aabbcc\n")
    (sources / "two.c").write_text(
        "/* payload: base=0xffffe000 */\n#include <answer.h>\nvolatile unsigned int data = ANSWER;\n"
        "extern char start[];\nvoid *keep = start;\nint main(void);\n"
        "int main(void) { return (int)data; }\n"
    )
    (sources / "one.S").write_text(
        "/* payload: base=0xfffff000 */\n" + _START.replace("call main", "nop") + _RESET
    )
    built = _build(sources, log)
    assert {name: len(image) for name, image in built.items()} == {"one": 4096, "two": 8192}
    assert bytes.fromhex("44332211") in built["two"]
    assert not any(bytes.fromhex("ccbbaa9988776655") in image for image in built.values())
    assert built["one"][0] == 0x90
    assert built["two"][-16] in (0xE9, 0xEB)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "does not say where it is loaded"),
        ("/* payload: base=0xfffff800 */", "is not a page"),
        ("/* payload: base=0x1000 */", "is not a page"),
    ],
)
def test_a_payload_without_a_sensible_base_is_refused(
    sources: Path, log: Log, text: str, message: str
) -> None:
    (sources / "x.S").write_text(text + "\n")
    with pytest.raises(BuildError, match=message):
        _build(sources, log)


def test_a_payload_that_does_not_fit_is_refused(sources: Path, log: Log) -> None:
    (sources / "big.S").write_text("/* payload: base=0xfffff000 */\n\t.text\n\t.space 4096\n" + _RESET)
    with pytest.raises(BuildError, match=r"linking the payload big\.S failed"):
        _build(sources, log)


def test_a_payload_that_does_not_compile_is_named(sources: Path, log: Log) -> None:
    (sources / "bad.c").write_text("/* payload: base=0xfffff000 */\nint f( {\n")
    with pytest.raises(BuildError, match=r"the payload bad\.c does not compile"):
        _build(sources, log)


def test_two_payloads_of_one_name_are_refused(sources: Path, log: Log) -> None:
    (sources / "a.S").write_text(
        "/* payload: base=0xfffff000 */\n" + _START.replace("call main", "nop") + _RESET
    )
    (sources / "a.c").write_text("/* payload: base=0xfffff000 */\n")
    with pytest.raises(BuildError, match="two payloads are named a"):
        _build(sources, log)
