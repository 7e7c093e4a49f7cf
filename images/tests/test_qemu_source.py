# SPDX-License-Identifier: GPL-2.0-or-later
"""Which of QEMU's sources is taken, and how it comes from a mirror that does not have all that it lists."""

from __future__ import annotations

import hashlib
import io
import shutil
from pathlib import Path

import pytest

from images import apt, sources
from images.apt import NotThere, PrivateApt, RemoteFile
from images.cache import Cache
from images.commands import Log
from images.errors import BuildError, CommandError
from images.progress import Reporter
from images.qemu import source
from images.qemu.source import PINNED, choose
from images.recipe import Work
from images.sources import Source, upstream_version

_needs_apt = pytest.mark.skipif(shutil.which("apt-get") is None, reason="this machine has no apt-get")
_needs_dpkg = pytest.mark.skipif(shutil.which("dpkg") is None, reason="this machine has no dpkg")

_PATH = "pool/main/q/qemu/qemu_{}.orig.tar.xz"


def _source(version: str, sha256: str) -> Source:
    return Source("qemu", version, _PATH.format(version), sha256)


def _work(cache: Cache, log: Log, report: Reporter, mirror: str) -> Work:
    return Work(cache, report, log, cache.root / "scratch", mirror)


@pytest.mark.parametrize(
    ("version", "upstream"),
    [
        ("1:11.1.3+ds-1~bpo13+1", "11.1.3+ds"),
        ("11.1.3-rc1-2", "11.1.3-rc1"),
        ("11.1.3", "11.1.3"),
    ],
)
def test_upstreams_version_is_debians_without_epoch_and_revision(version: str, upstream: str) -> None:
    assert upstream_version(version) == upstream


@_needs_dpkg
def test_the_newest_of_the_series_come_first_each_upstream_version_once() -> None:
    available = [
        "1:10.2.2+ds-1",
        "1:11.1.3+ds-1~bpo13+1",
        "1:11.1.10+ds-1",
        "1:11.1.2+ds-3",
        "1:11.1.3+ds-1",
        "1:110.0+ds-1",
        "1:12.0.0+ds-1",
    ]
    assert choose(available) == ["1:11.1.10+ds-1", "1:11.1.3+ds-1", "1:11.1.2+ds-3"]
    assert choose(available[:1]) == []


def _mirror_of(lists: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """A mirror whose suites list these versions; one that it does not have is not among them."""

    class Client:
        def __init__(self, cache: Cache, uri: str, suite: str, log: Log, *, sources: bool) -> None:
            assert sources
            self.suite = suite

        def update(self) -> None:
            if self.suite not in lists:
                raise NotThere(f"m does not have {self.suite}")

        def source_versions(self, package: str) -> list[str]:
            assert package == "qemu"
            return lists[self.suite]

        def original(self, package: str, version: str) -> RemoteFile | None:
            assert version in lists[self.suite]
            upstream = upstream_version(version)
            if upstream == PINNED.version:
                return RemoteFile(PINNED.path, PINNED.sha256)
            return None if upstream == "11.9" else RemoteFile(_PATH.format(upstream), f"hash of {upstream}")

    monkeypatch.setattr(sources, "PrivateApt", Client)


@_needs_dpkg
def test_all_suites_are_asked_and_the_pinned_version_is_the_last_resort(
    cache: Cache, log: Log, report: Reporter, said: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    _mirror_of(
        {
            "trixie-backports": ["1:11.1.3+ds-1~bpo13+1"],
            "sid": ["1:10.2.2+ds-1", "1:11.1.2+ds-3", "1:11.1.3+ds-1", "1:11.9-1"],
        },
        monkeypatch,
    )
    assert source._listed(_work(cache, log, report, "file:/m")) == [
        _source("11.1.3+ds", "hash of 11.1.3+ds"),
        _source("11.1.2+ds", "hash of 11.1.2+ds"),
        PINNED,
    ]
    assert "qemu: m does not have forky\n" in said.getvalue()


@_needs_dpkg
def test_the_pinned_version_is_tried_once(
    cache: Cache, log: Log, report: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    _mirror_of({suite: ["1:11.1.1+ds-1"] for suite in source.SUITES}, monkeypatch)
    assert source._listed(_work(cache, log, report, "file:/m")) == [PINNED]


def test_what_is_wrong_with_lists_is_not_passed_over(
    cache: Cache, log: Log, report: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: PrivateApt) -> None:
        raise BuildError("no network")

    monkeypatch.setattr(PrivateApt, "update", refuse)
    with pytest.raises(BuildError, match="no network"):
        source._listed(_work(cache, log, report, "file:/m"))


def test_the_source_used_last_is_remembered(cache: Cache) -> None:
    used = source.last_used(cache)
    assert used.recall() is None
    used.record(None, PINNED)
    other = _source("11.1.3+ds", "aa")
    used.record(None, other)
    assert source.last_used(cache).recall() == other
    assert source.last_used(cache).recall("11.1.1+ds") == PINNED
    assert (other.upstream, other.file_name) == ("11.1.3", "qemu_11.1.3+ds.orig.tar.xz")


def test_a_kept_tarball_is_used_only_whole_and_others_go(
    cache: Cache, log: Log, report: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"tar"
    kept = _source("11.1.3+ds", hashlib.sha256(content).hexdigest())
    work = _work(cache, log, report, "file:/m")
    monkeypatch.setattr(sources, "clients", lambda *_, **__: [None])
    monkeypatch.setattr(sources, "fetch", lambda *_: Path("fetched"))
    assert source.fetch(work, kept) == Path("fetched")
    cache.sources.mkdir(parents=True)
    path = cache.sources / kept.file_name
    path.write_bytes(content)
    assert source.fetch(work, kept) == path
    (cache.sources / PINNED.file_name).touch()
    (cache.sources / "other").touch()
    source.forget_others(cache, kept)
    assert {file.name for file in cache.sources.iterdir()} == {kept.file_name, "other"}
    path.write_bytes(content[:-1])
    assert source.fetch(work, kept) == Path("fetched")


@pytest.fixture
def _keyring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keyring = tmp_path / "keyring.gpg"
    keyring.touch()
    monkeypatch.setattr(apt, "_KEYRINGS", (keyring,))


@pytest.mark.usefixtures("_keyring")
def test_source_packages_have_state_of_their_own_and_old_lists_will_do(
    cache: Cache, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(apt, "run", lambda *_, **__: [])
    for of_sources in (False, True):
        PrivateApt(cache, "file:/m", "sid", log, sources=of_sources).update()
    lines = {path.parents[1].name: path.read_text() for path in cache.apt.glob("*/etc/sources.list")}
    assert lines["sid"].startswith("deb [arch=amd64 check-valid-until=no signed-by=")
    assert lines["sid-sources"].startswith("deb-src [check-valid-until=no signed-by=")


def test_upstreams_tarball_is_found_among_a_source_packages_files(
    cache: Cache, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, digest = "http://m.invalid/debian/pool/main/q/qemu", "0123456789abcdef" * 4
    printed = [
        "Need to get 39.4 MB of source archives.",
        f"'{folder}/qemu_11.1.3%2bds-1.dsc' qemu_11.1.3+ds-1.dsc 9743 SHA256:{'a' * 64}",
        f"'{folder}/qemu_11.1.3%2bds.orig.tar.xz' qemu_11.1.3+ds.orig.tar.xz 39239656 SHA256:{digest}",
        f"'{folder}/qemu_11.1.3%2bds-1.debian.tar.xz' qemu_11.1.3+ds-1.debian.tar.xz 1 SHA256:{'b' * 64}",
    ]
    monkeypatch.setattr(apt, "run", lambda *_, **__: printed)
    client = PrivateApt(cache, "http://m.invalid/debian", "sid", log, sources=True)
    assert client.original("qemu", "1:11.1.3+ds-1") == RemoteFile(_PATH.format("11.1.3+ds"), digest)
    del printed[2]
    assert client.original("qemu", "1:11.1.3+ds-1") is None


@pytest.mark.usefixtures("_keyring")
def test_a_404_says_that_the_mirror_does_not_have_the_file(
    cache: Cache, log: Log, report: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_found(argv: list[str | Path], **_: object) -> list[str]:
        assert argv[0] == "/usr/lib/apt/apt-helper"
        assert argv[-4:] == [
            "download-file",
            "http://m.invalid/debian/" + _PATH.format("11.1.1%2Bds"),
            str(cache.sources / "qemu_11.1.1+ds.orig.tar.xz.new"),
            f"SHA256:{PINNED.sha256}",
        ]
        raise CommandError("x", returncode=100, output=("  404  Not Found [IP: 127.0.0.1 80]",))

    monkeypatch.setattr(apt, "run", not_found)
    with pytest.raises(NotThere, match=r"does not have qemu_11\.1\.1\+ds\.orig\.tar\.xz"):
        source.fetch(_work(cache, log, report, "http://m.invalid/debian"), PINNED)
    assert list(cache.sources.iterdir()) == []


@_needs_apt
@pytest.mark.usefixtures("_keyring")
def test_a_file_is_fetched_by_apt_and_has_to_have_its_hash(
    tmp_path: Path, cache: Cache, log: Log, report: Reporter
) -> None:
    content = b"a tarball\n"
    there = tmp_path / "mirror" / _PATH.format("11.1.3+ds")
    there.parent.mkdir(parents=True)
    there.write_bytes(content)
    work = _work(cache, log, report, f"file:{tmp_path}/mirror")
    good = _source("11.1.3+ds", hashlib.sha256(content).hexdigest())
    fetched = source.fetch(work, good)
    assert fetched.read_bytes() == content
    assert not fetched.is_symlink()
    there.unlink()
    assert source.fetch(work, good) == fetched
    there.write_bytes(content)
    source.forget_others(cache, PINNED)
    with pytest.raises(BuildError, match=r"downloading qemu_11\.1\.3\+ds\.orig\.tar\.xz failed"):
        source.fetch(work, _source(good.version, "0" * 64))
    assert not any(path.suffix == ".xz" for path in cache.sources.iterdir())
