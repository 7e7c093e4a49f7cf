# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs of pytest that a test starts, follows and kills."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from urllib.parse import quote

from fixtures.closing import Closing
from fixtures.deadline import until
from fixtures.host.nested import NestedHost

ROOT = Path(__file__).parents[1]
RUN_SECONDS = 150.0


def on(machine: NestedHost) -> str:
    """Return the option that makes a nested host a run's machine, reached over SSH."""
    testbed = machine.ssh_testbed()
    address = f"ssh://root@{testbed.host}:{testbed.port}"
    return f"--tdx-testbed={address}?key={quote(testbed.key)}&hostkey={testbed.hostkey}"


class Run(Closing):
    """A run of pytest.

    :param folder: is made; contains its tests, and the file ``output``.
    :param tests: source of its tests; in them ``inside()`` announces that a test has come so far, and waits
        until :meth:`go_on`.
    """

    def __init__(self, folder: Path, tests: str, *options: str) -> None:
        self._folder = folder
        folder.mkdir()
        head = f"""\
            from pathlib import Path
            import pytest
            from fixtures.deadline import until

            def inside():
                Path({str(folder / "inside")!r}).touch()
                until(Path({str(folder / "go")!r}).exists, "the other side", {RUN_SECONDS})
            """
        (folder / "conftest.py").write_text('pytest_plugins = ["fixtures.plugin"]\n')
        (folder / "pytest.ini").write_text("[pytest]\n")
        (folder / "test_it.py").write_text(dedent(head) + dedent(tests))
        self._output = (folder / "output").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-rfEs", "-v", *options],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": "", "COLUMNS": "300"},
            stdin=subprocess.PIPE,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )

    def await_inside(self) -> None:
        """Wait until a test calls ``inside()``."""

        def arrived() -> bool:
            # Its end would otherwise be waited for in vain.
            assert self._process.poll() is None, self.output
            return (self._folder / "inside").exists()

        until(arrived, "the run to be inside its test", RUN_SECONDS)

    def go_on(self) -> None:
        """Let the test that is inside go on."""
        (self._folder / "go").touch()

    def press_enter(self) -> None:
        """Send an empty line to its standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()

    def line(self, pattern: str) -> re.Match[str]:
        """Wait for a line of the output."""

        def found() -> bool:
            assert self._process.poll() is None or re.search(pattern, self.output), self.output
            return re.search(pattern, self.output) is not None

        until(found, f"the run to print {pattern!r}", RUN_SECONDS)
        match = re.search(pattern, self.output)
        assert match is not None
        return match

    def kill(self) -> None:
        """Kill the process as the kernel does, without a chance to clean up."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(10)

    def end(self) -> str:
        """Wait for the end; returns the output."""
        self._process.wait(RUN_SECONDS)
        return self.output

    @property
    def output(self) -> str:
        return (self._folder / "output").read_text(errors="replace")

    def close(self) -> None:
        """Kill it, if it still runs."""
        self._process.kill()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)
        self._output.close()
