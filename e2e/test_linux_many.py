# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux in TDs at a host's limits: every HKID, beside TDs that come and go, on CPUs that go."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from contextlib import ExitStack

import pytest

from fixtures.contracts.promises import Contract, Refusal
from fixtures.guests import ticks
from fixtures.guests.control import GuestCommand
from fixtures.guests.launch import Launch
from fixtures.guests.linux import LinuxFiles
from fixtures.guests.linux_td import LinuxTd
from fixtures.guests.qemu_td import complaints
from fixtures.guests.qemu_tds import QemuTds
from fixtures.host.base import Capability, TdxHost
from fixtures.host.cpus import Cpus
from fixtures.host.hkids import Hkids
from fixtures.kvm.device import Kvm
from fixtures.kvm.many import many_tds
from fixtures.qemu.errors import QemuLaunchFailed
from fixtures.softseam.truth import Truth

pytestmark = [pytest.mark.tdx_needs("misc-cgroup"), pytest.mark.slow, pytest.mark.timeout(900)]

HZ = 20


def assert_counts(tick: GuestCommand, cpus: Sequence[int]) -> None:
    """Stop the guest's timers; each CPU's steps all came or are known to be late, and no clock went back."""
    tick.wait_lines(len(tick.lines) + len(cpus))
    found = ticks.stop(tick)
    assert [one.cpu for one in found] == list(cpus)
    assert all(one.is_whole(HZ) for one in found), found


@pytest.mark.tdx_host(keyids=4)
def test_every_hkid_can_be_a_linux_and_one_more_is_refused(
    hkids: Hkids, qemu_tds: QemuTds, linux: LinuxFiles, contract: Contract, tdx_cleanup: ExitStack
) -> None:
    def start() -> LinuxTd:
        return tdx_cleanup.enter_context(LinuxTd(qemu_tds, linux, firmware=linux.small_firmware))

    guests = [start() for _ in range(hkids.free)]
    assert hkids.free == 0
    with pytest.raises(QemuLaunchFailed) as caught:
        start()
    message = os.strerror(contract.errno(Refusal.INIT_NO_HKID))
    assert any("KVM_TDX_INIT_VM" in one and message in one for one in complaints(caught.value.output))
    for guest in guests:
        guest.await_user_space()
    counting = [guest.start(f"tick {HZ}") for guest in guests]
    assert guests[0].power_off() == 0
    assert hkids.free == 1
    next_one = start()
    assert hkids.free == 0
    next_one.await_user_space()
    for guest, tick in zip(guests[1:], counting[1:], strict=True):
        assert_counts(tick, (0, 1))
        assert guest.complaints() == []
    for guest in (*guests[1:], next_one):
        assert guest.power_off() == 0
    assert hkids.free == hkids.capacity


def test_counts_on_beside_tds_that_are_made_and_killed(
    hkids: Hkids,
    tdx_host: TdxHost,
    qemu_tds: QemuTds,
    linux: LinuxFiles,
    launch: Launch,
) -> None:
    with LinuxTd(qemu_tds, linux, firmware=linux.small_firmware) as guest:
        guest.await_user_space()
        tick = guest.start(f"tick {HZ}")
        for _ in range(5):
            with tdx_host.agent.spawn() as other:
                # A process's death ends its TDs, at whatever they are.
                launch("hello", owner=other)
                many_tds(Kvm.open(other), hkids.free)
                assert hkids.free == 0
            assert hkids.taken == 1
            neighbour = qemu_tds.run()
            assert hkids.taken == 2
            neighbour.program.signal(signal.SIGKILL)
            neighbour.wait()
            assert hkids.taken == 1
        assert_counts(tick, (0, 1))
        assert guest.complaints() == []
        assert guest.power_off() == 0
    assert hkids.taken == 0


@pytest.mark.tdx_needs("cpu-hotplug")
def test_runs_on_when_the_cpu_goes_to_which_its_vcpus_are_pinned(
    hkids: Hkids, tdx_host: TdxHost, hotplug: Cpus, qemu_tds: QemuTds, linux: LinuxFiles
) -> None:
    goes = max(hotplug.all)
    with LinuxTd(qemu_tds, linux, firmware=linux.small_firmware) as guest:
        guest.await_user_space()
        tick = guest.start(f"tick {HZ}")
        for _ in range(3):
            for vcpu in guest.qemu.execute("query-cpus-fast"):
                done = tdx_host.agent.files.run("taskset", "-p", "-c", str(goes), str(vcpu["thread-id"]))
                assert done.returncode == 0, done
            tick.wait_lines(len(tick.lines) + 4)
            assert last_cpus(tdx_host) <= {goes}
            hotplug.offline(goes)
            tick.wait_lines(len(tick.lines) + 4)
            assert goes not in last_cpus(tdx_host)
            hotplug.restore()
        assert_counts(tick, (0, 1))
        assert guest.complaints() == []
        assert hkids.taken == 1
        assert guest.power_off() == 0
    assert hkids.taken == 0


def last_cpus(host: TdxHost) -> set[int]:
    """Return the CPUs with which the TDX module associates vCPUs; none where its tables cannot be read."""
    if Capability.GROUND_TRUTH not in host.capabilities:
        return set()
    return {vcpu.cpu for vcpu in Truth(host.agent).vcpus() if vcpu.cpu is not None}
