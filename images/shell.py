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
from images.qemu import build as qemu_build


def run(cache: Cache, arguments: argparse.Namespace, report: Reporter) -> int:
    """Boot the nested host on this terminal; returns QEMU's exit status.

    It gets the QEMU that moves TDs if that is in the cache or a tree of it is named.
    """
    if shutil.which(arguments.qemu) is None:
        raise BuildError(
            f"{arguments.qemu} is not here", hint="run `python3 -m images setup-host`, or give --qemu"
        )
    if arguments.cpus < 1 or arguments.sockets < 1 or arguments.cpus % arguments.sockets:
        raise BuildError(
            f"{arguments.cpus} CPUs cannot be spread over {arguments.sockets} packages",
            hint="--cpus is a multiple of --sockets",
        )
    mirror, tree = arguments.mirror, arguments.qemu_tree
    kernel = api.ensure_kernel(
        arguments.flavour[0],
        arguments.kernel_tree,
        version=arguments.kernel_version,
        mirror=mirror,
        cache=cache,
        report=report,
    )
    rootfs = api.ensure_rootfs(mirror=mirror, cache=cache, report=report)
    qemu = None
    if tree is not None or qemu_build.find(cache) is not None:
        qemu = api.ensure_qemu(tree, mirror=mirror, cache=cache, report=report)
    images = api.boot_images(kernel, rootfs, qemu)
    shape = Shape(arguments.cpus, arguments.sockets, arguments.memory, arguments.keyids, arguments.max_vcpus)
    argv = terminal_argv(Machine(images, shape, binary=arguments.qemu))
    report.note("`exit` powers the host off; Ctrl-A x ends QEMU")
    return subprocess.run(["setpriv", "--pdeathsig", "TERM", "--", *argv], check=False).returncode
