# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from images import __main__ as entry
from images import cli
from images.cache import Artefact, Cache
from images.errors import BuildError
from images.firmware import build as firmware_build
from images.guests import build as guests_build
from images.guests import packages
from images.kernel import build as kernel_build
from images.kernel import flavours, patched
from images.payloads import build as payloads_build
from images.qemu import build as qemu_build
from images.qemu import debian as buildroot
from images.qemu import source
from images.rootfs import debian
from images.rootfs.build import ROOTFS, Rootfs
from images.sources import Source

_ROOT = Path(__file__).parents[2]


def _put(cache: Cache, kind: str, label: str, content_hash: str, version: str = "") -> Path:
    with cache.scratch(kind) as scratch:
        (scratch / "out").mkdir()
        (scratch / "out/image").write_bytes(b"x" * 10_000)
        manifest = {"version": version} if version else {}
        return cache.publish(scratch / "out", kind, label, content_hash, manifest).path


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TDX_E2E_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["build", "kernel", "--flavour", "nope"], "error: there is no kernel flavour 'nope'"),
        (
            ["build", "kernel", "--kernel-tree", "/nonexistent"],
            "error: /nonexistent is not a Linux kernel tree",
        ),
        (
            ["build", "qemu", "--qemu-tree", "/nonexistent"],
            "error: /nonexistent is not a QEMU source tree",
        ),
        (["shell", "--qemu", "no-such-qemu"], "error: no-such-qemu is not here"),
        (["shell", "--cpus", "3", "--sockets", "2"], "error: 3 CPUs cannot be spread over 2 packages"),
    ],
)
def test_bad_input_is_one_line_with_a_hint_and_status_1(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("images.shell.shutil.which", lambda name, **_: None if "no-such" in name else name)
    assert entry.main(words) == 1
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert lines[0].startswith(message)
    assert lines[1].startswith("  hint: ")
    assert captured.out == ""


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["build", "toaster"], "toaster"),
        (
            ["build", "--kernel-tree", "/", "--kernel-version", "7.3"],
            "not allowed with",
        ),
    ],
)
def test_a_wrong_option_is_refused(words: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        entry.main(words)
    assert caught.value.code == 2
    assert named in capsys.readouterr().err


def test_the_log_stands_below_the_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise BuildError("it broke", hint="mend it", log=Path("/some/log"))

    monkeypatch.setattr(cli, "build", fail)
    assert entry.main(["build"]) == 1
    assert capsys.readouterr().err == "error: it broke\n  hint: mend it\n  log:  /some/log\n"


def test_an_interrupt_says_so_and_is_status_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "build", interrupt)
    assert entry.main(["build"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_what_is_cached_is_listed(capsys: pytest.CaptureFixture[str], cache: Cache) -> None:
    path = _put(cache, "kernel", "upstream", "0123456789abcdef", "7.3.4")
    os.utime(path, (time.time() - 7200, time.time() - 7200))
    assert entry.main(["list"]) == 0
    header, row, total = capsys.readouterr().out.splitlines()
    assert header.split() == ["KIND", "LABEL", "VERSION", "SIZE", "AGE", "CONTENT", "HASH"]
    assert row.split()[:3] == ["kernel", "upstream", "7.3.4"]
    assert row.split()[-3:] == ["2", "h", "0123456789abcdef"]
    assert str(cache.root) in total


def test_clean_keeps_what_is_up_to_date(
    cache: Cache, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = _put(cache, "payloads", "x86_64", "0" * 16)
    new = _put(cache, "payloads", "x86_64", "1" * 16)
    monkeypatch.setattr(cli, "current", lambda _: {new.name})
    assert entry.main(["clean"]) == 0
    assert not old.exists()
    assert new.is_dir()
    assert f"removing {old.name}" in capsys.readouterr().out
    assert entry.main(["clean", "--all"]) == 0
    assert not new.exists()


@pytest.mark.parametrize(
    ("what", "built"),
    [
        ("qemu", ["qemu"]),
        ("rootfs", ["rootfs"]),
        ("kernel", ["kernel", "kernel"]),
        ("guests", ["guests"]),
        ("all", ["payloads", "firmware", "qemu", "rootfs", "guests", "kernel", "kernel"]),
    ],
)
def test_what_is_asked_for_is_built_from_the_trees_that_are_named(
    what: str, built: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, dict[str, object]]] = []

    def builder(kind: str) -> Callable[..., Artefact]:
        def ensure(*_: object, **options: object) -> Artefact:
            asked.append((kind, options))
            return Artefact(Path("/image"), kind, "label", "0" * 16)

        return ensure

    for module, kind in (
        *((payloads_build, "payloads"), (firmware_build, "firmware")),
        *((qemu_build, "qemu"), (guests_build, "guests")),
        *((Rootfs, "rootfs"), (kernel_build, "kernel")),
    ):
        monkeypatch.setattr(module, "ensure", builder(kind))
    tree = Path("/q")
    assert entry.main(["build", what, "--qemu-tree", str(tree), "--mirror", "file:/m", "--refresh"]) == 0
    assert [kind for kind, _ in asked] == built
    options = dict(asked)
    if "qemu" in options:
        assert options["qemu"] == {"tree": tree, "mirror": "file:/m", "refresh": True}
    if "guests" in options:
        assert options["guests"] == {"mirror": "file:/m", "refresh": True}
    if "rootfs" in options:
        assert options["rootfs"] == {"mirror": "file:/m"}
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == built


def test_everything_that_goes_into_the_image_is_current(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("images.tools.version", lambda _: "1")
    source.last_used(cache).record(None, source.PINNED)
    qemu = qemu_build.recipe(cache)
    assert qemu is not None
    parts = {name: Source(name, "1", f"{name}.deb", "0") for name in ("kernel", "busybox", "firmware")}
    packages.record(cache, packages.Packages(**parts))
    guests = guests_build.recipe(cache)
    assert guests is not None
    hashes = {
        "debian-trixie": debian.DEBIAN.key(),
        "buildroot-trixie": buildroot.DEBIAN.key(),
        "qemu-patched": qemu.key(),
        "rootfs-trixie": ROOTFS.key(),
        "guests-trixie": guests.key(),
    }
    for name, content_hash in hashes.items():
        kind, _, label = name.partition("-")
        _put(cache, kind, label, content_hash)
        _put(cache, kind, label, "4" * 16)
    assert cli.current(cache) == {f"{name}-{content_hash}" for name, content_hash in hashes.items()}


def test_sizes_and_ages_are_readable() -> None:
    assert [cli.human_size(size) for size in (0, 1, 999_999, 12_345_678, 1_500_000_000)] == [
        "0 kB",
        "1 kB",
        "1000 kB",
        "12 MB",
        "1.5 GB",
    ]
    assert [cli.human_age(age) for age in (1, 60, 7199, 200_000)] == ["now", "1 min", "1 h", "2 d"]


def test_finding_in_an_empty_cache_finds_nothing_and_makes_nothing(cache: Cache) -> None:
    assert cli.current(cache) == set()
    assert not cache.root.exists()


def test_importing_the_api_is_cheap() -> None:
    program = (
        "import sys, images.api\n"
        "print([name for name in ('rich', 'images.apt', 'images.kernel') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=_ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_kernel_is_the_one_that_the_environment_names_for_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(*words: str) -> tuple[list[str], str | None]:
        arguments = entry.parser().parse_args(["build", *words])
        entry.choose_as_a_run(arguments)
        return arguments.flavour, arguments.kernel_version

    monkeypatch.setenv("TDX_E2E_FLAVOUR", "proposed v9")
    assert chosen() == (["proposed", "v9"], None)
    assert chosen("--flavour", "fixed", "--flavour", "v10") == (["fixed", "v10"], None)
    monkeypatch.setenv("TDX_E2E_FLAVOUR", "")
    assert chosen() == (["upstream", "proposed"], None)
    monkeypatch.setenv("TDX_E2E_KERNEL_VERSION", "7.2")
    assert chosen() == (["upstream"], "7.2")
    assert chosen("--kernel-version", "7.3") == (["upstream"], "7.3")
    assert chosen("--kernel-tree", "/src/linux") == (["upstream", "proposed"], None)


def _small_tree(folder: Path) -> Path:
    """A kernel tree with just the files that the hooks change, each only the lines that they need."""
    for name, content in _lines_of(flavours.hook_patches()).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    (folder / "arch/x86/kvm").mkdir()
    (folder / "Kbuild").touch()
    (folder / "Makefile").write_text("VERSION = 7\nPATCHLEVEL = 4\nSUBLEVEL = 0\nEXTRAVERSION = -rc1\n")
    return folder


def _lines_of(patches: Sequence[Path]) -> dict[str, str]:
    """The lines that patches find in the files that they change, without what they add."""
    found: dict[str, str] = {}
    for patch in patches:
        for part in patch.read_text().split("\ndiff --git ")[1:]:
            path = part.split()[0].removeprefix("a/")
            if "new file mode" not in part and path != "arch/x86/include/asm/softseam.h":
                lines = part.partition("\n@@ ")[2].splitlines()
                found[path] = "".join(f"{line[1:]}\n" for line in lines[1:] if line.startswith((" ", "-")))
    return found


def test_patches_that_apply_to_a_tree_and_those_that_do_not_are_listed(
    tmp_path: Path, cache: Cache, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = _small_tree(tmp_path / "linux")
    command = ["--cache", str(cache.root), "patches", str(tree)]
    assert entry.main(command) == 0
    first, applies, does_not = capsys.readouterr().out.splitlines()
    assert (first, applies) == (f"Linux 7.4.0-rc1, {tree}", "  applies: upstream")
    assert does_not.startswith("  not fixed, v9, ")
    assert ": fixed/0001-" in does_not
    assert does_not.endswith(".patch: there is no arch/x86/kvm/vmx/tdx.c")
    (tree / "arch/x86/kernel/cpu/common.c").write_text("int other;\n")
    assert entry.main(command) == 1
    [_, does_not] = capsys.readouterr().out.splitlines()
    assert does_not.startswith("  not upstream, fixed, v9, ")
    assert ".patch: arch/x86/kernel/cpu/common.c, hunk 1 (@@ -47,6 +47,7 @@), and 1 more" in does_not
    (tree / patched.HOOKED).parent.mkdir(exist_ok=True)
    (tree / patched.HOOKED).write_text("/* merged by hand */\n")
    assert entry.main(command) == 0
