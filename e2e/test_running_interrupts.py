# SPDX-License-Identifier: GPL-2.0-or-later
"""Interrupts for a TD: posted to a vCPU that halts, runs, or is not in KVM_RUN."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack

import pytest

from fixtures.agent import syscalls
from fixtures.agent.call import Call
from fixtures.agent.client import Worker
from fixtures.contracts.answers import refused
from fixtures.contracts.promises import Contract, Refusal
from fixtures.deadline import until
from fixtures.findings import shows
from fixtures.guests import output, timer
from fixtures.guests.execute import Executor, vmcall
from fixtures.guests.ghci import BLOCKED, HLT, KICK_CPU, SEND_IPI, WRMSR
from fixtures.guests.launch import Launch
from fixtures.guests.mailbox import Mailbox, Registers
from fixtures.guests.output import INTERRUPT_VECTOR, INTERRUPTS_READY
from fixtures.guests.running import halted, once
from fixtures.guests.timer import APIC_ENABLED, X2APIC_SPIV, Mode
from fixtures.guests.vectors import BY, VECTORS, Raise, arrived
from fixtures.host.base import TdxHost
from fixtures.kvm import abi, commands
from fixtures.kvm.abi import PAGE_SIZE, Cap, TdVmCall, VcpuEvents
from fixtures.kvm.build import Assembly, Region
from fixtures.kvm.errors import errno_of
from fixtures.kvm.exits import InterruptedExit, ShutdownExit, TdVmCallExit
from fixtures.kvm.memory import Memory
from fixtures.kvm.params import MemorySlot
from fixtures.kvm.vcpu import Vcpu

GSI = 5
QUOTE_GPA = 0x200000
QUOTE_STATUS = 8
"""Offset of the status in a request for a quote (GHCI 1.5, GetQuote)."""
IN_FLIGHT = (1 << 64) - 1
HALT_POLL_NS = "/sys/module/kvm/parameters/halt_poll_ns"
A_SECOND = 1_000_000_000
DEADLINE_NS = 300_000_000
"""So far ahead that it is taken back in time."""


def ready(vcpu: Vcpu) -> None:
    """Run the payload ``interrupt`` until it waits; it has had one interrupt then, its own."""
    assert output.numbers(vcpu, 2) == [1, INTERRUPTS_READY]


@pytest.fixture
def waiting(launch: Launch) -> Assembly:
    """A guest that writes the number of its interrupts after each, and halts between them."""
    built = launch("interrupt")
    ready(built.vcpus[0])
    return built


def test_guest_can_interrupt_itself(launch: Launch) -> None:
    assert output.numbers(launch("interrupt").vcpus[0], 1) == [1]


def test_msi_wakes_a_guest_that_halts(waiting: Assembly) -> None:
    running = once(waiting.vcpus[0], halted, waiting.vcpus[0].start)
    assert waiting.td.signal_msi(INTERRUPT_VECTOR) == 1
    assert output.number_of(running.result()) == 2


def test_msi_that_comes_between_two_runs_is_there_at_the_next(waiting: Assembly) -> None:
    assert waiting.td.signal_msi(INTERRUPT_VECTOR) == 1
    assert output.number_of(waiting.vcpus[0].run()) == 2


def test_msis_that_come_before_the_guest_can_take_them_are_one(waiting: Assembly) -> None:
    for _ in range(3):
        waiting.td.signal_msi(INTERRUPT_VECTOR)
    assert output.number_of(waiting.vcpus[0].run()) == 2
    running = waiting.vcpus[0].start()
    waiting.td.signal_msi(INTERRUPT_VECTOR)
    assert output.number_of(running.result()) == 3


def test_no_msi_is_lost_and_none_comes_twice(waiting: Assembly) -> None:
    told = []
    for _ in range(20):
        running = waiting.vcpus[0].start()
        waiting.td.signal_msi(INTERRUPT_VECTOR)
        told.append(output.number_of(running.result()))
    assert told == list(range(2, 22))


def test_msi_goes_to_the_vcpu_that_it_names(launch: Launch) -> None:
    built = launch("interrupt", vcpus=2)
    vcpu = built.vcpus[1]
    ready(vcpu)
    # Between two runs: if it came here, the next run would return with it instead of halting.
    built.td.signal_msi(INTERRUPT_VECTOR, dest=0)
    running = once(vcpu, halted, vcpu.start)
    built.td.signal_msi(INTERRUPT_VECTOR, dest=1)
    assert output.number_of(running.result()) == 2


def test_eventfd_that_is_routed_to_an_msi_interrupts_the_guest(waiting: Assembly) -> None:
    waiting.td.set_msi_routes({GSI: (INTERRUPT_VECTOR, 0)})
    with waiting.td.irqfd(GSI) as eventfd:
        running = waiting.vcpus[0].start()
        eventfd.signal()
        assert output.number_of(running.result()) == 2


def test_eventfd_raises_what_its_gsi_is_routed_to_now(waiting: Assembly) -> None:
    """At first to a vCPU that does not exist, and at last to none."""
    (vcpu,) = waiting.vcpus
    waiting.td.set_msi_routes({GSI: (INTERRUPT_VECTOR, 1)})
    with waiting.td.irqfd(GSI) as eventfd:
        waiting.td.set_msi_routes({GSI: (INTERRUPT_VECTOR, 0)})
        eventfd.signal()
        assert output.number_of(vcpu.run()) == 2
        waiting.td.set_msi_routes({})
        eventfd.signal()
        running = once(vcpu, halted, vcpu.start)
        waiting.td.signal_msi(INTERRUPT_VECTOR)
        assert output.number_of(running.result()) == 3
        assert isinstance(once(vcpu, halted, vcpu.start).stop(), InterruptedExit)


def test_eventfd_cannot_be_told_of_the_end_of_an_interrupt(
    td_with_vcpus: Assembly, contract: Contract
) -> None:
    td, worker = td_with_vcpus.td, td_with_vcpus.worker
    event, ended = worker.call(syscalls.eventfd()), worker.call(syscalls.eventfd())
    td.set_msi_routes({GSI: (INTERRUPT_VECTOR, 0)})
    with refused(contract, Refusal.IRQFD_RESAMPLE):
        worker.call(commands.irqfd(td.fd, event, GSI, flags=abi.KVM_IRQFD_FLAG_RESAMPLE, resample=ended))


def test_eventfd_that_was_taken_off_interrupts_nobody(waiting: Assembly) -> None:
    waiting.td.set_msi_routes({GSI: (INTERRUPT_VECTOR, 0)})
    with waiting.td.irqfd(GSI) as eventfd:
        eventfd.deassign()
        assert eventfd.count() == 0
        eventfd.signal()
        running = once(waiting.vcpus[0], halted, waiting.vcpus[0].start)
        waiting.td.signal_msi(INTERRUPT_VECTOR)
        assert output.number_of(running.result()) == 2
        assert eventfd.count() == 1
    running = waiting.vcpus[0].start()
    assert isinstance(running.stop(), InterruptedExit)


def test_guest_that_halts_stays_in_kvm_run_until_a_signal(waiting: Assembly) -> None:
    running = once(waiting.vcpus[0], halted, waiting.vcpus[0].start)
    assert isinstance(running.stop(), InterruptedExit)
    waiting.td.signal_msi(INTERRUPT_VECTOR)
    assert output.number_of(waiting.vcpus[0].run()) == 2


def test_guest_that_halts_with_interrupts_blocked_is_woken_by_an_nmi_only(launch: Launch) -> None:
    """R12 of the TDVMCALL for HLT says so (GHCI 1.5).  The payload has no IDT: the NMI shuts it down."""
    built = launch("vmcall")
    mailbox, (vcpu,) = Mailbox(built), built.vcpus
    # KVM drops what is sent to an APIC that the guest has not enabled.
    assert mailbox.call(Registers(r11=WRMSR, r12=X2APIC_SPIV, r13=APIC_ENABLED)).r10 == 0
    mailbox.memory.write(0, Registers(r11=HLT, r12=BLOCKED).pack())
    running = once(vcpu, halted, vcpu.start)
    assert built.td.signal_msi(INTERRUPT_VECTOR) == 1
    assert isinstance(running.stop(), InterruptedExit)
    # The next run returns with the guest's answer if the interrupt has ended the halt.
    assert isinstance(once(vcpu, halted, vcpu.start).stop(), InterruptedExit)
    vcpu.nmi()
    assert isinstance(vcpu.run(), ShutdownExit)


def test_kick_that_comes_before_the_guest_halts_ends_that_halt_and_no_other(launch: Launch) -> None:
    built = launch("execute")
    guest, (vcpu,) = Executor(built), built.vcpus
    halt = vmcall(HLT, r12=BLOCKED)
    for _ in range(2):
        guest.run([vmcall(0, number=KICK_CPU, r12=vcpu.id), halt])
    guest.begin([halt])
    assert isinstance(once(vcpu, halted, vcpu.start).stop(), InterruptedExit)


@pytest.mark.parametrize("ident", [0, 255, 300])
def test_ipi_by_a_hypercall_reaches_the_vcpus_that_it_names(
    ident: int, owner: Worker, payloads: Mapping[str, bytes], tdx_cleanup: ExitStack
) -> None:
    """Those of a bitmap that begins at any APIC id; KVM returns to how many it went."""
    built = tdx_cleanup.enter_context(Assembly(owner)).create().init().create_vcpus(first=ident)
    built.initialize_vcpus().populate(Region.firmware(payloads["vmcall"])).finalize()
    mailbox = Mailbox(built)
    assert mailbox.call(Registers(r11=WRMSR, r12=X2APIC_SPIV, r13=APIC_ENABLED)).r10 == 0

    def ipi(bitmap: int, first: int) -> int:
        return mailbox.call(Registers(r10=SEND_IPI, r11=bitmap, r13=first, r14=INTERRUPT_VECTOR)).r10

    assert [ipi(1, ident), ipi(2, ident), ipi(1, ident + 1)] == [1, 0, 0]
    if ident:
        assert ipi(2, ident - 1) == 1


def test_deadline_that_was_taken_back_does_not_come(launch: Launch) -> None:
    built = launch("execute")
    guest = Executor(built)
    khz = built.td.get_tsc_khz()
    deadline = timer.arm(guest, Mode.DEADLINE, INTERRUPT_VECTOR, ns=DEADLINE_NS, tsc_khz=khz)
    timer.write(guest, {timer.TSC_DEADLINE: 0})
    until(lambda: timer.tsc(guest) > deadline, "the deadline to pass")
    assert not timer.has_come(guest, INTERRUPT_VECTOR)


def test_vcpu_that_halts_is_not_waited_for_busily_if_user_space_says_so(
    launch: Launch, tdx_host: TdxHost, tdx_cleanup: ExitStack
) -> None:
    """KVM_CAP_HALT_POLL: a VM's own limit, 0 too, goes before that of the module."""
    files = tdx_host.agent.files
    before = files.read_text(HALT_POLL_NS)
    tdx_cleanup.callback(files.write, HALT_POLL_NS, before)
    files.write(HALT_POLL_NS, str(A_SECOND))

    def polls(*limit: int) -> int:
        built = launch("interrupt")
        for ns in limit:
            built.td.enable_cap(Cap.HALT_POLL, ns)
        (vcpu,) = built.vcpus
        ready(vcpu)
        for _ in range(3):
            running = once(vcpu, halted, vcpu.start)
            built.td.signal_msi(INTERRUPT_VECTOR)
            output.number_of(running.result())
        with vcpu.stats_fd() as stats:
            return stats.read()["halt_attempted_poll"][0]

    assert polls() > 0
    assert polls(0) == 0


@pytest.mark.parametrize("raise_by", BY)
def test_each_vector_arrives_exactly_once_and_the_highest_first(raise_by: str, launch: Launch) -> None:
    built = launch("vectors")
    (vcpu,) = built.vcpus
    assert output.numbers(vcpu, 1) == [INTERRUPTS_READY]
    interrupts: Raise = BY[raise_by](built.td)
    for _ in range(2):
        interrupts()
        assert arrived(vcpu) == sorted(VECTORS, reverse=True)
        assert isinstance(once(vcpu, halted, vcpu.start).stop(), InterruptedExit)


def test_guest_is_interrupted_when_its_quote_is_done(launch: Launch) -> None:
    """The test is the user space that KVM asks, for the vector and for quotes."""
    built = launch("quote")
    (vcpu,) = built.vcpus
    memory = Memory.map(built.worker, PAGE_SIZE)
    built.td.set_slot(MemorySlot(built.free_slot, QUOTE_GPA, PAGE_SIZE, memory.address))
    asked = vcpu.run()
    assert isinstance(asked, TdVmCallExit)
    assert asked.number == TdVmCall.SETUP_EVENT_NOTIFY_INTERRUPT
    vector = asked.data[0]
    vcpu.answer(asked, ret=0)
    assert output.numbers(vcpu, 1) == [0]
    for count in (1, 2, 3):
        request = vcpu.run()
        assert isinstance(request, TdVmCallExit)
        assert (request.number, request.data[:2]) == (TdVmCall.GET_QUOTE, (QUOTE_GPA, PAGE_SIZE))
        memory.write(QUOTE_STATUS, IN_FLIGHT.to_bytes(8, "little"))
        vcpu.answer(request, ret=0)
        assert output.numbers(vcpu, 1) == [0]
        running = once(vcpu, halted, vcpu.start)
        done = 0x100 + count
        memory.write(QUOTE_STATUS, done.to_bytes(8, "little"))
        assert built.td.signal_msi(vector, dest=vcpu.id) == 1
        assert output.number_of(running.result()) == count
        assert output.numbers(vcpu, 1) == [done]


def test_nmi_reaches_the_guest(launch: Launch) -> None:
    """The payload has no IDT, so any interrupt is a triple fault."""
    (vcpu,) = launch("count").vcpus
    output.numbers(vcpu, 2)
    vcpu.nmi()
    assert isinstance(vcpu.run(), ShutdownExit)


UNDELIVERABLE: dict[str, tuple[Refusal, Callable[[int], Call[None]]]] = {
    "KVM_INTERRUPT": (Refusal.INTERRUPT, lambda fd: commands.interrupt(fd, INTERRUPT_VECTOR)),
    "interrupt": (
        Refusal.EVENT_QUEUED,
        lambda fd: commands.set_vcpu_events(
            fd, VcpuEvents(interrupt_injected=1, interrupt_nr=INTERRUPT_VECTOR)
        ),
    ),
    "exception": (
        Refusal.EVENT_QUEUED,
        lambda fd: commands.set_vcpu_events(fd, VcpuEvents(exception_injected=1, exception_nr=13)),
    ),
}


@pytest.mark.tdx_finding(
    "F19", flavours=("upstream",), splat=r"WARNING: arch/x86/kvm/vmx/tdx\.c:\d+ at tdx_vcpu_run\+"
)
@pytest.mark.parametrize(("refusal", "event"), UNDELIVERABLE.values(), ids=UNDELIVERABLE)
def test_event_that_cannot_be_injected_keeps_no_nmi_away(
    refusal: Refusal, event: Callable[[int], Call[None]], launch: Launch, contract: Contract
) -> None:
    """KVM posts interrupts to a TD, and can make an NMI pending, which shuts this payload down; it can inject
    nothing else.
    """
    (vcpu,) = launch("count").vcpus
    output.numbers(vcpu, 2)
    error = errno_of(lambda: vcpu.worker.call(event(vcpu.fd)))
    output.numbers(vcpu, 2)
    vcpu.nmi()
    found = vcpu.run()
    with shows("F19"):
        assert error == contract.errno(refusal)
        assert isinstance(found, ShutdownExit)


def test_nmi_during_the_handler_of_one_waits_for_its_end(launch: Launch) -> None:
    (vcpu,) = launch("nmi").vcpus
    assert output.numbers(vcpu, 1) == [0]
    for count in (1, 2):
        vcpu.nmi()
        assert output.numbers(vcpu, 1) == [1 << 8 | count]
        assert vcpu.pending_nmis() == 0


def test_nmis_that_wait_together_are_one(launch: Launch) -> None:
    """The guest looks after all sources of NMIs in the handler of one (``tdx_inject_nmi``)."""
    (vcpu,) = launch("nmi").vcpus
    assert output.numbers(vcpu, 1) == [0]
    for count in (1, 2):
        vcpu.nmi()
        vcpu.nmi()
        assert output.numbers(vcpu, 1) == [1 << 8 | count]
        assert vcpu.pending_nmis() == 0


def test_events_with_a_pending_nmi_can_be_written_back(launch: Launch) -> None:
    (vcpu,) = launch("nmi").vcpus
    assert output.numbers(vcpu, 1) == [0]
    none = vcpu.worker.call(commands.get_vcpu_events(vcpu.fd))
    vcpu.nmi()
    one = vcpu.worker.call(commands.get_vcpu_events(vcpu.fd))
    assert (none.nmi_pending, one.nmi_pending) == (0, 1)
    for events in (none, one):
        vcpu.worker.call(commands.set_vcpu_events(vcpu.fd, events))
        assert vcpu.pending_nmis() == events.nmi_pending
    assert output.numbers(vcpu, 1) == [1 << 8 | 1]
    assert vcpu.pending_nmis() == 0


def test_nmi_waits_until_the_guest_has_asked_about_a_ve(launch: Launch) -> None:
    """A #VE in the NMI's handler would be a double fault otherwise."""
    (vcpu,) = launch("nmi", rcx=1).vcpus
    assert output.numbers(vcpu, 2) == [0, 1 << 16]
    vcpu.nmi()
    assert output.numbers(vcpu, 2) == [1 << 16, 1 << 8 | 1]
