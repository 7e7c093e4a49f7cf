# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator

import pytest

from images.cache import Cache
from images.errors import BuildError
from images.progress import Reporter
from images.recipe import Recipe, Work


class Tea(Recipe):
    """An image that is one line of text."""

    kind = "tea"
    label = "green"
    what = "the tea"
    space = 1
    tools = {"sh": "dash"}  # noqa: RUF012 (a constant of the test)

    def __init__(self, leaves: str = "sencha", error: Exception | None = None) -> None:
        self.leaves = leaves
        self.error = error
        self.made = 0

    def inputs(self) -> dict[str, object]:
        return {"leaves": self.leaves}

    def make(self, work: Work) -> dict[str, object]:
        self.made += 1
        with work.reporter.step("tea: brewing"):
            (work.out / "cup").write_text(self.leaves)
        work.log.note("hot")
        if self.error is not None:
            raise self.error
        return {"version": "1"}


def test_an_image_is_made_once_and_found_by_its_inputs(cache: Cache, report: Reporter) -> None:
    with report.step("before"):
        pass
    tea = Tea()
    found = tea.ensure(cache, report)
    assert (found.kind, found.label, found.content_hash) == ("tea", "green", tea.key())
    assert (found.path / "cup").read_text() == "sencha"
    assert "# hot\n" in (found.path / "build.log").read_text()
    manifest = found.manifest()
    assert (manifest["version"], manifest["inputs"], list(manifest["steps"])) == (
        "1",
        {"leaves": "sencha"},
        ["tea: brewing"],
    )
    assert Tea().ensure(cache, report) == tea.ensure(cache, report) == found
    assert tea.made == 1
    assert Tea("assam").find(cache) is None
    assert Tea("assam").ensure(cache, report).content_hash != found.content_hash


def test_an_image_that_another_process_made_meanwhile_is_taken(
    cache: Cache, report: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = Tea(), Tea()
    lock = Cache.lock

    @contextlib.contextmanager
    def waiting(cache: Cache, name: str, reporter: Reporter) -> Iterator[bool]:
        monkeypatch.setattr(Cache, "lock", lock)
        theirs.ensure(cache, reporter)
        with lock(cache, name, reporter) as waited:
            yield waited

    monkeypatch.setattr(Cache, "lock", waiting)
    assert ours.ensure(cache, report) == theirs.find(cache)
    assert (ours.made, theirs.made) == (0, 1)


def test_inputs_are_read_again_after_a_wait_and_only_then(
    cache: Cache, report: Reporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []

    class Watched(Tea):
        def inputs(self) -> dict[str, object]:
            looks.append(self.leaves)
            return super().inputs()

    Watched().ensure(cache, report)
    assert looks == ["sencha"]

    @contextlib.contextmanager
    def waiting(cache: Cache, name: str, reporter: Reporter) -> Iterator[bool]:
        tea.leaves = "assam"
        yield True

    monkeypatch.setattr(Cache, "lock", waiting)
    tea = Watched("oolong")
    found = tea.ensure(cache, report)
    assert looks == ["sencha", "oolong", "assam"]
    assert found == Tea("assam").find(cache)
    assert found.manifest()["inputs"] == {"leaves": "assam"}


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (BuildError("too hot"), "too hot"),
        (FileNotFoundError(2, "No such file or directory", "/kettle"), "No such file or directory: /kettle"),
    ],
)
def test_a_failure_leaves_nothing_but_its_log(
    cache: Cache, report: Reporter, error: Exception, message: str
) -> None:
    tea = Tea(error=error)
    with pytest.raises(BuildError) as caught:
        tea.ensure(cache, report)
    assert caught.value.message == message
    assert cache.artefacts() == []
    assert [path.name for path in (cache.root / "scratch").iterdir()] == ["gate"]
    assert len(list((cache.root / "logs").glob("*-tea-*.log"))) == 1


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("space", 10**18, r"the tea needs 1000000000\.0 GB of free space"),
        ("tools", {"samovar": "samovar"}, "samovar not found on this machine; needed for the tea"),
    ],
)
def test_space_and_tools_are_checked_before_anything_is_made(
    cache: Cache, report: Reporter, said: io.StringIO, attribute: str, value: object, message: str
) -> None:
    tea = Tea()
    setattr(tea, attribute, value)
    with pytest.raises(BuildError, match=message):
        tea.ensure(cache, report)
    assert (tea.made, said.getvalue()) == (0, "")
