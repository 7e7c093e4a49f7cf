# SPDX-License-Identifier: GPL-2.0-or-later
"""A firmware that has a TD of QEMU's start the kernel of ``-kernel``, and nothing else."""
