# SPDX-License-Identifier: GPL-2.0-or-later
"""The nested host as QEMU runs it: shape, CPU, kernel command line, devices.  Pure: no file is read.

The suite, ``run.sh`` in a run's artefacts and ``images shell`` boot this machine; they differ in what it is
connected to.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path

BINARY = "qemu-system-x86_64"

FLAVOUR = "tdx_e2e.flavour"
PATCH_HASH = "tdx_e2e.patches"
"""Words of the kernel command line that identify the kernel of a host that is already up."""

SHELL = "tdx_e2e.shell"
"""Word of the kernel command line: a root shell on the console, whose end powers the host off."""

# Model 173 is Granite Rapids: TDX-capable, and without the errata of Sapphire Rapids that make the kernel
# take its MOVDIR64B paths (arch/x86/kernel/cpu/intel.c); kvm_intel loads on Intel's vendor and family only.
# The software TDX module starts on an Intel CPU with SVM.  CPUID reports VMX, MOVDIR64B and self-snoop
# although TCG lacks them: Linux requires the bits, the module supplies the rest.
# 48 physical bits because a TD's page tables address shared memory with bit 47.
_CPU = (
    "max,vendor=GenuineIntel,family=6,model=173,stepping=1,-la57,phys-bits=48,"
    "x-force-features=on,+vmx,+movdir64b,+ss,+arch-capabilities"
)


@dataclass(frozen=True)
class Shape:
    """CPUs, memory and TDX limits of a host.

    :param cpus: logical CPUs, all present at boot.
    :param sockets: physical packages; divides ``cpus``.
    :param memory_mib: memory in MiB.
    :param keyids: TDX KeyIDs including the global one; the pool for TDs is one less.
    :param max_vcpus: vCPUs that the TDX module allows a TD (``max_vcpus_per_td``).
    """

    cpus: int = 2
    sockets: int = 1
    memory_mib: int = 1536
    keyids: int = 16
    max_vcpus: int = 576


@dataclass(frozen=True)
class BootImages:
    """The files that a nested host boots, and where its kernel comes from.

    :param kernel: bzImage.
    :param modules: raw ext4 image of the kernel's modules, None for a kernel without modules.
    :param rootfs: raw ext4 image of the root file system.
    :param qemu: raw ext4 image of the QEMU that moves TDs, None for a host without it.
    :param guests: raw ext4 image of the Linux for TDs, None for a host without it.
    :param flavour: name of the flavour; ``<flavour>-tree`` if the kernel was built from a user's tree, which
        may hold more than the flavour.
    :param patch_hash: 12 hexadecimal digits over hooks, softseam and the flavour's patches.
    """

    kernel: Path
    modules: Path | None
    rootfs: Path
    flavour: str = "unknown"
    patch_hash: str = ""
    qemu: Path | None = None
    guests: Path | None = None

    @property
    def disks(self) -> dict[str, Path]:
        """The host's disks by name, in order: /dev/vda is the first."""
        disks = {
            "rootfs": self.rootfs,
            "modules": self.modules,
            "qemu": self.qemu,
            "guests": self.guests,
        }
        return {name: image for name, image in disks.items() if image is not None}


@dataclass(frozen=True)
class Machine:
    """A nested host.

    :param binary: QEMU.
    :param extra_args: appended to QEMU's arguments.
    :param extra_cmdline: appended to the kernel command line.
    """

    images: BootImages
    shape: Shape = Shape()
    binary: str = BINARY
    extra_args: tuple[str, ...] = ()
    extra_cmdline: str = ""


def kernel_command_line(machine: Machine) -> str:
    """The nested host's kernel command line.

    ``panic=-1`` with QEMU's ``-no-reboot`` makes a panic an exit.  ``oops=panic`` is not set: an oops has to
    stay visible as a report of the kernel, on a host that still answers requests.  ``tsc=reliable`` and
    ``no_timer_check`` keep the kernel of a busy machine from declaring the TSC unstable (clocksource
    watchdog) or the IO-APIC broken (``check_timer`` of arch/x86/kernel/apic/io_apic.c, which panics).

    After an in-place restore the guest's clocks do not agree: QEMU never lets the TSC go back
    (``cpu_get_ticks``, system/cpu-timers.c), so it jumps over the time since the snapshot, which RCU and the
    soft-lockup detector take for a stall of that length.  Both begin switched off; the latter is switched on
    once the host is up, and again after each restore.

    The end of every VM waits for callbacks of RCU (``rcu_barrier`` in ``kvm_mmu_uninit_tdp_mmu``,
    arch/x86/kvm/mmu/tdp_mmu.c), mostly until RCU next checks whether the other CPUs are idle.  With
    ``jiffies_till_first_fqs=0`` it checks at once: 16 to 20 ms for a TD's life instead of 28.

    With ``norandmaps`` a program's second start is executed from TCG's buffer.  TCG keeps its translations by
    virtual address: with random ones each start is translated again, which takes half of a QEMU's start on
    the host, and 17 MiB of this machine's memory for each.
    """
    images, shape = machine.images, machine.shape
    words = [
        "console=ttyS0",
        "root=/dev/vda",
        "rootfstype=ext4",
        "ro",
        "panic=-1",
        "tsc=reliable",
        "no_timer_check",
        "rcupdate.rcu_cpu_stall_suppress=1",
        "nosoftlockup",
        "rcutree.jiffies_till_first_fqs=0",
        "rcutree.jiffies_till_next_fqs=1",
        "norandmaps",
        f"softseam.keyids={shape.keyids}",
        f"softseam.max_vcpus={shape.max_vcpus}",
    ]
    devices = {name: f"/dev/vd{letter}" for name, letter in zip(images.disks, "abcd", strict=False)}
    words += [f"tdx_e2e.{name}={device}" for name, device in devices.items() if name != "rootfs"]
    words += [f"{FLAVOUR}={images.flavour}", f"{PATCH_HASH}={images.patch_hash}"]
    if machine.extra_cmdline:
        words.append(machine.extra_cmdline)
    return " ".join(words)


def escape(value: object) -> str:
    """A value of a QEMU option, whose syntax doubles a comma inside it."""
    return str(value).replace(",", ",,")


def base_argv(machine: Machine) -> list[str]:
    """QEMU's arguments for the machine, without what its console and agent port are connected to.

    ``tb-size`` in MiB bounds TCG's translations, which would take up to 1 GiB in a long session; a run of the
    suite needs less than 200.
    """
    images, shape = machine.images, machine.shape
    disks = itertools.chain.from_iterable(_disk(path, name) for name, path in images.disks.items())
    return [
        "-name", "tdx-e2e",
        "-nodefaults",
        "-no-user-config",
        "-display", "none",
        "-no-reboot",
        "-action", "panic=none",
        "-machine", "q35,smm=off,vmport=off,i8042=off",
        "-accel", "tcg,thread=multi,tb-size=512",
        "-cpu", _CPU,
        "-smp", f"{shape.cpus},sockets={shape.sockets},cores={shape.cpus // shape.sockets},threads=1",
        "-m", f"{shape.memory_mib}M",
        "-kernel", str(images.kernel),
        "-append", kernel_command_line(machine),
        *disks,
        # QEMU picks the port of the forwarding, so two runs cannot fight over one.
        "-netdev", "user,id=net,ipv6=off,hostfwd=tcp:127.0.0.1:0-:22",
        "-device", "virtio-net-pci,netdev=net,romfile=",
        "-device", "pvpanic-pci",
        "-device", "virtio-serial-pci",
    ]  # fmt: skip


def _disk(path: Path, name: str) -> list[str]:
    # No locking: many guests read one image, and the cache replaces it by renaming, never in place.
    return [
        "-blockdev", f"driver=file,node-name={name}-file,filename={escape(path)},read-only=on,locking=off",
        "-blockdev", f"driver=raw,node-name={name},file={name}-file,read-only=on",
        "-device", f"virtio-blk-pci,drive={name}",
    ]  # fmt: skip


def terminal_argv(machine: Machine) -> list[str]:
    """QEMU and its arguments for the machine with its console, and a root shell on it, on the terminal."""
    words = f"{machine.extra_cmdline} {SHELL}".strip()
    return [
        machine.binary,
        *base_argv(replace(machine, extra_cmdline=words)),
        "-chardev", "stdio,id=serial,mux=on,signal=off",
        "-serial", "chardev:serial",
        "-monitor", "chardev:serial",
        *machine.extra_args,
    ]  # fmt: skip
