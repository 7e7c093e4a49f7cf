# SPDX-License-Identifier: GPL-2.0-or-later
"""How far this machine lets a command be kept apart from it: mounts and processes of its own, or neither.

Root of a container mostly has no CAP_SYS_ADMIN, and may make no namespaces; below a root folder that is no
mount point, namespaces can be had, but no mounts that are private to them.
"""

from __future__ import annotations

import functools
import os
import subprocess
from dataclasses import dataclass

from images.commands import environment
from images.errors import BuildError

_NAMESPACES = ("unshare", "--mount", "--pid", "--fork", "--kill-child=KILL")
_SECONDS = 30.0


@dataclass(frozen=True)
class Isolation:
    """A way to run a command.

    :param front: words before the command.
    :param mounts: the command may mount: that ends with it, also after a SIGKILL.
    :param death: the signal for the command if we are killed: KILL where that ends all its processes, else
        TERM, on which it can end them itself.
    """

    front: tuple[str, ...]
    mounts: bool
    death: str


OF_ROOT = Isolation((*_NAMESPACES, "--mount-proc", "--"), mounts=True, death="KILL")
OF_USER = Isolation((*_NAMESPACES, "--user", "--map-root-user", "--"), mounts=True, death="KILL")
NONE = Isolation((), mounts=False, death="TERM")


def choose(*, root: bool, possible: bool) -> Isolation:
    """Return the way for this user.

    :param possible: namespaces can be made, with mounts in them.
    :raises BuildError: there is none.
    """
    if possible:
        return OF_ROOT if root else OF_USER
    if root:
        return NONE
    raise BuildError(
        "this machine does not let users make namespaces, which builds without root need",
        hint="run as root, which needs none; or allow them (sysctl user.max_user_namespaces, "
        "kernel.apparmor_restrict_unprivileged_userns=0; in a container, its seccomp profile)",
    )


@functools.cache
def here() -> Isolation:
    """Return the way for this process.

    :raises BuildError: there is none.
    """
    root = os.geteuid() == 0
    wanted = OF_ROOT if root else OF_USER
    return choose(root=root, possible=_works(wanted))


def _works(isolation: Isolation) -> bool:
    done = subprocess.run(
        [*isolation.front, "true"],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_SECONDS,
        check=False,
    )
    return done.returncode == 0
