# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m images series NAME``: write a folder that git send-email sends as it is."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import formataddr, parseaddr
from pathlib import Path

from images.errors import BuildError

HERE = Path(__file__).parent
PLACEHOLDER = "tdx-e2e project <tdx-e2e@example.invalid>"
"""Author and sign-off of the patches as they are carried here: it certifies nothing."""
RECIPIENTS = "recipients"
"""The file of the folder with the addresses that get_maintainer.pl prints."""

_SUBJECT = re.compile(r"^Subject: \[PATCH[^]]*\] (.*(?:\n .*)*)", re.MULTILINE)
_SCRIPT = Path("scripts/get_maintainer.pl")
_MIME = """\
MIME-Version: 1.0
Content-Type: text/plain; charset=UTF-8
Content-Transfer-Encoding: 8bit
"""


@dataclass(frozen=True)
class Series:
    """Patches that are mailed together.

    :param patches: in order.
    :param subject: of the cover letter.
    :param text: of the cover letter.
    :param mailing_list: where it goes if no tree names the recipients.
    """

    name: str
    patches: tuple[Path, ...]
    subject: str
    text: str
    mailing_list: str


def load(folder: Path = HERE) -> Mapping[str, Series]:
    """All series by name."""
    table = tomllib.loads((folder / "series.toml").read_text())
    found = {}
    for name, values in table.items():
        subject, _, text = (folder / f"{name}.txt").read_text().partition("\n\n")
        patches = [
            patch for part in values["folders"] for patch in sorted((folder.parent / part).glob("*.patch"))
        ]
        found[name] = Series(name, tuple(patches), subject.strip(), text, values["list"])
    return found


def get(name: str) -> Series:
    """One series.

    :raises BuildError: there is none of that name.
    """
    known = load()
    if name not in known:
        raise BuildError(f"there is no series {name!r}", hint=f"series: {', '.join(known)}")
    return known[name]


def sender(named: str | None) -> str:
    """Who signs: as an option names it, or as git knows the user.

    :raises BuildError: it is not a name and an address of a person.
    """
    found = named or f"{_git('config', 'user.name')} <{_git('config', 'user.email')}>"
    name, address = parseaddr(found)
    if not name.strip() or "@" not in address or address.endswith("example.invalid"):
        raise BuildError(
            f"{found!r} cannot sign patches off",
            hint='name yourself, who certify the Developer Certificate of Origin: --sender "You <you@…>"',
        )
    return f"{name} <{address}>"


def write(
    series: Series, target: Path, *, who: str, version: int = 1, tree: Path | None = None
) -> list[Path]:
    """Write the cover letter and the patches, numbered as one series; returns their paths.

    :param target: a folder that does not exist or is empty.
    :param who: the sender, who signs each patch off instead of the placeholder.
    :param version: of the series: ``[PATCH v2 1/9]``.
    :param tree: a tree whose script knows who wants the patches; its answer goes to :data:`RECIPIENTS`.
    :raises BuildError: the folder has something in it, or a patch is not as we carry them.
    """
    if target.is_dir() and any(target.iterdir()):
        raise BuildError(f"{target} is not empty", hint="name another folder with --output")
    target.mkdir(parents=True, exist_ok=True)
    total = len(series.patches)
    tag = "PATCH" if version == 1 else f"PATCH v{version}"
    width = len(str(total))
    written = []
    titles = []
    for number, patch in enumerate(series.patches, 1):
        title, text = _signed(patch, who, f"{tag} {number:0{width}}/{total}")
        titles.append(title)
        slug = re.sub(r"[^A-Za-z0-9_.]+", "-", title)[:52].strip("-.")
        written.append(target / f"{number:04}-{slug}.patch")
        written[-1].write_text(text)
    cover = target / "0000-cover-letter.patch"
    cover.write_text(
        f"From {'0' * 40} Mon Sep 17 00:00:00 2001\n"
        f"From: {_header(who)}\n"
        f"Subject: [{tag} {0:0{width}}/{total}] {series.subject}\n{_MIME}"
        f"\n{series.text}\n" + "".join(f"  {title}\n" for title in titles) + f"\n{_diffstat(written)}"
    )
    if tree is not None and (tree / _SCRIPT).is_file():
        (target / RECIPIENTS).write_text(_recipients(tree, written))
    return [cover, *written]


def _signed(patch: Path, who: str, tag: str) -> tuple[str, str]:
    """The title of a patch, and its text with the sender in place of the placeholder."""
    text = patch.read_text()
    head, separator, diff = text.partition("\n---\n")
    subject = _SUBJECT.search(head)
    signed = f"Signed-off-by: {PLACEHOLDER}"
    if subject is None or not separator or head.count(signed) != 1 or f"From: {PLACEHOLDER}" not in head:
        raise BuildError(f"{patch} is not a patch with the author and the sign-off {PLACEHOLDER}")
    title = re.sub(r"\n +", " ", subject[1])
    head = f"{head[: subject.start()]}Subject: [{tag}] {title}\n{_MIME}{head[subject.end() + 1 :]}"
    head = head.replace(f"From: {PLACEHOLDER}", f"From: {_header(who)}")
    return title, head.replace(signed, f"Signed-off-by: {who}") + separator + diff


def _header(who: str) -> str:
    return formataddr(parseaddr(who))


def _diffstat(patches: Sequence[Path]) -> str:
    """What all patches change, added up as git prints it."""
    lines: dict[str, list[int]] = {}
    for line in _git("apply", "--numstat", *map(str, patches)).splitlines():
        *counts, path = line.split("\t")
        total = lines.setdefault(path, [0, 0])
        for side in (0, 1):
            total[side] += int(counts[side])
    width = max(map(len, lines), default=0)
    table = [f" {path:{width}} | +{lines[path][0]} -{lines[path][1]}" for path in sorted(lines)]
    added, removed = (sum(counts[side] for counts in lines.values()) for side in (0, 1))
    return "\n".join(
        [*table, f" {len(lines)} files changed, {added} insertions(+), {removed} deletions(-)", ""]
    )


def _recipients(tree: Path, patches: Sequence[Path]) -> str:
    command = ["perl", str(_SCRIPT), "--no-git", "--no-git-fallback", "--no-rolestats"]
    done = subprocess.run(
        [*command, *(str(patch.absolute()) for patch in patches)],
        cwd=tree,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise BuildError(f"{tree / _SCRIPT} failed: {(done.stderr.splitlines() or ['no message'])[-1]}")
    return "".join(f"{line}\n" for line in dict.fromkeys(done.stdout.splitlines()))


def _git(*words: str) -> str:
    done = subprocess.run(["git", *words], capture_output=True, text=True, check=False)
    if done.returncode and words[0] != "config":
        raise BuildError(f"git {words[0]} failed: {(done.stderr.splitlines() or ['no message'])[-1]}")
    return done.stdout.strip()
