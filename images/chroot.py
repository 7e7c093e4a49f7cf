# SPDX-License-Identifier: GPL-2.0-or-later
"""Run commands in a folder that holds a Debian, with or without root.

All files of the folder belong to the user who runs this, so no set-up is needed, and the user can remove
whatever a command leaves behind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from images import commands, isolation
from images.commands import Log

TOOLS = ("setpriv", "unshare", "tar", "mount", "chroot")

_MOUNT = """
set -e
root=$1
shift
# Where parts of /proc are covered, as in a container, the kernel allows no new mount of it.
mount -t proc proc "$root/proc" 2>/dev/null || mount --rbind /proc "$root/proc"
mount --rbind /dev "$root/dev"
exec chroot "$root" "$@"
"""
_MAKE_NODES = """
set -e
root=$1
shift
for node in null:3 zero:5 full:7 random:8 urandom:9; do
    path=$root/dev/${node%:*}
    [ -c "$path" ] || mknod -m 666 "$path" c 1 "${node#*:}"
    : >"$path"
done
exec chroot "$root" "$@"
"""
_HINT = "without CAP_SYS_ADMIN, this needs CAP_SYS_CHROOT and CAP_MKNOD, and a folder where devices work"
_ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "HOME": "/root",
    "PYTHONDONTWRITEBYTECODE": "1",
}


def unpack(tar: Path, root: Path, log: Log) -> None:
    """Unpack mmdebstrap's tar below ``root``, without owners, device nodes and set-id bits."""
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
    :param env: added to a small environment, without any variable of ours.
    """
    way = isolation.here()
    variables = [f"{name}={value}" for name, value in (_ENVIRONMENT | dict(env or {})).items()]
    return commands.run(
        [
            *way.front,
            *("sh", "-c", _MOUNT if way.mounts else _MAKE_NODES, "enter", root),
            *("env", "-i", f"--chdir={cwd}", *variables),
            *argv,
        ],
        log=log,
        what=what,
        hint="" if way.mounts else _HINT,
        on_line=on_line,
        death=way.death,
    )
