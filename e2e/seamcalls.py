# SPDX-License-Identifier: GPL-2.0-or-later
"""What comes of a SEAMCALL that fails, as data: for each leaf and code an outcome and its reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from e2e.lives import Outcome
from fixtures.softseam.codes import LEAVES, Code

_CREATED = ("create", "init_vm")
_VCPUS = ("create_vcpu", "init_vcpu", "create_vcpu", "init_vcpu")
_POPULATED = (*_CREATED, *_VCPUS, "place", "populate")
_FINALIZED = (*_POPULATED, "finalize")
_RAN = (*_FINALIZED, "map_run", "first_run")
_CONVERTED = ("to_shared", "shared_run", "to_private", "private_run")
_MOVED = ("destination", "move", "map_run", "another_run")
_ELSEWHERE = ("another_cpu", "another_run")

WHOLE = (*_RAN, *_CONVERTED, *_ELSEWHERE)
"""A life with all SEAMCALLs but those of a move."""

Steps = tuple[str, ...]

SCENARIOS: Mapping[str, tuple[Steps, Steps]] = {
    "create": ((), _CREATED),
    "vcpus": (_CREATED, (*_VCPUS, "place")),
    "cpuid": ((*_CREATED, "create_vcpu", "init_vcpu"), ("get_cpuid",)),
    "populate": ((*_CREATED, *_VCPUS), ("place", "populate")),
    "finalize": (_POPULATED, ("finalize",)),
    "run": (_FINALIZED, ("map_run", "first_run")),
    "convert": (_RAN, _CONVERTED),
    "another-cpu": ((*_RAN, *_CONVERTED), _ELSEWHERE),
    "cpu-offline": ((*WHOLE, "another_conversion", "home"), ("offline", "run_at_home")),
    "end": ((*_RAN, *_CONVERTED), ()),
    "end-of-created": (_CREATED, ()),
}
"""The steps before the fault is armed, and those after; with none after, it disturbs the end of the life."""

MOVES: Mapping[str, tuple[Steps, Steps]] = {
    "move": ((*_RAN, *_CONVERTED, "complete"), _MOVED),
    "end-of-moved": ((*_RAN, *_CONVERTED, "complete", *_MOVED), ()),
}
"""The same for kernels that move TDs."""

NOTHING_TO_DO = {
    "KEY_CONFIGURED",
    "VCPU_NOT_ASSOCIATED",
    "GPA_RANGE_ALREADY_BLOCKED",
    "NO_HKID_READY_TO_WBCACHE",
}
"""Codes by which the module reports that there was nothing to do, which is not true of a call that fails."""


class Then(StrEnum):
    """What comes of the failed call and all after it, when they are repeated."""

    WELL = "all goes well"
    SAME = "it fails in the same way while the fault lasts, and goes well after it"
    LASTS = "it fails in the same way, also after the fault"
    DEAD = "the VM is dead"


@dataclass(frozen=True)
class Cell:
    """A fault in a life: the n-th call of a leaf in a scenario returns a code, once or from then on."""

    scenario: str
    leaf: str
    nth: int
    code: str
    value: int
    ever: bool

    def __str__(self) -> str:
        times = "ever after" if self.ever else "once"
        return f"{self.scenario}: call {self.nth} of {self.leaf} returns {self.code} {times}"


@dataclass(frozen=True)
class Rule:
    """An outcome and its reason.

    :param leaves: without ``TDH.``, separated by spaces.
    :param where: the kernel's function that decides.
    :param why: its reason.
    :param codes: separated by spaces; empty for all that no rule before has.
    :param scenarios: separated by spaces; empty for all.
    :param ever: the fault lasts (True), is gone after one call (False), or either.
    :param fails: errno or exit with which a step fails, or several, separated by ``|``; empty if none does.
    :param step: the step that fails, or several; empty if that does not matter.
    :param hw_error: the ioctl returns the code.
    :param warns: the kernel's file that warns, ``tdx.c``; ``?`` before it if it need not.
    :param leaks: ``hkid`` with all pages of the TD, ``pages``, or nothing.
    :param logged: the leak of the HKID is logged.
    :param spoils: the kernel uses for something else what the module still owns.
    :param finding: the finding that ``wrong`` is, on kernels that have it.
    :param wrong: the fields that differ there.
    """

    leaves: str
    where: str
    why: str
    codes: str = ""
    scenarios: str = ""
    ever: bool | None = None
    fails: str = ""
    step: str = ""
    hw_error: bool = False
    then: Then = Then.SAME
    warns: str = ""
    leaks: str = ""
    logged: bool = True
    spoils: bool = False
    finding: str = ""
    wrong: Mapping[str, object] | None = None

    def covers(self, cell: Cell) -> bool:
        return (
            cell.leaf.removeprefix("TDH.") in self.leaves.split()
            and (not self.codes or cell.code in self.codes.split())
            and (not self.scenarios or cell.scenario in self.scenarios.split())
            and self.ever in (None, cell.ever)
        )

    def where_wrong(self) -> Rule:
        """The rule on kernels that have its finding."""
        return replace(self, **dict(self.wrong or {}))  # type: ignore[arg-type]

    def differences(self, cell: Cell, found: Outcome) -> Iterator[str]:
        """How an outcome differs from the rule."""
        step, _, failed = found.failed.partition(": ")
        if failed not in self.fails.split("|"):
            yield f"fails with {failed or 'nothing'}, not {self.fails or 'nothing'}"
        if self.step and step not in self.step.split("|"):
            yield f"fails at {step or 'no step'}, not at {self.step}"
        if (found.hw_error == cell.value) != (self.hw_error and bool(failed)):
            yield f"hw_error is {found.hw_error:#x}"
        if failed and failed != OTHER_CPUID:
            then = {
                Then.DEAD: "dead",
                Then.WELL: "",
                Then.SAME: found.failed if cell.ever else "",
                Then.LASTS: found.failed,
            }[self.then]
            if found.then != then:
                yield f"then {found.then or 'all goes well'}, not {then or 'all goes well'}"
        files = {splat.split()[0] for splat in found.splats}
        wanted = {file.lstrip("?") for file in self.warns.split()}
        needed = {file for file in self.warns.split() if not file.startswith("?")}
        if files - wanted or needed - files:
            yield f"warnings: {', '.join(found.splats) or 'none'}; wanted: {self.warns or 'none'}"
        keys = 1 if self.leaks == "hkid" else 0
        if (found.hkids, found.charged) != (keys, keys):
            yield f"HKIDs left: {found.hkids}, charged: {found.charged}, not {keys}"
        if found.leak_logged != (bool(keys) and self.logged):
            yield f"the leak of an HKID is {'' if found.leak_logged else 'not '}logged"
        if bool(found.pages) != bool(self.leaks):
            yield f"pages left: {dict(found.pages or {})}"


PAGES = "F18"
"""The finding that a private page which cannot be removed goes back to the allocator."""

OTHER_CPUID = "other CPUID"
_NO_FIELD = "METADATA_FIELD_ID_INCORRECT METADATA_FIELD_NOT_READABLE"
_BUG = "TDX_BUG_ON: a failure that KVM takes for a bug of its own or of the module"
_BUSY = "a busy operand is tried again until it is free or a signal comes"
_ENTROPY = "sc_retry() makes ten calls while the module finds no entropy"

RULES = (
    # KVM_TDX_INIT_VM
    Rule("MNG.CREATE MNG.ADDCX", "sc_retry()", _ENTROPY, "RND_NO_ENTROPY", ever=False),
    Rule(
        "MNG.CREATE MNG.ADDCX",
        "__tdx_td_init()",
        "user space may try again",
        "RND_NO_ENTROPY",
        fails="EAGAIN",
    ),
    Rule(
        "MNG.KEY.CONFIG",
        "tdx_do_tdh_mng_key_config()",
        "user space may try again",
        "KEY_GENERATION_FAILED",
        fails="EAGAIN",
        finding="F3",
        wrong={"fails": "EIO", "then": Then.DEAD, "warns": "tdx.c"},
    ),
    Rule(
        "MNG.INIT",
        "__tdx_td_init()",
        "the operands are the caller's, who gets the code as a hint",
        "OPERAND_INVALID",
        fails="EINVAL",
        hw_error=True,
    ),
    Rule(
        "MNG.INIT",
        "__tdx_td_init()",
        "the CPUID is the caller's, who gets the code as a hint",
        "CPUID_LEAF_1F_FORMAT_UNRECOGNIZED",
        fails="EINVAL",
        hw_error=True,
        finding="F17",
        wrong={"fails": "EIO", "hw_error": False, "then": Then.DEAD, "warns": "tdx.c"},
    ),
    Rule(
        "MNG.CREATE MNG.KEY.CONFIG MNG.ADDCX MNG.INIT",
        "__tdx_td_init()",
        _BUG,
        fails="EIO",
        then=Then.DEAD,
        warns="tdx.c",
    ),
    Rule(
        "MNG.RD",
        "tdx_td_init()",
        "without its TSC's offset and multiplier the TD is no use, and is taken down",
        scenarios="create",
        fails="EIO",
        finding="F4",
        wrong={"fails": ""},
    ),
    # KVM_TDX_INIT_VCPU
    Rule(
        "VP.CREATE VP.ADDCX VP.INIT", "tdx_td_vcpu_init()", _BUG, fails="EIO", then=Then.DEAD, warns="tdx.c"
    ),
    Rule(
        "VP.WR",
        "tdh_vp_wr_failed()",
        "KVM_BUG_ON: a field that must be writable is not",
        scenarios="vcpus",
        fails="EIO",
        step="init_vcpu",
        then=Then.DEAD,
        warns="tdx.c",
        finding="F5",
        wrong={"step": "create_vcpu|place"},
    ),
    Rule(
        "VP.WR",
        "tdx_load_mmu_pgd()",
        "KVM_BUG_ON: a field that must be writable is not",
        fails="EIO",
        then=Then.DEAD,
        warns="tdx.c",
    ),
    # KVM_TDX_GET_CPUID
    Rule(
        "MNG.RD",
        "tdx_vcpu_get_cpuid()",
        "the TD does not have the leaf; that it has one half of it is weird, says the comment",
        _NO_FIELD,
        "cpuid",
        fails=f"EIO|{OTHER_CPUID}|",
        warns="?tdx.c",
    ),
    Rule(
        "MNG.RD",
        "tdx_vcpu_get_cpuid()",
        "what could not be read is not left out",
        scenarios="cpuid",
        fails="EIO",
        warns="?tdx.c",
        finding="F31",
        wrong={"fails": f"EIO|{OTHER_CPUID}|"},
    ),
    # KVM_TDX_INIT_MEM_REGION, and faults
    Rule(
        "MEM.SEPT.ADD",
        "kvm_tdp_mmu_map_private_pfn()",
        _BUSY,
        "OPERAND_BUSY",
        "populate",
        ever=True,
        fails="EINTR",
        then=Then.WELL,
        finding="F30",
        wrong={"warns": "kvm_main.c"},
    ),
    Rule(
        "MEM.SEPT.ADD MEM.PAGE.ADD", "kvm_tdp_mmu_map_private_pfn()", _BUSY, "OPERAND_BUSY", "populate", False
    ),
    Rule(
        "MEM.PAGE.ADD", "kvm_tdp_mmu_map_private_pfn()", _BUSY, "OPERAND_BUSY", fails="EINTR", then=Then.WELL
    ),
    Rule("MEM.SEPT.ADD MEM.PAGE.AUG", "tdx_handle_ept_violation()", _BUSY, "OPERAND_BUSY", ever=False),
    Rule(
        "MEM.SEPT.ADD MEM.PAGE.AUG",
        "tdx_handle_ept_violation()",
        _BUSY,
        "OPERAND_BUSY",
        fails="EINTR",
        then=Then.WELL,
    ),
    Rule("MEM.SEPT.ADD", "tdx_sept_map_nonleaf_spte()", _BUG, fails="EIO", then=Then.DEAD, warns="tdx.c"),
    Rule("MEM.PAGE.ADD", "tdx_mem_page_add()", _BUG, fails="EIO", then=Then.DEAD, warns="tdx.c"),
    Rule("MEM.PAGE.AUG", "tdx_mem_page_aug()", _BUG, fails="EIO", then=Then.DEAD, warns="tdx.c"),
    Rule("MR.EXTEND", "tdx_gmem_post_populate()", _BUG, fails="EIO", then=Then.DEAD, warns="tdx.c"),
    # KVM_TDX_FINALIZE_VM
    Rule(
        "MR.FINALIZE",
        "tdx_td_finalize()",
        "user space may try again",
        "OPERAND_BUSY",
        fails="EBUSY",
        hw_error=True,
    ),
    Rule(
        "MR.FINALIZE",
        "tdx_td_finalize()",
        "user space has left out a step",
        "NO_VCPUS",
        fails="EINVAL",
        hw_error=True,
        finding="F2",
        wrong={"fails": "EIO", "then": Then.DEAD, "warns": "tdx.c"},
    ),
    Rule("MR.FINALIZE", "tdx_td_finalize()", _BUG, fails="EIO", hw_error=True, then=Then.DEAD, warns="tdx.c"),
    # KVM_RUN
    Rule("VP.ENTER", "tdx_exit_handlers_fastpath()", "the vCPU enters again", "OPERAND_BUSY", ever=False),
    Rule(
        "VP.ENTER",
        "tdx_exit_handlers_fastpath()",
        "the vCPU enters again until a signal comes",
        "OPERAND_BUSY",
        fails="EINTR",
        then=Then.WELL,
    ),
    Rule(
        "VP.ENTER",
        "__tdx_handle_exit()",
        "user space gets the code",
        fails="exit INTERNAL_ERROR",
        finding="F7",
        wrong={"warns": "?main.c"},
    ),
    Rule(
        "VP.RD",
        "tdh_vp_rd_failed()",
        "KVM_BUG_ON: a field that must be readable is not",
        fails="EIO",
        then=Then.DEAD,
        warns="tdx.c",
    ),
    # private memory goes
    Rule(
        "MEM.RANGE.BLOCK MEM.TRACK MEM.PAGE.REMOVE",
        "tdh_do_no_vcpus()",
        "one more call, with all vCPUs out of the guest",
        "OPERAND_BUSY",
        ever=False,
    ),
    Rule(
        "MEM.RANGE.BLOCK MEM.TRACK MEM.PAGE.REMOVE",
        "tdx_sept_remove_leaf_spte()",
        f"{_BUG}; the page is lost, and so is the TDR; the next request learns of it",
        scenarios="convert",
        fails="EIO",
        then=Then.DEAD,
        warns="tdx.c",
        leaks="pages",
        finding=PAGES,
        wrong={"spoils": True},
    ),
    Rule(
        "MEM.RANGE.BLOCK MEM.TRACK MEM.PAGE.REMOVE",
        "tdx_sept_remove_leaf_spte()",
        f"{_BUG}; the page is lost, and so is the TDR",
        warns="tdx.c",
        leaks="pages",
        finding=PAGES,
        wrong={"spoils": True},
    ),
    Rule(
        "PHYMEM.PAGE.WBINVD",
        "tdx_sept_remove_leaf_spte()",
        f"{_BUG}; the next request learns of it",
        scenarios="convert",
        fails="EIO",
        then=Then.DEAD,
        warns="tdx.c",
    ),
    Rule(
        "PHYMEM.PAGE.WBINVD",
        "tdx_sept_remove_leaf_spte(), tdx_reclaim_td_control_pages()",
        f"{_BUG}; the module has given the page back",
        warns="tdx.c",
    ),
    # vCPUs leave their CPUs
    Rule(
        "VP.FLUSH",
        "tdx_flush_vp_on_cpu()",
        f"{_BUG}, that of the source, which is dead after the move; the vCPU goes on where it is associated",
        ever=False,
        scenarios="move",
        warns="tdx.c",
    ),
    Rule(
        "VP.FLUSH",
        "tdx_flush_vp_on_cpu()",
        "the same; it is still associated when the TD ends, so the HKID cannot be freed",
        ever=True,
        scenarios="move",
        warns="tdx.c",
        leaks="hkid",
    ),
    Rule(
        "VP.FLUSH",
        "tdx_disable_virtualization_cpu()",
        "nothing can be said in there; the vCPU cannot enter elsewhere, and its HKID not be freed",
        scenarios="cpu-offline",
        fails="exit INTERNAL_ERROR",
        then=Then.LASTS,
        warns="tdx.c",
        leaks="hkid",
        finding="F6",
        wrong={"logged": False, "warns": "tdx.c ?main.c"},
    ),
    Rule(
        "VP.FLUSH",
        "tdx_flush_vp_on_cpu()",
        f"{_BUG}; the vCPU is still associated, so the HKID cannot be freed",
        scenarios="another-cpu",
        fails="EIO",
        then=Then.DEAD,
        warns="tdx.c",
        leaks="hkid",
        finding="F6",
        wrong={"logged": False},
    ),
    Rule(
        "VP.FLUSH",
        "tdx_flush_vp_on_cpu()",
        f"{_BUG}; the vCPU is still associated, so the HKID cannot be freed",
        warns="tdx.c",
        leaks="hkid",
        finding="F6",
        wrong={"logged": False},
    ),
    # the HKID goes
    Rule(
        "MNG.VPFLUSHDONE",
        "tdx_mmu_release_hkid()",
        "the HKID cannot be freed, nor the page tables: KVM_BUG_ON in tdx_sept_free_private_spt()",
        "FLUSHVP_NOT_DONE",
        warns="?tdx.c",
        leaks="hkid",
        finding="F6",
        wrong={"logged": False},
    ),
    Rule(
        "PHYMEM.CACHE.WB",
        "smp_func_do_phymem_cache_wb()",
        "the write-back is resumed, up to 10,000 times",
        "INTERRUPTED_RESUMABLE",
        ever=False,
    ),
    Rule(
        "MNG.VPFLUSHDONE PHYMEM.CACHE.WB MNG.KEY.FREEID",
        "tdx_mmu_release_hkid()",
        f"{_BUG}; the HKID cannot be freed, and nothing that it protects",
        warns="tdx.c",
        leaks="hkid",
    ),
    # the control pages go
    Rule(
        "PHYMEM.PAGE.RECLAIM",
        "__tdx_reclaim_page()",
        f"{_BUG}; the page is lost, and so is the TDR",
        warns="tdx.c",
        leaks="pages",
    ),
)
"""The first rule that covers a cell explains it."""


def rule_of(cell: Cell) -> Rule | None:
    """Return the rule that explains a cell."""
    return next((rule for rule in RULES if rule.covers(cell)), None)


def positions(count: int) -> tuple[int, ...]:
    """Which calls of a leaf to disturb: all of six, of more the first three, a middle one, the last two."""
    if count <= 6:
        return tuple(range(1, count + 1))
    return (1, 2, 3, count // 2, count - 1, count)


def cells(scenario: str, calls: Mapping[str, int]) -> Iterator[Cell]:
    """All faults for the calls that a scenario makes."""
    for leaf, count in calls.items():
        for nth in positions(count):
            for code in LEAVES[leaf]:
                if code not in NOTHING_TO_DO:
                    for ever in (False, True):
                        yield Cell(scenario, leaf, nth, code, Code[code], ever)


def telling_cells(scenario: str, calls: Mapping[str, int]) -> Iterator[Cell]:
    """One fault for the first call of each leaf, with a code that is no reason to try again."""
    for leaf in calls:
        yield Cell(scenario, leaf, 1, "SYS_NOT_READY", Code["SYS_NOT_READY"], False)
