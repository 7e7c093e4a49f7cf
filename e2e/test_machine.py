# SPDX-License-Identifier: GPL-2.0-or-later
"""A run on a machine that was there before it, and that others use: it disturbs nobody and leaves nothing.

The machine is a nested host reached over SSH; runs of pytest on it are started here, and meanwhile a process
of the host itself is the somebody else.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from textwrap import dedent
from urllib.parse import quote

import pytest

from fixtures import cgroup
from fixtures.agent.errors import RemoteOSError
from fixtures.closing import Closing
from fixtures.deadline import until
from fixtures.host.base import TdxHost
from fixtures.host.cpus import ONLINE
from fixtures.host.hkids import Hkids
from fixtures.host.nested import NestedHost
from fixtures.kvm import build

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400), pytest.mark.tdx_needs("snapshot", "misc-cgroup")]

ROOT = Path(__file__).parents[1]
RUN_SECONDS = 150.0


@pytest.fixture
def machine(tdx_host: TdxHost, tdx_cleanup: ExitStack, tmp_path: Path) -> NestedHost:
    """A host beside the test's, which runs use as a machine over SSH."""
    assert isinstance(tdx_host, NestedHost)
    host = tdx_host.twin(tmp_path / "machine")
    tdx_cleanup.callback(host.close)
    host.start()
    return host


class Run(Closing):
    """A run of pytest on a machine.

    :param tests: source of its tests; in them ``inside()`` announces that a test has come so far, and waits
        until :meth:`go_on`.
    """

    def __init__(self, machine: NestedHost, folder: Path, tests: str, *options: str) -> None:
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
        testbed = machine.ssh_testbed()
        url = f"ssh://root@{testbed.host}:{testbed.port}?key={quote(testbed.key)}&hostkey={testbed.hostkey}"
        self._output = (folder / "output").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pytest", f"--tdx-testbed={url}", "-rfEs", "-v", *options],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": "", "COLUMNS": "300"},
            stdin=subprocess.DEVNULL,
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
        self._process.wait(10)
        self._output.close()


SHARED = """
    def test_takes_all(hkids):
        assert hkids.free > 0

    def test_is_disturbed(tdx_host, hkids):
        inside()
        assert hkids.taken == 0

    def test_is_not(tdx_host, hkids):
        assert hkids.taken == 0
"""


def test_tds_of_others_are_noticed_and_not_disturbed(machine: NestedHost, tmp_path: Path) -> None:
    hkids = Hkids(machine)
    with (
        machine.agent.spawn() as somebody,
        build.initialized(somebody),
        Run(machine, tmp_path / "run", SHARED) as run,
    ):
        run.await_inside()
        with build.initialized(somebody):
            run.go_on()
            output = run.end()
            assert hkids.in_use == 2
    assert f"somebody else uses TDX: python3 (process {somebody.pid})" in output
    assert "test_takes_all SKIPPED" in output
    assert "test_is_disturbed FAILED" in output
    lines = [line for line in output.splitlines() if line.startswith("FAILED")]
    assert ["[lab]" in line for line in lines] == [True]
    assert f"python3 (process {somebody.pid}) made a VM" in output
    assert "test_is_not PASSED" in output
    assert machine.splats() == ()


LEAVES = """
    from fixtures.host.cpus import Cpus

    def test_is_killed(tdx_host, tdx_cgroup):
        child = tdx_cgroup.child("inner")
        cpus = Cpus.online_now(tdx_host.agent)
        cpus.offline(max(cpus.all))
        with tdx_host.agent.spawn(cgroup=child.path):
            inside()
"""
NEXT = """
    def test_next(tdx_host):
        pass
"""


def left(machine: NestedHost) -> Iterator[str]:
    """Yield what differs from a machine that no run has used."""
    files = machine.agent.files
    if files.read_text(ONLINE).strip() != f"0-{machine.shape.cpus - 1}":
        yield "a CPU is offline"
    yield from (name for name in files.listdir(cgroup.ROOT) if name.startswith("tdx-e2e"))
    # The folder of this name is the nested host's own.
    yield from (name for name in files.listdir("/run") if name.startswith("tdx-e2e."))
    yield from (name for name in files.listdir("/tmp") if name.startswith("tdx-e2e"))
    environments = [f"/proc/{pid}/environ" for pid in files.listdir("/proc") if pid.isdigit()]
    found = files.read_all(environments, optional=environments)
    yield from (path for path, text in found.items() if "TDX_E2E_RUN=" in text)


@pytest.mark.parametrize("by", ["clean", "next-run"])
def test_what_a_killed_run_leaves_is_undone(by: str, machine: NestedHost, tmp_path: Path) -> None:
    control = machine.agent.files.read_text(f"{cgroup.ROOT}/cgroup.subtree_control")
    assert list(left(machine)) == []
    with Run(machine, tmp_path / "killed", LEAVES) as run:
        run.await_inside()
        run.kill()
    assert "a CPU is offline" in list(left(machine))
    options = ["--tdx-clean"] if by == "clean" else []
    with Run(machine, tmp_path / "after", NEXT, *options) as run:
        output = run.end()
    assert f"/sys/devices/system/cpu/cpu{machine.shape.cpus - 1}/online: '1' again" in output
    assert ("all is as before" if by == "clean" else "1 passed") in output
    # The agent ends after the connection of its run.
    until(lambda: not list(left(machine)), "the machine to be as before", 20)
    assert machine.agent.files.read_text(f"{cgroup.ROOT}/cgroup.subtree_control") == control
    with pytest.raises(RemoteOSError):
        machine.agent.files.read("/run/tdx-e2e.lock")


def test_machine_without_the_cgroup_controller_runs_what_needs_none(
    tdx_host: TdxHost, tdx_cleanup: ExitStack, tmp_path: Path
) -> None:
    assert isinstance(tdx_host, NestedHost)
    machine = tdx_host.with_limits(tmp_path / "machine", "cgroup_disable=misc")
    tdx_cleanup.callback(machine.close)
    machine.start()
    tests = """
        from fixtures.kvm import build

        def test_counts(hkids):
            pass

        def test_charges(tdx_cgroup):
            pass

        def test_needs_none(owner, contract):
            with build.initialized(owner) as built:
                assert built.td
    """
    with Run(machine, tmp_path / "run", tests) as run:
        output = run.end()
    assert "1 passed, 2 skipped" in output
    assert "the controller misc is switched off; boot without cgroup_disable=misc" in output
