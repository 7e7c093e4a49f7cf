# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernels under test: Debian's source or a user's tree, hooks, softseam, a flavour's patches."""
