# SPDX-License-Identifier: GPL-2.0-or-later
"""SEAMCALLs that fail: the errno that the caller gets, and above all the fate of the HKID.

softseam is armed to fail the n-th call of a leaf.  KVM treats most such failures as bugs, its own or the
module's: it warns (``TDX_BUG_ON``) and marks the VM as dead.  The HKID has to be freed all the same, except
where KVM logs that it is leaked.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import pytest

from e2e.faults import INVALID, NO_ENTROPY, RETRIES, fault, no_entropy
from e2e.findings import F2
from fixtures.agent.client import Worker
from fixtures.contracts.answers import refused
from fixtures.contracts.promises import Contract, Refusal
from fixtures.deadline import until
from fixtures.findings import shows
from fixtures.guests import output
from fixtures.guests.launch import Launch
from fixtures.host.base import TdxHost
from fixtures.host.hkids import Hkids
from fixtures.kvm import build, commands
from fixtures.kvm.abi import PAGE_SIZE
from fixtures.kvm.build import HALT, Assembly, Region
from fixtures.kvm.defaults import default_params
from fixtures.kvm.device import Kvm
from fixtures.kvm.errors import errno_of
from fixtures.kvm.exits import InterruptedExit
from fixtures.kvm.fd import close_all
from fixtures.kvm.many import many_tds
from fixtures.softseam import inject
from fixtures.softseam.inject import Injection, armed, still_armed
from fixtures.softseam.truth import Truth

TWO_PACKAGES = pytest.mark.tdx_host(cpus=4, sockets=2)
INJECTED = pytest.mark.tdx_needs("misc-cgroup", "seamcall-fault-injection")

RECLAIM = "TDH.PHYMEM.PAGE.RECLAIM"
BUSY = inject.TDX_OPERAND_BUSY
NOT_READY = inject.TDX_SYS_NOT_READY
NAMES = {BUSY: "busy", INVALID: "invalid", NOT_READY: "not-ready", NO_ENTROPY: "no-entropy"}

warns = pytest.mark.tdx_splat_expected(r"WARNING: arch/x86/kvm/vmx/tdx\.[ch]:\d+")


@pytest.fixture(autouse=True)
def host_goes_on(owner: Worker, tdx_cleanup: ExitStack, payloads: Mapping[str, bytes]) -> None:
    """Require, when all of the test's own is closed, that the host still makes and runs TDs."""
    tdx_cleanup.callback(make_and_run, owner, payloads["count"])


def make_and_run(worker: Worker, counting: bytes) -> None:
    with build.finalized(worker, counting) as built:
        assert output.numbers(built.vcpus[0], 1) == [1]


def each_failure(codes: dict[str, tuple[int, ...]]) -> pytest.MarkDecorator:
    """Parametrize a test: each leaf (``TDH.MNG.ADDCX/2`` is its second call) with each completion code."""
    found = {}
    for name, values in codes.items():
        leaf, _, nth = name.partition("/")
        for code in values:
            ident = f"{name.removeprefix('TDH.').lower()}-{NAMES[code]}"
            found[ident] = Injection(leaf, int(nth or 1), 1, code)
    return pytest.mark.parametrize("failure", found.values(), ids=found)


def assert_dead(built: Assembly, contract: Contract) -> None:
    with refused(contract, Refusal.VM_DEAD):
        built.td.capabilities()


# INIT_VM


@INJECTED
@warns
@each_failure(
    {
        "TDH.MNG.CREATE": (BUSY, INVALID, NOT_READY),
        "TDH.MNG.KEY.CONFIG": (BUSY, NOT_READY),
        "TDH.MNG.ADDCX": (BUSY, NOT_READY),
        "TDH.MNG.ADDCX/3": (BUSY, NOT_READY),
        "TDH.MNG.INIT": (BUSY, NOT_READY),
    }
)
def test_init_vm_that_fails_holds_no_hkid_and_its_vm_is_dead(
    failure: Injection, tdx_host: TdxHost, kvm: Kvm, hkids: Hkids, contract: Contract
) -> None:
    params = default_params(kvm.worker)
    with kvm.create_td() as td:
        with fault(tdx_host, failure), refused(contract, Refusal.INIT_SEAMCALL):
            td.init_vm(params)
        assert hkids.taken == 0
        with refused(contract, Refusal.VM_DEAD):
            td.init_vm(params)
    (another,) = many_tds(kvm, 1)
    assert hkids.taken == 1
    another.close()


@INJECTED
def test_init_vm_with_an_operand_that_the_module_refuses_tells_its_code_and_can_be_tried_again(
    tdx_host: TdxHost, kvm: Kvm, hkids: Hkids, contract: Contract
) -> None:
    params = default_params(kvm.worker)
    code = inject.TDX_OPERAND_INVALID | 0x1234
    with kvm.create_td() as td:
        with (
            fault(tdx_host, Injection("TDH.MNG.INIT", code=code)),
            refused(contract, Refusal.INIT_MODULE_REFUSES) as caught,
        ):
            td.init_vm(params)
        assert caught.hw_error == code
        assert hkids.taken == 0
        td.init_vm(params)
        assert hkids.taken == 1


@INJECTED
@pytest.mark.parametrize(
    "failure",
    [
        pytest.param(Injection("TDH.MNG.CREATE", 1, RETRIES, NO_ENTROPY), id="mng.create"),
        pytest.param(Injection("TDH.MNG.ADDCX", 1, RETRIES, NO_ENTROPY), id="mng.addcx"),
        pytest.param(Injection("TDH.MNG.ADDCX", 3, RETRIES, NO_ENTROPY), id="mng.addcx/3"),
    ],
)
def test_init_vm_without_entropy_holds_no_hkid_and_can_be_tried_again(
    failure: Injection, tdx_host: TdxHost, kvm: Kvm, hkids: Hkids, contract: Contract
) -> None:
    params = default_params(kvm.worker)
    with kvm.create_td() as td:
        with fault(tdx_host, failure), refused(contract, Refusal.INIT_NO_ENTROPY):
            td.init_vm(params)
        assert hkids.taken == 0
        td.init_vm(params)
        assert hkids.taken == 1


@INJECTED
def test_entropy_that_is_short_for_a_moment_is_waited_for(
    tdx_host: TdxHost, owner: Worker, hkids: Hkids
) -> None:
    leaves = ("MNG.CREATE", "MNG.KEY.CONFIG", "MNG.ADDCX", "MNG.INIT", "VP.CREATE", "VP.INIT", "MR.FINALIZE")
    default_params(owner)
    with fault(tdx_host, *no_entropy(*(f"TDH.{leaf}" for leaf in leaves), times=RETRIES - 1)):
        build.finalized(owner)
    assert hkids.taken == 1


@INJECTED
@pytest.mark.tdx_finding(
    "F3",
    flavours=("upstream",),
    splat=r"WARNING: arch/x86/kvm/vmx/tdx\.c:\d+ at tdx_do_tdh_mng_key_config\+",
)
@pytest.mark.parametrize(
    "call",
    [
        pytest.param(1, id="of-one-package"),
        pytest.param(1, id="of-the-first-of-two", marks=TWO_PACKAGES),
        pytest.param(2, id="of-the-second-of-two", marks=TWO_PACKAGES),
    ],
)
def test_key_that_cannot_be_generated_for_a_moment_is_not_the_end_of_the_vm(
    call: int, tdx_host: TdxHost, kvm: Kvm, hkids: Hkids, contract: Contract
) -> None:
    """Either KVM retries, or it returns EAGAIN and the caller retries: both are right."""
    params = default_params(kvm.worker)
    with kvm.create_td() as td:
        with fault(
            tdx_host, Injection("TDH.MNG.KEY.CONFIG", nth=call, code=inject.TDX_KEY_GENERATION_FAILED)
        ):
            first = errno_of(lambda: td.init_vm(params))
            with shows("F3"):
                assert first in (0, contract.errno(Refusal.INIT_NO_ENTROPY))
            if first:
                assert hkids.taken == 0
                td.init_vm(params)
        assert hkids.taken == 1


@INJECTED
@pytest.mark.tdx_finding("F4", flavours=("upstream",))
def test_init_vm_fails_when_the_tds_clock_cannot_be_read(
    tdx_host: TdxHost, kvm: Kvm, contract: Contract
) -> None:
    params = default_params(kvm.worker)
    with (
        kvm.create_td() as td,
        fault(tdx_host, Injection("TDH.MNG.RD", code=BUSY)),
        shows("F4", match="success"),
        refused(contract, Refusal.INIT_SEAMCALL),
    ):
        td.init_vm(params)


# INIT_VCPU


@INJECTED
@warns
@each_failure(
    {
        "TDH.VP.CREATE": (BUSY, NOT_READY),
        "TDH.VP.ADDCX": (BUSY, NOT_READY),
        "TDH.VP.ADDCX/2": (BUSY, NOT_READY),
        "TDH.VP.INIT": (BUSY, NOT_READY),
    }
)
def test_init_vcpu_that_fails_leaves_a_dead_vm_whose_hkid_comes_back(
    failure: Injection, tdx_host: TdxHost, td_initialized: Assembly, hkids: Hkids, contract: Contract
) -> None:
    reclaims = Truth(tdx_host.agent).leaves()[RECLAIM].errors
    with fault(tdx_host, failure), refused(contract, Refusal.INIT_VCPU_SEAMCALL):
        td_initialized.add_vcpus()
    assert_dead(td_initialized, contract)
    assert hkids.taken == 0
    td_initialized.close()
    assert hkids.taken == -1
    # What the module never got it cannot give back.
    assert Truth(tdx_host.agent).leaves()[RECLAIM].errors == reclaims


@INJECTED
@warns
@pytest.mark.tdx_finding("F5", flavours=("upstream",))
def test_init_vcpu_whose_fields_cannot_be_written_fails(
    tdx_host: TdxHost, td_initialized: Assembly, contract: Contract
) -> None:
    with (
        fault(tdx_host, Injection("TDH.VP.WR", code=BUSY)),
        shows("F5", match="success"),
        refused(contract, Refusal.INIT_VCPU_SEAMCALL),
    ):
        td_initialized.add_vcpus()
    assert_dead(td_initialized, contract)


# GET_CPUID


@INJECTED
@pytest.mark.tdx_finding("F31", flavours=("upstream",))
def test_get_cpuid_that_cannot_read_a_leaf_fails(tdx_host: TdxHost, td_with_vcpus: Assembly) -> None:
    (vcpu,) = td_with_vcpus.vcpus
    known = vcpu.get_cpuid()
    # Leaf 0 takes two reads, so this is the first of leaf 1.
    with fault(tdx_host, Injection("TDH.MNG.RD", 3, code=BUSY)):
        found = errno_of(vcpu.get_cpuid)
    with shows("F31"):
        assert found == errno.EIO
    assert vcpu.get_cpuid() == known


# INIT_MEM_REGION


@INJECTED
@warns
@each_failure(
    {
        "TDH.MEM.SEPT.ADD": (INVALID, NOT_READY),
        "TDH.MEM.SEPT.ADD/2": (NOT_READY,),
        "TDH.MEM.PAGE.ADD": (INVALID, NOT_READY),
        "TDH.MR.EXTEND": (BUSY, NOT_READY),
        "TDH.MR.EXTEND/16": (NOT_READY,),
    }
)
def test_init_mem_region_that_fails_leaves_a_dead_vm_whose_hkid_comes_back(
    failure: Injection, tdx_host: TdxHost, td_with_vcpus: Assembly, hkids: Hkids, contract: Contract
) -> None:
    with fault(tdx_host, failure), refused(contract, Refusal.REGION_SEAMCALL):
        td_with_vcpus.populate(Region.firmware(HALT))
    assert_dead(td_with_vcpus, contract)
    td_with_vcpus.close()
    assert hkids.taken == -1


@INJECTED
@pytest.mark.parametrize("leaf", ["TDH.MEM.SEPT.ADD", "TDH.MEM.PAGE.ADD"])
def test_init_mem_region_waits_for_a_busy_module(
    leaf: str, tdx_host: TdxHost, td_with_vcpus: Assembly
) -> None:
    with fault(tdx_host, Injection(leaf, 1, 5, BUSY)):
        td_with_vcpus.populate(Region.firmware(HALT)).finalize()


@INJECTED
@pytest.mark.tdx_finding(
    "F30",
    flavours=("upstream",),
    splat=r"WARNING: \S*virt/kvm/kvm_main\.c:\d+ at kvm_mmu_memory_cache_alloc\+",
)
def test_init_mem_region_waits_for_a_module_that_is_busy_for_long(
    tdx_host: TdxHost, td_with_vcpus: Assembly
) -> None:
    with fault(tdx_host, Injection("TDH.MEM.SEPT.ADD", 1, 100, BUSY)):
        td_with_vcpus.populate(Region.firmware(HALT)).finalize()


@INJECTED
def test_init_mem_region_that_waits_for_a_busy_module_can_be_interrupted(
    tdx_host: TdxHost, td_with_vcpus: Assembly, contract: Contract
) -> None:
    region = Region.firmware(HALT)
    (vcpu,) = td_with_vcpus.place(region).vcpus
    module = Truth(tdx_host.agent)
    before = module.leaves()["TDH.MEM.PAGE.ADD"].errors
    with inject.armed(tdx_host.agent.files, Injection("TDH.MEM.PAGE.ADD", count=1 << 31)):
        adding = vcpu.worker.start(commands.init_mem_region(vcpu.fd, region.data, region.gpa))
        until(
            lambda: adding.done() or module.leaves()["TDH.MEM.PAGE.ADD"].errors >= before + 2,
            "KVM to try a busy page again",
        )
        assert adding.interrupt()
        with refused(contract, Refusal.REGION_INTERRUPTED):
            adding.result()
    vcpu.init_mem_region(region.data, region.gpa)
    td_with_vcpus.finalize()


@INJECTED
@pytest.mark.parametrize("leaf", ["TDH.MEM.SEPT.ADD", "TDH.MEM.PAGE.AUG"])
def test_guest_gets_its_pages_though_the_module_is_busy(leaf: str, tdx_host: TdxHost, launch: Launch) -> None:
    """Each is counted once, and no more when it is gone."""
    built = launch("memory", regions=(Region(0x100000, 16 * PAGE_SIZE),))
    (vcpu,) = built.vcpus
    with built.td.stats_fd() as stats:
        before = stats.read()["pages_4k"]
        with fault(tdx_host, Injection(leaf, 1, 5, BUSY)):
            status_of_all, sum_of_all = output.numbers(vcpu, 2)
        assert (status_of_all, sum_of_all) == (0, 0)
        built.memfds[-1].punch_hole()
        assert stats.read()["pages_4k"] == before


@INJECTED
@pytest.mark.parametrize("operand", [0, 1, 128], ids=["", "rcx", "tdr"])
def test_guest_is_entered_again_when_the_module_was_busy(
    operand: int, tdx_host: TdxHost, launch: Launch
) -> None:
    """Whatever the busy operand is: bits 31:0 of the completion code tell (``tdx_operand_busy``)."""
    (vcpu,) = launch("count").vcpus
    with fault(tdx_host, Injection("TDH.VP.ENTER", 2, 3, BUSY | operand)):
        told = output.numbers(vcpu, 6)
    assert told == [step | mark for step in range(1, 4) for mark in (0, output.COMMON)]


@INJECTED
def test_vcpu_that_finds_the_module_busy_for_ever_is_in_nobodys_way(
    tdx_host: TdxHost, launch: Launch
) -> None:
    """Neither of who takes a page away, nor of the signal that ends its KVM_RUN."""
    built = launch("accept", regions=(Region(0x100000, PAGE_SIZE),))
    (vcpu,) = built.vcpus
    assert output.numbers(vcpu, 4)[:2] == [0, 0]
    files, count = tdx_host.agent.files, 1 << 31
    with armed(files, Injection("TDH.VP.ENTER", count=count, code=BUSY)):
        running = vcpu.start()
        until(lambda: still_armed(files)[0].count < count - 20, "the vCPU to try again and again")
        built.memfds[-1].punch_hole()
        assert isinstance(running.stop(), InterruptedExit)
    assert output.numbers(vcpu, 2) == [0, 0]


@INJECTED
@pytest.mark.parametrize("leaf", ["TDH.MEM.RANGE.BLOCK", "TDH.MEM.PAGE.REMOVE"])
def test_guest_goes_on_though_the_module_was_busy_when_a_page_was_taken_away(
    leaf: str, tdx_host: TdxHost, launch: Launch
) -> None:
    """KVM keeps the vCPUs out of the guest while it tries again."""
    built = launch("accept", regions=(Region(0x100000, PAGE_SIZE),))
    (vcpu,) = built.vcpus
    accepted, zero = output.numbers(vcpu, 4)[:2]
    with fault(tdx_host, Injection(leaf, code=BUSY)):
        built.memfds[-1].punch_hole()
    assert output.numbers(vcpu, 2) == [accepted, zero] == [0, 0]


# FINALIZE_VM


@INJECTED
def test_finalize_vm_on_a_busy_module_can_be_tried_again(
    tdx_host: TdxHost, td_populated: Assembly, contract: Contract
) -> None:
    code = BUSY | 0x80
    with (
        fault(tdx_host, Injection("TDH.MR.FINALIZE", code=code)),
        refused(contract, Refusal.FINALIZE_BUSY) as caught,
    ):
        td_populated.finalize()
    assert caught.hw_error == code
    td_populated.finalize()


@INJECTED
@warns
@each_failure({"TDH.MR.FINALIZE": (INVALID, NOT_READY)})
def test_finalize_vm_that_fails_leaves_a_dead_vm_whose_hkid_comes_back(
    failure: Injection, tdx_host: TdxHost, td_populated: Assembly, hkids: Hkids, contract: Contract
) -> None:
    with fault(tdx_host, failure), refused(contract, Refusal.FINALIZE_SEAMCALL) as caught:
        td_populated.finalize()
    assert caught.hw_error == failure.code
    assert_dead(td_populated, contract)
    td_populated.close()
    assert hkids.taken == -1


@pytest.mark.tdx_finding("F2", **F2)
def test_finalize_vm_without_a_vcpu_is_the_callers_mistake_and_no_bug(
    td_initialized: Assembly, contract: Contract
) -> None:
    """The TDX module refuses it (TDX_NO_VCPUS); KVM must neither warn nor kill the VM."""
    with shows("F2", match="EIO"), refused(contract, Refusal.FINALIZE_NO_VCPU):
        td_initialized.td.finalize()
    td_initialized.add_vcpus().populate(Region.firmware(HALT)).finalize()


# the end of a TD

LEAKED = r"HKID \d+ is leaked"


@contextmanager
def kernel_says(host: TdxHost, pattern: str) -> Iterator[None]:
    """Require that the kernel logs a line that matches the pattern while the block runs."""
    seen = host.agent.files.kmsg()[-1].sequence
    yield
    lines = [record.text for record in host.agent.files.kmsg(seen)]
    said = [line for line in lines if re.search(pattern, line)]
    assert said, f"nothing like {pattern!r} among {len(lines)} lines, the last of which is {lines[-1:]}"


@INJECTED
@warns
@pytest.mark.tdx_leak_expected("KVM gives the HKID up when the TDX module does not take it back")
@each_failure(
    {
        "TDH.MNG.VPFLUSHDONE": (BUSY, NOT_READY),
        "TDH.PHYMEM.CACHE.WB": (BUSY, NOT_READY),
        "TDH.MNG.KEY.FREEID": (BUSY, NOT_READY),
    }
)
def test_hkid_that_cannot_be_freed_is_leaked_and_the_kernel_says_so(
    failure: Injection, tdx_host: TdxHost, kvm: Kvm, hkids: Hkids, contract: Contract
) -> None:
    (td,) = many_tds(kvm, 1)
    with kernel_says(tdx_host, LEAKED), fault(tdx_host, failure):
        td.close()
    assert hkids.taken == 1
    others = many_tds(kvm, hkids.free)
    with kvm.create_td() as late, refused(contract, Refusal.INIT_NO_HKID):
        late.init_vm()
    close_all(*others)


@INJECTED
@warns
@pytest.mark.tdx_leak_expected("the vCPU is still associated, so the TDX module keeps the TD's key")
@pytest.mark.tdx_finding("F6", flavours=("upstream",))
def test_hkid_of_a_vcpu_that_cannot_be_flushed_is_leaked_and_the_kernel_says_so(
    tdx_host: TdxHost, td_with_vcpus: Assembly, hkids: Hkids
) -> None:
    with (
        shows("F6", match="nothing like"),
        kernel_says(tdx_host, LEAKED),
        fault(tdx_host, Injection("TDH.VP.FLUSH", code=BUSY)),
    ):
        td_with_vcpus.close()
    assert hkids.taken == 0


@INJECTED
def test_interrupted_write_back_of_the_caches_is_resumed(tdx_host: TdxHost, kvm: Kvm, hkids: Hkids) -> None:
    (td,) = many_tds(kvm, 1)
    with fault(tdx_host, Injection("TDH.PHYMEM.CACHE.WB", 1, 3, inject.TDX_INTERRUPTED_RESUMABLE)):
        td.close()
    assert hkids.taken == 0


@INJECTED
@warns
@pytest.mark.tdx_leak_expected("a page that the TDX module does not give back keeps the TD's root")
@each_failure({RECLAIM: (BUSY,)})
def test_hkid_comes_back_though_a_page_does_not(
    failure: Injection, tdx_host: TdxHost, td_populated: Assembly, hkids: Hkids
) -> None:
    with fault(tdx_host, failure):
        td_populated.close()
    assert hkids.taken == -1


@INJECTED
@warns
def test_hkid_comes_back_though_the_root_page_cannot_be_written_back(
    tdx_host: TdxHost, kvm: Kvm, hkids: Hkids
) -> None:
    (td,) = many_tds(kvm, 1)
    with fault(tdx_host, Injection("TDH.PHYMEM.PAGE.WBINVD", code=NOT_READY)):
        td.close()
    assert hkids.taken == 0


@INJECTED
@pytest.mark.parametrize("leaf", ["TDH.MEM.RANGE.BLOCK", "TDH.MEM.PAGE.REMOVE"])
def test_busy_page_is_tried_once_more(
    leaf: str, tdx_host: TdxHost, td_populated: Assembly, hkids: Hkids
) -> None:
    with fault(tdx_host, Injection(leaf, code=BUSY)):
        td_populated.close()
    assert hkids.taken == -1
