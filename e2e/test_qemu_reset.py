# SPDX-License-Identifier: GPL-2.0-or-later
"""``system_reset`` of a TD: QEMU makes a new VM in the place of the old one.

Sources: ``kvm_reset_vmfd`` in accel/kvm/kvm-all.c and ``tdx_pre_create_vcpu`` in target/i386/kvm/tdx.c of
QEMU 11.1.  The CPU has a fixed clock here, because of finding Q8.
"""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from e2e.findings import F1
from e2e.resets import MAY_CRASH, KickCrash, reset, resets, resetting, resetting_stock
from fixtures.agent import syscalls
from fixtures.cgroup import Cgroup
from fixtures.deadline import Deadline
from fixtures.findings import shows
from fixtures.guests.qemu_td import QemuTd
from fixtures.guests.qemu_tds import QemuTds
from fixtures.guests.quotes import IN_FLIGHT, QuoteService
from fixtures.guests.typed import ask
from fixtures.host.base import TdxHost
from fixtures.host.hkids import Hkids
from fixtures.host.park import parked
from fixtures.kvm.device import Kvm
from fixtures.kvm.many import many_tds
from fixtures.qemu.errors import QmpGone
from fixtures.qemu.td_command import FIXED_CLOCK
from fixtures.softseam.truth import Truth

pytestmark = pytest.mark.tdx_needs("misc-cgroup")

SYS_TGKILL = 234
CLOCK_UNIT = 25_000_000
"""Hz of which a TD's clock is a multiple (TD_PARAMS.TSC_FREQUENCY)."""


@MAY_CRASH
@pytest.mark.parametrize("vcpus", [1, 2])
def test_td_is_the_same_again(vcpus: int, hkids: Hkids, qemu_tds: QemuTds) -> None:
    td = qemu_tds.start(cpu=FIXED_CLOCK, smp=str(vcpus))
    for _ in range(2):
        with resetting_stock(td):
            reset(td)
        assert hkids.taken == 1
        assert td.status == "prelaunch"
        assert len(td.execute("query-cpus-fast")) == vcpus
    assert td.quit() == 0
    assert hkids.taken == 0


@MAY_CRASH
@pytest.mark.tdx_needs("ground-truth")
def test_it_is_another_td_for_the_module_and_the_old_one_is_gone(qemu_tds: QemuTds, truth: Truth) -> None:
    td = qemu_tds.start(cpu=FIXED_CLOCK)
    (before,) = truth.tds()
    with resetting_stock(td):
        reset(td)
    (after,) = truth.tds()
    assert after.op == before.op == "runnable"
    assert after.hkid != before.hkid
    assert (after.attributes, after.xfam, after.vcpus) == (before.attributes, before.xfam, before.vcpus)


@MAY_CRASH
@pytest.mark.tdx_finding("Q18", qemu=("11.1",))
def test_td_is_reset_after_somebody_has_asked_what_a_td_can_be_told(hkids: Hkids, qemu_tds: QemuTds) -> None:
    """QEMU makes an object of the type to answer, which is no guest."""
    td = qemu_tds.start(cpu=FIXED_CLOCK)
    told = td.execute("qom-list-properties", typename="tdx-guest")
    assert "quote-generation-socket" in {one["name"] for one in told}
    with shows("Q18", match="QEMU ended with status -"), resetting_stock(td):
        reset(td)
    assert td.status == "prelaunch"
    assert hkids.taken == 1


@MAY_CRASH
@pytest.mark.tdx_finding("Q7", qemu=("11.1",))
def test_never_has_two_hkids(
    tdx_host: TdxHost, tdx_cgroup: Cgroup, tdx_cleanup: ExitStack, qemu_tds: QemuTds
) -> None:
    worker = tdx_cleanup.enter_context(tdx_host.agent.spawn(cgroup=tdx_cgroup.path))
    td = qemu_tds.start(worker, cpu=FIXED_CLOCK)
    with resetting_stock(td):
        reset(td)
    assert tdx_cgroup.current == 1
    with shows("Q7"):
        assert tdx_cgroup.peak == 1


@pytest.mark.tdx_finding("Q7", qemu=("11.1",))
def test_outlives_a_reset_when_no_hkid_is_free(hkids: Hkids, kvm: Kvm, qemu_tds: QemuTds) -> None:
    many_tds(kvm, hkids.free - 1)
    td = qemu_tds.start(cpu=FIXED_CLOCK)
    assert hkids.free == 0
    with shows("Q7", QmpGone):
        reset(td)
    assert td.status == "prelaunch"
    assert hkids.free == 0


@pytest.mark.tdx_finding("Q7", qemu=("11.1",))
@pytest.mark.tdx_finding("F1", **F1, race=True)  # When Q7 provokes it.
def test_outlives_a_reset_at_its_cgroups_limit(
    tdx_host: TdxHost, tdx_cgroup: Cgroup, tdx_cleanup: ExitStack, qemu_tds: QemuTds
) -> None:
    tdx_cgroup.set_max(1)
    worker = tdx_cleanup.enter_context(tdx_host.agent.spawn(cgroup=tdx_cgroup.path))
    td = qemu_tds.start(worker, cpu=FIXED_CLOCK)
    with shows("Q7", QmpGone):
        reset(td)
    assert td.status == "prelaunch"
    assert tdx_cgroup.current == 1


@pytest.mark.tdx_finding("Q8", qemu=("11.1",))
def test_td_that_was_told_no_clock_can_be_reset(hkids: Hkids, qemu_tds: QemuTds) -> None:
    td = qemu_tds.start()
    (cpu,) = td.execute("query-cpus-fast")
    clock = td.execute("qom-get", path=cpu["qom-path"], property="tsc-frequency")
    if clock % CLOCK_UNIT == 0:
        pytest.skip(f"this machine's clock, {clock} Hz, is one that a TD can have; take another machine")
    with shows("Q8", QmpGone):
        reset(td)
    assert td.status == "prelaunch"
    assert hkids.taken == 1


# a vCPU that is kicked while it is made anew


def kicked_while_it_is_made_anew(tds: QemuTds, host: TdxHost) -> None:
    """Reset a TD, and signal its vCPU's thread while QEMU's main thread makes the new vCPU.

    There is no kvm_run then.
    """
    td = tds.start(cpu=FIXED_CLOCK)
    (vcpu,) = td.execute("query-cpus-fast")
    worker, pid, thread = td.program.worker, td.program.pid, vcpu["thread-id"]
    for cpu, task in ((1, pid), (0, thread)):
        worker.call(syscalls.affinity([cpu], thread=task))
    before = resets(td)
    with resetting(td), ThreadPoolExecutor(1) as pool:
        with parked(host, "kvm_arch_vcpu_create", cpu=1) as park:
            # The whole host stands still when the function is reached, so the answer may come later.
            pool.submit(td.execute, "system_reset")
            assert park.reached(lambda: False)
            assert worker.call(syscalls.syscall(SYS_TGKILL, pid, thread, signal.SIGUSR1)).ret == 0
        td.await_event("RESET", which=lambda _: resets(td) > before)
    assert td.status == "prelaunch"


@pytest.mark.tdx_finding("Q11", qemu=("11.1",))
@pytest.mark.tdx_host(cpus=2)
@pytest.mark.tdx_needs("parked-tasks")
def test_vcpu_may_be_kicked_while_it_is_made_anew(qemu_tds: QemuTds, tdx_host: TdxHost) -> None:
    with shows("Q11", KickCrash):
        kicked_while_it_is_made_anew(qemu_tds, tdx_host)


@pytest.mark.tdx_host(cpus=2)
@pytest.mark.tdx_needs("parked-tasks")
def test_vcpu_of_a_movable_td_may_be_kicked_while_it_is_made_anew(
    movable_tds: QemuTds, tdx_host: TdxHost
) -> None:
    kicked_while_it_is_made_anew(movable_tds, tdx_host)


# what the guest before it asked for


@MAY_CRASH
@pytest.mark.tdx_finding("Q12", qemu=("11.1",))
def test_guest_is_not_interrupted_because_the_one_before_the_reset_wanted_it(
    qemu_tds: QemuTds, quotes: QuoteService
) -> None:
    td = qemu_tds.run(**quotes.change)
    assert ask(td, "n") == "notify 0"
    with resetting_stock(td):
        restart(td)
    quotes.ask(td).answer(b"a quote")
    assert ask(td, "w") == "quote 0"
    with shows("Q12"):
        assert ask(td, "i") == "notified 0"


@MAY_CRASH
@pytest.mark.tdx_finding("Q12", qemu=("11.1",))
def test_guest_does_not_get_the_quote_for_which_the_one_before_the_reset_asked(
    qemu_tds: QemuTds, quotes: QuoteService
) -> None:
    td = qemu_tds.run(**quotes.change)
    before = quotes.ask(td)
    with resetting_stock(td):
        restart(td)
    after = quotes.ask(td)
    before.answer(b"the quote of another TD")
    with shows("Q12"):
        assert ask(td, "w") == f"quote {IN_FLIGHT}"
    after.answer(b"a quote")
    assert ask(td, "w") == "quote 0"


def restart(td: QemuTd) -> None:
    """Reset the TD, and wait until its payload is ready again."""
    before = td.console.position
    reset(td)
    td.console.wait_for("^ready", Deadline(10, "the payload after a reset"), since=before)
