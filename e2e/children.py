# SPDX-License-Identifier: GPL-2.0-or-later
"""Children of a worker, which a worker's own program could not be: each only executes a few instructions.

A child begins where the C library's ``syscall`` returns in it, on a stack of its own, which says where to.
"""

from __future__ import annotations

import mmap
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from fixtures.agent import syscalls
from fixtures.agent.client import Worker
from fixtures.deadline import until
from fixtures.kvm.abi import PAGE_SIZE, Request, TdxCmd, TdxCmdId
from fixtures.kvm.memory import Memory

CLONE_VM = 0x100
_SYS_IOCTL, _SYS_PAUSE, _SYS_CLONE, _SYS_WAIT4, _SYS_KILL = 16, 34, 56, 61, 62  # x86-64
_STACK = PAGE_SIZE // 2
_COMMAND, _DATA = 256, 512
FOR_EVER = b"\xb8" + _SYS_PAUSE.to_bytes(4, "little") + b"\x0f\x05\xeb\xf7"
"""MOV to EAX, SYSCALL, and a jump back to the beginning."""


class Waiting:
    """Code for a child that waits until it is told to, makes one ioctl, and then waits for ever.

    :param memory: of at least 16 bytes, which parent and child share.
    """

    _BEGUN, _DONE = 1, 2

    def __init__(self, memory: Memory, fd: int, request: int, argument: int) -> None:
        self._memory = memory
        memory.write(0, bytes(16))
        self.code = (
            # MOV to RBX; PAUSE, CMP and JE back to it.
            b"\x48\xbb"
            + memory.address.to_bytes(8, "little")
            + b"\xf3\x90\x83\x3b\x00\x74\xf9"
            # MOV to EDI, ESI, RDX and EAX; SYSCALL.
            + b"\xbf"
            + fd.to_bytes(4, "little")
            + b"\xbe"
            + request.to_bytes(4, "little")
            + b"\x48\xba"
            + argument.to_bytes(8, "little")
            + b"\xb8"
            + _SYS_IOCTL.to_bytes(4, "little")
            + b"\x0f\x05"
            # MOV of RAX and of _DONE to memory.
            + b"\x48\x89\x43\x08\xc7\x03"
            + self._DONE.to_bytes(4, "little")
            + FOR_EVER
        )

    def go_on(self) -> int:
        """Let the child make its ioctl; returns what that returned, an errno as a negative number."""
        self._memory.write(0, self._BEGUN.to_bytes(4, "little"))
        until(lambda: self._memory.read(0, 4)[0] == self._DONE, "the child to return from its ioctl")
        return int.from_bytes(self._memory.read(8, 8), "little", signed=True)


def tdx_command(fd: int, command: TdxCmdId, data: bytes | int, memory: Memory) -> Waiting:
    """A command of KVM_MEMORY_ENCRYPT_OP for a child, with which the owner has to share its memory.

    :param data: what the command points to, or a number in its place.
    :param memory: a page for what both look at.
    """
    number = data
    if isinstance(data, bytes):
        memory.write(_DATA, data)
        number = memory.address + _DATA
    memory.write(_COMMAND, bytes(TdxCmd(id=command, data=number)))
    return Waiting(memory, fd, Request.KVM_MEMORY_ENCRYPT_OP, memory.address + _COMMAND)


@contextmanager
def child(worker: Worker, code: bytes = FOR_EVER, flags: int = 0) -> Iterator[int]:
    """Fork a process that executes machine code, and kill it at the end of the block; yields its pid.

    :param flags: of clone(2), with which it shares more with its parent than a fork.
    """
    everything = mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    anonymous = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    address = worker.call(syscalls.mmap(PAGE_SIZE, everything, anonymous))
    with Memory(worker, address, PAGE_SIZE) as page:
        page.write(0, code)
        page.write(_STACK, struct.pack("<Q", page.address))
        stack = page.address + _STACK
        made = worker.call(syscalls.syscall(_SYS_CLONE, flags | signal.SIGCHLD, stack, 0, 0, 0))
        assert made.ret > 0, made
        try:
            yield made.ret
        finally:
            kill = syscalls.syscall(_SYS_KILL, made.ret, signal.SIGKILL)
            worker.batch([kill, syscalls.syscall(_SYS_WAIT4, made.ret, 0, 0, 0)])
