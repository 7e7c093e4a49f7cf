# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest

from images.cache import (
    MANIFEST,
    Cache,
    cache_root,
    digest_files,
    digest_inputs,
    mounts_below,
    remove_tree,
)
from images.errors import BuildError
from images.progress import Reporter

# Holds a lock or a scratch folder until its standard input is closed.
_HOLDER = """
import sys
from pathlib import Path
from images.cache import Cache
from images.progress import Reporter
cache = Cache(Path(sys.argv[1]))
what, name = sys.argv[2:]
with cache.lock(name, Reporter()) if what == "lock" else cache.scratch(name) as held:
    print(held, flush=True)
    sys.stdin.read()
"""


def _hold(cache: Cache, what: str, name: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(cache.root), what, name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def _release(process: subprocess.Popen[str]) -> None:
    process.communicate(timeout=30)


def _put(cache: Cache, kind: str, label: str, content_hash: str) -> Path:
    with cache.scratch(kind) as scratch:
        out = scratch / "out"
        out.mkdir()
        (out / "image").write_bytes(b"x" * 5000)
        return cache.publish(out, kind, label, content_hash, {"version": "1"}).path


def test_the_root_is_the_option_then_the_variable_then_xdg_then_home(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("TDX_E2E_CACHE", raising=False)
    assert cache_root() == tmp_path / "home/.cache/tdx-e2e"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg/tdx-e2e"
    monkeypatch.setenv("TDX_E2E_CACHE", str(tmp_path / "named"))
    assert cache_root() == tmp_path / "named"
    assert cache_root(tmp_path / "option") == tmp_path / "option"


def test_the_digest_does_not_depend_on_order_but_on_every_value() -> None:
    assert digest_inputs({"a": 1, "b": [2]}) == digest_inputs({"b": [2], "a": 1})
    assert digest_inputs({"a": 1, "b": [2]}) != digest_inputs({"a": 1, "b": [3]})


def test_files_are_hashed_by_name_content_and_executable_bit(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a.c").write_text("one")
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__/x.pyc").write_text("noise")
    before = digest_files(tmp_path)
    assert list(before) == ["sub/a.c"]
    (tmp_path / "sub/a.c").write_text("two")
    changed = digest_files(tmp_path)
    assert changed != before
    (tmp_path / "sub/a.c").chmod(0o755)
    assert digest_files(tmp_path) != changed
    assert digest_files(tmp_path / "absent") == {}


def test_an_artefact_is_found_by_its_hash_only(cache: Cache) -> None:
    path = _put(cache, "kernel", "upstream-tree", "0123456789abcdef")
    found = cache.find("kernel", "upstream-tree", "0123456789abcdef")
    assert found is not None
    assert found.path == path
    assert found.manifest() == {"version": "1"}
    assert 5000 <= found.size() <= 20000
    assert cache.find("kernel", "upstream-tree", "0123456789abcde0") is None
    listed = cache.artefacts()
    assert [(a.kind, a.label, a.content_hash) for a in listed] == [
        ("kernel", "upstream-tree", "0123456789abcdef")
    ]


def test_a_folder_without_its_manifest_is_no_artefact(cache: Cache) -> None:
    path = _put(cache, "kernel", "upstream", "0123456789abcdef")
    (path / MANIFEST).unlink()
    assert cache.find("kernel", "upstream", "0123456789abcdef") is None
    assert cache.artefacts() == []


def test_a_failed_build_leaves_neither_scratch_nor_artefact(cache: Cache) -> None:
    def fail() -> None:
        with cache.scratch("kernel") as scratch:
            (scratch / "half").write_text("half")
            seen.append(scratch)
            raise BuildError("no")

    seen: list[Path] = []
    with pytest.raises(BuildError):
        fail()
    assert not seen[0].exists()
    assert [path.name for path in (cache.root / "scratch").iterdir()] == ["gate"]
    assert cache.artefacts() == []


def test_what_a_killed_build_left_is_removed_and_a_running_build_is_left_alone(cache: Cache) -> None:
    killed, running = _hold(cache, "scratch", "killed"), _hold(cache, "scratch", "running")
    assert killed.stdout is not None
    assert running.stdout is not None
    left, busy = Path(killed.stdout.readline().strip()), Path(running.stdout.readline().strip())
    killed.kill()
    killed.communicate(timeout=30)
    assert left.is_dir()
    assert cache.remove_stale_scratch() == 1
    assert not left.exists()
    assert busy.is_dir()
    _release(running)
    assert not busy.exists()


def test_a_second_builder_waits_and_says_so(cache: Cache, report: Reporter, said: io.StringIO) -> None:
    first = _hold(cache, "lock", "kernel")
    assert first.stdout is not None
    first.stdout.readline()

    class Releasing(Reporter):
        def note(self, text: str) -> None:
            report.note(text)
            _release(first)

    with cache.lock("kernel", Releasing(said)) as waited:
        assert (waited, first.returncode) == (True, 0)
    assert "waiting for another process that builds kernel ..." in said.getvalue()


def test_a_free_lock_is_taken_without_a_word(cache: Cache, report: Reporter, said: io.StringIO) -> None:
    with cache.lock("kernel", report) as waited:
        assert not waited
    assert said.getvalue() == ""


def test_too_little_space_is_said_before_anything_is_done(cache: Cache) -> None:
    cache.require_space(1, "nothing much")
    with pytest.raises(BuildError, match=r"needs 1000000000\.0 GB of free space") as caught:
        cache.require_space(10**18, "the moon")
    assert "TDX_E2E_CACHE" in caught.value.hint


def test_a_cache_that_cannot_be_made_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BuildError, match="cannot make the cache folder"):
        Cache(tmp_path / "file/cache").require_space(1, "x")


def test_nothing_is_removed_through_a_mount_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tree"
    (folder / "dev").mkdir(parents=True)
    line = f"36 35 98:0 / {folder}/dev rw - devtmpfs none rw"
    assert mounts_below(folder, line) == [f"{folder}/dev"]
    assert mounts_below(folder, line.replace("/tree/", "/trees/")) == []
    monkeypatch.setattr("images.cache.mounts_below", lambda *_: [f"{folder}/dev"])
    with pytest.raises(BuildError, match="still mounted"):
        remove_tree(folder)
    assert folder.is_dir()


def test_cleaning_everything_is_refused_while_a_build_runs(cache: Cache) -> None:
    path = _put(cache, "rootfs", "trixie", "0123456789abcdef")
    builder = _hold(cache, "lock", "rootfs")
    assert builder.stdout is not None
    builder.stdout.readline()
    with pytest.raises(BuildError, match="rootfs is being built"):
        cache.remove_all()
    assert path.is_dir()
    _release(builder)
    cache.remove_all()
    assert [entry.name for entry in cache.root.iterdir()] == ["locks"]


def test_old_logs_go(cache: Cache) -> None:
    with cache.new_log("first") as first:
        pass
    for number in range(50):
        (first.path.parent / f"2099-{number:03}.log").touch()
    with cache.new_log("last") as last:
        assert last.path.exists()
    assert not first.path.exists()
    assert len(list(first.path.parent.glob("*.log"))) <= 41
