# SPDX-License-Identifier: GPL-2.0-or-later
"""Splats and ledger lines of the findings that several tests show."""

from __future__ import annotations

from typing import Any

F1: dict[str, Any] = {
    "flavours": ("upstream",),
    "splat": r"WARNING: kernel/cgroup/misc\.c:\d+ at misc_cg_uncharge\+",
    # A few below zero.
    "ledger": rf"^cgroup \S+: 0 HKIDs in use before the test, {(1 << 64) // 100}\d\d after$",
}
F2: dict[str, Any] = {
    "flavours": ("upstream",),
    # The compiler may inline one into the other.
    "splat": r"WARNING: arch/x86/kvm/vmx/tdx\.c:\d+ at tdx_(td_finalize|vm_ioctl)\+",
}
F12: dict[str, Any] = {"flavours": ("upstream",)}
F13: dict[str, Any] = {"flavours": ("upstream",)}
F33: dict[str, Any] = {
    "flavours": ("upstream",),
    "linux": ("7.3",),  # Nobody has looked on 7.2.
    # KVM_BUG_ON() in tdh_vp_wr_failed(), which the compiler may inline.
    "splat": r"WARNING: arch/x86/kvm/vmx/tdx\.c:\d+ at (tdh_vp_wr_failed|tdx_vcpu_(unlocked_ioctl|init))\+",
    "ledger": r"^(cgroup \S+: 0 HKIDs in use before the test, 1 after$|HKID left: .* state=configured "
    r"|TD left: .* op=initialized vcpus=\d+ vcpus_assoc=[1-9]\d* |pages left: .* type=(tdcx|tdvpr) )",
}
_NOT_REMOVED = r"tdx_sept_(set_private_spte|remove_leaf_spte)|__tdx_reclaim_page"
"""TDX_BUG_ON_2() in tdx_sept_remove_leaf_spte(), which the compiler may inline; and the TDR cannot go."""
_LEFT = r"^(TD left: .* state=teardown |pages left: .* type=(tdr|reg) )"
F34: dict[str, Any] = {
    "flavours": ("upstream",),
    "linux": ("7.3",),  # Nobody has looked on 7.2.
    "splat": rf"WARNING: arch/x86/kvm/vmx/tdx\.c:\d+ at ({_NOT_REMOVED})\+",
    "ledger": _LEFT,
}
F35: dict[str, Any] = {
    **F34,
    # By chance it is TDH.MR.EXTEND that fails.
    "splat": rf"WARNING: arch/x86/kvm/vmx/tdx\.c:\d+ at ({_NOT_REMOVED}|tdx_gmem_post_populate)\+",
}
