# SPDX-License-Identifier: GPL-2.0-or-later
"""The doctor (``pytest --tdx-check``) names exactly what a machine lacks, by the kernel's own words.

Each host here lacks one thing, or several that do not depend on each other; what only hardware can lack is
judged in ``fixtures/tests/test_needs.py``.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from fixtures import cgroup
from fixtures.agent import syscalls
from fixtures.agent.client import Worker
from fixtures.doctor.examine import read_host
from fixtures.host import kvm_modules
from fixtures.host.base import TdxHost
from fixtures.host.hardware import LOCK_FILE
from fixtures.host.nested import NestedHost
from fixtures.kvm import build
from fixtures.needs.checks import examined
from fixtures.needs.reading import Reading, parse, script
from fixtures.needs.text import stopped, to_lines
from fixtures.needs.verdict import Row, Status

pytestmark = pytest.mark.tdx_needs("snapshot", "misc-cgroup")


_SYS_FLOCK, _LOCK_EX = 73, 2


def named(rows: tuple[Row, ...], *statuses: Status) -> set[str]:
    return {row.check.ident for row in rows if row.verdict.status in statuses}


def wrong(host: TdxHost, text: str = "", *argv: str) -> dict[str, Row]:
    """Examine a host; returns what is wrong there, each with a remedy."""
    rows = examined(read(host, text or script(), *argv))
    print(*to_lines(str(argv), rows), sep="\n")
    found = {row.check.ident: row for row in rows if row.verdict.status is Status.WRONG}
    assert all(row.remedy for row in found.values())
    return found


def read(host: TdxHost, text: str, *argv: str) -> Reading:
    if not argv:
        return read_host(host, text)
    return parse(host.agent.files.run(*argv, text).stdout.decode())


def test_good_host_is_ready_and_who_uses_it_is_named(tdx_host: TdxHost, owner: Worker) -> None:
    with build.initialized(owner):
        rows = examined(read_host(tdx_host, script()))
    assert not stopped(rows)
    assert named(rows, *Status) - named(rows, Status.OK) == {"users"}
    found = {row.check.ident: row.verdict.found for row in rows}
    assert found["kernel"] == f"Linux {tdx_host.facts.kernel}"
    assert found["keyids"].startswith(f"{tdx_host.shape.keyids} ")
    assert found["misc"] == f"misc.capacity: tdx {tdx_host.facts.hkid_capacity}"
    assert tdx_host.facts.tdx_module.removeprefix("softseam ") in found["module"]
    assert found["users"].startswith(f"1 HKIDs in use: python3 (process {owner.pid} in /")


# what a machine lacks from its boot on


@dataclass(frozen=True)
class Broken:
    """A host that lacks something.

    :param words: of its kernel command line.
    :param lacks: the checks that are wrong there → what the kernel's words contain, empty where it has none.
    :param args: of its QEMU.
    """

    words: str
    lacks: dict[str, str]
    args: tuple[str, ...] = ()


HOLES = ",".join(f"4K${(64 + 2 * at):#x}M" for at in range(20))

TOPOLOGY_ENUM = 1 << 20
"""The one of TDX_FEATURES0 that KVM requires of a module, beside NO_RBP_MOD."""

BROKEN = {
    "no-cgroup-controller": Broken("cgroup_disable=misc", {"misc": "", "memory": ""}, ("-m", "640M")),
    "no-keyids": Broken("softseam.keyids=0", {"keyids": "TDX not supported by the host platform"}),
    "one-keyid": Broken("softseam.keyids=1", {"keyids": "too few private KeyIDs available"}),
    "no-movdir64b": Broken("clearcpuid=movdir64b", {"features": "MOVDIR64B is required for TDX"}),
    "no-self-snoop": Broken("clearcpuid=ss", {"features": "Self-snoop is required for TDX"}),
    "no-xsave": Broken("noxsave", {"features": "XSAVE is required for TDX"}),
    "memory-in-pieces": Broken(f"memmap={HOLES}", {"module": "exhausted"}),
    "old-module": Broken(
        f"softseam.report=0x0a00000300000008:{TOPOLOGY_ENUM}",
        {"module": "frame pointer (RBP) clobber bug present"},
    ),
    "module-that-refuses": Broken(
        "softseam.report=0x9100000100000010:8", {"module": "SEAMCALL (0x000000000000002d) failed: 0xc0"}
    ),
    "few-vcpus": Broken("softseam.max_vcpus=1", {"kvm": "Disable TDX: MAX_VCPU_PER_TD (1)"}),
    "no-vmx": Broken("clearcpuid=vmx", {"cpu": ""}),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BROKEN)
def test_machine_that_was_booted_without_something(
    case: str, tdx_host: TdxHost, tdx_cleanup: ExitStack, tmp_path: Path
) -> None:
    assert isinstance(tdx_host, NestedHost)
    broken = BROKEN[case]
    host = tdx_host.with_limits(tmp_path / "host", broken.words, qemu_args=broken.args)
    tdx_cleanup.callback(host.close)
    host.start()
    found = wrong(host)
    assert set(found) == set(broken.lacks)
    for ident, words in broken.lacks.items():
        assert words in "\n".join(found[ident].verdict.kernel)


# what a machine lacks at the moment


WITHOUT = ("ept=0", "enable_apicv=0", "eptad=0")
WITHOUT_OF_KVM = ("tdp_mmu=0", "mmio_caching=0")


@pytest.mark.slow
def test_kvm_without_what_tdx_needs(tdx_host: TdxHost) -> None:
    tdx_host.poison("KVM is loaded with other parameters")
    for setting in WITHOUT:
        kvm_modules.reload(tdx_host.agent, parameters=f"{kvm_modules.USUAL} {setting}")
        found = wrong(tdx_host)
        assert set(found) == {"kvm"}
        assert "required for TDX" in "\n".join(found["kvm"].verdict.kernel)
        assert setting in found["kvm"].remedy
    for setting in WITHOUT_OF_KVM:
        kvm_modules.reload(tdx_host.agent, common=setting)
        assert f"kvm.{setting}" in wrong(tdx_host)["kvm"].remedy
    kvm_modules.reload(tdx_host.agent, parameters="tdx=0 nested=0")
    assert "options kvm_intel tdx=1" in wrong(tdx_host)["kvm"].remedy
    tdx_host.agent.files.run("rmmod", "kvm_intel")
    assert wrong(tdx_host)["kvm"].remedy == "modprobe kvm_intel tdx=1"


NOBODY = "import os, sys; os.setuid(65534); os.execvp('sh', ['sh', '-c', sys.argv[1]])"

FAKES = {
    "python3": "echo 3.9",
    "qemu-old": "case $* in *help*) ;; *) echo 'QEMU emulator version 9.2.1';; esac",
}


@pytest.mark.slow
def test_machine_that_lacks_something_now(tdx_host: TdxHost, owner: Worker) -> None:
    files = tdx_host.agent.files
    tdx_host.poison("its mounts and programs are changed")

    def sh(command: str) -> None:
        done = files.run("sh", "-c", command)
        assert done.returncode == 0, done.stderr

    # Programs: an old Python, an old QEMU, no firmware; and another run
    sh("mkdir /tmp/fakes")
    for name, text in FAKES.items():
        files.write(f"/tmp/fakes/{name}", f"#!/bin/sh\n{text}\n", create=True)
    sh("chmod +x /tmp/fakes/*")
    held = owner.open(LOCK_FILE, os.O_RDWR | os.O_CREAT)
    assert owner.call(syscalls.syscall(_SYS_FLOCK, held, _LOCK_EX)).ret == 0
    text = script("/tmp/fakes/qemu-old", "/no/firmware")
    found = wrong(tdx_host, "PATH=/tmp/fakes:$PATH\n" + text)
    assert set(found) == {"python", "qemu", "firmware", "lock"}
    assert "3.9" in found["python"].verdict.found
    assert "9.2.1" in found["qemu"].verdict.found
    owner.close_fd(held)

    assert set(wrong(tdx_host, script(), "python3", "-c", NOBODY)) == {"root"}

    # The kernel's options as it reports them, the device, the cgroup file system
    sh("zcat /proc/config.gz | grep -v KVM_INTEL_TDX | gzip >/tmp/config.gz")
    sh("mount --bind /tmp/config.gz /proc/config.gz && rm /dev/kvm")
    sh(f"mkdir {cgroup.ROOT}/inner && mount --bind {cgroup.ROOT}/inner {cgroup.ROOT}")
    found = wrong(tdx_host)
    assert set(found) == {"options", "device", "misc"}
    assert "CONFIG_KVM_INTEL_TDX" in found["options"].verdict.found
    assert "namespace" in found["misc"].verdict.found
    sh(f"umount {cgroup.ROOT} && umount -l {cgroup.ROOT}")
    assert "not mounted" in wrong(tdx_host)["misc"].verdict.found
    sh(f"mount -t cgroup2 none {cgroup.ROOT}")
