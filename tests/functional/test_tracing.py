"""Traces through real workers and services, in Python, in JavaScript and on RQ: which span hangs under which."""

import asyncio
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Sampler
from opentelemetry.trace import SpanKind, StatusCode

from sagastream import Reject, Service
from sagastream.broker import exchange
from sagastream.client import requests
from sagastream.core.messages import Verb
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.trace_context import span_id_of
from sagastream.service.runner import ServiceRunner
from sagastream.tracing.observer import Tracing
from sagastream.tracing.sampling import SomeTraces
from support.processes import Commands
from support.scenes import Scene, do
from support.servers import Server
from support.stores import KEYS
from support.waiting import until

pytestmark = pytest.mark.both_in_soak

TRACE_ID: Final = "4bf92f3577b34da6a3ce929d0e0e4736"
#: The span of a program that asks for something. A tracing system has added `a=1` to it.
CALLER: Final = trace.NonRecordingSpan(
    trace.SpanContext(
        int(TRACE_ID, 16),
        1,
        is_remote=True,
        trace_flags=trace.TraceFlags(1),
        trace_state=trace.TraceState([("a", "1")]),
    )
)


class Traced:
    """A worker and a service that write spans into memory."""

    def __init__(self, server: Server, sampler: Sampler | None = None) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler, shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("test")
        self.tracing = Tracing(self.provider)
        self.scene = Scene(server.broker(), observer=self.tracing)

    def serve(self, service: Service) -> None:
        scene = self.scene
        scene.redis.delete(KEYS.published("work"))
        scene.runner = ServiceRunner(scene.broker, service, scene.stop, observer=self.tracing)

    def ended(self, saga_id: str, *steps: Any) -> SagaState:
        """A saga that was begun within a span, at its end."""
        with trace.use_span(CALLER), self.tracer.start_as_current_span("order"):
            self.scene.client.begin(saga_id, steps)
        return self.scene.play(saga_id)

    @property
    def spans(self) -> list[ReadableSpan]:
        return sorted(self._exporter.get_finished_spans(), key=lambda span: span.start_time or 0)

    def one(self, name: str) -> ReadableSpan:
        [span] = [span for span in self.spans if span.name == name]
        return span


@pytest.fixture
def traced(server: Server, request: pytest.FixtureRequest) -> Iterator[Traced]:
    traced = Traced(server, getattr(request, "param", None))
    yield traced
    traced.scene.client.close()
    traced.provider.shutdown()


def context_of(span: ReadableSpan) -> trace.SpanContext:
    context = span.get_span_context()
    assert context is not None
    return context


def ids(span: ReadableSpan) -> tuple[int, int]:
    return context_of(span).trace_id, context_of(span).span_id


def parent(span: ReadableSpan) -> tuple[int, int] | None:
    return None if span.parent is None else (span.parent.trace_id, span.parent.span_id)


def attributes(span: ReadableSpan) -> Mapping[str, Any]:
    assert span.attributes is not None
    return span.attributes


def test_a_handlers_own_span_hangs_under_the_step_and_that_under_the_saga(traced: Traced) -> None:
    service = Service("work")

    @service.command("Do", compensation=None)
    def handle(params: Any, context: Any) -> None:
        with traced.tracer.start_as_current_span("ask the bank"):
            pass

    @service.command("Wait", compensation=None)
    async def handle_async(params: Any, context: Any) -> None:
        with traced.tracer.start_as_current_span("wait for the bank"):
            await asyncio.sleep(0)

    traced.serve(service)
    state = traced.ended("s1", do(1), do(2, "Wait"))
    assert state.status is SagaStatus.COMPLETED
    order, saga = traced.one("order"), traced.one("saga")
    assert parent(saga) == ids(order)
    assert f"{ids(saga)[1]:016x}" == span_id_of("s1", state.begun_ms)
    assert (saga.start_time, saga.end_time) == (state.begun_ms * 10**6, state.updated_ms * 10**6)
    for name, own in (("process Do", "ask the bank"), ("process Wait", "wait for the bank")):
        assert parent(traced.one(name)) == ids(saga)
        assert parent(traced.one(own)) == ids(traced.one(name))
        assert traced.one(name).kind is SpanKind.CONSUMER
    assert state.trace_id == f"{ids(order)[0]:032x}"
    assert {dict(context_of(span).trace_state)["a"] for span in traced.spans} == {"1"}
    assert not trace.get_current_span().get_span_context().is_valid


def test_the_spans_say_what_the_messaging_conventions_ask_for_and_no_payload(traced: Traced) -> None:
    state = traced.ended("s1", do("secret"), do("fail"))
    assert state.status is SagaStatus.ABORTED
    first, failed = (span for span in traced.spans if span.name == "process Do")
    assert dict(attributes(first)) == {
        "messaging.system": "redis",
        "messaging.operation.type": "process",
        "messaging.operation.name": "process",
        "messaging.destination.name": "commands:work",
        "messaging.consumer.group.name": "work",
        "messaging.message.id": "s1/1/transaction",
        "messaging.message.conversation_id": "s1",
        "sagastream.saga_id": "s1",
        "sagastream.step": 1,
        "sagastream.attempt": 1,
        "sagastream.call": 1,
        "sagastream.outcome": "ok",
    }
    assert attributes(failed)["sagastream.outcome"] == "rejected"
    assert failed.status.status_code is StatusCode.UNSET  # it has answered as it should
    assert attributes(failed)["sagastream.error"] == "as asked"
    undo, saga = traced.one("process Undo"), traced.one("saga")
    assert attributes(undo)["sagastream.compensating"] is True
    assert parent(undo) == ids(saga)
    assert dict(attributes(saga)) == {
        "sagastream.saga_id": "s1",
        "sagastream.status": "ABORTED",
        "sagastream.steps": 2,
        "error.type": "ABORTED",
    }
    assert saga.status.status_code is StatusCode.ERROR
    assert saga.status.description == state.reason == "Step 2 failed: as asked"
    decided = ["sent", "done", "sent", "failed", "undo_sent", "undone"]
    assert [event.name for event in saga.events] == decided
    assert dict(saga.events[3].attributes or {}) == {
        "sagastream.step": 2,
        "sagastream.command": "Do",
        "sagastream.error": "as asked",
    }
    assert "secret" not in "".join(span.to_json() for span in traced.spans)


def test_what_a_handler_raises_is_told_harmlessly_and_each_call_has_its_span(traced: Traced) -> None:
    service, calls = Service("work"), []

    @service.command("Do", compensation=None)
    def handle(params: Any, context: Any) -> None:
        calls.append(trace.get_current_span())
        if len(calls) == 1:
            raise ValueError("no\x1b[2J\udc80paper")

    traced.serve(service)
    assert traced.ended("s1", do(1)).status is SagaStatus.COMPLETED
    raised, done = (span for span in traced.spans if span.name == "process Do")
    assert [attributes(span)["sagastream.call"] for span in (raised, done)] == [1, 2]
    assert raised.status.status_code is StatusCode.ERROR
    assert raised.status.description == "ValueError: no\\x1b[2J\\udc80paper"
    [event] = raised.events
    assert event.attributes is not None
    assert event.attributes["exception.type"] == attributes(raised)["error.type"] == "ValueError"
    assert "in handle" in str(event.attributes["exception.stacktrace"])
    raised.to_json().encode()
    assert "\x1b" not in str(event.attributes["exception.stacktrace"])
    assert not raised.events[1:]
    assert done.status.status_code is StatusCode.UNSET


def test_a_long_or_hostile_error_is_told_shortly_and_harmlessly(traced: Traced) -> None:
    service = Service("work")

    @service.command("Do", compensation=None)
    def handle(params: Any, context: Any) -> None:
        raise Reject("\x1b[2J" + "x" * 5_000)

    traced.serve(service)
    assert traced.ended("s1", do(1)).status is SagaStatus.ABORTED
    told = (attributes(traced.one("process Do"))["sagastream.error"], traced.one("saga").status.description)
    for text in map(str, told):
        assert "\\x1b[2Jxxx" in text
        assert "\x1b" not in text
        assert len(text) < 220
        assert text.endswith("…")


def test_a_saga_that_is_begun_within_no_trace_gets_one_of_its_own(traced: Traced) -> None:
    traced.scene.client.begin("s1", [do(1)])
    state = traced.scene.play("s1")
    saga, handler = traced.one("saga"), traced.one("process Do")
    assert saga.parent is None
    assert parent(handler) == ids(saga)
    assert state.trace_id == f"{ids(saga)[0]:032x}"
    assert (saga.start_time, saga.end_time) == (state.begun_ms * 10**6, state.updated_ms * 10**6)


#: The worker is asked to begin no trace, and to record what fails.
NOTHING_USUAL: Final = SomeTraces(clock=lambda: 0.0)


@pytest.mark.parametrize("traced", [ALWAYS_OFF, NOTHING_USUAL], indirect=True, ids=["off", "failed"])
def test_a_saga_that_gets_no_trace_may_be_seen_if_it_fails(traced: Traced, request: pytest.FixtureRequest) -> None:
    while NOTHING_USUAL.should_sample().decision.is_sampled():  # type: ignore[no-untyped-call]
        pass
    traced.scene.client.begin("s1", [do(1), do("fail")])
    state = traced.scene.play("s1")
    assert state.status is SagaStatus.ABORTED
    assert state.traceparent is None
    if "failed" in request.node.name:
        [saga] = traced.spans
        assert (saga.name, saga.parent, saga.status.description) == ("saga", None, "Step 2 failed: as asked")
    else:
        assert traced.spans == []


def test_a_saga_that_a_handler_begins_hangs_under_its_step(traced: Traced) -> None:
    service = Service("work")

    @service.command("Do", compensation=None)
    def handle(params: Any, context: Any) -> None:
        if params == "more":
            traced.scene.client.begin("s2", [do(1)])

    traced.serve(service)
    first = traced.ended("s1", do("more"))
    second = traced.scene.play("s2")
    assert first.trace_id == second.trace_id
    found = {(span.name, attributes(span).get("sagastream.saga_id")): span for span in traced.spans}
    assert parent(found["saga", "s2"]) == ids(found["process Do", "s1"])
    assert parent(found["process Do", "s2"]) == ids(found["saga", "s2"])


def test_what_was_done_about_a_saga_is_told_with_it_and_no_reason(traced: Traced) -> None:
    with traced.tracer.start_as_current_span("order"):
        traced.scene.client.begin("s1", [do(1)])
    cancel = requests.to_intervene(Verb.CANCEL, "s1", "secret", actor="ann")
    exchange.run(traced.scene.redis, requests.append(KEYS, [cancel]))
    state = traced.scene.play("s1")
    assert state.status is SagaStatus.ABORTED
    [event] = [one for one in traced.one("saga").events if one.name == "cancel"]
    assert event.timestamp == state.interventions[0].at_ms * 10**6
    assert traced.one("saga").status.description == "Cancelled"
    assert "secret" not in traced.one("saga").to_json()


# --- other processes


#: A service on the runtime of the sample in JavaScript.
PROBE = """
import { Service } from './sagastream/service.mjs'

const service = new Service('js')
service.command('Tell', { compensation: null }, (params, context) => [context.traceparent, context.tracestate])
await service.run()
"""


def test_a_service_in_javascript_is_told_the_span_of_the_saga(
    traced: Traced, server: Server, node_sample: Path
) -> None:
    (node_sample / "traced.mjs").write_text(PROBE)
    traced.scene.worker.turn(block_ms=1)  # it makes the store
    with subprocess.Popen(["node", "traced.mjs"], cwd=node_sample, env=os.environ | {"REDIS_URL": server.url}) as node:
        try:
            until(lambda: bool(traced.scene.redis.exists(KEYS.published("js"))), what="it publishes")
            state = traced.ended("s1", do(1), do(2, "Tell", "js"))
        finally:
            node.terminate()
    assert state.status is SagaStatus.COMPLETED
    trace_id, span_id = ids(traced.one("saga"))
    assert str(state.traceparent).startswith(f"00-{trace_id:032x}-")
    assert state.results[1] == [f"00-{trace_id:032x}-{span_id:016x}-{str(state.traceparent)[-2:]}", "a=1"]


#: A service of the command line. Its steps run in its own process and on RQ.
SHOP = """
from opentelemetry import trace
from sagastream import Service

service = Service("shop")


@service.command("Charge", compensation=None)
def charge(params, context):
    with trace.get_tracer("shop").start_as_current_span("ask the bank"):
        return params


@service.command("Print", compensation=None, via="rq", queue="prints")
def print_it(params, context):
    with trace.get_tracer("shop").start_as_current_span("wait for the printer"):
        return params
"""


def told(file: Path) -> list[dict[str, Any]]:
    """The spans that the exporter to the console has written into this file, by now."""
    text, found, decoder = file.read_text(), [], json.JSONDecoder()
    while text := text.lstrip():
        try:
            span, end = decoder.raw_decode(text)
        except json.JSONDecodeError:  # the rest of it comes
            break
        found.append(span)
        text = text[end:]
    return found


def test_the_command_line_writes_spans_of_workers_services_and_rq_workers(server: Server, commands: Commands) -> None:
    (commands.folder / "shop.py").write_text(SHOP)
    env = {
        "REDIS_URL": server.url,
        "OTEL_TRACES_EXPORTER": "console",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "PYTHONUNBUFFERED": "1",
    }
    out = {name: commands.folder / f"{name}.out" for name in ("worker", "service", "rq-worker")}
    running = []
    for name, file in out.items():
        where = [] if name == "worker" else ["shop:service"]
        with file.open("wb") as stdout:
            running.append(commands.start(name, "--traces", *where, env=env, stdin=subprocess.DEVNULL, stdout=stdout))
    saga = {"saga_id": "s1", "steps": [do(1, "Charge", "shop"), do(2, "Print", "shop")]}
    trace_of_caller = {"TRACEPARENT": f"00-{TRACE_ID}-00f067aa0ba902b7-01", "TRACESTATE": "a=1"}
    began = commands.run("begin", "-", "--wait", "--timeout", "60", given=json.dumps(saga), **env, **trace_of_caller)
    assert began.returncode == 0, began.stderr

    def spans() -> dict[str, dict[str, Any]]:
        return {span["name"]: span for file in out.values() for span in told(file)}

    names = ["saga", "process Charge", "ask the bank", "process Print", "wait for the printer"]
    until(lambda: spans().keys() >= {*names}, what="all spans are written")
    found = spans()
    assert {span["context"]["trace_id"] for span in found.values()} == {f"0x{TRACE_ID}"}
    assert {span["context"]["trace_state"] for span in found.values()} == {"['{key=a, value=1}']"}
    hangs = {name: span["parent_id"] for name, span in found.items()}
    own = {name: span["context"]["span_id"] for name, span in found.items()}
    assert hangs["saga"] == "0x00f067aa0ba902b7"
    assert hangs["process Charge"] == hangs["process Print"] == own["saga"]
    assert hangs["ask the bank"] == own["process Charge"]
    assert hangs["wait for the printer"] == own["process Print"]
    resources = {name: span["resource"]["attributes"]["service.name"] for name, span in found.items()}
    assert (resources["saga"], resources["process Charge"]) == ("sagastream-worker", "shop")
    shown = commands.run("show", "s1", **env).stdout
    assert f"  trace    {TRACE_ID}" in shown.splitlines()
    for process in running:
        process.terminate()
        assert process.wait(60) == 0


@pytest.mark.parametrize(
    ("env", "why"),
    [
        ({}, "nothing says where spans go: set OTEL_EXPORTER_OTLP_ENDPOINT, or OTEL_TRACES_EXPORTER=console"),
        ({"OTEL_TRACES_EXPORTER": "paper"}, "no installed package exports spans to 'paper'"),
        ({"SAGASTREAM_TRACES": "perhaps"}, "perhaps"),
    ],
)
def test_a_wrong_setting_is_one_line(server: Server, commands: Commands, env: dict[str, str], why: str) -> None:
    given = [] if "SAGASTREAM_TRACES" in env else ["--traces"]
    ended = commands.run("worker", *given, REDIS_URL=server.url, **env)
    assert ended.returncode == 2
    assert why in ended.stderr
    assert "Traceback" not in ended.stderr
