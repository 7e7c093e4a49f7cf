# SPDX-License-Identifier: GPL-2.0-or-later
"""Images that are booted: kernels, the root file system, payloads, a firmware; and their cache."""
