# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: see ``--help``."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from images.cache import Cache
from images.commands import Log, require_tools
from images.errors import BuildError
from images.tests.fresh.root import Root

_TOP = Path(__file__).parents[3]
_SETUP = "python3 -m images setup-host"
_LOGS = _TOP / "artifacts/fresh"
_CHEAP = (_SETUP, "tox", "tox -e nested --notest", "python3 -m images build payloads")


@dataclass
class Outcome:
    """How the commands of one suite ended.

    :ivar steps: (step, seconds), in order.
    :ivar error: message of the step that failed.
    """

    suite: str
    log: Path
    steps: list[tuple[str, float]] = field(default_factory=list)
    error: str = ""

    def lines(self) -> Iterator[str]:
        """Yield the report."""
        yield f"fresh {self.suite}: {self.error or 'passed'}; log: {self.log}"
        for step, seconds in self.steps:
            yield f"  {seconds:7.1f} s  {step}"


def commands(readme: str, pytest_arguments: list[str]) -> list[str]:
    """Return README's commands one by one: each line of its block, split at ``&&``.

    :param pytest_arguments: for the nested run.
    """
    blocks = re.findall(rf"^    ({re.escape(_SETUP)} && [^#\n]+?) *(?:#.*)?$", readme, re.MULTILINE)
    found = [part for block in blocks for part in block.split(" && ")]
    tail = f" -- {' '.join(pytest_arguments)}" if pytest_arguments else ""
    return [f"{part}{tail}" if part == "tox -e nested" else part for part in found]


def prove(suite: str, steps: list[str], cache: Path | None, prefix: str) -> Outcome:
    """Carry out the steps in a new root of the suite, until one fails."""
    outcome = Outcome(suite, _LOGS / f"{suite}.log")

    def say(line: str) -> None:
        print(f"{prefix}{line}", flush=True)

    with Log(outcome.log) as log, Cache().scratch(f"fresh-{suite}") as scratch:
        root = Root(scratch / "root", log, say, cache)
        work: list[tuple[str, Callable[[], object]]] = [
            ("a bare root", partial(root.install, suite, scratch)),
            ("its network", root.connect),
            ("a clone", partial(root.clone, _TOP)),
            *((step, partial(root.shell, step)) for step in steps),
        ]
        for name, carry_out in work:
            say(f"=== {suite}: {name}")
            begin = time.monotonic()
            try:
                carry_out()
            except BuildError as error:
                outcome.error = f"FAILED: {error.message}" + (f"; hint: {error.hint}" if error.hint else "")
            outcome.steps.append((name, time.monotonic() - begin))
            if outcome.error:
                break
    return outcome


def main(argv: list[str]) -> int:
    """Carry out what the command line asks for; returns the exit status."""
    end = argv.index("--") if "--" in argv else len(argv)
    own, pytest_arguments = argv[:end], argv[end + 1 :]
    parser = argparse.ArgumentParser("images.tests.fresh", description=__doc__)
    parser.add_argument("suites", nargs="+", metavar="SUITE", help="bookworm, trixie …")
    parser.add_argument("--quick", action="store_true", help="no kernel, QEMU and nested run; suites at once")
    parser.add_argument("--cache", type=Path, help="show this cache of images in the roots, not an empty one")
    options = parser.parse_args(own)
    steps = list(_CHEAP) if options.quick else commands((_TOP / "README.md").read_text(), pytest_arguments)
    require_tools(("mmdebstrap", "setpriv", "unshare", "apt-get"), "a bare root")
    # Side by side, two nested runs would miss their deadlines.
    with ThreadPoolExecutor(len(options.suites) if options.quick else 1) as pool:
        cache = options.cache.absolute() if options.cache else None
        jobs = [
            pool.submit(prove, suite, steps, cache, f"{suite}: " if options.quick else "")
            for suite in options.suites
        ]
        outcomes = [job.result() for job in jobs]
    for outcome in outcomes:
        print("\n".join(outcome.lines()), flush=True)
    return 1 if any(outcome.error for outcome in outcomes) else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except BuildError as error:
        sys.exit(f"error: {error}")
