"""How many of the traces that begin in a process are recorded, if the environment names no sampler."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import Decision, SamplingResult

from sagastream.tracing.sampling import PER_S, SomeTraces, default
from sagastream.tracing.setting import _provider

FAILED = {"error.type": "ABORTED"}


class Hand:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def asked(sampler: Any, parent: trace.Span | None = None, attributes: Any = None) -> SamplingResult:
    context = trace.set_span_in_context(parent or trace.INVALID_SPAN)
    result: SamplingResult = sampler.should_sample(context, 1, "saga", trace.SpanKind.INTERNAL, attributes)
    return result


def recorded(sampler: Any, times: int, attributes: Any = None) -> int:
    return sum(asked(sampler, None, attributes).decision is Decision.RECORD_AND_SAMPLE for _ in range(times))


def test_so_many_are_recorded_at_once_and_as_many_in_each_second_after_that() -> None:
    sampler = SomeTraces(clock=(hand := Hand()))
    assert recorded(sampler, 100) == PER_S
    hand.now_s += 1 / PER_S
    assert recorded(sampler, 100) == 1
    hand.now_s += 0.5
    assert recorded(sampler, 100) == PER_S // 2
    hand.now_s += 3_600
    assert recorded(sampler, 100) == PER_S


def test_in_the_long_run_no_more_are_recorded_than_it_says() -> None:
    sampler = SomeTraces(clock=(hand := Hand()))
    found = 0
    for _ in range(1_000):
        hand.now_s += 0.01
        found += recorded(sampler, 3)
    assert 10 * PER_S <= found <= 11 * PER_S


def test_what_has_failed_is_counted_by_itself() -> None:
    sampler = SomeTraces(clock=Hand())
    assert recorded(sampler, 100) == PER_S
    assert recorded(sampler, 100, FAILED) == PER_S


def test_many_threads_are_given_no_more_together() -> None:
    sampler, at_once = SomeTraces(clock=Hand()), threading.Barrier(8)

    def many(_: int) -> int:
        at_once.wait(60)
        return recorded(sampler, 50)

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(many, range(8))) == PER_S


@pytest.mark.parametrize("is_remote", [True, False])
def test_a_trace_that_began_elsewhere_is_recorded_if_it_is_sampled_and_only_then(is_remote: bool) -> None:
    sampler = default()

    def parent(flags: int) -> trace.Span:
        context = trace.SpanContext(1, 2, is_remote=is_remote, trace_flags=trace.TraceFlags(flags))
        return trace.NonRecordingSpan(context)

    assert {asked(sampler, parent(1)).decision for _ in range(100)} == {Decision.RECORD_AND_SAMPLE}
    assert asked(sampler, parent(0)).decision is Decision.DROP
    assert recorded(sampler, 100) == PER_S


def test_the_span_gets_the_attributes_with_which_it_was_asked_for() -> None:
    assert dict(asked(SomeTraces(), None, {"a": 1}).attributes) == {"a": 1}


def test_it_is_that_of_a_process_whose_environment_names_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def description(**environment: str) -> str:
        provider: Any = _provider("worker", {"OTEL_TRACES_EXPORTER": "none"} | environment)
        return str(provider.sampler.get_description())

    assert f"SomeTraces{{{PER_S}/s}}" in description()
    assert f"SomeTraces{{{PER_S}/s}}" in description(OTEL_TRACES_SAMPLER="")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    assert description(OTEL_TRACES_SAMPLER="always_off") == "AlwaysOffSampler"


def test_the_page_says_how_many() -> None:
    page = (Path(__file__).parents[3] / "docs" / "tracing.md").read_text()
    assert f"**records {PER_S} traces a second**" in page
    assert f"{PER_S} of these a second are recorded" in page
