# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from pathlib import Path

import pytest

from images.errors import BuildError
from images.selftests import build
from images.selftests.cases import Case, Report, cases, listed, report

MAKEFILE = """\
TEST_GEN_PROGS_COMMON = demand_paging_test
TEST_GEN_PROGS_COMMON += guest_memfd_test
TEST_PROGS_x86 += x86/nx_huge_pages_test.sh
TEST_GEN_PROGS_x86 = $(TEST_GEN_PROGS_COMMON)
TEST_GEN_PROGS_x86 += x86/smm_test
TEST_GEN_PROGS_x86 += x86/tdx_move_test
TEST_GEN_PROGS_EXTENDED_x86 += x86/nx_huge_pages_test
TEST_GEN_PROGS_arm64 += arm64/psci_test
"""
DASHES = "-" * 80
LISTED = f"""\
{"# FIXTURE":20} {"VARIANT":25} TEST
{"global":20} {"":25} alone
{"":20} {"":25} again
{DASHES}
{"irq":20} {"split":25} each_vector
{"":20} {"a_variant_of_a_name_longer_than_that":25}{" "}
{DASHES}
{"a_fixture_of_a_long_name":20} {"":25} test
{DASHES}
{"empty":20} {"":25}{" "}
"""


@pytest.mark.parametrize("makefile", ["Makefile", "Makefile.kvm"])
def test_programs_are_those_of_the_makefile_for_x86(makefile: str, tmp_path: Path) -> None:
    folder = tmp_path / build.FOLDER
    folder.mkdir(parents=True)
    (folder / "Makefile").write_text("include Makefile.kvm\n")
    (folder / makefile).write_text(MAKEFILE)
    found = build.programs(tmp_path)
    assert found == ["demand_paging_test", "guest_memfd_test", "x86/smm_test", "x86/tdx_move_test"]
    assert build.matching(found, "TDX") == ["x86/tdx_move_test"]
    assert build.matching(found, "roles") == found


def test_tree_without_selftests_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="has no selftests of KVM"):
        build.programs(tmp_path)


def test_each_test_is_listed_in_each_variant() -> None:
    names = [
        *("global.alone", "global.again", "irq.split.each_vector"),
        *("irq.a_variant_of_a_name_longer_than_that.each_vector", "a_fixture_of_a_long_name.test"),
    ]
    assert listed("p", f"Random seed: 0x1\n{LISTED}") == [Case("p", name, ("-r", name)) for name in names]


def test_program_without_the_harness_is_not_run_to_list_its_cases(tmp_path: Path) -> None:
    program, ran = tmp_path / "p", tmp_path / "ran"
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o755)
    assert cases("p", program) == [Case("p")]
    assert not ran.exists()


def test_program_with_the_harness_is_asked_for_its_cases(tmp_path: Path) -> None:
    program = tmp_path / "p"
    program.write_text(f"#!/bin/sh\n# Usage: p [-h|-l|-d]\ncat >&2 <<'E'\n{LISTED}E\n")
    program.chmod(0o755)
    assert [str(case) for case in cases("p", program)] == [f"p:{case.name}" for case in listed("p", LISTED)]


@pytest.mark.parametrize(
    ("output", "status", "wanted"),
    [
        ("TAP version 13\n1..1\nok 1 move.roles\n", 0, Report(())),
        ("TAP version 13\n1..2\nok 1 a\nnot ok 2 b\n", 1, Report(("not ok: b",))),
        # The exit status alone does not pass or fail a line.
        ("ok 1 a\nnot ok 2 b\n", 0, Report(("not ok: b",))),
        ("ok 1 a\n", 254, Report(("exit status 254, with no line that is not ok",))),
        ("", 0, Report(())),
        ("", 1, Report(("exit status 1, with no line that is not ok",))),
        ("ok 1 a # SKIP KVM has no TDX\n", 0, Report((), "KVM has no TDX")),
        ("ok 1 a # SKIP no TDX\nok 2 b\n", 0, Report(())),
        ("not ok 1 a # XFAIL known\nok 2 b\n", 0, Report(())),
        ("1..0 # SKIP - Requirement not met: sev\n", 4, Report((), "Requirement not met: sev")),
        ("", 4, Report((), "it skips here")),
        ("not ok 1 a\n", 4, Report(("not ok: a",))),
    ],
)
def test_report_is_that_of_the_tap_lines(output: str, status: int, wanted: Report) -> None:
    assert report(output, status) == wanted
