# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from images import apt
from images.apt import Repository, choose_mirror, explain, mirror, parse_uris
from images.commands import Log
from images.errors import BuildError, CommandError

_needs_apt = pytest.mark.skipif(shutil.which("apt-get") is None, reason="this machine has no apt-get")


def _host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_line: str = "", deb822: str = "") -> None:
    """Make apt believe that this is the host's configuration."""
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "some.sources").write_text(deb822)
    (tmp_path / "sources.list").write_text(one_line)
    (tmp_path / "lists").mkdir()
    (tmp_path / "apt.conf").write_text(
        f'Dir::Etc::sourcelist "{tmp_path}/sources.list";\nDir::Etc::sourceparts "{parts}";\n'
        f'Dir::State::lists "{tmp_path}/lists";\n'
    )
    monkeypatch.setenv("APT_CONFIG", str(tmp_path / "apt.conf"))
    monkeypatch.delenv(apt.MIRROR_ENV, raising=False)


@_needs_apt
def test_one_line_sources_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    _host(
        tmp_path,
        monkeypatch,
        one_line="# deb http://a.invalid/debian trixie main\n"
        "deb http://b.invalid/debian-security trixie-security main\n"
        "deb [arch=amd64] http://c.invalid/debian/ trixie main contrib\n",
    )
    assert mirror(None, log) == "http://c.invalid/debian"


@_needs_apt
def test_deb822_sources_are_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: Log) -> None:
    _host(
        tmp_path,
        monkeypatch,
        deb822="Enabled: no\nTypes: deb\nURIs: http://off.invalid/debian\n"
        "Suites: bookworm\nComponents: main\n\n"
        "Types: deb\nURIs: http://on.invalid/debian\nSuites: bookworm-updates bookworm\nComponents: main\n",
    )
    assert mirror(None, log) == "http://on.invalid/debian"


@_needs_apt
def test_a_host_without_debian_sources_has_to_be_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: Log
) -> None:
    _host(tmp_path, monkeypatch, one_line="deb http://x.invalid/extras stable-security contrib\n")
    with pytest.raises(BuildError, match="names no Debian archive") as caught:
        mirror(None, log)
    assert "--mirror" in caught.value.hint
    monkeypatch.setenv(apt.MIRROR_ENV, "http://env.invalid/debian/")
    assert mirror(None, log) == "http://env.invalid/debian"
    assert mirror("file:/srv/debian", log) == "file:/srv/debian"


def test_a_mirror_has_to_be_a_uri(log: Log) -> None:
    with pytest.raises(BuildError, match=r"'mirror\.invalid' is not a URI"):
        mirror("mirror.invalid", log)


def test_another_vendors_archive_is_not_taken_for_debian() -> None:
    def index(path: str) -> str:
        return f"'http://x.invalid/{path}/binary-amd64/Packages.xz' name 0 "

    found = parse_uris(
        [
            "'http://x.invalid/debian/dists/trixie/InRelease' name 0 ",
            index("ubuntu/dists/noble/main"),
            index("debian-security/dists/trixie-security/main"),
            index("debian/dists/trixie-proposed-updates/main"),
            index("debian/dists/trixie/contrib"),
            index("vendor/prod/dists/trixie/main"),
            index("debian//dists/trixie/main"),
            "nonsense",
        ]
    )
    assert found[-1] == Repository("http://x.invalid/debian", "trixie", "main")
    assert choose_mirror(found) == "http://x.invalid/debian"
    assert choose_mirror(found[:-1]) == "http://x.invalid/vendor/prod"
    assert choose_mirror(found[:4]) is None


@pytest.mark.parametrize(
    ("printed", "message"),
    [
        ("Could not resolve 'm.invalid'", "no network"),
        ("Could not connect to m.invalid:80", "no network"),
        ("E: The repository 'x trixie Release' does not have a Release file.", "does not have trixie"),
        ("Err:1 x 404  Not Found [IP: 1]", "does not have trixie"),
        ("Err:1 x\n  400  Bad Request\nE: The repository 'x' is not signed.", "does not have trixie"),
        ("E: Unable to locate package python4", "does not have trixie"),
        ("GPG error: x: NO_PUBKEY 1234", "does not verify"),
        ("E: something else", "original"),
    ],
)
def test_a_failure_of_apt_is_explained(printed: str, message: str) -> None:
    error = CommandError("original", returncode=100, output=("Reading...", printed), log=Path("/l"))
    explained = explain(error, "http://m.invalid/debian", "trixie")
    assert message in explained.message
    assert explained.log == Path("/l")


@_needs_apt
def test_a_private_client_reads_a_local_archive_and_refuses_it_unsigned(
    tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    from images.cache import Cache

    suite = tmp_path / "archive/dists/trixie"
    suite.mkdir(parents=True)
    (suite / "Release").write_text("Origin: Debian\nSuite: trixie\nComponents: main\nArchitectures: amd64\n")
    keyring = tmp_path / "keyring.gpg"
    keyring.touch()
    monkeypatch.setattr(apt, "_KEYRINGS", (keyring,))
    client = apt.PrivateApt(Cache(tmp_path / "cache"), f"file:{tmp_path}/archive", "trixie", log)
    with pytest.raises(BuildError, match=r"signature of trixie .* does not verify"):
        client.update()


def test_a_missing_keyring_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apt, "_KEYRINGS", (Path("/nonexistent/keyring"),))
    with pytest.raises(BuildError, match="archive keys are not on this machine"):
        apt.keyring()


def test_a_package_is_looked_up_by_its_hash_and_its_path_below_the_mirror(
    tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    from images.cache import Cache

    name, digest = "pool/main/l/linux/linux-source-7.3_7.3.4-1{}_all.deb", "0123456789abcdef" * 4
    printed = [
        "W: Download is performed unsandboxed as root",
        f"'http://m.invalid/debian/{name.format('%7ebpo13%2b1')}' x_all.deb 166780612 SHA256:{digest}",
    ]
    monkeypatch.setattr(apt, "run", lambda *_, **__: printed)
    client = apt.PrivateApt(Cache(tmp_path), "http://m.invalid/debian", "trixie-backports", log)
    found = client.binary("linux-source-7.3", "7.3.4-1~bpo13+1")
    assert found == apt.RemoteFile(name.format("~bpo13+1"), digest)
    other = apt.PrivateApt(Cache(tmp_path), "http://other.invalid/debian", "trixie-backports", log)
    assert other.binary("linux-source-7.3", "7.3.4-1~bpo13+1") is None


@_needs_apt
@pytest.mark.parametrize(("sources", "expected"), [(False, "Packages"), (True, "Sources")])
def test_a_private_client_fetches_no_list_that_only_the_host_wants(
    sources: bool, expected: str, tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    from images.cache import Cache

    _host(tmp_path, monkeypatch)
    with (tmp_path / "apt.conf").open("a") as config:
        for kind in ("deb", "deb-src"):
            config.write(
                f'Acquire::IndexTargets::{kind}::Contents {{ MetaKey "$(COMPONENT)/Contents"; '
                'ShortDescription "Contents"; Description "Contents"; };\n'
            )
    keyring = tmp_path / "keyring.gpg"
    keyring.touch()
    monkeypatch.setattr(apt, "_KEYRINGS", (keyring,))
    asked: set[str] = set()

    def lists(argv: list[str | Path], **_: object) -> list[str]:
        done = subprocess.run([*argv, "--print-uris"], check=True, capture_output=True, text=True)
        asked.update(re.findall(r"/dists/trixie/main/.*?([^/']*?)\.?[xg]?z?'", done.stdout))
        return []

    monkeypatch.setattr(apt, "run", lists)
    apt.PrivateApt(Cache(tmp_path / "cache"), "file:/m", "trixie", log, sources=sources).update()
    assert asked == {expected}
