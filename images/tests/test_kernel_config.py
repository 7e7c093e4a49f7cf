# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's configuration: KVM as distributions have it, what a tree adds, and when it is made again."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from images import tools
from images.cache import Cache
from images.commands import Log
from images.errors import BuildError
from images.kernel import config, configure, flavours
from images.kernel.tree import KeptTree
from images.progress import Reporter
from images.recipe import Work

_DEBIAN = {
    "CONFIG_KVM": "m",
    "CONFIG_KVM_AMD": "m",
    "CONFIG_KVM_AMD_SEV": "y",
    "CONFIG_KVM_HYPERV": "y",
    "CONFIG_KVM_INTEL": "m",
    "CONFIG_KVM_INTEL_PROVE_VE": "n",
    "CONFIG_KVM_IOAPIC": "y",
    "CONFIG_KVM_MAX_NR_VCPUS": "4096",
    "CONFIG_KVM_PROVE_MMU": "n",
    "CONFIG_KVM_SMM": "y",
    "CONFIG_KVM_SW_PROTECTED_VM": "n",
    "CONFIG_KVM_WERROR": "n",
    "CONFIG_KVM_XEN": "y",
    "CONFIG_VIRTUALIZATION": "y",
    "CONFIG_X86_SGX_KVM": "y",
}
"""KVM's options in the linux-config-7.3 of Debian, version 7.3.4-1~bpo13+1, for amd64."""

_NOT_HERE = {
    "CONFIG_KVM_AMD": "softseam needs a kernel without it",
    "CONFIG_KVM_AMD_SEV": "part of KVM_AMD",
    "CONFIG_X86_SGX_KVM": "the CPU has no SGX",
}

_KCONFIG = """\
menuconfig VIRTUALIZATION
\tbool "Virtualization"

config KVM_COMMON
\tbool
\tselect EVENTFD

config KVM
\ttristate "KVM support"
\thelp
\t  A module called "kvm".

config KVM_NEW
\tprompt "An option that no fragment has"
\tbool
\tdefault y

config KVM_NR
        int "A number"

comment "none of these"
"""


def _fragment(flavour: str) -> dict[str, str]:
    folder = Path(configure.__file__).parent
    asked: dict[str, str] = {}
    for name in flavours.get(flavour).fragments:
        asked |= config.parse((folder / name).read_text())
    return asked


def test_kvm_is_configured_as_in_debian() -> None:
    fragment = _fragment("upstream")
    ours = {symbol: fragment.get(symbol) for symbol in _DEBIAN if symbol not in _NOT_HERE}
    assert ours == {symbol: value for symbol, value in _DEBIAN.items() if symbol not in _NOT_HERE}
    assert not fragment.keys() & _NOT_HERE.keys()


def test_a_flavours_own_fragment_comes_last() -> None:
    assert _fragment("upstream")["CONFIG_KVM_PROVE_MMU"] == "n"
    assert _fragment("proposed-debug")["CONFIG_KVM_PROVE_MMU"] == "y"


@pytest.fixture
def tree(tmp_path: Path) -> KeptTree:
    """A tree with KVM's Kconfig files, one of them with :data:`_KCONFIG`."""
    kept = KeptTree(tmp_path / "kept")
    for name in (*config.KVM_KCONFIG, *config.NOT_EVERYWHERE.values()):
        (kept.src / name).parent.mkdir(parents=True, exist_ok=True)
        (kept.src / name).write_text("")
    (kept.src / "arch/x86/kvm/Kconfig").write_text(_KCONFIG)
    return kept


def test_the_fragment_is_read_and_what_did_not_take_is_said(tree: KeptTree) -> None:
    asked = config.parse(
        "# a comment\nCONFIG_A=y\nCONFIG_B=m\n# CONFIG_C is not set\nCONFIG_D=16\nCONFIG_E=n\n"
    )
    assert asked == {"CONFIG_A": "y", "CONFIG_B": "m", "CONFIG_C": "n", "CONFIG_D": "16", "CONFIG_E": "n"}
    got = config.parse("CONFIG_A=y\nCONFIG_B=y\n# CONFIG_C is not set\nCONFIG_E=y\n")
    assert config.not_taken(asked, got, tree.src) == [
        "CONFIG_B=m (is y)",
        "CONFIG_D=16 (is n)",
        "CONFIG_E=n (is y)",
    ]
    assert config.not_taken(asked, {**asked, "CONFIG_MORE": "y"}, tree.src) == []


@pytest.mark.parametrize(("symbol", "file"), config.NOT_EVERYWHERE.items())
def test_what_only_some_kernels_have_may_be_missing_but_not_off(
    tree: KeptTree, symbol: str, file: str
) -> None:
    assert symbol in _fragment("upstream")
    assert config.not_taken({symbol: "y"}, {}, tree.src) == []
    (tree.src / file).write_text(f'config {symbol.removeprefix("CONFIG_")}\n\tbool "a prompt"\n')
    assert config.not_taken({symbol: "y"}, {}, tree.src) == [f"{symbol}=y (is n)"]


def test_options_that_the_fragment_leaves_open_are_found(tree: KeptTree) -> None:
    asked = {"CONFIG_VIRTUALIZATION": "y", "CONFIG_KVM": "m"}
    got = asked | {"CONFIG_KVM_COMMON": "y", "CONFIG_KVM_NEW": "n", "CONFIG_KVM_NR": "4", "CONFIG_NET": "y"}
    assert config.left_open(asked, got, tree.src) == ["CONFIG_KVM_NEW", "CONFIG_KVM_NR"]
    del got["CONFIG_KVM_NR"]  # cannot be set, as what it depends on is off
    assert config.left_open(asked, got, tree.src) == ["CONFIG_KVM_NEW"]
    text = "CONFIG_KVM=m\n# CONFIG_KVM_NEW is not set\n# CONFIG_KVM_NEWER is not set\n"
    assert config.without(text, ["CONFIG_KVM_NEW"]) == "CONFIG_KVM=m\n# CONFIG_KVM_NEWER is not set\n"


class _Kbuild:
    """Stands for make: writes what Kconfig writes, and knows the targets it was called with."""

    def __init__(self, kept: KeptTree) -> None:
        self.tree = kept
        self.new_option = "# CONFIG_KVM_NEW is not set\n"
        self.called: list[str] = []

    def __call__(self, tree: KeptTree, targets: Sequence[str], what: str, work: Work, **more: object) -> int:
        self.called += targets
        dotconfig = self.tree.out / ".config"
        if targets == ["allnoconfig"]:
            asked = (self.tree.out / "fragment.config").read_text()
            new = asked + self.new_option
            if not dotconfig.is_file() or dotconfig.read_text() != new:
                dotconfig.write_text(new)
        elif targets == ["olddefconfig"]:
            assert "CONFIG_KVM_NEW" not in dotconfig.read_text()
            dotconfig.write_text(dotconfig.read_text() + "CONFIG_KVM_NEW=y\n")
        return 0

    def compile(self) -> None:
        folder = self.tree.out / "include/config"
        folder.mkdir(parents=True, exist_ok=True)
        names = "".join(f"\t{name} \\\n" for name in config.KVM_KCONFIG)
        (folder / "auto.conf.cmd").write_text(f"deps_config := \\\n{names}\nifneq\n")
        (folder / "auto.conf").write_text("")


@pytest.fixture
def kbuild(tree: KeptTree, monkeypatch: pytest.MonkeyPatch) -> _Kbuild:
    fake = _Kbuild(tree)
    monkeypatch.setattr(configure, "run_make", fake)
    return fake


class _Build:
    """Configures and compiles as a kernel's build does, with make stood in for."""

    def __init__(self, tree: KeptTree, kbuild: _Kbuild, work: Work) -> None:
        self.tree, self.kbuild, self.work = tree, kbuild, work
        self.fragments: tuple[str, ...] = ("fragment.config",)
        self.meanwhile: Callable[[], object] = lambda: None

    def __call__(self) -> list[str]:
        """The targets that it took to configure."""
        self.kbuild.called.clear()
        asked = configure.configure(self.tree, self.fragments, self.work)
        self.kbuild.compile()
        self.meanwhile()
        configure.record(self.tree, asked)
        return list(self.kbuild.called)


@pytest.fixture
def build(tree: KeptTree, kbuild: _Kbuild, cache: Cache, report: Reporter, log: Log) -> _Build:
    return _Build(tree, kbuild, Work(cache, report, log, cache.root / "scratch"))


def test_an_option_that_is_new_to_us_has_the_trees_default(
    build: _Build, tree: KeptTree, said: io.StringIO
) -> None:
    assert build() == ["allnoconfig", "olddefconfig"]
    assert config.parse((tree.out / ".config").read_text())["CONFIG_KVM_NEW"] == "y"
    assert (
        "options of KVM that fragment.config lacks have their defaults: CONFIG_KVM_NEW=y" in said.getvalue()
    )


def test_a_folder_that_is_configured_is_not_configured_again(build: _Build, kbuild: _Kbuild) -> None:
    kbuild.new_option = ""
    assert build() == ["allnoconfig"]
    assert build() == []
    assert build() == []


def _later(path: Path) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**10))


def _kconfig_changes(build: _Build, monkeypatch: pytest.MonkeyPatch) -> None:
    _later(build.tree.src / config.KVM_KCONFIG[0])


def _kconfig_is_replaced_by_an_older_one(build: _Build, monkeypatch: pytest.MonkeyPatch) -> None:
    os.utime(build.tree.src / config.KVM_KCONFIG[0], ns=(1, 1))


def _kconfig_goes(build: _Build, monkeypatch: pytest.MonkeyPatch) -> None:
    (build.tree.src / config.KVM_KCONFIG[0]).rename(build.tree.src / "away")
    monkeypatch.setattr(config, "KVM_KCONFIG", config.KVM_KCONFIG[1:])


def _another_fragment(build: _Build, monkeypatch: pytest.MonkeyPatch) -> None:
    build.fragments = ("fragment.config", "debug.config")


def _config_is_edited(build: _Build, monkeypatch: pytest.MonkeyPatch) -> None:
    path = build.tree.out / ".config"
    status = path.stat()
    path.write_text(path.read_text().replace("CONFIG_KVM_SMM=y", "CONFIG_KVM_SMM=n"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _compiler_changes(build: _Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "versions", lambda *names: dict.fromkeys(names, "99"))


def _other_compiler(build: _Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLVM", "1")


def _make_did_not_read_it(build: _Build, monkeypatch: pytest.MonkeyPatch) -> None:
    _later(build.tree.out / ".config")


@pytest.mark.parametrize(
    "change",
    [
        _kconfig_changes,
        _kconfig_is_replaced_by_an_older_one,
        _kconfig_goes,
        _another_fragment,
        _config_is_edited,
        _compiler_changes,
        _other_compiler,
        _make_did_not_read_it,
    ],
)
def test_what_the_configuration_follows_from_configures_again(
    build: _Build,
    kbuild: _Kbuild,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[_Build, pytest.MonkeyPatch], None],
) -> None:
    kbuild.new_option = ""
    build()
    change(build, monkeypatch)
    assert build() == ["allnoconfig"]


def test_fragment_that_changes_while_make_runs_configures_again(
    build: _Build, kbuild: _Kbuild, monkeypatch: pytest.MonkeyPatch
) -> None:
    kbuild.new_option = ""
    build.meanwhile = lambda: _another_fragment(build, monkeypatch)
    build()
    build.meanwhile = lambda: None
    assert build() == ["allnoconfig"]


def test_a_symbol_that_is_refused_is_named_and_asked_for_again(
    build: _Build, kbuild: _Kbuild, monkeypatch: pytest.MonkeyPatch
) -> None:
    kbuild.new_option = "CONFIG_KVM_XEN=n\n"
    for _ in range(2):
        with pytest.raises(BuildError, match=r"does not take CONFIG_KVM_XEN=y \(is n\)"):
            build()
        kbuild.compile()
