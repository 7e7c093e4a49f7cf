# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from images import __main__ as entry
from images.errors import BuildError
from images.series import mail

ROOT = Path(__file__).parents[2]
WHO = "Jane Döe <jane@example.org>"


@pytest.fixture(params=sorted(mail.load()))
def series(request: pytest.FixtureRequest) -> mail.Series:
    return mail.get(str(request.param))


def as_git_reads(mail_: Path, folder: Path) -> tuple[str, str]:
    """The author and the title that ``git am`` takes from a mail."""
    done = subprocess.run(
        ["git", "mailinfo", str(folder / "message"), str(folder / "diff")],
        input=mail_.read_text(),
        capture_output=True,
        text=True,
        check=True,
    )
    values = dict(line.split(": ", 1) for line in done.stdout.splitlines() if line)
    return f"{values['Author']} <{values['Email']}>", values["Subject"]


def test_mails_are_numbered_and_signed_by_their_sender(series: mail.Series, tmp_path: Path) -> None:
    written = mail.write(series, tmp_path / "out", who=WHO, version=2)
    total = len(series.patches)
    assert [path.name[:4] for path in written] == [f"{number:04}" for number in range(total + 1)]
    for number, path in enumerate(written):
        text = path.read_text()
        assert "tdx-e2e project" not in text
        width = len(str(total))
        assert f"\nSubject: [PATCH v2 {number:0{width}}/{total}] " in text
        assert text.count(f"\nSigned-off-by: {WHO}\n") == (1 if number else 0)


def test_git_takes_author_title_and_sign_off_from_each_mail(series: mail.Series, tmp_path: Path) -> None:
    for patch, path in zip(series.patches, mail.write(series, tmp_path / "out", who=WHO)[1:], strict=True):
        assert as_git_reads(path, tmp_path) == (WHO, as_git_reads(patch, tmp_path)[1])
        as_git_reads(path, tmp_path)
        assert f"\nSigned-off-by: {WHO}\n" in (tmp_path / "message").read_text()


def test_changes_are_those_of_the_patches(series: mail.Series, tmp_path: Path) -> None:
    written = mail.write(series, tmp_path / "out", who=WHO)
    for patch, path in zip(series.patches, written[1:], strict=True):
        assert (
            path.read_text().partition("\ndiff --git ")[2] == patch.read_text().partition("\ndiff --git ")[2]
        )


def test_cover_letter_lists_the_patches_and_what_they_change(series: mail.Series, tmp_path: Path) -> None:
    cover, *patches = (path.read_text() for path in mail.write(series, tmp_path / "out", who=WHO))
    for patch in patches:
        title = re.search(r"^Subject: \[[^]]*\] (.*)", patch, re.MULTILINE)
        assert title is not None
        assert f"\n  {title[1]}\n" in cover
    assert f" {'target/i386/kvm' if series.name == 'qemu' else 'arch/x86/kvm/vmx'}/tdx.c " in cover
    assert re.search(r"\n \d+ files changed, \d+ insertions\(\+\), \d+ deletions\(-\)\n", cover)


def test_figures_of_cover_letters_are_those_of_the_readme(series: mail.Series) -> None:
    """A figure is a number of ms or µs; around it the same words stand in the README."""
    readme = " ".join((ROOT / "README.md").read_text().split())
    text = " ".join(series.text.split())
    found = re.findall(r"[\d.]+ [mµ]s(?: (?:plus|and) [\d.]+ [mµ]s| per \w+(?: of memory)?)*", text)
    assert [figure for figure in found if figure not in readme] == []
    assert bool(found) == (series.name != "fixed")


def test_tests_that_cover_letters_name_exist(series: mail.Series) -> None:
    for path, name in re.findall(r"\b(e2e/\w+\.py)::(\w+)", series.text):
        assert f"\ndef {name}(" in (ROOT / path).read_text(), name


def test_files_that_cover_letters_name_are_changed(series: mail.Series, tmp_path: Path) -> None:
    cover = mail.write(series, tmp_path / "out", who=WHO)[0].read_text()
    for path in re.findall(r"\b(?:docs|tests|Documentation)/[\w./-]+\.\w+", series.text):
        assert f"\n {path} " in cover, path


def test_without_a_tree_it_goes_to_the_list(
    series: mail.Series, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert entry.main(["series", series.name, "--sender", WHO, "--output", str(out)]) == 0
    mailing_list = "qemu-devel@nongnu.org" if series.name == "qemu" else "kvm@vger.kernel.org"
    assert f"git send-email --to={mailing_list} {out}/*.patch\n" in capsys.readouterr().out


def test_lines_of_cover_letters_fit_a_mail(series: mail.Series) -> None:
    assert [line for line in series.text.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("who", ["nobody", "<a@example.org>", "tdx-e2e project <tdx-e2e@example.invalid>"])
def test_nobody_cannot_sign(who: str) -> None:
    with pytest.raises(BuildError, match="cannot sign patches off"):
        mail.sender(who)


def test_sender_is_whom_git_knows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = tmp_path / "gitconfig"
    config.write_text("[user]\n\tname = Jane\n\temail = jane@example.org\n")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(config))
    monkeypatch.setenv("GIT_DIR", str(tmp_path))
    assert mail.sender(None) == "Jane <jane@example.org>"


def test_patch_of_another_author_is_refused(tmp_path: Path) -> None:
    """Their sign-off is not the sender's to replace."""
    patch = tmp_path / "0001-a.patch"
    patch.write_text("From: X <x@example.org>\nSubject: [PATCH] a\n\nSigned-off-by: X <x@example.org>\n---\n")
    with pytest.raises(BuildError, match="is not a patch with the author"):
        mail.write(mail.Series("a", (patch,), "A", "", "a@example.org"), tmp_path / "out", who=WHO)


def test_folder_with_something_in_it_is_left_alone(series: mail.Series, tmp_path: Path) -> None:
    (tmp_path / "kept").touch()
    with pytest.raises(BuildError, match="is not empty"):
        mail.write(series, tmp_path, who=WHO)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_tree_names_the_recipients_once(
    series: mail.Series, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "tree/scripts/get_maintainer.pl"
    script.parent.mkdir(parents=True)
    script.write_text('print "kvm\\@vger.kernel.org\\nkvm\\@vger.kernel.org\\n", scalar(@ARGV), "\\n";\n')
    out = tmp_path / "out"
    words = ["series", series.name, "--sender", WHO, "--output", str(out), "--tree", str(tmp_path / "tree")]
    assert entry.main(words) == 0
    options = 3
    assert (out / mail.RECIPIENTS).read_text() == f"kvm@vger.kernel.org\n{len(series.patches) + options}\n"
    assert (
        f"git send-email --to-cmd='cat {out / mail.RECIPIENTS}; true' {out}/*.patch"
        in capsys.readouterr().out
    )


def test_unknown_series_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["series", "nope", "--sender", WHO]) == 1
    assert "there is no series 'nope'" in capsys.readouterr().err
