# SPDX-License-Identifier: GPL-2.0-or-later
"""TDs in a cgroup with a quota of CPU time (``cpu.max``): slower, and otherwise as any.

A vCPU is throttled on the way back to the guest, as another task on its way to user space
(``throttle_cfs_rq_work`` in kernel/sched/fair.c, ``xfer_to_guest_mode_work`` in kernel/entry/virt.c).
"""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from fixtures.agent.client import Worker
from fixtures.cgroup import PERIOD_US, Cgroup
from fixtures.deadline import until
from fixtures.guests import output, ticks
from fixtures.guests.launch import Launch
from fixtures.guests.linux import LinuxFiles
from fixtures.guests.linux_td import LinuxTd
from fixtures.guests.moving import moved
from fixtures.guests.qemu_tds import QemuTds
from fixtures.guests.running import inside, once
from fixtures.guests.typed import counts
from fixtures.host.base import TdxHost
from fixtures.host.hkids import Hkids
from fixtures.kvm.move import move_from, prepare_destination

pytestmark = pytest.mark.tdx_needs("misc-cgroup")

HZ = 20
PERIODS = 5
PERCENT, LITTLE_PERCENT = 25, 10
"""Of one CPU.  With the second a QEMU takes half a minute to start, with the first a Linux minutes."""
QUOTA_US = PERIOD_US * PERCENT // 100
TICKS_US = 8_000
"""What the tasks may use beyond their quota until a tick notices; the next periods have it less."""


@pytest.fixture
def member(tdx_host: TdxHost, tdx_quota: Cgroup, tdx_cleanup: ExitStack) -> Worker:
    """A process in the cgroup."""
    return tdx_cleanup.enter_context(tdx_host.agent.spawn(cgroup=tdx_quota.path))


def test_vcpu_that_never_exits_gets_no_more_time_than_the_quota(
    launch: Launch, member: Worker, tdx_quota: Cgroup
) -> None:
    built = launch("spin", owner=member)
    vcpu = built.vcpus[0]
    output.numbers(vcpu, 1)
    tdx_quota.set_quota(PERCENT)
    running = once(vcpu, inside, vcpu.start)
    before = tdx_quota.cpu_time
    until(lambda: tdx_quota.cpu_time.periods >= before.periods + PERIODS, "the quota to be given anew")
    after = tdx_quota.cpu_time
    assert not running.done()
    assert after.throttled - before.throttled >= PERIODS - 1
    periods = after.periods - before.periods
    assert after.used_us - before.used_us <= (periods + 1) * QUOTA_US + TICKS_US
    running.stop()


@pytest.mark.tdx_offers("move")
@pytest.mark.usefixtures("td_move")
def test_starts_counts_and_moves(
    launch: Launch, member: Worker, tdx_quota: Cgroup, hkids: Hkids, tdx_cleanup: ExitStack
) -> None:
    tdx_quota.set_quota(PERCENT)
    source = launch("count", owner=member)
    counted = output.numbers(source.vcpus[0], 4)
    source.vcpus[0].complete()
    destination = tdx_cleanup.enter_context(prepare_destination(source))
    move_from(source, to=destination)
    assert hkids.taken == tdx_quota.current == 1
    counted += output.numbers(destination.vcpus[0], 4)
    assert [value & 0xFF for value in counted] == [1, 1, 2, 2, 3, 3, 4, 4]
    source.close()
    destination.close()
    assert hkids.taken == tdx_quota.current == 0
    assert tdx_quota.cpu_time.throttled


@pytest.mark.slow
@pytest.mark.tdx_offers("move")
@pytest.mark.usefixtures("td_move")
def test_qemu_starts_counts_and_moves(
    movable_tds: QemuTds, member: Worker, tdx_quota: Cgroup, hkids: Hkids
) -> None:
    tdx_quota.set_quota(LITTLE_PERCENT)
    source = movable_tds.run(member)
    counted = [counts(source)[0]]
    destination = moved(source, movable_tds.destination(source, member))
    assert source.quit() == 0
    assert hkids.taken == tdx_quota.current == 1
    counted.append(counts(destination)[0])
    assert counted == [1, 2]
    assert destination.quit() == 0
    assert hkids.taken == tdx_quota.current == 0
    assert tdx_quota.cpu_time.throttled


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.tdx_offers("move")
@pytest.mark.usefixtures("td_move")
def test_linux_counts_and_moves(
    movable_tds: QemuTds, linux: LinuxFiles, member: Worker, tdx_quota: Cgroup, hkids: Hkids
) -> None:
    """It boots before there is a quota; then no CPU's timer loses a step, and its kernel reports no stall."""
    with LinuxTd(movable_tds, linux, firmware=linux.small_firmware, worker=member) as guest:
        guest.await_user_space()
        tdx_quota.set_quota(PERCENT)
        tick = guest.start(f"tick {HZ}")
        tick.wait_lines(4)
        guest.move(member)
        assert hkids.taken == tdx_quota.current == 1
        tick.wait_lines(len(tick.lines) + 4)
        of_cpus = ticks.stop(tick)
        assert [one.cpu for one in of_cpus] == [0, 1]
        assert all(one.is_whole(HZ) for one in of_cpus), of_cpus
        assert guest.complaints() == []
        assert tdx_quota.cpu_time.throttled
        assert guest.power_off() == 0
    assert hkids.taken == tdx_quota.current == 0
