# SPDX-License-Identifier: GPL-2.0-or-later
"""What the guest's images are made of, as far as that shows without booting it."""

from __future__ import annotations

import io
import lzma
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from images import sources
from images.apt import NotThere, RemoteFile
from images.cache import Cache
from images.commands import Log
from images.errors import BuildError
from images.guests import build, compiled, cpio, modules, packages, selftest
from images.guests.packages import Packages
from images.progress import Reporter
from images.recipe import Work
from images.sources import Source

_needs_dpkg = pytest.mark.skipif(shutil.which("dpkg") is None, reason="this machine has no dpkg")

_KERNEL = "linux-image-6.12.{}+deb13-cloud-amd64"
_OLD, _NEW = (_KERNEL.format(107), "6.12.107-1"), (_KERNEL.format(117), "6.12.117-1")


# The archive


def test_an_entry_is_its_header_its_name_and_its_content() -> None:
    made = cpio.archive([cpio.file("etc/ab", b"hello")])
    # inode, mode, owner, group, links, time, size
    fields = [b"00000001", b"000081A4", b"00000000", b"00000000", b"00000001", b"00000000", b"00000005"]
    # The archive's device, the node's, length of the name, checksum.
    fields += [b"00000000", b"00000000", b"00000000", b"00000000", b"00000007", b"00000000"]
    first = b"070701" + b"".join(fields) + b"etc/ab\0" + b"\0\0\0" + b"hello\0\0\0"
    assert len(first) % 4 == 0
    assert made.startswith(first + b"07070100000002")
    assert made.rstrip(b"\0").endswith(b"TRAILER!!!")
    assert len(made) % 512 == 0


def test_types_and_permissions_and_device_numbers_are_in_the_header() -> None:
    def header(entry: cpio.Entry) -> tuple[int, int, tuple[int, int]]:
        fields = cpio.archive([entry])[6:110]
        values = [int(fields[at : at + 8], 16) for at in range(0, 104, 8)]
        return values[1], values[4], (values[9], values[10])

    assert header(cpio.folder("bin")) == (0o040755, 2, (0, 0))
    assert header(cpio.program("init", b"")) == (0o100755, 1, (0, 0))
    assert header(cpio.link("bin/sh", "busybox")) == (0o120777, 1, (0, 0))
    assert header(cpio.character_device("dev/console", 5, 1)) == (0o020600, 1, (5, 1))


# The modules


def _module(depends: str) -> bytes:
    return b"\x7fELF\0license=GPL\0depends=" + depends.encode() + b"\0name=x\0"


def test_each_module_comes_after_what_it_depends_on(tmp_path: Path) -> None:
    folder = tmp_path / "6.12.1/kernel/net"
    folder.mkdir(parents=True)
    for name, depends in {
        "a-b": "c_d,e",
        "c-d": "e",
        "e": "",
        "f": "a-b",
        "not-wanted": "",
    }.items():
        (folder / f"{name}.ko.xz").write_bytes(lzma.compress(_module(depends)))
    read = modules.read(tmp_path / "6.12.1", ("f", "c-d"))
    assert list(read) == ["e.ko", "c_d.ko", "a_b.ko", "f.ko"]
    assert read["c_d.ko"] == _module("e")
    with pytest.raises(BuildError, match=r"the kernel in 6\.12\.1 has no module g"):
        modules.read(tmp_path / "6.12.1", ("e", "g"))


def test_a_module_that_several_need_is_loaded_once() -> None:
    needs = {"a": ["c"], "b": ["c", "a"], "c": []}
    assert modules.in_order(["b", "a"], needs.__getitem__) == ["c", "a", "b"]


def test_modules_that_need_each_other_are_an_error() -> None:
    needs = {"a": ["b"], "b": ["a"]}
    with pytest.raises(BuildError, match="a → b → a depend on each other"):
        modules.in_order(["a"], needs.__getitem__)


def test_a_file_that_names_no_dependencies_is_no_module() -> None:
    assert modules.depends(_module("")) == []
    with pytest.raises(ValueError, match="no module"):
        modules.depends(b"\x7fELF\0license=GPL\0")


# The packages


class _Mirror:
    """A mirror whose suites list these packages, and whose pool has all but some."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, lacking: str = "") -> None:
        self.lists: dict[str, list[tuple[str, str]]] = {
            "trixie": [_OLD, _NEW, ("busybox-static", "1:1.37.0-6+b9"), (_KERNEL.format(118) + "-dbg", "9")],
            "forky": [("ovmf-inteltdx", "2026.08-2")],
            "sid": [("ovmf-inteltdx", "2026.11-1")],
        }
        self.asked: list[str] = []
        mirror = self

        class Client:
            mirror = "file:/m"

            def __init__(self, cache: Cache, uri: str, suite: str, log: Log, *, sources: bool) -> None:
                assert not sources
                self.suite = suite

            def update(self) -> None:
                mirror.asked.append(self.suite)
                if self.suite not in mirror.lists:
                    raise NotThere(f"m does not have {self.suite}")

            def versions(self, prefix: str, pattern: str) -> list[tuple[str, str]]:
                found = mirror.lists[self.suite]
                return [item for item in found if re.fullmatch(prefix + pattern, item[0])]

            def package_versions(self, package: str) -> list[tuple[str, str]]:
                return [item for item in mirror.lists[self.suite] if item[0] == package]

            def binary(self, package: str, version: str) -> RemoteFile | None:
                assert (package, version) in mirror.lists[self.suite]
                name = f"{package}_{version}.deb"
                return None if package == lacking else RemoteFile(f"pool/{name}", f"hash of {name}")

        monkeypatch.setattr(sources, "PrivateApt", Client)


def _source(package: str, version: str) -> Source:
    name = f"{package}_{version}.deb"
    return Source(package, version, f"pool/{name}", f"hash of {name}")


def _usual(firmware: str = "2026.08-2") -> Packages:
    busybox = _source("busybox-static", "1:1.37.0-6+b9")
    return Packages(_source(*_NEW), busybox, _source("ovmf-inteltdx", firmware))


def _listed(cache: Cache, report: Reporter, *, refresh: bool = False) -> list[Packages]:
    return list(packages.candidates(cache, report, mirror="file:/m", refresh=refresh))


@_needs_dpkg
def test_the_newest_kernel_of_the_suite_and_the_firmware_of_the_next_are_taken(
    cache: Cache, report: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    _Mirror(monkeypatch)
    assert _listed(cache, report) == [_usual()]


@_needs_dpkg
def test_a_package_that_the_mirror_lists_and_lacks_is_passed_over(
    cache: Cache, report: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    _Mirror(monkeypatch, lacking=_NEW[0])
    assert [found.kernel for found in _listed(cache, report)] == [_source(*_OLD)]


@_needs_dpkg
@pytest.mark.parametrize("lists", [{}, {"forky": []}], ids=["no suite", "no package"])
def test_the_firmware_comes_from_another_suite_if_it_must(
    lists: dict[str, list[tuple[str, str]]],
    cache: Cache,
    report: Reporter,
    said: io.StringIO,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mirror = _Mirror(monkeypatch)
    del mirror.lists["forky"]
    mirror.lists |= lists
    assert _listed(cache, report) == [_usual("2026.11-1")]
    assert "guests: " in said.getvalue()
    assert "does not have" in said.getvalue()


@_needs_dpkg
def test_a_mirror_without_such_a_kernel_is_an_error_with_a_hint(
    cache: Cache, report: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = _Mirror(monkeypatch)
    mirror.lists["trixie"] = mirror.lists["trixie"][2:]
    with pytest.raises(NotThere, match="file:/m does not have a cloud kernel in trixie") as caught:
        _listed(cache, report)
    assert "--mirror" in caught.value.hint


@_needs_dpkg
def test_the_packages_used_last_are_tried_before_a_mirror_is_asked(
    cache: Cache, report: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = _Mirror(monkeypatch)
    old = Packages(_source(*_OLD), _usual().busybox, _usual().firmware)
    cache.sources.mkdir(parents=True)
    for source in (*old.each(), *_usual().each(), _source("qemu", "1")):
        (cache.sources / source.file_name).touch()
    packages.record(cache, old)
    kept = {source.file_name for source in old.each()} | {"qemu_1.deb"}
    assert {path.name for path in cache.sources.iterdir()} == kept
    tried = packages.candidates(cache, report, mirror="file:/m", refresh=False)
    assert next(tried) == old
    assert mirror.asked == []
    assert list(tried) == [_usual()]
    assert _listed(cache, report, refresh=True) == [_usual()]
    packages.record(cache, _usual())
    assert _listed(cache, report) == [_usual()]


def test_a_package_whose_files_have_changed_is_an_error(
    tmp_path: Path, cache: Cache, log: Log, report: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "unpack", lambda *_: tmp_path)
    (tmp_path / "boot").mkdir()
    work = Work(cache, report, log, tmp_path)
    with pytest.raises(BuildError, match=r"boot has 0 files vmlinuz-\*, not one"):
        build.Guests(_usual()).make(work)


# The kernel's own test


def _kernel_tree(folder: Path, *, program: str) -> Path:
    for path in selftest._FILES:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text("#define ANSWER 42\n" if path == selftest._INTERFACE else "")
    (folder / selftest._PROGRAM).write_text(program)
    return folder


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_the_kernels_test_is_a_disk_that_is_a_program(tmp_path: Path, cache: Cache, report: Reporter) -> None:
    program = '#include <linux/tdx-guest.h>\n#include "kselftest_harness.h"\nint main() { return ANSWER; }\n'
    tree = _kernel_tree(tmp_path / "linux", program=program)
    disk = selftest.ensure(cache, report, tree=tree).path / selftest.IMAGE
    assert disk.stat().st_size % 512 == 0
    copy = tmp_path / "copy"
    copy.write_bytes(disk.read_bytes())
    copy.chmod(0o700)
    assert subprocess.run([copy], check=False, timeout=30).returncode == 42
    (tree / selftest._PROGRAM).write_text("not C\n")
    with pytest.raises(BuildError, match=r"tdx_guest_test\.c does not compile"):
        selftest.ensure(cache, report, tree=tree)


def test_a_tree_without_the_kernels_test_is_an_error(tmp_path: Path, cache: Cache, report: Reporter) -> None:
    tree = _kernel_tree(tmp_path / "linux", program="")
    (tree / selftest._INTERFACE).unlink()
    with pytest.raises(BuildError, match=r"linux has no include/uapi/linux/tdx-guest\.h"):
        selftest.ensure(cache, report, tree=tree)
    with pytest.raises(BuildError, match="the cache has no kernel source"):
        selftest.ensure(cache, report)
    assert selftest.find(cache) is None


# The programs


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_the_programs_compile_into_one_that_is_called_by_their_names(tmp_path: Path, log: Log) -> None:
    made = compiled.build(tmp_path, log)

    def call(name: str, *words: str) -> tuple[int, str]:
        done = subprocess.run(
            [name, *words], executable=made, capture_output=True, text=True, timeout=30, check=False
        )
        return done.returncode, done.stdout

    for name in ("diskwork", "vsockecho", "secret"):
        assert call(f"/bin/{name}") == (2, call(name)[1])
        assert f"usage: {name} " in call(name)[1]
    assert call("cpuid", "x") == (2, "usage: cpuid\n")
    assert compiled.programs() == ["cpuid", "diskwork", "report", "secret", "tick", "vsockecho"]
