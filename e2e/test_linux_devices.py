# SPDX-License-Identifier: GPL-2.0-or-later
"""Devices of a Linux in a TD: data are whole while memory goes to the host and comes back."""

from __future__ import annotations

import os
import signal
import time
from hashlib import sha256

import pytest

from fixtures.agent.client import Worker
from fixtures.guests import diskwork, ticks
from fixtures.guests.linux import LinuxFiles
from fixtures.guests.linux_devices import Disk, Sockets, Tap
from fixtures.guests.linux_td import LinuxTd
from fixtures.guests.qemu_tds import QemuTds
from fixtures.host.base import Capability, TdxHost
from fixtures.host.hkids import Hkids
from fixtures.softseam.truth import Truth

pytestmark = [pytest.mark.tdx_needs("misc-cgroup"), pytest.mark.slow, pytest.mark.timeout(600)]

HZ = 20
WORKED_ON = 64
"""Blocks of the disk that ``diskwork`` overwrites; the host's come behind them."""

ROUNDS, PIECE = 5, 64 * diskwork.BLOCK


def conversions(host: TdxHost) -> tuple[int, int] | None:
    """Return how many pages TDs have given to the host and have received from it so far.

    None where the TDX module's tables cannot be read.
    """
    if Capability.GROUND_TRUTH not in host.capabilities:
        return None
    leaves = Truth(host.agent).leaves()
    return leaves["TDH.MEM.PAGE.REMOVE"].calls, leaves["TDH.MEM.PAGE.AUG"].calls


def test_data_of_disk_network_and_sockets_are_whole_while_memory_is_converted(
    hkids: Hkids,
    tdx_host: TdxHost,
    owner: Worker,
    qemu_tds: QemuTds,
    linux: LinuxFiles,
    tap: Tap,
    sockets: Sockets,
) -> None:
    of_host = os.urandom(ROUNDS * PIECE)
    disk = Disk(owner, bytes(WORKED_ON * diskwork.BLOCK) + of_host)
    args = (*disk.args, *tap.args, *sockets.args, "-device", "virtio-rng-pci")
    with LinuxTd(qemu_tds, linux, firmware=linux.small_firmware, extra_args=args) as guest:
        guest.await_user_space()
        tap.connect(guest)
        sockets.connect(guest)
        before, begun = conversions(tdx_host), time.monotonic()
        names = (f"diskwork /dev/vda {WORKED_ON}", "convert", f"tick {HZ}")
        works = work, convert, tick = [guest.start(name) for name in names]
        tick.wait_lines(2)
        first_second = time.monotonic()
        for number in range(ROUNDS):
            data = os.urandom(PIECE)
            assert tap.echo(data) == data
            assert sockets.echo(data) == data
            skip, count = WORKED_ON + number * PIECE // diskwork.BLOCK, PIECE // diskwork.BLOCK
            read = f"dd if=/dev/vda bs={diskwork.BLOCK} skip={skip} count={count} 2>/dev/null | sha256sum"
            assert guest.run(read)[0].split()[0] == sha256(of_host[number * PIECE :][:PIECE]).hexdigest()
        assert "0% packet loss" in " ".join(guest.run(f"ping -c 5 {tap.HOST}"))
        stopped = time.monotonic()
        for program in works:
            program.signal(signal.SIGTERM)
        assert [program.wait() for program in works] == [0, 0, 0]
        ended = time.monotonic()

        written = diskwork.total(work.lines)
        assert written > WORKED_ON
        assert diskwork.wrong_blocks(disk.read(WORKED_ON * diskwork.BLOCK), written) == []

        rounds = int(convert.lines[-1].removeprefix("total rounds "))
        assert rounds > 0
        if before and (after := conversions(tdx_host)):
            given, received = after[0] - before[0], after[1] - before[1]
            assert min(given, received) >= rounds

        of_cpus = ticks.totals(tick.lines)
        assert [one.cpu for one in of_cpus] == [0, 1]
        assert all(one.is_whole(HZ) for one in of_cpus), of_cpus
        # The guest's clock is as fast as the host's.
        for one in of_cpus:
            assert stopped - first_second < one.elapsed / 1e6 < ended - begun

        assert guest.complaints() == []
        assert hkids.taken == 1
        assert guest.power_off() == 0
    assert hkids.taken == 0
