# SPDX-License-Identifier: GPL-2.0-or-later
"""TDs that a real QEMU makes: their HKID from start to end, and what the monitor reports.

Sources: ``tdx_pre_create_vcpu``, ``tdx_finalize_vm`` in QEMU's target/i386/kvm/tdx.c.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from fixtures.agent.child import HostProgram
from fixtures.agent.client import Worker
from fixtures.deadline import until
from fixtures.guests.qemu_td import QemuTd
from fixtures.guests.qemu_tds import QemuTds
from fixtures.host.hkids import Hkids
from fixtures.qemu.errors import QmpError, QmpGone
from fixtures.qemu.td_command import SOCKETS, td_argv
from fixtures.softseam.truth import Truth

pytestmark = pytest.mark.tdx_needs("misc-cgroup")


# one HKID, from start to end


def test_takes_one_hkid_and_gives_it_back_on_quit(hkids: Hkids, qemu_tds: QemuTds) -> None:
    assert hkids.taken == 0
    td = qemu_tds.start()
    assert hkids.taken == 1
    assert td.quit() == 0
    assert hkids.taken == 0


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)])
def test_signal_ends_it_and_frees_the_hkid(
    number: signal.Signals, status: int, hkids: Hkids, qemu_td: QemuTd
) -> None:
    assert hkids.taken == 1
    qemu_td.program.signal(number)
    assert qemu_td.wait() == status
    assert hkids.taken == 0


def test_death_of_the_process_that_started_it_frees_the_hkid(
    hkids: Hkids, owner: Worker, qemu_td: QemuTd
) -> None:
    owner.kill()
    owner.wait()
    qemu_td.close()
    assert hkids.taken == 0


def test_sigkill_before_anything_is_made_frees_all(hkids: Hkids, qemu_tds: QemuTds, owner: Worker) -> None:
    with starting(qemu_tds, owner):
        pass
    assert hkids.taken == 0


def test_sigkill_once_the_hkid_is_taken_frees_it(
    hkids: Hkids, qemu_tds: QemuTds, owner: Worker, td_firmware: str
) -> None:
    with starting(qemu_tds, owner, firmware=td_firmware) as program:
        see(program, lambda: hkids.charged == 1)
    assert hkids.taken == 0


@pytest.mark.tdx_needs("ground-truth")
@pytest.mark.parametrize("pages", [1, 100, 500])
def test_sigkill_while_memory_is_added_frees_all(
    pages: int, hkids: Hkids, qemu_tds: QemuTds, owner: Worker, truth: Truth, td_firmware: str
) -> None:
    with starting(qemu_tds, owner, firmware=td_firmware) as program:
        see(program, lambda: any(td.children > pages for td in truth.tds()))
        assert [td.op for td in truth.tds()] == ["initialized"]
    assert hkids.taken == 0
    assert truth.tds() == ()


@contextmanager
def starting(qemu_tds: QemuTds, owner: Worker, **changes: Any) -> Iterator[HostProgram]:
    """Start a QEMU, and kill it at the end of the block."""
    with HostProgram(owner, td_argv(replace(qemu_tds.spec, **changes)), sockets=SOCKETS) as program:
        yield program


def see(program: HostProgram, condition: Callable[[], bool]) -> None:
    """Wait for a condition, which holds before the program could end."""
    until(lambda: condition() or not program.alive, "a step of QEMU's start", 20)
    assert program.alive


def test_takes_one_hkid_also_with_a_whole_firmware(hkids: Hkids, qemu_tds: QemuTds, td_firmware: str) -> None:
    td = qemu_tds.start(firmware=td_firmware)
    assert td.status == "prelaunch"
    assert hkids.taken == 1
    assert td.quit() == 0
    assert hkids.taken == 0


# reports of the monitor


OF_THE_CPU = re.compile(
    r"warning: (TDX forcibly sets the feature|(TDX|host) doesn't support requested feature): CPUID\["
)
"""Differences between the host's CPU and what the TDX module offers, which ``-cpu host`` makes QEMU list."""


def test_usual_command_line_gets_no_warning(qemu_td: QemuTd) -> None:
    assert [line for line in qemu_td.output.splitlines() if not OF_THE_CPU.search(line)] == []


def test_stops_in_prelaunch_until_it_is_told_to_run(qemu_td: QemuTd) -> None:
    assert qemu_td.status == "prelaunch"
    assert qemu_td.execute("query-status")["running"] is False


def test_tells_the_end_by_an_event(qemu_td: QemuTd) -> None:
    qemu_td.execute("quit")
    data = qemu_td.await_event("SHUTDOWN")["data"]
    assert data == {"guest": False, "reason": "host-qmp-quit"}
    assert qemu_td.wait() == 0


@pytest.mark.parametrize("count", [1, 2])
def test_has_as_many_vcpus_as_it_was_told(count: int, qemu_tds: QemuTds) -> None:
    td = qemu_tds.start(smp=str(count))
    cpus = td.execute("query-cpus-fast")
    assert [cpu["cpu-index"] for cpu in cpus] == list(range(count))
    assert len({cpu["thread-id"] for cpu in cpus}) == count


def test_properties_of_the_guest_object_are_those_that_were_given(qemu_tds: QemuTds) -> None:
    given = {
        "mrconfigid": "q" * 64,
        "mrowner": "A" * 64,
        "mrownerconfig": "z" * 63 + "A",
        "sept-ve-disable": False,
    }
    words = {
        name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in given.items()
    }
    td = qemu_tds.start(guest=words)
    read = {name: td.execute("qom-get", path="/objects/tdx0", property=name) for name in given}
    assert read == given


def test_sept_ve_disable_is_on_unless_it_is_switched_off(qemu_tds: QemuTds) -> None:
    td = qemu_tds.start()
    assert td.execute("qom-get", path="/objects/tdx0", property="sept-ve-disable") is True
    assert td.execute("qom-get", path="/objects/tdx0", property="attributes") == 1 << 28


@pytest.mark.tdx_needs("ground-truth")
def test_module_has_it_measured_and_runnable(qemu_tds: QemuTds, truth: Truth) -> None:
    qemu_tds.start(smp="2")
    (td,) = truth.tds()
    assert (td.op, td.vcpus) == ("runnable", 2)


# the monitor's own end


def test_td_lives_on_when_the_monitor_vanishes(hkids: Hkids, qemu_td: QemuTd) -> None:
    qemu_td.program.hang_up("qmp")
    with pytest.raises(QmpGone):
        qemu_td.execute("query-status")
    assert qemu_td.program.alive
    assert hkids.taken == 1


def test_unknown_command_is_refused_and_the_td_unharmed(hkids: Hkids, qemu_td: QemuTd) -> None:
    with pytest.raises(QmpError, match="query-tdx"):
        qemu_td.execute("query-tdx")
    assert qemu_td.status == "prelaunch"
    assert hkids.taken == 1
