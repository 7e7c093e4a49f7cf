# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian's Linux in a TD ends, starts anew, panics and is looked into, by itself and by QEMU's commands.

The power button is handled by the guest's init.  Sources in QEMU: ``tdx_handle_report_fatal_error`` in
target/i386/kvm/tdx.c, ``do_inject_external_nmi`` in hw/i386/kvm/apic.c; in Linux: ``tdx_panic`` in
arch/x86/coco/tdx/tdx.c.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from e2e.resets import MAY_CRASH, reset, resetting_stock
from fixtures.deadline import Deadline, until
from fixtures.errors import DeadlineExceeded
from fixtures.findings import shows
from fixtures.guests.linux import LinuxFiles
from fixtures.guests.linux_td import LinuxTd
from fixtures.guests.qemu_tds import QemuTds
from fixtures.host.base import TdxHost
from fixtures.host.hkids import Hkids

pytestmark = [pytest.mark.tdx_needs("misc-cgroup"), pytest.mark.timeout(400)]

BOOT_ID = "cat /proc/sys/kernel/random/boot_id"
SHUT_DOWN = {"guest": True, "reason": "guest-shutdown"}
RESET = {"guest": True, "reason": "guest-reset"}
NO_INIT = "rdinit=/none"
"""Linux finds nothing to start in its initramfs, and has no disk."""
NO_ROOT = "Kernel panic - not syncing: VFS: Unable to mount root fs"
PANIC = "echo c > /proc/sysrq-trigger"
PANICKED = "Kernel panic - not syncing: sysrq triggered crash"


@pytest.fixture
def booted(qemu_tds: QemuTds, linux: LinuxFiles) -> Iterator[LinuxTd]:
    """A Linux in user space, with two vCPUs."""
    with LinuxTd(qemu_tds, linux, firmware=linux.small_firmware) as guest:
        guest.await_user_space()
        yield guest


@pytest.mark.slow
def test_power_button_powers_it_off(hkids: Hkids, booted: LinuxTd, assert_gone: Callable[[], None]) -> None:
    assert hkids.taken == 1
    booted.qemu.execute("system_powerdown")
    booted.qemu.await_event("POWERDOWN")
    assert booted.qemu.await_event("SHUTDOWN", seconds=30)["data"] == SHUT_DOWN
    booted.qemu.console.wait_for("^tdx-guest: power button", Deadline(1, "what init prints"))
    assert booted.qemu.wait() == 0
    assert_gone()


@pytest.mark.slow
def test_poweroff_ends_it(hkids: Hkids, booted: LinuxTd, assert_gone: Callable[[], None]) -> None:
    assert hkids.taken == 1
    booted.start("poweroff -f")
    assert booted.qemu.await_event("SHUTDOWN", seconds=30)["data"] == SHUT_DOWN
    assert booted.qemu.wait() == 0
    assert_gone()


@pytest.mark.slow
@MAY_CRASH
@pytest.mark.parametrize("by", ["guest", "system_reset"])
def test_boots_anew_after_a_reset(
    by: str, hkids: Hkids, booted: LinuxTd, assert_gone: Callable[[], None]
) -> None:
    before = booted.run(BOOT_ID)
    with resetting_stock(booted.qemu):
        if by == "guest":
            booted.reboot()
        else:
            booted.boot_again(lambda: reset(booted.qemu))
    reasons = [event["data"]["reason"] for event in booted.qemu.events if event["event"] == "RESET"]
    assert reasons == [{"guest": "guest-reset", "system_reset": "host-qmp-system-reset"}[by]]
    assert booted.run(BOOT_ID) != before
    assert booted.complaints() == []
    assert hkids.taken == 1
    assert booted.power_off() == 0
    assert_gone()


@pytest.mark.slow
def test_panic_is_a_reset(
    hkids: Hkids, qemu_tds: QemuTds, linux: LinuxFiles, assert_gone: Callable[[], None]
) -> None:
    """Linux reports no fatal error of its TD then: it resets (panic=-1)."""
    given: dict[str, Any] = {"firmware": linux.small_firmware, "extra_args": ("-no-reboot",)}
    with LinuxTd(qemu_tds, linux, append=NO_INIT, **given) as guest:
        assert guest.qemu.await_event("SHUTDOWN", seconds=120)["data"] == RESET
        guest.qemu.console.wait_for(NO_ROOT, Deadline(1, "what the guest's kernel prints"))
        assert guest.qemu.wait() == 0
        assert not [event for event in guest.qemu.events if event["event"] == "GUEST_PANICKED"]
    assert_gone()


@pytest.mark.slow
def test_panic_is_an_event_of_pvpanic(
    hkids: Hkids, qemu_tds: QemuTds, linux: LinuxFiles, assert_gone: Callable[[], None]
) -> None:
    args = ("-device", "pvpanic-pci", "-no-reboot")
    with LinuxTd(qemu_tds, linux, firmware=linux.small_firmware, extra_args=args) as guest:
        guest.await_user_space()
        assert hkids.taken == 1
        guest.start(PANIC)
        data = guest.qemu.await_event("SHUTDOWN", seconds=30)["data"]
        assert data == {"guest": True, "reason": "guest-panic"}
        guest.qemu.console.wait_for(PANICKED, Deadline(1, "what the guest's kernel prints"))
        assert guest.qemu.wait() == 0
        panics = [event["data"] for event in guest.qemu.events if event["event"] == "GUEST_PANICKED"]
        assert panics == [{"action": "poweroff"}]
    assert_gone()


def test_linux_panics_where_its_memory_can_be_taken_away_silently(
    hkids: Hkids, qemu_tds: QemuTds, linux: LinuxFiles, assert_gone: Callable[[], None]
) -> None:
    """Without SEPT_VE_DISABLE a host could take a page, and the guest would get a #VE for it."""
    without = {"sept-ve-disable": "off"}
    with LinuxTd(qemu_tds, linux, firmware=linux.small_firmware, guest=without) as guest:
        data = guest.qemu.await_event("GUEST_PANICKED", seconds=60)["data"]
        message = "TD misconfiguration: SEPT #VE has to be disabled"
        assert data["info"] == {"type": "tdx", "error-code": 0, "message": message}
        assert guest.qemu.wait() == 0
    assert_gone()


@pytest.mark.slow
@pytest.mark.tdx_finding("Q14", qemu=("11.1",))
def test_inject_nmi_is_an_nmi_for_the_first_cpu(booted: LinuxTd) -> None:
    """Linux masks LINT1, which QEMU's command stands for, on the others."""
    before = nmis(booted)
    booted.qemu.execute("inject-nmi")
    with shows("Q14", DeadlineExceeded):
        until(lambda: nmis(booted) == [before[0] + 1, before[1]], "the NMI")


TEXT = "neverseenbythehost"
"""Written to the guest's private memory with each byte exclusive-or 0x5a, by the program ``secret``."""
HIDDEN = bytes(byte ^ 0x5A for byte in TEXT.encode()).decode()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["dump-guest-memory", "pmemsave"])
def test_dump_has_shared_memory_and_no_secret(command: str, tdx_host: TdxHost, booted: LinuxTd) -> None:
    secret = booted.start(f"secret {TEXT} 1000")
    secret.wait_lines(1)
    path = f"/tmp/{command}"
    if command == "pmemsave":
        booted.qemu.execute(command, val=0, size=booted.qemu.spec.memory_mib << 20, filename=path)
    else:
        booted.qemu.execute(command, paging=False, protocol=f"file:{path}")
    try:
        found = {text: lines_with(tdx_host, text, path) for text in (TEXT, HIDDEN)}
    finally:
        tdx_host.agent.files.remove(path)
    assert found[TEXT] > 0
    assert found[HIDDEN] == 0
    secret.signal(15)
    assert secret.wait() == 0
    assert secret.lines == ["ready", "whole"]


def lines_with(host: TdxHost, text: str, path: str) -> int:
    """Return the number of runs without a zero that contain a text in a file on the host."""
    done = host.agent.files.run("env", "LC_ALL=C", "grep", "-a", "-c", "-z", "-F", "-e", text, path)
    assert done.returncode in (0, 1), done
    return int(done.stdout)


def nmis(guest: LinuxTd) -> list[int]:
    """Return the number of NMIs of each CPU."""
    (line,) = guest.run("grep NMI: /proc/interrupts")
    return [int(word) for word in line.split() if word.isdigit()]
