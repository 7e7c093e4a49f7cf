# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's Linux boots in a TD made by a real QEMU, and finds what the TD was given.

Its firmware is Debian's OVMF, or the small one of images/firmware, which boots faster.  Sources in Linux:
arch/x86/coco/tdx/tdx.c, arch/x86/kernel/cpu/topology_common.c.
"""

from __future__ import annotations

import re
import struct
import time
from dataclasses import dataclass
from typing import Any

import pytest

from fixtures.deadline import Deadline
from fixtures.findings import shows
from fixtures.guests import ticks
from fixtures.guests.linux import LinuxFiles
from fixtures.guests.linux_td import GuestFailed, LinuxTd
from fixtures.guests.qemu_tds import QemuTds
from fixtures.host.hkids import Hkids
from fixtures.kvm.abi import Cap
from fixtures.kvm.device import Kvm
from fixtures.qemu.td_command import FIXED_CLOCK
from fixtures.record.schema import Measure

pytestmark = [pytest.mark.tdx_needs("misc-cgroup"), pytest.mark.timeout(400)]

NO_COUNT = pytest.mark.tdx_finding("Q13", qemu=("11.1",))
EARLY = "earlyprintk=ttyS0"
"""Prints what goes wrong before there is a console."""
SIGNATURE = b"IntelTDX    "
HZ = 20
TICK = 0.02
"""Seconds by which /proc/uptime is rounded, twice."""

RESERVED_KIB = 24 << 10
"""At most so much memory a firmware keeps for itself."""


@pytest.mark.parametrize(
    ("firmware", "memory_mib", "clock"),
    [
        # No multiple of the 2 MiB in which memory is accepted.
        pytest.param("small_firmware", 161, {}, id="small"),
        # Not the host's rate: each RDTSC is an exit.
        pytest.param("open_firmware", 257, {"cpu": FIXED_CLOCK}, id="ovmf", marks=pytest.mark.slow),
    ],
)
def test_guest_finds_what_it_was_given(
    firmware: str,
    memory_mib: int,
    clock: dict[str, str],
    hkids: Hkids,
    qemu_tds: QemuTds,
    linux: LinuxFiles,
    figure: Measure,
) -> None:
    given: dict[str, Any] = {"smp": "2", "memory_mib": memory_mib, **clock}
    with LinuxTd(qemu_tds, linux, firmware=getattr(linux, firmware), **given) as guest:
        guest.await_user_space()
        begin = read_clock(guest)
        figure("time until user space", begin.guest, "s")
        log = guest.run("dmesg")
        leaves = guest.run("cpuid")

        assert any(re.search(r"tdx: Guest detected$", line) for line in log)
        assert any(re.search(r"Memory Encryption Features active: Intel TDX$", line) for line in log)
        assert signature(leaves) == SIGNATURE

        assert topology(guest) == [(0, 0, [0, 1]), (0, 1, [0, 1])]
        assert 0 <= (memory_mib << 10) - found_kib(log) < RESERVED_KIB

        assert guest.qemu.spec.cpu == f"host,tsc-frequency={frequency(leaves)}"
        end = read_clock(guest)
        assert end.before - begin.after - TICK < end.guest - begin.guest < end.after - begin.before + TICK

        assert guest.complaints() == []
        assert hkids.taken == 1
        assert guest.power_off() == 0
    assert hkids.taken == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("smp", "expected"),
    [
        pytest.param("1", [(0, 0, [0])], id="one"),
        pytest.param("2,sockets=2,cores=1", [(0, 0, [0]), (1, 0, [1])], id="two-sockets"),
    ],
)
@NO_COUNT
def test_cpu_is_alone_in_its_package(
    smp: str, expected: list[tuple[int, int, list[int]]], qemu_tds: QemuTds, linux: LinuxFiles
) -> None:
    with (
        LinuxTd(qemu_tds, linux, firmware=linux.small_firmware, smp=smp, append=EARLY) as guest,
        shows("Q13", GuestFailed, match="Attempted to kill the idle task"),
    ):
        guest.await_user_space(again=False)
        assert topology(guest) == expected
        assert guest.complaints() == []


@pytest.mark.slow
@pytest.mark.tdx_host(cpus=4)
@pytest.mark.parametrize("sockets", [1, 2])
def test_as_many_cpus_as_a_td_can_have_come_up(
    sockets: int, kvm: Kvm, hkids: Hkids, qemu_tds: QemuTds, linux: LinuxFiles
) -> None:
    with kvm.create_td() as td:
        cores = td.check_extension(Cap.MAX_VCPUS) // sockets
    smp = f"{sockets * cores},sockets={sockets},cores={cores}"
    packages = [list(range(first, first + cores)) for first in range(0, sockets * cores, cores)]
    with LinuxTd(qemu_tds, linux, firmware=linux.small_firmware, smp=smp) as guest:
        guest.await_user_space()
        assert topology(guest) == [
            (package, core, cpus) for package, cpus in enumerate(packages) for core in range(cores)
        ]
        assert guest.complaints() == []
        assert guest.power_off() == 0
    assert hkids.taken == 0


@pytest.mark.slow
def test_timers_work_without_a_tsc_deadline(qemu_tds: QemuTds, linux: LinuxFiles) -> None:
    cpu = f"{FIXED_CLOCK},-tsc-deadline"
    with LinuxTd(qemu_tds, linux, firmware=linux.small_firmware, cpu=cpu) as guest:
        guest.await_user_space()
        assert not [line for line in guest.run("cat /proc/cpuinfo") if "tsc_deadline_timer" in line]
        tick = guest.start(f"tick {HZ}")
        tick.wait_lines(4)
        found = ticks.stop(tick)
        assert [one.cpu for one in found] == [0, 1]
        assert all(one.is_whole(HZ) for one in found), found
        assert guest.complaints() == []
        assert guest.power_off() == 0


@pytest.mark.slow
@pytest.mark.tdx_host(memory_mib=6656)
@pytest.mark.parametrize("memory_mib", [512, 1536 + 1, 2048, 3072, 5120])
@pytest.mark.parametrize("firmware", ["small_firmware", "open_firmware"], ids=["small", "ovmf"])
def test_guest_has_its_memory_below_and_above_the_hole(
    firmware: str, memory_mib: int, hkids: Hkids, qemu_tds: QemuTds, linux: LinuxFiles
) -> None:
    """Of less than 2,816 MiB all is below 4 GiB; of more, what is beyond the first 2,048 begins there."""
    with LinuxTd(qemu_tds, linux, firmware=getattr(linux, firmware), memory_mib=memory_mib) as guest:
        guest.await_user_space()
        log = guest.run("dmesg")
        assert 0 <= (memory_mib << 10) - found_kib(log) < RESERVED_KIB
        assert above_4_gib(log) == (memory_mib - 2048 if memory_mib >= 2816 else 0) << 20
        assert guest.complaints() == []
        assert guest.power_off() == 0
    assert hkids.taken == 0


@pytest.mark.slow
def test_firmware_with_secure_boot_refuses_a_kernel_that_nobody_verified(
    hkids: Hkids, qemu_tds: QemuTds, linux: LinuxFiles
) -> None:
    with LinuxTd(qemu_tds, linux, firmware=linux.firmware) as guest:
        deadline = Deadline(120, "what the firmware says of the kernel")
        guest.qemu.console.wait_for("Secure boot image verification failed", deadline)
        assert guest.qemu.status == "running"
        assert guest.qemu.quit() == 0
    assert hkids.taken == 0


def signature(leaves: list[str]) -> bytes:
    """Return the text of CPUID leaf 0x21 in the output of ``cpuid``, or nothing."""
    for line in leaves:
        leaf, _, _, ebx, ecx, edx = (line.split() + [""] * 6)[:6]
        if leaf == "00000021":
            return struct.pack("<3I", *(int(word, 16) for word in (ebx, edx, ecx)))
    return b""


def frequency(leaves: list[str]) -> int:
    """Return the TSC's frequency in Hz that CPUID gives, in the output of ``cpuid``."""
    (found,) = (line.split()[2] for line in leaves if line.startswith("tsc cpuid "))
    return int(found)


@dataclass(frozen=True)
class Reading:
    """The guest's clock, and the test's before and after it was read, in seconds."""

    before: float
    guest: float
    after: float


def read_clock(guest: LinuxTd) -> Reading:
    """Return the time since the guest's boot, which it measures with its TSC."""
    before = time.monotonic()
    (line,) = guest.run("cat /proc/uptime")
    return Reading(before, float(line.split()[0]), time.monotonic())


def found_kib(log: list[str]) -> int:
    """Return how much memory Linux says that it found."""
    (found,) = (match[1] for line in log if (match := re.search(r"Memory: \d+K/(\d+)K available", line)))
    return int(found)


def above_4_gib(log: list[str]) -> int:
    """Return how many bytes of memory the firmware reports at 4 GiB."""
    expression = re.compile(r"BIOS-e820: \[mem 0x0*(100000000)-0x([0-9a-f]+)\] usable")
    ends = [int(match[2], 16) + 1 for line in log if (match := expression.search(line))]
    return sum(end - (4 << 30) for end in ends)


def topology(guest: LinuxTd) -> list[tuple[int, int, list[int]]]:
    """Return package, core and the CPUs of the package for each CPU."""
    command = "cat physical_package_id core_id package_cpus_list | tr '\\n' ' '"
    lines = guest.run(
        f"for cpu in /sys/devices/system/cpu/cpu[0-9]*/topology; do cd $cpu; {command}; echo; done"
    )
    return [parse_topology(line) for line in lines]


def parse_topology(line: str) -> tuple[int, int, list[int]]:
    package, core, listed = line.split()
    first, _, last = listed.partition("-")
    return int(package), int(core), list(range(int(first), int(last or first) + 1))
