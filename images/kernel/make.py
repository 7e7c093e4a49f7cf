# SPDX-License-Identifier: GPL-2.0-or-later
"""Run make in a kernel's build folder."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from images.commands import run
from images.errors import BuildError, CommandError
from images.kernel.tree import KeptTree
from images.progress import Step
from images.recipe import Work

_FIRST_ERROR = re.compile(
    r"(: (fatal )?error: |undefined reference to|multiple definition of|^ld: |No rule to make target|"
    r"modpost: .*undefined!|^\S*Kconfig:\d+: )"
)
_MADE = re.compile(r"^  (CC|AS|LD|AR|HOSTCC|HOSTLD|GEN|OBJCOPY|ZOFFSET|GZIP|MODPOST|LD|CHK|UPD)\b")


def run_make(
    tree: KeptTree,
    targets: list[str],
    what: str,
    work: Work,
    *,
    env: Mapping[str, str] | None = None,
    step: Step | None = None,
) -> int:
    """Run make in the build folder; returns the number of files that it made."""
    made = 0
    first_error = ""

    def on_line(line: str) -> None:
        nonlocal made, first_error
        if _MADE.match(line):
            made += 1
            if step is not None:
                step.advance()
        elif not first_error and _FIRST_ERROR.search(line):
            first_error = line.strip()

    # One more than CPUs: a job that waits for the disk leaves none idle.
    jobs = f"-j{(os.cpu_count() or 1) + 1}"
    argv: list[str | Path] = ["make", "-C", tree.src, f"O={tree.out}", jobs, *targets]
    try:
        run(argv, log=work.log, env=_environment() | dict(env or {}), what=what, on_line=on_line)
    except CommandError as error:
        if not first_error:
            raise
        text = first_error.replace(f"{tree.src}/", "")
        raise BuildError(f"{what}: {text}", hint="the log has all of it", log=work.log.path) from error
    return made


def _environment() -> dict[str, str]:
    """Variables that make the same kernel from the same sources, for any builder at any time."""
    return {
        "ARCH": "x86",
        "KBUILD_BUILD_TIMESTAMP": "@0",
        "KBUILD_BUILD_USER": "tdx-e2e",
        "KBUILD_BUILD_HOST": "tdx-e2e",
        "KBUILD_BUILD_VERSION": "1",
        "LOCALVERSION": "",
    }
