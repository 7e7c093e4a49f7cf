# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m images``: build, list and remove the images of a nested host, and boot one for a person."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from images.errors import BuildError
from images.kernel import flavours
from images.machine import BINARY, Shape

_INTERRUPTED = 130


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m images", description=__doc__)
    top.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help="folder of the images (default: $TDX_E2E_CACHE, or tdx-e2e in the user's cache folder)",
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    setup = commands.add_parser("setup-host", help="install the Debian packages that are missing")
    setup.add_argument("--check", action="store_true", help="only print what is missing")

    build = commands.add_parser("build", help="build the images that are not in the cache")
    build.add_argument(
        "what",
        nargs="?",
        default="all",
        choices=("all", "kernel", "qemu", "rootfs", "guests", "payloads", "firmware"),
        metavar="WHAT",
        help="kernel, qemu, rootfs, guests, payloads, firmware or all (default)",
    )
    _add_source_options(build)
    build.add_argument(
        "--refresh", action="store_true", help="ask the mirror for newer kernels and a newer QEMU"
    )

    patches = commands.add_parser("patches", help="print which flavours' patches apply to kernel trees")
    patches.add_argument("trees", nargs="+", type=Path, metavar="DIR", help="a kernel tree")

    series = commands.add_parser("series", help="write a series of our patches for git send-email")
    series.add_argument(
        "name", metavar="NAME", help="a series of images/series/series.toml: fixed, move, qemu"
    )
    series.add_argument(
        "--sender", metavar="WHO", help='who signs off: "You <you@example.org>" (default: as git knows you)'
    )
    series.add_argument("--output", type=Path, metavar="DIR", help="the folder (default: series-NAME)")
    series.add_argument("--revision", type=int, default=1, metavar="N", help="of the series: [PATCH vN …]")
    series.add_argument(
        "--tree", type=Path, metavar="DIR", help="a tree whose get_maintainer.pl names the recipients"
    )

    commands.add_parser("list", help="list the cache: size, age, content hash")

    clean = commands.add_parser("clean", help="remove images that are not of the present sources")
    clean.add_argument("--all", action="store_true", help="remove everything, also current images")

    shell = commands.add_parser("shell", help="boot the nested host and get its console")
    _add_source_options(shell)
    usual = Shape()
    for name, default, unit, meaning in (
        ("cpus", usual.cpus, "N", "logical CPUs"),
        ("sockets", usual.sockets, "N", "physical packages"),
        ("memory", usual.memory_mib, "MIB", "MiB of memory"),
        ("keyids", usual.keyids, "N", "TDX KeyIDs with the global one"),
        ("max-vcpus", usual.max_vcpus, "N", "vCPUs that the TDX module allows a TD"),
    ):
        help_ = f"{meaning} (default: {default})"
        shell.add_argument(f"--{name}", type=int, default=default, metavar=unit, help=help_)
    shell.add_argument("--qemu", default=BINARY, metavar="BINARY", help="QEMU to run")
    return top


def _add_source_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--flavour",
        action="append",
        metavar="F",
        help="kernel flavour, may be repeated (default: $TDX_E2E_FLAVOUR, as for the tests, or "
        f"{' and '.join(flavours.OF_A_RUN)})",
    )
    source = command.add_mutually_exclusive_group()
    source.add_argument(
        "--kernel-tree", type=Path, metavar="DIR", help="build this tree (it is not modified), not Debian's"
    )
    source.add_argument(
        "--kernel-version",
        metavar="V",
        help="of Debian's kernel source: 7.3, 7.3.4 or a whole Debian version (default: "
        "$TDX_E2E_KERNEL_VERSION, as for the tests, or 7.3)",
    )
    command.add_argument(
        "--qemu-tree",
        type=Path,
        metavar="DIR",
        help="build this QEMU for TDs (it is not modified), not Debian's with our patches",
    )
    command.add_argument(
        "--mirror",
        metavar="URI",
        help="Debian archive (default: $TDX_E2E_MIRROR, or the one of the host's apt)",
    )


def choose_as_a_run(arguments: argparse.Namespace) -> None:
    """Complete the choice of a kernel as a run of the tests does, by its variables."""
    if arguments.kernel_tree is None:
        arguments.kernel_version = arguments.kernel_version or os.environ.get("TDX_E2E_KERNEL_VERSION")
    arguments.flavour = (
        arguments.flavour
        or shlex.split(os.environ.get("TDX_E2E_FLAVOUR", ""))
        or list(flavours.of_a_run(arguments.kernel_version))
    )


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = parser().parse_args(argv)
    if hasattr(arguments, "flavour"):
        choose_as_a_run(arguments)
    try:
        if arguments.command == "setup-host":
            from images.hostsetup import set_up

            return set_up(check_only=arguments.check)
        from images import cli

        return cli.run(arguments)
    except BuildError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  hint: {error.hint}", file=sys.stderr)
        if error.log is not None:
            print(f"  log:  {error.log}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "images":
            raise
        print(f"error: the Python package {error.name} is not installed", file=sys.stderr)
        print("  hint: run this in tox's environment, e.g. `tox -e nested`", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the cache is as it was", file=sys.stderr)
        return _INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
