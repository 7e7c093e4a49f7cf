# SPDX-License-Identifier: GPL-2.0-or-later
"""Moves of a TD between QEMUs that are refused: with a reason, and the TD goes on where it is.

A move that cannot work is refused before anything is touched: the source never stops.  It stops for a moment
if only the loading of its state shows the reason.  Sources: migration/cpr-guest.c,
``migrate_guest_take_over_check`` in migration/migration.c, and target/i386/kvm/tdx.c of our QEMU.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from e2e.qemu_moves import assert_goes_on
from e2e.resets import resetting
from fixtures.deadline import until
from fixtures.errors import DeadlineExceeded
from fixtures.guests.ghci import INVALID_OPERAND, RETRY
from fixtures.guests.moving import (
    CAPABILITIES,
    MODE,
    OTHER_MODES,
    PLAIN_CAPABILITIES,
    TAKE_OVER,
    Move,
    moved,
    set_capabilities,
    set_mode,
)
from fixtures.guests.qemu_td import QemuTd, complaints
from fixtures.guests.qemu_tds import QemuTds
from fixtures.guests.quotes import QuoteService
from fixtures.guests.typed import AFTER_RESET, ask, counts
from fixtures.host.hkids import Hkids
from fixtures.qemu.errors import QemuLaunchFailed, QmpError
from fixtures.qemu.td_command import FIXED_CLOCK

pytestmark = pytest.mark.tdx_needs("misc-cgroup")

NOT_FOR_TDS = "KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM is not for TDs"
QUOTE_IN_FLIGHT = "waits for a quote cannot be migrated"


def waits_for_a_quote(td: QemuTd) -> bool:
    """Return whether a QEMU says that it waits for a quote, and so cannot move its TD."""
    return QUOTE_IN_FLIGHT in str(td.execute("query-migrate").get("blocked-reasons", []))


# by the source, at once


@pytest.mark.tdx_offers("move")
@pytest.mark.usefixtures("td_move")
@pytest.mark.parametrize("mode", OTHER_MODES)
def test_other_modes(mode: str, hkids: Hkids, movable_tds: QemuTds) -> None:
    source = movable_tds.run()
    assert counts(source) == [1, 1]
    set_mode(source, mode)
    with pytest.raises(QmpError) as caught:
        source.execute("migrate", uri="file:/dev/null")
    assert caught.value.desc == "A TDX VM can be migrated in mode cpr-transfer only"
    assert caught.value.desc in source.execute("query-migrate")["blocked-reasons"]
    assert_goes_on(source, 2, stopped=False)
    assert hkids.taken == 1


@pytest.mark.tdx_offers("move")
@pytest.mark.usefixtures("td_move")
def test_clock_that_goes_on_in_no_other_host_is_one_more_reason(movable_tds: QemuTds) -> None:
    """A host that was rebooted is another one, as its clock begins anew."""
    source = movable_tds.start(cpu="host")
    blocked = {}
    for mode in (*OTHER_MODES, MODE):
        set_mode(source, mode)
        reasons = source.execute("query-migrate").get("blocked-reasons", [])
        blocked[mode] = any("invtsc" in reason for reason in reasons)
    assert blocked == {"normal": True, "cpr-reboot": True, "cpr-exec": False, MODE: False}


@pytest.mark.tdx_offers("move")
@pytest.mark.usefixtures("td_move")
@pytest.mark.parametrize(
    ("capabilities", "says"),
    [
        pytest.param(["events", TAKE_OVER], "requires capability 'return-path'", id="no-return-path"),
        pytest.param(PLAIN_CAPABILITIES, f"requires capability '{TAKE_OVER}'", id="no-take-over"),
    ],
)
def test_capability_is_missing(
    capabilities: Sequence[str], says: str, hkids: Hkids, movable_tds: QemuTds
) -> None:
    """Without a return path, a failure of the destination would leave the TD stopped for ever.

    Without the other, the destination would take the TD over unasked.
    """
    source = movable_tds.run()
    destination = movable_tds.destination(source)
    with pytest.raises(QmpError, match=says):
        Move(source, destination, capabilities=capabilities)
    assert_goes_on(source, 1, stopped=False)
    # The first try did not reach the destination.
    moved(source, destination)
    assert counts(destination) == [2, 2]
    assert hkids.taken == 1


@pytest.mark.tdx_offers("move")
@pytest.mark.usefixtures("td_move")
def test_way_back_cannot_be_switched_off_under_the_capability_that_needs_it(movable_tds: QemuTds) -> None:
    source = movable_tds.start()
    set_capabilities(source, dict.fromkeys(CAPABILITIES, True))
    with pytest.raises(QmpError, match=f"'{TAKE_OVER}' requires capability 'return-path'"):
        set_capabilities(source, {"return-path": False})
    set_capabilities(source, {TAKE_OVER: False, "return-path": False})


@pytest.mark.tdx_offers("move")
@pytest.mark.usefixtures("td_move")
@pytest.mark.parametrize(
    ("changes", "region"),
    [
        pytest.param({}, r"\S+", id="any"),
        pytest.param(
            {
                "machine": {"memory-backend": "own", "aux-ram-share": "on"},
                "extra_args": ("-object", "memory-backend-ram,id=own,size=64M,share=off"),
            },
            "own",
            id="that-of-the-guest",
        ),
    ],
)
def test_memory_that_is_not_in_files(
    changes: dict[str, Any], region: str, hkids: Hkids, movable_tds: QemuTds
) -> None:
    source = movable_tds.run(movable=False, **changes)
    with pytest.raises(QmpError, match=rf"Memory region {region} .*CPR"):
        Move(source, movable_tds.destination(source))
    assert_goes_on(source, 1, stopped=False)
    assert hkids.taken == 1


@pytest.fixture
def no_td_move(td_moves: bool) -> None:
    """Skip the test where KVM moves TDs."""
    if td_moves:
        pytest.skip("this host's KVM moves TDs; run with --tdx-flavour=upstream")


@pytest.mark.usefixtures("no_td_move")
def test_kernel_that_cannot_move_tds(hkids: Hkids, movable_tds: QemuTds) -> None:
    source = movable_tds.run()
    with pytest.raises(QmpError) as caught:
        Move(source, movable_tds.destination(source))
    reasons = source.execute("query-migrate")["blocked-reasons"]
    assert caught.value.desc in reasons
    assert len([reason for reason in reasons if NOT_FOR_TDS in reason]) == 1
    assert_goes_on(source, 1, stopped=False)
    assert hkids.taken == 1


def test_td_of_a_qemu_for_guests_that_migrate_in_each_mode_does_not_start(
    hkids: Hkids, movable_tds: QemuTds
) -> None:
    with pytest.raises(QemuLaunchFailed) as caught:
        movable_tds.start(cpu=FIXED_CLOCK, extra_args=("-only-migratable",))
    assert "A TDX VM can be migrated in mode cpr-transfer only" in caught.value.output
    assert hkids.taken == 0


@pytest.mark.usefixtures("no_td_move")
def test_td_is_reset_on_a_kernel_that_cannot_move_tds(movable_tds: QemuTds) -> None:
    td = movable_tds.run()
    set_mode(td, MODE)
    assert counts(td) == [1, 1]
    with resetting(td):
        assert ask(td, "r") == "ready, 1 vCPUs"
    reasons = td.execute("query-migrate")["blocked-reasons"]
    assert len([reason for reason in reasons if NOT_FOR_TDS in reason]) == 1
    assert counts(td) == AFTER_RESET


@pytest.mark.tdx_offers("move")
@pytest.mark.usefixtures("td_move")
def test_quote_in_flight(quotes: QuoteService, hkids: Hkids, movable_tds: QemuTds) -> None:
    """The source would write the answer to memory that belongs to the destination by then."""
    source = movable_tds.run(**quotes.change)
    request = quotes.ask(source)
    destination = movable_tds.destination(source)
    with pytest.raises(QmpError, match=QUOTE_IN_FLIGHT) as caught:
        Move(source, destination)
    assert caught.value.desc in source.execute("query-migrate")["blocked-reasons"]
    assert_goes_on(source, 1, stopped=False)
    request.hang_up()
    quotes.await_end(source)
    assert caught.value.desc not in source.execute("query-migrate").get("blocked-reasons", [])
    moved(source, destination)
    assert counts(destination) == [2, 2]
    assert hkids.taken == 1


@pytest.mark.tdx_offers("move")
@pytest.mark.usefixtures("td_move")
def test_second_of_two_quotes_in_flight(quotes: QuoteService, hkids: Hkids, movable_tds: QemuTds) -> None:
    source = movable_tds.run(**quotes.change)
    first, second = quotes.ask(source), quotes.ask(source)
    first.answer(b"a quote")
    assert ask(source, "w") == "quote 0"
    destination = movable_tds.destination(source)
    with pytest.raises(QmpError, match=QUOTE_IN_FLIGHT):
        Move(source, destination)
    second.answer(b"a quote")
    assert ask(source, "w") == "quote 0"
    moved(source, destination)
    assert counts(destination) == [1, 1]
    assert hkids.taken == 1


@pytest.mark.tdx_offers("move")
@pytest.mark.usefixtures("td_move")
def test_quote_in_flight_from_before_a_reset(quotes: QuoteService, movable_tds: QemuTds) -> None:
    """The request is QEMU's until it has an answer, though the guest that asked is no more."""
    source = movable_tds.run(**quotes.change)
    request = quotes.ask(source)
    with resetting(source):
        assert ask(source, "r") == "ready, 1 vCPUs"
    destination = movable_tds.destination(source)
    with pytest.raises(QmpError, match=QUOTE_IN_FLIGHT):
        Move(source, destination)
    request.hang_up()
    with suppress(DeadlineExceeded):
        until(lambda: not waits_for_a_quote(source), "QEMU to give the request up")
    assert not waits_for_a_quote(source)
    moved(source, destination)
    assert counts(destination) == [1, 1]


@pytest.mark.tdx_offers("move")
@pytest.mark.usefixtures("td_move")
def test_quote_that_is_asked_for_during_a_move_is_to_be_asked_for_again(
    quotes: QuoteService, movable_tds: QemuTds
) -> None:
    source = movable_tds.run(**quotes.change)
    destination = movable_tds.destination(source)
    destination.program.signal(signal.SIGSTOP)
    move = Move(source, destination)
    assert [ask(source, "q"), ask(source, "q")] == [f"quote {RETRY}"] * 2
    assert ask(source, "w") == "quote 0", "what is not worked on is not in flight"
    destination.program.signal(signal.SIGCONT)
    destination.connect()
    assert move.end() == "completed"
    assert ask(destination, "q") == "quote 0"


@pytest.mark.tdx_offers("move")
@pytest.mark.usefixtures("td_move")
def test_quote_is_answered_where_a_move_is_only_prepared(quotes: QuoteService, movable_tds: QemuTds) -> None:
    source = movable_tds.run(**quotes.change)
    set_capabilities(source, dict.fromkeys(CAPABILITIES, True))
    set_mode(source, MODE)
    quotes.ask(source).answer(b"a quote")
    assert ask(source, "w") == "quote 0"


@pytest.mark.tdx_offers("move")
@pytest.mark.usefixtures("td_move")
def test_request_for_a_quote_that_is_refused_is_not_in_the_way(
    quotes: QuoteService, movable_tds: QemuTds
) -> None:
    source = movable_tds.run(**quotes.change)
    assert ask(source, "b") == f"quote {INVALID_OPERAND}"
    reasons = source.execute("query-migrate")["blocked-reasons"]
    assert not [reason for reason in reasons if "quote" in reason]
    quotes.ask(source).answer(b"a quote")
    assert ask(source, "w") == "quote 0"
    moved(source, movable_tds.destination(source))


@pytest.mark.tdx_offers("move")
@pytest.mark.usefixtures("td_move")
def test_guest_that_the_kernel_does_not_move_cannot_be_taken_over(movable_tds: QemuTds) -> None:
    source = movable_tds.start(guest=None)
    with pytest.raises(QmpError, match=f"'{TAKE_OVER}' is only for mode "):
        Move(source, movable_tds.destination(source), capabilities=CAPABILITIES)


# by the destination, before the source stops


def differs(what: str, source: str, here: str) -> str:
    """Return a pattern of the message about one difference, and nothing else."""
    return f"the guest to be taken over is not like this one: {what} is {source} in the source, {here} here$"


@dataclass(frozen=True)
class Unlike:
    """A destination that differs from its source.

    :param changes: fields of the source's spec in which it differs.
    :param source: fields in which the source differs from the usual TD.
    :param says: found in its messages on standard error.
    :param stops: the difference is found only after the source was stopped.
    """

    changes: dict[str, Any]
    says: str
    stops: bool = False
    source: dict[str, Any] = field(default_factory=dict)


UNLIKE = {
    "more-vcpus": Unlike(
        {"smp": "2"}, differs("number of vCPUs", "1", "2 here; maxcpus is 1 in the source, 2")
    ),
    "maxcpus": Unlike({"smp": "1,maxcpus=2"}, differs("maxcpus", "1", "2")),
    "more-memory": Unlike({"memory_mib": 128}, differs("size of memory", f"{64 << 20}", f"{128 << 20}")),
    "more-memory-with-the-same-maximum": Unlike(
        {"memory_mib": 128},
        differs("size of memory", f"{64 << 20}", f"{128 << 20}"),
        source={"extra_args": ("-m", "slots=1,maxmem=1G")},
    ),
    "other-machine": Unlike(
        {"machine": {"type": "pc-q35-11.0"}}, differs("machine", r"pc-q35-11\.\d+", r"pc-q35-11\.0")
    ),
    "other-attributes": Unlike(
        {"guest": {"sept-ve-disable": "off"}}, differs("attributes", "0x10000000", "0x0")
    ),
    "other-clock": Unlike(
        {"cpu": "host,tsc-frequency=2000000000"}, differs("TSC frequency in kHz", "2500000", "2000000")
    ),
    "other-attributes-than-none": Unlike(
        {"guest": {}},
        differs("attributes", "0x0", "0x10000000"),
        source={"guest": {"sept-ve-disable": "off"}},
    ),
    "a-clock-where-the-source-has-none": Unlike(
        {"cpu": FIXED_CLOCK}, differs("TSC frequency in kHz", "0", "2500000"), source={"cpu": "host"}
    ),
    "no-td": Unlike({"guest": None}, differs("type of confidential guest", r"TDX \(1\)", r"none \(0\)")),
    "memory-not-in-files": Unlike({"movable": False}, "the source has no private memory pc.ram"),
    "one-device-less": Unlike(
        {"extra_args": ()},
        "load of migration failed: .*virtio-rng",
        stops=True,
        source={"extra_args": ("-device", "virtio-rng-pci")},
    ),
}


@pytest.mark.tdx_offers("move")
@pytest.mark.usefixtures("td_move")
@pytest.mark.parametrize("name", UNLIKE)
def test_destination_that_is_not_like_the_source(name: str, hkids: Hkids, movable_tds: QemuTds) -> None:
    """The destination exits with a reason and frees what it held, and a second try succeeds."""
    unlike = UNLIKE[name]
    source = movable_tds.run(**unlike.source)
    assert counts(source) == [1, 1]
    before = source.open_files
    destination = movable_tds.destination(source, **unlike.changes)
    move = Move(source, destination)
    assert move.end() == "failed"
    assert destination.wait() == 1
    said = "\n".join(complaints(destination.output))
    assert re.search(unlike.says, said, re.MULTILINE), said
    assert_goes_on(source, 2, stopped=unlike.stops)
    assert hkids.taken == 1
    assert source.open_files == before
    again = moved(source, movable_tds.destination(source))
    assert counts(again) == [3, 3]
    assert hkids.taken == 1
