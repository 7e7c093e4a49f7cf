# SPDX-License-Identifier: GPL-2.0-or-later
"""TDs that execute: output of the guest reaches user space, and its registers stay out of reach."""

from __future__ import annotations

import pytest

from fixtures.agent import syscalls
from fixtures.contracts.answers import refused
from fixtures.contracts.promises import Contract, Refusal
from fixtures.deadline import comes_true
from fixtures.findings import shows
from fixtures.guests import output
from fixtures.guests.launch import Launch
from fixtures.guests.output import COMMON, TEXT, VALUE
from fixtures.guests.running import halted, once
from fixtures.host.cpus import Cpus
from fixtures.kvm import commands
from fixtures.kvm.abi import OF_REGISTERS, PAGE_SIZE, Cap
from fixtures.kvm.defaults import default_params
from fixtures.kvm.exits import FatalErrorExit, InterruptedExit, IoExit, ShutdownExit
from fixtures.kvm.vcpu import Vcpu
from fixtures.softseam.truth import Truth

EXIT_REASONS = {"hlt": 12, "in": 30, "rdmsr": 31, "cpuid": 10}
GOOD = 0x600D


# one vCPU


def test_guest_prints(launch: Launch) -> None:
    built = launch("hello")
    assert output.read_line(built.vcpus[0]) == "hello from vCPU 0"


def test_write_to_a_port_leaves_to_user_space_with_its_data(launch: Launch) -> None:
    found = launch("hello").vcpus[0].run()
    assert isinstance(found, IoExit)
    assert (found.port, found.write, found.size, found.count, found.data) == (TEXT, True, 1, 1, b"h")


def test_counter_in_private_memory_goes_on_without_a_lost_or_repeated_step(launch: Launch) -> None:
    told = output.numbers(launch("count").vcpus[0], 100)
    assert told == [step | mark for step in range(1, 51) for mark in (0, COMMON)]


def test_counters_of_two_tds_are_two(launch: Launch) -> None:
    first, second = launch("count").vcpus[0], launch("count").vcpus[0]
    told = [output.numbers(vcpu, 2) for vcpu in (first, second, first, second)]
    assert told == [[1, COMMON | 1], [1, COMMON | 1], [2, COMMON | 2], [2, COMMON | 2]]


@pytest.mark.tdx_needs("ground-truth")
def test_each_run_enters_the_guest(launch: Launch, truth: Truth) -> None:
    vcpu = launch("count").vcpus[0]
    counts = []
    for _ in range(3):
        vcpu.run()
        (known,) = truth.vcpus()
        counts.append(known.entries)
    assert counts[0] >= 1
    assert counts[0] < counts[1] < counts[2]


# several vCPUs


def test_each_vcpu_knows_its_index(launch: Launch) -> None:
    built = launch("hello", vcpus=2)
    assert [output.read_line(vcpu) for vcpu in built.vcpus] == ["hello from vCPU 0", "hello from vCPU 1"]


def test_vcpus_at_once_count_each_for_itself_and_together_in_shared_private_memory(
    launch: Launch,
) -> None:
    rounds = 25
    built = launch("count", vcpus=2)
    jobs = [
        built.worker.start(commands.run_port(vcpu.fd, vcpu.run_page().address, VALUE, 2 * rounds))
        for vcpu in built.vcpus
    ]
    told = [[output.number_of(found) for found in job.result()] for job in jobs]
    own = [[value for value in values if not value & COMMON] for values in told]
    assert own == [[index << 24 | step for step in range(1, rounds + 1)] for index in range(2)]
    common = [[value & ~COMMON for value in values if value & COMMON] for values in told]
    assert all(values == sorted(values) for values in common)
    assert sorted(common[0] + common[1]) == list(range(1, 2 * rounds + 1))


def test_vcpu_may_run_in_another_thread_each_time(launch: Launch) -> None:
    vcpu = launch("count").vcpus[0]
    told = [output.number_of(vcpu.start().result()) for _ in range(6)]
    assert told == [1, COMMON | 1, 2, COMMON | 2, 3, COMMON | 3]


def test_capabilities_can_be_asked_for_while_a_vcpu_runs(launch: Launch) -> None:
    built = launch("interrupt")
    (vcpu,) = built.vcpus
    output.numbers(vcpu, 2)
    running = once(vcpu, halted, vcpu.start)
    asking = built.worker.start(commands.capabilities(built.td.fd))
    assert comes_true(asking.done), "KVM_TDX_CAPABILITIES waits for the vCPU"
    asking.result()
    assert isinstance(running.stop(), InterruptedExit)


# on several CPUs


def pin(vcpu: Vcpu, cpu: int) -> None:
    """Pin the thread that calls KVM_RUN to one CPU."""
    assert vcpu.worker.call(syscalls.affinity([cpu])) == [cpu]


def test_vcpu_goes_from_cpu_to_cpu(launch: Launch) -> None:
    vcpu = launch("count").vcpus[0]
    told = []
    for cpu in (0, 1, 0, 1):
        pin(vcpu, cpu)
        told += output.numbers(vcpu, 2)
    assert told[::2] == [1, 2, 3, 4]


def test_vcpu_may_be_looked_at_on_a_cpu_on_which_it_does_not_run(launch: Launch) -> None:
    """KVM flushes it there, too, and the module says that it is not associated."""
    built = launch("count")
    (vcpu,) = built.vcpus
    pin(vcpu, 0)
    told = output.numbers(vcpu, 2)
    pin(vcpu, 1)
    vcpu.mp_state()
    pin(vcpu, 0)
    told += output.numbers(vcpu, 2)
    assert told[::2] == [1, 2]
    pin(vcpu, 1)
    vcpu.mp_state()
    pin(vcpu, 0)
    built.close()


@pytest.mark.tdx_needs("ground-truth")
def test_module_associates_a_vcpu_with_the_cpu_that_runs_it(launch: Launch, truth: Truth) -> None:
    vcpu = launch("count").vcpus[0]
    for cpu in (1, 0, 1):
        pin(vcpu, cpu)
        vcpu.run()
        assert [known.cpu for known in truth.vcpus()] == [cpu]


@pytest.mark.tdx_needs("cpu-hotplug")
def test_vcpu_goes_on_elsewhere_when_its_cpu_goes_offline(launch: Launch, hotplug: Cpus) -> None:
    vcpu = launch("count").vcpus[0]
    pin(vcpu, 1)
    told = output.numbers(vcpu, 2)
    pin(vcpu, 0)
    hotplug.offline(1)
    told += output.numbers(vcpu, 2)
    assert told[::2] == [1, 2]


# answers to the guest

CALLS = ("gpaw", "vcpus", "max_vcpus", "index", "rcx", "attributes_high", "attributes_low")


def test_guest_learns_from_the_module_how_its_td_was_made(launch: Launch) -> None:
    built = launch("calls", vcpus=2)
    told = dict(zip(CALLS, output.numbers(built.vcpus[1], len(CALLS)), strict=True))
    attributes = default_params(built.worker).attributes
    assert told == {
        "gpaw": 48,
        "vcpus": 2,
        "max_vcpus": built.td.check_extension(Cap.MAX_VCPUS),
        "index": 1,
        "rcx": 0,
        "attributes_high": attributes >> 32,
        "attributes_low": attributes & 0xFFFFFFFF,
    }


def test_guest_finds_the_number_that_init_vcpu_was_given(launch: Launch) -> None:
    told = output.numbers(launch("calls", rcx=0x1234567).vcpus[0], len(CALLS))
    assert dict(zip(CALLS, told, strict=True))["rcx"] == 0x1234567


def test_instructions_that_the_module_does_not_execute_come_back_as_ve(launch: Launch) -> None:
    told = output.numbers(launch("ve").vcpus[0], len(EXIT_REASONS) + 1)
    assert told == [*EXIT_REASONS.values(), GOOD]


# the state of a vCPU


def test_user_space_can_neither_see_nor_change_registers(launch: Launch, contract: Contract) -> None:
    (vcpu,) = launch("count").vcpus
    output.numbers(vcpu, 2)
    for request in OF_REGISTERS:
        with refused(contract, Refusal.VCPU_STATE):
            vcpu.worker.call(commands.ioctl(vcpu.fd, request, bytes(PAGE_SIZE)))
    assert output.numbers(vcpu, 1) == [2]


def test_smi_is_refused(launch: Launch, contract: Contract) -> None:
    built = launch("count")
    (vcpu,) = built.vcpus
    assert built.td.check_extension(Cap.X86_SMM) == 0
    output.numbers(vcpu, 2)
    with refused(contract, Refusal.SMI):
        vcpu.smi()
    assert output.numbers(vcpu, 1) == [2]


@pytest.mark.tdx_finding(
    "F11", flavours=("upstream",), splat=r"WARNING: arch/x86/kvm/vmx/main\.c:\d+ at vt_smi_allowed\+"
)
def test_smi_cannot_be_made_pending(launch: Launch, contract: Contract) -> None:
    (vcpu,) = launch("count").vcpus
    output.numbers(vcpu, 2)
    with shows("F11", match="EIO"), refused(contract, Refusal.SMI_PENDING):
        vcpu.set_pending_smi()
        vcpu.run()
    assert output.numbers(vcpu, 1) == [2]


# how it ends


def test_fatal_error_leaves_to_user_space_with_the_guests_registers(launch: Launch) -> None:
    found = launch("fatal").vcpus[0].run()
    assert isinstance(found, FatalErrorExit)
    assert (found.code, found.message) == (0xDEAD, b"payload")


def test_triple_fault_is_a_shutdown(launch: Launch) -> None:
    assert isinstance(launch("triple").vcpus[0].run(), ShutdownExit)
