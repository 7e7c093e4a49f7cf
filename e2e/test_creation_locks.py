# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands that change a TD's state wait for what its vCPUs are in the middle of.

``tdx_acquire_vm_state_locks`` in arch/x86/kvm/vmx/tdx.c.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fixtures.agent.call import Call
from fixtures.guests.running import asleep, halted, once
from fixtures.kvm import commands
from fixtures.kvm.abi import PAGE_SIZE, Request
from fixtures.kvm.build import Assembly, Region
from fixtures.kvm.exits import InterruptedExit

PAGE = Region(0x40000000, PAGE_SIZE)

COMMANDS: dict[str, Callable[[Assembly], Call[Any]]] = {
    "finalize-vm": lambda td: commands.finalize_vm(td.td.fd),
    "init-vcpu": lambda td: commands.init_vcpu(td.vcpus[1].fd),
    "init-mem-region": lambda td: commands.init_mem_region(td.vcpus[0].fd, bytes(PAGE_SIZE), PAGE.gpa),
}


@pytest.mark.tdx_host(cpus=2)
@pytest.mark.parametrize("command", COMMANDS)
def test_command_waits_for_a_vcpu_that_is_in_another_request(command: str, td_with_vcpus: Assembly) -> None:
    """KVM_RUN of a vCPU that nobody has started sleeps until an INIT comes, before KVM looks at its TD."""
    td = td_with_vcpus.place(PAGE).create_vcpus()
    vcpu = td.vcpus[1]
    vcpu.set_cpuid2()
    running = once(vcpu, halted, vcpu.start)
    waiting = td.worker.start(COMMANDS[command](td))
    asleep(waiting, Request.KVM_MEMORY_ENCRYPT_OP)
    assert not running.done()
    assert isinstance(running.stop(), InterruptedExit)
    waiting.result()
