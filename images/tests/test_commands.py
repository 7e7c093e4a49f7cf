# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from images.commands import (
    Crew,
    Log,
    await_turn,
    child,
    compiling,
    environment,
    require_tools,
    run,
    working_in,
)
from images.errors import BuildError, CommandError


def test_everything_a_command_prints_is_in_the_log_and_given_back(log: Log) -> None:
    seen: list[str] = []
    lines = run(["sh", "-c", "echo out; echo err >&2"], log=log, what="x", on_line=seen.append)
    assert lines == seen == ["out", "err"]
    text = log.path.read_text()
    assert "+ sh -c 'echo out; echo err >&2'\n" in text
    assert "out\nerr\n# exit 0" in text


def test_a_failure_names_the_last_line_the_status_and_the_log(log: Log) -> None:
    with pytest.raises(CommandError) as caught:
        run(
            ["sh", "-c", "echo first; echo it broke; echo; exit 3"], log=log, what="the step failed", hint="h"
        )
    error = caught.value
    assert error.message == "the step failed (exit status 3): it broke"
    assert error.returncode == 3
    assert error.output == ("first", "it broke", "")
    assert str(error) == f"the step failed (exit status 3): it broke; hint: h; log: {log.path}"


def test_a_full_disk_is_called_that(log: Log) -> None:
    with pytest.raises(CommandError, match="no space left on device") as caught:
        run(["sh", "-c", "echo 'cp: No space left on device'; echo bye; exit 1"], log=log, what="x")
    assert "TDX_E2E_CACHE" in caught.value.hint


def test_a_command_that_is_not_there_fails_with_a_hint(log: Log) -> None:
    with pytest.raises(BuildError):
        run(["/nonexistent/tool"], log=log, what="x")


def _ends(watch: int) -> bool:
    """Whether the process of a pidfd ends within 30 s."""
    readable, _, _ = select.select([watch], [], [], 30)
    return bool(readable)


def test_leaving_early_ends_the_whole_process_group(log: Log) -> None:
    def leave() -> None:
        with child(["sh", "-c", "sleep 600 & echo $!; wait"], log=log) as process:
            assert process.stdout is not None
            watches.append(os.pidfd_open(int(process.stdout.readline())))
            watches.append(os.pidfd_open(process.pid))
            raise KeyboardInterrupt

    watches: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        leave()
    try:
        assert all(_ends(watch) for watch in watches)
    finally:
        for watch in watches:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(watch, signal.SIGKILL)
            os.close(watch)


def test_a_command_does_not_outlive_a_killed_builder(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from images.commands import Log, run\n"
        "run(['sh', '-c', 'echo $$; exec sleep 600'], log=Log(Path(sys.argv[1])), what='x',"
        " on_line=lambda line: print(line, flush=True))"
    )
    builder = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "log")],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert builder.stdout is not None
    pid = int(builder.stdout.readline())
    watch = os.pidfd_open(pid)
    builder.kill()
    builder.wait(timeout=30)
    try:
        assert _ends(watch), "the command still runs"
    finally:
        os.close(watch)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        builder.stdout.close()


def test_every_missing_tool_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("images.commands.is_there", lambda tool: tool == "tar")
    require_tools(["tar"], "nothing")
    with pytest.raises(
        BuildError, match="flex, mke2fs not found on this machine; needed for the kernel"
    ) as caught:
        require_tools(["mke2fs", "tar", "flex"], "the kernel")
    assert "install e2fsprogs flex" in caught.value.hint


def test_tools_are_found_without_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PATH")
    require_tools(["tar", "mke2fs"], "nothing")


def test_tools_in_sbin_are_found_and_messages_are_untranslated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("MAKEFLAGS", "-n")
    env = environment({"EXTRA": "1"})
    assert "/usr/sbin" in env["PATH"].split(":")
    assert (env["LC_ALL"], env["EXTRA"]) == ("C.UTF-8", "1")
    assert "MAKEFLAGS" not in env


def _policy(log: Log) -> str:
    return run(["sh", "-c", "chrt -p $$"], log=log, what="x")[0].rpartition(" ")[2]


def test_crew_behind_others_gets_idle_time_only_until_its_turn_and_to_compile(log: Log) -> None:
    crew = Crew(behind=True)
    with working_in(crew):
        assert _policy(log) == "SCHED_IDLE"
        crew.take_turn()
        assert _policy(log) == "SCHED_OTHER"
        with compiling():
            assert _policy(log) == "SCHED_IDLE"
        assert _policy(log) == "SCHED_OTHER"
    with working_in(Crew()), compiling():
        assert _policy(log) == "SCHED_OTHER"


def test_crew_is_hurried_until_the_last_who_waits_has_left() -> None:
    crew = Crew(behind=True)
    with crew.hurry():
        with crew.hurry():
            pass
        assert crew.hurried
    assert not crew.hurried


@pytest.mark.parametrize("how", ["take_turn", "hurry", "dismiss"])
def test_crew_behind_others_waits_for_its_turn(how: str) -> None:
    crew = Crew(behind=True)
    waits = threading.Event()
    waited = threading.Event()

    def work() -> None:
        with working_in(crew):
            waits.set()
            await_turn()
        waited.set()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert waits.wait(10)
    assert not waited.wait(0.1)
    with contextlib.ExitStack() as stack:
        if how == "hurry":
            stack.enter_context(crew.hurry())
        else:
            getattr(crew, how)()
        assert waited.wait(10)
    thread.join(10)


def test_nobody_else_waits_for_a_turn() -> None:
    await_turn()
    with working_in(Crew()):
        await_turn()


_CAP_SYS_NICE = 23


def _may_step_forward() -> bool:
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return bool(int(status["CapEff"], 16) & 1 << _CAP_SYS_NICE)


@pytest.mark.skipif(not _may_step_forward(), reason="needs CAP_SYS_NICE, which root of a container lacks")
@pytest.mark.parametrize("compiles", [False, True])
def test_tools_that_somebody_waits_for_do_not_stay_behind(log: Log, compiles: bool) -> None:
    crew, waiting = Crew(behind=True), contextlib.ExitStack()
    policies: list[int] = []

    def go(line: str) -> None:
        tools = list(map(int, line.split()))
        policies.extend(map(os.sched_getscheduler, tools))
        if compiles:
            waiting.enter_context(crew.hurry())
        else:
            crew.take_turn()
        policies.extend(map(os.sched_getscheduler, tools))
        crew.dismiss()

    front = compiling() if compiles else contextlib.nullcontext()
    with waiting, working_in(crew), front, pytest.raises(CommandError, match="SIGTERM"):
        run(["sh", "-c", "sleep 600 & echo $$ $!; wait"], log=log, what="x", on_line=go)
    assert policies == [os.SCHED_IDLE] * 2 + [os.SCHED_OTHER] * 2
    assert crew.hurried is False
    with working_in(crew), compiling():
        assert crew.idle


def test_dismissed_crew_ends_its_tools_and_begins_none(log: Log) -> None:
    crew = Crew()
    with working_in(crew):
        with pytest.raises(CommandError, match="SIGTERM"):
            run(["sh", "-c", "echo; exec sleep 600"], log=log, what="x", on_line=lambda _: crew.dismiss())
        with pytest.raises(CommandError, match="SIGKILL"):
            run(["sleep", "600"], log=log, what="x", death="KILL")
    assert run(["echo", "others work on"], log=log, what="x") == ["others work on"]


def test_cpu_time_in_the_log_is_the_tools_own(log: Log) -> None:
    def let_another_work(_: str) -> None:
        busy = "import time\nwhile time.process_time() < 0.5: pass"
        subprocess.run([sys.executable, "-c", busy], check=True)

    run(["echo"], log=log, what="x", on_line=let_another_work)
    assert ", 0.0 s of CPU\n" in log.path.read_text()
