# SPDX-License-Identifier: GPL-2.0-or-later
"""Promises of the host's contract: how user space limits the vCPUs of a TD, and when it may create them.

``test_promise`` covers each promise (:class:`fixtures.contracts.promises.Promise`) with one request or
question; the tests below it need more than one.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial

import pytest

from e2e.races import on
from fixtures.agent import syscalls
from fixtures.contracts.answers import refused
from fixtures.contracts.judge import Compliance, compliance
from fixtures.contracts.probes import OK, Errno, NotVisible, Prober
from fixtures.contracts.promises import Answer, Contract, Promise, Refusal, Size
from fixtures.findings import shows
from fixtures.guests import output
from fixtures.guests.running import begun
from fixtures.host import contract_probe
from fixtures.host.base import TdxHost
from fixtures.host.contract_probe import Behaviour
from fixtures.host.cpus import Cpus
from fixtures.host.hkids import Hkids
from fixtures.kvm import build, commands
from fixtures.kvm.abi import Cap, VmType
from fixtures.kvm.build import Region
from fixtures.kvm.device import Kvm
from fixtures.kvm.errors import errno_of
from fixtures.kvm.many import many_tds
from fixtures.kvm.td import Td
from fixtures.softseam.hold import held
from fixtures.softseam.truth import Truth
from images.kernel import flavours

ROUNDS = 20
NO_CAP = 0x7FFF0001


@pytest.fixture
def prober(tdx_host: TdxHost, tdx_cleanup: ExitStack) -> Prober:
    """Probes that run in a process of their own."""
    return tdx_cleanup.enter_context(contract_probe.probing(tdx_host))


@pytest.mark.tdx_each_kernel
@pytest.mark.parametrize("promise", Promise, ids=lambda promise: promise.test_id)
def test_promise(promise: Promise, contract: Contract, prober: Prober) -> None:
    if not contract.offers(promise):
        pytest.skip(f"the contract {contract.name} does not cover it; tox -e matrix tries all contracts")
    seen = prober.see(promise)
    found = compliance(contract, promise, seen, prober.sizes)
    if found is Compliance.NOT_SEEN:
        pytest.skip(
            f"this host cannot show it: {seen if isinstance(seen, NotVisible) else 'the module limit'}"
        )
    wanted = contract.promises[promise]
    assert found is Compliance.KEPT, f"{promise}: {seen}; the contract {contract.name} wants {wanted}"


@pytest.mark.tdx_each_kernel
def test_flavour_is_named_by_what_it_does(tdx_host: TdxHost, behaviour: Behaviour) -> None:
    flavour = flavours.base_of(tdx_host.facts.flavour)
    known = flavours.load()
    if flavour not in known:
        pytest.skip(f"no contract is declared for the kernel {flavour or 'of this host'}")
    assert str(behaviour.detection) == known[flavour].contract


@pytest.mark.tdx_needs("misc-cgroup")
def test_contract_is_probed_with_one_free_hkid(kvm: Kvm, hkids: Hkids, prober: Prober) -> None:
    """A machine of which others use the rest must not look like another kernel."""
    before = prober.see_all()
    many_tds(kvm, hkids.free - 1)
    assert prober.see_all() == before
    assert hkids.free == 1


# vCPUs without an HKID


@pytest.fixture
def early(contract: Contract) -> None:
    """Skip the test on contracts that refuse vCPUs before KVM_TDX_INIT_VM."""
    if contract.errno(Promise.VCPU_BEFORE_INIT):
        pytest.skip(f"{contract.name} refuses vCPUs before KVM_TDX_INIT_VM; run with --tdx-flavour=proposed")


@pytest.fixture
def init_may_follow(early: None, contract: Contract) -> None:
    """Skip the test on contracts that refuse KVM_TDX_INIT_VM after a vCPU."""
    if contract.errno(Promise.INIT_AFTER_VCPU):
        pytest.skip(f"{contract.name} has no KVM_TDX_INIT_VM after a vCPU")


@pytest.fixture
def number_may_be_set(contract: Contract) -> None:
    """Skip the test on contracts under which nobody sets the number of vCPUs with KVM_CAP_MAX_VCPUS."""
    if contract.errno(Promise.CAP_LOWER):
        pytest.skip(f"{contract.name} lets nobody set the number")


@pytest.fixture
def td(prober: Prober, tdx_cleanup: ExitStack) -> Td:
    """A fresh TD with the usual limit of vCPUs, where user space can set it."""
    fresh = tdx_cleanup.enter_context(prober.td())
    prober.choose(fresh, prober.usual)
    return fresh


def use_up(hkids: Hkids, prober: Prober, cleanup: ExitStack) -> None:
    """Take all free HKIDs; KVM_TDX_INIT_VM is called in the way that this kernel requires."""
    for _ in range(hkids.free):
        assert prober.ready(cleanup.enter_context(prober.td()), 1) == OK
    assert hkids.free == 0


def fails_for_want_of_an_hkid(contract: Contract, prober: Prober, td: Td, number: int, hkids: Hkids) -> None:
    """Call KVM_TDX_INIT_VM while no HKID is free; they are free again afterwards."""
    with ExitStack() as others:
        use_up(hkids, prober, others)
        assert prober.init_for(td, number) == Errno(contract.errno(Refusal.INIT_NO_HKID))


@pytest.mark.tdx_offers("vcpu-before-init")
@pytest.mark.usefixtures("early")
@pytest.mark.tdx_needs("misc-cgroup")
def test_destination_gets_its_vcpus_when_every_hkid_is_in_use(
    prober: Prober, td: Td, hkids: Hkids, tdx_cleanup: ExitStack
) -> None:
    """Covers the complaint from which the suite grew; skipped on contracts that do not solve it."""
    use_up(hkids, prober, tdx_cleanup)
    td.create_vcpu(0)
    assert hkids.free == 0


@pytest.mark.tdx_needs("misc-cgroup")
def test_destination_that_has_to_call_init_vm_fails_when_every_hkid_is_in_use(
    contract: Contract, prober: Prober, hkids: Hkids, tdx_cleanup: ExitStack
) -> None:
    use_up(hkids, prober, tdx_cleanup)
    with prober.td() as destination:
        assert prober.ready(destination, 1) == Errno(contract.errno(Refusal.INIT_NO_HKID))


@pytest.mark.tdx_offers("vcpu-before-init")
@pytest.mark.usefixtures("early")
@pytest.mark.tdx_needs("misc-cgroup")
def test_td_with_all_its_vcpus_takes_no_hkid_before_init_vm_and_goes_without_a_trace(
    td: Td, prober: Prober, hkids: Hkids
) -> None:
    for ident in range(prober.usual):
        td.create_vcpu(ident)
    assert hkids.taken == 0


@pytest.mark.tdx_offers("vcpu-before-init")
@pytest.mark.usefixtures("early")
def test_vcpu_that_came_first_fixes_the_frequency_of_the_tsc(td: Td, contract: Contract) -> None:
    """The vCPU keeps the frequency with which it was made."""
    td.set_tsc_khz(1_000_000)
    td.create_vcpu()
    with refused(contract, Refusal.TSC_KHZ_AFTER_VCPU):
        td.set_tsc_khz(2_000_000)
    assert td.get_tsc_khz() == 1_000_000


@pytest.mark.tdx_offers("vcpu-before-init")
@pytest.mark.usefixtures("early")
def test_vcpu_that_came_first_has_no_rate_of_its_own(td: Td) -> None:
    vcpu = td.create_vcpu()
    for khz in (td.get_tsc_khz(), 1_500_000, 2 * td.get_tsc_khz()):
        assert errno_of(partial(td.worker.call, commands.set_tsc_khz(vcpu.fd, khz))) == errno.EINVAL


@pytest.mark.tdx_offers("vcpu-before-init")
@pytest.mark.usefixtures("early")
@pytest.mark.tdx_needs("ground-truth")
def test_vcpu_that_came_first_has_no_cpuid_to_tell(td: Td, truth: Truth) -> None:
    """It is the TDX module's, which is not asked."""
    vcpu = td.create_vcpu()
    before = truth.leaves()
    assert errno_of(vcpu.get_cpuid) == errno.EINVAL
    assert truth.leaves() == before


@pytest.mark.tdx_host(cpus=2)
@pytest.mark.tdx_offers("init-after-vcpu")
@pytest.mark.usefixtures("init_may_follow")
def test_number_holds_though_a_vcpu_came_before_init_vm(td: Td, prober: Prober, contract: Contract) -> None:
    td.create_vcpu(0)
    assert prober.init_for(td, prober.usual) == OK
    assert td.check_extension(Cap.MAX_VCPUS) == prober.usual
    for ident in range(1, prober.usual):
        td.create_vcpu(ident)
    with refused(contract, Promise.VCPU_TOO_MANY):
        td.create_vcpu(prober.usual)


@pytest.mark.tdx_offers("init-after-vcpu")
@pytest.mark.usefixtures("init_may_follow")
def test_init_vm_may_follow_a_vcpu_that_could_not_run(td: Td, prober: Prober, contract: Contract) -> None:
    vcpu = td.create_vcpu()
    with refused(contract, Refusal.RUN_BEFORE_INIT_VCPU):
        vcpu.run()
    assert prober.init_for(td, prober.usual) == OK
    vcpu.set_cpuid2()
    vcpu.init_vcpu()


@pytest.mark.tdx_host(cpus=2)
@pytest.mark.tdx_offers("init-after-vcpu")
@pytest.mark.usefixtures("init_may_follow")
@pytest.mark.parametrize("cpus", [(0, 0), (0, 1), (1, 0)], ids=lambda pair: f"{pair[0]}-{pair[1]}")
def test_vcpu_from_before_init_vm_becomes_one_of_the_td(
    cpus: tuple[int, int], prober: Prober, td: Td
) -> None:
    """Initializes it on the CPU where it was created, and on another: KVM keeps a list of vCPUs per CPU."""
    made, initialized = cpus
    td.worker.call(syscalls.affinity([made]))
    vcpu = td.create_vcpu(0)
    td.worker.call(syscalls.affinity([initialized]))
    assert prober.init_for(td, prober.usual) == OK
    later = td.create_vcpu(1)
    for one in (vcpu, later):
        one.set_cpuid2()
        one.init_vcpu()
    assert vcpu.tsc_offset() == later.tsc_offset() != 0


@pytest.mark.tdx_host(cpus=2)
@pytest.mark.tdx_offers("init-after-vcpu")
@pytest.mark.usefixtures("init_may_follow")
def test_td_whose_vcpus_came_first_runs_like_any_other(
    prober: Prober, payloads: Mapping[str, bytes], tdx_cleanup: ExitStack
) -> None:
    built = tdx_cleanup.enter_context(build.created(prober.worker))
    built.create_vcpus(2).init(prober.params(prober.usual)).initialize_vcpus()
    built.populate(Region.firmware(payloads["hello"])).finalize()
    assert [output.read_line(vcpu) for vcpu in built.vcpus] == ["hello from vCPU 0", "hello from vCPU 1"]


@pytest.mark.tdx_offers("init-after-vcpu")
@pytest.mark.usefixtures("init_may_follow")
def test_vcpu_that_came_first_is_not_initialized_before_its_td(
    prober: Prober, payloads: Mapping[str, bytes], tdx_cleanup: ExitStack
) -> None:
    built = tdx_cleanup.enter_context(build.created(prober.worker)).create_vcpus(1)
    (vcpu,) = built.vcpus
    vcpu.set_cpuid2()
    assert errno_of(vcpu.init_vcpu) == errno.EINVAL
    built.init(prober.params(prober.usual)).initialize_vcpus()
    built.populate(Region.firmware(payloads["hello"])).finalize()
    assert output.read_line(vcpu) == "hello from vCPU 0"


@pytest.mark.tdx_host(cpus=2)
@pytest.mark.tdx_needs("cpu-hotplug")
@pytest.mark.tdx_offers("init-after-vcpu")
@pytest.mark.usefixtures("init_may_follow")
def test_vcpu_that_came_first_leaves_a_cpu_that_goes_offline(
    prober: Prober,
    hotplug: Cpus,
    payloads: Mapping[str, bytes],
    tdx_cleanup: ExitStack,
) -> None:
    """KVM has to flush the vCPU from its CPU, though the vCPU was there before the TD was initialized."""
    built = tdx_cleanup.enter_context(build.created(prober.worker))
    stays, *_, goes = sorted(hotplug.all)
    prober.worker.call(syscalls.affinity([goes]))
    built.create_vcpus(1).init(prober.params(prober.usual)).initialize_vcpus()
    built.populate(Region.firmware(payloads["hello"])).finalize()
    prober.worker.call(syscalls.affinity([stays]))
    hotplug.offline(goes)
    assert output.read_line(built.vcpus[0]) == "hello from vCPU 0"


def test_context_of_a_td_is_not_copied(contract: Contract, prober: Prober, td: Td) -> None:
    with prober.td() as other, refused(contract, Refusal.COPY_CONTEXT):
        td.enable_cap(Cap.VM_COPY_ENC_CONTEXT_FROM, other.fd)


# the number in KVM_TDX_INIT_VM


OF_INIT_VM = (
    *(Promise.DEFAULT_TOLD, Promise.INIT_NUMBER, Promise.INIT_MISMATCH, Promise.INIT_TOO_FEW),
    *(Promise.INIT_ABOVE_KVM, Promise.INIT_AFTER_VCPU),
)


@pytest.mark.tdx_needs("misc-cgroup", "ground-truth")
def test_init_vm_that_is_refused_for_its_number_takes_nothing(
    contract: Contract, prober: Prober, truth: Truth, hkids: Hkids, tdx_cleanup: ExitStack
) -> None:
    """Nor does it ask the TDX module, or for an HKID: it is refused alike when none is free."""
    answers_to = {promise: contract.promises.get(promise) for promise in OF_INIT_VM}
    refusals = {
        promise: Errno(answer.errno)
        for promise, answer in answers_to.items()
        if isinstance(answer, Answer) and answer.errno
    }
    assert refusals
    with prober.ready_td(prober.usual):
        assert hkids.taken == 1
    calls = truth.leaves()
    assert {promise: prober.see(promise) for promise in refusals} == refusals
    assert truth.leaves() == calls
    use_up(hkids, prober, tdx_cleanup)
    assert {promise: prober.see(promise) for promise in refusals} == refusals


def test_number_in_init_vm_counts_with_all_its_bits(contract: Contract, prober: Prober, td: Td) -> None:
    """Where it is none, too: the field is reserved there."""
    taken = not contract.errno(Promise.INIT_NUMBER)
    wanted = contract.errno(Promise.INIT_ABOVE_KVM if taken else Promise.INIT_NUMBER)
    for high in (16, 24, 31):
        assert prober.init(td, 1 << high | prober.usual) == Errno(wanted)


# the capability once the TDX module has a number


def add_vcpu(td: Td, ident: int) -> None:
    """Create a vCPU and initialize it."""
    vcpu = td.create_vcpu(ident)
    vcpu.set_cpuid2()
    vcpu.init_vcpu()


@pytest.fixture(params=[VmType.TDX, VmType.DEFAULT], ids=["td", "plain"])
def kind(request: pytest.FixtureRequest, contract: Contract) -> VmType:
    """A type of VMs of which user space sets the number of vCPUs."""
    if request.param == VmType.DEFAULT and contract.errno(Promise.CAP_OTHER_VMS):
        pytest.skip(f"{contract.name} lets nobody set the number of a plain VM")
    return VmType(request.param)


@pytest.mark.tdx_host(cpus=2)
@pytest.mark.tdx_offers("cap-lower")
@pytest.mark.usefixtures("number_may_be_set")
def test_number_may_be_the_one_that_is_told_though_fewer_cpus_are_online(
    kind: VmType, kvm: Kvm, hotplug: Cpus
) -> None:
    hotplug.offline(1)
    with kvm.create_vm(kind) as vm:
        told = vm.check_extension(Cap.MAX_VCPUS)
        vm.enable_cap(Cap.MAX_VCPUS, told)
        assert vm.check_extension(Cap.MAX_VCPUS) == told


@pytest.mark.tdx_host(cpus=4)
@pytest.mark.tdx_offers("cap-lower")
@pytest.mark.usefixtures("number_may_be_set")
@pytest.mark.tdx_needs("ground-truth")
def test_module_is_told_any_number_that_was_chosen(prober: Prober, truth: Truth) -> None:
    for number in (1, 2, 3, 4):
        with prober.ready_td(number) as td:
            (known,) = truth.tds()
            assert (known.max_vcpus, td.check_extension(Cap.MAX_VCPUS)) == (number, number)


@pytest.mark.tdx_each_kernel
@pytest.mark.parametrize("kind", [VmType.TDX, VmType.DEFAULT], ids=["td", "plain"])
def test_capability_that_nobody_knows_sets_no_number(kind: VmType, kvm: Kvm) -> None:
    with kvm.create_vm(kind) as vm:
        before = vm.check_extension(Cap.MAX_VCPUS)
        assert errno_of(partial(vm.enable_cap, NO_CAP, 1)) == errno.EINVAL
        assert vm.check_extension(Cap.MAX_VCPUS) == before


@pytest.mark.tdx_offers("cap-lower")
@pytest.mark.usefixtures("number_may_be_set")
@pytest.mark.tdx_needs("ground-truth")
def test_largest_number_can_be_set(contract: Contract, prober: Prober) -> None:
    """That of the TDX module, where KVM takes more than there are CPUs."""
    largest = prober.usual
    if not contract.errno(Promise.CAP_ABOVE_DEFAULT):
        assert prober.sizes.module
        largest = min(prober.sizes.module, prober.sizes.kvm)
    with prober.td() as td:
        td.enable_cap(Cap.MAX_VCPUS, largest)
        assert td.check_extension(Cap.MAX_VCPUS) == largest


@pytest.mark.tdx_each_kernel
@pytest.mark.tdx_needs("ground-truth")
def test_number_above_that_of_the_cpus_is_refused_or_holds(
    contract: Contract, prober: Prober, truth: Truth
) -> None:
    larger = prober.usual + 3
    above = contract.errno(
        Promise.CAP_ABOVE_DEFAULT if contract.offers(Promise.CAP_ABOVE_DEFAULT) else Promise.CAP_LOWER
    )
    if above and contract.errno(Promise.INIT_NUMBER):
        with prober.td() as td:
            assert prober.cap(td, larger) == Errno(above)
        return
    with prober.ready_td(larger) as td:
        (known,) = truth.tds()
        assert (known.max_vcpus, td.check_extension(Cap.MAX_VCPUS)) == (larger, larger)
        for ident in range(larger):
            prober.create_vcpu(td, ident)
        with refused(contract, Promise.VCPU_TOO_MANY):
            prober.create_vcpu(td, larger)


@pytest.mark.tdx_host(cpus=4)
@pytest.mark.tdx_offers("cap-lower")
@pytest.mark.usefixtures("number_may_be_set")
def test_number_can_be_lowered_again_and_again(kind: VmType, kvm: Kvm) -> None:
    with kvm.create_vm(kind) as vm:
        for number in (4, 3, 3, 2, 1, 1):
            vm.enable_cap(Cap.MAX_VCPUS, number)
            assert vm.check_extension(Cap.MAX_VCPUS) == number


@pytest.mark.tdx_host(cpus=2)
@pytest.mark.tdx_offers("cap-lower")
@pytest.mark.usefixtures("number_may_be_set")
def test_number_can_still_be_changed_after_a_vcpu_that_failed(kind: VmType, kvm: Kvm) -> None:
    """There is none in the VM."""
    with kvm.create_vm(kind) as vm:
        assert errno_of(partial(vm.create_vcpu, vm.check_extension(Cap.MAX_VCPU_ID)))
        if kind == VmType.TDX:
            assert errno_of(partial(vm.create_vcpu, 0)), "its interrupt controller is not split yet"
        vm.enable_cap(Cap.MAX_VCPUS, 1)
        assert vm.check_extension(Cap.MAX_VCPUS) == 1


@pytest.mark.tdx_host(cpus=2)
@pytest.mark.tdx_offers("cap-lower")
@pytest.mark.usefixtures("number_may_be_set")
@pytest.mark.tdx_finding(
    "F9",
    flavours=("option1", "option1a", "option1b", "option1b-optional", "v19"),
    splat=r"WARNING: arch/x86/kvm/vmx/tdx\.c:\d+ at tdx_\w*vcpu\w*\+",
)
def test_number_cannot_be_raised_above_what_the_module_was_told(contract: Contract, prober: Prober) -> None:
    """A kernel that allows the larger number has to refuse the vCPU itself, before a SEAMCALL fails."""
    with prober.td() as td:
        assert prober.ready(td, 1) == OK
        prober.cap(td, 2)
        add_vcpu(td, 0)
        with shows("F9", match="EIO"):
            with refused(contract, Promise.VCPU_TOO_MANY):
                add_vcpu(td, 1)
            # A dead VM answers everything with EIO.
            assert td.check_extension(Cap.MAX_VCPUS) == 1


@pytest.mark.tdx_offers("cap-lower")
@pytest.mark.usefixtures("number_may_be_set")
@pytest.mark.tdx_needs("misc-cgroup")
def test_number_can_still_be_changed_after_an_init_vm_that_failed(
    contract: Contract, prober: Prober, td: Td, hkids: Hkids
) -> None:
    """The TDX module has not been told a number."""
    fails_for_want_of_an_hkid(contract, prober, td, prober.usual, hkids)
    td.enable_cap(Cap.MAX_VCPUS, 1)
    assert prober.init_for(td, 1) == OK
    assert td.check_extension(Cap.MAX_VCPUS) == 1


@pytest.mark.tdx_host(cpus=2)
@pytest.mark.tdx_offers("cap-lower")
@pytest.mark.usefixtures("number_may_be_set")
@pytest.mark.tdx_needs("misc-cgroup")
def test_number_is_kept_by_an_init_vm_that_failed(
    contract: Contract, prober: Prober, hkids: Hkids, tdx_cleanup: ExitStack
) -> None:
    td = tdx_cleanup.enter_context(prober.td())
    td.enable_cap(Cap.MAX_VCPUS, 1)
    with refused(contract, Refusal.INIT_NO_WIDTH):
        td.init_vm(td.default_params().replace(cpuid=()))
    assert td.check_extension(Cap.MAX_VCPUS) == 1
    fails_for_want_of_an_hkid(contract, prober, td, 1, hkids)
    assert td.check_extension(Cap.MAX_VCPUS) == 1
    assert prober.init_for(td, 1) == OK
    assert td.check_extension(Cap.MAX_VCPUS) == 1


@pytest.mark.tdx_host(cpus=2)
@pytest.mark.tdx_offers("cap-lower")
@pytest.mark.usefixtures("number_may_be_set")
@pytest.mark.tdx_needs("seamcall-fault-injection")
def test_number_that_comes_while_the_module_is_told_one_is_answered_as_one_that_comes_later(
    contract: Contract, prober: Prober, td: Td, tdx_host: TdxHost
) -> None:
    worker, params = td.worker, prober.params(prober.usual)
    with held(tdx_host.agent.files, "TDH.MNG.INIT", cpu=1) as hold:
        telling = worker.start(on([1], commands.init_vm(td.fd, params)))
        assert hold.reached(telling.done)
        lowering = begun(worker, commands.enable_cap(td.fd, Cap.MAX_VCPUS, 1))
    assert telling.result().complete
    assert errno_of(lowering.result) == contract.errno(Promise.CAP_AFTER_INIT)


# the capability and vCPUs at once


@pytest.mark.tdx_host(cpus=2)
@pytest.mark.tdx_offers("cap-lower")
@pytest.mark.usefixtures("number_may_be_set")
def test_no_more_vcpus_than_the_number_that_raced_with_them(
    contract: Contract, prober: Prober, tdx_host: TdxHost
) -> None:
    """Two threads create one vCPU each while a third sets the number to 1: it is in time, or fails."""
    too_late = contract.errno(Promise.CAP_AFTER_VCPU)
    for _ in range(ROUNDS):
        with prober.td() as td:
            if contract.default is Size.NONE:
                td.enable_cap(Cap.MAX_VCPUS, 2)
            first, second, third = tdx_host.agent.barrier(3)
            lowering = td.worker.start(commands.enable_cap(td.fd, Cap.MAX_VCPUS, 1, barrier=first))
            creating = [
                td.worker.start(commands.create_vcpu(td.fd, ident, barrier=place))
                for ident, place in enumerate((second, third))
            ]
            made = [errno_of(job.result) for job in creating].count(0)
            outcome = (errno_of(lowering.result), made, td.check_extension(Cap.MAX_VCPUS) >= made)
            assert outcome in ((0, 1, True), (too_late, 2, True))
