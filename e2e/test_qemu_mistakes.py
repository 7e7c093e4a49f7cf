# SPDX-License-Identifier: GPL-2.0-or-later
"""Configurations that a real QEMU refuses for a TD: in which words, and that nothing is held.

The words are those of QEMU 11.1 (target/i386/kvm/tdx.c, accel/kvm/kvm-all.c).
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import Any

import pytest

from fixtures.agent.errors import RemoteOSError
from fixtures.guests.qemu_td import complaints
from fixtures.guests.qemu_tds import QemuTds
from fixtures.host import kvm_modules
from fixtures.host.base import TdxHost
from fixtures.host.hkids import Hkids
from fixtures.qemu.errors import QemuLaunchFailed

pytestmark = pytest.mark.tdx_needs("misc-cgroup")


@dataclass(frozen=True)
class Mistake:
    """A TD that cannot be.

    :param messages: what QEMU says besides warnings, without its name.
    :param changes: what is wrong in the usual TD.
    """

    name: str
    messages: tuple[str, ...]
    changes: dict[str, Any] = field(default_factory=dict)


INIT_FAILED = "-accel kvm: failed to initialize kvm: Invalid argument"
NO_METADATA = ("Cannot find TDX_METADATA_OFFSET_GUID", "failed to parse TDVF for TDX VM")
SEABIOS = "/usr/share/seabios/bios-256k.bin"

MISTAKES = (
    Mistake("no-firmware", NO_METADATA, {"firmware": ""}),
    Mistake("firmware-without-metadata", NO_METADATA, {"firmware": SEABIOS}),
    Mistake("smm", ("-accel kvm: TDX VM doesn't support SMM", INIT_FAILED), {"machine": {"smm": "on"}}),
    Mistake("pic", ("-accel kvm: TDX VM doesn't support PIC", INIT_FAILED), {"machine": {"pic": "on"}}),
    Mistake(
        "irqchip-in-the-kernel",
        ("-accel kvm: TDX VM requires kernel_irqchip to be split", INIT_FAILED),
        {"machine": {"kernel-irqchip": "on"}},
    ),
    Mistake(
        "named-cpu-model",
        ("Named cpu model is not supported for TDX yet!",),
        {"cpu": "SapphireRapids"},
    ),
    Mistake(
        "mrconfigid-too-short",
        ("TDX 'mrconfigid' sha384 digest was 3 bytes, expected 48 bytes",),
        {"guest": {"mrconfigid": "AAAA"}},
    ),
    Mistake(
        "mrconfigid-no-base64",
        ("Base64 data contains invalid characters",),
        {"guest": {"mrconfigid": "!"}},
    ),
    Mistake(
        "attributes-not-offered",
        ("Invalid attributes 0x1 for TDX VM (KVM supported: 0x10000000)",),
        {"guest": {"attributes": "1"}},
    ),
)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_refused_with_a_reason_and_nothing_held(mistake: Mistake, hkids: Hkids, qemu_tds: QemuTds) -> None:
    with pytest.raises(QemuLaunchFailed) as caught:
        qemu_tds.start(**mistake.changes)
    assert complaints(caught.value.output) == mistake.messages
    assert caught.value.returncode == 1
    assert hkids.taken == 0


@pytest.mark.tdx_needs("snapshot")
def test_host_whose_kvm_has_no_tdx_is_told_so(tdx_host: TdxHost, qemu_tds: QemuTds) -> None:
    tdx_host.poison("KVM was loaded without TDX")
    kvm_modules.reload(tdx_host.agent, parameters="tdx=0 nested=0")
    with pytest.raises(QemuLaunchFailed) as caught:
        qemu_tds.start()
    assert complaints(caught.value.output) == ("-accel kvm: vm-type TDX not supported by KVM",)
    assert caught.value.returncode == 1


def test_qemu_that_is_not_there_is_an_error_of_its_own(hkids: Hkids, qemu_tds: QemuTds) -> None:
    with pytest.raises(RemoteOSError) as caught:
        qemu_tds.start(binary="/nonexistent/qemu")
    assert caught.value.errno == errno.ENOENT
    assert hkids.taken == 0
