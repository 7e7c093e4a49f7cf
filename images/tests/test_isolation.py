# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from images import chroot, isolation, mmdebstrap
from images.commands import Log
from images.errors import BuildError
from images.isolation import NONE, OF_ROOT, OF_USER, Isolation
from images.rootfs.debian import DEBIAN


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    isolation.here.cache_clear()
    yield
    isolation.here.cache_clear()


@pytest.mark.parametrize(
    ("root", "possible", "way"), [(True, True, OF_ROOT), (True, False, NONE), (False, True, OF_USER)]
)
def test_the_way_follows_from_what_is_possible(root: bool, possible: bool, way: Isolation) -> None:
    assert isolation.choose(root=root, possible=possible) is way


def test_a_user_without_namespaces_reads_what_is_missing() -> None:
    with pytest.raises(BuildError, match="does not let users make namespaces") as caught:
        isolation.choose(root=False, possible=False)
    assert caught.value.hint.startswith("run as root")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("uid", "wanted"), [(0, OF_ROOT), (1000, OF_USER)])
def test_what_is_possible_is_tried(uid: int, wanted: Isolation, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[list[str]] = []

    def run(argv: list[str], **_: object) -> subprocess.CompletedProcess[bytes]:
        tried.append(argv)
        return subprocess.CompletedProcess(argv, 0)

    monkeypatch.setattr("images.isolation.os.geteuid", lambda: uid)
    monkeypatch.setattr("images.isolation.subprocess.run", run)
    assert isolation.here() is wanted
    assert tried == [[*wanted.front, "true"]]


def test_without_mounts_mmdebstrap_is_told_and_may_end_its_step(
    tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[list[str], object]] = []
    monkeypatch.setattr(mmdebstrap, "run", lambda argv, **named: ran.append((argv, named["death"])))
    monkeypatch.setattr("images.apt.keyring", lambda: Path("/k"))
    monkeypatch.setattr("images.mmdebstrap.os.geteuid", lambda: 0)
    for way in (OF_ROOT, NONE):
        monkeypatch.setattr("images.isolation.here", lambda way=way: way)
        DEBIAN._install(tmp_path / "tar", tmp_path, "file:/srv/debian", log)
    (apart, kill), (plain, term) = ran
    assert "--skip=chroot/mount" not in apart
    assert plain[:3] == ["mmdebstrap", "--mode=root", *DEBIAN.options][:3]
    assert "--skip=chroot/mount" in plain
    assert (kill, term) == ("KILL", "TERM")


@pytest.mark.skipif(os.geteuid() != 0, reason="chroot needs root")
def test_without_namespaces_a_command_has_devices_all_the_same(
    tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("images.isolation.here", lambda: NONE)
    for folder in ("bin", "usr/bin", "lib64", "lib", "usr/lib", "dev", "proc"):
        (tmp_path / folder).mkdir(parents=True)
    for program in ("sh", "env", "ls"):
        _copy_program(program, tmp_path)
    said = chroot.run(
        tmp_path, ["sh", "-c", "echo lost >/dev/null; echo /proc/*; ls /dev"], log=log, what="x"
    )
    assert said == ["/proc/*", "full", "null", "random", "urandom", "zero"]
    assert (tmp_path / "dev/null").is_char_device()


def _copy_program(name: str, root: Path) -> None:
    where = shutil.which(name)
    assert where is not None
    listed = subprocess.run(["ldd", where], check=True, capture_output=True, text=True).stdout
    files = [where, *(word for word in listed.split() if word.startswith("/"))]
    for file in files:
        target = root / file.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(Path(file).read_bytes())
        target.chmod(0o755)
