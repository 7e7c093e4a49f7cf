# SPDX-License-Identifier: GPL-2.0-or-later

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from images.cache import Cache
from images.sources import LastUsed, Source


def source(version: str) -> Source:
    return Source("linux", version, f"pool/linux_{version}.tar.xz", "0" * 64)


def test_sources_that_are_used_at_once_are_all_remembered(tmp_path: Path) -> None:
    """As by the processes of ``pytest -n 2``."""
    versions = [f"7.{number}" for number in range(200)]

    def use(version: str) -> None:
        LastUsed(Cache(tmp_path / "cache"), "used.json").record(version, source(version))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(use, versions))
    used = LastUsed(Cache(tmp_path / "cache"), "used.json")
    assert [used.recall(version) for version in versions] == [source(version) for version in versions]
