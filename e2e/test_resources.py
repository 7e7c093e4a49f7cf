# SPDX-License-Identifier: GPL-2.0-or-later
"""What a TD takes besides its HKID comes back: memory, files, references on modules and cgroups.

A TD goes through the same life again and again.  What it takes for good makes a count grow by one each time.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from fixtures.agent import syscalls
from fixtures.agent.call import Call, SyscallResult
from fixtures.agent.client import Worker
from fixtures.cgroup import Cgroup
from fixtures.deadline import Deadline, comes_true
from fixtures.guests import output
from fixtures.host.allocations import kept, live
from fixtures.host.base import TdxHost
from fixtures.host.hkids import Hkids
from fixtures.host.resources import MEMINFO, allocated, growing, meminfo, references
from fixtures.kvm import build, commands
from fixtures.kvm.abi import PAGE_SIZE
from fixtures.kvm.build import Region
from fixtures.kvm.cpuid import CpuidEntry
from fixtures.kvm.defaults import default_params
from fixtures.kvm.device import Kvm
from fixtures.kvm.errors import KvmError, errno_of
from fixtures.kvm.many import many_tds
from fixtures.kvm.move import move_from, prepare_destination
from fixtures.kvm.params import InitVmParams
from fixtures.softseam import inject
from fixtures.softseam.inject import Injection
from fixtures.softseam.truth import Truth

pytestmark = pytest.mark.tdx_needs("misc-cgroup", "ground-truth", "seamcall-fault-injection")

ROUNDS, READINGS, MOST_READINGS = 8, 4, 12
"""What varies by itself may grow a few times in a row: then there are more readings, in each of which what is
kept grows."""
LIVES_COUNTED = 3
GSI = 5
VECTOR = 0x51
MEMORY = Region(0x100000, 2 * PAGE_SIZE, b"\x5a" * 2 * PAGE_SIZE)
MANY_PAGES = Region(0x200000, 16 * PAGE_SIZE)
"""What eight lives keep of them is more than the pages that a CPU has at hand."""
WARNING = r"WARNING: arch/x86/kvm/vmx/tdx\.[ch]:\d+"
FAILING = (
    "TDH.MNG.CREATE",
    "TDH.MNG.KEY.CONFIG",
    "TDH.MNG.ADDCX",
    "TDH.MNG.INIT",
    "TDH.VP.CREATE",
    "TDH.VP.ADDCX",
    "TDH.VP.INIT",
    "TDH.MEM.SEPT.ADD",
    "TDH.MEM.PAGE.ADD",
    "TDH.MR.EXTEND",
    "TDH.MR.FINALIZE",
)
BUSY_ONCE = ("TDH.MEM.SEPT.ADD", "TDH.MEM.PAGE.ADD", "TDH.MEM.PAGE.AUG")
REFERENCES_SECONDS = 5.0
FLUSH_SECONDS = 3.0
AT_ONCE = 8
TWO_MIB, RANGES = 1 << 21, 200
TRIES = 20
FILE_MAX = "/proc/sys/fs/file-max"
SYS_SETRESUID = 117  # x86-64
NOBODY = 65534
UNCHANGED = (1 << 32) - 1


@dataclass
class Stage:
    """Where lives take place.

    :param worker: a process in a cgroup that is removed afterwards.
    """

    host: TdxHost
    worker: Worker
    cgroup: Cgroup
    payload: bytes


Life = Callable[[Stage], None]


def whole(stage: Stage) -> None:
    """Everything that a TD can have, then its end."""
    with build.finalized(stage.worker, stage.payload, vcpus=2, regions=[MEMORY]) as built:
        td, vcpu = built.td, built.vcpus[0]
        with td.stats_fd(), vcpu.stats_fd():
            td.set_msi_routes({GSI: (VECTOR, 0)})
            with td.irqfd(GSI) as irqfd:
                assert output.numbers(vcpu, 1) == [1]
                irqfd.signal()
            td.set_memory_attributes(MEMORY.gpa, PAGE_SIZE, private=False)
            td.set_memory_attributes(MEMORY.gpa, PAGE_SIZE, private=True)
            built.vcpus[1].pre_fault(MEMORY.gpa, PAGE_SIZE)
            built.memfds[-1].punch_hole()
            td.capabilities()


def unfinished(stage: Stage) -> None:
    """Ends at each stage of its construction."""
    for at in build.Stage:
        if at is not build.Stage.NOTHING:
            build.at(at, stage.worker, stage.payload, regions=[MEMORY]).close()


def killed(stage: Stage) -> None:
    """Ends with its process."""
    with stage.host.agent.spawn(cgroup=stage.cgroup.path) as worker:
        built = build.finalized(worker, stage.payload, regions=[MEMORY])
        assert output.numbers(built.vcpus[0], 1) == [1]


def populated(stage: Stage) -> None:
    """Memory is copied from pages that nobody else has, and that go with it."""
    with build.with_vcpus(stage.worker).place(MANY_PAGES) as built:
        source = built.placed[-1].shared
        source.write(0, b"\x5a" * MANY_PAGES.size)
        count = MANY_PAGES.size // PAGE_SIZE
        built.vcpus[0].init_mem_region(source.address, MANY_PAGES.gpa, count, measure=False)


def moved(stage: Stage) -> None:
    """Moves to another VM, and ends there."""
    with build.finalized(stage.worker, stage.payload, regions=[MEMORY]) as source:
        assert output.numbers(source.vcpus[0], 1) == [1]
        source.vcpus[0].complete()
        with prepare_destination(source) as destination:
            move_from(source, to=destination)
            output.numbers(destination.vcpus[0], 1)


def moves_that_fail(stage: Stage) -> None:
    """A move to a VM that has no memory."""
    with build.finalized(stage.worker, stage.payload, regions=[MEMORY]) as source:
        with build.created(stage.worker) as destination:
            assert errno_of(lambda: move_from(source, to=destination))
        assert output.numbers(source.vcpus[0], 1) == [1]


def moved_without_memory(stage: Stage) -> None:
    """Moves before it has had a page, and so a page table, of its own."""
    with build.with_vcpus(stage.worker).finalize() as source, prepare_destination(source) as destination:
        move_from(source, to=destination)


def links_without_a_file(stage: Stage) -> None:
    """Memory that cannot be linked: the host has as many files as it may have, but for root."""
    files, worker = stage.host.agent.files, stage.worker
    with build.with_vcpus(worker).place(MEMORY) as source, build.created(worker) as other:
        link = commands.link_guest_memfd(other.td.fd, source.memfds[-1].fd)
        free = lowest_free_fd(worker)
        before = files.read_text(FILE_MAX)
        files.write(FILE_MAX, "0")
        try:
            _, linked, back = worker.batch(
                [effective_user(NOBODY), link, effective_user(0)], go_on=True
            ).results
        finally:
            files.write(FILE_MAX, before)
        assert back.ret == 0
        assert isinstance(linked, KvmError)
        assert linked.errno == errno.ENFILE
        assert lowest_free_fd(worker) == free


def lowest_free_fd(worker: Worker) -> int:
    """Return the number that a worker's next file gets."""
    made = worker.call(syscalls.eventfd())
    worker.close_fd(made)
    return made


def effective_user(uid: int) -> Call[SyscallResult]:
    """setresuid(2) of a thread's effective user, with its capabilities."""
    return syscalls.syscall(SYS_SETRESUID, UNCHANGED, uid, UNCHANGED)


def init_vm(stage: Stage, *changes: Callable[[InitVmParams], InitVmParams]) -> None:
    """A KVM_TDX_INIT_VM that fails, on a VM of its own for each change."""
    right = default_params(stage.worker)
    with Kvm.open(stage.worker) as kvm:
        for change in changes:
            with kvm.create_td() as td:
                assert errno_of(lambda td=td, change=change: td.init_vm(change(right)))  # type: ignore[misc]


def wrong_parameters(stage: Stage) -> None:
    """Refused by KVM, at each place, and by the module."""
    init_vm(
        stage,
        lambda right: right.replace(reserved=(0, 1) + (0,) * 10),
        lambda right: right.replace(padding=1),
        lambda right: right.replace(attributes=1 << 63),
        lambda right: right.replace(xfam=1 << 63),
        lambda right: right.without_entry(0x80000008),
        lambda right: right.replace(cpuid=(*right.cpuid, CpuidEntry(0x40000000))),
        lambda right: right.with_entry(1, edx=1),
    )


def refused(stage: Stage) -> None:
    """Refused for the sake of a limit."""
    init_vm(stage, lambda right: right)


def fails(leaf: str, code: int, nth: int = 1) -> Life:
    """Return a life of which a SEAMCALL fails."""

    def life(stage: Stage) -> None:
        count = 1 << 31 if nth == 1 else 10
        with inject.armed(stage.host.agent.files, Injection(leaf, nth, count, code)):
            assert errno_of(lambda: build.finalized(stage.worker, stage.payload, regions=[MEMORY]).close())

    return life


def busy_once(stage: Stage) -> None:
    """SEAMCALLs that map memory are repeated, with what had been prepared for them."""
    injections = [Injection(leaf, 1, 1, inject.TDX_OPERAND_BUSY) for leaf in BUSY_ONCE]
    files = stage.host.agent.files
    with inject.armed(files, *injections), build.finalized(stage.worker, stage.payload) as built:
        built.place(MEMORY)
        built.vcpus[0].pre_fault(MEMORY.gpa, MEMORY.size)
        assert inject.still_armed(files) == ()


def assert_flat(stage: Stage, life: Life, rounds: int = ROUNDS) -> None:
    life(stage)
    readings = [allocated(stage.host.agent)]
    while len(readings) < READINGS or (growing(readings, rounds) and len(readings) < MOST_READINGS):
        for _ in range(rounds):
            life(stage)
        readings.append(allocated(stage.host.agent))
    assert growing(readings, rounds) == {}


def assert_all_freed(stage: Stage, life: Life) -> None:
    """By each line of KVM, to one allocation."""
    life(stage)
    before = live(stage.host.agent)
    for _ in range(LIVES_COUNTED):
        life(stage)
    assert kept(stage.host.agent, before) == {}


@pytest.fixture
def stage(
    tdx_host: TdxHost,
    tdx_cgroup: Cgroup,
    hkids: Hkids,
    tdx_cleanup: ExitStack,
    payloads: Mapping[str, bytes],
) -> Stage:
    """A process in a cgroup.  Nobody may refer to either when the test has ended."""
    agent = tdx_host.agent
    before = references(agent)
    worker = agent.spawn(cgroup=tdx_cgroup.path)

    def end() -> None:
        worker.kill()
        worker.wait()
        tdx_cgroup.remove()
        seen = [before]

        def settled() -> bool:
            seen.append(references(agent))
            return seen[-1] == before

        in_time = comes_true(settled, REFERENCES_SECONDS)
        assert in_time, f"{before} before, {seen[-1]} now"

    tdx_cleanup.callback(end)
    return Stage(tdx_host, worker, tdx_cgroup, payloads["count"])


LIVES: dict[str, Life] = {
    "whole": whole,
    "killed": killed,
    "populated": populated,
    "wrong-parameters": wrong_parameters,
    "no-entropy": fails("TDH.MNG.CREATE", inject.TDX_RND_NO_ENTROPY),
    "no-entropy-later": fails("TDH.MNG.ADDCX", inject.TDX_RND_NO_ENTROPY, 3),
}


@pytest.mark.parametrize("life", LIVES.values(), ids=LIVES)
def test_nothing_is_kept(life: Life, stage: Stage) -> None:
    assert_flat(stage, life)


@pytest.mark.tdx_needs("allocations")
@pytest.mark.parametrize(
    "life",
    [
        *(pytest.param(life, id=name) for name, life in LIVES.items()),
        pytest.param(unfinished, id="unfinished"),
        pytest.param(busy_once, id="busy-once"),
        *(
            pytest.param(
                fails(leaf, inject.TDX_SYS_NOT_READY), id=leaf, marks=pytest.mark.tdx_splat_expected(WARNING)
            )
            for leaf in FAILING
        ),
    ],
)
def test_kvm_frees_all_that_it_allocates(life: Life, stage: Stage) -> None:
    assert_all_freed(stage, life)


@pytest.mark.tdx_needs("allocations")
@pytest.mark.tdx_offers("move")
@pytest.mark.usefixtures("td_move")
@pytest.mark.parametrize("life", [moved, moved_without_memory, moves_that_fail, links_without_a_file])
def test_kvm_frees_all_that_a_move_allocates(life: Life, stage: Stage) -> None:
    assert_all_freed(stage, life)


def test_control_pages_are_charged_to_the_memory_of_who_makes_them(
    tdx_host: TdxHost, tdx_cgroup: Cgroup, tdx_cleanup: ExitStack
) -> None:
    """TDR, TDCS and TDVPS are memory of the host that nobody else can use."""
    tdx_cgroup.account_memory()
    worker = tdx_cleanup.enter_context(tdx_host.agent.spawn(cgroup=tdx_cgroup.path))
    kvm = tdx_cleanup.enter_context(Kvm.open(worker))
    # What is made once, and what the first of all is charged for.
    many_tds(kvm, 1)[0].close()
    tds = [tdx_cleanup.enter_context(kvm.create_td()) for _ in range(AT_ONCE)]
    before = settled(tdx_cgroup)
    for td in tds:
        td.init_vm(td.default_params())
    pages = sum(1 + td.children for td in Truth(tdx_host.agent).state().tds)
    assert pages > AT_ONCE
    assert settled(tdx_cgroup) - before >= pages * PAGE_SIZE


def test_page_tables_are_charged_to_the_memory_of_who_populates_them(
    tdx_host: TdxHost, tdx_cgroup: Cgroup, tdx_cleanup: ExitStack
) -> None:
    """KVM's mirror, and for each of its pages one of the TDX module's."""
    tdx_cgroup.account_memory()
    worker = tdx_cleanup.enter_context(tdx_host.agent.spawn(cgroup=tdx_cgroup.path))
    built = tdx_cleanup.enter_context(build.finalized(worker))
    first = 1 << 32
    built.place(Region(first, RANGES * TWO_MIB))

    def populate(*ranges: int) -> int:
        """Populate a page of each; returns the number of pages that the module has for page tables."""
        vcpu = built.vcpus[0].fd
        asked = [commands.pre_fault_memory(vcpu, first + index * TWO_MIB, PAGE_SIZE) for index in ranges]
        assert worker.batch(asked).complete
        return sum(page.count for page in Truth(tdx_host.agent).state().pages if page.type == "ept")

    tables, before = populate(0), settled(tdx_cgroup)
    tables = populate(*range(1, RANGES)) - tables
    assert tables >= RANGES - 1
    # A few dozen of each are charged before they are needed: KVM keeps some ready.
    assert settled(tdx_cgroup) - before >= 3 * tables // 2 * PAGE_SIZE


@pytest.mark.tdx_needs("seamcall-fault-injection")
def test_page_table_that_could_not_be_linked_at_once_is_counted_once(
    tdx_host: TdxHost, owner: Worker
) -> None:
    """SecPageTables of /proc/meminfo, after a TDX module that was busy and a TD that has ended."""
    files = tdx_host.agent.files

    def counted() -> int:
        files.write("/proc/sys/vm/stat_refresh", "1")
        return meminfo(files.read_text(MEMINFO))["SecPageTables"] * 1024 // PAGE_SIZE

    before = counted()
    with build.finalized(owner) as built:
        built.place(Region(1 << 32, PAGE_SIZE))
        with inject.armed(files, Injection("TDH.MEM.SEPT.ADD", count=TRIES)):
            assert built.vcpus[0].pre_fault(1 << 32, PAGE_SIZE) == 0
        assert inject.still_armed(files) == ()
    assert counted() - before < TRIES // 2


def settled(cgroup: Cgroup) -> int:
    """Return the kernel's memory in a cgroup, once it has been brought up to date."""
    first, deadline = cgroup.kernel_memory, Deadline(FLUSH_SECONDS, "a cgroup's memory to be summed up")
    while not deadline.expired():
        if (now := cgroup.kernel_memory) != first:
            return now
    return first


@pytest.mark.slow
def test_nothing_is_kept_of_an_unfinished_td(stage: Stage) -> None:
    assert_flat(stage, unfinished)


@pytest.mark.slow
@pytest.mark.tdx_splat_expected(WARNING)
@pytest.mark.parametrize("leaf", FAILING)
def test_nothing_is_kept_when_a_seamcall_fails(leaf: str, stage: Stage) -> None:
    assert_flat(stage, fails(leaf, inject.TDX_SYS_NOT_READY))


@pytest.mark.tdx_offers("move")
@pytest.mark.usefixtures("td_move")
def test_nothing_is_kept_when_the_cgroup_is_at_its_limit(stage: Stage) -> None:
    """Not on a kernel with F1: there each refusal lowers the count, and the next TD is admitted."""
    stage.cgroup.set_max(0)
    assert_flat(stage, refused)


def test_nothing_is_kept_when_there_is_no_hkid(stage: Stage, kvm: Kvm, hkids: Hkids) -> None:
    many_tds(kvm, hkids.free)
    assert_flat(stage, refused)


@pytest.mark.slow
@pytest.mark.tdx_offers("move")
@pytest.mark.usefixtures("td_move")
@pytest.mark.parametrize("life", [moved, moves_that_fail])
def test_nothing_is_kept_by_a_move(life: Life, stage: Stage) -> None:
    assert_flat(stage, life)
