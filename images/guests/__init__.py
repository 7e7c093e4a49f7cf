# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux as people run it in TDs: Debian's cloud kernel as it is, an initramfs of ours, and Debian's OVMF."""
