# SPDX-License-Identifier: GPL-2.0-or-later
"""What a builder raises: one line for a person, a hint, and where the whole story is."""

from __future__ import annotations

from pathlib import Path


class BuildError(Exception):
    """An image could not be made.  Nothing half-made is left in the cache.

    :param message: one line, what happened.
    :param hint: one line, what the reader can do about it.
    :param log: the file that holds the output of every command that ran.
    """

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
