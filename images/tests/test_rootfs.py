# SPDX-License-Identifier: GPL-2.0-or-later
"""The nested host's init and bootstrap, as far as they can be tried without a machine to boot."""

from __future__ import annotations

import os
import pty
import re
import runpy
import shutil
import signal
import subprocess
import tty
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from images import ext4, mmdebstrap
from images.cache import Cache
from images.commands import Log
from images.errors import BuildError, CommandError
from images.progress import Reporter
from images.rootfs import build, debian

_HERE = Path(build.__file__).parent


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_init_compiles_without_a_warning(tmp_path: Path) -> None:
    subprocess.run(
        [
            "gcc",
            "-O2",
            "-Wall",
            "-Wextra",
            "-Wshadow",
            "-Werror",
            "-c",
            "-o",
            tmp_path / "init.o",
            _HERE / "init.c",
        ],
        check=True,
    )


def test_init_and_bootstrap_agree_on_the_port_and_the_paths() -> None:
    init = (_HERE / "init.c").read_text()
    names = runpy.run_path(str(_HERE / "bootstrap.py"))
    assert str(names["LINK"]) == "/dev/virtio-ports/tdx-e2e.agent"
    assert f'"{names["LINK"]}"' in init
    assert "/usr/lib/tdx-e2e/bootstrap.py" in init
    sshd = (_HERE / "sshd_config").read_text()
    run = re.search(r'#define RUN\s+"(.*)"', init)
    assert run is not None
    for macro, option in (("HOST_KEY", "HostKey"), ("AUTHORIZED", "AuthorizedKeysFile")):
        path = re.search(rf'#define {macro}\s+RUN "(.*)"', init)
        assert path is not None
        assert f"{option} {run[1]}{path[1]}\n" in sshd


def test_sshd_takes_keys_only() -> None:
    options = dict(
        line.split(maxsplit=1)
        for line in (_HERE / "sshd_config").read_text().splitlines()
        if line[:1].isalpha()
    )
    assert options["PasswordAuthentication"] == "no"
    assert options["KbdInteractiveAuthentication"] == "no"
    assert options["UsePAM"] == "no"
    assert options["PermitRootLogin"] == "prohibit-password"


@pytest.fixture
def bootstrap() -> dict[str, Any]:
    return runpy.run_path(str(_HERE / "bootstrap.py"))


@pytest.fixture
def port(bootstrap: dict[str, Any]) -> Iterator[tuple[Any, int]]:
    """The bootstrap's port, a terminal in place of virtio-serial's, and our end of it."""
    ours, theirs = pty.openpty()
    tty.setraw(theirs)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, set())
    # Its default is to end the process, and a thread of another test's may be the one that gets it.
    # It stays: a thread may have got the signal and Python not yet have called the handler.
    signal.signal(signal.SIGIO, lambda number, frame: None)
    opened = bootstrap["Port"](Path(os.ttyname(theirs)))
    yield opened, ours
    os.close(opened.fd)
    os.close(theirs)
    os.close(ours)
    signal.sigtimedwait({signal.SIGIO}, 0)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def test_a_source_is_read_whole_and_run_in_a_child(bootstrap: dict[str, Any], port: tuple[Any, int]) -> None:
    opened, ours = port
    source = b"import os\nSTREAM_OUT.write(b'%d %s\\n' % (os.getpid(), STREAM_IN.read(4)))\n"
    os.write(ours, b"%d\n" % len(source) + source + b"ping")
    read = opened.read_source()
    assert read == source
    bootstrap["run"](opened, read)
    pid, said = os.read(ours, 100).split()
    assert int(pid) != os.getpid()
    assert said == b"ping"


def test_a_source_that_fails_does_not_end_the_bootstrap(
    bootstrap: dict[str, Any], port: tuple[Any, int], capfd: pytest.CaptureFixture[str]
) -> None:
    opened, ours = port
    for source in (b"raise ValueError('told')", b"raise SystemExit(3)", b"(", b"STREAM_OUT.write(b'ok')"):
        bootstrap["run"](opened, source)
    assert os.read(ours, 100) == b"ok"
    errors = capfd.readouterr().err
    assert "ValueError: told" in errors
    assert "SyntaxError" in errors


@pytest.mark.parametrize("line", [b"x\n", b"\n", b"-4\n", b"99999999999\n", b"1" * 30])
def test_what_is_no_length_is_refused(port: tuple[Any, int], line: bytes) -> None:
    opened, ours = port
    os.write(ours, line)
    assert opened.read_source() is None


def test_what_is_installed_is_read_from_dpkg() -> None:
    status = "Package: a\nStatus: x\nVersion: 1:2-3\n\nPackage: b\nVersion: 4\nDescription: x\n y\n"
    assert mmdebstrap.installed(status) == {"a": "1:2-3", "b": "4"}


def test_the_inputs_name_everything_that_shapes_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = build.ROOTFS.inputs()
    files, recipe = inputs["files"], inputs["recipe"]
    assert isinstance(files, dict)
    assert isinstance(recipe, dict)
    assert set(files) == {"init.c", "bootstrap.py", "sshd_config"}
    assert set(recipe) == {"build.py", "ext4.py"}
    before = build.ROOTFS.key()
    monkeypatch.setattr(build, "DEBIAN", replace(debian.DEBIAN, packages=("python3",)))
    assert build.ROOTFS.key() != before


def _debugfs(image: Path, request: str) -> str:
    done = subprocess.run(
        ["/usr/sbin/debugfs", "-R", request, image], capture_output=True, text=True, check=True
    )
    return done.stdout


@pytest.mark.skipif(not Path("/usr/sbin/debugfs").exists(), reason="e2fsprogs is not installed")
def test_an_image_holds_the_files_with_their_modes(tmp_path: Path, log: Log) -> None:
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub/file").write_text("content\n")
    (folder / "sub/file").chmod(0o640)
    os.utime(folder / "sub/file", (1, 1))
    (folder / "big").write_bytes(b"x" * 12_000_000)
    uuid = "3d7a2f10-7d3e-4c1b-9a56-0d0b1c3e5f02"
    ext4.make_image(folder, tmp_path / "one", label="test", uuid=uuid, log=log)
    assert _debugfs(tmp_path / "one", "cat /sub/file") == "content\n"
    assert "Mode:  0640" in _debugfs(tmp_path / "one", "stat /sub/file")
    assert "has_journal" not in _debugfs(tmp_path / "one", "features")
    assert (tmp_path / "one").stat().st_size < 16_000_000


def test_a_failure_of_mmdebstrap_leaves_nothing_and_says_why(
    cache: Cache, report: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("images.recipe.require_tools", lambda *_: None)
    monkeypatch.setattr("images.tools.version", lambda _: "1")

    def fail(argv: list[str | Path], *, log: Log, **_: object) -> list[str]:
        assert "mmdebstrap" in argv
        raise CommandError("x", returncode=1, output=("Could not resolve 'm.invalid'",), log=log.path)

    monkeypatch.setattr(mmdebstrap, "run", fail)
    monkeypatch.setattr("images.apt.keyring", lambda: Path("/k"))
    with pytest.raises(BuildError, match=r"no network: file:/srv/debian cannot be reached") as caught:
        build.ROOTFS.ensure(cache, report, mirror="file:/srv/debian")
    assert caught.value.log is not None
    assert caught.value.log.is_file()
    assert cache.artefacts() == []
    assert [path.name for path in (cache.root / "scratch").iterdir()] == ["gate"]
