# SPDX-License-Identifier: GPL-2.0-or-later
"""Build QEMU."""

from __future__ import annotations

import contextlib
import re
import shutil
from pathlib import Path

from images import chroot, ext4
from images.cache import Artefact, Cache, digest_files, digest_inputs, file_sha256
from images.commands import compiling, require_tools, run
from images.errors import BuildError, CommandError
from images.mmdebstrap import TAR
from images.progress import Reporter, Step
from images.qemu import precompiled, source
from images.qemu.debian import DEBIAN
from images.qemu.tree import Tarball, UserTree
from images.recipe import Recipe, Work
from images.sources import Source, first_that_builds
from images.tools import versions

BINARY = "qemu-system-x86_64"
IMAGE = "qemu.ext4"
"""A disk with nothing but the binary, for a nested host."""

_HERE = Path(__file__).parent
_RECIPE = ("build.py", "devices.mak", "precompiled.py", "tree.py")
_SHARED_RECIPE = ("chroot.py", "ext4.py", "patching.py")
_UUID = "3d7a2f10-7d3e-4c1b-9a56-0d0b1c3e5f03"
_TOOLS = (*chroot.TOOLS, "patch", "xz", "mke2fs")
_APT_TOOLS = ("apt-get", "dpkg", "gpgv|sqv")
_CONFIGURE = (
    # Its data and firmware are the stock QEMU's, wherever the binary is.
    *("--prefix=/usr", "--disable-relocatable", "--firmwarepath=/usr/share/qemu:/usr/share/seabios"),
    *("--cc=ccache gcc", "--target-list=x86_64-softmmu"),
    *("--without-default-features", "--enable-system", "--enable-kvm", "--disable-tcg"),
    *("--disable-tools", "--disable-docs", "--disable-guest-agent"),
    *("--enable-slirp", "--enable-vhost-kernel", "--enable-vhost-net", "--enable-linux-aio"),
    *("--enable-fdt=system", "--enable-trace-backends=log"),
    *("--disable-download", "--disable-werror", "--disable-install-blobs", "--disable-debug-info"),
    # A seventh of the compiler's time; a QEMU that has KVM run its guests does little itself.
    "-Doptimization=1",
    *("--without-default-devices", "--with-devices-x86_64=tdx-e2e"),
)
_PLACE = "build"
"""Folder of the build root that holds the following three."""
_SOURCE, _OUT, _CCACHE = "qemu", "out", "ccache"
_DEVICES = f"{_SOURCE}/configs/devices/x86_64-softmmu/tdx-e2e.mak"
# With CCACHE_DEPEND a file that ccache lacks is not preprocessed twice.
_ENVIRONMENT = {
    **{"CCACHE_DIR": f"/{_PLACE}/{_CCACHE}", "CCACHE_MAXSIZE": "300M", "CCACHE_DEPEND": "1"},
    **precompiled.ENVIRONMENT,
}
_PROGRESS = re.compile(r"^\[(\d+)/(\d+)\] ")
_FIRST_ERROR = re.compile(
    r"(: (fatal )?error: |undefined reference to|multiple definition of|^ERROR: |: ERROR: |"
    r"^Could not provide build dependency)"
)


def series() -> tuple[Path, ...]:
    """Our patches, in order."""
    return tuple(sorted((_HERE / "patches").glob("*.patch")))


def patch_hash(patches: tuple[Path, ...] | None = None) -> str:
    """12 hexadecimal digits over patches, by default ours."""
    return digest_inputs({"patches": _patch_inputs(series() if patches is None else patches)})[:12]


def _patch_inputs(patches: tuple[Path, ...]) -> list[list[str]]:
    return [[path.name, file_sha256(path)] for path in patches]


class Qemu(Recipe):
    """QEMU, compiled in a Debian of its own.

    :param label: how it differs from others in the cache.

    ccache keeps the objects: after a change of one patch only what it touches is compiled again.
    """

    kind = "qemu"
    what = "QEMU"
    space = 2_000_000_000

    def __init__(self, origin: Tarball | UserTree, *, label: str = "") -> None:
        self.origin = origin
        self._patches = () if isinstance(origin, UserTree) else origin.patches
        self.label = label or ("tree" if isinstance(origin, UserTree) else "patched")
        self.tools = _TOOLS if isinstance(origin, UserTree) else _TOOLS + _APT_TOOLS

    def inputs(self) -> dict[str, object]:
        return {
            "base": self.origin.identity(),
            "patches": _patch_inputs(self._patches),
            "configure": list(_CONFIGURE),
            "buildroot": DEBIAN.key(),
            "recipe": digest_files(_HERE, _RECIPE) | digest_files(_HERE.parent, _SHARED_RECIPE),
            "tools": versions("mke2fs"),
        }

    def make(self, work: Work) -> dict[str, object]:
        root = work.scratch / "root"
        place = root / _PLACE
        self.origin.bring(place / _SOURCE, work)
        shutil.copyfile(_HERE / "devices.mak", place / _DEVICES)
        debian = DEBIAN.ensure(work.cache, work.reporter, mirror=work.mirror)
        kept = work.cache.ccache / "qemu.tar"
        with work.reporter.step("qemu: unpacking the build root"):
            chroot.unpack(debian.path / TAR, root, work.log)
            (place / _OUT).mkdir()
            (place / _CCACHE).mkdir()
            if kept.is_file():
                chroot.unpack(kept, place / _CCACHE, work.log)
        hash_ = patch_hash(self._patches) if self._patches else ""
        with work.reporter.step("qemu: configuring"):
            argv = [f"../{_SOURCE}/configure", *_CONFIGURE, f"--with-pkgversion=tdx-e2e-{hash_ or 'tree'}"]
            _run(root, argv, "QEMU's configure failed", work)
        with compiling(), work.reporter.step("qemu: compiling", total=1) as step:
            _precompile(root, work)
            _run(root, ["ninja", BINARY], "QEMU does not build", work, step)
        _run(root, ["strip", BINARY], "stripping QEMU failed", work)
        (place / _OUT / BINARY).rename(work.out / BINARY)
        _write_disk(work.out / BINARY, work)
        _keep(place / _CCACHE, kept, work)
        packages = debian.manifest()["packages"]
        return {"version": self.origin.version(), "patch_hash": hash_, "packages": packages}


def _precompile(root: Path, work: Work) -> None:
    """Compile the header that all files begin with; where that fails, a build just takes longer."""
    place = root / _PLACE
    (place / _SOURCE / precompiled.FOLDER).mkdir(parents=True)
    database = (place / _OUT / "compile_commands.json").read_text()
    with contextlib.suppress(BuildError):
        _run(root, ["ninja", *precompiled.NEEDED], "precompiling failed", work)
        for argv in precompiled.commands(database, f"/{_PLACE}/{_SOURCE}"):
            _run(root, argv, "precompiling failed", work)


def _run(root: Path, argv: list[str], what: str, work: Work, step: Step | None = None) -> None:
    output = Output(step)
    cwd = f"/{_PLACE}/{_OUT}"
    try:
        chroot.run(root, argv, log=work.log, what=what, cwd=cwd, env=_ENVIRONMENT, on_line=output.line)
    except CommandError as error:
        if not output.first_error:
            raise
        message = f"{what}: {output.first_error}"
        raise BuildError(message, hint="the log has all of it", log=work.log.path) from error


def _write_disk(binary: Path, work: Work) -> None:
    folder = work.scratch / "disk"
    folder.mkdir()
    shutil.copy(binary, folder)
    ext4.make_image(folder, work.out / IMAGE, label="tdx-e2e-qemu", uuid=_UUID, log=work.log)


def _keep(ccache: Path, target: Path, work: Work) -> None:
    """Keep the compiled objects for the next build."""
    new = work.scratch / target.name
    argv: list[str | Path] = ["tar", "-c", "-f", new, "-C", ccache, "."]
    run(argv, log=work.log, what="keeping what was compiled failed")
    target.parent.mkdir(parents=True, exist_ok=True)
    new.replace(target)


class Output:
    """Reads the output of configure and ninja: progress, and the first error.

    :param step: advanced up to 1.
    """

    def __init__(self, step: Step | None = None) -> None:
        self.first_error = ""
        self._step = step
        self._done = 0.0

    def line(self, line: str) -> None:
        if match := _PROGRESS.match(line):
            done = int(match[1]) / max(1, int(match[2]))
            if self._step is not None and done > self._done:
                self._step.advance(done - self._done)
                self._done = done
        elif not self.first_error and _FIRST_ERROR.search(line):
            self.first_error = line.strip().replace(f"../{_SOURCE}/", "")


def recipe(cache: Cache, tree: Path | None = None) -> Qemu | None:
    """The recipe for the present inputs; None as long as no source was chosen.

    :param tree: a user's tree instead of the source that was used last and our patches.
    :raises BuildError: it is not a QEMU tree.
    """
    if tree is not None:
        return Qemu(UserTree(tree))
    used = source.last_used(cache).recall()
    return Qemu(Tarball(used, series())) if used else None


def find(cache: Cache, tree: Path | None = None) -> Artefact | None:
    """The finished QEMU for the present inputs, or None."""
    wanted = recipe(cache, tree)
    return wanted.find(cache) if wanted else None


def ensure(
    cache: Cache,
    reporter: Reporter,
    *,
    tree: Path | None = None,
    mirror: str | None = None,
    refresh: bool = False,
) -> Artefact:
    """QEMU, built if it is not in the cache.

    :param tree: a user's tree, built as it is; it is not modified.
    :param mirror: URI of a Debian archive; the host's by default.
    :param refresh: ask the mirror for a newer version, though the cache has one.
    :raises BuildError: it cannot be built.
    """
    if tree is not None:
        return Qemu(UserTree(tree)).ensure(cache, reporter, mirror=mirror)

    def build(candidate: Source) -> Artefact:
        return Qemu(Tarball(candidate, series())).ensure(cache, reporter, mirror=mirror)

    require_tools(_TOOLS + _APT_TOOLS, "QEMU")
    candidates = source.candidates(cache, reporter, mirror=mirror, refresh=refresh)
    used, found = first_that_builds(candidates, build, reporter)
    source.last_used(cache).record(None, used)
    source.forget_others(cache, used)
    return found
