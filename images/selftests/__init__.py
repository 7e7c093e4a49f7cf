# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM's selftests of a user's kernel tree: built static, for a host that has no more than a kernel."""
