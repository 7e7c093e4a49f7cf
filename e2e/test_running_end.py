# SPDX-License-Identifier: GPL-2.0-or-later
"""Ends of a running TD: whatever stops it, its HKID is freed and the TDX module keeps no page of it."""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable

import pytest

from fixtures.agent.call import SyscallResult
from fixtures.agent.client import Job, Worker
from fixtures.contracts.answers import refused
from fixtures.contracts.promises import Contract, Refusal
from fixtures.guests import output
from fixtures.guests.launch import Launch
from fixtures.guests.running import Reached, halted, inside, interrupted, once, spin
from fixtures.host.base import TdxHost
from fixtures.host.hkids import Hkids
from fixtures.kvm import abi, commands
from fixtures.kvm.abi import PAGE_SIZE, Request
from fixtures.kvm.build import Region
from fixtures.kvm.errors import errno_of
from fixtures.kvm.exits import Exit, FatalErrorExit, InternalErrorExit, InterruptedExit, ShutdownExit
from fixtures.kvm.fd import close_all
from fixtures.kvm.vcpu import Vcpu

pytestmark = pytest.mark.tdx_needs("misc-cgroup")

Check = Callable[[], None]

# by its owner's death


@pytest.mark.parametrize("vcpus", [1, 2])
def test_sigkill_of_the_owner_ends_a_guest_that_asks_nothing(
    vcpus: int, owner: Worker, assert_gone: Check, launch: Launch
) -> None:
    spin(launch("spin", vcpus=vcpus))
    owner.kill()
    assert owner.wait() == -signal.SIGKILL
    assert_gone()


def test_sigkill_of_the_owner_ends_a_guest_that_halts(
    owner: Worker, assert_gone: Check, launch: Launch
) -> None:
    (vcpu,) = launch("interrupt").vcpus
    output.numbers(vcpu, 2)
    once(vcpu, halted, vcpu.start)
    owner.kill()
    assert owner.wait() == -signal.SIGKILL
    assert_gone()


def test_sigkill_of_the_owner_between_two_runs(owner: Worker, assert_gone: Check, launch: Launch) -> None:
    output.numbers(launch("accept", regions=[Region(0x100000, PAGE_SIZE)]).vcpus[0], 2)
    owner.kill()
    assert owner.wait() == -signal.SIGKILL
    assert_gone()


def test_td_of_another_process_goes_on(tdx_host: TdxHost, owner: Worker, launch: Launch) -> None:
    (other,) = launch("count", owner=tdx_host.agent.spawn()).vcpus
    assert output.numbers(other, 2)[0] == 1
    spin(launch("spin"))
    owner.kill()
    owner.wait()
    assert output.numbers(other, 2)[0] == 2


# by a signal


def test_signal_interrupts_kvm_run_and_the_guest_goes_on_afterwards(launch: Launch) -> None:
    built = launch("spin")
    (vcpu,) = built.vcpus
    (job,) = spin(built)
    for _ in range(3):
        assert isinstance(job.stop(), InterruptedExit)
        job = once(vcpu, inside, vcpu.start)


def test_immediate_exit_keeps_kvm_run_from_entering(launch: Launch) -> None:
    (vcpu,) = launch("count").vcpus
    output.numbers(vcpu, 2)
    page = vcpu.run_page()
    page.write(abi.Run.immediate_exit.offset, b"\1")
    assert isinstance(vcpu.run(), InterruptedExit)
    page.write(abi.Run.immediate_exit.offset, b"\0")
    assert output.numbers(vcpu, 1) == [2]


# by closing its fds


def run(vcpu: Vcpu, reached: Reached) -> Job[SyscallResult]:
    """Start KVM_RUN in a thread that does not read ``kvm_run`` afterwards, which may be unmapped by then."""
    return once(vcpu, reached, lambda: vcpu.worker.start(commands.ioctl(vcpu.fd, Request.KVM_RUN)))


def test_kvm_run_under_way_keeps_a_td_whose_fds_are_closed(
    hkids: Hkids, assert_gone: Check, launch: Launch
) -> None:
    built = launch("interrupt")
    (vcpu,) = built.vcpus
    output.numbers(vcpu, 2)
    job = run(vcpu, halted)
    built.close()
    assert hkids.taken == 1
    assert errno_of(lambda: interrupted(job)) == errno.EINTR
    assert_gone()


def test_guest_runs_on_when_the_fds_of_its_vm_and_vcpu_are_closed(
    hkids: Hkids, assert_gone: Check, launch: Launch
) -> None:
    built = launch("spin")
    (vcpu,) = built.vcpus
    output.numbers(vcpu, 1)
    job = run(vcpu, inside)
    close_all(vcpu, built.td)
    assert hkids.taken == 1
    assert not job.done()
    assert errno_of(lambda: interrupted(job)) == errno.EINTR
    assert hkids.taken == 1
    built.close()
    assert_gone()


def test_guest_ends_when_its_memory_is_closed(hkids: Hkids, assert_gone: Check, launch: Launch) -> None:
    """The guest_memfd's fd holds private memory; the memory slot does not."""
    built = launch("spin")
    (vcpu,) = built.vcpus
    output.numbers(vcpu, 1)
    job = run(vcpu, inside)
    built.close()
    assert errno_of(job.result) == errno.EFAULT
    assert_gone()


# by the guest itself

ENDS: dict[str, tuple[str, type[Exit]]] = {
    "fatal-error": ("fatal", FatalErrorExit),
    "triple-fault": ("triple", ShutdownExit),
}


@pytest.mark.parametrize(("payload", "kind"), [pytest.param(*row, id=name) for name, row in ENDS.items()])
def test_guest_that_ended_leaves_nothing_behind(
    payload: str, kind: type[Exit], assert_gone: Check, launch: Launch
) -> None:
    built = launch(payload)
    assert isinstance(built.vcpus[0].run(), kind)
    built.close()
    assert_gone()


def test_vm_that_died_leaves_nothing_behind(assert_gone: Check, launch: Launch, contract: Contract) -> None:
    built = launch("pending", regions=[Region(0x100000, PAGE_SIZE)])
    output.numbers(built.vcpus[0], 1)
    with refused(contract, Refusal.RUN_PENDING_PAGE):
        built.vcpus[0].run()
    built.close()
    assert_gone()


@pytest.mark.tdx_finding(
    "F7", flavours=("upstream",), splat=r"WARNING: arch/x86/kvm/vmx/main\.c:\d+ at vt_cache_reg\+"
)
def test_vcpu_does_not_run_again_after_a_triple_fault(launch: Launch) -> None:
    (vcpu,) = launch("triple").vcpus
    vcpu.run()
    assert isinstance(vcpu.run(), InternalErrorExit)
