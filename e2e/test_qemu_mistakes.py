# SPDX-License-Identifier: GPL-2.0-or-later
"""Configurations that a real QEMU refuses for a TD: with a reason, and no HKID is held.

Sources: target/i386/kvm/tdx.c and accel/kvm/kvm-all.c of QEMU 11.1.
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass, field
from typing import Any

import pytest

from fixtures import cgroup
from fixtures.agent.errors import RemoteOSError
from fixtures.guests.qemu_td import complaints
from fixtures.guests.qemu_tds import QemuTds
from fixtures.host import kvm_modules
from fixtures.host.base import TdxHost
from fixtures.host.hkids import Hkids
from fixtures.qemu.errors import QemuLaunchFailed

pytestmark = pytest.mark.tdx_needs("misc-cgroup")


@dataclass(frozen=True)
class WrongTd:
    """A configuration that cannot be a TD's.

    :param reason: found in QEMU's messages (:func:`re.search`): the part that names the mistake.
    :param changes: the difference from the usual TD.
    """

    name: str
    reason: str
    changes: dict[str, Any] = field(default_factory=dict)


SEABIOS = "/usr/share/seabios/bios-256k.bin"

WRONG_TDS = (
    WrongTd("no-firmware", "TDX_METADATA_OFFSET_GUID", {"firmware": ""}),
    WrongTd("firmware-without-metadata", "TDX_METADATA_OFFSET_GUID", {"firmware": SEABIOS}),
    WrongTd("smm", r"TDX.*\bSMM\b", {"machine": {"smm": "on"}}),
    WrongTd("pic", r"TDX.*\bPIC\b", {"machine": {"pic": "on"}}),
    WrongTd("irqchip-in-the-kernel", "irqchip.*split", {"machine": {"kernel-irqchip": "on"}}),
    WrongTd("named-cpu-model", r"(?i)cpu model.*\bTDX\b", {"cpu": "SapphireRapids"}),
    WrongTd("mrconfigid-too-short", r"mrconfigid.*\b48\b", {"guest": {"mrconfigid": "AAAA"}}),
    WrongTd("mrconfigid-no-base64", "(?i)base64", {"guest": {"mrconfigid": "!"}}),
    WrongTd("attributes-not-offered", r"attributes 0x1\b", {"guest": {"attributes": "1"}}),
)


@pytest.mark.parametrize("wrong", WRONG_TDS, ids=lambda wrong: wrong.name)
def test_refused_with_a_reason_and_nothing_held(wrong: WrongTd, hkids: Hkids, qemu_tds: QemuTds) -> None:
    with pytest.raises(QemuLaunchFailed) as caught:
        qemu_tds.start(**wrong.changes)
    said = "\n".join(complaints(caught.value.output))
    assert re.search(wrong.reason, said), said
    assert caught.value.returncode == 1
    assert hkids.taken == 0


@pytest.mark.tdx_needs("snapshot")
def test_host_whose_kvm_has_no_tdx_is_told_so_and_offers_no_hkid(
    tdx_host: TdxHost, qemu_tds: QemuTds
) -> None:
    tdx_host.poison("KVM was loaded without TDX")
    kvm_modules.reload(tdx_host.agent, parameters="tdx=0 nested=0")
    assert cgroup.RESOURCE not in tdx_host.agent.files.read_text(f"{cgroup.ROOT}/misc.capacity")
    with pytest.raises(QemuLaunchFailed) as caught:
        qemu_tds.start()
    said = "\n".join(complaints(caught.value.output))
    assert re.search("TDX.*not supported", said), said
    assert caught.value.returncode == 1


def test_qemu_that_is_not_there_is_an_error_of_its_own(hkids: Hkids, qemu_tds: QemuTds) -> None:
    with pytest.raises(RemoteOSError) as caught:
        qemu_tds.start(binary="/nonexistent/qemu")
    assert caught.value.errno == errno.ENOENT
    assert hkids.taken == 0
