# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM's own selftests, of the kernel tree that ``--tdx-selftests=DIR`` names: each case is a test here.

``tools/testing/selftests/kvm`` of a tree with series ``fixed`` and ``move`` has tests of TDs
(``x86/tdx_*_test.c``).  The ledger and the watch for kernel warnings are those of every test.
"""

from __future__ import annotations

import pytest

from fixtures.plugin.selftests import RunSelftest
from images.selftests.cases import Case


def test_kernel_selftest(selftest_case: Case, run_selftest: RunSelftest) -> None:
    found = run_selftest(selftest_case)
    if found.skipped:
        pytest.skip(found.skipped)
    assert not found.failed
