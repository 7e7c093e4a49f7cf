# SPDX-License-Identifier: GPL-2.0-or-later
"""SEAMCALLs that fail once or a few times, and that the kernel has to run into."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from fixtures.errors import KernelUnderTestError
from fixtures.host.base import TdxHost
from fixtures.softseam import inject
from fixtures.softseam.inject import Injection

RETRIES = 10
"""Number of times that Linux makes a SEAMCALL that finds no entropy (``RDRAND_RETRY_LOOPS``)."""

INVALID = inject.TDX_OPERAND_INVALID | 1
NO_ENTROPY = inject.TDX_RND_NO_ENTROPY


@contextmanager
def fault(host: TdxHost, *injections: Injection) -> Iterator[None]:
    """Arm faults for the block, in which the kernel has to run into all of them.

    :raises KernelUnderTestError: the kernel did not make the calls.
    """
    with inject.armed(host.agent.files, *injections):
        yield
        left = inject.still_armed(host.agent.files)
    if left:
        raise KernelUnderTestError(f"the kernel never came to {left}")


def no_entropy(*leaves: str, times: int = RETRIES) -> tuple[Injection, ...]:
    return tuple(Injection(leaf, count=times, code=NO_ENTROPY) for leaf in leaves)
