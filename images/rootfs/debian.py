# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's part of the root file system."""

from __future__ import annotations

from images.mmdebstrap import DebianTar

DEBIAN = DebianTar(
    kind="debian",
    what="Debian's part of the root file system",
    packages=(
        *("python3", "openssh-server", "kmod", "iproute2"),
        # The first QEMU with TDs that can be reset, and a firmware with TDX metadata, are newer than the
        # suite.
        *(
            f"{name}/trixie-backports"
            for name in ("qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios")
        ),
        "ovmf-inteltdx/forky",
    ),
    newer_suites=("trixie-backports", "forky"),
    title="rootfs",
)
