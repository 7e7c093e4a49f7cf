# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands that build, list and remove images."""

from __future__ import annotations

import argparse
import time

from images import shell
from images.cache import Artefact, Cache
from images.kernel import build as kernel_build
from images.kernel import flavours
from images.payloads import build as payloads_build
from images.progress import Reporter, reporter
from images.qemu import build as qemu_build
from images.qemu import buildroot
from images.rootfs import base as rootfs_base
from images.rootfs import build as rootfs_build


def run(arguments: argparse.Namespace) -> int:
    """Carry out one parsed command; returns the exit status."""
    cache = Cache(arguments.cache)
    match arguments.command:
        case "build":
            return build(cache, arguments, reporter())
        case "list":
            return list_artefacts(cache)
        case "clean":
            return clean(cache, everything=arguments.all)
        case "shell":
            return shell.run(cache, arguments, reporter())
    raise AssertionError(arguments.command)


def build(cache: Cache, arguments: argparse.Namespace, report: Reporter) -> int:
    """Build what was asked for; one line a finished image, on standard output."""
    request = kernel_build.Request(arguments.flavour, arguments.kernel_tree, arguments.kernel_version)
    flavours.get(request.flavour)
    everything = arguments.what == "all"
    mirror, refresh, qemu_tree = arguments.mirror, arguments.refresh, arguments.qemu_tree
    if everything or arguments.what == "payloads":
        _print_done(payloads_build.ensure(cache, report))
    if everything or arguments.what == "qemu":
        _print_done(qemu_build.ensure(cache, report, tree=qemu_tree, mirror=mirror, refresh=refresh))
    if everything or arguments.what == "rootfs":
        _print_done(rootfs_build.ensure(cache, report, qemu_tree=qemu_tree, mirror=mirror))
    if everything or arguments.what == "kernel":
        _print_done(kernel_build.ensure(cache, request, report, mirror=mirror, refresh=refresh))
    if report.timings:
        report.note(f"built in {sum(seconds for _, seconds in report.timings):.0f} s")
    return 0


def _print_done(artefact: Artefact) -> None:
    print(f"{artefact.kind} {artefact.label} {artefact.content_hash} {artefact.path}", flush=True)


def current(cache: Cache) -> set[str]:
    """Names of the artefacts that the present sources make, in every flavour."""
    found = [rootfs_base.DEBIAN.find(cache), rootfs_build.find(cache), payloads_build.find(cache)]
    found += [buildroot.DEBIAN.find(cache), qemu_build.find(cache)]
    found += [kernel_build.find(cache, kernel_build.Request(name)) for name in flavours.load()]
    return {artefact.path.name for artefact in found if artefact is not None}


def list_artefacts(cache: Cache) -> int:
    """One line an artefact: kind, label, version, size, age, content hash, and whether it is up to date."""
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
    print(f"in {cache.root}: {human_size(cache.usage())} with what is kept for the next build")
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
