# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands that build, list and remove images."""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from images import shell
from images.cache import Artefact, Cache
from images.firmware import build as firmware_build
from images.guests import build as guests_build
from images.guests import selftest
from images.kernel import build as kernel_build
from images.kernel import flavours
from images.kernel.fit import misfits
from images.kernel.tree import UserTree
from images.payloads import build as payloads_build
from images.progress import Reporter, reporter
from images.qemu import build as qemu_build
from images.qemu import debian as buildroot
from images.rootfs import debian
from images.rootfs.build import ROOTFS
from images.series import mail


def run(arguments: argparse.Namespace) -> int:
    """Carry out one parsed command; returns the exit status."""
    cache = Cache(arguments.cache)
    match arguments.command:
        case "build":
            return build(cache, arguments, reporter())
        case "patches":
            return patches(cache, arguments.trees)
        case "series":
            return series(arguments)
        case "list":
            return list_artefacts(cache)
        case "clean":
            return clean(cache, everything=arguments.all)
        case "shell":
            return shell.run(cache, arguments, reporter())
    raise AssertionError(arguments.command)


def build(cache: Cache, arguments: argparse.Namespace, report: Reporter) -> int:
    """Build one kind of image, or all; prints one line for each."""
    # A tree is built once: only what is in it counts.
    wanted = arguments.flavour[:1] if arguments.kernel_tree else arguments.flavour
    # Wrong names fail before anything is built.
    kernels = [
        kernel_build.Request(flavours.get(name).name, arguments.kernel_tree, arguments.kernel_version)
        for name in wanted
    ]
    mirror, refresh, tree = arguments.mirror, arguments.refresh, arguments.qemu_tree
    builders: list[tuple[str, Callable[[], Artefact]]] = [
        ("payloads", lambda: payloads_build.ensure(cache, report)),
        ("firmware", lambda: firmware_build.ensure(cache, report)),
        ("qemu", lambda: qemu_build.ensure(cache, report, tree=tree, mirror=mirror, refresh=refresh)),
        ("rootfs", lambda: ROOTFS.ensure(cache, report, mirror=mirror)),
        ("guests", lambda: guests_build.ensure(cache, report, mirror=mirror, refresh=refresh)),
    ]
    for kernel in kernels:
        ensure_kernel = functools.partial(kernel_build.ensure, cache, kernel, report)
        builders.append(("kernel", functools.partial(ensure_kernel, mirror=mirror, refresh=refresh)))
    for what, ensure in builders:
        if arguments.what in (what, "all"):
            made = ensure()
            print(f"{made.kind} {made.label} {made.content_hash} {made.path}", flush=True)
    if report.timings:
        report.note(f"built in {sum(seconds for _, seconds in report.timings):.0f} s")
    return 0


def patches(cache: Cache, trees: Sequence[Path]) -> int:
    """Print the flavours whose patches apply to each kernel tree; returns 1 if the hooks do not."""
    status = 0
    for folder in trees:
        tree = UserTree(folder)
        with cache.new_log("patches") as log, cache.scratch("patches") as scratch:
            found = misfits(tree.read, scratch, log)
        print(f"Linux {tree.version()}, {folder}")
        for misfit in dict.fromkeys(found.values()):
            names = ", ".join(name for name in found if found[name] == misfit)
            print(f"  not {names}: {misfit}" if misfit else f"  applies: {names}")
        if found[flavours.DEFAULT]:
            status = 1
    return status


def series(arguments: argparse.Namespace) -> int:
    """Write a series of patches as mails; prints how to send them."""
    chosen = mail.get(arguments.name)
    target = arguments.output or Path(f"series-{chosen.name}")
    who = mail.sender(arguments.sender)
    written = mail.write(chosen, target, who=who, version=arguments.revision, tree=arguments.tree)
    print(f"{len(written)} mails in {target}, signed off by {who}")
    if (target / mail.RECIPIENTS).is_file():
        # git appends the patch to the command.
        print(f"git send-email --to-cmd='cat {target / mail.RECIPIENTS}; true' {target}/*.patch")
    else:
        print(f"git send-email --to={chosen.mailing_list} {target}/*.patch")
        print("(--tree DIR has the tree's get_maintainer.pl name the others who want them)")
    return 0


def current(cache: Cache) -> set[str]:
    """Names of the artefacts that the present sources make, in every flavour."""
    found = [debian.DEBIAN.find(cache), ROOTFS.find(cache), buildroot.DEBIAN.find(cache)]
    found += [payloads_build.find(cache), firmware_build.find(cache)]
    found += [qemu_build.find(cache), guests_build.find(cache)]
    found.append(selftest.find(cache))
    found += [kernel_build.find(cache, kernel_build.Request(name)) for name in flavours.load()]
    return {artefact.path.name for artefact in found if artefact is not None}


def list_artefacts(cache: Cache) -> int:
    """Print one line for each artefact: kind, label, version, size, age, content hash, ``current``."""
    up_to_date = current(cache)
    rows = [("KIND", "LABEL", "VERSION", "SIZE", "AGE", "CONTENT HASH", "")]
    for artefact in cache.artefacts():
        manifest = artefact.manifest()
        rows.append(
            (
                artefact.kind,
                artefact.label,
                str(manifest.get("version", "-")),
                human_size(artefact.size()),
                human_age(time.time() - artefact.path.stat().st_mtime),
                artefact.content_hash,
                "current" if artefact.path.name in up_to_date else "",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"in {cache.root}: {human_size(cache.usage())} with trees and objects for the next build")
    return 0


def clean(cache: Cache, *, everything: bool) -> int:
    """Remove artefacts, and with ``everything`` also the kept trees, package lists and logs."""
    before = cache.usage()
    if everything:
        cache.remove_all()
    else:
        keep = current(cache)
        for artefact in cache.artefacts():
            if artefact.path.name not in keep:
                print(f"removing {artefact.path.name}")
                cache.discard(artefact)
        cache.remove_stale_scratch()
    print(f"{human_size(max(0, before - cache.usage()))} freed in {cache.root}")
    return 0


def human_size(size: int) -> str:
    """``1.5 GB``, ``12 MB``, ``3 kB``."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}" if size < 10 * factor else f"{size // factor} {unit}"
    return f"{-(-size // 1000)} kB"


def human_age(seconds: float) -> str:
    """``3 d``, ``5 h``, ``12 min``, ``now``."""
    for unit, factor in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= factor:
            return f"{int(seconds // factor)} {unit}"
    return "now"
