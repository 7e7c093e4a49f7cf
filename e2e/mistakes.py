# SPDX-License-Identifier: GPL-2.0-or-later
"""Wrong parameters of KVM_TDX_INIT_VM, one mistake at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fixtures.contracts.promises import Refusal
from fixtures.kvm import abi, commands, cpuid
from fixtures.kvm.cpuid import CpuidEntry
from fixtures.kvm.params import UNALTERED, Capabilities, InitVmParams, Overrides
from fixtures.kvm.td import Td

Change = Callable[[InitVmParams, Capabilities], InitVmParams]

FEATURES = 7
HLE, RTM = 1 << 4, 1 << 11
WAITPKG = 1 << 5


def _none(right: InitVmParams, caps: Capabilities) -> InitVmParams:
    return right


@dataclass(frozen=True)
class Mistake:
    """One mistake.

    :param refusal: its entry in the contract.
    :param change: makes the wrong parameters from right ones.
    :param altered: what is wrong in ``struct kvm_tdx_cmd`` instead.
    """

    refusal: Refusal
    change: Change = _none
    altered: Overrides = UNALTERED

    def make(self, td: Td) -> None:
        """KVM_TDX_INIT_VM with the mistake."""
        params = self.change(td.default_params(), td.capabilities())
        td.worker.call(commands.init_vm(td.fd, params, altered=self.altered))


def _first_gap(mask: int) -> int:
    """Return the lowest bit that is clear in ``mask``."""
    return ~mask & (mask + 1)


def _unsupported_attribute(right: InitVmParams, caps: Capabilities) -> InitVmParams:
    return right.replace(attributes=right.attributes | _first_gap(caps.attributes))


def _unsupported_xfam(right: InitVmParams, caps: Capabilities) -> InitVmParams:
    return right.replace(xfam=right.xfam | _first_gap(caps.xfam))


def _unknown_leaf(right: InitVmParams, caps: Capabilities) -> InitVmParams:
    # Leaf 2 describes caches and TLBs; no TDX module lets the host configure it.
    return right.replace(cpuid=(*right.cpuid, CpuidEntry(2)))


def _fixed_cpuid_bit(right: InitVmParams, caps: Capabilities) -> InitVmParams:
    """Set a bit of CPUID.1:ECX that the host may not configure; only the TDX module checks it."""
    leaf = next(entry for entry in caps.cpuid if entry.function == 1)
    return right.with_entry(1, ecx=_first_gap(leaf.ecx))


INIT_VM: dict[str, Mistake] = {
    "command-at-a-bad-address": Mistake(Refusal.CMD_BAD_POINTER, altered=Overrides(command=0)),
    "hw-error-set": Mistake(Refusal.CMD_HW_ERROR_SET, altered=Overrides(hw_error=1)),
    "flags": Mistake(Refusal.INIT_FLAGS, altered=Overrides(flags=1)),
    "parameters-at-a-bad-address": Mistake(Refusal.INIT_BAD_POINTER, altered=Overrides(data=0)),
    "too-many-cpuid-entries": Mistake(
        Refusal.INIT_NENT_TOO_BIG, lambda right, _: right.replace(nent=abi.KVM_MAX_CPUID_ENTRIES + 1)
    ),
    "reserved-field": Mistake(
        Refusal.INIT_RESERVED, lambda right, _: right.replace(reserved=(*(0,) * 11, 1))
    ),
    "padding": Mistake(Refusal.INIT_PADDING, lambda right, _: right.replace(padding=1)),
    "unsupported-attribute": Mistake(Refusal.INIT_ATTRIBUTES, _unsupported_attribute),
    "unsupported-xfam": Mistake(Refusal.INIT_XFAM, _unsupported_xfam),
    "no-physical-width": Mistake(
        Refusal.INIT_NO_WIDTH, lambda right, _: right.without_entry(cpuid.ADDRESS_WIDTHS)
    ),
    "physical-width-of-50": Mistake(Refusal.INIT_WIDTH, lambda right, _: right.with_width(50)),
    "hle": Mistake(Refusal.INIT_TSX, lambda right, _: right.with_entry(FEATURES, ebx=HLE)),
    "rtm": Mistake(Refusal.INIT_TSX, lambda right, _: right.with_entry(FEATURES, ebx=RTM)),
    "waitpkg": Mistake(Refusal.INIT_WAITPKG, lambda right, _: right.with_entry(FEATURES, ecx=WAITPKG)),
    "unknown-cpuid-leaf": Mistake(Refusal.INIT_CPUID_UNKNOWN, _unknown_leaf),
    "cpuid-bit-that-the-module-refuses": Mistake(Refusal.INIT_MODULE_REFUSES, _fixed_cpuid_bit),
}
"""Keys are the ids of a test's parameters."""
