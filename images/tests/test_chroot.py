# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from images import chroot, commands, isolation
from images.commands import Log


@pytest.mark.parametrize("uid", [0, 1000])
def test_without_root_the_user_is_made_root_in_a_namespace(
    uid: int, tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []

    def run(argv: list[str | Path], **options: object) -> list[str]:
        ran.append([str(word) for word in argv])
        assert options["death"] == "KILL"
        return ["printed"]

    monkeypatch.setattr(commands, "run", run)
    way = isolation.OF_USER if uid else isolation.OF_ROOT
    monkeypatch.setattr("images.isolation.here", lambda: way)
    said = chroot.run(
        tmp_path, ["ninja", "-v"], log=log, what="x", cwd="/build", env={"A": "b", "HOME": "/h"}
    )
    assert said == ["printed"]
    (words,) = ran
    assert words[0] == "unshare"
    assert {"--mount", "--pid", "--fork", "--kill-child=KILL"} <= set(words)
    assert ("--map-root-user" in words) is bool(uid)
    inside = words[words.index("env") :]
    assert inside[:3] == ["env", "-i", "--chdir=/build"]
    assert {"A=b", "HOME=/h", "LC_ALL=C.UTF-8"} <= set(inside)
    assert "HOME=/root" not in inside
    assert inside[-2:] == ["ninja", "-v"]


def test_owners_devices_and_set_id_bits_are_not_unpacked(tmp_path: Path, log: Log) -> None:
    with tarfile.open(tmp_path / "debian.tar", "w") as archive:
        for name, kind, mode in (
            ("./dev/null", tarfile.CHRTYPE, 0o666),
            ("./usr/bin/su", tarfile.REGTYPE, 0o4755),
            ("./etc/shadow", tarfile.REGTYPE, 0o640),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.mode, info.uid, info.gid = kind, mode, 12, 42
            archive.addfile(info)
    chroot.unpack(tmp_path / "debian.tar", tmp_path / "root", log)
    assert not (tmp_path / "root/dev/null").exists()
    su = (tmp_path / "root/usr/bin/su").stat()
    assert su.st_mode & 0o7777 == 0o755
    assert (su.st_uid, su.st_gid) == (os.getuid(), os.getgid())
    assert (tmp_path / "root/etc/shadow").stat().st_uid == os.getuid()
