# SPDX-License-Identifier: GPL-2.0-or-later
"""A failed test's host, for a person who debugs: gdb, the kernel's memory in a file, SSH after the run."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from e2e.runs import Run
from fixtures.host.base import TdxHost

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.tdx_needs("snapshot"),
    pytest.mark.skipif(shutil.which("gdb") is None, reason="needs gdb on this machine; apt install gdb"),
]

FAILS = """
    from fixtures.kvm import build

    def test_fails(owner):
        with build.initialized(owner):
            assert False, "on purpose"

    def test_after(tdx_host):
        assert tdx_host.agent.files.read_text("/proc/uptime")
"""
PANICS = """
    def test_panics(tdx_host):
        tdx_host.agent.files.write("/proc/sysrq-trigger", "c")
"""


def gdb(command: str, *expressions: str) -> str:
    """Run gdb by a line that a run printed; returns its output."""
    more = [word for expression in expressions for word in ("-ex", expression)]
    done = subprocess.run(
        [*shlex.split(command), "-batch", "-nx", *more],
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    return done.stdout + done.stderr


def test_gdb_sees_the_kernel_at_the_failure(tdx_host: TdxHost, tmp_path: Path) -> None:
    with Run(
        tmp_path / "run",
        FAILS,
        "--tdx-testbed=nested",
        f"--tdx-flavour={tdx_host.facts.flavour}",
        "--tdx-gdb",
    ) as run:
        command = run.line(r"its CPUs are stopped: (gdb .*)")[1]
        run.line("press Enter to go on")
        said = gdb(command, "x/s (char *)&linux_banner", "p &init_task", "info threads")
        assert f"Linux version {tdx_host.facts.kernel}" in said
        assert "<init_task>" in said
        assert "CPU#1" in said
        run.press_enter()
        assert "1 failed, 1 passed" in run.end()


@pytest.mark.parametrize("tests", [FAILS, PANICS], ids=["fails", "panics"])
def test_memory_of_the_kernel_is_opened_by_gdb(tests: str, tdx_host: TdxHost, tmp_path: Path) -> None:
    with Run(
        tmp_path / "run",
        tests,
        "--tdx-testbed=nested",
        f"--tdx-flavour={tdx_host.facts.flavour}",
        "--tdx-core",
    ) as run:
        command = run.line(r"its memory: (gdb .*?)   \(or: crash ")[1]
        said = gdb(command, "x/s (char *)&linux_banner", "p &init_task", "bt")
        assert f"Linux version {tdx_host.facts.kernel}" in said
        assert "<init_task>" in said
        assert "#0 " in said
        run.end()


def test_kept_host_lets_its_user_in_after_the_run(tdx_host: TdxHost, tmp_path: Path) -> None:
    with Run(
        tmp_path / "run",
        FAILS,
        "--tdx-testbed=nested",
        f"--tdx-flavour={tdx_host.facts.flavour}",
        "--tdx-keep-host",
    ) as run:
        command = run.line(r"SSH: (ssh .*)")[1]
        run.line("press Enter to end it")
        assert "1 failed" in run.output
        done = subprocess.run(
            [*shlex.split(command), "-o", "BatchMode=yes", "uname -r; ls /sys/kernel/debug/softseam/tds"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.stdout.splitlines() == [tdx_host.facts.kernel, "/sys/kernel/debug/softseam/tds"], done
        run.press_enter()
        assert "test_after" not in run.end()
