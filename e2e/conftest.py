# SPDX-License-Identifier: GPL-2.0-or-later
"""Fixtures that several subjects share: TDs that run a payload, CPU hotplug, a check that TDs are gone."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from contextlib import ExitStack

import pytest

from fixtures.agent.client import Worker
from fixtures.guests.launch import Launch
from fixtures.guests.mailbox import Mailbox
from fixtures.guests.quotes import QuoteService
from fixtures.host.base import Capability, TdxHost
from fixtures.host.cpus import Cpus
from fixtures.host.hkids import Hkids
from fixtures.softseam.truth import Truth


@pytest.fixture
def launch(owner: Worker, tdx_cleanup: ExitStack, payloads: Mapping[str, bytes]) -> Launch:
    """A function that makes TDs: ``launch("hello", vcpus=2)`` returns a finalized one."""
    return Launch(owner, tdx_cleanup, payloads)


@pytest.fixture
def mailbox(launch: Launch) -> Mailbox:
    """A guest that makes the TDVMCALLs that the test puts into its mailbox."""
    return Mailbox(launch("vmcall"))


@pytest.fixture
def quotes(owner: Worker, tdx_cleanup: ExitStack) -> QuoteService:
    """A service of the test's from which a QEMU gets quotes for its guest."""
    return tdx_cleanup.enter_context(QuoteService(owner))


OFFLINE_WARNS = pytest.mark.tdx_finding(
    "F10", flavours=(), splat=r"WARNING: arch/x86/virt/vmx/tdx/tdx\.c:\d+ at tdx_\w+\+"
)
"""Each CPU that goes offline shows it where lockdep looks: our kernels with lockdep have the fix."""


def pytest_itemcollected(item: pytest.Item) -> None:
    if "hotplug" in getattr(item, "fixturenames", ()):
        item.add_marker(OFFLINE_WARNS)


@pytest.fixture
def hotplug(tdx_host: TdxHost, tdx_cleanup: ExitStack, whole_machine: Callable[[], None]) -> Cpus:
    """The host's CPUs, of which the test takes at least one offline; they are online again afterwards."""
    whole_machine()
    found = Cpus.online_now(tdx_host.agent)
    tdx_cleanup.callback(found.restore)
    return found


@pytest.fixture
def migration_file(tdx_host: TdxHost, tdx_cleanup: ExitStack) -> str:
    """The URI of a file on the host to which QEMU can migrate a guest."""
    path = f"/tmp/tdx-e2e-{secrets.token_hex(4)}"
    tdx_cleanup.callback(tdx_host.agent.files.remove, path)
    return f"file:{path}"


@pytest.fixture
def truth(tdx_host: TdxHost) -> Truth:
    """The TDX module's own tables; the test needs ``ground-truth``."""
    return Truth(tdx_host.agent)


@pytest.fixture
def assert_gone(tdx_host: TdxHost, hkids: Hkids) -> Callable[[], None]:
    """A function that asserts that every TD made since the test began is gone: its HKID, and, where the TDX
    module's tables can be read, its pages.
    """
    told = Capability.GROUND_TRUTH in tdx_host.capabilities

    def check() -> None:
        assert hkids.taken == 0
        if told:
            left = Truth(tdx_host.agent).state()
            kept = [*left.tds, *left.vcpus, *(pages for pages in left.pages if pages.tdr is not None)]
            assert not kept, f"the TDX module still keeps {kept}"

    return check
