# SPDX-License-Identifier: GPL-2.0-or-later
"""Which kernel a command line names."""

from __future__ import annotations

import argparse

from images.errors import BuildError
from images.kernel import build as kernel_build


def kernel_request(arguments: argparse.Namespace) -> kernel_build.Request:
    """Which kernel the options name."""
    if arguments.kernel_tree is not None and arguments.kernel_version is not None:
        raise BuildError("--kernel-tree and --kernel-version exclude each other", hint="give one of them")
    return kernel_build.Request(arguments.flavour, arguments.kernel_tree, arguments.kernel_version)
