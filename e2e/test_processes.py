# SPDX-License-Identifier: GPL-2.0-or-later
"""HKIDs and the processes that hold TDs: killed, outlived by others, racing for the last HKID."""

from __future__ import annotations

import signal
import struct
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import count
from typing import Any

import pytest

from e2e.findings import F1
from e2e.races import error_of, on
from fixtures.agent import syscalls
from fixtures.agent.call import BatchResult, Call, Earlier, batch_call
from fixtures.agent.client import Job, Worker
from fixtures.cgroup import Cgroup
from fixtures.contracts.answers import refused
from fixtures.contracts.promises import Contract, Promise, Refusal
from fixtures.deadline import comes_true, until
from fixtures.findings import shows
from fixtures.host.base import TdxHost
from fixtures.host.hkids import Hkids
from fixtures.host.park import parked
from fixtures.kvm import abi, build, commands
from fixtures.kvm.abi import VmType
from fixtures.kvm.build import Assembly, Stage
from fixtures.kvm.defaults import default_params
from fixtures.kvm.device import Kvm
from fixtures.kvm.errors import KvmError
from fixtures.kvm.fd import Fd
from fixtures.kvm.many import many_tds
from fixtures.kvm.memory import Memory
from fixtures.kvm.td import Td
from fixtures.kvm.told import after_create_vm

pytestmark = pytest.mark.tdx_needs("misc-cgroup")

SYS_EXECVE = 59  # x86-64
ANOTHER_PROGRAM = "/bin/sleep"
RACERS = 4
ROUNDS, MANY_ROUNDS = 6, 30

# killed


@pytest.mark.parametrize("stage", [pytest.param(s, id=s.name.lower()) for s in Stage if s])
def test_sigkill_of_the_owner_gives_its_hkid_back(stage: Stage, owner: Worker, hkids: Hkids) -> None:
    build.at(stage, owner)
    assert hkids.taken == (stage >= Stage.INITIALIZED)
    owner.kill()
    assert owner.wait() == -signal.SIGKILL
    assert hkids.taken == 0


def test_sigkill_of_the_owner_of_many_tds_gives_all_back(kvm: Kvm, hkids: Hkids) -> None:
    many_tds(kvm, hkids.free)
    assert hkids.free == 0
    kvm.worker.kill()
    kvm.worker.wait()
    assert hkids.taken == 0


def test_sigkill_in_the_midst_of_construction_gives_all_back(tdx_host: TdxHost, hkids: Hkids) -> None:
    """The owner builds TD after TD, and each round kills it a little later."""
    for pauses in range(0, 24, 3):
        with tdx_host.agent.spawn() as owner, Kvm.open(owner) as kvm:
            building = owner.start(construction(kvm, repeat=1000))
            for _ in range(pauses):
                owner.call(syscalls.ping())  # A round trip as the unit of time: it scales with the machine.
            assert not building.done()
            owner.kill()
            owner.wait()
        assert hkids.taken == 0


def test_owner_that_executes_another_program_gives_its_hkid_back(
    owner: Worker, tdx_host: TdxHost, hkids: Hkids, assert_gone: Callable[[], None]
) -> None:
    """KVM opens its files with O_CLOEXEC, those of vCPUs too."""
    build.at(Stage.WITH_VCPUS, owner)
    memory = Memory.map(owner, abi.PAGE_SIZE)
    program, arguments = f"{ANOTHER_PROGRAM}\0".encode(), memory.address + 2048
    memory.write(0, program + b"1000\0")
    memory.write(2048, struct.pack("<QQQ", memory.address, memory.address + len(program), 0))
    owner.start(syscalls.syscall(SYS_EXECVE, memory.address, arguments, 0))
    told = f"/proc/{owner.pid}/cmdline"
    until(lambda: ANOTHER_PROGRAM in tdx_host.agent.files.read_text(told), "the program to begin")
    assert comes_true(lambda: hkids.taken == 0)
    owner.kill()
    # The program begins when all files are closed, but their VM may take its time.
    owner.wait()
    assert_gone()


def construction(kvm: Kvm, *, repeat: int) -> Call[BatchResult]:
    """A batch that creates TDs with an HKID and a guest_memfd, and closes them, one after the other."""
    steps: list[Call[Any]] = [
        commands.create_vm(kvm.fd, VmType.TDX),
        *after_create_vm(kvm.worker, Earlier(0)),
        commands.init_vm(Earlier(0), default_params(kvm.worker)),
        commands.create_guest_memfd(Earlier(0), abi.PAGE_SIZE),
    ]
    closing = [syscalls.close(Earlier(0)), syscalls.close(Earlier(len(steps) - 1))]
    return batch_call([*steps, *closing], repeat=repeat)


# succeeded by others

PASSED: dict[str, Callable[[Assembly], Fd]] = {
    "vm-fd": lambda built: built.td,
    "vcpu-fd": lambda built: built.vcpus[0],
    "guest-memfd": lambda built: built.memfds[0],
    "vm-stats-fd": lambda built: built.td.stats_fd(),
    "vcpu-stats-fd": lambda built: built.vcpus[0].stats_fd(),
}


@pytest.mark.parametrize("passed", [pytest.param(one, id=name) for name, one in PASSED.items()])
def test_hkid_outlives_its_owner_with_an_fd_in_another_process(
    passed: Callable[[Assembly], Fd], owner: Worker, tdx_host: TdxHost, hkids: Hkids
) -> None:
    built = build.populated(owner)
    with tdx_host.agent.spawn() as heir:
        inherited = passed(built).give(heir)
        owner.close()
        assert hkids.taken == 1
        inherited.close()
        assert hkids.taken == 0


def test_hkid_goes_with_the_last_heir(owner: Worker, tdx_host: TdxHost, hkids: Hkids) -> None:
    (td,) = many_tds(Kvm.open(owner), 1)
    with tdx_host.agent.spawn() as heir, tdx_host.agent.spawn() as heirs_heir:
        td.give(heir).give(heirs_heir)
        owner.close()
        heir.close()
        assert hkids.taken == 1
        heirs_heir.close()
        assert hkids.taken == 0


def test_heir_can_do_nothing_with_the_td(
    owner: Worker, tdx_host: TdxHost, hkids: Hkids, contract: Contract
) -> None:
    """A VM belongs to the process that created it: its memory is in that address space."""
    with build.created(owner) as built, tdx_host.agent.spawn() as heir:
        inherited = Td(heir, owner.send_fd(built.td.fd, heir))
        params = built.td.default_params()
        for request in (lambda: inherited.init_vm(params), inherited.finalize, inherited.capabilities):
            with refused(contract, Refusal.OTHER_PROCESS):
                request()
        assert hkids.taken == 0
        built.td.init_vm(params)
        assert hkids.taken == 1


def test_number_of_a_vms_fd_may_be_given_again_while_the_vm_lives(owner: Worker, hkids: Hkids) -> None:
    """KVM names a VM by it in debugfs."""
    with Kvm.open(owner) as kvm, kvm.create_td() as first:
        number = first.fd
        with first.dup():
            first.close()
            with kvm.create_td() as second:
                assert second.fd == number
                second.init_vm()
                assert hkids.taken == 1


def test_fd_on_its_way_to_another_process_holds_the_hkid(
    owner: Worker, tdx_host: TdxHost, hkids: Hkids
) -> None:
    """The fd is sent and never received: it stays in the socket's queue until the receiver dies."""
    (td,) = many_tds(Kvm.open(owner), 1)
    with tdx_host.agent.spawn() as heir:
        owner.give_fd(td.fd, heir)
        owner.close()
        assert hkids.taken == 1
    assert hkids.taken == 0


# racing


class Racer:
    """A process with a TD before its KVM_TDX_INIT_VM."""

    def __init__(self, worker: Worker) -> None:
        self.kvm = Kvm.open(worker)
        self.td = self.kvm.create_td()

    def again(self) -> None:
        """Close the TD, and create another for the next round."""
        self.td.close()
        self.td = self.kvm.create_td()


def race(tdx_host: TdxHost, tds: list[Td]) -> list[KvmError | None]:
    """Call KVM_TDX_INIT_VM on all TDs at the same instant, and return the error of each or None."""
    params = [td.default_params() for td in tds]
    slots = tdx_host.agent.barrier(len(tds))
    jobs: list[Job[None]] = [
        td.worker.start(commands.init_vm(td.fd, right, barrier=slot))
        for td, right, slot in zip(tds, params, slots, strict=True)
    ]
    return [outcome(job) for job in jobs]


def outcome(job: Job[None]) -> KvmError | None:
    try:
        job.result()
    except KvmError as error:
        return error
    return None


def test_one_of_several_processes_gets_the_last_hkid(
    kvm: Kvm, tdx_host: TdxHost, tdx_cleanup: ExitStack, hkids: Hkids, contract: Contract
) -> None:
    many_tds(kvm, hkids.free - 1)
    racers = [Racer(tdx_cleanup.enter_context(tdx_host.agent.spawn())) for _ in range(RACERS)]
    for _ in range(ROUNDS):
        results = race(tdx_host, [racer.td for racer in racers])
        losers = [error.errno for error in results if error is not None]
        assert losers == [contract.errno(Refusal.INIT_NO_HKID)] * (RACERS - 1)
        assert hkids.free == 0
        racers[results.index(None)].again()
        assert hkids.free == 1


@pytest.mark.tdx_finding("F1", **F1)
def test_one_of_several_processes_gets_the_last_place_below_a_limit(
    tdx_host: TdxHost, tdx_cgroup: Cgroup, tdx_cleanup: ExitStack, contract: Contract
) -> None:
    """Each is in a cgroup of its own, and the limit is that of the one above."""
    tdx_cgroup.set_max(1)
    cgroups = [tdx_cgroup.child(f"racer-{number}") for number in range(RACERS)]
    racers = [Racer(tdx_cleanup.enter_context(tdx_host.agent.spawn(cgroup=group.path))) for group in cgroups]
    for _ in range(MANY_ROUNDS):
        results = race(tdx_host, [racer.td for racer in racers])
        losers = [error.errno for error in results if error is not None]
        with shows("F1"):
            assert losers == [contract.errno(Refusal.INIT_CGROUP_MAX)] * (RACERS - 1)
            assert [group.current for group in cgroups] == [int(result is None) for result in results]
            assert (tdx_cgroup.current, tdx_cgroup.peak) == (1, 1)
        racers[results.index(None)].again()


def test_one_of_several_threads_initializes_a_td(
    kvm: Kvm, tdx_host: TdxHost, hkids: Hkids, contract: Contract
) -> None:
    for _ in range(ROUNDS):
        with kvm.create_td() as td:
            results = race(tdx_host, [td] * RACERS)
            losers = [error.errno for error in results if error is not None]
            assert losers == [contract.errno(Promise.INIT_TWICE)] * (RACERS - 1)
            assert hkids.taken == 1
        assert hkids.taken == 0


@pytest.mark.tdx_finding("F8", flavours=("upstream",), race=True)
@pytest.mark.tdx_finding("F1", **F1, race=True)
def test_creators_and_destroyers_at_the_limit_lose_nothing(
    kvm: Kvm, tdx_host: TdxHost, tdx_cleanup: ExitStack, hkids: Hkids, contract: Contract
) -> None:
    """Four processes share two HKIDs: each takes one and gives it back as fast as it can."""
    many_tds(kvm, hkids.free - 2)
    workers = [tdx_cleanup.enter_context(tdx_host.agent.spawn()) for _ in range(RACERS)]
    params = default_params(kvm.worker)
    jobs = []
    for slot, worker in zip(tdx_host.agent.barrier(RACERS), workers, strict=True):
        device = Kvm.open(worker)
        steps: list[Call[Any]] = [
            commands.create_vm(device.fd, VmType.TDX),
            *after_create_vm(worker, Earlier(0)),
            commands.init_vm(Earlier(0), params),
            syscalls.close(Earlier(0)),
        ]
        worker.submit(syscalls.barrier(slot))
        jobs.append(worker.submit(batch_call(steps, repeat=15, go_on=True)))
    errors = [result for job in jobs for result in job.result().results if isinstance(result, Exception)]
    seen = {getattr(error, "errno", error) for error in errors}
    none_left = contract.errno(Refusal.INIT_NO_HKID)
    assert seen <= {none_left, contract.errno(Refusal.INIT_CGROUP_MAX)}
    with shows("F8"):
        assert seen <= {none_left}
    assert hkids.free == 2


@pytest.mark.slow
@pytest.mark.tdx_host(cpus=2)
@pytest.mark.tdx_needs("parked-tasks")
@pytest.mark.tdx_finding("F1", **F1)
def test_one_of_two_gets_the_last_place_below_a_limit_wherever_the_other_is_in_its_charge(
    tdx_host: TdxHost, tdx_cgroup: Cgroup, tdx_cleanup: ExitStack, contract: Contract
) -> None:
    """One is stopped at each instruction of misc_cg_try_charge() in turn, and the other comes."""
    tdx_cgroup.set_max(1)
    one, other = (tdx_cleanup.enter_context(tdx_host.agent.spawn(cgroup=tdx_cgroup.path)) for _ in range(2))
    kvms = [tdx_cleanup.enter_context(Kvm.open(worker)) for worker in (one, other)]
    params = default_params(one)
    for steps in count():
        with kvms[0].create_td() as td, kvms[1].create_td() as rival:
            with parked(tdx_host, "misc_cg_try_charge", cpu=1, steps=steps) as park:
                init = one.start(on([1], commands.init_vm(td.fd, params)))
                stopped = park.reached(init.done)
                second = error_of(other, lambda: other.call(commands.init_vm(rival.fd, params)))
            errors = [error_of(one, partial(init.result().__getitem__, 1)), second]
            with shows("F1"):
                assert sorted(errors) == [0, contract.errno(Refusal.INIT_CGROUP_MAX)], f"{steps} instructions"
                assert tdx_cgroup.current == 1
        if not stopped:
            break
    assert steps > 20


@pytest.mark.tdx_host(cpus=2)
@pytest.mark.tdx_needs("parked-tasks")
@pytest.mark.tdx_finding("F8", flavours=("upstream",))
@pytest.mark.tdx_finding("F1", **F1)
def test_hkid_is_not_free_before_its_charge_is_gone(
    kvm: Kvm, tdx_host: TdxHost, hkids: Hkids, contract: Contract
) -> None:
    """Whoever took it in between would find the root cgroup at its capacity."""
    gone, *_ = many_tds(kvm, hkids.free)
    with kvm.create_td() as late:
        with parked(tdx_host, "misc_cg_uncharge", cpu=1) as park:
            closing = kvm.worker.start(on([1], syscalls.close(gone.fd)))
            gone.closed = True
            assert park.reached(closing.done)
            init = kvm.worker.start(on([0], commands.init_vm(late.fd, default_params(kvm.worker))))
            with shows("F8"):
                error = error_of(kvm.worker, partial(init.result().__getitem__, 1))
                assert error == contract.errno(Refusal.INIT_NO_HKID)
        closing.result()
        late.init_vm()
