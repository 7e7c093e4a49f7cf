# SPDX-License-Identifier: GPL-2.0-or-later
"""Flags and bits that nobody has defined, or that TDs do not have, are refused: they may get a meaning later.

Requests of KVM that are not of TDX alone; ``e2e/mistakes.py`` has those of KVM_MEMORY_ENCRYPT_OP.
"""

from __future__ import annotations

import errno

import pytest

from fixtures.kvm import abi, commands
from fixtures.kvm.abi import KVM_MEMORY_ATTRIBUTE_PRIVATE, PAGE_SIZE, Request
from fixtures.kvm.build import Assembly
from fixtures.kvm.errors import errno_of

GPA = 1 << 30
ACCESS = {"read": 1 << 0, "write": 1 << 1, "execute": 1 << 2}
"""Attributes that were discussed for KVM, and that it does not have."""
HIGHEST = 1 << 63


def attributes(bits: int, flags: int = 0) -> bytes:
    return bytes(abi.MemoryAttributes(GPA, PAGE_SIZE, bits, flags))


OF_VM: dict[str, tuple[Request, bytes]] = {
    **{
        f"attribute-{name}": (Request.KVM_SET_MEMORY_ATTRIBUTES, attributes(bit))
        for name, bit in ACCESS.items()
    },
    "attribute-highest": (Request.KVM_SET_MEMORY_ATTRIBUTES, attributes(HIGHEST)),
    "attributes-flag": (Request.KVM_SET_MEMORY_ATTRIBUTES, attributes(KVM_MEMORY_ATTRIBUTE_PRIVATE, 1)),
    "attributes-flag-highest": (Request.KVM_SET_MEMORY_ATTRIBUTES, attributes(0, HIGHEST)),
    "guest-memfd-shared": (
        Request.KVM_CREATE_GUEST_MEMFD,
        bytes(abi.CreateGuestMemfd(PAGE_SIZE, abi.GUEST_MEMFD_FLAG_INIT_SHARED)),
    ),
    "guest-memfd-highest": (Request.KVM_CREATE_GUEST_MEMFD, bytes(abi.CreateGuestMemfd(PAGE_SIZE, HIGHEST))),
}


@pytest.mark.parametrize("name", OF_VM)
def test_bit_of_a_request_to_the_vm(name: str, td_finalized: Assembly) -> None:
    request, argument = OF_VM[name]
    td = td_finalized.td
    assert errno_of(lambda: td.worker.call(commands.ioctl(td.fd, request, argument))) == errno.EINVAL


@pytest.mark.parametrize("flags", [1, HIGHEST], ids=hex)
def test_flag_of_a_pre_fault(flags: int, td_finalized: Assembly) -> None:
    vcpu = td_finalized.vcpus[0]
    argument = bytes(abi.PreFaultMemory(td_finalized.placed[0].region.gpa, PAGE_SIZE, flags))
    asked = commands.ioctl(vcpu.fd, Request.KVM_PRE_FAULT_MEMORY, argument)
    assert errno_of(lambda: vcpu.worker.call(asked)) == errno.EINVAL


MC0_CTL, MCG_EXT_CTL = 0x400, 0x4D0
OF_VCPU = {
    "mcg-ext-ctl": {MCG_EXT_CTL: 1 << 1},
    "mcg-ext-ctl-highest": {MCG_EXT_CTL: HIGHEST},
    "mtrr-def-type": {0x2FF: 1 << 8},
    "mtrr-type": {0x26F: 2},
    "feature-control": {0x3A: 1},
    "efer": {0xC0000080: 0x500},
    "apic-base": {0x1B: 0xFEE00800},
    "apic-tpr": {0x808: 0},
    "sysenter-cs": {0x174: 0},
    "tsc-adjust": {0x3B: 0},
    "kvm-clock": {0x4B564D01: 0},
}
"""MSRs of which KVM takes no such value for a TD, or none at all (``tdx_set_msr``)."""


@pytest.mark.parametrize("name", OF_VCPU)
def test_value_of_an_msr(name: str, td_finalized: Assembly) -> None:
    """KVM_SET_MSRS writes the one before, and stops there."""
    vcpu = td_finalized.vcpus[0]
    assert vcpu.worker.call(commands.set_msrs(vcpu.fd, {MC0_CTL: 0} | OF_VCPU[name])) == 1


def test_no_registers_are_in_the_run_page(td_finalized: Assembly) -> None:
    """KVM_CAP_SYNC_REGS is asked of the VM, and KVM_RUN takes no request for them."""
    vcpu = td_finalized.vcpus[0]
    assert td_finalized.td.check_extension(abi.Cap.SYNC_REGS) == 0
    vcpu.run_page().write(abi.RUN_VALID_REGS, (1).to_bytes(8, "little"))
    assert errno_of(vcpu.run) == errno.EINVAL
