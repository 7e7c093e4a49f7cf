# SPDX-License-Identifier: GPL-2.0-or-later
"""The nested host's console, for a person."""

from __future__ import annotations

import argparse
import shutil
import subprocess

from images.cache import Artefact, Cache
from images.errors import BuildError
from images.kernel import build as kernel_build
from images.kernel.request import kernel_request
from images.progress import Reporter
from images.rootfs import build as rootfs_build

# An Intel CPU without known errata, with what the kernel has to find in CPUID before softseam supplies it.
_CPU = (
    "max,vendor=GenuineIntel,family=6,model=173,stepping=1,-la57,phys-bits=48,"
    "x-force-features=on,+vmx,+movdir64b,+ss,+arch-capabilities"
)


def command_line(
    qemu: str,
    kernel: Artefact,
    rootfs: Artefact,
    *,
    cpus: int,
    sockets: int,
    memory: int,
    keyids: int,
    max_vcpus: int,
) -> list[str]:
    """A QEMU command line with the console on the terminal; ``exit`` in the shell powers the guest off."""
    append = (
        "console=ttyS0 panic=-1 quiet root=/dev/vda ro init=/sbin/init "
        "tdx_e2e.modules=/dev/vdb tdx_e2e.shell "
        f"softseam.keyids={keyids} softseam.max_vcpus={max_vcpus}"
    )
    return [
        qemu,
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-machine", "q35", "-accel", "tcg,thread=multi"),
        *("-cpu", _CPU),
        *("-smp", f"{cpus},sockets={sockets}", "-m", f"{memory}M"),
        *("-kernel", str(kernel.path / kernel_build.BZIMAGE), "-append", append),
        *(
            "-blockdev",
            f"driver=file,filename={rootfs.path / rootfs_build.IMAGE},node-name=root,read-only=on",
        ),
        *("-device", "virtio-blk-pci,drive=root"),
        *(
            "-blockdev",
            f"driver=file,filename={kernel.path / kernel_build.MODULES_IMAGE},node-name=modules,read-only=on",
        ),
        *("-device", "virtio-blk-pci,drive=modules"),
        *("-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="),
        *("-serial", "mon:stdio"),
    ]


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
    kernel = kernel_build.ensure(cache, kernel_request(arguments), report, mirror=arguments.mirror)
    rootfs = rootfs_build.ensure(cache, report, qemu_tree=arguments.qemu_tree, mirror=arguments.mirror)
    words = command_line(
        arguments.qemu,
        kernel,
        rootfs,
        cpus=arguments.cpus,
        sockets=arguments.sockets,
        memory=arguments.memory,
        keyids=arguments.keyids,
        max_vcpus=arguments.max_vcpus,
    )
    report.note("`exit` powers the host off; Ctrl-A x ends QEMU")
    return subprocess.run(["setpriv", "--pdeathsig", "TERM", "--", *words], check=False).returncode
