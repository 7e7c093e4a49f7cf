# SPDX-License-Identifier: GPL-2.0-or-later
"""Running commands in a folder that holds a Debian, with or without root.

The folder's files all belong to the one user that we are, so nothing has to be set up for that user, and
whatever a command leaves behind can be removed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from images import commands
from images.commands import Log

TOOLS = {
    **dict.fromkeys(("setpriv", "unshare"), "util-linux"),
    **{"tar": "tar", "mount": "mount", "chroot": "coreutils"},
}

NAMESPACES = ("unshare", "--mount", "--pid", "--fork", "--kill-child=KILL")
"""Namespaces of its own: what a command mounts and starts in them is gone with it, also after a SIGKILL."""

_ENTER = """
set -e
root=$1
shift
# Where /proc is partly covered, as in a container, only the one that is there can be had.
mount -t proc proc "$root/proc" 2>/dev/null || mount --rbind /proc "$root/proc"
mount --rbind /dev "$root/dev"
exec chroot "$root" "$@"
"""
_ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "HOME": "/root",
    "PYTHONDONTWRITEBYTECODE": "1",
}


def unpack(tar: Path, root: Path, log: Log) -> None:
    """Unpack what mmdebstrap made below ``root``, without owners, device nodes and set-id bits."""
    root.mkdir(parents=True, exist_ok=True)
    options = ("--no-same-owner", "--no-same-permissions", "--exclude=./dev/*")
    run_it: list[str | Path] = ["tar", "-x", *options, "-f", tar, "-C", root]
    commands.run(run_it, log=log, what=f"unpacking {tar.name} failed")


def run(
    root: Path,
    argv: Sequence[str],
    *,
    log: Log,
    what: str,
    cwd: str = "/",
    env: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] | None = None,
) -> list[str]:
    """Run a command with ``root`` as its root folder; see :func:`images.commands.run`.

    :param cwd: its working directory, inside.
    :param env: added to a small environment that has nothing of ours.
    """
    as_root = os.geteuid() == 0
    variables = [f"{name}={value}" for name, value in (_ENVIRONMENT | dict(env or {})).items()]
    return commands.run(
        [
            *NAMESPACES,
            *(() if as_root else ("--user", "--map-root-user")),
            *("--", "sh", "-c", _ENTER, "enter", root),
            *("env", "-i", f"--chdir={cwd}", *variables),
            *argv,
        ],
        log=log,
        what=what,
        hint="" if as_root else "without root, user namespaces have to be allowed here; or use sudo",
        on_line=on_line,
        death="KILL",
    )
