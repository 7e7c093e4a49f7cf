# SPDX-License-Identifier: GPL-2.0-or-later
"""A model of the contract of KVM's TDX ioctls, beside the real ones: each request has to end as it says.

Two processes own up to three TDs.  A request names what it is about by number, so that a list of requests is
a test: :class:`Api` prints the requests that led to a failure as one.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fixtures.agent import syscalls
from fixtures.agent.call import Call
from fixtures.agent.errors import errno_name
from fixtures.closing import Closing
from fixtures.contracts.promises import Contract, Promise, Refusal
from fixtures.errors import KernelUnderTestError
from fixtures.host.base import TdxHost
from fixtures.host.hkids import Hkids
from fixtures.kvm import abi, commands
from fixtures.kvm.abi import PAGE_SIZE, Cap, ExitReason, Request, TdxCmdId, VmType
from fixtures.kvm.build import Region
from fixtures.kvm.defaults import default_params, vcpu_cpuid
from fixtures.kvm.errors import KvmError
from fixtures.kvm.memory import Memory
from fixtures.kvm.params import InitVmParams, MemorySlot
from fixtures.kvm.told import after_create_vm

PROCESSES, TDS, VCPUS, SLOTS = 2, 3, 3, 2
"""How many there are of each; numbers in requests are below these."""

MISTAKES: dict[str, Callable[[InitVmParams], InitVmParams]] = {
    "none": lambda params: params,
    "reserved": lambda params: params.replace(reserved=(0,) * 11 + (1,)),
    "padding": lambda params: params.replace(padding=1),
    "attributes": lambda params: params.replace(attributes=params.attributes | 1 << 62),
    "xfam": lambda params: params.replace(xfam=params.xfam | 1 << 62),
    "width": lambda params: params.with_width(40),
    "leaf": lambda params: params.with_entry(0x40000000, eax=1),
}
"""Parameters of KVM_TDX_INIT_VM, of which all but the first are refused with EINVAL."""


@dataclass
class Vcpu:
    """The model of a vCPU."""

    fd: int
    ident: int
    cpuid: bool = False
    initialized: bool = False
    page: int = 0


@dataclass
class Slot:
    """The model of a memory slot.

    :param populated: its pages were added to the TD; ``murky`` afterwards once some were taken away.
    """

    memfd: int
    populated: bool = False
    murky: bool = False


@dataclass
class Td:
    """The model of a TD.

    :param fd: of its VM; -1 once it is closed, while other fds keep the VM.
    """

    process: int
    fd: int
    split: bool = False
    initialized: bool = False
    finalized: bool = False
    vcpus: dict[int, Vcpu] = field(default_factory=dict)
    created_vcpus: int = 0
    slots: dict[int, Slot] = field(default_factory=dict)
    private: set[int] = field(default_factory=set)
    memfds: list[int] = field(default_factory=list)


class Api(Closing):
    """The ioctls, and their model.

    :param host: its KVM is held to ``contract``.
    :param payload: the image of ``count``.
    :param finalize_bare: finalize TDs without a vCPU too, which kills the VM on kernels with finding F2.
    """

    def __init__(self, host: TdxHost, contract: Contract, payload: bytes, *, finalize_bare: bool) -> None:
        self.host = host
        self.contract = contract
        self.finalize_bare = finalize_bare
        self.requests: list[str] = []
        self.hkids = Hkids.counted_from_now(host)
        self._regions = (Region.firmware(payload), Region(0x40000000, PAGE_SIZE, b"\1" * PAGE_SIZE))
        self._workers = [host.agent.spawn() for _ in range(PROCESSES)]
        self._kvms = [worker.open("/dev/kvm", os.O_RDWR) for worker in self._workers]
        self._backing = [[Memory.map(w, r.size) for r in self._regions] for w in self._workers]
        self._tds: dict[int, Td] = {}
        self._present = host.facts.present_cpus

    def end(self) -> None:
        """End the processes."""
        for worker in self._workers:
            worker.close()

    def close(self) -> None:
        """End the processes; no HKID may be left, and the kernel may not have complained.

        :raises ModelDiffers: one of both.
        """
        self.end()
        splats = self.host.splats()
        if splats:
            raise self._failure(f"the kernel complained: {splats[0]}")
        if self.hkids.taken:
            raise self._failure(f"{self.hkids.taken} HKIDs are left when all processes have ended")

    # requests

    def create(self, td: int, process: int) -> None:
        """KVM_CREATE_VM, in place of whatever TD had that number."""
        with self._request("create", td, process):
            if td in self._tds:
                self._drop(self._tds.pop(td))
            fd = self._expect(0, commands.create_vm(self._kvms[process], VmType.TDX), process)
            for call in after_create_vm(self._workers[process], fd):
                self._expect(0, call, process)
            self._tds[td] = Td(process, fd)

    def split_irqchip(self, td: int) -> None:
        """KVM_CAP_SPLIT_IRQCHIP."""
        with self._of_td("split_irqchip", td) as it:
            wanted = errno.EEXIST if it.split or it.created_vcpus else 0
            self._expect(wanted, commands.enable_cap(it.fd, Cap.SPLIT_IRQCHIP, 24), it.process)
            it.split = it.split or not wanted

    def init_vm(self, td: int, mistake: str = "none") -> None:
        """KVM_TDX_INIT_VM."""
        with self._of_td("init_vm", td, mistake) as it:
            params = MISTAKES[mistake](default_params(self._workers[it.process]))
            wanted = 0
            if it.initialized:
                wanted = self.contract.errno(Promise.INIT_TWICE)
            elif mistake in ("reserved", "padding"):
                wanted = self.contract.errno(Refusal.INIT_RESERVED)
            elif it.created_vcpus and self.contract.errno(Promise.INIT_AFTER_VCPU):
                wanted = self.contract.errno(Promise.INIT_AFTER_VCPU)
            elif mistake != "none":
                wanted = self.contract.errno(Refusal.INIT_ATTRIBUTES)
            self._expect(wanted, commands.init_vm(it.fd, params), it.process)
            it.initialized = it.initialized or not wanted

    def create_vcpu(self, td: int, ident: int) -> None:
        """KVM_CREATE_VCPU."""
        with self._of_td("create_vcpu", td, ident) as it:
            wanted = 0
            if it.created_vcpus >= self._present:
                wanted = self.contract.errno(Promise.VCPU_TOO_MANY)
            elif ident in it.vcpus:
                wanted = self.contract.errno(Refusal.VCPU_DUPLICATE)
            elif it.finalized:
                wanted = self.contract.errno(Refusal.VCPU_AFTER_FINALIZE)
            elif not it.initialized and self.contract.errno(Promise.VCPU_BEFORE_INIT):
                wanted = self.contract.errno(Promise.VCPU_BEFORE_INIT)
            elif not it.split:
                wanted = self.contract.errno(Refusal.VCPU_NO_SPLIT_IRQCHIP)
            fd = self._expect(wanted, commands.create_vcpu(it.fd, ident), it.process)
            if not wanted:
                it.vcpus[ident] = Vcpu(fd, ident)
                it.created_vcpus += 1

    def set_cpuid(self, td: int, ident: int) -> None:
        """KVM_SET_CPUID2."""
        with self._of_vcpu("set_cpuid", td, ident) as (it, vcpu):
            self._expect(0, commands.set_cpuid2(vcpu.fd, vcpu_cpuid(self._workers[it.process])), it.process)
            vcpu.cpuid = True

    def init_vcpu(self, td: int, ident: int) -> None:
        """KVM_TDX_INIT_VCPU."""
        with self._of_vcpu("init_vcpu", td, ident) as (it, vcpu):
            wanted = 0
            if not it.initialized or it.finalized:
                wanted = self.contract.errno(Refusal.INIT_VCPU_FINALIZED)
            elif vcpu.initialized:
                wanted = self.contract.errno(Refusal.INIT_VCPU_TWICE)
            elif not vcpu.cpuid:
                wanted = self.contract.errno(Refusal.INIT_VCPU_NO_X2APIC)
            self._expect(wanted, commands.init_vcpu(vcpu.fd), it.process)
            vcpu.initialized = vcpu.initialized or not wanted

    def get_cpuid(self, td: int, ident: int) -> None:
        """KVM_TDX_GET_CPUID."""
        with self._of_vcpu("get_cpuid", td, ident) as (it, vcpu):
            wrong = not it.initialized or it.finalized
            wanted = self.contract.errno(Refusal.GET_CPUID_FINALIZED) if wrong else 0
            self._expect(wanted, commands.get_cpuid(vcpu.fd), it.process)

    def add_slot(self, td: int, slot: int) -> None:
        """KVM_CREATE_GUEST_MEMFD and KVM_SET_USER_MEMORY_REGION2."""
        with self._of_td("add_slot", td, slot) as it:
            region = self._regions[slot]
            memfd = self._expect(0, commands.create_guest_memfd(it.fd, region.size), it.process)
            it.memfds.append(memfd)
            address = self._backing[it.process][slot].address
            flags = abi.KVM_MEM_GUEST_MEMFD
            new = MemorySlot(slot, region.gpa, region.size, address, memfd, flags=flags)
            wanted = self.contract.errno(Refusal.SLOT_MEMFD_CHANGED) if slot in it.slots else 0
            self._expect(wanted, commands.set_slot(it.fd, new), it.process)
            if not wanted:
                it.slots[slot] = Slot(memfd)

    def delete_slot(self, td: int, slot: int) -> None:
        """KVM_SET_USER_MEMORY_REGION2 with size 0."""
        with self._of_td("delete_slot", td, slot) as it:
            wanted = 0 if slot in it.slots else errno.EINVAL
            gone = MemorySlot(slot, self._regions[slot].gpa, 0)
            self._expect(wanted, commands.set_slot(it.fd, gone), it.process)
            it.slots.pop(slot, None)

    def set_private(self, td: int, slot: int, private: bool) -> None:
        """KVM_SET_MEMORY_ATTRIBUTES, with or without a slot there."""
        with self._of_td("set_private", td, slot, private) as it:
            region = self._regions[slot]
            attributes = abi.KVM_MEMORY_ATTRIBUTE_PRIVATE if private else 0
            call = commands.set_memory_attributes(it.fd, region.gpa, region.size, attributes)
            self._expect(0, call, it.process)
            if private:
                it.private.add(slot)
            else:
                it.private.discard(slot)
                if slot in it.slots and it.slots[slot].populated:
                    it.slots[slot].murky = True

    def populate(self, td: int, ident: int, slot: int) -> None:
        """KVM_TDX_INIT_MEM_REGION of a whole slot."""
        with self._of_vcpu("populate", td, ident, slot) as (it, vcpu):
            region, there = self._regions[slot], it.slots.get(slot)
            wanted = 0
            if not it.initialized or it.finalized:
                wanted = self.contract.errno(Refusal.REGION_FINALIZED)
            elif not vcpu.initialized:
                wanted = self.contract.errno(Refusal.REGION_VCPU_NOT_INITIALIZED)
            elif there is None:
                wanted = self.contract.errno(Refusal.REGION_NO_SLOT)
            elif slot not in it.private:
                wanted = self.contract.errno(Refusal.REGION_NOT_PRIVATE)
            elif there.murky:
                return
            elif there.populated:
                wanted = self.contract.errno(Refusal.REGION_TWICE)
            call = commands.init_mem_region(vcpu.fd, region.data, region.gpa, measure=slot == 1)
            self._expect(wanted, call, it.process)
            if there is not None:
                there.populated = there.populated or not wanted

    def finalize(self, td: int) -> None:
        """KVM_TDX_FINALIZE_VM."""
        with self._of_td("finalize", td) as it:
            wanted = 0
            if not it.initialized or it.finalized:
                wanted = self.contract.errno(Refusal.FINALIZE_TWICE)
            elif not any(vcpu.initialized for vcpu in it.vcpus.values()):
                if not self.finalize_bare:
                    return
                wanted = self.contract.errno(Refusal.FINALIZE_NO_VCPU)
            self._expect(wanted, commands.finalize_vm(it.fd), it.process)
            it.finalized = it.finalized or not wanted

    def run(self, td: int, ident: int) -> None:
        """KVM_RUN, with ``immediate_exit`` where it would neither be refused nor have the guest exit."""
        with self._of_vcpu("run", td, ident) as (it, vcpu):
            ready = it.finalized and vcpu.initialized
            firmware = it.slots.get(0)
            real = bool(ready and firmware and firmware.populated and not firmware.murky and 0 in it.private)
            wanted = 0 if real else errno.EINTR
            # A vCPU other than the first waits for an INIT that KVM_TDX_INIT_VCPU stands for.
            if not ready and (ident == 0 or vcpu.initialized):
                wanted = self.contract.errno(Refusal.RUN_BEFORE_FINALIZE)
            worker = self._workers[it.process]
            if not vcpu.page:
                protection = mmap.PROT_READ | mmap.PROT_WRITE
                vcpu.page = worker.call(syscalls.mmap(3 * PAGE_SIZE, protection, mmap.MAP_SHARED, vcpu.fd))
            flag = syscalls.mem_write(vcpu.page + abi.RUN_IMMEDIATE_EXIT, bytes([wanted == errno.EINTR]))
            worker.call(flag)
            self._expect(wanted, commands.ioctl(vcpu.fd, Request.KVM_RUN), it.process)
            if real:
                state = worker.call(syscalls.mem_read(vcpu.page, abi.RUN_BYTES))
                reason = int.from_bytes(state[abi.RUN_EXIT_REASON :][:4], "little")
                if reason != ExitReason.IO:
                    raise self._failure(f"the guest's exit is {reason}, not KVM_EXIT_IO")

    def capabilities(self, td: int) -> None:
        """KVM_TDX_CAPABILITIES."""
        with self._of_td("capabilities", td) as it:
            self._expect(0, commands.capabilities(it.fd), it.process)

    def from_another_process(self, td: int) -> None:
        """KVM_TDX_CAPABILITIES in the process that does not own the TD."""
        with self._of_td("from_another_process", td) as it:
            owner, other = self._workers[it.process], self._workers[1 - it.process]
            there = owner.send_fd(it.fd, other)
            wanted = self.contract.errno(Refusal.OTHER_PROCESS)
            self._expect(wanted, commands.capabilities(there), 1 - it.process)
            other.close_fd(there)

    def command_on_vcpu(self, td: int, ident: int, command: str) -> None:
        """A command of the VM on the fd of a vCPU."""
        with self._of_vcpu("command_on_vcpu", td, ident, command) as (it, vcpu):
            wanted = self.contract.errno(Refusal.CMD_UNKNOWN_ON_VCPU)
            self._expect(wanted, commands.tdx(vcpu.fd, TdxCmdId[command]), it.process)

    def command_on_vm(self, td: int, command: str) -> None:
        """A command of a vCPU on the fd of the VM."""
        with self._of_td("command_on_vm", td, command) as it:
            wanted = self.contract.errno(Refusal.CMD_UNKNOWN_ON_VM)
            self._expect(wanted, commands.tdx(it.fd, TdxCmdId[command]), it.process)

    def close_vm(self, td: int) -> None:
        """Close the VM's fd; its vCPUs and guest_memfds keep the VM."""
        with self._of_td("close_vm", td) as it:
            self._workers[it.process].close_fd(it.fd)
            it.fd = -1
            if not it.vcpus and not it.memfds:
                del self._tds[td]

    def forget(self, td: int) -> None:
        """Close all fds of a TD."""
        with self._request("forget", td):
            if td in self._tds:
                self._drop(self._tds.pop(td))

    def kill(self, process: int) -> None:
        """End a process, which has its TDs, with SIGKILL, and begin another."""
        with self._request("kill", process):
            self._workers[process].close()
            self._tds = {number: td for number, td in self._tds.items() if td.process != process}
            worker = self._workers[process] = self.host.agent.spawn()
            self._kvms[process] = worker.open("/dev/kvm", os.O_RDWR)
            self._backing[process] = [Memory.map(worker, region.size) for region in self._regions]

    def advance(self, td: int) -> None:
        """Make the request that takes a TD on, on its way to one that runs."""
        it = self._tds.get(td)
        if it is None:
            self.create(td, 0)
        elif it.fd < 0:
            self.forget(td)
        elif not it.split and not it.created_vcpus:
            self.split_irqchip(td)
        elif not it.initialized:
            self.init_vm(td)
        elif it.finalized:
            self.run(td, next(iter(it.vcpus), 0))
        elif not it.vcpus:
            self.create_vcpu(td, 0)
        else:
            self._advance_vcpu(td, it, next(iter(it.vcpus.values())))

    def _advance_vcpu(self, td: int, it: Td, vcpu: Vcpu) -> None:
        if not vcpu.cpuid:
            self.set_cpuid(td, vcpu.ident)
        elif not vcpu.initialized:
            self.init_vcpu(td, vcpu.ident)
        elif 0 not in it.slots:
            self.add_slot(td, 0)
        elif 0 not in it.private:
            self.set_private(td, 0, True)
        elif not it.slots[0].populated:
            self.populate(td, vcpu.ident, 0)
        else:
            self.finalize(td)

    def books(self) -> None:
        """Compare the HKIDs in use with the model's."""
        with self._request("books"):
            wanted = sum(td.initialized for td in self._tds.values())
            if self.hkids.taken != wanted:
                raise self._failure(f"{self.hkids.taken} HKIDs are in use, not {wanted}")

    # helpers

    def _drop(self, td: Td) -> None:
        worker = self._workers[td.process]
        calls: list[Call[Any]] = [
            syscalls.munmap(vcpu.page, 3 * PAGE_SIZE) for vcpu in td.vcpus.values() if vcpu.page
        ]
        calls += [syscalls.close(vcpu.fd) for vcpu in td.vcpus.values()]
        calls += [syscalls.close(fd) for fd in (*td.memfds, td.fd) if fd >= 0]
        worker.batch(calls, go_on=True)

    @contextmanager
    def _request(self, name: str, *arguments: object) -> Iterator[None]:
        self.requests.append(f"api.{name}({', '.join(map(repr, arguments))})")
        yield

    @contextmanager
    def _of_td(self, name: str, td: int, *arguments: object) -> Iterator[Td]:
        if td not in self._tds or self._tds[td].fd < 0:
            self.create(td, td % PROCESSES)
        with self._request(name, td, *arguments):
            yield self._tds[td]

    @contextmanager
    def _of_vcpu(self, name: str, td: int, ident: int, *arguments: object) -> Iterator[tuple[Td, Vcpu]]:
        it = self._tds.get(td)
        if it is None or ident not in it.vcpus:
            raise Missing
        with self._request(name, td, ident, *arguments):
            yield it, it.vcpus[ident]

    def _expect(self, wanted: int, call: Call[Any], process: int) -> Any:
        """Make a request that has to end with an errno, or with 0 succeed; returns its result."""
        result, found = None, 0
        try:
            result = self._workers[process].call(call)
        except KvmError as error:
            found = error.errno
        if found != wanted:
            raise self._failure(
                f"{_name(found)}, where the contract {self.contract.name} has {_name(wanted)}"
            )
        return result

    def _failure(self, what: str) -> ModelDiffers:
        return ModelDiffers(f"{self.requests[-1]}: {what}\n\n{self.as_test()}")

    def as_test(self) -> str:
        """The requests as a test, to be pasted into e2e/test_fuzz.py."""
        lines = "\n".join(f"    {line}" for line in self.requests)
        return f"def test_found(api: Api) -> None:\n{lines}\n"


class Missing(Exception):
    """There is no vCPU of the number that a request names."""


class ModelDiffers(KernelUnderTestError):
    """A request ended otherwise than the model has it."""


def _name(number: int) -> str:
    return errno_name(number) if number else "success"
