# SPDX-License-Identifier: GPL-2.0-or-later
"""The proof on a bare root, as far as no root has to be made for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from images.errors import BuildError
from images.tests.fresh import __main__ as fresh
from images.tests.fresh import network
from images.tests.fresh.root import Root

_README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_commands_are_those_of_the_readme() -> None:
    setup = "python3 -m images setup-host"
    assert fresh.commands(_README, []) == [setup, "tox -e nested", setup, "tox"]
    assert fresh.commands(_README, ["-k", "hkid"])[1] == "tox -e nested -- -k hkid"


def test_a_root_gets_the_network_of_apt_and_nothing_else() -> None:
    dump = [
        'Acquire::http::Proxy "http://p.invalid:3128";',
        'Acquire::http "";',
        'Acquire::Check-Date "false";',
        'Acquire::IndexTargets::deb::Packages::MetaKey "x";',
        'DPkg::Post-Invoke:: "rm -f /x";',
        'APT::Install-Recommends "0";',
    ]
    assert network.apt_settings(dump) == f"{dump[0]}\n{dump[2]}\n"


def test_a_root_gets_the_indexes_of_pip_without_local_folders(tmp_path: Path) -> None:
    config = tmp_path / "pip.conf"
    config.write_text(
        "[global]\nextra-index-url = file:///srv/simple https://i.invalid/simple\ncert = /etc/c.crt\n"
        "find-links = /srv\ntimeout = 9\n"
    )
    given = {"PIP_TIMEOUT": "180", "https_proxy": "p", "HOME": "/h", "PIP_FIND_LINKS": "/srv"}
    assert network.variables(given, [config]) == {
        "https_proxy": "p",
        "PIP_EXTRA_INDEX_URL": "https://i.invalid/simple",
        "PIP_CERT": "/etc/c.crt",
        "PIP_TIMEOUT": "180",
    }
    assert network.variables({}, []) == {}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, Path | None]]:
    """Commands that a root ran, and the cache that it showed; ``false`` fails."""
    ran: list[tuple[str, Path | None]] = []

    def shell(root: Root, command: str) -> None:
        ran.append((command, root.cache))
        root.on_line(f"output of {command}")
        if command == "false":
            raise BuildError("false failed", hint="try true")

    nothing: Callable[..., None] = lambda *_: None  # noqa: E731
    for name in ("install", "connect", "clone"):
        monkeypatch.setattr(Root, name, nothing)
    monkeypatch.setattr(Root, "shell", shell)
    monkeypatch.setattr(fresh, "_LOGS", tmp_path)
    monkeypatch.setenv("TDX_E2E_CACHE", str(tmp_path / "cache"))
    return ran


def test_the_first_failure_ends_it_and_is_reported(
    made: list[tuple[str, Path | None]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = fresh.prove("trixie", ["true", "false", "never"], tmp_path, "> ")
    assert made == [("true", tmp_path), ("false", tmp_path)]
    assert "> output of true\n" in capsys.readouterr().out
    lines = list(outcome.lines())
    assert lines[0] == f"fresh trixie: FAILED: false failed; hint: try true; log: {tmp_path}/trixie.log"
    assert [line.split("s  ")[1] for line in lines[1:]] == [
        *("a bare root", "its network", "a clone"),
        *("true", "false"),
    ]


@pytest.mark.usefixtures("made")
def test_the_exit_status_is_that_of_the_worst_suite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fresh, "require_tools", lambda *_: None)
    for steps, status in ((("true",), 0), (("false",), 1)):
        monkeypatch.setattr(fresh, "_CHEAP", steps)
        assert fresh.main(["--quick", "bookworm", "trixie"]) == status
    out = capsys.readouterr().out
    assert "bookworm: output of true\n" in out
    assert "fresh trixie: passed" in out
    assert (tmp_path / "trixie.log").is_file()
