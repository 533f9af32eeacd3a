"""The trace that a saga belongs to: what is read, what services are told, what the hash keeps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from sagastream.core import trace_context
from sagastream.core.begin_parsing import parse_begin
from sagastream.core.commands import Command, Reply, ok, reply_to
from sagastream.core.decision import decide
from sagastream.core.messages import Begin
from sagastream.core.parsing import read_command, read_reply, read_request
from sagastream.core.saga import SagaState
from sagastream.core.transitions import Moment
from sagastream.store.saga_hash import changed_fields, read
from support.states import written
from support.values import TRACEPARENT, stored

BODY = {
    "saga_id": "s1",
    "steps": [
        {"transaction": "Reserve", "service": "inventory", "compensation": "Release"},
        {"transaction": "Charge", "service": "payment", "compensation": None},
    ],
}
WRONG = [
    "",
    "00",
    TRACEPARENT.upper(),
    TRACEPARENT.replace("00-", "ff-", 1),
    f"{TRACEPARENT}-more",
    f"{TRACEPARENT}\n",
    f" {TRACEPARENT}",
    "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
    "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
    "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
    TRACEPARENT.replace("4", "\u0664"),
    TRACEPARENT.replace("00-", "01-", 1) + "-\x1b[2J",
    TRACEPARENT.replace("00-", "01-", 1) + "-" + "x" * 500,
]


def moment(now_ms: int) -> Moment:
    return Moment(now_ms=now_ms, published={})


def begun(traceparent: str | None, tracestate: str | None = None) -> tuple[SagaState, Command]:
    """A saga that has just begun, and its first command."""
    begin = parse_begin(BODY, traceparent=traceparent, tracestate=tracestate)
    decision = decide(None, begin, moment(1_700_000_000_000))
    assert isinstance(decision.state, SagaState)
    return decision.state, decision.commands[0]


def answered(state: SagaState, reply: Reply, now_ms: int = 1_700_000_000_001) -> tuple[SagaState, Command]:
    decision = decide(state, reply, moment(now_ms))
    assert isinstance(decision.state, SagaState)
    return decision.state, decision.commands[0]


def test_it_is_read_as_it_is_written_and_later_versions_as_far_as_they_are_known() -> None:
    assert trace_context.read(TRACEPARENT.encode()) == TRACEPARENT
    later = TRACEPARENT.replace("00-", "cc-", 1)
    assert trace_context.read(later.encode()) == TRACEPARENT
    assert trace_context.read(f"{later}-what-comes".encode()) == TRACEPARENT
    assert trace_context.read(None) is None


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_not_written_as_the_standard_says_is_ignored(wrong: str) -> None:
    begin = stored(parse_begin(BODY).fields()) | {b"traceparent": wrong.encode()}
    found = read_request(begin)
    assert isinstance(found, Begin)
    assert found.traceparent is None
    command = read_command("inventory", stored(begun(None)[1].fields()) | {b"traceparent": wrong.encode()}, 0)
    assert isinstance(command, Command)
    assert command.traceparent is None


@given(st.binary(max_size=80))
def test_any_bytes_are_read_as_a_traceparent_or_ignored(value: bytes) -> None:
    found = trace_context.read(value)
    assert found is None or trace_context.read(found.encode()) == found


def test_every_command_of_a_saga_names_its_span_and_the_reply_names_it_too() -> None:
    state, command = begun(TRACEPARENT)
    assert state.traceparent == TRACEPARENT
    span = trace_context.span_id_of("s1", state.begun_ms)
    assert command.traceparent == f"00-4bf92f3577b34da6a3ce929d0e0e4736-{span}-01"
    assert command.trace_id == state.trace_id == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert read_command("inventory", stored(command.fields()), 0) == command

    reply = reply_to(command, ok("Reserve"))
    assert reply.traceparent == command.traceparent
    assert read_reply(stored(reply.fields())) == replace(reply, traceparent=None)  # the saga knows it

    state, second = answered(state, reply)
    assert second.traceparent == command.traceparent
    refused = replace(reply_to(second, "Charge_failed", error=b'"no"'), service="payment")
    _, undo = answered(state, refused)
    assert undo.compensating
    assert undo.traceparent == command.traceparent


def test_the_span_of_a_saga_follows_from_its_id_and_its_begin_and_is_never_zero() -> None:
    assert trace_context.span_id_of("s1", 5) == trace_context.span_id_of("s1", 5)
    ids = [trace_context.span_id_of(saga_id, ms) for saga_id in ("s1", "s2") for ms in (5, 6)]
    assert len(set(ids)) == 4
    assert all(trace_context.read(f"00-{'1' * 32}-{one}-00".encode()) for one in ids)


def test_a_saga_may_have_a_trace_of_its_own_that_is_told_apart_from_any_other() -> None:
    for trace_id in ("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 31 + "1", "0" * 16 + "1" * 16):
        own = trace_context.of_its_own(trace_id)
        assert trace_context.read(own.encode()) == own
        assert trace_context.is_its_own(own)
        assert trace_context.is_sampled(own)
        assert trace_context.trace_id(own) == trace_id
    assert not trace_context.is_its_own(TRACEPARENT)
    # Some systems name a trace by its first span.
    assert not trace_context.is_its_own(f"00-{'0' * 16}{'1' * 16}-{'1' * 16}-01")


def test_a_saga_that_is_not_sampled_stays_so() -> None:
    assert [trace_context.is_sampled(TRACEPARENT[:-2] + flags) for flags in ("00", "01", "02", "03")] == [
        False,
        True,
        False,
        True,
    ]
    _, command = begun(TRACEPARENT[:-2] + "00")
    assert command.traceparent is not None
    assert command.traceparent.endswith("-00")


def test_a_saga_that_belongs_to_no_trace_is_written_as_ever() -> None:
    state, command = begun(None)
    reply = reply_to(command, ok("Reserve"))
    written_fields = [
        *stored(parse_begin(BODY).fields()),
        *stored(command.fields()),
        *stored(reply.fields()),
        *changed_fields(None, state),
    ]
    assert not {"traceparent", "tracestate", b"traceparent", b"tracestate"} & {*written_fields}
    assert command.trace_id is state.trace_id is None


def test_the_hash_keeps_within_which_span_a_saga_was_begun_and_no_damage_there_stops_it() -> None:
    state, _ = begun(TRACEPARENT)
    fields = written(changed_fields(None, state))
    assert fields[b"traceparent"] == TRACEPARENT.encode()
    assert read("s1", fields) == replace(state, version=1)
    assert read("s1", fields | {b"traceparent": b"gone"}) == replace(state, version=1, traceparent=None)


# --- tracestate

#: What is read, and what of it is passed on.
STATES = {
    "ot=th:8,rojo=00f067aa0ba902b7": "ot=th:8,rojo=00f067aa0ba902b7",
    " a=1 ,\t b=2,,": "a=1,b=2",
    "a b=1": None,
    "=1": None,
    "A=1": None,
    "a=1;b=2\x1b[2J": None,
    "a=\u00fc": None,
    "a": None,
    "": None,
    ",".join(f"k{n}=1" for n in range(32)): ",".join(f"k{n}=1" for n in range(32)),
    ",".join(f"k{n}=1" for n in range(33)): None,
    f"a={'x' * 256}": f"a={'x' * 256}",
    f"a={'x' * 257}": None,
    # What is too long loses its long members first, then the last ones.
    f"a=1,b={'x' * 126},c={'y' * 127},d={'y' * 256},e=2": f"a=1,b={'x' * 126},e=2",
    ",".join(f"k{n}={'x' * 60}" for n in range(10)): ",".join(f"k{n}={'x' * 60}" for n in range(8)),
    f"a={'x' * 250},b={'x' * 250},c={'x' * 250}": None,
    ",".join(["a=1", *[" " * 100] * 100]): None,
}


@pytest.mark.parametrize("given", STATES, ids=range(len(STATES)))
def test_what_tracing_systems_add_is_passed_on_up_to_a_limit(given: str) -> None:
    assert trace_context.read_state(given.encode()) == STATES[given]
    found = read_request(stored(parse_begin(BODY, traceparent=TRACEPARENT).fields()) | {b"tracestate": given.encode()})
    assert isinstance(found, Begin)
    assert (found.traceparent, found.tracestate) == (TRACEPARENT, STATES[given])


@given(st.binary(max_size=700) | st.text("ab=, \t1", max_size=700).map(str.encode))
def test_any_bytes_are_read_as_a_tracestate_or_ignored(value: bytes) -> None:
    found = trace_context.read_state(value)
    assert found is None or (len(found) <= 512 and trace_context.read_state(found.encode()) == found)


def test_the_tracestate_goes_wherever_the_trace_goes() -> None:
    state, command = begun(TRACEPARENT, "a=1,b=2")
    assert read("s1", written(changed_fields(None, state))) == replace(state, version=1)
    assert state.tracestate == command.tracestate == "a=1,b=2"
    assert read_command("inventory", stored(command.fields()), 0) == command
    reply = reply_to(command, ok("Reserve"))
    assert stored(reply.fields())[b"tracestate"] == b"a=1,b=2"
    state, second = answered(state, reply)
    refused = replace(reply_to(second, "Charge_failed", error=b'"no"'), service="payment")
    _, undo = answered(state, refused)
    assert second.tracestate == undo.tracestate == "a=1,b=2"


def test_without_a_traceparent_there_is_no_tracestate() -> None:
    for traceparent in ({}, {b"traceparent": b"gone"}):
        found = read_request(stored(parse_begin(BODY).fields()) | {b"tracestate": b"a=1"} | traceparent)
        assert isinstance(found, Begin)
        assert found.tracestate is None
        entry = stored(begun(None)[1].fields()) | {b"tracestate": b"a=1"} | traceparent
        command = read_command("inventory", entry, 0)
        assert isinstance(command, Command)
        assert command.tracestate is None
