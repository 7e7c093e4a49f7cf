# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import json
from pathlib import Path

import pytest

from images.cache import Cache
from images.kernel import flavours, unchanged
from images.kernel.patched import SOFTSEAM
from images.patching import paths_of

_FILES = (
    "arch/x86/kvm/vmx/tdx.c",
    "arch/x86/virt/vmx/tdx/tdx.c",
    "virt/kvm/kvm_main.c",
    "include/linux/kvm_host.h",
    "arch/x86/include/asm/kvm_host.h",
)
_OTHERS = ("arch/x86/include/asm/msr.h", "arch/x86/virt/Makefile", "arch/x86/virt/softseam/sys.c")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (*_FILES, *_OTHERS):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"/* {name} */\n")
    (tmp_path / "arch/x86/kvm/link.h").symlink_to("vmx/tdx.c")
    return tmp_path


def test_what_is_guarded() -> None:
    assert all(unchanged.is_guarded(name) for name in _FILES)
    assert not any(unchanged.is_guarded(name) for name in _OTHERS)
    assert not unchanged.is_guarded("arch/x86/kvmish/x.c")
    assert not unchanged.is_guarded("include/linux/kvm/sub/x.h")


def test_an_untouched_tree_compares_equal(tree: Path) -> None:
    base = unchanged.guarded_files(tree)
    assert set(base) == {*_FILES, "arch/x86/kvm/link.h"}
    (tree / "arch/x86/include/asm/msr.h").write_text("hooked")
    assert unchanged.compare(base, tree) == unchanged.Comparison(6, ())


def test_every_kind_of_difference_is_seen(tree: Path) -> None:
    base = unchanged.guarded_files(tree)
    (tree / _FILES[0]).write_text("changed")
    (tree / _FILES[1]).unlink()
    (tree / "virt/kvm/added.c").write_text("added")
    (tree / "arch/x86/kvm/link.h").unlink()
    (tree / "arch/x86/kvm/link.h").symlink_to("elsewhere")
    compared = unchanged.compare(base, tree)
    assert compared.compared == 7
    assert set(compared.changed) == {_FILES[0], _FILES[1], "virt/kvm/added.c", "arch/x86/kvm/link.h"}


def test_the_hooks_and_softseam_stay_outside_kvm() -> None:
    touched = [path for patch in flavours.hook_patches() for path in paths_of(patch.read_bytes())]
    assert [path for path in touched if unchanged.is_guarded(path)] == []
    assert not unchanged.is_guarded(f"{SOFTSEAM}/sys.c")


def _upstream_trees() -> list[Path]:
    return sorted(Cache().trees.glob("linux-source-*/package.json"))


def test_the_built_upstream_kernel_has_the_packages_kvm() -> None:
    """The tree that the last build left, when it was an ``upstream`` one, against the package's tarball."""
    cache = Cache()
    kernels = [a for a in cache.artefacts() if (a.kind, a.label) == ("kernel", "upstream")]
    if not kernels:
        pytest.skip("no upstream kernel in the cache: python -m images build kernel")
    manifest = kernels[0].manifest()
    assert manifest["kvm_files_changed"] == []
    assert manifest["kvm_files_compared"] > 100
    base = manifest["inputs"]["base"]
    facts = cache.trees / f"{base['package']}_{base['version']}/package.json"
    if not facts.is_file():
        pytest.skip("the kernel's source tree is not in the cache any more")
    changed = json.loads((facts.parent / "changed.json").read_text())
    known = json.loads(facts.read_text())
    assert known["sha256"] == base["sha256"]
    guarded = {path for path in changed if unchanged.is_guarded(path)}
    compared = unchanged.compare(known["kvm"], facts.parent / "src")
    # Between two builds the tree may be that of another flavour; then only its patches' files differ.
    assert set(compared.changed) <= guarded
    assert compared.compared == manifest["kvm_files_compared"] + len(guarded - set(known["kvm"]))
