# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from images.cache import Cache
from images.commands import Log
from images.progress import Reporter


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    with Log(tmp_path / "test.log") as log:
        yield log


@pytest.fixture
def said() -> io.StringIO:
    """What the reporter printed."""
    return io.StringIO()


@pytest.fixture
def report(said: io.StringIO) -> Reporter:
    return Reporter(said)
