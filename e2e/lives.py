# SPDX-License-Identifier: GPL-2.0-or-later
"""Lives of a TD in which a SEAMCALL fails.

A life is a list of calls in named steps.  A process on the host executes them up to the first that fails,
then that one again and all after it, as user space would that does not give up, and then closes everything.
  :class:`Outcome` is what user space, the kernel's log and the books show of it.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fixtures import cgroup
from fixtures.agent import syscalls
from fixtures.agent.call import BatchResult, Call, Earlier, KernelMessage, batch_call
from fixtures.agent.client import Worker
from fixtures.agent.errors import RemoteOSError, errno_name
from fixtures.closing import Closing
from fixtures.deadline import Deadline
from fixtures.errors import DeadlineExceeded, HarnessError
from fixtures.host.base import TdxHost
from fixtures.host.kernel_log import splats_in
from fixtures.kvm import abi, build, commands
from fixtures.kvm.abi import PAGE_SIZE, Cap, ExitReason, Request, VmType
from fixtures.kvm.build import Region
from fixtures.kvm.cpuid import CpuidEntry
from fixtures.kvm.defaults import default_params, vcpu_cpuid
from fixtures.kvm.errors import KvmError
from fixtures.kvm.params import MemorySlot
from fixtures.kvm.told import after_create_vm
from fixtures.softseam import records
from fixtures.softseam.inject import Injection
from fixtures.softseam.records import KeyRecord, LeafRecord, PageRecord

PRIVATE = 0x40000000
"""The private memory that the payload ``convert`` accepts and converts."""

_AT = 0x10_0000_0000
"""Where a life's memory is in its process: ``kvm_run`` of each VM's first vCPU, then what is behind slots."""
_RUN_ROOM = 3 * PAGE_SIZE
_SLOT_ROOM = 1 << 20
_VMS, _SLOTS = 2, 2
_READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
_MAP_FIXED = 0x10
_ANONYMOUS = mmap.MAP_ANONYMOUS | mmap.MAP_PRIVATE | _MAP_FIXED

STUCK_SECONDS = 1.0
"""Time after which calls of which one repeats a SEAMCALL for ever get a signal."""
_END_SECONDS = 20.0

_INJECT = f"{records.FOLDER}/{records.INJECT}"
_LEAVES = f"{records.FOLDER}/leaves"
_STATE = (f"{records.FOLDER}/keys", f"{records.FOLDER}/pages", f"{cgroup.ROOT}/misc.current")
_CLEAR_WARN_ONCE = "/sys/kernel/debug/clear_warn_once"
_ONLINE = "/sys/devices/system/cpu/cpu{}/online"
_PRINTK = "/proc/sys/kernel/printk"

_WARNING = re.compile(r"WARNING: \S*?([\w-]+\.[ch]):\d+ at (\w+)")
_LEAKED = re.compile(r"HKID \d+ is leaked")


class Life:
    """Calls by step; the methods without an underscore that take nothing are the steps.

    :param payload: the image of ``convert``.
    :param cpus: the CPU on which the process runs, and another one.
    :param cpuid: what KVM_TDX_GET_CPUID returns; empty if that is not known yet.
    """

    def __init__(
        self, worker: Worker, payload: bytes, cpus: tuple[int, int], cpuid: tuple[CpuidEntry, ...] = ()
    ) -> None:
        self.calls: list[Call[Any]] = []
        self.steps: list[str] = []
        self.checks: dict[int, Callable[[Any], str]] = {}
        """By the index of a call: returns what is wrong with its result, or an empty string."""
        self.fds: list[Earlier] = []
        self.tds: list[Earlier] = []
        self._worker = worker
        self._cpus = cpus
        self._cpuid = cpuid
        self._regions = (Region.firmware(payload), Region(PRIVATE, 4 * PAGE_SIZE))
        self._step = ""
        self._is_offline = False
        self._vcpus: list[list[Earlier]] = []
        self._memfds: list[list[Earlier]] = []

    def go(self, *steps: str) -> Life:
        """Add steps, by the names of methods."""
        for step in steps:
            self._step = step
            getattr(self, step)()
        return self

    def between(self, call: Call[Any]) -> int:
        """Add a call that belongs to no step; returns its index."""
        self._step = ""
        return self._add(call, None).index

    def _add(self, call: Call[Any], key: str | None = "ret") -> Earlier:
        self.calls.append(call)
        self.steps.append(self._step)
        return Earlier(len(self.calls) - 1, key)

    def _open(self, call: Call[Any], key: str | None = "ret") -> Earlier:
        self.fds.append(self._add(call, key))
        return self.fds[-1]

    # steps

    def create(self) -> None:
        kvm = self.fds[0] if self.fds else self._open(syscalls.open_("/dev/kvm", os.O_RDWR), None)
        td = self._open(commands.create_vm(kvm, VmType.TDX))
        self.tds.append(td)
        self._vcpus.append([])
        self._memfds.append([])
        for call in after_create_vm(self._worker, td):
            self._add(call)
        self._add(commands.enable_cap(td, Cap.SPLIT_IRQCHIP, 24))
        self._add(commands.enable_cap(td, Cap.EXIT_HYPERCALL, 1 << abi.KVM_HC_MAP_GPA_RANGE))

    def init_vm(self) -> None:
        self._add(commands.init_vm(self.tds[-1], default_params(self._worker)))

    def create_vcpu(self) -> None:
        vcpu = self._open(commands.create_vcpu(self.tds[-1], len(self._vcpus[-1])))
        self._vcpus[-1].append(vcpu)
        self._add(commands.set_cpuid2(vcpu, vcpu_cpuid(self._worker)))

    def init_vcpu(self) -> None:
        self._add(commands.init_vcpu(self._vcpus[-1][-1], 2))

    def get_cpuid(self) -> None:
        got = self._add(commands.get_cpuid(self._vcpus[-1][0]))
        self.checks[got.index] = lambda cpuid: "other CPUID" if self._cpuid and cpuid != self._cpuid else ""

    def place(self) -> None:
        """Add two memory slots, private, without content."""
        for region in self._regions:
            memfd = self._open(commands.create_guest_memfd(self.tds[-1], region.size))
            self._slot(region, memfd)
            self._attributes(region.gpa, region.size, abi.KVM_MEMORY_ATTRIBUTE_PRIVATE)

    def populate(self) -> None:
        """Copy the firmware in, page by page, the first with its measurement."""
        firmware, vcpu = self._regions[0], self._vcpus[-1][0]
        for at in range(0, firmware.size, PAGE_SIZE):
            page = firmware.data[at : at + PAGE_SIZE]
            self._add(commands.init_mem_region(vcpu, page, firmware.gpa + at, measure=at == 0))

    def finalize(self) -> None:
        self._add(commands.finalize_vm(self.tds[-1]))

    def map_run(self) -> None:
        flags = mmap.MAP_SHARED | _MAP_FIXED
        self._add(syscalls.mmap(_RUN_ROOM, _READ_WRITE, flags, self._vcpus[-1][0], addr=self._page), None)

    def first_run(self) -> None:
        """Run: the guest accepts three pages and asks for the second to become shared."""
        self._run(ExitReason.HYPERCALL)

    def to_shared(self) -> None:
        self._attributes(PRIVATE + PAGE_SIZE, PAGE_SIZE, 0)

    def shared_run(self) -> None:
        """Run: the guest uses the shared page and asks for it to become private."""
        self._answer()
        self._run(ExitReason.HYPERCALL)

    def to_private(self) -> None:
        self._attributes(PRIVATE + PAGE_SIZE, PAGE_SIZE, abi.KVM_MEMORY_ATTRIBUTE_PRIVATE)

    def private_run(self) -> None:
        """Run: the guest accepts the page, checks its and its neighbours' content, and reports that."""
        self._answer()
        self._run(ExitReason.IO, 1)

    def complete(self) -> None:
        """Complete the last exit; the guest does not go on."""
        flag = self._page + abi.RUN_IMMEDIATE_EXIT
        self._add(syscalls.mem_write(flag, b"\1"), None)
        self._add(commands.run(self._vcpus[-1][0], self._page), None)
        self._add(syscalls.mem_write(flag, b"\0"), None)

    def another_cpu(self) -> None:
        self._add(syscalls.affinity([self._cpus[1]]), None)

    def home(self) -> None:
        self._add(syscalls.affinity([self._cpus[0]]), None)

    def offline(self) -> None:
        """Take the CPU offline on which the vCPU ran last."""
        self._add(syscalls.write_file(_ONLINE.format(self._cpus[1]), b"0"), None)
        self._is_offline = True

    def run_at_home(self) -> None:
        """Run: the guest uses the page that it has asked for."""
        self._answer()
        self._run(ExitReason.HYPERCALL)

    def another_run(self) -> None:
        """Run: the guest asks for the page to become shared once more."""
        self._run(ExitReason.HYPERCALL)

    def another_conversion(self) -> None:
        self.to_shared()

    def destination(self) -> None:
        """Make a VM to which the TD can be moved."""
        vcpus, memfds = self._vcpus[-1], self._memfds[-1]
        self.create()
        for _ in vcpus:
            self.create_vcpu()
        for region, memfd in zip(self._regions, memfds, strict=True):
            self._slot(region, self._open(commands.link_guest_memfd(self.tds[-1], memfd)))

    def move(self) -> None:
        self._add(commands.move_from(self.tds[-1], self.tds[-2]))

    @property
    def _page(self) -> int:
        return _AT + (len(self.tds) - 1) * _RUN_ROOM

    def _slot(self, region: Region, memfd: Earlier) -> None:
        number = len(self._memfds[-1])
        self._memfds[-1].append(memfd)
        address = _AT + _VMS * _RUN_ROOM + number * _SLOT_ROOM
        flags = abi.KVM_MEM_GUEST_MEMFD
        slot = MemorySlot(number, region.gpa, region.size, address, memfd, flags=flags)
        self._add(commands.set_slot(self.tds[-1], slot))

    def _attributes(self, gpa: int, size: int, attributes: int) -> None:
        self._add(commands.set_memory_attributes(self.tds[-1], gpa, size, attributes))

    def _answer(self) -> None:
        self._add(syscalls.mem_write(self._page + abi.RUN_HYPERCALL_RET, bytes(8)), None)

    def _run(self, reason: ExitReason, number: int = 0) -> None:
        page, pio = self._page, abi.KVM_PIO_PAGE_OFFSET * PAGE_SIZE
        self._add(commands.ioctl(self._vcpus[-1][0], Request.KVM_RUN))
        read = self._add(syscalls.mem_read(page, pio + 4), None)
        self.checks[read.index] = lambda state: _exited(state, reason, number)
        self._add(syscalls.expect(page + abi.RUN_EXIT_REASON, reason.to_bytes(4, "little")), None)
        if number:
            self._add(syscalls.expect(page + pio, number.to_bytes(4, "little")), None)

    def ends(self) -> list[Call[Any]]:
        """The calls that close what the life opens."""
        unmap = syscalls.mmap(_VMS * _RUN_ROOM, _READ_WRITE, _ANONYMOUS, addr=_AT)
        home = syscalls.affinity([self._cpus[0]])
        online = [syscalls.write_file(_ONLINE.format(self._cpus[1]), b"1")] if self._is_offline else []
        return [home, unmap, *(syscalls.close(fd) for fd in reversed(self.fds)), *online]

    def resume_at(self, stopped: int) -> int:
        """The call to go on with after one that failed: itself, or the KVM_RUN whose exit it looks at."""
        while self.calls[stopped].op in ("mem_read", "expect"):
            stopped -= 1
        return stopped

    def failure(self, first: int, results: Sequence[Any]) -> tuple[str, int]:
        """The first step that failed and how, and its ``hw_error``; empty and 0 if no result is a failure.

        :param first: index of the call whose result is the first.
        """
        for index, result in enumerate(results, first):
            step = self.steps[index]
            if isinstance(result, KvmError | RemoteOSError):
                return f"{step}: {errno_name(result.errno)}", getattr(result, "hw_error", 0)
            if isinstance(result, Exception):
                raise result
            if index in self.checks and (wrong := self.checks[index](result)):
                return f"{step}: {wrong}", 0
        return "", 0


def _exited(state: bytes, reason: ExitReason, number: int) -> str:
    """What is wrong with an exit: its reason, or the number that the guest writes."""
    found = int.from_bytes(state[abi.RUN_EXIT_REASON :][:4], "little")
    if found != reason:
        return f"exit {ExitReason(found).name if found in set(ExitReason) else found}"
    told = int.from_bytes(state[-4:], "little")
    return f"the guest writes {told:#x}" if number and told != number else ""


@dataclass(frozen=True)
class State:
    """What TDs hold: HKIDs by the module's table and by the root cgroup, and the module's pages by type."""

    hkids: int
    charged: int
    pages: Mapping[str, int]

    @classmethod
    def of(cls, keys: bytes, pages: bytes, misc: bytes) -> State:
        count: dict[str, int] = {}
        for page in records.parse(PageRecord, pages.decode()):
            count[page.type] = count.get(page.type, 0) + page.count
        held = sum(key.in_use for key in records.parse(KeyRecord, keys.decode()))
        return cls(held, cgroup.parse(misc.decode(), cgroup.RESOURCE), count)

    def pages_since(self, before: State) -> dict[str, int]:
        """The pages that have come since an earlier state, by type."""
        types = sorted({*self.pages, *before.pages})
        more = {name: self.pages.get(name, 0) - before.pages.get(name, 0) for name in types}
        return {name: count for name, count in more.items() if count}


@dataclass(frozen=True)
class Seen:
    """What is left of a life: the kernel's messages, the faults that are still armed, and the books."""

    messages: Sequence[KernelMessage]
    injections: str
    state: State


@dataclass(frozen=True)
class Outcome:
    """How a life went.

    :param failed: the step that failed first and its errno or exit, as ``init_vm: EIO``; empty if none did.
    :param hw_error: of that step.
    :param then: ``dead`` if the VM is, else the first step that fails when all are repeated from there on.
    :param splats: where the kernel warned, ``tdx.c tdx_td_init``.
    :param leak_logged: the kernel reported that it leaks an HKID.
    :param hkids: HKIDs left in the module's table.
    :param charged: HKIDs left in the root cgroup.
    :param pages: the module's pages left, by type.
    :param hits: number of calls that the fault made fail.
    """

    failed: str = ""
    hw_error: int = 0
    then: str = ""
    splats: tuple[str, ...] = ()
    leak_logged: bool = False
    hkids: int = 0
    charged: int = 0
    pages: Mapping[str, int] | None = None
    hits: int = 0


class Lives(Closing):
    """Leads lives on a host, one after the other, in one process.

    :param host: needs ``seamcall-fault-injection``, ``misc-cgroup`` and two CPUs.
    """

    def __init__(self, host: TdxHost, payload: bytes) -> None:
        self.host = host
        self._payload = payload
        self._begin()

    def _begin(self) -> None:
        agent = self.host.agent
        # A warning on the serial line takes longer than a life.
        agent.files.write(_PRINTK, "1")
        self._worker = agent.spawn()
        (home,) = self._worker.call(syscalls.affinity())
        online = agent.files.read_text("/sys/devices/system/cpu/online").strip()
        self._cpus = home, int(re.split("[-,]", online)[-1])
        size = _VMS * _RUN_ROOM + _SLOTS * _SLOT_ROOM
        self._worker.call(syscalls.mmap(size, _READ_WRITE, _ANONYMOUS, addr=_AT))
        self._seen = self._worker.call(syscalls.kmsg(-1))[-1].sequence
        self._before = State.of(*self._worker.batch([syscalls.read_file(path) for path in _STATE]).results)
        self._first = self._before
        self._cpuid: tuple[CpuidEntry, ...] = ()
        with build.with_vcpus(self._worker) as built:
            self._cpuid = built.vcpus[0].get_cpuid()

    def _life(self, *steps: str) -> Life:
        return Life(self._worker, self._payload, self._cpus, self._cpuid).go(*steps)

    @property
    def hkids_left(self) -> int:
        """Number of HKIDs that TDs can have."""
        return self.host.facts.hkid_capacity - self._before.hkids

    def restore(self) -> None:
        """Put the host back to its snapshot."""
        self.host.restore()
        self._begin()

    def close(self) -> None:
        """End the process, and leave the host as it was: what the kernel printed or lost has been judged."""
        if self._before != self._first:
            self.host.restore()
            return
        self._worker.close()
        self.host.agent.files.write(_PRINTK, "7")
        self.host.splats()

    def calls(self, before: Sequence[str], disturbed: Sequence[str]) -> dict[str, int]:
        """Lead a life without a fault; returns the SEAMCALLs of its second part (of its end if empty).

        :raises HarnessError: it fails.
        """
        life = self._life(*before)
        index = life.between(syscalls.read_file(_LEAVES))
        end = life.go(*disturbed).between(syscalls.read_file(_LEAVES))
        first = self._execute(life.calls)
        failed, _ = life.failure(0, first.results)
        if failed or not first.complete:
            raise HarnessError(f"a life without a fault fails at {failed or life.steps[len(first) - 1]}")
        ends = [_rebased(call, len(life.calls), first.results, 0) for call in life.ends()]
        last = self._execute([*ends, syscalls.read_file(_LEAVES)], go_on=True)
        began = records.parse(LeafRecord, first[index].decode())
        after = first[end] if disturbed else last[len(ends)]
        ended = {leaf.name: leaf.calls for leaf in records.parse(LeafRecord, after.decode())}
        return {leaf.name: count for leaf in began if (count := ended[leaf.name] - leaf.calls)}

    def lead(
        self, before: Sequence[str], disturbed: Sequence[str], injection: Injection | None = None
    ) -> Outcome:
        """Lead a life with a fault that is armed between its two parts."""
        line = injection.line() if injection else "clear"
        life = self._life(*before)
        index = life.between(syscalls.write_file(_INJECT, line.encode()))
        life.go(*disturbed)
        first = self._execute(life.calls, for_ever=injection is not None and injection.count > 1)
        failed, code = life.failure(0, first.results)
        if len(first) <= index + 1 and not first.complete:
            raise HarnessError(f"a life fails before its fault, at {failed}")
        again = len(life.calls) if first.complete else life.resume_at(len(first) - 1)
        then, seen = self._go_on(life, first, again, failed)
        unused = sum(one.count for one in records.parse(Injection, seen.injections))
        interrupted = failed.endswith("EINTR")
        lines = [message.text for message in seen.messages]
        before_it, self._before = self._before, seen.state
        return Outcome(
            failed=failed,
            hw_error=code,
            then=then,
            splats=tuple(sorted({_place(splat.title) for splat in splats_in(lines)})),
            leak_logged=any(_LEAKED.search(line) for line in lines),
            hkids=seen.state.hkids - before_it.hkids,
            charged=seen.state.charged - before_it.charged,
            pages=seen.state.pages_since(before_it),
            hits=injection.count - unused if injection and not interrupted else 0,
        )

    def _go_on(self, life: Life, first: BatchResult, again: int, failed: str) -> tuple[str, Seen]:
        """Repeat the calls from ``again`` on, end the life, and look at what is left.

        :returns: what came of the repetition, as in :attr:`Outcome.then`; and what is left.
        """
        # What a signal has ended would be repeated for ever too.
        calm = [syscalls.write_file(_INJECT, b"clear")] if failed.endswith("EINTR") else []
        probes = [
            commands.check_extension(first.results[td.index], Cap.MAX_VCPUS)
            for td in life.tds[-1:]
            if failed and td.index < again
        ]
        prelude: list[Call[Any]] = [*calm, *probes]
        calls = [
            *prelude,
            *(
                _rebased(call, again, first.results, len(prelude))
                for call in (*life.calls[again:], *life.ends())
            ),
            syscalls.kmsg(self._seen),
            *(syscalls.read_file(path) for path in (_INJECT, *_STATE)),
            syscalls.write_file(_INJECT, b"clear"),
            syscalls.write_file(_CLEAR_WARN_ONCE, b"1"),
        ]
        done = self._execute(calls, go_on=True, for_ever=True)
        messages, injections, *state = done.results[-4 - len(_STATE) : -2]
        if messages:
            self._seen = messages[-1].sequence
        repeated = done.results[len(prelude) :][: len(life.calls) - again]
        then = life.failure(again, repeated)[0] if failed else ""
        if probes and getattr(done.results[len(calm)], "errno", 0) == errno.EIO:
            then = "dead"
        return then, Seen(messages, injections.decode(), State.of(*state))

    def _execute(
        self, calls: Sequence[Call[Any]], *, go_on: bool = False, for_ever: bool = False
    ) -> BatchResult:
        """Execute calls.

        :param for_ever: one of them may repeat a SEAMCALL for ever, and then gets signals until it ends.
        """
        job = self._worker.submit(batch_call(calls, go_on=go_on))
        limit = Deadline(_END_SECONDS, "a life to go on after a signal")
        while True:
            try:
                return job.result(STUCK_SECONDS if for_ever else _END_SECONDS)
            except DeadlineExceeded:
                limit.check()
                self._worker.kill(signal.SIGUSR1)


def _place(title: str) -> str:
    found = _WARNING.search(title)
    return f"{found[1]} {found[2]}" if found else title


def _rebased(call: Call[Any], first: int, results: Sequence[Any], shift: int) -> Call[Any]:
    """A call of one batch for another that has the calls from ``first`` on, after ``shift`` others."""

    def plain(value: Any) -> Any:
        if isinstance(value, Earlier):
            if value.index < first:
                return results[value.index]
            return Earlier(value.index - first + shift, value.key)
        if isinstance(value, Mapping):
            if "$" in value:
                return plain(Earlier(*value["$"]))
            return {name: plain(item) for name, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    return Call(call.op, plain(call.fields), call.decode)
