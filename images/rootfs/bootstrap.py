# SPDX-License-Identifier: GPL-2.0-or-later
"""Run on the nested host: wait on the virtio-serial port for the agent's source, and execute it.

The source is a line ``<decimal length>`` and that many bytes.  A child executes it, with ``STREAM_IN`` and
``STREAM_OUT``, unbuffered binary files of the port, in its globals; after the child's end the next source is
read.  The modules that agents use are imported here, once: a child then reads nothing from the disk.

init starts this first and loads KVM meanwhile.  No source is read before init is done, so an agent that
answers means a host that is ready.
"""

import contextlib
import os
import signal
import stat
import sys
from pathlib import Path

PORT = "tdx-e2e.agent"
LINK = Path("/dev/virtio-ports") / PORT
LISTENING_FD = 3
READY_FD = 4
LONGEST_SOURCE = 16 << 20


def find_port() -> Path | None:
    """The port's device node; without udev there is no link to it yet."""
    for name in Path("/sys/class/virtio-ports").glob("*/name"):
        if name.read_text().strip() == PORT:
            return Path("/dev") / name.parent.name
    return None


def preload() -> None:
    """Import the modules that agents use; an agent reports those that are missing."""
    names = ("base64", "ctypes", "errno", "fcntl", "json", "mmap", "re", "select", "socket", "struct")
    for name in (*names, "subprocess", "threading", "time", "traceback", "typing"):
        with contextlib.suppress(ImportError):
            __import__(name)


def is_first() -> bool:
    """Returns whether init started this with its two pipes, not again after an earlier one had ended."""
    try:
        return all(stat.S_ISFIFO(os.fstat(fd).st_mode) for fd in (LISTENING_FD, READY_FD))
    except OSError:
        return False


def say_listening() -> None:
    os.write(LISTENING_FD, b"1")
    os.close(LISTENING_FD)


def wait_until_ready() -> None:
    """Wait until init closes its end."""
    os.read(READY_FD, 1)
    os.close(READY_FD)


class Port:
    """The open port.

    While QEMU's side is not connected, a read returns nothing at once and poll returns POLLHUP: the kernel
    reports a connection by SIGIO only.
    """

    def __init__(self, path: Path) -> None:
        import fcntl

        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGIO})
        fcntl.fcntl(self.fd, fcntl.F_SETOWN, os.getpid())
        flags = fcntl.fcntl(self.fd, fcntl.F_GETFL)
        fcntl.fcntl(self.fd, fcntl.F_SETFL, flags | os.O_ASYNC)
        self._plain_flags = flags

    def read(self, size: int) -> bytes:
        """At least one byte; waits for it without a limit, whether QEMU's side is connected or not."""
        while True:
            data = os.read(self.fd, size)
            if data:
                return data
            signal.sigtimedwait({signal.SIGIO}, 0.25)

    def read_source(self) -> bytes | None:
        """The next source, or None for a line that is not a length."""
        line = b""
        while not line.endswith(b"\n"):
            line += self.read(1)
            if len(line) > 20:
                return None
        if not line.strip().isdigit() or int(line) > LONGEST_SOURCE:
            return None
        left = int(line)
        parts = []
        while left:
            parts.append(self.read(min(left, 65536)))
            left -= len(parts[-1])
        return b"".join(parts)

    def become_plain(self) -> None:
        """Switch the port's signals off, in a child."""
        import fcntl

        fcntl.fcntl(self.fd, fcntl.F_SETFL, self._plain_flags)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGIO})

    def become_ours(self) -> None:
        import fcntl

        fcntl.fcntl(self.fd, fcntl.F_SETFL, self._plain_flags | os.O_ASYNC)


def run(port: Port, source: bytes) -> None:
    """Execute a source in a child and wait for its end."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            port.become_plain()
            with (
                open(port.fd, "rb", buffering=0, closefd=False) as stream_in,
                open(port.fd, "wb", buffering=0, closefd=False) as stream_out,
            ):
                names = {"__name__": "__main__", "STREAM_IN": stream_in, "STREAM_OUT": stream_out}
                exec(compile(source, "<agent>", "exec"), names)
            status = 0
        except SystemExit as leaving:
            status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        finally:
            if sys.exc_info()[0] is not None:
                sys.excepthook(*sys.exc_info())
            sys.stderr.flush()
            os._exit(status)
    os.waitpid(pid, 0)
    port.become_ours()


def main() -> None:
    first = is_first()
    path = find_port()
    if path is None:
        return
    LINK.parent.mkdir(exist_ok=True)
    LINK.unlink(missing_ok=True)
    LINK.symlink_to(path)
    port = Port(path)
    if first:
        say_listening()
    preload()
    if first:
        wait_until_ready()
    while True:
        source = port.read_source()
        if source is not None:
            run(port, source)


if __name__ == "__main__":
    main()
