# SPDX-License-Identifier: GPL-2.0-or-later
"""The nested host's root file system: Debian's Python and OpenSSH, and our init."""
