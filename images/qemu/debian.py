# SPDX-License-Identifier: GPL-2.0-or-later
"""The Debian in which QEMU is built: the nested host's, whatever distribution this machine has."""

from __future__ import annotations

from images.mmdebstrap import DebianTar

DEBIAN = DebianTar(
    kind="buildroot",
    what="QEMU's build root",
    packages=(
        *("gcc", "libc6-dev", "make", "ninja-build", "meson", "pkgconf", "ccache", "device-tree-compiler"),
        *(
            f"python3-{name}"
            for name in ("venv", "pip", "pycotap", "distlib", "setuptools", "wheel", "qemu-qmp")
        ),
        *(f"lib{name}-dev" for name in ("glib2.0", "slirp", "aio", "fdt")),
    ),
    # Has python3-qemu-qmp.
    newer_suites=("trixie-backports",),
    title="qemu",
)
