# SPDX-License-Identifier: GPL-2.0-or-later
"""The QEMU that makes TDs on the nested host: upstream's source and our patches, or a user's tree."""
