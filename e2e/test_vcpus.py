# SPDX-License-Identifier: GPL-2.0-or-later
"""vCPUs of a TD: their limit, where it is reported, and when they may be created."""

from __future__ import annotations

import errno
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from fixtures.agent import syscalls
from fixtures.agent.client import Worker
from fixtures.contracts.answers import answers, refused
from fixtures.contracts.promises import Contract, Promise, Refusal, Sizes
from fixtures.host.base import TdxHost
from fixtures.host.cpus import Cpus
from fixtures.kvm import build, commands
from fixtures.kvm.abi import MSR_IA32_APICBASE_BSP, PAGE_SIZE, Cap
from fixtures.kvm.build import Assembly, Stage
from fixtures.kvm.device import Kvm
from fixtures.kvm.errors import errno_of
from fixtures.kvm.memory import Memory
from fixtures.kvm.td import Td
from fixtures.kvm.told import told
from fixtures.kvm.vcpu import Vcpu
from fixtures.kvm.vm import Vm
from fixtures.softseam.truth import Truth

GETRLIMIT, SETRLIMIT = 97, 160
"""Numbers of system calls of x86-64."""

STAGES = [stage for stage in Stage if stage != Stage.NOTHING]
one_and_two_packages = pytest.mark.parametrize(
    "packages",
    [
        pytest.param(1, id="one-package"),
        pytest.param(2, id="two", marks=pytest.mark.tdx_host(cpus=4, sockets=2)),
    ],
)


@pytest.fixture
def limit(tdx_host: TdxHost, kvm: Kvm, contract: Contract) -> int:
    """The number of vCPUs that a TD may have on this host: the contract's, or what KVM was told."""
    return told(kvm.worker).number or default_limit(tdx_host, kvm, contract)


def default_limit(tdx_host: TdxHost, kvm: Kvm, contract: Contract) -> int:
    """The number of vCPUs that the contract allows a TD on this host, as long as KVM is told none."""
    found = Sizes(tdx_host.facts.present_cpus, kvm.check_extension(Cap.MAX_VCPUS)).of(contract.default)
    assert found is not None
    return found


@pytest.fixture
def td(td_initialized: Assembly) -> Td:
    """A TD after KVM_TDX_INIT_VM."""
    return td_initialized.td


@pytest.fixture
def cpu1_offline(hotplug: Cpus) -> None:
    """One CPU of the host is present but not online."""
    hotplug.offline(1)


def create(vm: Vm, count: int) -> list[Vcpu]:
    """Create vCPUs with ids from 0 in one round trip; the process' end closes them."""
    done = vm.worker.batch([commands.create_vcpu(vm.fd, ident) for ident in range(count)])
    return [Vcpu(vm.worker, done[ident], ident) for ident in range(count)]


@contextmanager
def no_more_fds(worker: Worker) -> Iterator[None]:
    """Let the process open no further file inside of the block (RLIMIT_NOFILE)."""
    with Memory.map(worker, PAGE_SIZE) as limits:
        worker.call(syscalls.syscall(GETRLIMIT, resource.RLIMIT_NOFILE, limits.address))
        before = limits.read(0, 16)
        limits.write(0, bytes(8) + before[8:])
        worker.call(syscalls.syscall(SETRLIMIT, resource.RLIMIT_NOFILE, limits.address))
        try:
            yield
        finally:
            limits.write(0, before)
            worker.call(syscalls.syscall(SETRLIMIT, resource.RLIMIT_NOFILE, limits.address))


# the limit, and where it is reported


def test_td_tells_its_own_limit_at_every_stage(
    tdx_host: TdxHost, kvm: Kvm, owner: Worker, limit: int, contract: Contract
) -> None:
    seen = {}
    for stage in STAGES:
        with build.at(stage, owner) as built:
            seen[stage] = built.td.check_extension(Cap.MAX_VCPUS)
    fresh = limit if told(owner).by_cap else default_limit(tdx_host, kvm, contract)
    assert seen == {stage: limit if stage >= Stage.INITIALIZED else fresh for stage in STAGES}


def test_limit_of_the_device_is_no_tds(kvm: Kvm) -> None:
    before = kvm.check_extension(Cap.MAX_VCPUS)
    with kvm.create_td() as td:
        td.init_vm()
        assert kvm.check_extension(Cap.MAX_VCPUS) == before


def test_plain_vm_keeps_the_devices_limit_beside_a_td(kvm: Kvm, td: Td) -> None:
    with kvm.create_vm() as vm, td.create_vcpu():
        assert vm.check_extension(Cap.MAX_VCPUS) == kvm.check_extension(Cap.MAX_VCPUS)


def test_plain_vm_takes_more_vcpus_than_a_td(kvm: Kvm, limit: int) -> None:
    with kvm.create_vm() as vm:
        create(vm, limit)
        vm.create_vcpu(limit)


@one_and_two_packages
@pytest.mark.tdx_needs("ground-truth")
def test_module_is_told_the_limit_that_user_space_is_told(packages: int, td: Td, truth: Truth) -> None:
    (known,) = truth.tds()
    assert known.max_vcpus == td.check_extension(Cap.MAX_VCPUS)


@pytest.mark.tdx_needs("cpu-hotplug")
@pytest.mark.usefixtures("cpu1_offline")
def test_limit_counts_cpus_that_are_present_but_not_online(
    tdx_host: TdxHost, kvm: Kvm, td: Td, limit: int
) -> None:
    assert kvm.check_extension(Cap.NR_VCPUS) == tdx_host.facts.online_cpus - 1
    assert td.check_extension(Cap.MAX_VCPUS) == limit
    for vcpu in create(td, limit):
        vcpu.set_cpuid2()
        vcpu.init_vcpu()


# reaching it


@one_and_two_packages
def test_td_takes_as_many_as_the_limit_and_refuses_one_more(
    packages: int, td: Td, limit: int, contract: Contract
) -> None:
    create(td, limit)
    with refused(contract, Promise.VCPU_TOO_MANY):
        td.create_vcpu(limit)


def test_closing_a_vcpu_makes_no_room_for_another(td: Td, limit: int, contract: Contract) -> None:
    create(td, limit)[-1].close()
    with refused(contract, Promise.VCPU_TOO_MANY):
        td.create_vcpu(limit)


def test_each_td_has_the_whole_limit_for_itself(kvm: Kvm, td: Td, limit: int) -> None:
    create(td, limit)
    with kvm.create_td() as other:
        other.split_irqchip()
        other.init_vm()
        create(other, limit)


def test_refused_vcpu_takes_no_place(td: Td, limit: int, contract: Contract) -> None:
    for _ in range(limit):
        with refused(contract, Refusal.VCPU_ID_OUT_OF_RANGE):
            td.create_vcpu(td.check_extension(Cap.MAX_VCPU_ID))
    create(td, limit)


def test_vcpu_that_gets_no_file_descriptor_leaves_its_place_and_its_cpu(
    td: Td, limit: int, owner: Worker
) -> None:
    """It fails at its end, when KVM has loaded it on a CPU: what it left there would meet the next one."""
    with no_more_fds(owner):
        for ident in range(limit):
            assert errno_of(partial(td.create_vcpu, ident)) == errno.EMFILE
    for vcpu in create(td, limit):
        vcpu.set_cpuid2()
        vcpu.init_vcpu()


def test_files_that_get_no_file_descriptor_keep_nothing(
    assert_gone: Callable[[], None], owner: Worker
) -> None:
    td = build.initialized(owner).td
    vcpu = td.create_vcpu()
    with no_more_fds(owner):
        for opened in (td.stats_fd, vcpu.stats_fd, partial(td.create_guest_memfd, PAGE_SIZE)):
            assert errno_of(opened) == errno.EMFILE
    vcpu.close()
    td.close()
    assert_gone()


def test_two_at_once_do_not_both_get_the_last_place(
    tdx_host: TdxHost, td: Td, limit: int, contract: Contract
) -> None:
    create(td, limit - 1)
    jobs = [
        td.worker.start(commands.create_vcpu(td.fd, ident, barrier=place))
        for ident, place in enumerate(tdx_host.agent.barrier(2), start=limit)
    ]
    refusals = [number for job in jobs if (number := errno_of(job.result))]
    assert refusals == [contract.errno(Promise.VCPU_TOO_MANY)]


# changing it


def only_without_the_capability(contract: Contract) -> None:
    """Skip the test where user space can set the limit; test_contract.py covers that."""
    if contract.errno(Promise.CAP_LOWER) == 0:
        pytest.skip(f"{contract.name} lets user space set the limit")


def test_limit_of_a_td_cannot_be_changed_at_any_stage(owner: Worker, limit: int, contract: Contract) -> None:
    only_without_the_capability(contract)
    for stage in STAGES:
        with build.at(stage, owner) as built:
            before = built.td.check_extension(Cap.MAX_VCPUS)
            for asked in (0, 1, limit, limit + 1):
                with refused(contract, Promise.CAP_LOWER):
                    built.td.enable_cap(Cap.MAX_VCPUS, asked)
            assert built.td.check_extension(Cap.MAX_VCPUS) == before


def test_limit_of_a_plain_vm_cannot_be_changed(kvm: Kvm, contract: Contract) -> None:
    only_without_the_capability(contract)
    with kvm.create_vm() as vm:
        before = vm.check_extension(Cap.MAX_VCPUS)
        with refused(contract, Promise.CAP_LOWER):
            vm.enable_cap(Cap.MAX_VCPUS, 1)
        assert vm.check_extension(Cap.MAX_VCPUS) == before


# which ids


def test_id_that_exists_is_refused(td: Td, contract: Contract) -> None:
    with td.create_vcpu(0), refused(contract, Refusal.VCPU_DUPLICATE):
        td.create_vcpu(0)


@pytest.mark.tdx_host(cpus=4)
def test_id_that_exists_is_refused_whatever_came_after_it(td: Td, contract: Contract) -> None:
    made = (1, 2, 0)
    for ident in made:
        td.create_vcpu(ident)
    for ident in made:
        with refused(contract, Refusal.VCPU_DUPLICATE):
            td.create_vcpu(ident)


def test_full_td_refuses_an_id_that_exists_as_one_too_many(td: Td, limit: int, contract: Contract) -> None:
    create(td, limit)
    with refused(contract, Promise.VCPU_TOO_MANY):
        td.create_vcpu(0)


def test_id_out_of_range_is_refused(td: Td, contract: Contract) -> None:
    for ident in (td.check_extension(Cap.MAX_VCPU_ID), 1 << 31, 1 << 32, (1 << 32) + 1):
        with refused(contract, Refusal.VCPU_ID_OUT_OF_RANGE):
            td.create_vcpu(ident)


@pytest.mark.parametrize("make", [build.created, build.initialized])
def test_ids_can_be_limited_until_there_is_a_vcpu(
    make: Callable[[Worker], Assembly], owner: Worker, contract: Contract
) -> None:
    highest = 4
    with make(owner) as built:
        number = built.td.check_extension(Cap.MAX_VCPUS)
        for _ in range(2):
            built.td.enable_cap(Cap.MAX_VCPU_ID, highest + 1)
        assert built.td.check_extension(Cap.MAX_VCPUS) == number
        if built.stage == Stage.CREATED:
            built.init()
        with refused(contract, Refusal.VCPU_ID_OUT_OF_RANGE):
            built.td.create_vcpu(highest + 1)
        built.td.create_vcpu(highest)
        with refused(contract, Refusal.VCPU_IDS_LIMITED):
            built.td.enable_cap(Cap.MAX_VCPU_ID, highest)


@pytest.mark.tdx_each_kernel
@pytest.mark.tdx_host(cpus=2)
def test_ids_that_are_limited_do_not_limit_the_number_that_is_told(td_created: Assembly) -> None:
    td = td_created.td
    before = td.check_extension(Cap.MAX_VCPUS)
    td.enable_cap(Cap.MAX_VCPU_ID, 1)
    assert td.check_extension(Cap.MAX_VCPUS) == before


@pytest.mark.tdx_needs("ground-truth")
def test_ids_need_not_follow_each_other_and_become_apic_ids(td: Td, truth: Truth) -> None:
    idents = (td.check_extension(Cap.MAX_VCPU_ID) - 1, 7)
    for ident in idents:
        vcpu = td.create_vcpu(ident)
        vcpu.set_cpuid2()
        vcpu.init_vcpu()
    assert {vcpu.index: vcpu.x2apic_id for vcpu in truth.vcpus()} == dict(enumerate(idents))


@pytest.mark.parametrize("chosen", [None, 0, 1, 300])
def test_boot_cpu_is_the_one_with_the_chosen_id(chosen: int | None, td_created: Assembly) -> None:
    """It is vCPU 0 if none was chosen, and not the one that was created first; no vCPU needs to have it."""
    td = td_created.td
    if chosen is not None:
        td.worker.call(commands.set_boot_cpu_id(td.fd, chosen))
    td_created.init()
    flags = {}
    for ident in (1, 0):
        vcpu = td.create_vcpu(ident)
        vcpu.set_cpuid2()
        vcpu.init_vcpu()
        flags[ident] = bool(vcpu.apic_base() & MSR_IA32_APICBASE_BSP)
    assert flags == {ident: ident == (chosen or 0) for ident in flags}


# when


def only_where_init_vm_comes_first(contract: Contract) -> None:
    """Skip the test on contracts under which vCPUs may be created before KVM_TDX_INIT_VM."""
    if not contract.errno(Promise.VCPU_BEFORE_INIT):
        pytest.skip(f"{contract.name} allows vCPUs before KVM_TDX_INIT_VM")


def test_vcpu_before_init_vm_is_refused(td_created: Assembly, contract: Contract) -> None:
    only_where_init_vm_comes_first(contract)
    td_created.td.split_irqchip()
    with refused(contract, Promise.VCPU_BEFORE_INIT):
        td_created.td.create_vcpu()


def test_vcpu_that_came_too_early_does_not_spoil_the_td(td_created: Assembly, contract: Contract) -> None:
    only_where_init_vm_comes_first(contract)
    td = td_created.td
    td.split_irqchip()
    with refused(contract, Promise.VCPU_BEFORE_INIT):
        td.create_vcpu()
    td.init_vm()
    td.create_vcpu()


def test_vcpu_after_an_init_vm_that_failed_is_answered_as_one_before_it(
    td_created: Assembly, contract: Contract
) -> None:
    td = td_created.td
    td.split_irqchip()
    with refused(contract, Refusal.INIT_NO_WIDTH):
        td.init_vm(td.default_params().replace(cpuid=()))
    with answers(contract, Promise.VCPU_BEFORE_INIT):
        td.create_vcpu()


@pytest.mark.tdx_host(cpus=2)
def test_vcpu_after_finalize_vm_is_refused(td_finalized: Assembly, contract: Contract) -> None:
    with refused(contract, Refusal.VCPU_AFTER_FINALIZE):
        td_finalized.td.create_vcpu(1)


def test_second_init_vm_is_refused_at_every_stage(owner: Worker, contract: Contract) -> None:
    for stage in STAGES:
        if stage >= Stage.INITIALIZED:
            with build.at(stage, owner) as built, refused(contract, Promise.INIT_TWICE):
                built.td.init_vm()


# with which interrupt controller


def test_vcpu_without_a_split_irqchip_is_refused(kvm: Kvm, contract: Contract) -> None:
    with kvm.create_td() as td:
        td.init_vm()
        with refused(contract, Refusal.VCPU_NO_SPLIT_IRQCHIP):
            td.create_vcpu()


def test_clock_of_the_apics_can_be_set_until_there_is_a_vcpu(kvm: Kvm, contract: Contract) -> None:
    with kvm.create_td() as td:
        td.split_irqchip()
        td.enable_cap(Cap.X86_APIC_BUS_CYCLES_NS, 40)
        td.init_vm()
        td.enable_cap(Cap.X86_APIC_BUS_CYCLES_NS, 20)
        td.create_vcpu()
        for cycle in (20, 40):
            with refused(contract, Refusal.APIC_CLOCK_LATE):
                td.enable_cap(Cap.X86_APIC_BUS_CYCLES_NS, cycle)


def test_irqchip_can_be_split_after_a_vcpu_was_refused_for_it(kvm: Kvm, contract: Contract) -> None:
    with kvm.create_td() as td:
        td.init_vm()
        with refused(contract, Refusal.VCPU_NO_SPLIT_IRQCHIP):
            td.create_vcpu()
        td.split_irqchip()
        td.create_vcpu()


def test_td_has_no_irqchip_in_the_kernel(kvm: Kvm, contract: Contract) -> None:
    with kvm.create_td() as td, refused(contract, Refusal.CREATE_IRQCHIP):
        td.worker.call(commands.create_irqchip(td.fd))


@pytest.mark.tdx_offers("cap-lower")
@pytest.mark.parametrize("place", [1, 2, 3])
def test_maximum_takes_no_second_argument(place: int, td_created: Assembly, contract: Contract) -> None:
    if contract.errno(Promise.CAP_LOWER):
        pytest.skip(f"{contract.name} lets nobody set the number")
    arguments = [1, *(int(index == place) for index in (1, 2, 3))]
    with answers(contract, Promise.CAP_RESERVED):
        td_created.td.enable_cap(Cap.MAX_VCPUS, *arguments)
