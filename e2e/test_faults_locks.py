# SPDX-License-Identifier: GPL-2.0-or-later
"""A KVM_TDX_INIT_VM that fails leaves nothing locked: CPUs go offline and come back.

It keeps the host's CPUs as they are while it configures the key on each package (``__tdx_td_init`` in
arch/x86/kvm/vmx/tdx.c).
"""

from __future__ import annotations

import pytest

from e2e.faults import INVALID, fault, no_entropy
from fixtures.agent import syscalls
from fixtures.agent.call import batch_call
from fixtures.agent.client import Worker
from fixtures.deadline import until
from fixtures.errors import DeadlineExceeded
from fixtures.host.base import TdxHost
from fixtures.host.cpus import Cpus
from fixtures.host.facts import CPUS
from fixtures.host.hkids import Hkids
from fixtures.kvm.defaults import default_params
from fixtures.kvm.device import Kvm
from fixtures.kvm.errors import errno_of
from fixtures.softseam.inject import Injection

pytestmark = [
    pytest.mark.tdx_host(cpus=2),
    pytest.mark.tdx_needs("misc-cgroup", "cpu-hotplug", "seamcall-fault-injection"),
]

WARNS = pytest.mark.tdx_splat_expected(r"WARNING: arch/x86/kvm/vmx/tdx\.[ch]:\d+")


def goes_and_comes(worker: Worker, cpu: int) -> bool:
    """Take a CPU offline and bring it back; returns whether that ends."""
    switch = f"{CPUS}/cpu{cpu}/online"
    job = worker.start(batch_call([syscalls.write_file(switch, b"0"), syscalls.write_file(switch, b"1")]))
    try:
        until(job.done, f"CPU {cpu} to go and come")
    except DeadlineExceeded:
        return False
    assert job.result().complete
    return True


@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(Injection("TDH.MNG.CREATE", code=INVALID), marks=WARNS, id="create"),
        pytest.param(*no_entropy("TDH.MNG.CREATE"), id="create-no-entropy"),
        pytest.param(Injection("TDH.MNG.KEY.CONFIG", code=INVALID), marks=WARNS, id="key-config"),
        pytest.param(Injection("TDH.MNG.ADDCX", code=INVALID), marks=WARNS, id="addcx"),
        pytest.param(*no_entropy("TDH.MNG.ADDCX"), id="addcx-no-entropy"),
        pytest.param(Injection("TDH.MNG.INIT", code=INVALID), id="init"),
    ],
)
def test_cpu_goes_and_comes_after_an_init_vm_that_failed(
    failure: Injection, tdx_host: TdxHost, kvm: Kvm, hkids: Hkids, hotplug: Cpus
) -> None:
    params = default_params(kvm.worker)
    with kvm.create_td() as td, fault(tdx_host, failure):
        assert errno_of(lambda: td.init_vm(params))
    assert goes_and_comes(kvm.worker, max(hotplug.all)), "whoever changes the CPUs waits for ever"
    with kvm.create_td() as another:
        another.init_vm(params)
        assert hkids.taken == 1
