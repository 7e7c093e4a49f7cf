# SPDX-License-Identifier: GPL-2.0-or-later
"""A nested host that is loaded from a kept state is as good as one that was booted.

Each test starts hosts beside the one that it gets, all of one state.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from fixtures.agent import syscalls
from fixtures.agent.client import Worker
from fixtures.deadline import Deadline
from fixtures.host.base import TdxHost
from fixtures.host.hkids import Hkids
from fixtures.host.nested import NestedHost
from fixtures.kvm.device import Kvm
from fixtures.kvm.many import many_tds

pytestmark = pytest.mark.tdx_needs("snapshot")

URANDOM = "/dev/urandom"
BOOT_ID = "/proc/sys/kernel/random/boot_id"
LISTENING_SSH = re.compile(r":0016 0+:0000 0A ")

Twin = Callable[[], NestedHost]


@pytest.fixture
def twin(tdx_host: TdxHost, tdx_cleanup: ExitStack, tmp_path: Path) -> Twin:
    """A function that loads one more host of the test's host's state."""
    assert isinstance(tdx_host, NestedHost)
    first, number = tdx_host, iter(range(9))

    def start() -> NestedHost:
        host = first.twin(tmp_path / f"twin-{next(number)}")
        tdx_cleanup.callback(host.close)
        host.start()
        host.agent.customs.update(first.agent.customs)
        if not host.resumed:
            pytest.skip("no state of this host is kept (--tdx-fresh-boot, --tdx-qemu-arg, or a full disk)")
        return host

    return start


def random_bytes(host: TdxHost) -> bytes:
    with host.agent.spawn() as worker:
        fd = worker.call(syscalls.open_(URANDOM, 0))
        return worker.call(syscalls.read(fd, 16))


def seconds(host: TdxHost, clock: str) -> float:
    """Read a clock by date(1), the way that a program on the host does."""
    return float(host.agent.files.run("date", clock).stdout)


def test_two_hosts_of_one_state_have_nothing_random_in_common(twin: Twin) -> None:
    hosts = twin(), twin()
    first, second = map(random_bytes, hosts)
    assert first != second
    ids = [host.agent.files.read_text(BOOT_ID).strip() for host in hosts]
    assert len(set(ids)) == 2
    assert ids == [host.facts.boot_id for host in hosts]


def test_clocks_of_a_resumed_host(twin: Twin) -> None:
    """The wall clock is this machine's; the monotonic one goes on where the boot ended, at the right rate."""
    host = twin()
    before = time.time()
    wall = seconds(host, "+%s.%N")
    assert before - 0.2 < wall < time.time() + 0.2
    booted = max(record.microseconds for record in host.agent.files.kmsg()) * 1000
    outer = time.monotonic()
    start = host.agent.call(syscalls.clock())
    assert start > booted
    inner = time.monotonic()
    host.agent.files.run("sleep", "0.5")
    least = time.monotonic() - inner
    elapsed = (host.agent.call(syscalls.clock()) - start) / 1e9
    assert least * 0.98 < elapsed < (time.monotonic() - outer) * 1.02


def test_resumed_host_shows_its_boot_and_nothing_of_another_run(twin: Twin) -> None:
    host = twin()
    log = (host.folder / "serial.log").read_text()
    assert log.startswith("[    0.000000] Linux version") or "\n[    0.000000] Linux version" in log
    assert log.count("tdx-e2e: ready") == 1
    messages = host.agent.files.kmsg()
    assert (messages[0].sequence, messages[0].text[:13]) == (0, "Linux version")
    assert host.boot_splats == host.splats() == ()
    assert host.agent.workers == ()
    assert not LISTENING_SSH.search(host.agent.files.read_text("/proc/net/tcp"))


def test_resumed_host_is_reached_by_its_own_key(tdx_host: TdxHost, twin: Twin) -> None:
    assert isinstance(tdx_host, NestedHost)
    host = twin()
    ours, other = host.ssh_testbed(), tdx_host.ssh_testbed()
    assert ours.hostkey != other.hostkey
    connection = host.ssh()
    try:
        done = connection.run(f"cat {BOOT_ID}", Deadline(20, "a command over SSH"))
    finally:
        connection.close()
    assert done.stdout.strip() == host.facts.boot_id


@pytest.mark.tdx_needs("misc-cgroup")
def test_resumed_host_is_restored_in_place(twin: Twin) -> None:
    host = twin()
    with host.agent.spawn() as owner:
        many_tds(Kvm.open(owner), 1)
        assert Hkids(host).in_use == 1
        host.restore()
    assert Hkids(host).in_use == 0
    with host.agent.spawn() as worker:
        assert isinstance(worker, Worker)
        many_tds(Kvm.open(worker), 1)[0].close()
    assert host.splats() == ()
