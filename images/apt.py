# SPDX-License-Identifier: GPL-2.0-or-later
"""Debian packages by the host's apt client, without root and without a change of the host's apt.

Only apt's network settings (proxy, authentication) are the host's; lists, cache and sources are private.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

from images.cache import Cache
from images.commands import Log, run
from images.errors import BuildError, CommandError

MIRROR_ENV = "TDX_E2E_MIRROR"
_KEYRINGS = (
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
)
_SUITES = {
    *("oldoldstable", "oldstable", "stable", "testing", "unstable"),
    *("bullseye", "bookworm", "trixie", "forky", "duke", "sid"),
}
_INDEX = re.compile(r"^'([a-z+]+:/.*?)/*/dists/([^/]+)/([^/]+)/binary-amd64/Packages")
_NO_NETWORK = re.compile(
    r"Could not resolve|Temporary failure|Network is unreachable|Could not connect|"
    r"Connection (refused|timed out)|Unable to connect"
)
_NOT_THERE = re.compile(
    r"does not have a Release|no longer has a Release|Malformed Release|Unable to locate package|"
    r"\b4\d\d  [A-Z]"
)
_UNTRUSTED = re.compile(r"NO_PUBKEY|not signed|signatures? (were|was) invalid|couldn't be verified|EXPKEYSIG")
_ORIGINAL = re.compile(r"^'([^']+)' (\S+\.orig\.tar\.\w+) \d+ SHA256:([0-9a-f]{64})$")
_DEB = re.compile(r"^'([^']+)' (\S+\.deb) \d+ SHA256:([0-9a-f]{64})$")
_LISTS = {"deb::Packages": "binary-$(ARCHITECTURE)/Packages", "deb-src::Sources": "source/Sources"}
_HELPER = Path("/usr/lib/apt/apt-helper")
_MIRROR_HINT = f"name another mirror with --mirror or {MIRROR_ENV}"


class NotThere(BuildError):
    """The mirror lacks a suite, a package or a file."""


@dataclass(frozen=True)
class Repository:
    """One line of the sources of the host's apt."""

    uri: str
    suite: str
    component: str


def parse_uris(lines: list[str]) -> list[Repository]:
    """Repositories from ``apt-get update --print-uris``, in the order of the host's configuration."""
    matches = (_INDEX.match(line) for line in lines)
    return [Repository(match[1], match[2], match[3]) for match in matches if match]


def choose_mirror(repositories: list[Repository]) -> str | None:
    """The first repository that is a whole Debian archive: one of Debian's own suites (no -security, no
    -updates, no vendor's) with ``main``, preferably one called ``debian``."""
    whole = [
        repository.uri
        for repository in repositories
        if repository.component == "main" and repository.suite in _SUITES
    ]
    return next((uri for uri in whole if uri.endswith("/debian")), next(iter(whole), None))


def mirror(override: str | None, log: Log) -> str:
    """The URI of the Debian archive to use: an option, $TDX_E2E_MIRROR, or what the host's apt uses.

    apt itself reads its configuration: one-line and deb822 sources, disabled sources and includes.
    """
    named = override or os.environ.get(MIRROR_ENV)
    if named:
        if not re.match(r"^[a-z+]+:/", named):
            raise BuildError(
                f"the mirror {named!r} is not a URI",
                hint="write it as in apt's sources, e.g. file:/srv/debian",
            )
        return named.rstrip("/")
    if shutil.which("apt-get") is None:
        raise BuildError(
            "this machine has no apt-get, which fetches the kernel source and the root file system",
            hint="build on Debian, or in a Debian container",
        )
    lines = run(
        ["apt-get", "update", "--print-uris"],
        log=log,
        what="reading the host's apt configuration failed",
    )
    chosen = choose_mirror(parse_uris(lines))
    if chosen is None:
        raise BuildError(
            "this machine's apt configuration names no Debian archive", hint=_MIRROR_HINT, log=log.path
        )
    return chosen


def keyring() -> Path:
    """The host's keyring of Debian's archive keys; signatures are checked against it."""
    for path in _KEYRINGS:
        if path.exists():
            return path
    raise BuildError(
        "Debian's archive keys are not on this machine",
        hint="install debian-archive-keyring (`python3 -m images setup-host`)",
    )


@dataclass(frozen=True)
class RemoteFile:
    """A file of an archive, as its signed lists name it.

    :param path: below the archive's URI.
    """

    path: str
    sha256: str


def _compare(left: str, right: str) -> int:
    if left == right:
        return 0
    command = ["dpkg", "--compare-versions", left, "gt", right]
    return 1 if subprocess.run(command, check=False).returncode == 0 else -1


version_key = functools.cmp_to_key(_compare)
"""Sorts by Debian's order of versions."""


class PrivateApt:
    """An apt client for one suite with its own lists and cache.

    Lists past their date are accepted, as a mirror that was not updated for some weeks has them.

    :param suite: e.g. ``trixie-backports``; component main, architecture amd64.
    :param sources: source packages instead of binary packages.
    """

    def __init__(self, cache: Cache, mirror_uri: str, suite: str, log: Log, *, sources: bool = False) -> None:
        self.suite = suite
        self.mirror = mirror_uri
        self._log = log
        self._line = "deb-src [" if sources else "deb [arch=amd64 "
        self._root = cache.apt / (f"{suite}-sources" if sources else suite)
        self._config = self._root / "apt.conf"

    def update(self) -> None:
        """Fetch the package lists.

        :raises BuildError: no network; the mirror lacks the suite; a signature that does not verify.
        """
        self._set_up()
        self._apt(
            "apt-get", "update", "--error-on=any", what=f"reading the package lists of {self.suite} failed"
        )

    def versions(self, prefix: str, pattern: str) -> list[tuple[str, str]]:
        """(package, version) of all packages whose name is ``prefix`` and a match of the expression."""
        names = self._apt("apt-cache", "pkgnames", prefix, what="listing packages failed")
        matching = sorted(name for name in names if re.fullmatch(re.escape(prefix) + pattern, name))
        if not matching:
            return []
        return self._madison(*matching)

    def package_versions(self, package: str) -> list[tuple[str, str]]:
        """(package, version) of one package, in no order."""
        return self._madison(package)

    def source_versions(self, package: str) -> list[str]:
        """The versions of one source package, in no order."""
        return [version for _, version in self._madison(package)]

    def binary(self, package: str, version: str) -> RemoteFile | None:
        """The .deb of a package; None if the mirror has no such version."""
        command = ("apt-get", "download", "--print-uris", f"{package}={version}")
        return self._file(_DEB, *command, what=f"looking up {package} {version} failed")

    def original(self, package: str, version: str) -> RemoteFile | None:
        """Upstream's tarball of a source package; None if the package has no such file."""
        command = ("apt-get", "source", "--download-only", "--print-uris", f"{package}={version}")
        return self._file(
            _ORIGINAL, *command, what=f"looking up the source package {package} {version} failed"
        )

    def _file(self, wanted: re.Pattern[str], *command: str, what: str) -> RemoteFile | None:
        for line in self._apt(*command, what=what):
            if (match := wanted.match(line)) and match[1].startswith(f"{self.mirror}/"):
                path = urllib.parse.unquote(match[1].removeprefix(f"{self.mirror}/"))
                return RemoteFile(path, match[3])
        return None

    def fetch(self, file: RemoteFile, target: Path) -> None:
        """Fetch one file of the archive and check its SHA-256.

        :raises NotThere: the mirror does not have it.
        """
        self._set_up()
        new = target.with_name(target.name + ".new")
        new.unlink(missing_ok=True)
        name = Path(file.path).name
        # apt makes only a link to the file of a file: URI.
        mirror = re.sub("^file:", "copy:", self.mirror)
        uri = f"{mirror}/{urllib.parse.quote(file.path)}"
        self._apt(
            *(str(_HELPER), "download-file", uri, str(new), f"SHA256:{file.sha256}"),
            of=name,
            what=f"downloading {name} failed",
        )
        new.replace(target)

    def _madison(self, *packages: str) -> list[tuple[str, str]]:
        lines = self._apt("apt-cache", "madison", *packages, what="listing versions failed")
        rows = [[field.strip() for field in line.split("|")] for line in lines if line.count("|") == 2]
        return [(row[0], row[1]) for row in rows]

    def _set_up(self) -> None:
        for folder in ("lists/partial", "archives/partial", "etc"):
            (self._root / folder).mkdir(parents=True, exist_ok=True)
        (self._root / "status").touch()
        (self._root / "etc/sources.list").write_text(
            f"{self._line}check-valid-until=no signed-by={keyring()}] {self.mirror} {self.suite} main\n"
        )
        self._config.write_text(self._configuration())

    def _apt(self, tool: str, *words: str, what: str, of: str = "", cwd: Path | None = None) -> list[str]:
        try:
            return run([tool, "-q", "-c", self._config, *words], log=self._log, what=what, cwd=cwd)
        except CommandError as error:
            raise explain(error, self.mirror, of or self.suite) from error

    def _configuration(self) -> str:
        root = self._root
        settings = {
            "Dir::State": root,
            "Dir::State::status": root / "status",
            "Dir::State::lists": root / "lists",
            "Dir::Cache": root,
            "Dir::Cache::archives": root / "archives",
            "Dir::Etc::sourcelist": root / "etc/sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "APT::Architecture": "amd64",
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "Acquire::http::Timeout": "30",
        }
        hooks = ("APT::Update::Pre-Invoke", "APT::Update::Post-Invoke", "APT::Update::Post-Invoke-Success")
        # apt-file, appstream and others add large lists, any of which may be out of step with its suite.
        names = ("APT::Architectures", "Acquire::IndexTargets", *hooks)
        clear = [f"#clear {name};" for name in names]
        lists = [
            f'Acquire::IndexTargets::{kind} {{ MetaKey "$(COMPONENT)/{path}"; '
            f'ShortDescription "{path}"; Description "$(RELEASE) {path}"; }};'
            for kind, path in _LISTS.items()
        ]
        return "\n".join([*clear, *(f'{key} "{value}";' for key, value in settings.items()), *lists, ""])


def explain(error: CommandError, mirror_uri: str, what: str) -> BuildError:
    """The error for a failure of apt or mmdebstrap, by what it printed.

    :param what: the suite or package that was asked of the mirror.
    """
    text = "\n".join(error.output)
    if _NO_NETWORK.search(text):
        return BuildError(
            f"no network: {mirror_uri} cannot be reached",
            hint=f"check the connection and apt's proxy settings, or {_MIRROR_HINT}",
            log=error.log,
        )
    if _NOT_THERE.search(text):
        return NotThere(f"{mirror_uri} does not have {what}", hint=_MIRROR_HINT, log=error.log)
    if _UNTRUSTED.search(text):
        return BuildError(
            f"the signature of {what} on {mirror_uri} does not verify",
            hint="update debian-archive-keyring, or " + _MIRROR_HINT,
            log=error.log,
        )
    return error
