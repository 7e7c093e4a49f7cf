# SPDX-License-Identifier: GPL-2.0-or-later
"""What makes a new QEMU, which source it is made of, and what its build prints; nothing is compiled."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from images import chroot, ext4
from images.apt import NotThere
from images.cache import Artefact, Cache
from images.commands import Log
from images.errors import BuildError, CommandError
from images.mmdebstrap import TAR, DebianTar
from images.progress import Reporter
from images.qemu import build, debian, precompiled, source, tree
from images.qemu.build import Output
from images.qemu.tree import Tarball, UserTree
from images.recipe import Work
from images.sources import Source

_PATCH = """Subject: a change

---
 kvm.c | 2 +-
diff --git a/accel/kvm.c b/accel/kvm.c
--- a/accel/kvm.c
+++ b/accel/kvm.c
@@ -1,2 +1,2 @@
-int kvm = 1;
+int kvm = 2;
 int more;
"""


@pytest.fixture(autouse=True)
def _no_tools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("images.tools.version", lambda _: "1")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the builder and its patches are in, and that a test may change."""
    folder = tmp_path / "qemu"
    (folder / "patches").mkdir(parents=True)
    (folder / "patches/0001-a.patch").write_text(_PATCH)
    for name in ("build.py", "devices.mak"):
        (folder / name).write_text(f"# {name}\n")
    monkeypatch.setattr(build, "_HERE", folder)
    return folder


_CONFIGS = "configs/devices/x86_64-softmmu"
_OTHER_FILES = {"roms/big": "x", f"{_CONFIGS}/default.mak": "# all\n"}


class _Mirror:
    """A mirror with tarballs of QEMU.

    :param files: version → what accel/kvm.c holds; None for a tarball that is listed and not there.
    """

    def __init__(self, files: dict[str, str | None], folder: Path) -> None:
        self.files = files
        self.fetched: list[str] = []
        self.sources = []
        for version, text in files.items():
            path = folder / f"qemu_{version}.orig.tar.xz"
            with tarfile.open(path, "w:xz") as archive:
                for name, content in {"VERSION": version, "accel/kvm.c": text or "", **_OTHER_FILES}.items():
                    info = tarfile.TarInfo(f"qemu-{version}/{name}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content.encode()))
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            self.sources.append(Source("qemu", version, str(path), digest))

    def listed(self, _: Work) -> list[Source]:
        return self.sources

    def fetch(self, _: Work, __: object, chosen: Source, folder: Path) -> Path:
        if self.files[chosen.version] is None:
            raise NotThere(f"m does not have {chosen.file_name}", hint="another mirror")
        self.fetched.append(chosen.version)
        folder.mkdir(exist_ok=True)
        target = folder / chosen.file_name
        target.write_bytes(Path(chosen.path).read_bytes())
        return target


Mirrors = Callable[[dict[str, str | None]], _Mirror]


def _entry(number: int, define: str, suffix: str = "c") -> dict[str, str]:
    out = f"-MD -MQ lib{number % 2}.p/{number}.o -MF lib.p/{number}.d -o lib.p/{number}.o"
    options = f"ccache gcc -m64 -Ilib{number % 2}.p -Iqapi -O1 '{define}' {out}"
    return {"file": f"../qemu/{number}.{suffix}", "command": f"{options} -c ../qemu/{number}.{suffix}"}


_ENTRIES = [
    *(_entry(number, '-DTARGET="a b"') for number in range(25)),
    *(_entry(number, "-DPLAIN") for number in range(30)),
    *(_entry(number, "-DFEW") for number in range(19)),
    *(_entry(number, "-DASSEMBLER", "S") for number in range(40)),
]
_DATABASE = json.dumps(_ENTRIES)
_GOOD, _OTHER = "int kvm = 1;\nint more;\n", "int other;\n"


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mirrors:
    def make(files: dict[str, str | None]) -> _Mirror:
        made = _Mirror(files, tmp_path)
        monkeypatch.setattr(source, "_listed", made.listed)
        monkeypatch.setattr("images.sources.clients", lambda *_, **__: [None])
        monkeypatch.setattr("images.sources.fetch", made.fetch)
        return made

    return make


@pytest.fixture
def built(
    cache: Cache, log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[list[str], Path]]:
    """The commands that would have been run in the build root, and that root; the build root is empty."""
    ran: list[tuple[list[str], Path]] = []
    (tmp_path / "root").mkdir()
    with tarfile.open(tmp_path / TAR, "w") as archive:
        archive.add(tmp_path / "root", ".")
    (tmp_path / "manifest.json").write_text('{"packages": {"gcc": "14"}}')
    packages = Artefact(tmp_path, "buildroot", "trixie", "0" * 16)
    monkeypatch.setattr(DebianTar, "ensure", lambda *_, **__: packages)

    def run(root: Path, argv: list[str], **_: object) -> list[str]:
        place = root / "build"
        ran.append((argv, root))
        if argv[0].endswith("configure"):
            (place / "out/compile_commands.json").write_text(_DATABASE)
        if argv == ["ninja", build.BINARY]:
            assert (place / "qemu" / _CONFIGS / "tdx-e2e.mak").read_text() == "# devices.mak\n"
            (place / "out/qemu-system-x86_64").write_bytes((place / "qemu/accel/kvm.c").read_bytes())
            (place / "ccache/compiled").write_text("compiled\n")
        return []

    def make_image(folder: Path, image: Path, **_: object) -> None:
        [binary] = folder.iterdir()
        shutil.copy(binary, image)

    monkeypatch.setattr(chroot, "run", run)
    monkeypatch.setattr(ext4, "make_image", make_image)
    return ran


def _binary(artefact: Artefact) -> str:
    return (artefact.path / build.BINARY).read_text()


@pytest.mark.usefixtures("here")
def test_the_patched_source_is_configured_compiled_and_stripped(
    cache: Cache, report: Reporter, mirror: Mirrors, built: list[tuple[list[str], Path]]
) -> None:
    mirror({"11.1.3+ds": _GOOD})
    found = build.ensure(cache, report)
    assert (found.kind, found.label) == ("qemu", "patched")
    assert _binary(found) == "int kvm = 2;\nint more;\n"
    assert (found.path / build.IMAGE).read_text() == _binary(found)
    configure, needed, *headers, ninja, strip = (argv for argv, _ in built)
    assert configure[0] == "../qemu/configure"
    assert {"--cc=ccache gcc", "--prefix=/usr", "--disable-tcg"} <= set(configure)
    assert configure[-1] == f"--with-pkgversion=tdx-e2e-{build.patch_hash()}"
    assert needed == ["ninja", "config-poison.h"]
    assert [argv[-1] for argv in headers] == ["/build/qemu/include/qemu/osdep.h"] * 2
    assert (ninja, strip) == (["ninja", build.BINARY], ["strip", build.BINARY])
    manifest = found.manifest()
    assert (manifest["version"], manifest["packages"]) == ("11.1.3", {"gcc": "14"})
    assert "qemu: compiling" in manifest["steps"]
    assert (found.path / "build.log").is_file()
    assert not any((cache.root / "scratch").glob("qemu-*"))


@pytest.mark.usefixtures("here", "built")
def test_what_the_mirror_lists_and_does_not_have_is_passed_over(
    cache: Cache, report: Reporter, said: io.StringIO, mirror: Mirrors
) -> None:
    asked = mirror({"11.1.3+ds": None, "11.1.2+ds": None, "11.1.1+ds": _GOOD})
    found = build.ensure(cache, report)
    assert found.manifest()["version"] == "11.1.1"
    assert asked.fetched == ["11.1.1+ds"]
    assert "m does not have qemu_11.1.3+ds.orig.tar.xz\n" in said.getvalue()
    assert [path.name for path in cache.sources.iterdir()] == ["qemu_11.1.1+ds.orig.tar.xz"]
    assert build.find(cache) == found


@pytest.mark.usefixtures("here", "built")
def test_a_source_that_the_patches_do_not_fit_is_passed_over(
    cache: Cache, report: Reporter, said: io.StringIO, mirror: Mirrors
) -> None:
    mirror({"11.1.3+ds": _OTHER, "11.1.1+ds": _GOOD})
    assert build.ensure(cache, report).manifest()["version"] == "11.1.1"
    note = "the patch patches/0001-a.patch does not apply to QEMU 11.1.3: accel/kvm.c, hunk 1 ("
    assert note in said.getvalue()


@pytest.mark.usefixtures("here", "built")
def test_when_no_source_will_do_the_patch_is_named_for_each(
    cache: Cache, report: Reporter, mirror: Mirrors
) -> None:
    mirror({"11.1.3+ds": None, "11.1.2+ds": _OTHER, "11.1.1+ds": _OTHER})
    with pytest.raises(BuildError) as caught:
        build.ensure(cache, report)
    assert caught.value.message == "; ".join(
        f"the patch patches/0001-a.patch does not apply to QEMU {version}: "
        "accel/kvm.c, hunk 1 (@@ -1,2 +1,2 @@)"
        for version in ("11.1.2", "11.1.1")
    )
    assert "--qemu-tree" in caught.value.hint
    assert caught.value.log is not None
    assert cache.artefacts() == []
    assert build.recipe(cache) is None


@pytest.mark.usefixtures("here", "built")
def test_a_mirror_without_any_is_an_error(cache: Cache, report: Reporter, mirror: Mirrors) -> None:
    mirror({"11.1.3+ds": None})
    with pytest.raises(BuildError, match=r"does not have qemu_11\.1\.3") as caught:
        build.ensure(cache, report)
    assert caught.value.hint == "another mirror"


@pytest.mark.usefixtures("built")
def test_the_source_used_last_needs_no_mirror_until_the_patches_do_not_fit(
    here: Path, cache: Cache, report: Reporter, mirror: Mirrors, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = mirror({"11.1.3+ds": None, "11.1.1+ds": _GOOD})
    build.ensure(cache, report)

    def unreachable(*_: object) -> None:
        raise BuildError("no network")

    patch = here / "patches/0001-a.patch"
    with monkeypatch.context() as offline:
        offline.setattr(source, "_listed", unreachable)
        patch.write_text(_PATCH.replace("= 2", "= 3"))
        assert _binary(build.ensure(cache, report)).startswith("int kvm = 3;")
        patch.write_text(_PATCH.replace("kvm = 1", "kvm = 7"))
        with pytest.raises(BuildError, match=r"does not apply to QEMU 11\.1\.1: .*; no network"):
            build.ensure(cache, report)
    assert asked.fetched == ["11.1.1+ds"]
    mirror({"11.2.0+ds": _GOOD.replace("1", "7"), "11.1.1+ds": _GOOD})
    assert build.ensure(cache, report).manifest()["version"] == "11.2.0"


@pytest.mark.usefixtures("here", "built")
def test_a_newer_version_is_looked_for_only_when_asked_to(
    cache: Cache, report: Reporter, mirror: Mirrors
) -> None:
    mirror({"11.1.1+ds": _GOOD})
    first = build.ensure(cache, report)
    newer = mirror({"11.1.3+ds": _GOOD, "11.1.1+ds": _GOOD})
    assert build.ensure(cache, report) == first
    second = build.ensure(cache, report, refresh=True)
    assert second.manifest()["version"] == "11.1.3"
    assert build.find(cache) == second
    build.ensure(cache, report, refresh=True)
    assert newer.fetched == ["11.1.3+ds"]


@pytest.mark.usefixtures("here")
def test_what_was_compiled_is_kept_only_from_a_build_that_succeeded(
    cache: Cache,
    report: Reporter,
    mirror: Mirrors,
    built: list[tuple[list[str], Path]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mirror({"11.1.1+ds": _GOOD})
    build.ensure(cache, report)
    kept = cache.ccache / "qemu.tar"
    before = kept.read_bytes()
    successful = chroot.run

    def failing(root: Path, argv: list[str], **options: Any) -> list[str]:
        successful(root, argv, **options)
        if argv != ["ninja", build.BINARY]:
            return []
        # What an earlier build compiled is there.
        assert (root / "build/ccache/compiled").read_text() == "compiled\n"
        (root / "build/ccache/compiled").write_text("half\n")
        options["on_line"]("FAILED: [code=1] libqemu.a.p/kvm.c.o")
        options["on_line"]("../qemu/accel/kvm.c:1:5: error: expected ';'")
        options["on_line"]("../qemu/accel/kvm.c:9:1: error: another")
        raise CommandError("x", returncode=1, output=("ninja: stopped",))

    monkeypatch.setattr(build, "_CONFIGURE", ("--other",))
    monkeypatch.setattr(chroot, "run", failing)
    with pytest.raises(BuildError) as caught:
        build.ensure(cache, report)
    assert caught.value.message == "QEMU does not build: accel/kvm.c:1:5: error: expected ';'"
    assert caught.value.log is not None
    assert kept.read_bytes() == before
    assert build.find(cache) is None


@pytest.mark.usefixtures("here")
def test_qemu_whose_header_does_not_compile_alone_is_built_without(
    cache: Cache,
    report: Reporter,
    mirror: Mirrors,
    built: list[tuple[list[str], Path]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mirror({"11.1.3+ds": _GOOD})
    successful = chroot.run

    def failing(root: Path, argv: list[str], **options: Any) -> list[str]:
        successful(root, argv, **options)
        if "c-header" in argv:
            options["on_line"]("osdep.h:1:1: fatal error: qapi.h: No such file or directory")
            raise CommandError("x", returncode=1, output=())
        return []

    monkeypatch.setattr(chroot, "run", failing)
    assert _binary(build.ensure(cache, report)) == "int kvm = 2;\nint more;\n"
    assert sum("c-header" in argv for argv, _ in built) == 1


def test_header_is_compiled_once_for_each_set_of_options_that_many_files_have() -> None:
    plain, target = precompiled.commands(_DATABASE, "/q")
    assert plain == [
        *("ccache", "gcc", "-m64", "-Ilib0.p", "-Iqapi", "-O1", "-DPLAIN"),
        *("-x", "c-header", "-o", "/q/include/qemu/osdep.h.gch/0", "/q/include/qemu/osdep.h"),
    ]
    assert target[6:10] == ['-DTARGET="a b"', "-x", "c-header", "-o"]
    assert target[10] == "/q/include/qemu/osdep.h.gch/1"


class _Step:
    def __init__(self) -> None:
        self.done = 0.0

    def advance(self, amount: float = 1) -> None:
        self.done += amount


def test_progress_follows_ninja_also_when_it_finds_more_to_do() -> None:
    step = _Step()
    output = Output(step)
    shares = []
    for line in (
        "[1/4] Generating x",
        "[2/4] Compiling",
        "[3/8] Compiling",
        "[4] no",
        "x[4/4]",
        "[8/8] Linking",
    ):
        output.line(line)
        shares.append(step.done)
    assert shares == [0.25, 0.5, 0.5, 0.5, 0.5, 1.0]
    Output().line("[1/1] nobody looks")


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("../qemu/a.c:1:2: error: 'x' undeclared", "a.c:1:2: error: 'x' undeclared"),
        ("../qemu/a.c:1:2: fatal error: x.h: No such file", "a.c:1:2: fatal error: x.h: No such file"),
        ("/usr/bin/ld: a.o: undefined reference to `f'", "/usr/bin/ld: a.o: undefined reference to `f'"),
        ("ERROR: unknown option --enable-x", "ERROR: unknown option --enable-x"),
        (
            '../qemu/meson.build:9:1: ERROR: Dependency "x" not found',
            'meson.build:9:1: ERROR: Dependency "x" not found',
        ),
        ("../qemu/a.c:1:2: warning: unused [-Werror=no]", ""),
        ("[3/9] Compiling C object error: .o", ""),
        ('Checking for function "error" : YES', ""),
    ],
)
def test_the_first_error_is_found(line: str, error: str) -> None:
    output = Output()
    for printed in ("In file included from x:", line, "../qemu/z.c:1:1: error: later" if error else ""):
        output.line(printed)
    assert output.first_error == error


def _hash(version: str = "11.1.1+ds") -> str:
    return build.Qemu(Tarball(Source("qemu", version, "p", "aa"), build.series())).key()


def test_every_input_makes_another_qemu(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [_hash()]
    assert _hash() == seen[0]
    seen.append(_hash("11.1.2+ds"))
    (here / "patches/0001-a.patch").write_text(_PATCH + "\n")
    seen.append(_hash())
    (here / "patches/0002-b.patch").write_text(_PATCH)
    seen.append(_hash())
    for name in ("build.py", "devices.mak"):
        (here / name).write_text("# changed\n")
        seen.append(_hash())
    monkeypatch.setattr(build, "_CONFIGURE", (*build._CONFIGURE, "--enable-debug"))
    seen.append(_hash())
    monkeypatch.setattr(build, "DEBIAN", replace(debian.DEBIAN, packages=("gcc",)))
    seen.append(_hash())
    assert len(set(seen)) == len(seen)
    assert [path.name for path in build.series()] == ["0001-a.patch", "0002-b.patch"]


def test_the_hash_of_the_patches_leaves_the_rest_out(here: Path) -> None:
    before = build.patch_hash()
    assert len(before) == 12
    (here / "build.py").write_text("# changed\n")
    assert build.patch_hash() == before
    (here / "patches/0001-a.patch").rename(here / "patches/0003-a.patch")
    assert build.patch_hash() != before


def test_there_are_patches_and_they_stay_inside_the_tree() -> None:
    from images.patching import paths_of

    assert build.series()
    for patch in build.series():
        for path in paths_of(patch.read_bytes()):
            assert not path.startswith((f"{tree.LEFT_OUT}/", "/", "../")), f"{patch.name}: {path}"


@pytest.mark.usefixtures("here", "built")
def test_the_users_tree_is_built_as_it_is(
    cache: Cache, report: Reporter, tmp_path: Path, built: list[tuple[list[str], Path]]
) -> None:
    folder = _fill(tmp_path / "mine")
    found = build.ensure(cache, report, tree=folder)
    assert (found.label, found.manifest()["version"]) == ("tree", "11.1.50")
    assert _binary(found) == _GOOD
    assert built[0][0][-1] == "--with-pkgversion=tdx-e2e-tree"
    assert build.find(cache, folder) == found
    assert build.find(cache) is None
    (folder / "accel/kvm.c").write_text("int mine;\n")
    assert build.find(cache, folder) is None
    assert _binary(build.ensure(cache, report, tree=folder)) == "int mine;\n"


def _fill(folder: Path) -> Path:
    files = {
        "configure": "#!/bin/sh\n",
        "meson.build": "project()\n",
        "VERSION": "11.1.50\n",
        "accel/kvm.c": _GOOD,
        "subprojects/keycodemapdb/meson.build": "project()\n",
        f"{_CONFIGS}/default.mak": "# all\n",
    }
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "configure").chmod(0o755)
    return folder


def test_a_trees_fingerprint_leaves_out_git_and_what_a_build_made(tmp_path: Path) -> None:
    user = UserTree(_fill(tmp_path / "mine"))
    before = user.files()
    assert set(before) == {
        *("configure", "meson.build", "VERSION", "accel/kvm.c"),
        *("subprojects/keycodemapdb/meson.build", f"{_CONFIGS}/default.mak"),
    }
    for name in (
        ".git/HEAD",
        "build/config.log",
        "with-debug/meson-private/x",
        "with-debug/config-host.h",
        "GNUmakefile",
        "roms/seabios/x.c",
        "scripts/__pycache__/x.pyc",
        "subprojects/keycodemapdb/.git/HEAD",
        "subprojects/packagecache/x.tar",
    ):
        path = user.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert user.files() == before
    (user.folder / "accel/new.c").touch()
    assert set(user.files()) == {*before, "accel/new.c"}


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_in_a_git_tree_what_meson_downloaded_counts_though_git_ignores_it(tmp_path: Path) -> None:
    user = UserTree(_fill(tmp_path / "mine"))

    def git(*words: str) -> None:
        subprocess.run(["git", "-C", user.folder, *words], check=True, capture_output=True)

    git("init", "-q")
    (user.folder / ".gitignore").write_text("*.log\n/subprojects/keycodemapdb\n")
    git("add", ".")
    (user.folder / "noise.log").touch()
    (user.folder / "new.c").touch()
    (user.folder / "VERSION").write_text("11.1.51\n")
    assert set(user.files()) == {
        *(".gitignore", "configure", "meson.build", "VERSION", "accel/kvm.c", "new.c"),
        *("subprojects/keycodemapdb/meson.build", f"{_CONFIGS}/default.mak"),
    }


def test_a_tree_is_copied_with_its_links_and_modes(tmp_path: Path) -> None:
    user = UserTree(_fill(tmp_path / "mine"))
    (user.folder / "link").symlink_to("nowhere")
    user.copy_to(tmp_path / "copy")
    assert (tmp_path / "copy/link").readlink() == Path("nowhere")
    assert (tmp_path / "copy/configure").stat().st_mode & 0o111
    assert (tmp_path / "copy/accel/kvm.c").read_text() == _GOOD


def test_what_is_no_whole_qemu_tree_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="is not a QEMU source tree"):
        UserTree(tmp_path)
    folder = _fill(tmp_path / "mine")
    (folder / "subprojects/keycodemapdb/meson.build").unlink()
    (folder / "subprojects/keycodemapdb").rmdir()
    with pytest.raises(BuildError, match="has no subprojects/keycodemapdb") as caught:
        UserTree(folder)
    assert "meson subprojects download" in caught.value.hint
