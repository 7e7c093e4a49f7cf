# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers of the Guest-Hypervisor Communication Interface (GHCI 1.5): TDVMCALLs and how they end.

Those that Linux names in its uAPI are :class:`fixtures.kvm.abi.TdVmCall`.
"""

# R10 of the answer
SUCCESS = 0
RETRY = 1
INVALID_OPERAND = 1 << 63
ALIGN_ERROR = 1 << 63 | 2
SUBFUNC_UNSUPPORTED = 1 << 63 | 3

# R11 of the request: the exit reason of the instruction
CPUID, HLT, IO, RDMSR, WRMSR, MMIO = 10, 12, 30, 31, 32, 48
