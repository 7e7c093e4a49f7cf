# SPDX-License-Identifier: GPL-2.0-or-later
"""Random requests of KVM's TDX API, held to the model of :mod:`e2e.api_model`.

A failure is shrunk, and its message contains the requests as a test that can be pasted here.  The long form
takes TDX_E2E_FUZZ_SECONDS (1800) and begins with the seed TDX_E2E_FUZZ_SEED (1), then takes the next ones.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from e2e.api_model import MISTAKES, PROCESSES, SLOTS, TDS, VCPUS, Api, Missing
from fixtures.contracts.promises import Contract
from fixtures.host.base import TdxHost

pytestmark = pytest.mark.tdx_needs("misc-cgroup")

STEPS = 40
HAVE_F2 = frozenset({"upstream", "upstream-debug"})

tds = st.integers(0, TDS - 1)
vcpus = st.integers(0, VCPUS - 1)
slots = st.integers(0, SLOTS - 1)


class Requests(RuleBasedStateMachine):
    """Requests by hypothesis; each instance is a fresh model and two fresh processes."""

    make: ClassVar[Callable[[], Api]]
    made: ClassVar[int] = 0
    examples: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.api = type(self).make()
        self.failed = False
        type(self).examples += 1

    def _ask(self, request: Callable[..., None], *arguments: object) -> None:
        type(self).made += 1
        try:
            with suppress(Missing):
                request(*arguments)
        except Exception as error:
            self.failed = True
            for splat in self.api.host.splats():
                error.add_note(splat)
            raise

    @rule(td=tds)
    def advance(self, td: int) -> None:
        self._ask(self.api.advance, td)

    @rule(td=tds)
    def advance_more(self, td: int) -> None:
        for _ in range(4):
            self._ask(self.api.advance, td)

    @rule(td=tds, process=st.integers(0, PROCESSES - 1))
    def create(self, td: int, process: int) -> None:
        self._ask(self.api.create, td, process)

    @rule(td=tds)
    def split_irqchip(self, td: int) -> None:
        self._ask(self.api.split_irqchip, td)

    @rule(td=tds, mistake=st.sampled_from(sorted(MISTAKES)))
    def init_vm(self, td: int, mistake: str) -> None:
        self._ask(self.api.init_vm, td, mistake)

    @rule(td=tds, ident=vcpus)
    def create_vcpu(self, td: int, ident: int) -> None:
        self._ask(self.api.create_vcpu, td, ident)

    @rule(td=tds, ident=vcpus)
    def set_cpuid(self, td: int, ident: int) -> None:
        self._ask(self.api.set_cpuid, td, ident)

    @rule(td=tds, ident=vcpus)
    def init_vcpu(self, td: int, ident: int) -> None:
        self._ask(self.api.init_vcpu, td, ident)

    @rule(td=tds, ident=vcpus)
    def get_cpuid(self, td: int, ident: int) -> None:
        self._ask(self.api.get_cpuid, td, ident)

    @rule(td=tds, slot=slots)
    def add_slot(self, td: int, slot: int) -> None:
        self._ask(self.api.add_slot, td, slot)

    @rule(td=tds, slot=slots)
    def delete_slot(self, td: int, slot: int) -> None:
        self._ask(self.api.delete_slot, td, slot)

    @rule(td=tds, slot=slots, private=st.booleans())
    def set_private(self, td: int, slot: int, private: bool) -> None:
        self._ask(self.api.set_private, td, slot, private)

    @rule(td=tds, ident=vcpus, slot=slots)
    def populate(self, td: int, ident: int, slot: int) -> None:
        self._ask(self.api.populate, td, ident, slot)

    @rule(td=tds)
    def finalize(self, td: int) -> None:
        self._ask(self.api.finalize, td)

    @rule(td=tds, ident=vcpus)
    def run(self, td: int, ident: int) -> None:
        self._ask(self.api.run, td, ident)

    @rule(td=tds)
    def capabilities(self, td: int) -> None:
        self._ask(self.api.capabilities, td)

    @rule(td=tds)
    def from_another_process(self, td: int) -> None:
        self._ask(self.api.from_another_process, td)

    @rule(td=tds, ident=vcpus, command=st.sampled_from(["CAPABILITIES", "INIT_VM", "FINALIZE_VM"]))
    def command_on_vcpu(self, td: int, ident: int, command: str) -> None:
        self._ask(self.api.command_on_vcpu, td, ident, command)

    @rule(td=tds, command=st.sampled_from(["INIT_VCPU", "INIT_MEM_REGION", "GET_CPUID"]))
    def command_on_vm(self, td: int, command: str) -> None:
        self._ask(self.api.command_on_vm, td, command)

    @rule(td=tds)
    def close_vm(self, td: int) -> None:
        self._ask(self.api.close_vm, td)

    @rule(td=tds)
    def forget(self, td: int) -> None:
        self._ask(self.api.forget, td)

    @rule(process=st.integers(0, PROCESSES - 1))
    def kill(self, process: int) -> None:
        self._ask(self.api.kill, process)

    @rule()
    def books(self) -> None:
        self._ask(self.api.books)

    def teardown(self) -> None:
        host = self.api.host
        if self.failed:
            self.api.end()
            host.restore()
            return
        try:
            self.api.close()
        except Exception:
            host.restore()
            raise


def fuzz(make: Callable[[], Api], number: int, examples: int) -> type[Requests]:
    """Make random requests with a seed; returns the counters."""

    class Seeded(Requests):
        pass

    Seeded.make = make
    Seeded.__name__ = Requests.__name__
    run_state_machine_as_test(
        seed(number)(Seeded),
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            print_blob=False,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )
    return Seeded


@pytest.fixture
def make_api(
    tdx_host: TdxHost, contract: Contract, payloads: Mapping[str, bytes], tdx_cleanup: ExitStack
) -> Callable[[], Api]:
    """A function that begins a model, with processes of its own."""
    bare = tdx_host.facts.flavour not in HAVE_F2
    return lambda: Api(tdx_host, contract, payloads["count"], finalize_bare=bare)


@pytest.fixture
def api(make_api: Callable[[], Api], tdx_cleanup: ExitStack) -> Api:
    """A model for a test that was found here."""
    return tdx_cleanup.enter_context(make_api())


def test_a_life_is_as_the_model_has_it(api: Api) -> None:
    for _ in range(12):
        api.advance(0)
    assert api.requests[-1] == "api.run(0, 0)"
    api.books()


def test_vm_without_vcpus_and_memory_ends_when_it_is_closed(api: Api) -> None:
    api.init_vm(0)
    api.books()
    api.close_vm(0)
    api.books()


def test_vcpu_or_memory_keeps_a_vm_that_is_closed(api: Api) -> None:
    api.split_irqchip(0)
    api.init_vm(0)
    api.create_vcpu(0, 0)
    api.init_vm(1)
    api.add_slot(1, 0)
    for td in (0, 1):
        api.close_vm(td)
        api.books()
    for td in (0, 1):
        api.forget(td)
        api.books()


def test_id_of_a_vcpu_that_a_finalized_td_has_is_looked_up_first(api: Api) -> None:
    for _ in range(10):
        api.advance(0)
    api.finalize(0)
    api.create_vcpu(0, 0)
    api.create_vcpu(0, 1)


@pytest.mark.tdx_each_kernel
def test_random_requests_end_as_the_model_has_them(make_api: Callable[[], Api]) -> None:
    assert fuzz(make_api, 1, 10).made > 100


@pytest.mark.slow
@pytest.mark.tdx_each_kernel
@pytest.mark.timeout(3600)
def test_random_requests_for_half_an_hour(
    make_api: Callable[[], Api], tdx_host: TdxHost, run_folder: Path
) -> None:
    number = int(os.environ.get("TDX_E2E_FUZZ_SEED", "1"))
    end = time.monotonic() + float(os.environ.get("TDX_E2E_FUZZ_SECONDS", "1800"))
    counts: dict[int, dict[str, int]] = {}
    while time.monotonic() < end:
        done = fuzz(make_api, number, 50)
        counts[number] = {"examples": done.examples, "requests": done.made}
        number += 1
        run_folder.mkdir(parents=True, exist_ok=True)
        text = msgspec.json.format(msgspec.json.encode(counts))
        (run_folder / f"fuzz-{tdx_host.facts.flavour}.json").write_bytes(text)
    assert counts
