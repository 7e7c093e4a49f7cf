# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import io
import re
import threading
from types import SimpleNamespace

import pytest

from images import progress
from images.progress import Reporter, Silent, TerminalReporter, reporter


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_say_what_begins_and_how_long_it_took(report: Reporter, said: io.StringIO) -> None:
    with report.step("kernel: compiling", total=10) as step:
        step.advance(3)
        report.note("a note")
    lines = said.getvalue().splitlines()
    assert lines[:2] == ["kernel: compiling ...", "a note"]
    assert re.fullmatch(r"kernel: compiling: \d+\.\d s", lines[2])
    assert [title for title, _ in report.timings] == ["kernel: compiling"]


def _break(report: Reporter) -> None:
    with report.step("x"):
        raise ValueError


def test_a_step_that_fails_is_not_timed(report: Reporter, said: io.StringIO) -> None:
    with pytest.raises(ValueError):
        _break(report)
    assert report.timings == []
    assert said.getvalue() == "x ...\n"


def test_an_image_that_another_needs_is_not_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    report = Silent()
    clock = iter([0.0, 1.0, 1.0, 4.0, 5.0, 6.0, 7.5, 9.0, 20.0, 22.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with report.image("rootfs"):  # 0 to 9
        with report.image("qemu"), report.image("buildroot"):  # 1 to 5; 1 to 4
            pass
        with report.image("kernel"):  # 6 to 7.5
            pass
    assert report.spent == {"buildroot": 3.0, "qemu": 1.0, "kernel": 1.5, "rootfs": 3.5}
    with report.image("kernel"):
        pass
    assert report.spent["kernel"] == 3.5


def test_images_that_threads_make_at_once_count_each_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    report = Silent()
    clock = iter([0.0, 1.0, 3.0, 4.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))

    def other() -> None:
        with report.image("qemu"):
            pass

    thread = threading.Thread(target=other)
    with report.image("kernel"):
        thread.start()
        thread.join()
    assert report.spent == {"kernel": 4.0, "qemu": 2.0}


def test_bars_only_on_a_terminal() -> None:
    assert type(reporter(io.StringIO())) is Reporter
    assert isinstance(reporter(_Terminal()), TerminalReporter)


def test_the_terminal_gets_a_line_for_each_finished_step_and_note() -> None:
    stream = _Terminal()
    report = TerminalReporter(stream)
    with report.step("outer", total=2) as outer, report.step("inner") as inner:
        report.note("[a note]")
        outer.advance()
        inner.advance()
    text = stream.getvalue()
    assert "[a note]" in text
    assert re.search(r"inner: \d+\.\d s", text)
    assert re.search(r"outer: \d+\.\d s", text)
