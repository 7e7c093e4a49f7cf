# SPDX-License-Identifier: GPL-2.0-or-later
"""Carry out README's commands on a bare root of a Debian release: python3, git, and nothing else.

``python3 -m images.tests.fresh [--quick] bookworm trixie`` needs root, minutes, and with everything built in
the roots half an hour for each; so it is no part of the project's own tests.
"""
