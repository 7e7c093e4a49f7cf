# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import io
import re

import pytest

from images.progress import Reporter, Share, TerminalReporter, reporter


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


def test_share_shows_on_another_reporter_and_keeps_its_own_timings(
    report: Reporter, said: io.StringIO
) -> None:
    mine, other = Share(report), Share(report)
    with mine.step("kernel: compiling"):
        other.note("a note")
    assert [line.partition(": compiling")[0] for line in said.getvalue().splitlines()] == [
        *("kernel", "a note", "kernel")
    ]
    assert [title for title, _ in mine.timings] == ["kernel: compiling"]
    assert other.timings == report.timings == []
