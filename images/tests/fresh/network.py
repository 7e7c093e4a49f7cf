# SPDX-License-Identifier: GPL-2.0-or-later
"""What a new root has to know of this machine to reach the package registries that it reaches."""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

_APT = re.compile(r"Acquire::(https?|ftp|Retries|ForceIPv[46]|Check-[A-Za-z-]+)\b.* \"[^\"]+\";$")
_PIP_FILES = ("/etc/pip.conf", "/etc/xdg/pip/pip.conf", "~/.pip/pip.conf", "~/.config/pip/pip.conf")
_OF_PIP = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "default-timeout", "cert")
_VARIABLE = re.compile(r"(?i)(https?|ftp|all|no)_proxy")


def apt_settings(dump: Iterable[str]) -> str:
    """Return the lines of ``apt-config dump`` about the network, for a file of apt.conf.d."""
    return "".join(f"{line}\n" for line in dump if _APT.match(line))


def pip_files() -> list[Path]:
    """Return pip's configuration files on this machine, the most general first."""
    return [path for path in (Path(name).expanduser() for name in _PIP_FILES) if path.is_file()]


def variables(environment: Mapping[str, str], pip: Iterable[Path]) -> dict[str, str]:
    """Return the environment for commands in the root: proxies, and pip's settings without local folders.

    :param pip: its configuration files; a variable of the environment overrides them.
    """
    found = {name: value for name, value in environment.items() if _VARIABLE.fullmatch(name)}
    parser = configparser.RawConfigParser()
    parser.read(pip)
    for option in _OF_PIP:
        name = "PIP_" + option.upper().replace("-", "_")
        value = environment.get(name) or parser.get("global", option, fallback=None) or ""
        kept = value.split() if option == "cert" else [w for w in value.split() if not _is_local(w)]
        if kept:
            found[name] = " ".join(kept)
    return found


def _is_local(word: str) -> bool:
    return word.startswith(("/", "file:", "~", "."))
