# SPDX-License-Identifier: GPL-2.0-or-later
"""The firmware of ``images/firmware``, with which a TD starts the kernel of QEMU's ``-kernel`` at once."""

from __future__ import annotations

import pytest

from fixtures.guests.linux import LinuxFiles
from fixtures.guests.linux_td import LinuxTd
from fixtures.guests.qemu_tds import QemuTds
from fixtures.host.hkids import Hkids
from fixtures.kvm.abi import PAGE_SIZE
from fixtures.qemu.td_command import LinuxSpec

pytestmark = [pytest.mark.tdx_needs("misc-cgroup"), pytest.mark.timeout(400)]

LATER_KIB = 16 << 10
"""Used beyond what is accepted already."""
AT_A_TIME_KIB = 4 << 10
"""What Linux accepts at a time, and counts as unaccepted though half of it is accepted already."""


def memory_kib(guest: LinuxTd) -> dict[str, int]:
    """Return what the guest's kernel reports of its memory: MemFree, Unaccepted…"""
    lines = (line.split() for line in guest.run("cat /proc/meminfo"))
    return {name.rstrip(":"): int(value) for name, value, *_ in lines}


def mapped_kib(guest: LinuxTd) -> int:
    """Return how much of the guest's memory KVM has mapped in small pages."""
    (vm,) = guest.qemu.execute("query-stats", target="vm")
    (found,) = (one["value"] for one in vm["stats"] if one["name"] == "pages_4k")
    return int(found) * PAGE_SIZE >> 10


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (False, "there is no kernel: QEMU was started without -kernel"),
        (True, "not enough memory for the kernel"),
    ],
    ids=["no-kernel", "little-memory"],
)
def test_what_it_cannot_do_is_a_fatal_error_with_the_reason(
    kernel: bool, message: str, hkids: Hkids, qemu_tds: QemuTds, linux: LinuxFiles
) -> None:
    direct = LinuxSpec(linux.kernel, linux.initrd) if kernel else None
    td = qemu_tds.start(firmware=linux.small_firmware, memory_mib=64, linux=direct)
    # It can end before a monitor that begins with it has answered.
    td.execute("cont")
    info = td.await_event("GUEST_PANICKED")["data"]["info"]
    assert info == {"type": "tdx", "error-code": 1 << 16, "message": message}
    assert td.wait() == 0
    assert hkids.taken == 0


@pytest.mark.slow
def test_it_accepts_all_memory_if_the_command_line_asks_for_that(
    qemu_tds: QemuTds, linux: LinuxFiles
) -> None:
    with LinuxTd(
        qemu_tds, linux, firmware=linux.small_firmware, memory_mib=161, append="accept_memory=eager"
    ) as guest:
        guest.await_user_space()
        assert memory_kib(guest)["Unaccepted"] == 0
        assert not [line for line in guest.run("dmesg") if "efi: " in line]


@pytest.mark.slow
def test_it_leaves_memory_to_be_accepted_when_it_is_used(qemu_tds: QemuTds, linux: LinuxFiles) -> None:
    """Linux accepts early what may be unmovable: nearly all, unless the command line limits that."""
    with LinuxTd(qemu_tds, linux, firmware=linux.small_firmware, append="kernelcore=64M") as guest:
        guest.await_user_space()
        before, mapped = memory_kib(guest), mapped_kib(guest)
        assert before["Unaccepted"] > LATER_KIB
        used = before["MemFree"] - before["Unaccepted"] + LATER_KIB
        guest.run(f"head -c {used << 10} /dev/zero > /tmp/used", seconds=120)
        accepted = before["Unaccepted"] - memory_kib(guest)["Unaccepted"]
        assert accepted >= LATER_KIB
        assert abs(mapped_kib(guest) - mapped - accepted) <= 2 * AT_A_TIME_KIB
        assert guest.complaints() == []
