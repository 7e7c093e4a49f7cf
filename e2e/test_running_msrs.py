# SPDX-License-Identifier: GPL-2.0-or-later
"""MSRs that a guest reads and writes by TDVMCALL: KVM's own, those of its x2APIC, those of user space.

Sources: GHCI 1.5; ``tdx_get_msr``, ``tdx_set_msr`` and ``tdx_has_emulated_msr`` in arch/x86/kvm/vmx/tdx.c.
"""

from __future__ import annotations

import pytest

from fixtures.guests import output
from fixtures.guests.ghci import INVALID_OPERAND, RDMSR, SUCCESS, WRMSR
from fixtures.guests.launch import Launch
from fixtures.guests.mailbox import Mailbox, Registers
from fixtures.kvm import commands
from fixtures.kvm.abi import Cap, MpStateValue, MsrExitCause
from fixtures.kvm.exits import Exit, MsrExit

MC0_CTL, MCE_BANKS = 0x400, 32
APIC_BASE, APIC_ICR, APIC_TDCR, LSTAR = 0x1B, 0x830, 0x83E, 0xC0000082
ICR_TO_ITSELF, ICR_SMI, ICR_INIT, ICR_SIPI = 1 << 18, 2 << 8, 5 << 8, 6 << 8
X2APIC, X2APIC_ID = 0x800, 0x802
MISC_ENABLE = 0x1A0
MTRRS = (*range(0x200, 0x210), 0x250, 0x258, 0x259, *range(0x268, 0x270), 0x2FF)
"""Variable ranges, fixed ranges, and the default type."""
MCG_EXT_CTL, MCG_CTL_P, MCG_LMCE_P = 0x4D0, 1 << 8, 1 << 27
FEAT_CTL, FEAT_CTL_LOCKED, FEAT_CTL_LMCE = 0x3A, 1, 1 << 20
BSP_X2APIC_ENABLED = 0xFEE00000 | 1 << 8 | 1 << 10 | 1 << 11
DATA = 0x8877665544332211


def test_rdmsr_of_the_apic_base(mailbox: Mailbox) -> None:
    found = mailbox.call(Registers(r11=RDMSR, r12=APIC_BASE))
    assert (found.r10, found.r11) == (SUCCESS, BSP_X2APIC_ENABLED)


def test_msr_that_was_written_can_be_read(mailbox: Mailbox) -> None:
    written = mailbox.call(Registers(r11=WRMSR, r12=APIC_TDCR, r13=0xB))
    read = mailbox.call(Registers(r11=RDMSR, r12=APIC_TDCR))
    assert (written.r10, read.r10, read.r11) == (SUCCESS, SUCCESS, 0xB)


VIRTUAL_BY_CPU = (
    *(0x808, 0x80A, 0x80B, 0x83F),
    *range(0x810, 0x828),
)
"""TPR, PPR, EOI, SELF_IPI; ISR, TMR, IRR: in the virtual APIC page, which KVM cannot read."""

KVMS_OWN = (0x802, 0x803, 0x80D, 0x80F, 0x828, *range(0x830, 0x831), *range(0x832, 0x83A), 0x83E)
"""ID, version, LDR, SIVR, ESR, ICR, LVT (832H is the timer's), initial and current count, divide register."""

READ_ONLY = (0x802, 0x803, 0x80D, 0x839)


def test_each_register_of_each_machine_check_bank_is_there(launch: Launch) -> None:
    """A vCPU has 32 banks, of four registers each, until user space says otherwise."""
    (vcpu,) = launch("vmcall").vcpus
    registers = range(MC0_CTL, MC0_CTL + 4 * MCE_BANKS)
    found = vcpu.worker.call(commands.get_msrs(vcpu.fd, *registers))
    assert list(found) == list(registers)
    assert vcpu.worker.call(commands.set_msrs(vcpu.fd, found)) == len(found)


def test_each_mtrr_is_there(mailbox: Mailbox) -> None:
    """For the guest, and for user space, which carries them from one vCPU to another."""
    found = mailbox.vcpu.worker.call(commands.get_msrs(mailbox.vcpu.fd, *MTRRS))
    assert list(found) == list(MTRRS)
    assert mailbox.vcpu.worker.call(commands.set_msrs(mailbox.vcpu.fd, found)) == len(found)
    refused = {
        hex(msr): status.r10
        for msr, value in found.items()
        for status in (
            mailbox.call(Registers(r11=RDMSR, r12=msr)),
            mailbox.call(Registers(r11=WRMSR, r12=msr, r13=value)),
        )
        if status.r10 != SUCCESS
    }
    assert not refused


@pytest.mark.parametrize("lmce", [False, True], ids=["without", "with"])
def test_guest_learns_from_feature_control_that_it_may_enable_lmce(lmce: bool, launch: Launch) -> None:
    """Linux looks there first (``lmce_supported`` in arch/x86/kernel/cpu/mce/intel.c)."""
    built = launch("vmcall")
    capabilities = MCG_CTL_P | (MCG_LMCE_P if lmce else 0) | MCE_BANKS
    built.worker.call(commands.setup_mce(built.vcpus[0].fd, capabilities))
    guest = Mailbox(built)
    told = guest.call(Registers(r11=RDMSR, r12=FEAT_CTL))
    assert (told.r10, told.r11) == (SUCCESS, FEAT_CTL_LOCKED | (FEAT_CTL_LMCE if lmce else 0))
    enabled = guest.call(Registers(r11=WRMSR, r12=MCG_EXT_CTL, r13=1))
    assert enabled.r10 == (SUCCESS if lmce else INVALID_OPERAND)
    assert guest.call(Registers(r11=RDMSR, r12=FEAT_CTL)).r11 == told.r11


def test_x2apic_registers_that_the_cpu_virtualizes_are_not_kvms(mailbox: Mailbox) -> None:
    """The others are (``tdx_has_emulated_msr``); what the x2APIC itself does not have is no register."""
    registers = range(X2APIC, X2APIC + 0x100)
    read = {msr: mailbox.call(Registers(r11=RDMSR, r12=msr)).r10 for msr in registers}
    assert not set(VIRTUAL_BY_CPU) & set(KVMS_OWN)
    assert sorted(msr for msr, status in read.items() if status == SUCCESS) == sorted(KVMS_OWN)
    assert {status for msr, status in read.items() if msr not in KVMS_OWN} == {INVALID_OPERAND}


def test_x2apic_registers_that_the_cpu_virtualizes_cannot_be_written_through_kvm(mailbox: Mailbox) -> None:
    written = {msr: mailbox.call(Registers(r11=WRMSR, r12=msr)).r10 for msr in VIRTUAL_BY_CPU}
    assert written == dict.fromkeys(VIRTUAL_BY_CPU, INVALID_OPERAND)
    values = {
        msr: mailbox.call(Registers(r11=RDMSR, r12=msr)).r11 for msr in KVMS_OWN if msr not in READ_ONLY
    }
    own = {msr: mailbox.call(Registers(r11=WRMSR, r12=msr, r13=value)).r10 for msr, value in values.items()}
    assert own == dict.fromkeys(values, SUCCESS)


def test_x2apic_id_is_the_vcpus(mailbox: Mailbox) -> None:
    found = mailbox.call(Registers(r11=RDMSR, r12=X2APIC_ID))
    assert (found.r10, found.r11) == (SUCCESS, mailbox.vcpu.id)


def test_smi_that_a_guest_sends_itself_is_dropped(mailbox: Mailbox) -> None:
    sent = mailbox.call(Registers(r11=WRMSR, r12=APIC_ICR, r13=ICR_TO_ITSELF | ICR_SMI))
    assert sent.r10 == SUCCESS
    assert mailbox.call(Registers(r11=RDMSR, r12=APIC_BASE)).r11 == BSP_X2APIC_ENABLED


def test_init_and_sipi_that_a_guest_sends_itself_are_dropped(mailbox: Mailbox) -> None:
    """The TDX module starts vCPUs, and a reset would be KVM's (``vt_apic_init_signal_blocked``)."""
    for what in (ICR_INIT, ICR_SIPI):
        sent = mailbox.call(Registers(r11=WRMSR, r12=APIC_ICR, r13=ICR_TO_ITSELF | what))
        assert sent.r10 == SUCCESS
    assert mailbox.call(Registers(r11=RDMSR, r12=APIC_BASE)).r11 == BSP_X2APIC_ENABLED
    assert mailbox.vcpu.mp_state() == MpStateValue.RUNNABLE


def test_init_that_a_guest_sends_another_vcpu_is_dropped(launch: Launch) -> None:
    built = launch("vmcall", vcpus=2)
    mailbox, other = Mailbox(built), built.vcpus[1]
    sent = mailbox.call(Registers(r11=WRMSR, r12=APIC_ICR, r13=other.id << 32 | ICR_INIT))
    assert sent.r10 == SUCCESS
    assert other.mp_state() == MpStateValue.RUNNABLE
    assert output.number_of(other.run()) == 0
    assert other.mp_state() == MpStateValue.RUNNABLE


# left to user space


def msr_exit(found: Exit) -> MsrExit:
    assert isinstance(found, MsrExit)
    return found


@pytest.fixture
def filtered(launch: Launch) -> Mailbox:
    """A guest that is denied an MSR by a filter, so that user space has to answer for it."""
    built = launch("vmcall")
    built.td.enable_cap(Cap.X86_USER_SPACE_MSR, MsrExitCause.FILTER)
    built.td.deny_msrs(MISC_ENABLE)
    return Mailbox(built)


def test_msr_that_the_filter_denies_is_read_from_user_space(filtered: Mailbox) -> None:
    found = msr_exit(filtered.begin(Registers(r11=RDMSR, r12=MISC_ENABLE)))
    assert (found.write, found.cause, found.index) == (False, MsrExitCause.FILTER, MISC_ENABLE)
    filtered.vcpu.answer(found, data=DATA.to_bytes(8, "little"))
    result = filtered.result()
    assert (result.r10, hex(result.r11)) == (SUCCESS, hex(DATA))


def test_msr_that_the_filter_denies_is_written_to_user_space(filtered: Mailbox) -> None:
    found = msr_exit(filtered.begin(Registers(r11=WRMSR, r12=MISC_ENABLE, r13=DATA)))
    assert (found.write, found.cause, found.index) == (True, MsrExitCause.FILTER, MISC_ENABLE)
    assert hex(found.data) == hex(DATA)
    filtered.vcpu.answer(found)
    assert filtered.result().r10 == SUCCESS


def test_guest_gets_an_error_for_the_msr_that_user_space_refuses(filtered: Mailbox) -> None:
    for leaf in (RDMSR, WRMSR):
        found = msr_exit(filtered.begin(Registers(r11=leaf, r12=MISC_ENABLE, r13=1)))
        assert found.error == 0, "it is an error only if user space says so"
        filtered.vcpu.answer(found, ret=1)
        assert filtered.result().r10 == INVALID_OPERAND


def test_msr_beside_the_one_that_the_filter_denies_is_kvms(filtered: Mailbox) -> None:
    assert filtered.call(Registers(r11=RDMSR, r12=APIC_BASE)).r11 == BSP_X2APIC_ENABLED


def test_filter_does_not_hold_for_x2apic_registers(launch: Launch) -> None:
    """As the uAPI says of KVM_X86_SET_MSR_FILTER."""
    built = launch("vmcall")
    built.td.enable_cap(Cap.X86_USER_SPACE_MSR, MsrExitCause.FILTER)
    built.td.deny_msrs(X2APIC, 0x100)
    mailbox = Mailbox(built)
    found = mailbox.call(Registers(r11=RDMSR, r12=X2APIC_ID))
    assert (found.r10, found.r11) == (SUCCESS, mailbox.vcpu.id)


def test_denied_msr_is_an_error_while_user_space_does_not_want_it(launch: Launch) -> None:
    built = launch("vmcall")
    mailbox = Mailbox(built)
    assert mailbox.call(Registers(r11=RDMSR, r12=MISC_ENABLE)).r10 == SUCCESS
    built.td.deny_msrs(MISC_ENABLE)
    for leaf in (RDMSR, WRMSR):
        assert mailbox.call(Registers(r11=leaf, r12=MISC_ENABLE)).r10 == INVALID_OPERAND


def test_msr_that_kvm_cannot_emulate_is_left_to_user_space_that_wants_it(launch: Launch) -> None:
    built = launch("vmcall")
    built.td.enable_cap(Cap.X86_USER_SPACE_MSR, MsrExitCause.INVALID | MsrExitCause.UNKNOWN)
    mailbox = Mailbox(built)
    for msr in (LSTAR, 0x40000000, VIRTUAL_BY_CPU[0]):
        found = msr_exit(mailbox.begin(Registers(r11=RDMSR, r12=msr)))
        assert (found.write, found.index) == (False, msr)
        mailbox.vcpu.answer(found, data=DATA.to_bytes(8, "little"))
        result = mailbox.result()
        assert (result.r10, hex(result.r11)) == (SUCCESS, hex(DATA))
