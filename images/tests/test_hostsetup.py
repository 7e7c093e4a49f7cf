# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from images import chroot, hostsetup, mmdebstrap
from images.errors import BuildError
from images.firmware import build as firmware
from images.hostsetup import install_command, set_up
from images.kernel import build as kernel
from images.needs import NEEDS, Need
from images.payloads import build as payloads
from images.qemu import build as qemu
from images.rootfs import build as rootfs

_ROOT = Path(__file__).parents[2]
_LACKING = [Need("tox", "running", ("no-such-tool",)), Need("flex", "the kernel", ("no-such-flex",))]


def test_it_runs_on_a_bare_python() -> None:
    done = subprocess.run(
        [sys.executable, "-S", "-E", "-m", "images", "setup-host", "--check"],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stderr
    assert "setup-host: " in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("shows", "met"),
    [
        (("sh",), True),
        (("sh", "no-such-tool"), False),
        (("no-such-tool|sh",), True),
        (("/bin/sh",), True),
        (("/nonexistent",), False),
        (("python:venv",), True),
        (("python:no_such_module",), False),
    ],
)
def test_what_shows_that_a_need_is_met(shows: tuple[str, ...], met: bool) -> None:
    assert Need("p", "w", shows).is_met() is met


def _tools(module: ModuleType) -> set[str]:
    return {tool for name, value in vars(module).items() if name.endswith("TOOLS") for tool in value}


@pytest.mark.parametrize(
    "module", [chroot, firmware, kernel, mmdebstrap, payloads, qemu, rootfs], ids=lambda m: m.__name__
)
def test_set_up_installs_whatever_a_build_requires(module: ModuleType) -> None:
    """On Debian 13 it once took sqv for gpgv, and the kernel's builder then wanted gpgv."""
    tools = _tools(module)
    assert tools
    assert tools <= {shown for need in NEEDS for shown in need.shows}


def test_packages_are_installed_through_sudo_unless_root() -> None:
    update, install = install_command(["tox", "flex"], as_root=False)
    assert update[0] == install[0] == "sudo"
    assert update[-1] == "update"
    assert install[-4:] == ["--yes", "--no-install-recommends", "tox", "flex"]
    assert "sudo" not in install_command(["tox"], as_root=True)[1]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would have been run, on a Debian that lacks two packages."""
    ran: list[list[str]] = []
    status = 0

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        if command[-1] == "flex":
            monkeypatch.setattr(hostsetup, "missing", list)
        return subprocess.CompletedProcess(command, status)

    monkeypatch.setattr("images.hostsetup.subprocess.run", run)
    monkeypatch.setattr(hostsetup, "missing", lambda: list(_LACKING))
    monkeypatch.setattr(hostsetup, "distribution", lambda: "debian")
    monkeypatch.setattr("images.hostsetup.os.geteuid", lambda: 0)
    return ran


def test_what_is_missing_is_installed(commands: list[list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert set_up() == 0
    assert [command[-1] for command in commands] == ["update", "flex"]
    said = capsys.readouterr().out
    assert "missing tox (running)" in said
    assert said.endswith("setup-host: done\n")


def test_nothing_is_run_when_only_checking(
    commands: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert set_up(check_only=True) == 1
    assert commands == []
    assert "apt-get install tox flex" in capsys.readouterr().out


def test_another_distribution_is_told_what_to_install(
    commands: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hostsetup, "distribution", lambda: "fedora")
    assert set_up() == 1
    assert commands == []
    assert "  tox flex\n" in capsys.readouterr().out


def test_nothing_is_done_when_nothing_is_missing(
    commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hostsetup, "missing", list)
    assert set_up() == 0
    assert commands == []


def test_without_root_and_sudo_there_is_a_hint(
    commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("images.hostsetup.os.geteuid", lambda: 1000)
    monkeypatch.setattr("images.hostsetup.shutil.which", lambda *_, **__: None)
    with pytest.raises(BuildError, match="needs root") as caught:
        set_up()
    assert caught.value.hint == "as root: apt-get install tox flex"
    assert commands == []


def test_a_failure_of_apt_is_an_error(commands: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "images.hostsetup.subprocess.run", lambda command, **_: subprocess.CompletedProcess(command, 100)
    )
    with pytest.raises(BuildError, match="update failed with exit status 100"):
        set_up()


def test_a_package_that_does_not_help_is_an_error(
    commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "images.hostsetup.subprocess.run", lambda command, **_: subprocess.CompletedProcess(command, 0)
    )
    with pytest.raises(BuildError, match="tox, flex installed, and still not found"):
        set_up()


def test_a_machine_that_cannot_be_used_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("images.hostsetup.platform.machine", lambda: "aarch64")
    with pytest.raises(BuildError, match="aarch64"):
        set_up()
