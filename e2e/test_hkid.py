# SPDX-License-Identifier: GPL-2.0-or-later
"""The life of an HKID: requests that take one, references that hold it, its release, and exhaustion."""

from __future__ import annotations

import itertools
import mmap
from typing import Any

import pytest

from e2e.mistakes import INIT_VM, Mistake
from fixtures import cgroup
from fixtures.agent import syscalls
from fixtures.agent.call import Call, Earlier, Int, batch_call
from fixtures.agent.client import Worker
from fixtures.agent.recorder import Recorder
from fixtures.contracts.answers import refused
from fixtures.contracts.promises import Contract, Promise, Refusal
from fixtures.host.base import Capability, TdxHost
from fixtures.host.hkids import CURRENT, Hkids
from fixtures.kvm import abi, build, commands
from fixtures.kvm.abi import Cap, VmType
from fixtures.kvm.build import HALT, Assembly, Region, Stage
from fixtures.kvm.defaults import default_params, run_size
from fixtures.kvm.device import Kvm
from fixtures.kvm.many import many_tds
from fixtures.kvm.memory import Memory
from fixtures.kvm.params import MemorySlot
from fixtures.kvm.told import after_create_vm
from fixtures.softseam.truth import Truth

pytestmark = pytest.mark.tdx_needs("misc-cgroup")

POOLS = [
    pytest.param(size, id=f"pool-{size}", marks=pytest.mark.tdx_host(keyids=size + 1)) for size in (15, 2, 63)
]
CYCLES = 200

# requests that take one


@pytest.mark.parametrize(
    ("stage", "held"),
    [
        pytest.param(Stage.CREATED, 0, id="created"),
        pytest.param(Stage.INITIALIZED, 1, id="initialized"),
        pytest.param(Stage.WITH_VCPUS, 1, id="with-vcpus"),
        pytest.param(Stage.POPULATED, 1, id="populated"),
        pytest.param(Stage.FINALIZED, 1, id="finalized"),
    ],
)
def test_td_holds_one_from_init_vm_until_it_is_closed(
    stage: Stage, held: int, owner: Worker, hkids: Hkids
) -> None:
    with build.at(stage, owner):
        assert hkids.taken == held
    assert hkids.taken == 0


def test_each_td_holds_one_of_its_own(kvm: Kvm, hkids: Hkids) -> None:
    first, second, third = many_tds(kvm, 3)
    assert hkids.taken == 3
    second.close()
    assert hkids.taken == 2
    first.close()
    third.close()
    assert hkids.taken == 0


def test_plain_vm_takes_none(kvm: Kvm, hkids: Hkids) -> None:
    with kvm.create_vm() as vm, vm.create_vcpu():
        assert hkids.taken == 0


@pytest.mark.parametrize("mistake", [pytest.param(one, id=name) for name, one in INIT_VM.items()])
def test_failed_init_vm_holds_none_and_can_be_tried_again(
    mistake: Mistake, kvm: Kvm, hkids: Hkids, contract: Contract
) -> None:
    with kvm.create_td() as td:
        with refused(contract, mistake.refusal):
            mistake.make(td)
        assert hkids.taken == 0
        td.init_vm()
        assert hkids.taken == 1


def test_second_init_vm_takes_no_second_one(
    td_initialized: Assembly, hkids: Hkids, contract: Contract
) -> None:
    with refused(contract, Promise.INIT_TWICE):
        td_initialized.td.init_vm()
    assert hkids.taken == 0  # The one that the TD had before `hkids` began to count.
    td_initialized.close()
    assert hkids.taken == -1


# references that hold it

REFERENCES = ("vm-fd", "vcpu-fd", "kvm-run-mapping", "guest-memfd", "vm-stats-fd")


def lives_until_all_are_closed(recorder: Recorder, kvm: Kvm, order: tuple[str, ...]) -> list[int]:
    """Record the life of a TD whose references are closed in one order.

    :returns: HKIDs in use when all are open, then after each close, once the recorder has committed.
    """
    counts: list[int] = []

    def count() -> None:
        recorder.add(
            syscalls.read_file(CURRENT),
            lambda data: counts.append(cgroup.parse(data.decode(), cgroup.RESOURCE)),
        )

    params = default_params(kvm.worker)
    size = run_size(kvm.worker)
    vm = recorder.ioctl_fd(commands.create_vm(kvm.fd, VmType.TDX), lambda _: None)
    for call in after_create_vm(kvm.worker, vm):
        recorder.add(call)
    recorder.add(commands.enable_cap(vm, Cap.SPLIT_IRQCHIP, 24))
    recorder.add(commands.init_vm(vm, params))
    vcpu = recorder.ioctl_fd(commands.create_vcpu(vm, 0), lambda _: None)
    mapping = recorder.fd(
        syscalls.mmap(size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, vcpu), lambda _: None
    )
    memfd = recorder.ioctl_fd(commands.create_guest_memfd(vm, abi.PAGE_SIZE), lambda _: None)
    stats = recorder.ioctl_fd(commands.get_stats_fd(vm), lambda _: None)
    fds: dict[str, Int] = {"vm-fd": vm, "vcpu-fd": vcpu, "guest-memfd": memfd, "vm-stats-fd": stats}
    count()
    for name in order:
        recorder.add(syscalls.close(fds[name]) if name in fds else syscalls.munmap(mapping, size))
        count()
    return counts


@pytest.mark.parametrize("last", REFERENCES)
def test_goes_with_the_last_reference_whatever_the_order_before(last: str, kvm: Kvm, hkids: Hkids) -> None:
    before = hkids.in_use
    recorder = Recorder(kvm.worker)
    others = [name for name in REFERENCES if name != last]
    orders = [(*order, last) for order in itertools.permutations(others)]
    told = {order: lives_until_all_are_closed(recorder, kvm, order) for order in orders}
    recorder.commit()
    held = [before + 1] * len(REFERENCES)
    assert told == {order: [*held, before] for order in orders}


def test_copy_of_the_vm_fd_holds_it(td_initialized: Assembly, hkids: Hkids) -> None:
    with td_initialized.td.dup():
        td_initialized.close()
        assert hkids.taken == 0
    assert hkids.taken == -1


def test_vcpu_statistics_fd_holds_it(td_with_vcpus: Assembly, hkids: Hkids) -> None:
    with td_with_vcpus.vcpus[0].stats_fd():
        td_with_vcpus.close()
        assert hkids.taken == 0
    assert hkids.taken == -1


def test_memory_and_irqfd_do_not_hold_it(td_finalized: Assembly, hkids: Hkids) -> None:
    td = td_finalized.td
    td.set_msi_routes({5: (0x40, 0)})
    with td.irqfd(5), Memory.map(td.worker, abi.PAGE_SIZE) as shared:
        td.set_slot(MemorySlot(9, 1 << 30, shared.size, shared.address))
        td_finalized.close()
        assert hkids.taken == -1


# its release


def test_freed_ids_are_used_again_and_again(tdx_host: TdxHost, kvm: Kvm, hkids: Hkids) -> None:
    told = Capability.GROUND_TRUTH in tdx_host.capabilities
    seen = max((event.seq for event in Truth(tdx_host.agent).history()), default=-1) if told else -1
    cycle: list[Call[Any]] = [
        commands.create_vm(kvm.fd, VmType.TDX),
        *after_create_vm(kvm.worker, Earlier(0)),
        commands.init_vm(Earlier(0), default_params(kvm.worker)),
        syscalls.close(Earlier(0)),
    ]
    assert kvm.worker.call(batch_call(cycle, repeat=CYCLES)).complete
    assert hkids.taken == 0
    if told:
        events = [event for event in Truth(tdx_host.agent).history(seen) if event.event in ("assign", "free")]
        assert [event.event for event in events] == ["assign", "free"] * CYCLES
        assert {event.in_use for event in events if event.event == "free"} == {events[-1].in_use}


def test_only_free_id_is_the_one_that_is_taken(tdx_host: TdxHost, kvm: Kvm, hkids: Hkids) -> None:
    pool = many_tds(kvm, hkids.free)
    for freed in (0, len(pool) - 1, len(pool) // 2):
        pool[freed].close()
        assert hkids.free == 1
        pool[freed] = many_tds(kvm, 1)[0]
        assert hkids.free == 0


# exhaustion


@pytest.mark.parametrize("pool", POOLS)
def test_capacity_is_the_number_of_keyids_less_the_global_one(pool: int, hkids: Hkids) -> None:
    assert hkids.capacity == pool


@pytest.mark.parametrize("pool", POOLS)
def test_exhausted_pool_refuses_init_vm_until_one_is_freed(
    pool: int, kvm: Kvm, hkids: Hkids, contract: Contract
) -> None:
    tds = many_tds(kvm, hkids.free)
    assert hkids.in_use == pool
    with kvm.create_td() as late, kvm.create_td() as later:
        for td in (late, later, late):
            with refused(contract, Refusal.INIT_NO_HKID):
                td.init_vm()
        assert hkids.in_use == pool
        tds.pop().close()
        assert hkids.in_use == pool - 1
        late.init_vm()
        assert hkids.in_use == pool
        with refused(contract, Refusal.INIT_NO_HKID):
            later.init_vm()


def test_rate_of_the_tsc_is_still_to_be_chosen_after_an_init_vm_that_found_no_hkid(
    kvm: Kvm, hkids: Hkids, contract: Contract
) -> None:
    tds = many_tds(kvm, hkids.free)
    with kvm.create_td() as td:
        td.set_tsc_khz(1_000_000)
        with refused(contract, Refusal.INIT_NO_HKID):
            td.init_vm()
        td.set_tsc_khz(2_000_000)
        tds.pop().close()
        td.init_vm()
        assert td.get_tsc_khz() == 2_000_000


def test_exhausted_pool_lets_tds_be_created_and_built(
    owner: Worker, kvm: Kvm, hkids: Hkids, contract: Contract
) -> None:
    with build.initialized(owner) as built:
        many_tds(kvm, hkids.free)
        built.add_vcpus().populate(Region.firmware(HALT)).finalize()
        with kvm.create_td() as td, refused(contract, Refusal.INIT_NO_HKID):
            td.init_vm()
        assert built.stage == Stage.FINALIZED
