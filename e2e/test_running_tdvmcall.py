# SPDX-License-Identifier: GPL-2.0-or-later
"""TDVMCALLs, answered by KVM itself or by user space (GHCI 1.5)."""

from __future__ import annotations

import errno
from dataclasses import replace

import pytest

from fixtures.contracts.answers import refused
from fixtures.contracts.promises import Contract, Refusal
from fixtures.guests.execute import Executor, tdcall
from fixtures.guests.ghci import (
    ALIGN_ERROR,
    CPUID,
    INVALID_OPERAND,
    IO,
    MMIO,
    RDMSR,
    RETRY,
    SUBFUNC_UNSUPPORTED,
    SUCCESS,
    WRMSR,
)
from fixtures.guests.launch import Launch
from fixtures.guests.mailbox import Mailbox, Registers
from fixtures.guests.output import INTERRUPT_VECTOR, UnexpectedExit
from fixtures.guests.timer import APIC_ENABLED, X2APIC_SPIV
from fixtures.kvm import abi
from fixtures.kvm.abi import PAGE_SIZE, Cap, TdVmCall
from fixtures.kvm.cpuid import CpuidEntry
from fixtures.kvm.defaults import vcpu_cpuid
from fixtures.kvm.exits import (
    Exit,
    FatalErrorExit,
    IoExit,
    MapGpaExit,
    MmioExit,
    TdVmCallExit,
)
from fixtures.kvm.params import InitVmParams

OUT, IN = 1, 0
PORT = 0x510
SHARED = InitVmParams().shared_bit
AREA = 0x40000000
TWO_MIB = 1 << 21
KVM_HC_UNKNOWN = 77
SECRET = 0x5EC2E7
KVM_ENOSYS = 1000
APIC_BASE, LSTAR = 0x1B, 0xC0000082


# which registers pass


NEVER_PASS = {0: "RAX", 1: "RCX", 4: "RSP", 5: "RBP", **{bit: f"bit {bit}" for bit in range(32, 64)}}
"""Bits of the mask in RCX that TDG.VP.VMCALL refuses (``tdg_vp_vmcall.c`` of the published TDX module).

RBP is among them only in a TD whose host has set NO_RBP_MOD, as KVM does: it would lose its own RBP.
"""
PASS = 1 << 10 | 1 << 11
TDVMCALLINFO_NOTIFY = 1 << 1
"""GHCI 1.5: GetTdVmCallInfo with leaf 1, R11: SetupEventNotifyInterrupt."""
OPERAND_INVALID_RCX = 0xC0000100 << 32 | 1


def test_mask_with_a_register_that_cannot_pass_is_refused_by_the_module(launch: Launch) -> None:
    guest = Executor(launch("execute"))
    masks = [PASS | 1 << bit for bit in range(64)]
    found = guest.run([tdcall(0, rcx=mask, r11=0x12345) for mask in masks])
    assert {bit: hex(outcome["rax"]) for bit, outcome in enumerate(found)} == {
        bit: hex(OPERAND_INVALID_RCX if bit in NEVER_PASS else 0) for bit in range(64)
    }
    # None of the refused ones came to KVM, which would have answered.
    assert {bit: hex(outcome["r10"]) for bit, outcome in enumerate(found)} == {
        bit: hex(0 if bit in NEVER_PASS else SUBFUNC_UNSUPPORTED) for bit in range(64)
    }


# answered by KVM alone


REFUSED: dict[str, tuple[Registers, int]] = {
    "unknown-leaf": (Registers(r11=0x12345), SUBFUNC_UNSUPPORTED),
    "io-of-3-bytes": (Registers(r11=IO, r12=3, r13=OUT, r14=PORT), INVALID_OPERAND),
    "io-of-8-bytes": (Registers(r11=IO, r12=8, r13=OUT, r14=PORT), INVALID_OPERAND),
    "io-in-no-direction": (Registers(r11=IO, r12=1, r13=2, r14=PORT), INVALID_OPERAND),
    "mmio-of-3-bytes": (Registers(r11=MMIO, r12=3, r13=OUT, r14=SHARED | AREA), INVALID_OPERAND),
    "mmio-in-no-direction": (Registers(r11=MMIO, r12=4, r13=2, r14=SHARED | AREA), INVALID_OPERAND),
    "mmio-in-private-memory": (Registers(r11=MMIO, r12=4, r13=OUT, r14=AREA), INVALID_OPERAND),
    "rdmsr-of-a-register-that-is-the-guests": (Registers(r11=RDMSR, r12=LSTAR), INVALID_OPERAND),
    "rdmsr-of-an-unknown-register": (Registers(r11=RDMSR, r12=0x40000000), INVALID_OPERAND),
    "wrmsr-of-a-register-to-be-read-only": (Registers(r11=WRMSR, r12=APIC_BASE), INVALID_OPERAND),
    "map-gpa-not-at-a-page": (Registers(r11=TdVmCall.MAP_GPA, r12=AREA + 8, r13=PAGE_SIZE), ALIGN_ERROR),
    "map-gpa-of-half-a-page": (Registers(r11=TdVmCall.MAP_GPA, r12=AREA, r13=PAGE_SIZE // 2), ALIGN_ERROR),
    "map-gpa-of-nothing": (Registers(r11=TdVmCall.MAP_GPA, r12=AREA), INVALID_OPERAND),
    "map-gpa-across-the-shared-bit": (
        Registers(r11=TdVmCall.MAP_GPA, r12=SHARED - PAGE_SIZE, r13=2 * PAGE_SIZE),
        INVALID_OPERAND,
    ),
    "map-gpa-beyond-the-width": (
        Registers(r11=TdVmCall.MAP_GPA, r12=2 * SHARED | AREA, r13=PAGE_SIZE),
        INVALID_OPERAND,
    ),
    "map-gpa-up-to-beyond-the-width": (
        Registers(r11=TdVmCall.MAP_GPA, r12=2 * SHARED - PAGE_SIZE, r13=2 * PAGE_SIZE),
        INVALID_OPERAND,
    ),
    "map-gpa-that-overflows": (Registers(r11=TdVmCall.MAP_GPA, r12=AREA, r13=-PAGE_SIZE), INVALID_OPERAND),
    "call-info-of-an-unknown-leaf": (Registers(r11=TdVmCall.GET_TD_VM_CALL_INFO, r12=2), INVALID_OPERAND),
    "quote-into-private-memory": (
        Registers(r11=TdVmCall.GET_QUOTE, r12=AREA, r13=PAGE_SIZE),
        INVALID_OPERAND,
    ),
    "notification-by-an-exceptions-vector": (
        Registers(r11=TdVmCall.SETUP_EVENT_NOTIFY_INTERRUPT, r12=31),
        INVALID_OPERAND,
    ),
    "notification-by-vector-256": (
        Registers(r11=TdVmCall.SETUP_EVENT_NOTIFY_INTERRUPT, r12=256),
        INVALID_OPERAND,
    ),
    "notification-by-a-vector-of-nine-bits": (
        Registers(r11=TdVmCall.SETUP_EVENT_NOTIFY_INTERRUPT, r12=1 << 8 | 0x51),
        INVALID_OPERAND,
    ),
    "notification-by-a-vector-of-33-bits": (
        Registers(r11=TdVmCall.SETUP_EVENT_NOTIFY_INTERRUPT, r12=1 << 32 | 0x51),
        INVALID_OPERAND,
    ),
    "unknown-hypercall-of-kvm": (Registers(r10=KVM_HC_UNKNOWN), (1 << 64) - KVM_ENOSYS),
}


def test_refused_with_the_status_that_the_ghci_names(mailbox: Mailbox) -> None:
    found = {}
    for name, (registers, _) in REFUSED.items():
        found[name] = mailbox.call(registers).r10
        assert mailbox.rax == 0
    assert found == {name: status for name, (_, status) in REFUSED.items()}


def test_map_gpa_that_is_refused_tells_the_address(mailbox: Mailbox) -> None:
    """R11 is the first address that was not mapped (GHCI 1.5, MapGPA)."""
    wrong = {name: registers for name, (registers, _) in REFUSED.items() if name.startswith("map-gpa")}
    assert len(wrong) == 7
    told = {name: mailbox.call(registers).r11 for name, registers in wrong.items()}
    assert told == {name: registers.r12 for name, registers in wrong.items()}


def test_cpuid_of_kvms_own_leaf(mailbox: Mailbox) -> None:
    found = mailbox.call(Registers(r11=CPUID, r12=0x40000000))
    signature = b"".join(value.to_bytes(4, "little") for value in (found.r13, found.r14, found.r15))
    assert (found.r10, signature) == (SUCCESS, b"KVMKVMKVM\0\0\0")


def test_cpuid_of_each_sub_leaf_is_what_user_space_gave(launch: Launch) -> None:
    leaf, indexed = 0x40000100, abi.KVM_CPUID_FLAG_SIGNIFCANT_INDEX
    given = [CpuidEntry(leaf, index, indexed, 0x10 + index, 0x20, 0x30, 0x40) for index in range(3)]
    built = launch("vmcall")
    built.vcpus[0].set_cpuid2([*vcpu_cpuid(built.worker), *given])
    mailbox = Mailbox(built)
    found = [mailbox.call(Registers(r11=CPUID, r12=leaf, r13=index)) for index in range(4)]
    assert [(one.r10, one.r12, one.r13, one.r14, one.r15) for one in found] == [
        *((SUCCESS, 0x10 + index, 0x20, 0x30, 0x40) for index in range(3)),
        (SUCCESS, 0, 0, 0, 0),
    ]


def test_cpuid_beyond_the_last_leaf_is_that_of_the_highest_basic_leaf(launch: Launch) -> None:
    """So it is on Intel's CPUs, and in KVM for a vCPU with that vendor."""
    vendor, highest, beyond = b"GenuineIntel", 0x16, 0x40000200
    ebx, edx, ecx = (int.from_bytes(vendor[at : at + 4], "little") for at in (0, 4, 8))
    given = [CpuidEntry(0, 0, 0, highest, ebx, ecx, edx), CpuidEntry(highest, 0, 0, 0x10, 0x20, 0x30, 0x40)]
    built = launch("vmcall")
    others = [entry for entry in vcpu_cpuid(built.worker) if entry.function not in (0, highest)]
    built.vcpus[0].set_cpuid2([*given, *others])
    found = Mailbox(built).call(Registers(r11=CPUID, r12=beyond))
    assert (found.r10, found.r12, found.r13, found.r14, found.r15) == (SUCCESS, 0x10, 0x20, 0x30, 0x40)


def test_call_info_says_that_the_base_calls_are_there(mailbox: Mailbox) -> None:
    asked = Registers(r11=TdVmCall.GET_TD_VM_CALL_INFO, r12=0, r13=1, r14=2)
    found = mailbox.call(asked)
    assert (found.r10, found.r11, found.r12, found.r13, found.r14) == (SUCCESS, 0, 0, 0, 0)


def test_registers_that_no_answer_is_in_come_back_as_they_were(mailbox: Mailbox) -> None:
    asked = Registers(r11=0x12345, r12=12, r13=13, r14=14, r15=15, rbx=3, rdi=7, rsi=6, r8=8, r9=9, rdx=2)
    assert mailbox.call(asked) == replace(asked, r10=SUBFUNC_UNSUPPORTED)


# ports and MMIO


DATA = 0x8877665544332211


def low(data: int, size: int) -> bytes:
    """The low bytes of a register."""
    return data.to_bytes(8, "little")[:size]


def test_write_to_a_port_reaches_user_space(mailbox: Mailbox) -> None:
    for size in (1, 2, 4):
        found = mailbox.begin(Registers(r11=IO, r12=size, r13=OUT, r14=PORT, r15=DATA))
        assert isinstance(found, IoExit)
        assert (found.port, found.write, found.size, found.data) == (PORT, True, size, low(DATA, size))
        assert mailbox.result().r10 == SUCCESS


def test_read_of_a_port_gets_what_user_space_gives(mailbox: Mailbox) -> None:
    for size in (1, 2, 4):
        found = mailbox.begin(Registers(r11=IO, r12=size, r13=IN, r14=PORT))
        assert isinstance(found, IoExit)
        assert (found.port, found.write, found.size) == (PORT, False, size)
        mailbox.vcpu.answer(found, data=low(DATA, size))
        result = mailbox.result()
        assert (result.r10, result.r11) == (SUCCESS, int.from_bytes(low(DATA, size), "little"))


def test_write_to_mmio_reaches_user_space_without_the_shared_bit(mailbox: Mailbox) -> None:
    for size in (1, 2, 4, 8):
        found = mailbox.begin(Registers(r11=MMIO, r12=size, r13=OUT, r14=SHARED | AREA, r15=DATA))
        assert isinstance(found, MmioExit)
        assert (found.gpa, found.write, found.data) == (AREA, True, low(DATA, size))
        assert mailbox.result().r10 == SUCCESS


def test_read_of_mmio_gets_what_user_space_gives(mailbox: Mailbox) -> None:
    for size in (1, 2, 4, 8):
        found = mailbox.begin(Registers(r11=MMIO, r12=size, r13=IN, r14=SHARED | AREA))
        assert isinstance(found, MmioExit)
        assert (found.gpa, found.write, len(found.data)) == (AREA, False, size)
        mailbox.vcpu.answer(found, data=low(DATA, size))
        result = mailbox.result()
        assert (result.r10, result.r11) == (SUCCESS, int.from_bytes(low(DATA, size), "little"))


# MapGPA


def map_gpa(mailbox: Mailbox, gpa: int, size: int) -> MapGpaExit:
    return map_gpa_exit(mailbox.begin(Registers(r11=TdVmCall.MAP_GPA, r12=gpa, r13=size)))


def map_gpa_exit(found: Exit) -> MapGpaExit:
    assert isinstance(found, MapGpaExit)
    return found


def test_map_gpa_asks_user_space(mailbox: Mailbox) -> None:
    for bit, private in ((SHARED, False), (0, True)):
        found = map_gpa(mailbox, bit | AREA, 3 * PAGE_SIZE)
        assert (found.gpa, found.size, found.private) == (AREA, 3 * PAGE_SIZE, private)
        assert mailbox.result().r10 == SUCCESS


def test_map_gpa_of_much_is_asked_in_parts_of_2_mib(mailbox: Mailbox) -> None:
    parts = [map_gpa(mailbox, AREA, 2 * TWO_MIB + PAGE_SIZE)]
    parts += [map_gpa_exit(mailbox.vcpu.run()) for _ in range(2)]
    assert [(part.gpa - AREA, part.size) for part in parts] == [
        (0, TWO_MIB),
        (TWO_MIB, TWO_MIB),
        (2 * TWO_MIB, PAGE_SIZE),
    ]
    assert mailbox.result().r10 == SUCCESS


@pytest.mark.parametrize("size", [4 * PAGE_SIZE, TWO_MIB + PAGE_SIZE, 2 * TWO_MIB + 4 * PAGE_SIZE], ids=hex)
def test_parts_of_a_map_gpa_that_begins_anywhere_are_all_that_was_asked_for(
    size: int, mailbox: Mailbox
) -> None:
    end = asked = AREA - 2 * PAGE_SIZE
    found: Exit = map_gpa(mailbox, asked, size)
    while isinstance(found, MapGpaExit):
        assert found.gpa == end
        end += found.size
        found = mailbox.vcpu.run()
    assert mailbox.result_after(found).r10 == SUCCESS
    assert hex(end) == hex(asked + size)


@pytest.mark.parametrize("last", [SHARED - PAGE_SIZE, 2 * SHARED - PAGE_SIZE], ids=["private", "shared"])
def test_map_gpa_of_the_last_page_asks_user_space(last: int, mailbox: Mailbox) -> None:
    found = map_gpa(mailbox, last, PAGE_SIZE)
    assert (found.gpa, found.size, found.private) == (SHARED - PAGE_SIZE, PAGE_SIZE, last < SHARED)
    assert mailbox.result().r10 == SUCCESS


@pytest.mark.parametrize("gpa", [AREA, 1 << 40 | AREA], ids=hex)
def test_map_gpa_as_a_hypercall_of_kvm_is_asked_with_the_guests_arguments(gpa: int, mailbox: Mailbox) -> None:
    """R10 is the number, R11 to R14 are the arguments (``tdx_emulate_vmcall``)."""
    private = abi.KVM_MAP_GPA_RANGE_ENCRYPTED
    found = map_gpa_exit(
        mailbox.begin(Registers(r10=abi.KVM_HC_MAP_GPA_RANGE, r11=gpa, r12=3, r13=private, r14=0x14))
    )
    assert (found.gpa, found.size, found.private) == (gpa, 3 * PAGE_SIZE, True)
    assert found.args[:3] == (gpa, 3, private)
    mailbox.vcpu.answer(found, ret=7)
    assert mailbox.result().r10 == 7


def test_map_gpa_that_user_space_refuses_tells_the_guest_how_far_it_came(mailbox: Mailbox) -> None:
    for answer, status in ((errno.EAGAIN, RETRY), (errno.EINVAL, INVALID_OPERAND)):
        map_gpa(mailbox, SHARED | AREA, 2 * TWO_MIB)
        second = map_gpa_exit(mailbox.vcpu.run())
        mailbox.vcpu.answer(second, ret=answer)
        result = mailbox.result()
        assert (result.r10, result.r11) == (status, SHARED | AREA + TWO_MIB)


def test_map_gpa_that_is_done_is_done_though_an_interrupt_waits(mailbox: Mailbox) -> None:
    """Which is a reason to let the guest ask again for what is left."""
    assert mailbox.call(Registers(r11=WRMSR, r12=X2APIC_SPIV, r13=APIC_ENABLED)).r10 == SUCCESS
    found = map_gpa(mailbox, SHARED | AREA, PAGE_SIZE)
    assert mailbox.built.td.signal_msi(INTERRUPT_VECTOR) == 1
    mailbox.vcpu.answer(found, ret=0)
    assert mailbox.result().r10 == SUCCESS


def test_map_gpa_of_much_is_to_be_asked_again_when_an_interrupt_waits(mailbox: Mailbox) -> None:
    assert mailbox.call(Registers(r11=WRMSR, r12=X2APIC_SPIV, r13=APIC_ENABLED)).r10 == SUCCESS
    found = map_gpa(mailbox, AREA, 2 * TWO_MIB)
    assert mailbox.built.td.signal_msi(INTERRUPT_VECTOR) == 1
    mailbox.vcpu.answer(found, ret=0)
    told = mailbox.result()
    assert (told.r10, told.r11) == (RETRY, AREA + TWO_MIB)


def test_map_gpa_with_another_answer_ends_kvm_run(mailbox: Mailbox, contract: Contract) -> None:
    found = map_gpa(mailbox, AREA, PAGE_SIZE)
    mailbox.vcpu.answer(found, ret=errno.ENOMEM)
    with refused(contract, Refusal.RUN_MAP_GPA_ANSWER):
        mailbox.vcpu.run()


def test_map_gpa_is_unsupported_while_user_space_does_not_want_it(launch: Launch) -> None:
    built = launch("vmcall")
    built.td.enable_cap(Cap.EXIT_HYPERCALL, 0)
    found = Mailbox(built).call(Registers(r11=TdVmCall.MAP_GPA, r12=AREA, r13=PAGE_SIZE))
    assert found.r10 == SUBFUNC_UNSUPPORTED


# left to user space


HANDED_ON: dict[str, tuple[Registers, tuple[int, ...]]] = {
    "call-info": (Registers(r11=TdVmCall.GET_TD_VM_CALL_INFO, r12=1), (1, 0, 0, 0, 0)),
    "quote": (Registers(r11=TdVmCall.GET_QUOTE, r12=SHARED | AREA, r13=PAGE_SIZE), (AREA, PAGE_SIZE)),
    "notification": (Registers(r11=TdVmCall.SETUP_EVENT_NOTIFY_INTERRUPT, r12=0x51), (0x51,)),
}


@pytest.mark.parametrize("name", HANDED_ON)
def test_handed_to_user_space_whose_answer_the_guest_gets(name: str, mailbox: Mailbox) -> None:
    registers, data = HANDED_ON[name]
    found = mailbox.begin(registers)
    assert isinstance(found, TdVmCallExit)
    assert (found.number, found.data[: len(data)]) == (registers.r11, data)
    mailbox.vcpu.answer(found, ret=INVALID_OPERAND)
    assert mailbox.result().r10 == INVALID_OPERAND


def test_capabilities_tell_that_user_space_answers_what_is_handed_to_it(mailbox: Mailbox) -> None:
    """It tells the guest of these, who does not ask for what nobody answers."""
    capabilities = mailbox.built.td.capabilities()
    assert isinstance(mailbox.begin(HANDED_ON["notification"][0]), TdVmCallExit)
    assert capabilities.by_user & TDVMCALLINFO_NOTIFY
    assert not capabilities.by_user & capabilities.by_kernel


def test_unsupported_when_user_space_says_nothing(mailbox: Mailbox) -> None:
    for name in ("quote", "notification"):
        assert isinstance(mailbox.begin(HANDED_ON[name][0]), TdVmCallExit)
        assert mailbox.result().r10 == SUBFUNC_UNSUPPORTED


def test_call_info_is_what_user_space_says(mailbox: Mailbox) -> None:
    found = mailbox.begin(HANDED_ON["call-info"][0])
    told = (0x11, 0x12, 0x13, 0x14)
    # After the leaf, which comes first in the data.
    answer = b"".join(value.to_bytes(8, "little") for value in (1, *told))
    mailbox.vcpu.answer(found, ret=SUCCESS, data=answer)
    result = mailbox.result()
    assert (result.r10, result.r11, result.r12, result.r13, result.r14) == (SUCCESS, *told)


def test_call_info_is_zero_where_user_space_says_nothing(mailbox: Mailbox) -> None:
    """Not what the exit before has left in struct kvm_run, here the answer to a MapGPA."""
    before = mailbox.begin(Registers(r11=TdVmCall.MAP_GPA, r12=AREA, r13=PAGE_SIZE))
    mailbox.vcpu.answer(before, ret=errno.EINVAL)
    assert mailbox.result().r10 == INVALID_OPERAND
    assert isinstance(
        mailbox.begin(Registers(r11=TdVmCall.GET_TD_VM_CALL_INFO, r12=1, r13=2, r14=3)), TdVmCallExit
    )
    result = mailbox.result()
    assert (result.r10, result.r11, result.r12, result.r13, result.r14) == (SUCCESS, 0, 0, 0, 0)


def test_fatal_error_comes_with_all_registers(mailbox: Mailbox) -> None:
    leaf, code = TdVmCall.REPORT_FATAL_ERROR, 1 << 63 | 1
    others = Registers(r14=0x14, r15=0x15, rbx=3, rdi=7, rsi=6, r8=8, r9=9, rdx=2)
    found = mailbox.begin(replace(others, r11=leaf, r12=code, r13=AREA))
    assert isinstance(found, FatalErrorExit)
    assert (found.kind, found.code, found.gpa) == (abi.KVM_SYSTEM_EVENT_TDX_FATAL, code, AREA)
    # RDX and RBX; 0 for RSP and RBP, which cannot pass; RSI and RDI; R8 to R15.
    assert found.data[2:] == (2, 3, 0, 0, 6, 7, 8, 9, 0, leaf, code, AREA, 0x14, 0x15)


def test_code_of_a_fatal_error_is_what_the_guest_gave(launch: Launch) -> None:
    """KVM judges neither its bits nor, without bit 63, the address; that is for user space."""
    for code in (0, 1, 0xDEAD, 0xDEAD0000, 0xFFFF << 32, 1 << 63, (1 << 64) - 1):
        mailbox = Mailbox(launch("vmcall"))
        found = mailbox.begin(Registers(r11=TdVmCall.REPORT_FATAL_ERROR, r12=code, r13=AREA))
        assert isinstance(found, FatalErrorExit)
        assert (hex(found.code), found.gpa) == (hex(code), AREA)


def test_fatal_error_without_registers_for_a_text_has_none(launch: Launch) -> None:
    """What the guest keeps to itself does not come to user space."""
    mask = PASS | 1 << 12 | 1 << 13
    secrets = dict.fromkeys(("rdx", "rbx", "rdi", "rsi", "r8", "r9", "r14", "r15"), SECRET)
    guest = Executor(launch("execute"))
    with pytest.raises(UnexpectedExit) as caught:
        guest.run([tdcall(0, rcx=mask, r11=TdVmCall.REPORT_FATAL_ERROR, r13=AREA, **secrets)])
    found = caught.value.found
    assert isinstance(found, FatalErrorExit)
    assert (found.data[1], found.code, found.gpa, found.message) == (mask, 0, AREA, b"")
    assert set(found.data) == {found.data[0], mask, 0, TdVmCall.REPORT_FATAL_ERROR, AREA}
