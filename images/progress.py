# SPDX-License-Identifier: GPL-2.0-or-later
"""Progress of a build for a person: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class Step(Protocol):
    """A step that is under way."""

    def advance(self, amount: float = 1) -> None:
        """Add ``amount`` to the units of the step's total that are done."""


class Reporter:
    """Plain lines: one when a step begins and one, with its seconds, when it ends.

    :param stream: where the lines go, standard error by default.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self.timings: list[tuple[str, float]] = []

    def note(self, text: str) -> None:
        """Print one line."""
        print(text, file=self._stream, flush=True)

    @contextlib.contextmanager
    def step(self, title: str, total: float | None = None) -> Iterator[Step]:
        """Report and time a step; its seconds are appended to :attr:`timings` when it succeeds.

        :param total: units that :meth:`Step.advance` will count up to, None where unknown.
        """
        started = time.monotonic()
        with self._show(title, total) as step:
            yield step
        seconds = time.monotonic() - started
        self.timings.append((title, seconds))
        self._ended(title, seconds)

    @contextlib.contextmanager
    def _show(self, title: str, total: float | None) -> Iterator[Step]:
        self.note(f"{title} ...")
        yield _Silent()

    def _ended(self, title: str, seconds: float) -> None:
        self.note(f"{title}: {seconds:.1f} s")


class _Silent:
    def advance(self, amount: float = 1) -> None:
        """Do nothing: plain lines lack a bar."""


class Silent(Reporter):
    """Prints nothing, and keeps the timings."""

    def note(self, text: str) -> None:
        """Do nothing."""


class Share(Reporter):
    """Shows on another reporter, and keeps the timings of its own steps only."""

    def __init__(self, on: Reporter) -> None:
        super().__init__()
        self._on = on

    def note(self, text: str) -> None:
        self._on.note(text)

    @contextlib.contextmanager
    def _show(self, title: str, total: float | None) -> Iterator[Step]:
        with self._on._show(title, total) as step:
            yield step

    def _ended(self, title: str, seconds: float) -> None:
        self._on._ended(title, seconds)


class TerminalReporter(Reporter):
    """Bars that move while a step runs, one finished line a step after it."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        self._live: Progress | None = None

    def note(self, text: str) -> None:
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            super().note(text)

    @contextlib.contextmanager
    def _show(self, title: str, total: float | None) -> Iterator[Step]:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        if self._live is not None:
            task = self._live.add_task(title, total=total)
            try:
                yield _Bar(self._live, task)
            finally:
                self._live.remove_task(task)
            return
        live = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            console=Console(file=self._stream),
            transient=True,
        )
        with live:
            self._live = live
            try:
                yield _Bar(live, live.add_task(title, total=total))
            finally:
                self._live = None


class _Bar:
    def __init__(self, live: Progress, task: TaskID) -> None:
        self._live = live
        self._task = task

    def advance(self, amount: float = 1) -> None:
        self._live.advance(self._task, amount)


def reporter(stream: TextIO | None = None) -> Reporter:
    """The reporter that suits ``stream`` (standard error by default)."""
    stream = stream if stream is not None else sys.stderr
    if stream.isatty() and importlib.util.find_spec("rich") is not None:
        return TerminalReporter(stream)
    return Reporter(stream)
