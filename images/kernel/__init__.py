# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernels under test: Debian's source or a tree of the user's, hooks, softseam, one flavour's patches."""
