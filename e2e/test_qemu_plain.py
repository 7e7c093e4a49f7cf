# SPDX-License-Identifier: GPL-2.0-or-later
"""Plain guests with the QEMU that moves TDs: they migrate as with a stock one, also to it and from it.

KVM has to make them, not to run them.  Sources: migration/ram.c, migration/savevm.c, migration/cpr.c and
migration/migration.c of QEMU, images/qemu/patches.
"""

from __future__ import annotations

import signal
import struct
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from fixtures.agent import syscalls
from fixtures.guests import unnamed
from fixtures.guests.moving import PAUSE, PAUSED, PLAIN_CAPABILITIES, Move, moved, set_capabilities, set_mode
from fixtures.guests.qemu_td import QemuTd
from fixtures.guests.qemu_tds import QemuTds
from fixtures.paths import QEMU

PLAIN: dict[str, Any] = {"guest": None, "firmware": "/usr/share/seabios/bios-256k.bin"}
"""Changes that turn the default TD into a plain VM."""
ANY_BUILD = {"vmport": "off"}
"""Leaves out a device of the machine that a stock QEMU has and ours has not."""

CONTENT, WHERE = 4096, 0x200000
"""Addresses in the guest: of what is in its memory from the beginning, and of what a device writes."""
VALUE = struct.pack("<Q", 0x1122334455667788)

FW_CFG_DMA = 0x518
"""The port that takes the lower half of an address, as a big-endian number (docs/specs/fw_cfg.rst)."""
SELECT, READ = 1 << 3, 1 << 1
SIGNATURE = b"QEMU"
"""Item 0 of fw_cfg."""
REQUEST = struct.pack(">IIQ", SELECT | READ, len(SIGNATURE), WHERE)


def start(tds: QemuTds, content: bytes, *extra_args: str, **changes: Any) -> QemuTd:
    """Start a QEMU with a plain guest that has a memory of its own, with a content."""
    fd = unnamed.file_with(tds.worker, bytes(CONTENT) + content)
    size = tds.spec.memory_mib << 20
    assert tds.worker.call(syscalls.fallocate(fd, 0, size - 1, 1)).ret == 0
    path = unnamed.path_of(tds.worker, fd)
    memory = ("-object", f"memory-backend-file,id=own,mem-path={path},size={size},share=off")
    machine = ANY_BUILD | {"memory-backend": "own"}
    return tds.start(**PLAIN, movable=False, machine=machine, extra_args=(*memory, *extra_args), **changes)


def monitor(guest: QemuTd, line: str) -> str:
    """Execute a command of the monitor for people."""
    return str(guest.execute("human-monitor-command", command_line=line))


def memory_at(guest: QemuTd, address: int) -> bytes:
    """Read eight bytes of the guest's memory."""
    return struct.pack("<Q", int(monitor(guest, f"xp /1gx {address:#x}").split()[-1], 16))


def save(guest: QemuTd, uri: str, mode: str, *capabilities: str) -> None:
    """Begin to save a guest in a file."""
    set_capabilities(guest, dict.fromkeys(("events", *capabilities), True))
    set_mode(guest, mode)
    guest.execute("migrate", uri=uri)


def load(tds: QemuTds, uri: str, mode: str, *capabilities: str, **changes: Any) -> QemuTd:
    """Start a QEMU whose memory is empty, and load the guest."""
    guest = start(tds, b"", "-incoming", "defer", **changes)
    assert not any(memory_at(guest, CONTENT))
    set_capabilities(guest, dict.fromkeys(("events", *capabilities), True))
    set_mode(guest, mode)
    guest.execute("migrate-incoming", uri=uri)
    await_status(guest, "completed")
    return guest


def await_status(guest: QemuTd, status: str) -> None:
    """Wait for a status of the migration.

    :raises AssertionError: it failed.
    """
    event = guest.await_event("MIGRATION", which=lambda data: data["status"] in (status, "failed"))
    assert event["data"]["status"] == status


# saved in a file and loaded from it


@pytest.mark.parametrize("mode", ["normal", "cpr-reboot"])
@pytest.mark.parametrize("ours", ["both", "source", "destination"])
def test_goes_on_from_a_file_with_its_memory(
    ours: str, mode: str, migration_file: str, movable_tds: QemuTds
) -> None:
    """The other side is a stock QEMU."""
    moving = movable_tds.spec.binary
    first, second = (moving if ours in ("both", side) else QEMU for side in ("source", "destination"))
    source = start(movable_tds, VALUE, binary=first)
    save(source, migration_file, mode)
    await_status(source, "completed")
    assert memory_at(load(movable_tds, migration_file, mode, binary=second), CONTENT) == VALUE


@pytest.mark.parametrize("capabilities", [(), ("x-ignore-shared",)], ids=["usual", "without-shared-memory"])
def test_what_a_device_writes_when_memory_was_sent_is_sent_again(
    capabilities: tuple[str, ...], migration_file: str, movable_tds: QemuTds
) -> None:
    """The device is fw_cfg, which fetches its request from memory and writes its item there."""
    source = start(movable_tds, REQUEST)
    save(source, migration_file, "normal", *capabilities, PAUSE)
    await_status(source, PAUSED)
    address = int.from_bytes(CONTENT.to_bytes(4, "big"), "little")
    monitor(source, f"o/w {FW_CFG_DMA:#x} {address:#x}")
    written = memory_at(source, WHERE)
    assert written[: len(SIGNATURE)] == SIGNATURE
    source.execute("migrate-continue", state=PAUSED)
    await_status(source, "completed")
    assert memory_at(load(movable_tds, migration_file, "normal", *capabilities), WHERE) == written


# transferred


@pytest.mark.parametrize("ours", ["source", "destination"])
def test_is_transferred_from_and_to_a_stock_qemu(ours: str, movable_tds: QemuTds) -> None:
    moving = movable_tds.spec.binary
    first, second = (moving if ours == side else QEMU for side in ("source", "destination"))
    source = movable_tds.start(**PLAIN, machine=ANY_BUILD, binary=first)
    destination = moved(source, movable_tds.destination(source, run=False, binary=second))
    assert destination.status == "prelaunch"


def test_transfer_leaves_no_vm_behind(movable_tds: QemuTds) -> None:
    """Each QEMU has a VM of its own, which no one else has open."""

    def of_kvm(guest: QemuTd) -> Counter[str]:
        return Counter(name for name in guest.open_files if "kvm" in name)

    source = movable_tds.start(**PLAIN)
    before = of_kvm(source)
    assert before["anon_inode:kvm-vm"] == 1
    assert of_kvm(moved(source, movable_tds.destination(source, run=False))) == before


def cancel(move: Move) -> str:
    """Cancel a migration."""
    move.source.execute("migrate_cancel")
    return "cancelled"


def kill(move: Move) -> str:
    """Kill the destination, and let the source go on."""
    move.destination.program.signal(signal.SIGKILL)
    move.source.execute("migrate-continue", state=PAUSED)
    return "failed"


@pytest.mark.parametrize("ends", [cancel, kill])
def test_stays_as_it_was_where_its_transfer_ends_half_way(
    ends: Callable[[Move], str], movable_tds: QemuTds
) -> None:
    source = movable_tds.start(**PLAIN)
    destination = movable_tds.destination(source, run=False)
    move = Move(source, destination, capabilities=[*PLAIN_CAPABILITIES, PAUSE])
    destination.connect()
    assert move.until(PAUSED, "failed") == PAUSED
    status = ends(move)
    assert move.end() == status
    assert source.status == "prelaunch"
