# SPDX-License-Identifier: GPL-2.0-or-later
"""Prerequisites of the other tests: kernel and TDX module agree, and the host has the shape it reports."""

from __future__ import annotations

import re

import msgspec
import pytest

from fixtures import cgroup
from fixtures.agent import syscalls
from fixtures.agent.call import batch_call
from fixtures.agent.client import Worker
from fixtures.deadline import Deadline, until
from fixtures.guests.linux import LinuxFiles
from fixtures.host.base import TdxHost
from fixtures.host.hkids import Hkids
from fixtures.host.nested import NestedHost
from fixtures.host.ssh import SshConnection, SshError
from fixtures.kvm import abi, build
from fixtures.kvm.build import Assembly, Stage
from fixtures.kvm.device import Kvm
from fixtures.kvm.many import many_tds
from fixtures.softseam import inject, records
from fixtures.softseam.inject import Injection
from fixtures.softseam.records import KeyEvent, KeyState, PageRecord, TdRecord, VcpuRecord
from fixtures.softseam.truth import Truth

KEYID_RANGE = re.compile(r"virt/tdx: BIOS enabled: private KeyID range \[(\d+), (\d+)\)")

tells = pytest.mark.tdx_needs("ground-truth")

# the host


def test_kvm_offers_tds(kvm: Kvm) -> None:
    assert kvm.check_extension(abi.Cap.VM_TYPES) & 1 << abi.VmType.TDX


@pytest.mark.tdx_needs("misc-cgroup")
def test_capacity_is_what_the_firmware_left_for_tds(tdx_host: TdxHost) -> None:
    """The kernel logs the KeyIDs that it found, one of which is the TDX module's own."""
    found = [KEYID_RANGE.search(record.text) for record in tdx_host.agent.files.kmsg()]
    ranges = [(int(one[1]), int(one[2])) for one in found if one is not None]
    if not ranges:
        pytest.skip("the kernel's log no longer goes back to its boot; reboot the host")
    start, end = ranges[0]
    assert tdx_host.facts.hkid_capacity == end - start - 1


def test_host_has_the_shape_that_it_says(tdx_host: TdxHost) -> None:
    assert tdx_host.facts.present_cpus == tdx_host.shape.cpus
    assert tdx_host.facts.packages == tdx_host.shape.sockets


@pytest.mark.tdx_needs("snapshot")
def test_nothing_of_a_test_runs_on_the_first_cpu_of_a_host_for_linux(
    tdx_host: TdxHost, owner: Worker, linux: LinuxFiles
) -> None:
    """QEMU may undo a change of that CPU's flags whenever a guest restores x87 state (finding Q10)."""
    _, *others = range(tdx_host.shape.cpus)
    assert len(others) >= 2
    assert linux
    assert owner.call(syscalls.affinity()) == [others[0]]
    assert owner.start(syscalls.affinity()).result() == others


NESTED_CPU = {"svm", "npt", "vmx", "movdir64b", "ss", "arch_capabilities", "tdx_host_platform"}
"""Features by which KVM and softseam start, or on which they run TDs; TCG has only some of them."""


@pytest.mark.tdx_needs("snapshot")
def test_cpu_is_the_one_that_tds_need_whatever_qemu_makes_it(tdx_host: TdxHost) -> None:
    """What else TCG's largest CPU has grows with QEMU: 10 adds RDSEED, RDPID and X2APIC to that of 7.2."""
    listed = tdx_host.agent.files.read_text("/proc/cpuinfo").splitlines()
    lines = [[part.strip() for part in line.split(":")] for line in listed if ":" in line]
    for name, value in lines:
        if name == "flags":
            assert set(value.split()) >= NESTED_CPU
            assert "la57" not in value.split()
    assert {tuple(line) for line in lines} >= {
        ("vendor_id", "GenuineIntel"),
        ("cpu family", "6"),
        ("model", "173"),
        ("address sizes", "48 bits physical, 48 bits virtual"),
    }
    assert [line[0] for line in lines].count("flags") == tdx_host.shape.cpus


# the TDX module's own view


@tells
def test_module_has_the_size_that_was_asked_for(tdx_host: TdxHost) -> None:
    module = Truth(tdx_host.agent).module()
    assert module.ready
    assert (module.keyids, module.max_vcpus_per_td) == (tdx_host.shape.keyids, tdx_host.shape.max_vcpus)
    assert module.pool == tdx_host.facts.hkid_capacity
    assert module.packages.bit_count() == tdx_host.facts.packages


@tells
@pytest.mark.tdx_needs("misc-cgroup")
def test_module_and_kernel_count_the_same_hkids(tdx_host: TdxHost, kvm: Kvm) -> None:
    def counts() -> tuple[int, int]:
        charged = tdx_host.agent.files.read_text(f"{cgroup.ROOT}/misc.current")
        return cgroup.parse(charged, cgroup.RESOURCE), Truth(tdx_host.agent).state().hkids_in_use

    assert counts() == (0, 0)
    tds = many_tds(kvm, 3)
    assert counts() == (3, 3)
    tds[0].close()
    assert counts() == (2, 2)


@tells
@pytest.mark.parametrize(
    ("stage", "op", "vcpus"),
    [
        pytest.param(Stage.INITIALIZED, "initialized", 0, id="initialized"),
        pytest.param(Stage.WITH_VCPUS, "initialized", 1, id="with-vcpus"),
        pytest.param(Stage.FINALIZED, "runnable", 1, id="finalized"),
    ],
)
def test_module_knows_how_far_a_td_has_come(
    stage: Stage, op: str, vcpus: int, tdx_host: TdxHost, owner: Worker
) -> None:
    with build.at(stage, owner) as built:
        module = Truth(tdx_host.agent).state()
        (td,) = module.tds
        (key,) = [key for key in module.keys if key.tdr is not None]
        assert (td.op, td.vcpus, len(module.vcpus)) == (op, vcpus, vcpus)
        assert td.attributes == built.td.default_params().attributes
        assert td.max_vcpus == built.td.check_extension(abi.Cap.MAX_VCPUS)
        assert (key.state, key.hkid, key.tdr) == (KeyState.CONFIGURED, td.hkid, td.tdr)
        assert td.children == sum(module.pages_of(td.tdr).values())


@tells
def test_module_owns_nothing_without_a_td(tdx_host: TdxHost, td_finalized: Assembly) -> None:
    td_finalized.close()
    module = Truth(tdx_host.agent).state()
    assert (module.tds, module.vcpus) == ((), ())
    assert not [pages for pages in module.pages if pages.tdr is not None]


@tells
def test_module_is_read_while_tds_come_and_go(tdx_host: TdxHost, owner: Worker) -> None:
    """Reads reports that lie in pages which the host donates, reclaims and overwrites meanwhile."""
    types = {"tds": TdRecord, "vcpus": VcpuRecord, "pages": PageRecord, "history": KeyEvent}
    reads = [syscalls.read_file(f"{records.FOLDER}/{name}") for name in types]
    with tdx_host.agent.spawn() as reader:
        reading = reader.start(batch_call(reads, repeat=100))
        tds = 0

        def read_to_the_end() -> bool:
            nonlocal tds
            with build.at(Stage.FINALIZED, owner):
                tds += 1
            return reading.done()

        until(read_to_the_end, "the end of the reader", 60)
        texts = reading.result()
    assert tds > 1
    for index in range(len(texts)):
        text = texts[index].decode()
        assert "?" not in text
        records.parse(tuple(types.values())[index % len(types)], text)


@tells
@pytest.mark.tdx_needs("misc-cgroup")
def test_module_tells_the_life_of_an_hkid(tdx_host: TdxHost, kvm: Kvm) -> None:
    module = Truth(tdx_host.agent)
    seen = max((event.seq for event in module.history()), default=-1)
    (td,) = many_tds(kvm, 1)
    td.close()
    life = module.history(seen)
    configured = ["configure"] * tdx_host.facts.packages
    assert [event.event for event in life] == ["assign", *configured, "flush", "free"]
    assert len({(event.hkid, event.tdr) for event in life}) == 1


@pytest.mark.tdx_needs("seamcall-fault-injection")
def test_armed_fault_is_shown_and_gone_after_its_block(tdx_host: TdxHost) -> None:
    fault = Injection("TDH.MNG.CREATE", nth=2, count=3)
    with inject.armed(tdx_host.agent.files, fault):
        assert inject.still_armed(tdx_host.agent.files) == (fault,)
    assert inject.still_armed(tdx_host.agent.files) == ()


# ways in


@pytest.mark.tdx_needs("snapshot")
def test_ssh_lets_the_runs_key_in(tdx_host: TdxHost) -> None:
    assert isinstance(tdx_host, NestedHost)
    connection = tdx_host.ssh()
    try:
        done = connection.run("cat /proc/sys/kernel/random/boot_id", Deadline(20, "a command over SSH"))
    finally:
        connection.close()
    assert (done.returncode, done.stdout.strip()) == (0, tdx_host.facts.boot_id)


@pytest.mark.tdx_needs("snapshot")
def test_ssh_is_not_used_with_another_host_key(tdx_host: TdxHost) -> None:
    assert isinstance(tdx_host, NestedHost)
    tdx_host.ssh().close()  # From here on the server is known to be up.
    ours = tdx_host.ssh_testbed()
    kind, key = ours.hostkey.split()[:2]
    strange = msgspec.structs.replace(ours, hostkey=f"{kind} {key[:-6]}{key[-6:].swapcase()}")
    with pytest.raises(SshError, match="another host key"):
        SshConnection(strange, Deadline(20, "an SSH connection"))


@pytest.mark.tdx_needs("snapshot", "misc-cgroup")
def test_restored_host_is_the_host_before(tdx_host: TdxHost) -> None:
    with tdx_host.agent.spawn() as owner:
        many_tds(Kvm.open(owner), 1)
        tdx_host.agent.files.write("/run/left-behind", "1", create=True)
        tdx_host.restore()
    assert not tdx_host.agent.files.exists("/run/left-behind")
    assert Hkids(tdx_host).in_use == 0
    boot_id = tdx_host.agent.call(syscalls.read_file("/proc/sys/kernel/random/boot_id")).decode().strip()
    assert boot_id == tdx_host.facts.boot_id
