# SPDX-License-Identifier: GPL-2.0-or-later
"""What is compiled: a whole kernel, or only its modules where nothing else has changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from images.kernel.compiled import ALL, Compiled
from images.kernel.tree import KeptTree, PackageBase
from images.patching import Changes

TDX, MSR = "arch/x86/kvm/vmx/tdx.c", "arch/x86/include/asm/msr.h"
MODULES = ["arch/x86/kvm/kvm-intel.ko", "arch/x86/kvm/kvm.ko", "virt/lib/irqbypass.ko"]
PATCHED = {TDX: "1", MSR: "1"}


@pytest.fixture
def tree(tmp_path: Path) -> KeptTree:
    kept = KeptTree(tmp_path)
    for path in (TDX, MSR):
        (kept.src / path).parent.mkdir(parents=True)
        (kept.src / path).write_text("0")
    kept.out.mkdir()
    (kept.out / ".config").write_text("CONFIG_KVM=m\n")
    return kept


def patched(tree: KeptTree, files: Mapping[str, str], base: str = "7.3") -> Compiled:
    changes = Changes({path: (text.encode(), False) for path, text in files.items()}, frozenset())
    tree.apply(changes, PackageBase(tree, {}))
    return Compiled(tree, {"version": base})


def make_whole(tree: KeptTree, modules: list[str] = MODULES) -> None:
    made = patched(tree, PATCHED)
    made.begin()
    order = "".join(f"{path.removesuffix('.ko')}.o\n" for path in modules)
    (tree.out / "modules.order").write_text(order)
    made.done()
    # As make leaves it when it is asked for single modules.
    (tree.out / "modules.order").unlink()


def test_first_kernel_is_made_whole(tree: KeptTree) -> None:
    assert patched(tree, PATCHED).targets() == ALL


@pytest.mark.parametrize(
    "files",
    [
        PATCHED,
        {TDX: "2", MSR: "1"},
        {MSR: "1"},
        {TDX: "1", MSR: "1", "virt/kvm/guest_memfd.c": "1"},
    ],
)
def test_modules_are_enough_where_only_their_files_changed(tree: KeptTree, files: Mapping[str, str]) -> None:
    make_whole(tree)
    assert patched(tree, files).targets() == MODULES


@pytest.mark.parametrize(
    "files",
    [
        {TDX: "1", MSR: "2"},
        {TDX: "1"},
        {TDX: "1", MSR: "1", "arch/x86/kvm/vmx/tdx.h": "1"},
        {TDX: "1", MSR: "1", "kernel/cgroup/misc.c": "1"},
    ],
)
def test_kernel_is_made_whole_where_others_changed(tree: KeptTree, files: Mapping[str, str]) -> None:
    make_whole(tree)
    assert patched(tree, files).targets() == ALL


def test_kernel_is_made_whole_for_another_base_or_configuration(tree: KeptTree) -> None:
    make_whole(tree)
    assert patched(tree, PATCHED, "7.4").targets() == ALL
    (tree.out / ".config").write_text("CONFIG_KVM=m\nCONFIG_KASAN=y\n")
    assert patched(tree, PATCHED).targets() == ALL


def test_kernel_is_made_whole_after_an_interrupted_one(tree: KeptTree) -> None:
    make_whole(tree)
    patched(tree, {TDX: "1", MSR: "2"}).begin()
    assert patched(tree, PATCHED).targets() == ALL


def test_kernel_without_kvm_as_a_module_is_made_whole(tree: KeptTree) -> None:
    make_whole(tree, ["drivers/base/firmware_class.ko"])
    assert patched(tree, PATCHED).targets() == ALL
