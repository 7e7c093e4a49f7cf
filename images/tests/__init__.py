# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests of the builders themselves: no virtual machine, no network, no cache of the user's."""
