# SPDX-License-Identifier: GPL-2.0-or-later
"""Arguments of TDX commands as they lie in memory, and the commands that read them there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fixtures.agent.call import Call
from fixtures.kvm import abi, commands, cpuid
from fixtures.kvm.abi import TdxCmdId
from fixtures.kvm.build import Assembly
from fixtures.kvm.defaults import default_params
from fixtures.kvm.params import Overrides

Ask = Callable[[Assembly, int], Call[Any]]
"""Makes a request whose argument lies at an address."""


def entries(number: int) -> bytes:
    """``struct kvm_cpuid2`` with room for so many entries."""
    return cpuid.pack([cpuid.CpuidEntry(0)] * number)


def parameters(td: Assembly) -> bytes:
    return default_params(td.worker).pack()


def no_capabilities(_: Assembly) -> bytes:
    return bytes(abi.TdxCapabilities.cpuid.offset) + entries(abi.KVM_MAX_CPUID_ENTRIES)


def region(td: Assembly) -> bytes:
    place = td.placed[-1]
    return bytes(abi.TdxInitMemRegion(place.slot.address, place.region.gpa, 1))


def command(td: Assembly) -> bytes:
    """A KVM_TDX_FINALIZE_VM, which has no data."""
    return bytes(abi.TdxCmd(id=TdxCmdId.FINALIZE_VM))


def data_of(command: TdxCmdId) -> Ask:
    """A command of the VM whose data change."""
    return lambda td, address: commands.tdx(td.td.fd, command, altered=Overrides(data=address))


def data_of_vcpu(command: TdxCmdId) -> Ask:
    return lambda td, address: commands.tdx(td.vcpus[0].fd, command, altered=Overrides(data=address))


def finalize(td: Assembly, address: int) -> Call[Any]:
    return commands.tdx(td.td.fd, TdxCmdId.FINALIZE_VM, altered=Overrides(command=address))
