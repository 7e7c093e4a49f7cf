# SPDX-License-Identifier: GPL-2.0-or-later
"""While an HKID is released, nobody else makes the SEAMCALLs that need the whole TDX module.

``tdx_lock`` in arch/x86/kvm/vmx/tdx.c.  A write-back of caches takes long, as the module interrupts it again
and again; a SEAMCALL that meets one finds the module busy, which KVM takes for a bug.
"""

from __future__ import annotations

import pytest

from fixtures.agent import syscalls
from fixtures.agent.call import BatchResult, batch_call
from fixtures.agent.client import Job
from fixtures.deadline import until
from fixtures.host.base import TdxHost
from fixtures.host.hkids import Hkids
from fixtures.kvm import commands
from fixtures.kvm.abi import VmType
from fixtures.kvm.defaults import default_params
from fixtures.kvm.device import Kvm
from fixtures.kvm.many import many_tds
from fixtures.kvm.td import Td
from fixtures.softseam import inject
from fixtures.softseam.inject import Injection
from fixtures.softseam.records import KeyState
from fixtures.softseam.truth import Truth

pytestmark = [
    pytest.mark.tdx_host(cpus=2),
    pytest.mark.tdx_needs("misc-cgroup", "seamcall-fault-injection", "ground-truth"),
]

INTERRUPTED = 9_000
"""Times; Linux resumes a write-back 10,000 times."""


@pytest.fixture
def truth(tdx_host: TdxHost) -> Truth:
    return Truth(tdx_host.agent)


def closing(td: Td) -> Job[BatchResult]:
    """Close a TD in a thread of its own, on the CPU that writes back, so that the other one is free."""
    return td.worker.start(batch_call([syscalls.affinity([0]), *td.closing()]))


@pytest.mark.parametrize("other", ["create", "release"])
def test_key_waits_for_the_release_of_another(
    other: str, kvm: Kvm, tdx_host: TdxHost, hkids: Hkids, truth: Truth
) -> None:
    td, neighbour = many_tds(kvm, 2)
    second = neighbour
    if other == "create":
        neighbour.close()
        second = Td(kvm.worker, kvm.worker.call(commands.create_vm(kvm.fd, VmType.TDX)))
    kvm.worker.call(syscalls.affinity([1]))
    params, since = default_params(kvm.worker), truth.history()[-1].seq
    interruptions = Injection("TDH.PHYMEM.CACHE.WB", 1, INTERRUPTED, inject.TDX_INTERRUPTED_RESUMABLE)
    with inject.armed(tdx_host.agent.files, interruptions):
        first = closing(td)
        until(
            lambda: first.done() or any(key.state is KeyState.FLUSHED for key in truth.state().keys),
            "a key whose caches are written back",
        )
        if other == "create":
            kvm.worker.call(commands.init_vm(second.fd, params))
        else:
            second.close()
        assert first.result().complete
    happened = [event.event for event in truth.history(since) if event.event != "configure"]
    of_second = ["assign"] if other == "create" else ["flush", "free"]
    assert happened == ["flush", "free", *of_second]
    assert hkids.taken == (1 if other == "create" else 0)
    second.close()
