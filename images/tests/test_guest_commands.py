# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's commands.c, which executes what the host sends, as a process of this machine."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from images.guests import compiled

_INIT = Path(compiled.__file__).parent / "init"
_SERVE = Path(__file__).parent / "guests/serve.c"
SECONDS = 20

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("guest") / "serve"
    argv = ["gcc", *compiled.FLAGS, "-I", _INIT, "-o", made, _SERVE, _INIT / "commands.c"]
    subprocess.run([str(word) for word in argv], check=True)
    return made


class Guest:
    """The process, and the lines that it has sent."""

    def __init__(self, program: Path) -> None:
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(SECONDS)
        with theirs:
            self.process = subprocess.Popen([program], stdin=theirs.fileno(), stderr=subprocess.PIPE)
        self._file = self.socket.makefile("rb")
        self.lines: list[str] = []

    def send(self, text: str) -> None:
        self.socket.sendall(text.encode())

    def until(self, pattern: str) -> str:
        """Read lines up to the first that matches as a whole; returns it."""
        for raw in self._file:
            self.lines.append(raw.decode().removesuffix("\n"))
            if re.fullmatch(pattern, self.lines[-1]):
                return self.lines[-1]
        raise AssertionError(f"the guest has ended without {pattern}: {self.lines}")

    def ask(self, text: str) -> list[str]:
        """Send orders; returns the lines up to the first end of a command."""
        self.lines.clear()
        self.send(text)
        self.until(r"\d+=\d+")
        return self.lines


@pytest.fixture
def guest(program: Path) -> Iterator[Guest]:
    made = Guest(program)
    yield made
    made.socket.shutdown(socket.SHUT_RDWR)
    assert made.process.wait(SECONDS) == 0
    made.socket.close()
    assert made.process.stderr is not None
    made.process.stderr.close()


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("echo a; echo; echo b >&2", ["7|a", "7|", "7|b", "7=0"]),
        ("printf 'no newline'; exit 3", ["7|no newline", "7=3"]),
        ("kill -9 $$", ["7=137"]),
        ("true", ["7=0"]),
        ("read line; echo $?", ["7|1", "7=0"]),
        ("no-such-command 2>/dev/null", ["7=127"]),
        ("(sleep 0.2; echo late) & echo early", ["7|early", "7|late", "7=0"]),
        ("echo '5 |=!'", ["7|5 |=!", "7=0"]),
    ],
)
def test_a_command_is_answered_by_its_lines_and_then_its_status(
    guest: Guest, command: str, answer: list[str]
) -> None:
    assert guest.ask(f"7 {command}\n") == answer


def test_a_long_line_comes_in_pieces_and_nothing_is_lost(guest: Guest) -> None:
    lines = guest.ask("1 seq 10000 | tr -d '\\n'; echo; echo end\n")
    assert lines[-2:] == ["1|end", "1=0"]
    pieces = [line.removeprefix("1|") for line in lines[:-2]]
    assert len(pieces[0]) == 4095
    assert "".join(pieces) == "".join(map(str, range(1, 10001)))


def test_an_order_may_come_in_parts_and_several_at_once(guest: Guest) -> None:
    # The second part is sent once the first was read.
    assert guest.ask("1 echo one\n2 ec") == ["1|one", "1=0"]
    assert guest.ask("ho two\n") == ["2|two", "2=0"]
    guest.send("3 echo three\n4 echo four\n")
    guest.until(r"\d=0")
    guest.until(r"\d=0")
    assert sorted(guest.lines[-4:]) == ["3=0", "3|three", "4=0", "4|four"]


def test_commands_run_beside_each_other_and_signals_reach_their_groups(guest: Guest) -> None:
    guest.send("1 echo begun; sleep 60 & sleep 60; echo not reached\n")
    guest.until(r"1\|begun")
    assert guest.ask("2 echo short\n") == ["2|short", "2=0"]
    # Sent together: the group has to exist as soon as the command does.
    assert guest.ask("3 sleep 60\n3!15\n") == ["3=143"]
    assert guest.ask("1!9\n") == ["1=137"]


def test_signals_for_what_does_not_run_are_ignored(guest: Guest) -> None:
    assert guest.ask("9!9\n4 echo alive\n") == ["4|alive", "4=0"]


def test_more_commands_than_there_is_room_for_are_refused(guest: Guest) -> None:
    guest.send("".join(f"{number} sleep 60\n" for number in range(32)))
    assert guest.ask("99 echo one too many\n") == ["99=126"]
    assert guest.ask("5!15\n") == ["5=143"]
    assert guest.ask("99 echo room\n") == ["99|room", "99=0"]
    for number in {*range(32)} - {5}:
        assert guest.ask(f"{number}!9\n") == [f"{number}=137"]


def test_what_is_no_order_is_reported_on_the_console(guest: Guest) -> None:
    assert guest.ask("\nwhat\n12what\n1 echo on\n") == ["1|on", "1=0"]
    assert guest.process.stderr is not None
    error = "tdx-guest: error: not a command: "
    assert [guest.process.stderr.readline().decode() for _ in range(2)] == [
        f"{error}what\n",
        f"{error}12what\n",
    ]
