# SPDX-License-Identifier: GPL-2.0-or-later
"""The tests of KVM on a TDX host, one file a subject."""
