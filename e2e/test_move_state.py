# SPDX-License-Identifier: GPL-2.0-or-later
"""What moves with a TD: nothing of what KVM knows of its vCPUs and its memory is lost or comes twice.

``tdx_move_td``, ``tdx_move_vcpu`` in arch/x86/kvm/vmx/tdx.c and ``kvm_apic_move_timer`` in
arch/x86/kvm/lapic.c of flavour ``proposed``.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace

import pytest

from e2e.moves import MOVES, count, counted, destination_of
from fixtures.agent import syscalls
from fixtures.agent.client import Worker
from fixtures.cgroup import Cgroup
from fixtures.contracts.answers import refused
from fixtures.contracts.promises import Contract, Refusal
from fixtures.deadline import comes_true, until
from fixtures.errors import HarnessError
from fixtures.guests import output, timer
from fixtures.guests.execute import SHARED_VA, Executor, accept, load, vmcall
from fixtures.guests.ghci import BLOCKED, HLT, KICK_CPU, RDMSR, WRMSR
from fixtures.guests.launch import Launch
from fixtures.guests.output import INTERRUPT_VECTOR, INTERRUPTS_READY
from fixtures.guests.running import halted, once
from fixtures.guests.timer import Mode
from fixtures.host.base import TdxHost
from fixtures.kvm import build, commands
from fixtures.kvm.abi import PAGE_SIZE, MpStateValue
from fixtures.kvm.build import Assembly, Region
from fixtures.kvm.exits import InterruptedExit
from fixtures.kvm.files import StatsFd
from fixtures.kvm.memory import Memory
from fixtures.kvm.move import move_from, prepare_destination
from fixtures.softseam.truth import Truth

pytestmark = MOVES

FIRST, SECOND = 0x61, 0x92
"""Vectors in different registers of the APIC."""
MS = 1_000_000
TIMERS = "/proc/timer_list"
MSR_KVM_POLL_CONTROL, MSR_MTRR_DEF_TYPE = 0x4B564D05, 0x2FF


@dataclass
class Moved:
    """A TD that executes what the test chooses, and changes its VM."""

    built: Assembly
    guest: Executor
    cleanup: ExitStack

    def destination(self) -> Assembly:
        """A destination for it."""
        khz = self.built.td.get_tsc_khz()
        made = self.cleanup.enter_context(
            prepare_destination(self.built, begin=lambda td: td.set_tsc_khz(khz))
        )
        self.guest.prepare(made)
        return made

    def move(self, to: Assembly | None = None) -> Assembly:
        """Complete its last exit and move it."""
        to = to or self.destination()
        self.built.vcpus[0].complete()
        self.built = move_from(self.built, to=to)
        self.guest.moved(self.built)
        return self.built


@pytest.fixture
def td(launch: Launch, tdx_cleanup: ExitStack) -> Moved:
    built = launch("execute")
    return Moved(built, Executor(built), tdx_cleanup)


# registers that KVM emulates


def test_emulated_msrs_are_carried_by_user_space(td: Moved) -> None:
    """KVM moves what nobody else can; these it gives to user space, and takes from it."""
    changed = {MSR_KVM_POLL_CONTROL: 0, MSR_MTRR_DEF_TYPE: 0xC06}
    reads = [vmcall(RDMSR, r12=msr) for msr in changed]
    before = {msr: found["r11"] for msr, found in zip(changed, td.guest.run(reads), strict=True)}
    assert not before.items() & changed.items()
    written = td.guest.run([vmcall(WRMSR, r12=msr, r13=value) for msr, value in changed.items()])
    assert [found["r10"] for found in written] == [0, 0]
    worker = td.built.worker
    kept = worker.call(commands.get_msrs(td.built.vcpus[0].fd, *changed))
    assert kept == changed
    td.move()
    assert worker.call(commands.set_msrs(td.built.vcpus[0].fd, kept)) == len(kept)
    assert [(found["r10"], found["r11"]) for found in td.guest.run(reads)] == [
        (0, value) for value in changed.values()
    ]


# the APIC's timer


def in_modes(*modes: Mode) -> pytest.MarkDecorator:
    """Run a test in these modes of the timer."""
    return pytest.mark.parametrize("mode", modes, ids=lambda mode: mode.name.lower().replace("_", "-"))


def moved_while_the_timer_runs(td: Moved, mode: Mode) -> int:
    """Arm the timer and move the TD before it expires; returns the vector of its interrupt.

    A machine that is too slow for a time gets a longer one: a timer that has expired is another case.
    """
    worker, khz = td.built.worker, td.built.td.get_tsc_khz()
    for attempt, ns in enumerate((100 * MS, 500 * MS, 2_500 * MS)):
        destination = td.destination()
        began = worker.call(syscalls.clock())
        timer.arm(td.guest, mode, FIRST + attempt, ns=ns, tsc_khz=khz)
        td.move(destination)
        if worker.call(syscalls.clock()) < began + ns:
            return FIRST + attempt
    raise HarnessError("a move took longer than 2.5 s", hint="run fewer things at once")


@in_modes(*Mode)
def test_timer_that_runs_goes_on(mode: Mode, td: Moved) -> None:
    vector = moved_while_the_timer_runs(td, mode)
    assert timer.comes(td.guest, vector)
    timer.aim(td.guest, mode, SECOND)
    if mode is Mode.PERIODIC:
        assert timer.comes(td.guest, SECOND)


@pytest.mark.slow
def test_vcpu_that_sleeps_until_its_deadline_wakes_in_the_destination_in_time(td: Moved) -> None:
    """KVM sets an alarm on the TD's TSC, which has gone on for longer than the destination's."""
    khz = td.built.td.get_tsc_khz()
    until(lambda: timer.tsc(td.guest) > 4 * khz * MS // 1000, "the TD to be 4 s old")
    (vcpu,) = td.built.vcpus
    deadline = timer.arm(td.guest, Mode.DEADLINE, FIRST, ns=2000 * MS, tsc_khz=khz)
    td.guest.begin([vmcall(HLT)])
    assert isinstance(once(vcpu, halted, vcpu.start).stop(), InterruptedExit)
    (vcpu,) = td.move().vcpus
    running = once(vcpu, halted, vcpu.start)
    assert comes_true(running.done), "it sleeps on"
    assert output.number_of(running.result())
    assert timer.tsc(td.guest) - deadline < 2 * khz * MS // 1000


@in_modes(*Mode)
def test_timer_runs_on_in_the_source_of_a_move_that_was_refused(
    mode: Mode, td: Moved, tdx_cgroup: Cgroup, contract: Contract
) -> None:
    """The caller's cgroup admits no HKID, which is asked for when all else is right."""
    destination = td.destination()
    tdx_cgroup.set_max(0)
    td.built.worker.enter_cgroup(tdx_cgroup.path)
    timer.arm(td.guest, mode, FIRST, ns=500 * MS, tsc_khz=td.built.td.get_tsc_khz())
    td.built.vcpus[0].complete()
    with refused(contract, Refusal.MOVE_CGROUP_MAX):
        move_from(td.built, to=destination)
    assert timer.comes(td.guest, FIRST)


def test_timer_runs_in_the_destination_only(td: Moved, tdx_host: TdxHost) -> None:
    """The source's would be started anew with each period until its VM is closed."""

    def running() -> int:
        return tdx_host.agent.files.read_text(TIMERS).count("apic_timer_fn")

    timer.arm(td.guest, Mode.PERIODIC, FIRST, ns=1000 * MS, tsc_khz=td.built.td.get_tsc_khz())
    assert running() == 1
    td.move()
    assert running() == 1


@in_modes(Mode.ONE_SHOT, Mode.DEADLINE)
def test_timer_that_has_expired_does_not_expire_again(mode: Mode, td: Moved) -> None:
    timer.arm(td.guest, mode, FIRST, ns=MS, tsc_khz=td.built.td.get_tsc_khz())
    assert timer.comes(td.guest, FIRST)
    timer.aim(td.guest, mode, SECOND)
    td.move()
    assert [timer.has_come(td.guest, SECOND) for _ in range(2)] == [False, False]


@in_modes(*Mode)
def test_timer_that_expires_before_the_move_is_seen_after_it(mode: Mode, td: Moved) -> None:
    """KVM keeps it until the vCPU runs.  A periodic one would be late by a whole period otherwise."""
    destination = td.destination()
    expires_in = 800 * MS if mode is Mode.PERIODIC else MS
    timer.arm(td.guest, mode, FIRST, ns=expires_in, tsc_khz=td.built.td.get_tsc_khz())
    td.built.vcpus[0].complete()
    worker = td.built.worker
    expired = worker.call(syscalls.clock()) + expires_in
    until(lambda: worker.call(syscalls.clock()) > expired, "the timer to expire")
    td.move(destination)
    assert timer.has_come(td.guest, FIRST)
    timer.aim(td.guest, mode, SECOND)
    if mode is Mode.PERIODIC:
        assert timer.comes(td.guest, SECOND)
    else:
        assert [timer.has_come(td.guest, SECOND) for _ in range(2)] == [False, False]


def test_registers_of_the_apic_are_the_same(td: Moved) -> None:
    """Those that KVM emulates: LVTs, the timer's count and divisor."""
    kept = {
        timer.X2APIC_SPIV: 0x1F3,
        timer.X2APIC_LVTT: Mode.ONE_SHOT | FIRST,
        0x833: 0x10041,
        0x834: 0x10042,
        0x835: 0x10043,
        0x836: 0x10044,
        0x837: 0x10045,
        timer.X2APIC_TDCR: 0b1010,
        # With another divisor its 32 bits would show a greater one.
        timer.X2APIC_TMICT: 0x12345678,
    }
    timer.write(td.guest, kept)
    (before,) = timer.read(td.guest, timer.X2APIC_TMCCT)
    td.move()
    values = timer.read(td.guest, *kept)
    assert dict(zip(kept, values, strict=True)) == kept
    (after,) = timer.read(td.guest, timer.X2APIC_TMCCT)
    # It counts down by one in 128 ns, and 10 s are enough for a move.
    assert before - 10_000 * MS // 128 < after < before


@pytest.mark.parametrize("how", ["made-before-init", "made-after-init", "moved"])
def test_deadline_is_that_of_the_tds_own_tsc(
    how: str, owner: Worker, tdx_cleanup: ExitStack, payloads: Mapping[str, bytes]
) -> None:
    """The module rounds the rate of the TSC to 25 MHz, here by a fifth, and lets it begin with the TD."""
    built = tdx_cleanup.enter_context(build.created(owner))
    built.td.set_tsc_khz(124_900)
    if how == "made-before-init":
        built.create_vcpus().init().initialize_vcpus()
    else:
        built.init().add_vcpus()
    built.populate(Region.firmware(payloads["execute"])).finalize()
    td = Moved(built, Executor(built), tdx_cleanup)
    if how == "moved":
        td.move()
    second = 100_000_000
    timer.arm(td.guest, Mode.DEADLINE, FIRST, ns=1, tsc_khz=1)
    assert timer.comes(td.guest, FIRST)
    timer.aim(td.guest, Mode.DEADLINE, SECOND)
    deadline = timer.tsc(td.guest) + second
    expired, now = timer.deadline_and_look(td.guest, SECOND, deadline)
    assert now < deadline, "the test was too slow"
    assert not expired


def test_vcpu_has_the_tsc_offset_of_before_the_move(launch: Launch, tdx_cleanup: ExitStack) -> None:
    source = launch("count", vcpus=2)
    count(source)
    before = [vcpu.tsc_offset() for vcpu in source.vcpus]
    assert all(before)
    moved = move_from(source, to=destination_of(source, tdx_cleanup))
    assert [vcpu.tsc_offset() for vcpu in moved.vcpus] == before


# interrupts


def test_interrupt_by_logical_id_finds_the_vcpu(launch: Launch, tdx_cleanup: ExitStack) -> None:
    source = launch("interrupt")
    assert output.numbers(source.vcpus[0], 2) == [1, INTERRUPTS_READY]
    source.vcpus[0].complete()
    built = move_from(source, to=destination_of(source, tdx_cleanup))
    # The logical id of APIC 0 is bit 0 of cluster 0.
    assert built.td.signal_msi(INTERRUPT_VECTOR, dest=1, logical=True) == 1
    assert output.number_of(built.vcpus[0].run()) == 2


@pytest.mark.parametrize("looked_at", ["", "source", "destination"])
def test_nmi_that_the_guest_has_not_got_yet_is_taken_in_the_destination(
    looked_at: str, launch: Launch, tdx_cleanup: ExitStack
) -> None:
    """KVM_GET_VCPU_EVENTS does itself what makes KVM look for NMIs (``process_nmi``, arch/x86/kvm/x86.c)."""
    source = launch("nmi")
    (vcpu,) = source.vcpus
    assert output.numbers(vcpu, 1) == [0]
    vcpu.complete()
    vcpu.nmi()
    if looked_at == "source":
        assert vcpu.pending_nmis() == 1
    built = move_from(source, to=destination_of(source, tdx_cleanup))
    if looked_at == "destination":
        assert built.vcpus[0].pending_nmis() == 1
    assert output.numbers(built.vcpus[0], 1) == [1 << 8 | 1]


def test_vcpu_that_halts_sleeps_on(launch: Launch, tdx_cleanup: ExitStack) -> None:
    source = launch("interrupt")
    (vcpu,) = source.vcpus
    assert output.numbers(vcpu, 2) == [1, INTERRUPTS_READY]
    assert isinstance(once(vcpu, halted, vcpu.start).stop(), InterruptedExit)
    built = move_from(source, to=destination_of(source, tdx_cleanup))
    (vcpu,) = built.vcpus
    assert vcpu.mp_state() == MpStateValue.HALTED
    running = once(vcpu, halted, vcpu.start)
    assert built.td.signal_msi(INTERRUPT_VECTOR) == 1
    assert output.number_of(running.result()) == 2


def test_vcpu_that_halts_with_its_interrupts_off_is_not_woken_by_one(td: Moved) -> None:
    timer.write(td.guest, {timer.X2APIC_SPIV: 0x1FF})
    (vcpu,) = td.built.vcpus
    td.guest.begin([vmcall(HLT, r12=BLOCKED)])
    running = once(vcpu, halted, vcpu.start)
    assert td.built.td.signal_msi(FIRST) == 1
    assert isinstance(running.stop(), InterruptedExit)
    assert isinstance(once(vcpu, halted, vcpu.start).stop(), InterruptedExit)
    (vcpu,) = td.move().vcpus
    assert isinstance(once(vcpu, halted, vcpu.start).stop(), InterruptedExit)


def test_vcpu_that_was_kicked_does_not_fall_asleep(td: Moved) -> None:
    """A kick is kept until the vCPU halts: Linux's spinlocks rely on it (KVM_FEATURE_PV_UNHALT)."""
    td.guest.run([vmcall(0, number=KICK_CPU, r12=0)])
    (vcpu,) = td.move().vcpus
    td.guest.begin([vmcall(HLT, r12=BLOCKED)])
    with vcpu.stats_fd() as stats:
        running = vcpu.start()
        until(lambda: running.done() or stats.read()["blocking"] == (1,), "the vCPU to halt or to go on")
        assert running.done()


# memory


def accepted(guest: Executor, gpa: int) -> int:
    """Have the guest accept a page; returns the completion code."""
    (found,) = guest.run([accept(gpa)])
    return found["rax"]


def test_memory_can_be_pre_faulted_in_the_destination(launch: Launch, tdx_cleanup: ExitStack) -> None:
    spare = Region(0x100000, 4 * PAGE_SIZE)
    source = launch("count", regions=[spare])
    count(source)
    built = move_from(source, to=destination_of(source, tdx_cleanup))
    assert built.vcpus[0].pre_fault(spare.gpa, spare.size) == 0
    assert count(built) == counted(2)


def test_memory_is_the_sources_again_when_the_destination_is_closed(launch: Launch) -> None:
    spare = Region(0x100000, 2 * PAGE_SIZE)
    source = launch("execute", regions=[spare])
    guest = Executor(source)
    with prepare_destination(source):
        assert accepted(guest, spare.gpa) == 0
    assert accepted(guest, spare.gpa + PAGE_SIZE) == 0


@pytest.mark.tdx_needs("ground-truth")
def test_memory_can_be_taken_from_the_moved_td(
    launch: Launch, tdx_cleanup: ExitStack, truth: Truth, contract: Contract
) -> None:
    """By a hole through the destination's file; whoever has kept the source's cannot."""
    spare = Region(0x100000, 4 * PAGE_SIZE, data=bytes(4 * PAGE_SIZE))
    source = launch("count", regions=[spare])
    count(source)
    built = move_from(source, to=destination_of(source, tdx_cleanup))
    before = private_pages(truth)
    with refused(contract, Refusal.LINK_HOLE):
        source.placed[-1].memfd.punch_hole()
    assert private_pages(truth) == before
    built.placed[-1].memfd.punch_hole()
    assert private_pages(truth) == before - 4
    assert count(built) == counted(2)


def private_pages(truth: Truth) -> int:
    """Number of private pages of all TDs, without those of page tables."""
    return sum(page.count for page in truth.state().pages if page.type == "reg")


@pytest.mark.tdx_host(cpus=2)
def test_attributes_of_memory_are_the_sources_whatever_the_destinations_were(
    launch: Launch, tdx_cleanup: ExitStack
) -> None:
    base = 0x100000
    built = launch("execute", regions=[Region(base, 2 * PAGE_SIZE)])
    td = Moved(built, Executor(built), tdx_cleanup)
    built.td.set_memory_attributes(base + PAGE_SIZE, PAGE_SIZE, private=False)
    built.placed[-1].shared.write(PAGE_SIZE, FIRST.to_bytes(4, "little"))
    destination = td.destination()
    destination.td.set_memory_attributes(base, PAGE_SIZE, private=False)
    destination.td.set_memory_attributes(base + PAGE_SIZE, PAGE_SIZE, private=True)
    td.move(destination)
    assert accepted(td.guest, base) == 0
    (shared,) = td.guest.run([load(SHARED_VA | base + PAGE_SIZE)])
    assert (shared.vector, shared["rax"]) == (None, FIRST)


def pages_of(stats: StatsFd) -> tuple[int, ...]:
    """What KVM says of the pages that are mapped: of 4 KiB, 2 MiB and 1 GiB."""
    found = stats.read()
    return tuple(found[name][0] for name in ("pages_4k", "pages_2m", "pages_1g"))


def test_pages_that_are_mapped_are_counted_where_the_td_is(launch: Launch, tdx_cleanup: ExitStack) -> None:
    td = launch("memory", regions=[Region(0x100000, 16 * PAGE_SIZE)])
    output.numbers(td.vcpus[0], 2)
    td.vcpus[0].complete()
    here = tdx_cleanup.enter_context(td.td.stats_fd())
    mapped = pages_of(here)
    assert mapped[0] > 16
    for _ in range(2):
        destination = destination_of(td, tdx_cleanup)
        there = tdx_cleanup.enter_context(destination.td.stats_fd())
        assert pages_of(there) == (0, 0, 0)
        move_from(td, to=destination)
        assert (pages_of(here), pages_of(there)) == ((0, 0, 0), mapped)
        td, here = destination, there
    td.memfds[-1].punch_hole()
    assert pages_of(here) == (mapped[0] - 16, 0, 0)


def test_pages_that_were_taken_before_the_move_are_not_counted(
    launch: Launch, tdx_cleanup: ExitStack
) -> None:
    td = launch("memory", regions=[Region(0x100000, 16 * PAGE_SIZE)])
    output.numbers(td.vcpus[0], 2)
    td.vcpus[0].complete()
    here = tdx_cleanup.enter_context(td.td.stats_fd())
    (mapped, *_) = pages_of(here)
    td.memfds[-1].punch_hole()
    destination = destination_of(td, tdx_cleanup)
    there = tdx_cleanup.enter_context(destination.td.stats_fd())
    move_from(td, to=destination)
    assert (pages_of(here), pages_of(there)) == ((0, 0, 0), (mapped - 16, 0, 0))


def test_pages_of_shared_memory_are_counted_where_they_are_mapped(td: Moved) -> None:
    """The source still maps those of its process."""
    timer.tsc(td.guest)
    source, destination = td.built, td.destination()
    with source.td.stats_fd() as here, destination.td.stats_fd() as there:
        (total, *_) = pages_of(here)
        td.move(destination)
        (shared, *_), (private, *_) = pages_of(here), pages_of(there)
        assert shared + private == total
        assert shared > 0
        for memfd in destination.memfds:
            memfd.punch_hole()
        assert pages_of(there) == (0, 0, 0)


def test_shared_memory_may_be_at_another_address_of_the_process(
    launch: Launch, tdx_cleanup: ExitStack
) -> None:
    source = launch("count")
    count(source)
    destination = destination_of(source, tdx_cleanup)
    slot = destination.placed[0].slot
    elsewhere = tdx_cleanup.enter_context(Memory.map(destination.worker, slot.size))
    destination.td.delete_slot(slot.slot, slot.gpa)
    destination.td.set_slot(replace(slot, address=elsewhere.address))
    assert count(move_from(source, to=destination)) == counted(2)
