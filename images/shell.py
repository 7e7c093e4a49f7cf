# SPDX-License-Identifier: GPL-2.0-or-later
"""The nested host's console, for a person."""

from __future__ import annotations

import argparse
import shutil
import subprocess

from images import api
from images.cache import Cache
from images.errors import BuildError
from images.machine import Machine, Shape, terminal_argv
from images.progress import Reporter


def run(cache: Cache, arguments: argparse.Namespace, report: Reporter) -> int:
    """Boot the nested host on this terminal; returns QEMU's exit status."""
    if shutil.which(arguments.qemu) is None:
        raise BuildError(
            f"{arguments.qemu} is not here", hint="run `python3 -m images setup-host`, or give --qemu"
        )
    if arguments.cpus < 1 or arguments.sockets < 1 or arguments.cpus % arguments.sockets:
        raise BuildError(
            f"{arguments.cpus} CPUs cannot be spread over {arguments.sockets} packages",
            hint="--cpus is a multiple of --sockets",
        )
    images = api.boot_images(
        arguments.flavour[0],
        arguments.kernel_tree,
        arguments.qemu_tree,
        version=arguments.kernel_version,
        mirror=arguments.mirror,
        cache=cache,
        report=report,
    )
    shape = Shape(arguments.cpus, arguments.sockets, arguments.memory, arguments.keyids, arguments.max_vcpus)
    argv = terminal_argv(Machine(images, shape, binary=arguments.qemu))
    report.note("`exit` powers the host off; Ctrl-A x ends QEMU")
    return subprocess.run(["setpriv", "--pdeathsig", "TERM", "--", *argv], check=False).returncode
