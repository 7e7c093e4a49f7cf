# SPDX-License-Identifier: GPL-2.0-or-later
"""What gets booted: kernels, the root file system, payloads, and the cache they live in."""
