# SPDX-License-Identifier: GPL-2.0-or-later
"""Loads the plugin, for the e2e tests and for the project's own."""

pytest_plugins = ["fixtures.plugin", "pytester"]
