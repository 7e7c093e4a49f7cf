# SPDX-License-Identifier: GPL-2.0-or-later
"""Building a kernel and its modules disk.

The source tree and its build folder are kept, one pair per base and compiler, and shared by the flavours:
going from one to another rebuilds only what their patches touch.  A finished artefact is found by the hash
of everything that went into it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from images import ext4, tools, trees
from images.cache import Artefact, Cache, digest_files, digest_inputs, file_sha256, remove_tree
from images.commands import Log, require_tools, run
from images.errors import BuildError, CommandError
from images.kernel import config, flavours, needed, package, unchanged
from images.kernel.flavours import Flavour
from images.kernel.package import Source
from images.kernel.tree import Base, KeptTree, PackageBase, UserBase
from images.patching import PatchError, work_out
from images.progress import Reporter, Step

KIND = "kernel"
SOFTSEAM = "arch/x86/virt/softseam"
BZIMAGE, MODULES, MODULES_IMAGE = "bzImage", "modules", "modules.ext4"

_HERE = Path(__file__).parent
_RECIPE = ("build.py", "config.py", "needed.py", "tree.py", "unchanged.py")
_SHARED_RECIPE = ("ext4.py", "patching.py", "trees.py")
_UUID = "3d7a2f10-7d3e-4c1b-9a56-0d0b1c3e5f02"
_OUT_BYTES = 700_000_000
_USUAL_OBJECTS = 1900
_TOOLS = {
    **{tool: tool for tool in ("make", "gcc", "flex", "bison", "bc", "patch", "tar", "perl")},
    **{"ld": "binutils", "strip": "binutils", "mke2fs": "e2fsprogs", "xz": "xz-utils"},
    "setpriv": "util-linux",
}
_APT_TOOLS = {"apt-get": "apt", "dpkg-deb": "dpkg", "gpgv": "gpgv"}
# Loaded by the nested host's init, in this order; modules that a kernel lacks are left out.
_AUTOLOAD = (("irqbypass.ko", ""), ("kvm.ko", ""), ("kvm-intel.ko", "tdx=1 nested=0"))
_FIRST_ERROR = re.compile(
    r"(: (fatal )?error: |undefined reference to|multiple definition of|^ld: |No rule to make target|"
    r"modpost: .*undefined!|^\S*Kconfig:\d+: )"
)
_MADE = re.compile(r"^  (CC|AS|LD|AR|HOSTCC|HOSTLD|GEN|OBJCOPY|ZOFFSET|GZIP|MODPOST|LD|CHK|UPD)\b")


@dataclass(frozen=True)
class Request:
    """Which kernel is wanted.

    :param kernel_tree: a tree of the user's instead of Debian's source.
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


def _inputs(flavour: Flavour, base: dict[str, object]) -> dict[str, object]:
    return {
        "base": base,
        "flavour": flavour.name,
        "kvm_unchanged": flavour.kvm_unchanged,
        **_patch_inputs(flavour),
        "config": [file_sha256(_HERE / name) for name in flavour.fragments],
        "recipe": digest_files(_HERE, _RECIPE) | digest_files(_HERE.parent, _SHARED_RECIPE),
        "tools": tools.versions("gcc", "ld", "make", "mke2fs"),
    }


def _source_base(source: Source) -> dict[str, object]:
    return {"package": source.package, "version": source.version, "sha256": source.sha256}


def _label(flavour: Flavour, request: Request) -> str:
    return f"{flavour.name}-tree" if request.kernel_tree else flavour.name


def find(cache: Cache, request: Request) -> Artefact | None:
    """The finished kernel for the present inputs, or None.  Of Debian's sources, the one used last."""
    flavour = flavours.get(request.flavour)
    if request.kernel_tree is not None:
        user = UserBase(request.kernel_tree)
        base = trees.identity(user.folder, user.files())
    else:
        source = package.memory(cache).recall(request.version)
        if source is None:
            return None
        base = _source_base(source)
    return cache.find(KIND, _label(flavour, request), digest_inputs(_inputs(flavour, base)))


def ensure(
    cache: Cache, request: Request, reporter: Reporter, *, mirror: str | None = None, refresh: bool = False
) -> Artefact:
    """The kernel, built if it is not in the cache.

    :param refresh: ask the mirror for a newer point release, though one is in the cache.
    :raises BuildError: it cannot be built.
    """
    require_tools(_TOOLS | ({} if request.kernel_tree else _APT_TOOLS), "the kernel")
    if not refresh and (found := find(cache, request)):
        return found
    flavour = flavours.get(request.flavour)
    with cache.new_log(f"{KIND}-{flavour.name}") as log:
        reporter.note(f"building the kernel, flavour {flavour.name}; log: {log.path}")
        try:
            return _Builder(cache, request, flavour, reporter, log, mirror).ensure(refresh)
        except OSError as error:
            if error.errno is None:
                raise
            raise BuildError(f"{error.strerror}: {error.filename}", log=log.path) from error


class _Builder:
    """One build: what it needs on its way."""

    def __init__(
        self,
        cache: Cache,
        request: Request,
        flavour: Flavour,
        reporter: Reporter,
        log: Log,
        mirror: str | None,
    ) -> None:
        self._cache = cache
        self._request = request
        self._flavour = flavour
        self._reporter = reporter
        self._log = log
        self._mirror = mirror
        self._first_step = len(reporter.timings)

    def ensure(self, refresh: bool) -> Artefact:
        if self._request.kernel_tree is not None:
            return self._from_user_tree(UserBase(self._request.kernel_tree))
        memory = package.memory(self._cache)
        known = None if refresh else memory.recall(self._request.version)
        if known is not None and (self._package_folder(known.package, known.version) / "src").is_dir():
            return self._from_package(known.package, known.version, None)
        archive = package.Archive(self._cache, self._mirror, self._log, self._reporter)
        candidates = archive.candidates(self._request.version)
        if known is not None:
            # The tree was cleaned away; the version that the cache's kernels were made from comes first.
            candidates.sort(key=lambda item: item != (known.package, known.version))
        for number, (name, version) in enumerate(candidates, 1):
            try:
                return self._from_package(name, version, archive)
            except PatchError as error:
                # A series that was asked for, or is the usual one, has to work; another is a stopgap.
                if number == len(candidates):
                    raise
                self._reporter.note(f"kernel: {error.message}; trying the next older series")
        raise AssertionError("candidates are never empty")

    def _package_folder(self, name: str, version: str) -> Path:
        return self._cache.trees / f"{name}_{version}"

    def _from_package(self, name: str, version: str, archive: package.Archive | None) -> Artefact:
        folder = self._package_folder(name, version)
        with self._cache.lock(f"tree-{folder.name}", self._reporter):
            known = _facts_of(folder)
            if known is None:
                if archive is None:
                    archive = package.Archive(self._cache, self._mirror, self._log, self._reporter)
                    archive.candidates(version)
                self._fetch(name, version, folder, archive)
                known = _facts_of(folder)
                assert known is not None
            source = Source(name, version, known["sha256"])
            inputs = _inputs(self._flavour, _source_base(source))
            memory = package.memory(self._cache)
            found = self._cache.find(KIND, _label(self._flavour, self._request), digest_inputs(inputs))
            if found is None:
                tree = KeptTree(folder, self._flavour.config)
                found = self._build(tree, PackageBase(tree, known["kvm"]), source.upstream, inputs)
            memory.remember(self._request.version, source)
            return found

    def _fetch(self, name: str, version: str, folder: Path, archive: package.Archive) -> None:
        self._cache.require_space(package.UNPACKED_BYTES + _OUT_BYTES, "the kernel source")
        with self._cache.scratch(KIND) as scratch:
            source, deb = archive.fetch(name, version, scratch)
            whole = scratch / "tree"
            whole.mkdir()
            hashes = package.unpack(deb, whole / "src", self._log, self._reporter)
            (whole / "unpack.err").unlink(missing_ok=True)
            facts = {
                "package": name,
                "version": version,
                "sha256": source.sha256,
                "left_out": list(needed.LEFT_OUT),
                "kvm": hashes,
            }
            (whole / "package.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
            folder.parent.mkdir(parents=True, exist_ok=True)
            remove_tree(folder)
            whole.rename(folder)

    def _from_user_tree(self, user: UserBase) -> Artefact:
        key = hashlib.sha256(str(user.folder).encode()).hexdigest()[:12]
        folder = self._cache.trees / f"user-{user.folder.name}-{key}"
        with self._cache.lock(f"tree-{folder.name}", self._reporter):
            inputs = _inputs(self._flavour, trees.identity(user.folder, user.files()))
            label = _label(self._flavour, self._request)
            if found := self._cache.find(KIND, label, digest_inputs(inputs)):
                return found
            self._cache.require_space(package.UNPACKED_BYTES + _OUT_BYTES, "the copy of the kernel tree")
            folder.mkdir(parents=True, exist_ok=True)
            tree = KeptTree(folder, self._flavour.config)
            with self._reporter.step(f"kernel: copying what changed in {user.folder}"):
                moved = user.copy_to(tree)
                self._log.note(f"{moved} files differed from the copy")
            return self._build(tree, user, user.version(), inputs)

    def _build(self, tree: KeptTree, base: Base, version: str, inputs: dict[str, object]) -> Artefact:
        content_hash = digest_inputs(inputs)
        label = _label(self._flavour, self._request)
        self._cache.require_space(_OUT_BYTES, "the kernel")
        with self._cache.scratch(KIND) as scratch:
            compared = self._prepare(tree, base, version, scratch)
            self._configure(tree)
            self._make(tree)
            out = scratch / "out"
            release = (tree.out / "include/config/kernel.release").read_text().strip()
            facts = {
                "flavour": self._flavour.name,
                "version": version,
                "release": release,
                "patch_hash": patch_hash(self._flavour),
                "content_hash": content_hash,
                "base": inputs["base"],
            }
            self._collect(tree, out, facts)
            manifest = {
                **facts,
                "inputs": inputs,
                "kvm_files_compared": compared.compared,
                "kvm_files_changed": list(compared.changed),
                "steps": dict(self._reporter.timings[self._first_step :]),
            }
            (out / "build.log").write_bytes(self._log.path.read_bytes())
            return self._cache.publish(out, KIND, label, content_hash, manifest)

    def _prepare(self, tree: KeptTree, base: Base, version: str, scratch: Path) -> unchanged.Comparison:
        with self._reporter.step("kernel: applying hooks, softseam and patches"):
            additions = {
                f"{SOFTSEAM}/{path.relative_to(_HERE / 'softseam')}": path.read_bytes()
                for path in sorted((_HERE / "softseam").rglob("*"))
                if path.is_file()
            }
            steps = (flavours.hook_patches(), additions, self._flavour.patches)
            work = scratch / "patching"
            work.mkdir()
            changes = work_out(
                base.read,
                steps,
                work,
                onto=f"Linux {version}",
                otherwise="take another version with --kernel-version",
                log=self._log,
                left_out=lambda path: not needed.is_needed(path),
            )
            for path in tree.apply(changes, base):
                self._log.note(f"written: {path}")
        with self._reporter.step("kernel: comparing KVM's files with the base"):
            compared = unchanged.compare(base.guarded(), tree.src)
        self._log.note(f"{compared.compared} files of KVM compared; changed: {compared.changed or 'none'}")
        if self._flavour.kvm_unchanged:
            if compared.changed:
                raise BuildError(
                    f"flavour {self._flavour.name} must not change KVM, but {compared.changed[0]} differs"
                    f" from the base ({len(compared.changed)} in all)",
                    hint="move the change out of the hooks into a flavour, or `python -m images clean`",
                    log=self._log.path,
                )
            self._reporter.note(f"kernel: {compared.compared} files of KVM are the base's, unchanged")
        return compared

    def _configure(self, tree: KeptTree) -> None:
        with self._reporter.step("kernel: configuring"):
            tree.out.mkdir(exist_ok=True)
            fragment = tree.out / "fragment.config"
            asked: dict[str, str] = {}
            for name in self._flavour.fragments:
                asked |= config.parse((_HERE / name).read_text())
            fragment.write_text("".join(f"{symbol}={value}\n" for symbol, value in asked.items()))
            self._run_make(tree, ["allnoconfig"], {"KCONFIG_ALLCONFIG": str(fragment)}, "configuring failed")
            got = config.parse((tree.out / ".config").read_text())
        refused = config.not_taken(asked, got)
        if refused:
            raise BuildError(
                f"the kernel's configuration does not take {', '.join(refused)}",
                hint="a dependency is missing, or the symbol is gone: see "
                f"{' and '.join(self._flavour.fragments)} in {_HERE}",
                log=self._log.path,
            )

    def _make(self, tree: KeptTree) -> None:
        memory = tree.folder / "objects"
        usual = int(memory.read_text()) if memory.is_file() else _USUAL_OBJECTS
        with self._reporter.step("kernel: compiling", total=usual) as step:
            made = self._run_make(tree, ["bzImage", "modules"], {}, "the kernel does not build", step)
        if not memory.is_file():
            memory.write_text(f"{made}\n")

    def _run_make(
        self,
        tree: KeptTree,
        targets: list[str],
        env: dict[str, str],
        what: str,
        step: Step | None = None,
    ) -> int:
        """Returns how many files were made."""
        made = 0
        first_error = ""

        def on_line(line: str) -> None:
            nonlocal made, first_error
            if _MADE.match(line):
                made += 1
                if step is not None:
                    step.advance()
            elif not first_error and _FIRST_ERROR.search(line):
                first_error = line.strip()

        jobs = f"-j{os.cpu_count() or 1}"
        argv: list[str | Path] = ["make", "-C", tree.src, f"O={tree.out}", jobs, *targets]
        try:
            run(argv, log=self._log, env=_make_environment() | env, what=what, on_line=on_line)
        except CommandError as error:
            if not first_error:
                raise
            text = first_error.replace(f"{tree.src}/", "")
            raise BuildError(f"{what}: {text}", hint="the log has all of it", log=self._log.path) from error
        return made

    def _collect(self, tree: KeptTree, out: Path, facts: dict[str, object]) -> None:
        with self._reporter.step("kernel: writing the modules disk"):
            folder = out / MODULES
            folder.mkdir(parents=True)
            shutil.copyfile(tree.out / "arch/x86/boot/bzImage", out / BZIMAGE)
            for name in ("System.map", "vmlinux"):
                shutil.copyfile(tree.out / name, out / name)
            shutil.copyfile(tree.out / ".config", out / "config")
            for line in (tree.out / "modules.order").read_text().split():
                module = (tree.out / line).with_suffix(".ko")
                run(
                    ["strip", "--strip-debug", "-o", folder / module.name, module],
                    log=self._log,
                    what=f"stripping {module.name} failed",
                )
            (folder / "autoload").write_text(autoload(lambda name: (folder / name).is_file()))
            (folder / "kernel.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
            ext4.make_image(folder, out / MODULES_IMAGE, label="tdx-e2e-modules", uuid=_UUID, log=self._log)


def _facts_of(folder: Path) -> dict[str, Any] | None:
    """What is known of an unpacked package; None when it is not there, or was unpacked in another way."""
    try:
        facts: dict[str, Any] = json.loads((folder / "package.json").read_text())
    except FileNotFoundError:
        return None
    return facts if facts.get("left_out") == list(needed.LEFT_OUT) else None


def autoload(is_there: Callable[[str], bool]) -> str:
    """What init loads: a line per module, its file name and its parameters."""
    lines = [f"{name} {parameters}".strip() for name, parameters in _AUTOLOAD if is_there(name)]
    return "".join(line + "\n" for line in lines)


def _make_environment() -> dict[str, str]:
    """The same kernel from the same sources, whoever builds it, whenever."""
    return {
        "ARCH": "x86",
        "KBUILD_BUILD_TIMESTAMP": "@0",
        "KBUILD_BUILD_USER": "tdx-e2e",
        "KBUILD_BUILD_HOST": "tdx-e2e",
        "KBUILD_BUILD_VERSION": "1",
        "LOCALVERSION": "",
    }
