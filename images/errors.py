# SPDX-License-Identifier: GPL-2.0-or-later
"""The base of all errors of this project, and those of its builders."""

from __future__ import annotations

from pathlib import Path


class TdxTestError(Exception):
    """Base of all errors that a person may see.

    :param message: one line, what happened.
    :param hint: one line, what the reader can do.
    :param log: the file with the whole output.
    """

    party = "harness"
    """The party that has to look at it: ``kernel``, ``lab`` or ``harness``."""

    def __init__(self, message: str, *, hint: str = "", log: Path | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.log = log

    def __str__(self) -> str:
        parts = [self.message]
        if self.hint:
            parts.append(f"hint: {self.hint}")
        if self.log is not None:
            parts.append(f"log: {self.log}")
        return "; ".join(parts)


class BuildError(TdxTestError):
    """An image could not be made.  The cache is left without a half-made image."""

    party = "lab"


class CommandError(BuildError):
    """A command that an image needs exited non-zero.

    :param returncode: exit status, negative for a signal.
    :param output: the last lines that it printed, oldest first.
    """

    def __init__(
        self,
        message: str,
        *,
        returncode: int,
        output: tuple[str, ...],
        hint: str = "",
        log: Path | None = None,
    ) -> None:
        super().__init__(message, hint=hint, log=log)
        self.returncode = returncode
        self.output = output
