# SPDX-License-Identifier: GPL-2.0-or-later
"""Building QEMU, in a Debian of its own.

What was compiled is kept by ccache: after a change of one patch only what it touches is compiled again.  A
finished artefact is found by the hash of everything that went into it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path

from images import chroot, trees
from images.apt import NotThere
from images.cache import Artefact, Cache, digest_files, digest_inputs, file_sha256
from images.commands import Log, require_tools, run
from images.errors import BuildError, CommandError
from images.mmdebstrap import TAR
from images.patching import PatchError, work_out
from images.progress import Reporter, Step
from images.qemu import source
from images.qemu.buildroot import DEBIAN
from images.qemu.source import Source
from images.qemu.tree import LEFT_OUT, UserTree

KIND = "qemu"
BINARY = "qemu-system-x86_64"

_HERE = Path(__file__).parent
_RECIPE = ("build.py", "tree.py")
_SHARED_RECIPE = ("chroot.py", "patching.py")
_TOOLS = {**chroot.TOOLS, "patch": "patch", "xz": "xz-utils"}
_APT_TOOLS = {"apt-get": "apt", "dpkg": "dpkg", "gpgv": "gpgv"}
_NEEDED_BYTES = 2_000_000_000
_CONFIGURE = (
    # Its data and firmware are the stock QEMU's, wherever the binary is.
    *("--prefix=/usr", "--disable-relocatable", "--firmwarepath=/usr/share/qemu:/usr/share/seabios"),
    *("--cc=ccache gcc", "--target-list=x86_64-softmmu"),
    *("--without-default-features", "--enable-system", "--enable-kvm", "--disable-tcg"),
    *("--disable-tools", "--disable-docs", "--disable-guest-agent"),
    *("--enable-slirp", "--enable-vhost-kernel", "--enable-vhost-net", "--enable-linux-aio"),
    *("--enable-fdt=system", "--enable-trace-backends=log"),
    *("--disable-download", "--disable-werror", "--disable-install-blobs"),
)
_PLACE = "build"
"""Folder of the build root that holds what follows."""
_SOURCE, _OUT, _CCACHE = "qemu", "out", "ccache"
_ENVIRONMENT = {"CCACHE_DIR": f"/{_PLACE}/{_CCACHE}", "CCACHE_MAXSIZE": "300M"}
_PROGRESS = re.compile(r"^\[(\d+)/(\d+)\] ")
_FIRST_ERROR = re.compile(
    r"(: (fatal )?error: |undefined reference to|multiple definition of|^ERROR: |: ERROR: |"
    r"^Could not provide build dependency)"
)


def series() -> tuple[Path, ...]:
    """Our patches, in order."""
    return tuple(sorted((_HERE / "patches").glob("*.patch")))


def patch_hash() -> str:
    """12 hexadecimal digits over our patches."""
    return digest_inputs({"patches": _patch_inputs()})[:12]


def _patch_inputs() -> list[list[str]]:
    return [[path.name, file_sha256(path)] for path in series()]


def _inputs(base: dict[str, object], *, patched: bool) -> dict[str, object]:
    return {
        "base": base,
        "patches": _patch_inputs() if patched else [],
        "configure": list(_CONFIGURE),
        "buildroot": digest_inputs(DEBIAN.inputs()),
        "recipe": digest_files(_HERE, _RECIPE) | digest_files(_HERE.parent, _SHARED_RECIPE),
    }


def _source_inputs(chosen: Source) -> dict[str, object]:
    return _inputs({"version": chosen.version, "sha256": chosen.sha256}, patched=True)


def _tree_inputs(user: UserTree, files: dict[str, str]) -> dict[str, object]:
    return _inputs(trees.identity(user.folder, files), patched=False)


def _label(tree: Path | None) -> str:
    return "tree" if tree is not None else "patched"


def content_hash(cache: Cache, tree: Path | None = None) -> str | None:
    """The hash of the present inputs; None as long as no source was chosen.

    :param tree: a tree of the user's instead of the source that was used last and our patches.
    :raises BuildError: it is no QEMU tree.
    """
    if tree is not None:
        user = UserTree(tree)
        return digest_inputs(_tree_inputs(user, user.files()))
    chosen = source.memory(cache).recall()
    return digest_inputs(_source_inputs(chosen)) if chosen else None


def find(cache: Cache, tree: Path | None = None) -> Artefact | None:
    """The finished QEMU for the present inputs, or None."""
    wanted = content_hash(cache, tree)
    return cache.find(KIND, _label(tree), wanted) if wanted else None


def ensure(
    cache: Cache,
    reporter: Reporter,
    *,
    tree: Path | None = None,
    mirror: str | None = None,
    refresh: bool = False,
) -> Artefact:
    """QEMU, built if it is not in the cache.

    :param tree: the user's, built as it is; it is not modified.
    :param mirror: URI of a Debian archive; the host's by default.
    :param refresh: ask the mirror for a newer version, though one is in the cache.
    :raises BuildError: it cannot be built.
    """
    require_tools(_TOOLS, "QEMU")
    if not refresh and (found := find(cache, tree)):
        return found
    with cache.lock(KIND, reporter):
        if not refresh and (found := find(cache, tree)):
            return found
        with cache.new_log(KIND) as log:
            reporter.note(f"building QEMU; log: {log.path}")
            try:
                builder = _Builder(cache, reporter, log, mirror)
                return builder.from_tree(UserTree(tree)) if tree else builder.from_archive(refresh)
            except OSError as error:
                if error.errno is None:
                    raise
                raise BuildError(f"{error.strerror}: {error.filename}", log=log.path) from error


class _Builder:
    """One build: what it needs on its way."""

    def __init__(self, cache: Cache, reporter: Reporter, log: Log, mirror: str | None) -> None:
        self._cache = cache
        self._reporter = reporter
        self._log = log
        self._mirror = mirror
        self._first_step = len(reporter.timings)

    def from_tree(self, user: UserTree) -> Artefact:
        files = user.files()
        self._cache.require_space(_NEEDED_BYTES, "QEMU")
        with self._cache.scratch(KIND) as scratch:
            with self._reporter.step(f"qemu: copying {user.folder}"):
                user.copy_to(_place(scratch) / _SOURCE, files)
            facts = {"version": user.version(), "patch_hash": ""}
            return self._build(scratch, "tree", "tdx-e2e-tree", facts, _tree_inputs(user, files))

    def from_archive(self, refresh: bool) -> Artefact:
        memory = source.memory(self._cache)
        refused: list[BuildError] = []
        for candidate in self._candidates(None if refresh else memory.recall()):
            try:
                found = self._from_source(candidate)
            except (NotThere, PatchError) as error:
                self._reporter.note(f"qemu: {error.message}")
                refused.append(error)
                continue
            memory.remember(None, candidate)
            source.forget_others(self._cache, candidate)
            return found
        # A patch that does not apply is ours to mend; what a mirror lacks is not.
        telling = [error for error in refused if isinstance(error, PatchError)] or refused
        raise BuildError(
            "; ".join(error.message for error in telling), hint=telling[0].hint, log=self._log.path
        )

    def _candidates(self, known: Source | None) -> Iterator[Source]:
        """What to try, best first; the mirror is asked only if the known one will not do."""
        if known is not None:
            yield known
        yield from (candidate for candidate in self._archive.candidates() if candidate != known)

    @functools.cached_property
    def _archive(self) -> source.Archive:
        require_tools(_APT_TOOLS, "QEMU's source")
        return source.Archive(self._cache, self._mirror, self._log, self._reporter)

    def _from_source(self, chosen: Source) -> Artefact:
        inputs = _source_inputs(chosen)
        if found := self._cache.find(KIND, _label(None), digest_inputs(inputs)):
            return found
        self._cache.require_space(_NEEDED_BYTES, "QEMU")
        tarball = source.kept(self._cache, chosen) or self._archive.fetch(chosen)
        with self._cache.scratch(KIND) as scratch:
            tree = _place(scratch) / _SOURCE
            with self._reporter.step("qemu: unpacking and patching the source"):
                self._unpack(tarball, tree)
                self._patch(tree, chosen.upstream, scratch)
            facts = {"version": chosen.upstream, "patch_hash": patch_hash()}
            return self._build(scratch, _label(None), f"tdx-e2e-{patch_hash()}", facts, inputs)

    def _unpack(self, tarball: Path, tree: Path) -> None:
        tree.mkdir(parents=True)
        options = ("--strip-components=1", "--no-same-owner", f"--exclude=*/{LEFT_OUT}/*")
        argv: list[str | Path] = ["tar", "-x", *options, "-f", tarball, "-C", tree]
        run(argv, log=self._log, what=f"unpacking {tarball.name} failed")

    def _patch(self, tree: Path, version: str, scratch: Path) -> None:
        work = scratch / "patching"
        work.mkdir()

        def original(path: str) -> bytes | None:
            file = tree / path
            return file.read_bytes() if file.is_file() else None

        changes = work_out(
            original,
            [series()],
            work,
            onto=f"QEMU {version}",
            otherwise="build a tree of your own with --qemu-tree",
            log=self._log,
        )
        for path, (content, _) in changes.files.items():
            file = tree / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        for path in changes.removed:
            (tree / path).unlink()

    def _build(
        self, scratch: Path, label: str, revision: str, facts: dict[str, str], inputs: dict[str, object]
    ) -> Artefact:
        root, out = scratch / "root", scratch / "out"
        out.mkdir()
        debian = DEBIAN.ensure(self._cache, self._reporter, self._log, mirror=self._mirror)
        kept = self._cache.ccache / "qemu.tar"
        with self._reporter.step("qemu: unpacking the build root"):
            chroot.unpack(debian.path / TAR, root, self._log)
            (_place(scratch) / _OUT).mkdir()
            (_place(scratch) / _CCACHE).mkdir()
            if kept.is_file():
                chroot.unpack(kept, _place(scratch) / _CCACHE, self._log)
        with self._reporter.step("qemu: configuring"):
            argv = [f"../{_SOURCE}/configure", *_CONFIGURE, f"--with-pkgversion={revision}"]
            self._run(root, argv, "QEMU's configure failed")
        with self._reporter.step("qemu: compiling", total=1) as step:
            self._run(root, ["ninja", BINARY], "QEMU does not build", step)
        self._run(root, ["strip", BINARY], "stripping QEMU failed")
        (_place(scratch) / _OUT / BINARY).rename(out / BINARY)
        self._keep(_place(scratch) / _CCACHE, kept, scratch)
        manifest = {
            **facts,
            "inputs": inputs,
            "packages": debian.manifest()["packages"],
            "steps": dict(self._reporter.timings[self._first_step :]),
        }
        (out / "build.log").write_bytes(self._log.path.read_bytes())
        return self._cache.publish(out, KIND, label, digest_inputs(inputs), manifest)

    def _run(self, root: Path, argv: list[str], what: str, step: Step | None = None) -> None:
        output = Output(step)
        try:
            chroot.run(
                root,
                argv,
                log=self._log,
                what=what,
                cwd=f"/{_PLACE}/{_OUT}",
                env=_ENVIRONMENT,
                on_line=output.line,
            )
        except CommandError as error:
            if not output.first_error:
                raise
            raise BuildError(
                f"{what}: {output.first_error}", hint="the log has all of it", log=self._log.path
            ) from error

    def _keep(self, ccache: Path, target: Path, scratch: Path) -> None:
        """Keep what was compiled for the next build."""
        new = scratch / target.name
        argv: list[str | Path] = ["tar", "-c", "-f", new, "-C", ccache, "."]
        run(argv, log=self._log, what="keeping what was compiled failed")
        target.parent.mkdir(parents=True, exist_ok=True)
        new.replace(target)


class Output:
    """What configure and ninja print: how far they are, and what went wrong first.

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


def _place(scratch: Path) -> Path:
    return scratch / "root" / _PLACE
