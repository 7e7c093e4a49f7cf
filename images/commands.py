# SPDX-License-Identifier: GPL-2.0-or-later
"""Run the tools that build images; everything that they print goes to a log file."""

from __future__ import annotations

import collections
import contextlib
import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import IO

from images.errors import BuildError, CommandError
from images.needs import is_there, package_of, search_path

_TERM_SECONDS = 10.0
_KEPT_LINES = 400
_BEHIND = ("chrt", "--idle", "0")


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of tools: untranslated messages, and :func:`images.needs.search_path`."""
    env = {k: v for k, v in os.environ.items() if k not in {"MAKEFLAGS", "MAKELEVEL", "LANGUAGE"}}
    env["PATH"] = search_path()
    env["LC_ALL"] = "C.UTF-8"
    env.update(extra or {})
    return env


def require_tools(tools: Collection[str], what: str) -> None:
    """Raise :class:`BuildError` naming every missing tool at once.

    :param tools: commands of :data:`images.needs.NEEDS`, as they stand there.
    :param what: the image that needs them.
    """
    missing = sorted(tool for tool in tools if not is_there(tool))
    if missing:
        packages = " ".join(sorted(set(map(package_of, missing))))
        raise BuildError(
            f"{', '.join(missing)} not found on this machine; needed for {what}",
            hint=f"run `python3 -m images setup-host`, or install {packages}",
        )


class Log:
    """The log file of one build: every command and every line that it printed.

    :param path: made anew, with its folder.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file: IO[bytes] = path.open("wb", buffering=0)

    def write(self, text: str) -> None:
        self._file.write(text.encode(errors="surrogateescape"))

    def note(self, text: str) -> None:
        """Write a line that is not a command's, marked as such."""
        self.write(f"# {text}\n")

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Crew:
    """The tools that some threads run, which another thread may end; see :func:`working_in`.

    :param behind: others come first: the crew waits for its turn (:func:`await_turn`), and what it then
        compiles gets the CPU time that nobody else wants.
    """

    def __init__(self, *, behind: bool = False) -> None:
        self._lock = threading.Lock()
        self._working: dict[subprocess.Popen[bytes], int] = {}
        self._dismissed = False
        self._turn = threading.Event()
        self.behind = behind
        self._waiting = 0
        if not behind:
            self._turn.set()

    @property
    def idle(self) -> bool:
        """True if a tool that is started now has to work behind others."""
        return self.behind and not self.hurried and (_COMPILING.get() or not self._turn.is_set())

    @property
    def hurried(self) -> bool:
        """True while somebody waits: nobody works behind others then."""
        return self._waiting > 0

    def take_turn(self) -> None:
        """Let it work, what it compiles still behind others; its tools step forward as in :meth:`hurry`."""
        self._turn.set()
        with self._lock:
            self._step_forward()

    def await_turn(self) -> None:
        """Wait until it may work, or is hurried or dismissed."""
        self._turn.wait()

    def dismiss(self) -> None:
        """End all tools, and each that is started from now on; their threads get a :class:`CommandError`."""
        self._turn.set()
        with self._lock:
            self._dismissed = True
            for process, death in self._working.items():
                _kill_group(process, death)

    @contextlib.contextmanager
    def hurry(self) -> Iterator[None]:
        """Have the tools compete for CPU time like all others, also those that were started to work behind.

        The latter stay behind unless we have CAP_SYS_NICE: on a busy machine only that makes a difference.
        """
        self._turn.set()
        with self._lock:
            self._waiting += 1
            self._step_forward()
        try:
            yield
        finally:
            with self._lock:
                self._waiting -= 1

    def _step_forward(self) -> None:
        for process in self._working:
            for member in _session_of(process):
                with contextlib.suppress(OSError):
                    os.sched_setscheduler(member, os.SCHED_OTHER, os.sched_param(0))

    @contextlib.contextmanager
    def at_work(self, process: subprocess.Popen[bytes], death: int) -> Iterator[None]:
        """Count a process among the tools during a block.

        :param death: the signal that ends it and its children.
        """
        with self._lock:
            self._working[process] = death
            if self._dismissed:
                _kill_group(process, death)
        try:
            yield
        finally:
            with self._lock:
                del self._working[process]


_CREW: ContextVar[Crew | None] = ContextVar("crew", default=None)
_COMPILING: ContextVar[bool] = ContextVar("compiling", default=False)


@contextlib.contextmanager
def working_in(crew: Crew) -> Iterator[None]:
    """Have the tools that this thread runs in the block belong to a crew."""
    token = _CREW.set(crew)
    try:
        yield
    finally:
        _CREW.reset(token)


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """Have the tools of the block work behind others if their crew does: they take minutes of all CPUs.

    What only prepares them competes like all others: behind a compiler it would take ten times as long.
    """
    token = _COMPILING.set(True)
    try:
        yield
    finally:
        _COMPILING.reset(token)


def await_turn() -> None:
    """Wait until this thread's crew may take CPU time from others; downloads need not wait."""
    if crew := _CREW.get():
        crew.await_turn()


def _session_of(process: subprocess.Popen[bytes]) -> Iterator[int]:
    """The process and its children, unless they have left its session."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # After the command, which may contain anything: state, parent, group, session.
            if int(status.read_text().rpartition(")")[2].split()[3]) == process.pid:
                yield int(status.parent.name)


def _step_behind(process: subprocess.Popen[bytes]) -> None:
    # Where Linux schedules by session first, chrt compares a process only with others of its session.
    with contextlib.suppress(OSError):
        Path(f"/proc/{process.pid}/autogroup").write_text("19")


@contextlib.contextmanager
def child(
    argv: Sequence[str | Path],
    *,
    log: Log,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.PIPE,
    stderr: int | IO[bytes] = subprocess.STDOUT,
    death: str = "TERM",
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that cannot outlive us: its group is ended when the block is left early, and the kernel
    sends it a signal if we are killed.  The caller waits for it and evaluates its exit status.

    :param death: that signal: TERM for a process that ends its children on it, as make does.
    """
    words = [str(word) for word in argv]
    crew = _CREW.get()
    behind = crew is not None and crew.idle
    log.write(f"+ {f'cd {shlex.quote(str(cwd))} && ' if cwd else ''}{shlex.join(words)}\n")
    try:
        process = subprocess.Popen(
            [*(_BEHIND if behind else ()), "setpriv", "--pdeathsig", death, "--", *words],
            cwd=cwd,
            env=environment(env),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise BuildError(
            f"cannot start {words[0]}: {error.strerror}: {error.filename}",
            hint="run `python3 -m images setup-host`",
            log=log.path,
        ) from error
    if behind:
        _step_behind(process)
    try:
        with crew.at_work(process, signal.Signals[f"SIG{death}"]) if crew else contextlib.nullcontext():
            yield process
    finally:
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        if process.poll() is None:
            _end_group(process)


def _kill_group(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        _kill_group(process, number)
        try:
            process.wait(timeout=_TERM_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        return


def run(
    argv: Sequence[str | Path],
    *,
    log: Log,
    what: str,
    hint: str = "",
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    input_file: Path | None = None,
    on_line: Callable[[str], None] | None = None,
    death: str = "TERM",
) -> list[str]:
    """Run a tool to its end and return the last lines that it printed (standard error included).

    :param what: begin of the message when the tool fails.
    :param input_file: its standard input, /dev/null by default.
    :param on_line: called with every line, without its newline, as it comes.
    :param death: see :func:`child`.
    :raises CommandError: exit status other than 0.
    """
    kept: collections.deque[str] = collections.deque(maxlen=_KEPT_LINES)
    with contextlib.ExitStack() as stack:
        stdin: int | IO[bytes] = subprocess.DEVNULL
        if input_file is not None:
            stdin = stack.enter_context(input_file.open("rb"))
        started = time.monotonic()
        process = stack.enter_context(child(argv, log=log, cwd=cwd, env=env, stdin=stdin, death=death))
        assert process.stdout is not None
        for raw in process.stdout:
            line = raw.decode(errors="replace").rstrip("\n")
            log.write(line + "\n")
            kept.append(line)
            if on_line is not None:
                on_line(line)
        status, used = _wait(process)
        took = f"{time.monotonic() - started:.1f} s, {used:.1f} s of CPU"
        log.note(f"exit {status} after {took}")
    if status:
        raise failure(what, status, tuple(kept), hint=hint, log=log.path)
    return list(kept)


def _wait(process: subprocess.Popen[bytes]) -> tuple[int, float]:
    """Wait for the end; returns the exit status, and the CPU time of the process and its children."""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, used.ru_utime + used.ru_stime


def failure(
    what: str, status: int, output: tuple[str, ...], *, hint: str = "", log: Path | None = None
) -> CommandError:
    """The error for a tool that failed, with the last line that it printed."""
    how = f"exit status {status}" if status > 0 else f"signal {signal.Signals(-status).name}"
    last = next((line.strip() for line in reversed(output) if line.strip()), "no output")
    if any("No space left on device" in line for line in output):
        last, hint = "no space left on device", hint or "free some space, or move the cache (TDX_E2E_CACHE)"
    return CommandError(f"{what} ({how}): {last}", returncode=status, output=output, hint=hint, log=log)
