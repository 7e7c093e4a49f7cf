# SPDX-License-Identifier: GPL-2.0-or-later
"""A later build of our QEMU: the series with a few patches more, as a tree has it some releases on.

A move is there to replace a QEMU by a newer one, so it is tested between the two.
"""

from __future__ import annotations

from pathlib import Path

from images.cache import Artefact, Cache
from images.progress import Reporter
from images.qemu import build, source
from images.qemu.tree import Tarball

HERE = Path(__file__).parent / "later"


def patches() -> tuple[Path, ...]:
    """The patches of the later QEMU, in order: first those of the series."""
    return (*build.series(), *sorted(HERE.glob("*.patch")))


def ensure(cache: Cache, reporter: Reporter, *, mirror: str | None = None) -> Artefact:
    """The later QEMU, of the source that ours is made of, built if it is not in the cache.

    :raises BuildError: it cannot be built.
    """
    used = source.last_used(cache).recall()
    if used is None:
        build.ensure(cache, reporter, mirror=mirror)
        used = source.last_used(cache).recall()
    assert used is not None
    return build.Qemu(Tarball(used, patches()), label="later").ensure(cache, reporter, mirror=mirror)
