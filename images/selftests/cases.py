# SPDX-License-Identifier: GPL-2.0-or-later
"""The cases of a selftest, and what it reports of them (TAP, ``tools/testing/selftests/kselftest.h``)."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

_HARNESS = b"[-h|-l|-d]"
"""In the usage of a program made with kselftest_harness.h, which lists its cases and runs one of them."""
_LINE = re.compile(r"^(not )?ok \d+ *-? *(.*?)(?: *# *(\w+)\b:? *(.*))?$", re.MULTILINE)
_FIXTURE, _VARIANT = 20, 25
"""Widths of the columns of its list; a longer name shifts what follows."""
_SKIPPED = 4
"""KSFT_SKIP, the exit status of a program that cannot test here."""


@dataclass(frozen=True)
class Case:
    """One case of a program, or a program that has none.

    :param arguments: choose the case.
    """

    program: str
    name: str = ""
    arguments: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.program}:{self.name}" if self.name else self.program


@dataclass(frozen=True)
class Report:
    """The outcome of a run of a selftest.

    :param failed: what went wrong, a line each.
    :param skipped: the reason why nothing was tested, or empty.
    """

    failed: tuple[str, ...]
    skipped: str = ""


def cases(name: str, program: Path) -> list[Case]:
    """The cases that a program lists, for which it is run here, before it opens anything.

    KVM's library wants the module kvm even for that: without it the program is one case.
    """
    if _HARNESS not in program.read_bytes():
        return [Case(name)]
    done = subprocess.run([program, "-l"], capture_output=True, text=True, check=False, timeout=60)
    return listed(name, done.stderr) or [Case(name)]


def listed(program: str, text: str) -> list[Case]:
    """The cases of the answer to ``-l``: each fixture's variants and, in another column, its tests."""
    found = []
    _, _, table = text.partition("# FIXTURE")
    for block in re.split(r"^-+\n", table.partition("\n")[2], flags=re.MULTILINE):
        fixture = block.split(" ", 1)[0]
        variants: list[str] = []
        tests: list[str] = []
        for line in block.splitlines():
            rest = line[max(_FIXTURE, len(fixture) if line[:1].strip() else 0) + 1 :]
            variant = "" if rest.startswith(" ") else rest.split(" ", 1)[0]
            variants += [variant] if variant else []
            tests += rest[max(_VARIANT, len(variant)) + 1 :].split()
        for variant in variants or [""]:
            for test in tests:
                name = ".".join(filter(None, (fixture, variant, test)))
                found.append(Case(program, name, ("-r", name)))
    return found


def report(output: str, status: int) -> Report:
    """Judge what a selftest printed on standard output, and its exit status."""
    lines = [
        (bool(failed), name.strip(), (directive or "").upper(), reason)
        for failed, name, directive, reason in _LINE.findall(output)
    ]
    failed = [f"not ok: {name}" for wrong, name, directive, _ in lines if wrong and directive != "XFAIL"]
    if not failed and status not in (0, _SKIPPED):
        failed = [f"exit status {status}, with no line that is not ok"]
    skips = [reason or name for wrong, name, directive, reason in lines if not wrong and directive == "SKIP"]
    if failed or (status != _SKIPPED and (not lines or len(skips) < len(lines))):
        return Report(tuple(failed))
    said = re.findall(r"^1\.\.0 # SKIP *-? *(.*)$", output, re.MULTILINE)
    return Report((), next(filter(None, [*skips, *said]), "it skips here"))
