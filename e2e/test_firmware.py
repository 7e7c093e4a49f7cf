# SPDX-License-Identifier: GPL-2.0-or-later
"""The firmware of ``images/firmware``, with which a TD starts the kernel of QEMU's ``-kernel`` at once."""

from __future__ import annotations

import pytest

from fixtures.guests.linux import LinuxFiles
from fixtures.guests.linux_td import LinuxTd
from fixtures.guests.qemu_tds import QemuTds
from fixtures.host.hkids import Hkids
from fixtures.qemu.td_command import LinuxSpec

pytestmark = pytest.mark.tdx_needs("misc-cgroup")


def unaccepted_pages(guest: LinuxTd) -> int:
    """Return the number of pages that the guest's kernel has not accepted yet."""
    return int(guest.run("sed -n 's/^nr_unaccepted //p' /proc/vmstat")[0])


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
        assert unaccepted_pages(guest) == 0
        assert not [line for line in guest.run("dmesg") if "efi: " in line]
