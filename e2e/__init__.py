# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests of KVM on a TDX host, one file per subject.

Around every test that uses a host, the plugin compares the HKIDs, TDs and pages in use before and after, and
reads the kernel's log (:class:`fixtures.plugin.audit.Audit`).  So "no exception, nothing left behind, and the
kernel did not complain" is an assertion of each test; some have no other.
"""
