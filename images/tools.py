# SPDX-License-Identifier: GPL-2.0-or-later
"""Versions of the tools that make an image; they are among its inputs."""

from __future__ import annotations

import functools
import subprocess

from images.commands import environment
from images.errors import BuildError


@functools.cache
def version(tool: str) -> str:
    """The first line of ``tool --version`` (mke2fs: ``-V``).

    :raises BuildError: the tool is not there.
    """
    option = "-V" if tool == "mke2fs" else "--version"
    try:
        done = subprocess.run(
            [tool, option],
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except FileNotFoundError as error:
        raise BuildError(
            f"{tool} is not on this machine", hint="run `python3 -m images setup-host`"
        ) from error
    return next(iter((done.stdout or done.stderr).splitlines()), "")


def versions(*tools: str) -> dict[str, str]:
    """Tool → its version."""
    return {tool: version(tool) for tool in tools}
