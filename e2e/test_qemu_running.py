# SPDX-License-Identifier: GPL-2.0-or-later
"""TDs that a real QEMU runs: exits of the guest reach QEMU, and QEMU's commands reach the guest.

The guest is the payload ``console``, which executes commands from its serial port.  Sources in QEMU:
``tdx_handle_report_fatal_error`` in target/i386/kvm/tdx.c, ``kvm_cpu_exec`` in accel/kvm/kvm-all.c.
"""

from __future__ import annotations

import pytest

from e2e.resets import MAY_CRASH, reset, resetting_stock
from fixtures.deadline import Deadline, until
from fixtures.findings import shows
from fixtures.guests import output
from fixtures.guests.dump import shared_memory
from fixtures.guests.ghci import RETRY
from fixtures.guests.launch import Launch
from fixtures.guests.output import COMMON
from fixtures.guests.qemu_td import QemuTd
from fixtures.guests.qemu_tds import QemuTds
from fixtures.guests.quotes import MOST_QUOTES, QuoteService
from fixtures.guests.typed import AFTER_RESET, QUOTE_GPA, SHARED_GPA, ask, counts
from fixtures.host.hkids import Hkids
from fixtures.kvm.abi import PAGE_SIZE
from fixtures.qemu.errors import QmpError, QmpGone

pytestmark = pytest.mark.tdx_needs("misc-cgroup")


def test_guest_says_how_many_vcpus_it_has(hkids: Hkids, qemu_tds: QemuTds) -> None:
    td = qemu_tds.run(smp="2")
    assert td.console.tail() == ("ready, 2 vCPUs",)
    assert td.status == "running"
    assert hkids.taken == 1
    assert td.quit() == 0
    assert hkids.taken == 0


def test_counts_in_private_and_shared_memory_without_a_lost_or_repeated_step(qemu_td_running: QemuTd) -> None:
    assert [counts(qemu_td_running) for _ in range(10)] == [[step, step] for step in range(1, 11)]


def test_every_vcpu_runs(qemu_tds: QemuTds) -> None:
    td = qemu_tds.run(smp="2")
    first, second = counts(td), counts(td)
    assert (first[:2], second[:2]) == ([1, 1], [2, 2])
    assert 0 < first[2] < second[2]


def test_memory_is_converted_there_and_back_and_private_memory_comes_back_empty(
    qemu_td_running: QemuTd,
) -> None:
    td = qemu_td_running
    assert counts(td) == [1, 1]
    for step in (2, 3):
        assert ask(td, "p") == "private 0 0"
        assert ask(td, "s") == "shared 0"
        assert counts(td) == [step, 1]


# commands to QEMU


@pytest.mark.tdx_finding("Q17", qemu=("11.1.1",))
def test_dump_has_shared_memory_where_the_guest_has_it(qemu_td_running: QemuTd) -> None:
    with shows("Q17"):
        assert shared_memory(qemu_td_running) == [(SHARED_GPA, PAGE_SIZE)]


@pytest.mark.tdx_finding("Q17", qemu=("11.1.1",))
def test_outlives_a_dump_of_memory_that_is_shared_in_two_places(qemu_td_running: QemuTd) -> None:
    """The payload shares a second page for a quote that it does not get."""
    ask(qemu_td_running, "q")
    with shows("Q17", QmpGone):
        found = shared_memory(qemu_td_running)
    assert found == [(SHARED_GPA, PAGE_SIZE), (QUOTE_GPA, PAGE_SIZE)]


def test_stop_and_cont_are_events_and_lose_no_step(qemu_td_running: QemuTd) -> None:
    td = qemu_td_running
    assert counts(td) == [1, 1]
    td.execute("stop")
    td.await_event("STOP")
    assert td.status == "paused"
    before = td.console.position
    td.console.send_line("c")
    td.execute("cont")
    td.await_event("RESUME")
    assert td.console.wait_for("count .*", Deadline(10, "the guest's answer"), since=before)[0] == "count 2 2"
    assert td.status == "running"


def test_cont_lets_a_td_in_prelaunch_go(qemu_td: QemuTd) -> None:
    qemu_td.execute("cont")
    qemu_td.await_event("RESUME")
    qemu_td.console.wait_for("^ready, 1 vCPUs$", Deadline(10, "the payload"))


@MAY_CRASH
@pytest.mark.parametrize("vcpus", [1, 2])
def test_system_reset_starts_it_anew(vcpus: int, hkids: Hkids, qemu_tds: QemuTds) -> None:
    td = qemu_tds.run(smp=str(vcpus))
    assert counts(td)[:2] == [1, 1]
    before = td.console.position
    with resetting_stock(td):
        event = reset(td)
    assert event["data"] == {"guest": False, "reason": "host-qmp-system-reset"}
    td.console.wait_for(f"^ready, {vcpus} vCPUs$", Deadline(10, "the payload after a reset"), since=before)
    assert counts(td)[:2] == AFTER_RESET
    assert hkids.taken == 1


def test_refused_migration_leaves_it_running(hkids: Hkids, qemu_tds: QemuTds) -> None:
    td = qemu_tds.run(cpu="host")
    assert counts(td) == [1, 1]
    with pytest.raises(QmpError, match="invtsc"):
        td.execute("migrate", uri="file:/dev/null")
    assert counts(td) == [2, 2]
    assert td.status == "running"
    assert hkids.taken == 1


def test_device_comes_and_is_listed_while_it_runs(qemu_td_running: QemuTd) -> None:
    td = qemu_td_running
    td.execute("object-add", **{"qom_type": "rng-builtin", "id": "late"})
    assert "late" in [child["name"] for child in td.execute("qom-list", path="/objects")]
    assert counts(td) == [1, 1]


# requests of the guest


@MAY_CRASH
@pytest.mark.parametrize("letter", [pytest.param("r", id="reset"), pytest.param("t", id="triple-fault")])
def test_guests_reset_starts_it_anew(letter: str, hkids: Hkids, qemu_td_running: QemuTd) -> None:
    td = qemu_td_running
    assert counts(td) == [1, 1]
    with resetting_stock(td):
        assert ask(td, letter) == "ready, 1 vCPUs"
    assert td.await_event("RESET")["data"] == {"guest": True, "reason": "guest-reset"}
    assert counts(td) == AFTER_RESET
    assert hkids.taken == 1


def test_guests_reset_ends_it_where_qemu_was_told_so(hkids: Hkids, qemu_tds: QemuTds) -> None:
    td = qemu_tds.run(extra_args=("-no-reboot",))
    td.console.send_line("r")
    assert td.await_event("SHUTDOWN")["data"] == {"guest": True, "reason": "guest-reset"}
    assert td.wait() == 0
    assert hkids.taken == 0


FATAL, PAGE = 0xDEAD0000, 0x100000
"""The payload's error code, and the address that R13 contains."""

PANICS = {
    "f": {"error-code": FATAL, "message": "payload"},
    "F": {"error-code": FATAL, "message": "payload", "gpa": PAGE},
    "e": {"error-code": FATAL, "message": ""},
}


@pytest.mark.parametrize(
    "letter",
    [
        pytest.param("f", id="with-a-text"),
        pytest.param("F", id="with-a-page"),
        pytest.param("e", id="without-registers-for-a-text"),
    ],
)
def test_fatal_error_is_an_event_with_what_the_guest_said(
    letter: str, hkids: Hkids, qemu_td_running: QemuTd
) -> None:
    """With an address exactly when bit 63 of the code says that there is one."""
    td = qemu_td_running
    td.console.send_line(letter)
    data = td.await_event("GUEST_PANICKED")["data"]
    assert data["info"] == {"type": "tdx", **PANICS[letter]}
    # By default QEMU ends then: the HKID is its TD's until it has.
    assert td.wait() == 0
    assert hkids.taken == 0


def test_fatal_error_with_a_reserved_code_stops_it(hkids: Hkids, qemu_td_running: QemuTd) -> None:
    """QEMU takes no code with one of bits 15:0, and does not run a guest that went so far."""
    td = qemu_td_running
    td.console.send_line("x")
    td.await_event("STOP")
    assert td.status == "internal-error"
    assert not [event for event in td.events if event["event"] == "GUEST_PANICKED"]
    until(lambda: "invalid error code: 0xdead" in td.output, "QEMU's message")
    assert td.quit() == 0
    assert hkids.taken == 0


# quotes


def test_guest_is_interrupted_when_its_quote_is_done(qemu_tds: QemuTds, quotes: QuoteService) -> None:
    td = qemu_tds.run(**quotes.change)
    assert ask(td, "n") == "notify 0"
    for count in (1, 2):
        request = quotes.ask(td)
        assert ask(td, "i") == f"notified {count - 1}"
        request.answer(b"a quote")
        assert ask(td, "w") == "quote 0"
        assert ask(td, "i") == f"notified {count}"


def test_guest_is_interrupted_when_there_is_no_quote(qemu_tds: QemuTds, quotes: QuoteService) -> None:
    td = qemu_tds.run(**quotes.change)
    assert ask(td, "n") == "notify 0"
    quotes.ask(td).hang_up()
    quotes.await_end(td)
    assert ask(td, "w") != "quote 0"
    assert ask(td, "i") == "notified 1"


def test_guest_that_does_not_want_it_is_not_interrupted(qemu_tds: QemuTds, quotes: QuoteService) -> None:
    td = qemu_tds.run(**quotes.change)
    quotes.ask(td).answer(b"a quote")
    assert ask(td, "w") == "quote 0"
    assert ask(td, "i") == "notified 0"


def test_seventeenth_quote_in_flight_is_to_be_asked_for_again(
    qemu_tds: QemuTds, quotes: QuoteService
) -> None:
    td = qemu_tds.run(**quotes.change)
    requests = [quotes.ask(td) for _ in range(MOST_QUOTES)]
    assert ask(td, "q") == f"quote {RETRY}"
    assert ask(td, "w") == "quote 0", "what is not worked on is not in flight"
    requests.pop().answer(b"a quote")
    quotes.ask(td).answer(b"a quote")
    for request in requests:
        request.hang_up()


# beside others


def test_beside_a_raw_td_each_counts_for_itself(hkids: Hkids, launch: Launch, qemu_tds: QemuTds) -> None:
    raw = launch("count").vcpus[0]
    td = qemu_tds.run()
    for step in (1, 2, 3):
        assert output.numbers(raw, 2) == [step, COMMON | step]
        assert counts(td) == [step, step]
    assert hkids.taken == 2


def test_two_by_qemu_each_counts_for_itself(hkids: Hkids, qemu_tds: QemuTds) -> None:
    first, second = qemu_tds.run(), qemu_tds.run()
    assert [counts(td) for td in (first, second, first, second)] == [[1, 1], [1, 1], [2, 2], [2, 2]]
    assert hkids.taken == 2
    assert first.quit() == 0
    assert counts(second) == [3, 3]
    assert hkids.taken == 1
