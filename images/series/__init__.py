# SPDX-License-Identifier: GPL-2.0-or-later
"""Our patches as series that can be mailed: ``series.toml`` names them, ``NAME.txt`` is the cover letter."""
