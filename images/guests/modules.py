# SPDX-License-Identifier: GPL-2.0-or-later
"""The modules of a kernel package that the guest loads, in an order in which each finds what it needs.

The package has no modules.dep: depmod makes it where a package is installed.  Each module names what it
depends on in its section .modinfo.
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from images.errors import BuildError

WANTED = (
    *("virtio_blk", "virtio_net", "virtio-rng", "vmw_vsock_virtio_transport"),
    # The report of a TD, by its device and by configfs.
    *("tsm", "tdx-guest"),
    # QEMU's system_powerdown is a key.
    *("button", "evdev"),
    "pvpanic-pci",
)

_DEPENDS = re.compile(rb"(?:^|\0)depends=([^\0]*)\0")
_SUFFIX = ".ko.xz"


def depends(content: bytes) -> list[str]:
    """The modules on which a module depends, by its content."""
    match = _DEPENDS.search(content)
    if match is None:
        raise ValueError("no module: it does not name its dependencies")
    return [name for name in match[1].decode().split(",") if name]


def in_order(wanted: Iterable[str], needs: Callable[[str], list[str]]) -> list[str]:
    """The modules and what they need, each after what it needs, once.

    :param needs: the names on which a module depends.
    """
    order: list[str] = []

    def add(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            raise BuildError(f"the modules {' → '.join((*above, name))} depend on each other")
        if name not in order:
            for other in needs(name):
                add(other, (*above, name))
            order.append(name)

    for name in map(_plain, wanted):
        add(name, ())
    return order


def read(folder: Path, wanted: Iterable[str] = WANTED) -> dict[str, bytes]:
    """File name → content of the modules that the guest loads, in the order in which it has to load them.

    :param folder: of the kernel's modules.
    :raises BuildError: the package lacks one.
    """
    files = {_plain(path.name.removesuffix(_SUFFIX)): path for path in folder.rglob(f"*{_SUFFIX}")}
    contents: dict[str, bytes] = {}

    def content(name: str) -> bytes:
        if name not in files:
            raise BuildError(
                f"the kernel in {folder.name} has no module {name}",
                hint="it may be built in: then images/guests/modules.py must not ask for it",
            )
        if name not in contents:
            contents[name] = lzma.decompress(files[name].read_bytes())
        return contents[name]

    order = in_order(wanted, lambda name: [_plain(other) for other in depends(content(name))])
    return {f"{name}.ko": contents[name] for name in order}


def _plain(name: str) -> str:
    # A module's file may be written with dashes where its name has underscores.
    return name.replace("-", "_")
