# SPDX-License-Identifier: GPL-2.0-or-later
"""Run the tools that build images; everything that they print goes to a log file."""

from __future__ import annotations

import collections
import contextlib
import os
import resource
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from images.errors import BuildError, CommandError
from images.needs import is_there, package_of, search_path

_TERM_SECONDS = 10.0
_KEPT_LINES = 400


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
    log.write(f"+ {f'cd {shlex.quote(str(cwd))} && ' if cwd else ''}{shlex.join(words)}\n")
    try:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", death, "--", *words],
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
    try:
        yield process
    finally:
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        if process.poll() is None:
            _end_group(process)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
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
        started, used = time.monotonic(), _cpu_seconds()
        process = stack.enter_context(child(argv, log=log, cwd=cwd, env=env, stdin=stdin, death=death))
        assert process.stdout is not None
        for raw in process.stdout:
            line = raw.decode(errors="replace").rstrip("\n")
            log.write(line + "\n")
            kept.append(line)
            if on_line is not None:
                on_line(line)
        status = process.wait()
        took = f"{time.monotonic() - started:.1f} s, {_cpu_seconds() - used:.1f} s of CPU"
        log.note(f"exit {status} after {took}")
    if status:
        raise failure(what, status, tuple(kept), hint=hint, log=log.path)
    return list(kept)


def _cpu_seconds() -> float:
    """CPU time of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def failure(
    what: str, status: int, output: tuple[str, ...], *, hint: str = "", log: Path | None = None
) -> CommandError:
    """The error for a tool that failed, with the last line that it printed."""
    how = f"exit status {status}" if status > 0 else f"signal {signal.Signals(-status).name}"
    last = next((line.strip() for line in reversed(output) if line.strip()), "no output")
    if any("No space left on device" in line for line in output):
        last, hint = "no space left on device", hint or "free some space, or move the cache (TDX_E2E_CACHE)"
    return CommandError(f"{what} ({how}): {last}", returncode=status, output=output, hint=hint, log=log)
