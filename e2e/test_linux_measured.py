# SPDX-License-Identifier: GPL-2.0-or-later
"""What a Linux in a TD is measured as: MRTD and RTMRs are those that the host computes from its files."""

from __future__ import annotations

import base64
import gzip
from collections.abc import Callable
from hashlib import sha384

import pytest

from fixtures.agent.client import Worker
from fixtures.guests import eventlog, report, unnamed
from fixtures.guests.linux import LinuxFiles
from fixtures.guests.linux_devices import Disk
from fixtures.guests.linux_td import APPEND, LinuxTd
from fixtures.guests.qemu_tds import QemuTds
from fixtures.guests.report import Report
from fixtures.host.base import TdxHost
from images import api
from images.errors import BuildError

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CCEL = "/sys/firmware/acpi/tables/data/CCEL"
PROVIDER = "mkdir /sys/kernel/config/tsm/report/one && cat /sys/kernel/config/tsm/report/one/provider"
"""What the guest's kernel calls the maker of its reports."""
DATA = bytes(range(64))
FILLER = b"\xf4" * 16
WORD = "tdx_e2e=measured"

RTMR1, RTMR2 = 2, 3
"""Of the boot loader and of the kernel's options, as numbers of the log."""

OPTIONS: dict[str, Callable[[str], bytes]] = {
    "small_firmware": lambda append: append.encode(),
    # The kernel's EFI stub measures what OVMF passes to it.
    "open_firmware": lambda append: f"initrd=initrd {append}\0".encode("utf-16-le"),
}
"""What is measured of a command line, by the firmware."""


def taken(guest: LinuxTd) -> Report:
    """Have the guest take a report of its TD."""
    (line,) = guest.run(f"report {DATA.hex()}")
    return Report.unpack(bytes.fromhex(line))


def logged(guest: LinuxTd) -> list[eventlog.Event]:
    """Read the guest's log of what was measured."""
    assert "CCEL" in guest.run("ls /sys/firmware/acpi/tables")
    return eventlog.events(gzip.decompress(base64.b64decode("".join(guest.run(f"gzip -c {CCEL} | base64")))))


@pytest.mark.parametrize(
    "firmware", [pytest.param("small_firmware", id="small"), pytest.param("open_firmware", id="ovmf")]
)
def test_mrtd_and_rtmrs_are_those_of_what_was_booted(
    firmware: str, tdx_host: TdxHost, qemu_tds: QemuTds, linux: LinuxFiles
) -> None:
    path, initrd = getattr(linux, firmware), tdx_host.agent.files.read(linux.initrd)
    with LinuxTd(qemu_tds, linux, firmware=path, append=WORD) as guest:
        guest.await_user_space()
        found, log = taken(guest), logged(guest)
        assert found.data == DATA
        assert guest.run(PROVIDER) == ["tdx_guest"]
        assert found.mrtd == report.mrtd_of_firmware(tdx_host.agent.files.read(path))
        assert found.rtmrs == eventlog.rtmrs(log)
        assert {RTMR1, RTMR2} <= {event.register for event in log}
        options = OPTIONS[firmware](f"{APPEND} {WORD}")
        assert [event.digest for event in log if event.register == RTMR2] == [
            sha384(options).digest(),
            sha384(initrd).digest(),
        ]
        assert guest.power_off() == 0


def test_another_byte_of_firmware_is_another_mrtd(
    owner: Worker, tdx_host: TdxHost, qemu_tds: QemuTds, linux: LinuxFiles
) -> None:
    image = tdx_host.agent.files.read(linux.small_firmware)
    # Nobody executes what fills the place before the reset vector.
    unused = image.rindex(FILLER)
    changed = image[:unused] + b"\x90" + image[unused + 1 :]
    path = unnamed.path_of(owner, unnamed.file_with(owner, changed))
    with LinuxTd(qemu_tds, linux, firmware=path) as guest:
        guest.await_user_space()
        assert taken(guest).mrtd == report.mrtd_of_firmware(changed) != report.mrtd_of_firmware(image)
        assert guest.power_off() == 0


def test_another_command_line_is_another_rtmr_and_nothing_else(qemu_tds: QemuTds, linux: LinuxFiles) -> None:
    def measured(append: str) -> tuple[bytes, ...]:
        with LinuxTd(qemu_tds, linux, firmware=linux.small_firmware, append=append) as guest:
            guest.await_user_space()
            found = taken(guest)
            assert guest.power_off() == 0
        return (found.mrtd, *found.rtmrs)

    first, second = measured("one"), measured("two")
    differ = [name for name, a, b in zip(("MRTD", 0, 1, 2, 3), first, second, strict=True) if a != b]
    assert differ == [2]


@pytest.fixture
def selftest(owner: Worker) -> Disk:
    """A disk with the kernel's own test of reports; skips the test where no kernel was built."""
    try:
        image = api.ensure_guest_selftest()
    except BuildError as error:
        pytest.skip(str(error))
    return Disk(owner, image.read_bytes())


def test_kernels_own_test_of_reports_passes(selftest: Disk, qemu_tds: QemuTds, linux: LinuxFiles) -> None:
    with LinuxTd(qemu_tds, linux, firmware=linux.small_firmware, extra_args=selftest.args) as guest:
        guest.await_user_space()
        guest.run("cat /dev/vda > /tmp/tdx_guest_test && chmod +x /tmp/tdx_guest_test")
        printed = guest.run("/tmp/tdx_guest_test")
        assert [line for line in printed if line.startswith("# PASSED: ")]
        assert guest.power_off() == 0
