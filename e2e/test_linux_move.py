# SPDX-License-Identifier: GPL-2.0-or-later
"""``migrate`` over QMP moves a TD in which Linux works, and Linux notices nothing but the downtime.

The guest is Debian's kernel under Debian's OVMF (images/guests).  It writes to its disk, converts memory
between private and shared, runs a timer on each CPU, and talks over a connection, while it is moved.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from fixtures.agent.client import Worker
from fixtures.guests.linux import LinuxFiles
from fixtures.guests.linux_td import LinuxTd
from fixtures.guests.network import ECHO_PORT, GUEST, HOST, PREFIX, Network
from fixtures.guests.qemu_tds import QemuTds
from fixtures.guests.ticks import totals
from fixtures.host.base import TdxHost
from fixtures.host.hkids import Hkids
from fixtures.kvm.device import Kvm
from fixtures.kvm.many import many_tds
from fixtures.record.schema import Measure

pytestmark = [
    pytest.mark.tdx_offers("move"),
    pytest.mark.usefixtures("td_move"),
    pytest.mark.tdx_needs("misc-cgroup"),
    pytest.mark.timeout(900),
]

HZ = 20
REPLY = re.compile(r"seq=(\d+) ttl=\d+ time=([\d.]+) ms")
LARGE = 1 << 20
"""Bytes; more than the buffers of a socket take at once."""
SLACK_MS = 4000
"""How much longer than QEMU's downtime a timer may be late on a machine whose CPUs are shared."""


@pytest.fixture
def network(owner: Worker, tdx_cleanup: ExitStack) -> Network:
    """A network between the host and one guest."""
    return tdx_cleanup.enter_context(Network(owner))


@pytest.fixture
def disk(tdx_host: TdxHost) -> Iterator[tuple[str, ...]]:
    """QEMU's options for a disk of 16 MiB."""
    path = "/tmp/tdx-e2e-linux.img"
    tdx_host.agent.files.run("truncate", "-s", "16M", path)
    backend = ("-blockdev", f"driver=raw,node-name=disk,file.driver=file,file.filename={path}")
    yield *backend, "-device", "virtio-blk-pci,drive=disk"
    tdx_host.agent.files.remove(path)


@pytest.mark.parametrize("moves", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_works_on_through_moves_with_every_hkid_in_use(
    moves: int,
    kvm: Kvm,
    hkids: Hkids,
    movable_tds: QemuTds,
    linux: LinuxFiles,
    network: Network,
    disk: tuple[str, ...],
    figure: Measure,
) -> None:
    rng = ("-device", "virtio-rng-pci")
    with LinuxTd(movable_tds, linux, extra_args=(*disk, *rng, *network.device())) as guest:
        guest.await_user_space()
        many_tds(kvm, hkids.free)
        assert hkids.free == 0
        guest.run(f"ip address add {GUEST}/{PREFIX} dev eth0; ip link set eth0 up")
        connection = guest.start(
            f"(i=0; while :; do i=$((i + 1)); echo $i; usleep 100000; done) | nc {HOST} {ECHO_PORT}"
        )
        pings = guest.start(f"ping -i 0.2 {HOST}")
        blocks, rounds, ticks = (
            guest.start("diskwork /dev/vda"),
            guest.start("convert"),
            guest.start(f"tick {HZ}"),
        )
        downtimes = []
        for _ in range(moves):
            works = connection, pings, blocks, rounds, ticks
            seen = [len(work.lines) for work in works]
            for work, lines in zip(works, seen, strict=True):
                work.wait_lines(lines + 2)
            downtimes.append(guest.move(extra_args=(*disk, *rng, *network.device())))
            assert hkids.free == 0
        for work in (connection, pings, blocks, rounds, ticks):
            work.wait_lines(len(work.lines) + 2)
            work.signal(signal.SIGTERM)
        figure("longest downtime", max(downtimes), "ms")

        # The disk has what was written last, and memory that was converted came back.
        assert (blocks.wait(), rounds.wait(), ticks.wait()) == (0, 0, 0)
        assert blocks.lines[-1].startswith("total written")

        # Every step of each CPU's timer came, late by a downtime at most, and no clock went back.
        of_cpus = totals(ticks.lines)
        assert [total.cpu for total in of_cpus] == [0, 1]
        for total in of_cpus:
            assert total.is_whole(HZ), total
            assert total.longest / 1000 <= max(downtimes) + SLACK_MS, total

        # The connection has lost and repeated nothing; each ping that got a reply got one.
        connection.wait()
        assert connection.lines == [str(step) for step in range(1, len(connection.lines) + 1)]
        echoed = guest.run(f"head -c {LARGE} /dev/zero | nc {HOST} {ECHO_PORT} | wc -c")
        assert echoed == [str(LARGE)]
        replies = [int(found[1]) for line in pings.lines if (found := REPLY.search(line))]
        assert len(set(replies)) == len(replies)

        assert guest.complaints() == []
        assert guest.power_off() == 0
    assert hkids.free == 1


@pytest.mark.slow
def test_reboots_and_powers_off_where_it_was_moved_to(
    hkids: Hkids, movable_tds: QemuTds, linux: LinuxFiles
) -> None:
    with LinuxTd(movable_tds, linux) as guest:
        guest.await_user_space()
        before = guest.run("cat /proc/sys/kernel/random/boot_id")
        guest.move()
        guest.move()
        guest.reboot()
        assert guest.run("cat /proc/sys/kernel/random/boot_id") != before
        assert guest.complaints() == []
        assert hkids.taken == 1
        assert guest.power_off() == 0
    assert hkids.taken == 0
