# SPDX-License-Identifier: GPL-2.0-or-later
"""TDs that execute a payload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from fixtures.agent.client import Worker
from fixtures.kvm import build
from fixtures.kvm.build import Assembly, Region


class Launch:
    """Makes finalized TDs with a payload in them; they are closed when the test ends."""

    def __init__(self, owner: Worker, cleanup: ExitStack, payloads: Mapping[str, bytes]) -> None:
        self._owner = owner
        self._cleanup = cleanup
        self._payloads = payloads

    def __call__(
        self,
        payload: str,
        *,
        vcpus: int = 1,
        regions: Sequence[Region] = (),
        rcx: int = 0,
        owner: Worker | None = None,
    ) -> Assembly:
        """A TD with a payload of ``images/payloads`` by name, and with more private memory.

        :param rcx: what INIT_VCPU gives each vCPU.
        :param owner: the process that has it, instead of the fixture ``owner``.
        """
        image = self._payloads[payload]
        built = build.finalized(owner or self._owner, image, vcpus=vcpus, regions=regions, rcx=rcx)
        return self._cleanup.enter_context(built)
