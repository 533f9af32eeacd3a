"""A saga's hash says all of a saga, whatever was written before it; a damaged one is told from a whole one."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastream.errors import CorruptSaga
from sagastream.messages import AS_PUBLISHED, StepDefinition
from sagastream.saga import SagaState, SagaStatus, Step, StepStatus, protocol_view
from sagastream.saga_hash import changed_fields, iso, read
from sagastream.strict_json import encode

NAMES = st.from_regex(r"[A-Za-z0-9._:-]{1,20}", fullmatch=True)
#: From 1970 to 2096, in milliseconds.
TIMES = st.integers(0, 4_000_000_000_000)
PAYLOADS = st.sampled_from([b"null", b"1", b"18446744073709551615", b'"\xc3\xbc"', b'{"a":[1.5,true,{}]}', b'""'])
TEXTS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)

DEFINITIONS = st.builds(
    StepDefinition,
    transaction=NAMES,
    service=NAMES,
    params=PAYLOADS,
    compensation=st.just(AS_PUBLISHED) | st.none() | NAMES,
)
STEPS = st.builds(
    Step,
    definition=DEFINITIONS,
    status=st.sampled_from(StepStatus),
    sent_ms=st.none() | TIMES,
    answered_ms=st.none() | TIMES,
    result=st.none() | PAYLOADS,
    error=st.none() | PAYLOADS,
    unknown=st.booleans(),
    compensation=st.none() | NAMES,
    compensation_sent_ms=st.none() | TIMES,
    compensation_answered_ms=st.none() | TIMES,
)


@st.composite
def states(draw: st.DrawFn, steps: Sequence[Step] | None = None) -> SagaState:
    """Any state, also one that no saga can come to: what the hash keeps must not hang on what it means."""
    steps = tuple(steps or draw(st.lists(STEPS, min_size=1, max_size=4)))
    return draw(
        st.builds(
            SagaState,
            saga_id=st.just("saga42"),
            status=st.sampled_from(SagaStatus),
            current_step=st.integers(1, len(steps)),
            steps=st.just(steps),
            compensating_steps=st.lists(st.integers(1, len(steps)), unique=True).map(tuple),
            reason=st.none() | TEXTS,
            parked=st.none() | TEXTS,
            duplicates=st.integers(0, 10**6),
            begun_ms=TIMES,
            updated_ms=TIMES,
            request_id=st.none() | NAMES,
            trace=st.booleans(),
        )
    )


@st.composite
def successors(draw: st.DrawFn) -> tuple[SagaState, SagaState]:
    """A state and one that may follow on it: what was written once is overwritten, and never taken away."""
    before = replace(draw(states()), version=7)
    steps = []
    for earlier in before.steps:
        if draw(st.booleans()):
            steps.append(earlier)
            continue
        later = {name: value for name, value in _members(draw(STEPS)).items() if value not in (None, False)}
        steps.append(replace(earlier, **later | {"definition": earlier.definition}))
    drawn = draw(states(steps))
    return before, replace(drawn, request_id=before.request_id, trace=before.trace, version=7)


def _members(step: Step) -> dict[str, Any]:
    return {field.name: getattr(step, field.name) for field in fields(step)}


def written(words: Sequence[str | bytes | int], onto: Mapping[bytes, bytes] | None = None) -> dict[bytes, bytes]:
    """The hash after HSET with these words, as HGETALL answers it."""
    raw = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return dict(onto or {}) | dict(zip(raw[::2], raw[1::2], strict=True))


def a_saga() -> SagaState:
    """A saga in the middle of its undo, with a value in every field."""
    definition = StepDefinition(transaction="Reserve", service="inventory", params=b'{"sku":"abc123"}')
    charge = StepDefinition(transaction="Charge", service="payment", params=b"null", compensation="Refund")
    mail = StepDefinition(transaction="Mail", service="mail", params=b"[]", compensation=None)
    return SagaState(
        saga_id="saga42",
        status=SagaStatus.COMPENSATING,
        current_step=1,
        steps=(
            Step(
                definition=definition,
                status=StepStatus.COMPLETED,
                sent_ms=1_700_000_000_001,
                answered_ms=1_700_000_000_002,
                result=b'{"id":"r1"}',
                compensation="Release",
                compensation_sent_ms=1_700_000_000_005,
                compensation_answered_ms=1_700_000_000_006,
            ),
            Step(
                definition=charge,
                status=StepStatus.FAILED,
                sent_ms=1_700_000_000_002,
                answered_ms=1_700_000_000_003,
                error=b'"no"',
                unknown=True,
                compensation="Refund",
                compensation_sent_ms=1_700_000_000_003,
            ),
            Step(definition=mail),
        ),
        compensating_steps=(2, 1),
        reason="Step 2 failed: no",
        parked="Release of step 1 failed: closed",
        duplicates=3,
        begun_ms=1_700_000_000_000,
        updated_ms=1_700_000_000_006,
        request_id="me-1",
        trace=True,
    )


HASH = written(changed_fields(None, a_saga()))
#: Without these there is no saga to speak of.
NEEDED = [
    name
    for name in sorted(HASH)
    if name.split(b".")[-1] not in (b"request_id", b"trace", b"waiting_for")
    and (b"." not in name or name.endswith((b".transaction", b".service", b".params", b".status")))
]


# --- there and back


@given(states())
def test_a_state_that_was_written_is_read_back(state: SagaState) -> None:
    assert read("saga42", written(changed_fields(None, state))) == replace(state, version=1)


@given(successors())
def test_writing_only_what_changed_leads_to_the_same_as_writing_all(pair: tuple[SagaState, SagaState]) -> None:
    before, after = pair
    whole = written(changed_fields(None, before)) | {b"version": b"7"}
    assert read("saga42", written(changed_fields(before, after), onto=whole)) == replace(after, version=8)


@given(successors())
def test_nothing_is_written_that_stands_there_already(pair: tuple[SagaState, SagaState]) -> None:
    before, after = pair
    whole = written(changed_fields(None, before)) | {b"version": b"7"}
    for name, value in written(changed_fields(before, after)).items():
        assert whole.get(name) != value


def test_a_state_that_is_the_same_writes_nothing() -> None:
    state = a_saga()
    assert changed_fields(state, state) == []
    assert changed_fields(None, None) == []


def test_one_more_duplicate_writes_its_count_and_the_version_alone() -> None:
    before = replace(a_saga(), version=4)
    assert written(changed_fields(before, replace(before, duplicates=4))) == {
        b"duplicates": b"4",
        b"version": b"5",
    }


def test_the_first_version_is_1() -> None:
    assert HASH[b"version"] == b"1"


# --- what a person sees


def test_a_hash_reads_as_an_answer_to_where_the_saga_is_and_why() -> None:
    seen = {name.decode(): value.decode() for name, value in HASH.items()}
    assert seen["status"] == "COMPENSATING"
    assert seen["waiting_for"] == "a person, it is parked"
    assert seen["reason"] == "Step 2 failed: no"
    assert seen["parked"] == "Release of step 1 failed: closed"
    assert seen["current_step"] == "1"
    assert seen["compensating_steps"] == "[2,1]"
    assert seen["begun_at"] == "2023-11-14T22:13:20.000Z"
    assert seen["step1.compensation_answered_at"] == "2023-11-14T22:13:20.006Z"
    assert seen["step1.undone_by"] == "Release"
    assert seen["step2.compensation"] == "Refund"
    assert seen["step3.compensation"] == "(none)"
    assert "step1.compensation" not in seen
    assert "step3.sent_at" not in seen


@given(TIMES)
def test_a_time_is_written_in_utc_with_milliseconds(ms: int) -> None:
    text = iso(ms)
    assert text.endswith(f".{ms % 1000:03}Z")
    assert len(text) == len("2023-11-14T22:13:20.000Z")


# --- hashes that are not as they were


def test_no_hash_is_no_saga() -> None:
    assert read("saga42", {}) is None


@pytest.mark.parametrize("name", [name for name in NEEDED if name not in (b"step2.transaction", b"step3.transaction")])
def test_a_hash_without_a_field_that_it_needs_is_corrupt(name: bytes) -> None:
    found = read("saga42", {key: value for key, value in HASH.items() if key != name})
    assert isinstance(found, CorruptSaga)
    assert str(found).startswith("the hash of saga saga42 is damaged: ")


@pytest.mark.parametrize("name", [b"step2.transaction", b"step3.transaction"])
def test_a_hash_that_lacks_the_name_of_a_later_step_is_corrupt(name: bytes) -> None:
    found = read("saga42", {key: value for key, value in HASH.items() if key != name})
    assert isinstance(found, CorruptSaga)


@pytest.mark.parametrize("name", sorted(HASH))
def test_a_hash_without_any_one_field_is_never_worse_than_corrupt(name: bytes) -> None:
    found = read("saga42", {key: value for key, value in HASH.items() if key != name})
    assert isinstance(found, SagaState | CorruptSaga)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("status", b"DONE"),
        ("status", b""),
        ("status", b"pending"),
        ("current_step", b"0"),
        ("current_step", b"-1"),
        ("current_step", b"4"),
        ("current_step", b"one"),
        ("current_step", b"9" * 5000),
        ("compensating_steps", b""),
        ("compensating_steps", b"[2,"),
        ("duplicates", b"many"),
        ("version", b""),
        ("version", b"\xff"),
        ("begun_at", b"yesterday"),
        ("updated_at", b""),
        ("updated_at", b"2023-13-14T22:13:20.000Z"),
        ("reason", b"\xff"),
        ("parked", b"\xff"),
        ("request_id", b"\xff"),
        ("step1.transaction", b"\xff"),
        ("step1.service", b"\xff"),
        ("step1.status", b"DONE"),
        ("step1.sent_at", b"0"),
        ("step1.undone_by", b"\xff"),
        ("step2.compensation", b"\xff"),
        ("step1.compensation_sent_at", b"9" * 400),
    ],
)
def test_a_hash_with_a_garbled_field_is_corrupt(name: str, value: bytes) -> None:
    found = read("saga42", HASH | {name.encode(): value})
    assert isinstance(found, CorruptSaga)
    assert str(found).isprintable()


@pytest.mark.parametrize("value", [b"1", b"null", b"true", b'["1"]', b'{"1":2}', b"[9]", b"[0]", b'"21"', b"[null]"])
def test_a_hash_whose_compensated_steps_are_no_list_of_them_is_corrupt(value: bytes) -> None:
    assert isinstance(read("saga42", HASH | {b"compensating_steps": value}), CorruptSaga)


@pytest.mark.parametrize("name", ["step1.params", "step1.result", "step2.error"])
@pytest.mark.parametrize("value", [b"", b"\xff", b"{", b"NaN"])
def test_a_hash_with_a_payload_that_is_no_json_is_corrupt(name: str, value: bytes) -> None:
    assert isinstance(read("saga42", HASH | {name.encode(): value}), CorruptSaga)


@given(
    name=st.sampled_from(sorted(set(HASH) - {b"compensating_steps"})),
    value=st.binary(max_size=30)
    | st.integers().map(lambda number: str(number).encode())
    | st.sampled_from(sorted(HASH.values()))
    | st.datetimes().map(lambda time: time.isoformat().encode()),
)
def test_a_hash_with_any_one_field_garbled_is_never_worse_than_corrupt(name: bytes, value: bytes) -> None:
    assert isinstance(read("saga42", HASH | {name: value}), SagaState | CorruptSaga)


@given(st.dictionaries(st.sampled_from(sorted(HASH)) | st.binary(max_size=8), st.binary(max_size=8), min_size=1))
def test_a_hash_of_anything_is_corrupt(found: dict[bytes, bytes]) -> None:
    assert isinstance(read("saga42", found), CorruptSaga)


def test_fields_that_nobody_knows_are_left_alone() -> None:
    assert read("saga42", HASH | {b"note": b"seen by Ann", b"step9x": b"1"}) == replace(a_saga(), version=1)


@given(states())
def test_a_state_that_was_read_back_can_be_shown(state: SagaState) -> None:
    found: Any = read("saga42", written(changed_fields(None, state)))
    assert protocol_view(found) == protocol_view(state)
    assert encode(protocol_view(found))
