# SPDX-License-Identifier: GPL-2.0-or-later
"""Flavours, choice and unpacking of the source package, and what makes a new kernel."""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from images.cache import Cache
from images.commands import Log
from images.errors import BuildError
from images.kernel import build, configure, flavours, source
from images.kernel.source import choose, matches, unpack
from images.kernel.tree import KeptTree, Package
from images.progress import Reporter
from images.recipe import Work
from images.sources import Source

_needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="this machine has no dpkg")

_AVAILABLE = [
    ("linux-source-7.1", "7.1.7-1~bpo13+1"),
    ("linux-source-7.3", "7.3.9-1~bpo13+1"),
    ("linux-source-7.3", "7.3.10-1~bpo13+1"),
    ("linux-source-7.10", "7.10.1-1~bpo13+1"),
    ("linux-source-7.9", "7.9.2-1~bpo13+1"),
    ("linux-source-7.9", "7.9.2-1~bpo13+2"),
]


@_needs_dpkg
def test_the_usual_series_is_taken_at_its_newest_version() -> None:
    assert choose(_AVAILABLE, None) == [("linux-source-7.3", "7.3.10-1~bpo13+1")]


@_needs_dpkg
def test_when_the_usual_series_is_gone_the_newest_of_each_is_tried() -> None:
    rest = [item for item in _AVAILABLE if item[0] != "linux-source-7.3"]
    assert choose(rest, None) == [
        ("linux-source-7.10", "7.10.1-1~bpo13+1"),
        ("linux-source-7.9", "7.9.2-1~bpo13+2"),
        ("linux-source-7.1", "7.1.7-1~bpo13+1"),
    ]


@_needs_dpkg
def test_tdx_hosts_are_the_newest_of_each_series_since_6_16() -> None:
    older = [("linux-source-6.12", "6.12.117-1"), ("linux-source-6.16", "6.16.3-1"), *_AVAILABLE]
    assert source.tdx_hosts(older) == [
        "6.16.3-1",
        "7.1.7-1~bpo13+1",
        "7.3.10-1~bpo13+1",
        "7.9.2-1~bpo13+2",
        "7.10.1-1~bpo13+1",
    ]


@_needs_dpkg
@pytest.mark.parametrize("asked", ["7.9", "7.9.2", "7.9.2-1~bpo13+2", "linux-source-7.9"])
def test_a_version_can_be_asked_for(asked: str) -> None:
    assert choose(_AVAILABLE, asked) == [("linux-source-7.9", "7.9.2-1~bpo13+2")]
    assert choose(_AVAILABLE, "7.2") == []


def test_a_version_is_not_taken_for_a_longer_one() -> None:
    assert not matches("7.1", "linux-source-7.10", "7.10.1-1")
    assert not matches("7.3.1", "linux-source-7.3", "7.3.10-1")


def test_what_was_used_is_remembered_for_each_request(cache: Cache) -> None:
    used = source.last_used(cache)
    assert used.recall(None) is None
    old, new = _source("7.3.4-1"), _source("7.3.5-1~bpo13+1")
    used.record(None, old)
    used.record("7.3.5", new)
    assert used.recall(None) == old
    assert used.recall("7.3.4-1") == old
    assert used.recall("7.3.5") == new
    assert new.upstream == "7.3.5"


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[Source]:
    """The sources that the mirror has; the list is empty as long as there is no network."""
    found: list[Source] = []

    def look(work: Work, asked: str | None) -> list[Source]:
        if not found:
            raise BuildError("no network")
        return found

    monkeypatch.setattr(source, "_listed", look)
    return found


def _candidates(cache: Cache, report: Reporter, *, refresh: bool = False) -> Iterator[Source]:
    return source.candidates(cache, report, mirror=None, asked=None, refresh=refresh)


def test_the_source_used_last_needs_no_mirror(cache: Cache, report: Reporter, listed: list[Source]) -> None:
    used, newer = _source("7.3.4-1"), _source("7.3.5-1")
    source.last_used(cache).record(None, used)
    assert next(_candidates(cache, report)) == used
    with pytest.raises(BuildError, match="no network"):
        next(_candidates(cache, report, refresh=True))
    listed.extend((newer, used))
    # Its file is gone from the mirror: another version will do.
    assert list(_candidates(cache, report)) == [used, newer]
    assert list(_candidates(cache, report, refresh=True)) == [newer, used]
    # Its tree is here, so a patch does not apply, and that is no reason for another version.
    source.kept_folder(cache, used).mkdir(parents=True)
    assert list(_candidates(cache, report)) == [used]


def _source(version: str) -> Source:
    return Source("linux-source-7.3", version, f"pool/linux-source-7.3_{version}_all.deb", "aa")


def _package(folder: Path, *, whole: bool = True) -> Path:
    """A .deb with a little kernel in it."""
    members = {
        "Makefile": b"all:\n",
        "arch/x86/kvm/x86.c": b"int x86;\n",
        "virt/kvm/kvm_main.c": b"int main;\n",
        "arch/arm/kernel/x.c": b"int arm;\n",
        "arch/arm/crypto/Kconfig": b"config ARM\n",
        "arch/arm/boot/dts/a.dtsi": b"/ {};\n",
        "Documentation/kvm/api.rst": b"text\n",
        "Documentation/Kconfig": b"menu\n",
        "drivers/gpu/drm/amd/include/big.h": b"#define\n",
    }
    source = folder / "root/usr/src"
    source.mkdir(parents=True)
    with tarfile.open(source / "linux-source-7.3.tar.xz", "w:xz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(f"linux-source-7.3/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    if not whole:
        tarball = source / "linux-source-7.3.tar.xz"
        tarball.write_bytes(tarball.read_bytes()[:-200])
    (folder / "root/DEBIAN").mkdir()
    (folder / "root/DEBIAN/control").write_text(
        "Package: linux-source-7.3\nVersion: 7.3.4-1\nArchitecture: all\nMaintainer: x <x@x.invalid>\n"
        "Description: x\n"
    )
    deb = folder / "linux-source-7.3_7.3.4-1_all.deb"
    subprocess.run(["dpkg-deb", "-b", folder / "root", deb], check=True, capture_output=True)
    return deb


@_needs_dpkg
def test_a_package_is_unpacked_and_kvms_hashes_come_from_its_tarball(
    tmp_path: Path, log: Log, report: Reporter
) -> None:
    hashes = unpack(_package(tmp_path), tmp_path / "src", log, report)
    assert hashes == {
        "arch/x86/kvm/x86.c": hashlib.sha256(b"int x86;\n").hexdigest(),
        "virt/kvm/kvm_main.c": hashlib.sha256(b"int main;\n").hexdigest(),
    }
    files = {
        str(path.relative_to(tmp_path / "src")) for path in (tmp_path / "src").rglob("*") if path.is_file()
    }
    assert files == {
        "Makefile",
        "arch/x86/kvm/x86.c",
        "virt/kvm/kvm_main.c",
        "arch/arm/crypto/Kconfig",
        "Documentation/Kconfig",
    }


@_needs_dpkg
def test_a_broken_package_is_an_error(tmp_path: Path, log: Log, report: Reporter) -> None:
    with pytest.raises(BuildError, match="unpacking the kernel source failed") as caught:
        unpack(_package(tmp_path, whole=False), tmp_path / "src", log, report)
    assert caught.value.log == log.path


def test_upstream_is_unpatched_and_proven(tmp_path: Path) -> None:
    upstream = flavours.get("upstream")
    assert upstream.patches == ()
    assert upstream.kvm_unchanged
    with pytest.raises(BuildError, match="no kernel flavour 'nope'") as caught:
        flavours.get("nope")
    assert "upstream" in caught.value.hint


def test_a_flavour_is_its_series_in_order(tmp_path: Path) -> None:
    for name in ("a/0002.patch", "a/0001.patch", "b/0001.patch"):
        path = tmp_path / "patches" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "flavours.toml").write_text('[both]\nsummary = "s"\nseries = ["b", "a"]\n')
    flavour = flavours.load(tmp_path)["both"]
    assert [str(path.relative_to(tmp_path / "patches")) for path in flavour.patches] == [
        "b/0001.patch",
        "a/0001.patch",
        "a/0002.patch",
    ]
    assert not flavour.kvm_unchanged


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[x]\nseries = ["absent"]\n', "patches/absent has no patch"),
        ("[x]\nserie = []\n", "unknown key serie"),
        ("[x\n", "flavours.toml"),
    ],
)
def test_a_wrong_flavours_file_is_said(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "flavours.toml").write_text(text)
    with pytest.raises(BuildError, match=message):
        flavours.load(tmp_path)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of kernel inputs that a test may change."""
    folder = tmp_path / "kernel"
    (folder / "softseam").mkdir(parents=True)
    (folder / "softseam/sys.c").write_text("int sys;\n")
    (folder / "patches/hooks").mkdir(parents=True)
    (folder / "patches/hooks/0001-a.patch").write_text("a")
    (folder / "fragment.config").write_text("CONFIG_A=y\n")
    (folder / "flavours.toml").write_text("[upstream]\n")
    monkeypatch.setattr(build, "_HERE", folder)
    monkeypatch.setattr(flavours.hook_patches, "__defaults__", (folder,))
    return folder


def _hash(version: str = "7.3.4-1") -> str:
    flavour = flavours.Flavour("upstream", "", (), True, "upstream")
    return build.Kernel(flavour, Package(_source(version)), Cache(Path("/nowhere"))).key()


@pytest.mark.usefixtures("recipe")
def test_the_same_inputs_make_the_same_kernel() -> None:
    assert _hash() == _hash()


@pytest.mark.parametrize(
    "name", ["softseam/sys.c", "softseam/new.c", "patches/hooks/0001-a.patch", "fragment.config"]
)
def test_a_change_of_any_input_makes_another_kernel(recipe: Path, name: str) -> None:
    before = _hash()
    with (recipe / name).open("a") as file:
        file.write("CONFIG_B=y\n")
    assert _hash() != before


@pytest.mark.usefixtures("recipe")
def test_version_and_compiler_make_another_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    before = _hash()
    assert _hash("7.3.5-1") != before
    monkeypatch.setattr("images.tools.versions", lambda *_: {"gcc": "gcc 99"})
    assert _hash() != before


def test_the_patch_hash_leaves_the_base_out(recipe: Path) -> None:
    flavour = flavours.Flavour("upstream", "", (), True, "upstream")
    before = build.patch_hash(flavour)
    assert len(before) == 12
    (recipe / "fragment.config").write_text("CONFIG_B=y\n")
    assert build.patch_hash(flavour) == before
    (recipe / "softseam/sys.c").write_text("int other;\n")
    assert build.patch_hash(flavour) != before


def test_init_is_told_what_to_load_in_order() -> None:
    everything = build.autoload(lambda _: True)
    assert everything == "irqbypass.ko\nkvm.ko\nkvm-intel.ko tdx=1 nested=0\n"
    assert build.autoload(lambda name: name != "irqbypass.ko") == "kvm.ko\nkvm-intel.ko tdx=1 nested=0\n"


def test_a_space_check_comes_before_anything_is_fetched(
    cache: Cache, report: Reporter, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, listed: list[Source]
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("images.cache.shutil.disk_usage", lambda _: usage._replace(free=10**9))
    listed.append(_source("7.3.4-1"))
    with pytest.raises(BuildError, match=r"the kernel source needs 2\.\d GB of free space"):
        build.ensure(cache, build.Request(), report)
    assert not any(cache.trees.glob("*"))


def test_each_configuration_and_compiler_has_a_build_folder_of_its_own(tmp_path: Path) -> None:
    compilers = ("gcc (Debian 12.2.0-14+deb12u1) 12.2.0", "gcc (Debian 14.2.0-19) 14.2.0")
    folders = [KeptTree(tmp_path, config, gcc).out for config in ("", "debug") for gcc in compilers]
    assert [folder.name for folder in folders] == [
        "out-gcc-Debian-12.2.0-14+deb12u1-12.2.0",
        "out-gcc-Debian-14.2.0-19-14.2.0",
        "out-debug-gcc-Debian-12.2.0-14+deb12u1-12.2.0",
        "out-debug-gcc-Debian-14.2.0-19-14.2.0",
    ]


def test_a_kernel_is_built_in_the_folder_of_this_machines_compiler(
    cache: Cache, report: Reporter, log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[Path] = []

    def stop(tree: KeptTree, fragments: tuple[str, ...], work: Work) -> None:
        built.append(tree.out)
        raise BuildError("far enough")

    monkeypatch.setattr("images.tools.version", lambda tool: f"{tool} (X 99-1) 99")
    monkeypatch.setattr(Package, "bring", lambda *_: None)
    monkeypatch.setattr(build.Kernel, "_prepare", lambda *_: None)
    monkeypatch.setattr(configure, "configure", stop)
    kernel = build.Kernel(flavours.get("upstream"), Package(_source("7.3.4-1")), cache)
    with pytest.raises(BuildError, match="far enough"):
        kernel.make(Work(cache, report, log, tmp_path))
    assert built == [cache.trees / "linux-source-7.3_7.3.4-1/out-gcc-X-99-1-99"]


def test_of_a_users_tree_only_the_newest_kernels_stay(
    cache: Cache, report: Reporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tree(name: str) -> Path:
        folder = tmp_path / name
        (folder / "arch/x86/kvm").mkdir(parents=True)
        (folder / "Kbuild").touch()
        (folder / "Makefile").write_text("VERSION = 7\n")
        return folder

    def changed(folder: Path, line: int) -> str:
        (folder / "arch/x86/kvm/x86.c").write_text("int line;\n" * line)
        made = build.ensure(cache, build.Request(kernel_tree=folder), report)
        # Artefacts are made within less than the clock's tick.
        os.utime(made.path, ns=(clock := next(clocks), clock))
        return made.path.name

    clocks = itertools.count(10**18, 10**9)
    monkeypatch.setattr(build.Kernel, "make", lambda *_: {})
    monkeypatch.setattr("images.recipe.require_tools", lambda *_: None)
    mine, other = tree("mine"), tree("other")
    kept = [changed(other, 1)]
    made = [changed(mine, line) for line in range(build.KEPT_OF_A_TREE + 3)]
    kept += made[-build.KEPT_OF_A_TREE :]
    assert sorted(found.path.name for found in cache.artefacts()) == sorted(kept)
