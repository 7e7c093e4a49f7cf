# SPDX-License-Identifier: GPL-2.0-or-later
"""What KVM_MEMORY_ENCRYPT_OP writes to user space's memory: its answer, and not a byte beside it.

Sources: ``tdx_get_capabilities``, ``tdx_vcpu_get_cpuid``, ``tdx_td_init`` and
``tdx_vcpu_init_mem_region`` in arch/x86/kvm/vmx/tdx.c.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.arguments import entries, no_capabilities, parameters, region
from fixtures.agent.call import Call
from fixtures.contracts.answers import refused
from fixtures.contracts.promises import Contract, Refusal
from fixtures.kvm import abi, commands
from fixtures.kvm.abi import TdxCmdId
from fixtures.kvm.build import Assembly, Region
from fixtures.kvm.memory import Memory
from fixtures.kvm.params import Overrides

ROOM = 4 * abi.PAGE_SIZE
BEFORE = 64
"""Bytes of memory before the argument that are looked at."""
UNTOUCHED = b"\xa5"
ENTRY = ctypes.sizeof(abi.CpuidEntry2)
COUNT = 4
"""Size of the number of entries, in bytes, and its offset in struct kvm_cpuid2 is 0."""


class Argument:
    """An argument in the midst of memory that has a pattern."""

    def __init__(self, memory: Memory, head: bytes) -> None:
        self._memory = memory
        self._was = (UNTOUCHED * BEFORE + head).ljust(ROOM, UNTOUCHED)
        memory.write(0, self._was)

    def of(self, fd: int, command: TdxCmdId) -> Call[Any]:
        """The command that has its data there."""
        return commands.tdx(fd, command, altered=Overrides(data=self._memory.address + BEFORE))

    @property
    def head(self) -> int:
        """The number at its beginning."""
        return int.from_bytes(self._memory.read(BEFORE, COUNT), "little")

    def changed_only(self, size: int) -> bool:
        """Return whether its first bytes may have changed, and nothing else has."""
        now, end = self._memory.read(0, ROOM), BEFORE + size
        return now[:BEFORE] == self._was[:BEFORE] and now[end:] == self._was[end:]


@pytest.fixture
def memory(owner: Any) -> Iterator[Memory]:
    with Memory.map(owner, ROOM) as mapped:
        yield mapped


def test_capabilities_end_with_the_last_leaf(td_created: Assembly, memory: Memory) -> None:
    """User space has room for more."""
    argument = Argument(memory, no_capabilities(td_created)[: abi.TdxCapabilities.cpuid.offset + COUNT])
    memory.worker.call(argument.of(td_created.td.fd, TdxCmdId.CAPABILITIES))
    leaves = len(td_created.td.capabilities().cpuid)
    assert leaves < abi.KVM_MAX_CPUID_ENTRIES
    assert argument.changed_only(ctypes.sizeof(abi.TdxCapabilities) + leaves * ENTRY)


def test_cpuid_ends_with_the_last_leaf(td_with_vcpus: Assembly, memory: Memory) -> None:
    vcpu = td_with_vcpus.vcpus[0]
    argument = Argument(memory, entries(abi.KVM_MAX_CPUID_ENTRIES)[:COUNT])
    memory.worker.call(argument.of(vcpu.fd, TdxCmdId.GET_CPUID))
    assert argument.head == len(vcpu.get_cpuid()) < abi.KVM_MAX_CPUID_ENTRIES
    assert argument.changed_only(ctypes.sizeof(abi.Cpuid2) + argument.head * ENTRY)


@pytest.mark.parametrize("missing", [1, 8])
def test_cpuid_that_finds_no_room_is_only_counted(
    missing: int, td_with_vcpus: Assembly, memory: Memory, contract: Contract
) -> None:
    vcpu = td_with_vcpus.vcpus[0]
    needed = len(vcpu.get_cpuid())
    argument = Argument(memory, entries(needed - missing)[:COUNT])
    with refused(contract, Refusal.GET_CPUID_NENT_TOO_SMALL):
        memory.worker.call(argument.of(vcpu.fd, TdxCmdId.GET_CPUID))
    assert argument.head == needed
    assert argument.changed_only(COUNT)


def test_parameters_are_only_read(td_created: Assembly, memory: Memory) -> None:
    argument = Argument(memory, parameters(td_created))
    memory.worker.call(argument.of(td_created.td.fd, TdxCmdId.INIT_VM))
    assert argument.changed_only(0)


def test_of_a_region_the_rest_is_told(td_with_vcpus: Assembly, memory: Memory) -> None:
    td_with_vcpus.place(Region(gpa=0x100000, size=abi.PAGE_SIZE))
    argument = Argument(memory, region(td_with_vcpus))
    memory.worker.call(argument.of(td_with_vcpus.vcpus[0].fd, TdxCmdId.INIT_MEM_REGION))
    assert argument.changed_only(ctypes.sizeof(abi.TdxInitMemRegion))
