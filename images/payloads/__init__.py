# SPDX-License-Identifier: GPL-2.0-or-later
"""Small freestanding programs that run inside TDs, as flat binaries."""
