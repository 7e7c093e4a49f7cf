# SPDX-License-Identifier: GPL-2.0-or-later
"""Build a kernel and its modules disk."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from images import ext4, tools
from images.cache import Artefact, Cache, digest_files, digest_inputs, file_sha256
from images.commands import compiling, require_tools, run
from images.errors import BuildError
from images.kernel import configure, flavours, patched, source, unchanged
from images.kernel.compiled import ALL, Compiled, is_of_a_module
from images.kernel.flavours import Flavour
from images.kernel.make import run_make
from images.kernel.tree import OUT_BYTES, Base, KeptTree, Origin, Package, UserTree
from images.progress import Reporter
from images.recipe import Recipe, Work
from images.sources import Source, first_that_builds

BZIMAGE, MODULES, MODULES_IMAGE = "bzImage", "modules", "modules.ext4"
KEPT_OF_A_TREE = 4
"""Kernels of a user's tree, 25 MB each, that stay in the cache: other runs may be using them."""

_HERE = Path(__file__).parent
_RECIPE = (
    *("build.py", "compiled.py", "config.py", "configure.py", "make.py", "needed.py", "patched.py"),
    *("tree.py", "unchanged.py"),
)
_SHARED_RECIPE = ("ext4.py", "patching.py", "trees.py")
_UUID = "3d7a2f10-7d3e-4c1b-9a56-0d0b1c3e5f02"
_USUAL_OBJECTS = 1900
_TOOLS = (
    *("make", "gcc", "ld", "strip", "flex", "bison", "bc", "perl"),
    *("patch", "tar", "xz", "mke2fs", "setpriv"),
)
_APT_TOOLS = ("apt-get", "dpkg-deb", "gpgv|sqv")
# The nested host's init loads them in this order; modules that a kernel lacks are left out.
_AUTOLOAD = (("irqbypass.ko", ""), ("kvm.ko", ""), ("kvm-intel.ko", "tdx=1 nested=0"))


@dataclass(frozen=True)
class Request:
    """The kernel that a caller wants.

    :param kernel_tree: a user's tree instead of Debian's source.
    :param version: of Debian's source: ``7.3``, ``7.3.4`` or the whole Debian version.
    """

    flavour: str = flavours.DEFAULT
    kernel_tree: Path | None = None
    version: str | None = None


def patch_hash(flavour: Flavour) -> str:
    """12 hexadecimal digits over the hooks, softseam and the flavour's patches."""
    return digest_inputs(_patch_inputs(flavour))[:12]


def _patch_inputs(flavour: Flavour) -> dict[str, object]:
    return {
        "hooks": [[path.name, file_sha256(path)] for path in flavours.hook_patches()],
        "softseam": digest_files(_HERE / "softseam"),
        "patches": [[path.name, file_sha256(path)] for path in flavour.patches],
    }


class Kernel(Recipe):
    """A kernel and its modules disk.

    The source tree is kept, one per base, and its build folders, one per configuration and compiler; the
    flavours share them: going from one to another rebuilds only what their patches touch.
    """

    kind = "kernel"
    space = OUT_BYTES

    def __init__(self, flavour: Flavour, origin: Origin, cache: Cache) -> None:
        self.flavour = flavour
        self.origin = origin
        tree = isinstance(origin, UserTree)
        self.what = f"the kernel, flavour {flavour.name}"
        self.label = f"{flavour.name}-tree" if tree else flavour.name
        self.tools = _TOOLS if tree else _TOOLS + _APT_TOOLS
        self._folder = origin.kept_folder(cache)

    @property
    def lock(self) -> str:
        return f"tree-{self._folder.name}"

    def inputs(self) -> dict[str, object]:
        return {
            "base": self.origin.identity(),
            "flavour": self.flavour.name,
            "kvm_unchanged": self.flavour.kvm_unchanged,
            **_patch_inputs(self.flavour),
            "config": [file_sha256(_HERE / name) for name in self.flavour.fragments],
            "recipe": digest_files(_HERE, _RECIPE) | digest_files(_HERE.parent, _SHARED_RECIPE),
            "tools": tools.versions("gcc", "ld", "make", "mke2fs"),
        }

    def make(self, work: Work) -> dict[str, object]:
        tree = KeptTree(self._folder, self.flavour.config, tools.version("gcc"))
        base = self.origin.bring(tree, work)
        compared = self._prepare(tree, base, work)
        asked = configure.configure(tree, self.flavour.fragments, work)
        try:
            modules = self._compile(tree, work)
        finally:
            configure.record(tree, asked)
        facts: dict[str, object] = {
            "flavour": self.flavour.name,
            "version": self.origin.version(),
            "release": (tree.out / "include/config/kernel.release").read_text().strip(),
            "patch_hash": patch_hash(self.flavour),
        }
        self._collect(tree, modules, facts, work)
        return {
            **facts,
            "kvm_files_compared": compared.compared,
            "kvm_files_changed": list(compared.changed),
        }

    def _prepare(self, tree: KeptTree, base: Base, work: Work) -> unchanged.Comparison:
        with work.reporter.step("kernel: applying hooks, softseam and patches"):
            beside = work.scratch / "patching"
            beside.mkdir()
            changes = patched.changes(
                self.flavour,
                base.read,
                beside,
                onto=f"Linux {self.origin.version()}",
                otherwise=self.origin.otherwise(),
                log=work.log,
            )
            for path in tree.apply(changes, base):
                work.log.note(f"written: {path}")
        with work.reporter.step("kernel: comparing KVM's files with the base"):
            compared = unchanged.compare(base.guarded(), tree.src)
        work.log.note(f"{compared.compared} files of KVM compared; changed: {compared.changed or 'none'}")
        if self.flavour.kvm_unchanged:
            if compared.changed:
                raise BuildError(
                    f"flavour {self.flavour.name} must not change KVM, but {compared.changed[0]} differs"
                    f" from the base ({len(compared.changed)} in all)",
                    hint="move the change out of the hooks into a flavour, or `python -m images clean`",
                    log=work.log.path,
                )
            work.reporter.note(f"kernel: {compared.compared} files of KVM are the base's, unchanged")
        return compared

    def _compile(self, tree: KeptTree, work: Work) -> list[str]:
        """Bring the build folder up to date; returns the paths of its modules."""
        compiled = Compiled(tree, self.origin.identity_without(is_of_a_module))
        targets = compiled.targets()
        if targets != ALL:
            with compiling(), work.reporter.step("kernel: compiling KVM"):
                run_make(tree, targets, "KVM does not build", work)
            return targets
        compiled.begin()
        record = tree.folder / "objects"
        usual = int(record.read_text()) if record.is_file() else _USUAL_OBJECTS
        with compiling(), work.reporter.step("kernel: compiling", total=usual) as step:
            made = run_make(tree, targets, "the kernel does not build", work, step=step)
        compiled.done()
        if not record.is_file():
            record.write_text(f"{made}\n")
        return compiled.modules()

    def _collect(self, tree: KeptTree, modules: list[str], facts: dict[str, object], work: Work) -> None:
        out = work.out
        with work.reporter.step("kernel: writing the modules disk"):
            folder = out / MODULES
            folder.mkdir(parents=True)
            shutil.copyfile(tree.out / "arch/x86/boot/bzImage", out / BZIMAGE)
            for name in ("System.map", "vmlinux"):
                shutil.copyfile(tree.out / name, out / name)
            shutil.copyfile(tree.out / ".config", out / "config")
            for module in map(tree.out.joinpath, modules):
                run(
                    ["strip", "--strip-debug", "-o", folder / module.name, module],
                    log=work.log,
                    what=f"stripping {module.name} failed",
                )
            (folder / "autoload").write_text(autoload(lambda name: (folder / name).is_file()))
            (folder / "kernel.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
            ext4.make_image(folder, out / MODULES_IMAGE, label="tdx-e2e-modules", uuid=_UUID, log=work.log)


def autoload(is_there: Callable[[str], bool]) -> str:
    """The list for init: a line per module, its file name and its parameters."""
    lines = [f"{name} {parameters}".strip() for name, parameters in _AUTOLOAD if is_there(name)]
    return "".join(line + "\n" for line in lines)


def find(cache: Cache, request: Request) -> Artefact | None:
    """The finished kernel for the present inputs, or None; of Debian's sources, from the last one used."""
    kernel = _known(cache, request)
    return kernel.find(cache) if kernel else None


def key(cache: Cache, request: Request) -> str:
    """The content hash of the kernel for the present inputs, empty where :func:`find` has no source."""
    kernel = _known(cache, request)
    return kernel.key() if kernel else ""


def _known(cache: Cache, request: Request) -> Kernel | None:
    flavour = flavours.get(request.flavour)
    if request.kernel_tree is not None:
        return Kernel(flavour, UserTree(request.kernel_tree), cache)
    used = source.last_used(cache).recall(request.version)
    return Kernel(flavour, Package(used), cache) if used else None


def ensure(
    cache: Cache, request: Request, reporter: Reporter, *, mirror: str | None = None, refresh: bool = False
) -> Artefact:
    """The kernel, built if it is not in the cache.

    :param refresh: ask the mirror for a newer point release, though the cache has one.
    :raises BuildError: it cannot be built.
    """
    flavour = flavours.get(request.flavour)
    if request.kernel_tree is not None:
        origin = UserTree(request.kernel_tree)
        made = Kernel(flavour, origin, cache).ensure(cache, reporter)
        _forget_older(cache, made.label, origin.folder)
        return made

    def build(candidate: Source) -> Artefact:
        return Kernel(flavour, Package(candidate), cache).ensure(cache, reporter, mirror=mirror)

    require_tools(_TOOLS + _APT_TOOLS, "the kernel")
    asked = request.version
    candidates = source.candidates(cache, reporter, mirror=mirror, asked=asked, refresh=refresh)
    used, found = first_that_builds(candidates, build, reporter)
    source.last_used(cache).record(asked, used)
    return found


def _forget_older(cache: Cache, label: str, tree: Path) -> None:
    """Remove all kernels of a user's tree but the newest few: each change of a line makes one."""
    kernels = (made for made in cache.artefacts() if (made.kind, made.label) == (Kernel.kind, label))
    # Another process may do the same.
    with contextlib.suppress(FileNotFoundError):
        of_tree = [made for made in kernels if made.manifest()["inputs"]["base"]["tree"] == str(tree)]
        for old in of_tree[KEPT_OF_A_TREE:]:
            cache.discard(old)
