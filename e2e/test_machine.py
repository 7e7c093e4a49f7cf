# SPDX-License-Identifier: GPL-2.0-or-later
"""A run on a machine that was there before it, and that others use: it disturbs nobody and leaves nothing.

The machine is a nested host reached over SSH; runs of pytest on it are started here, and meanwhile a process
of the host itself is the somebody else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from e2e.runs import Run, on
from fixtures import cgroup
from fixtures.agent.errors import RemoteOSError
from fixtures.deadline import until
from fixtures.host.base import TdxHost
from fixtures.host.cpus import ONLINE
from fixtures.host.hkids import Hkids
from fixtures.host.nested import NestedHost
from fixtures.kvm import build

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400), pytest.mark.tdx_needs("snapshot", "misc-cgroup")]


@pytest.fixture
def machine(tdx_host: TdxHost, tdx_cleanup: ExitStack, tmp_path: Path) -> NestedHost:
    """A host beside the test's, which runs use as a machine over SSH."""
    assert isinstance(tdx_host, NestedHost)
    host = tdx_host.twin(tmp_path / "machine")
    tdx_cleanup.callback(host.close)
    host.start()
    return host


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
        Run(tmp_path / "run", SHARED, on(machine)) as run,
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
    with Run(tmp_path / "killed", LEAVES, on(machine)) as run:
        run.await_inside()
        run.kill()
    assert "a CPU is offline" in list(left(machine))
    options = ["--tdx-clean"] if by == "clean" else []
    with Run(tmp_path / "after", NEXT, on(machine), *options) as run:
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
    with Run(tmp_path / "run", tests, on(machine)) as run:
        output = run.end()
    assert "1 passed, 2 skipped" in output
    assert "the controller misc is switched off; boot without cgroup_disable=misc" in output
