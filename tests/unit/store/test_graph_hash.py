"""The hash of a graph: each step says for itself what it waits for. And a damaged hash is recognised."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import fields, replace

from sagastream.core.decision import decide
from sagastream.core.messages import DefinedBy, Due, Intervene, Signal, Verb
from sagastream.core.phases import Phase
from sagastream.core.saga import KeptSignal, SagaState, SagaStatus, protocol_view
from sagastream.core.step_state import Step
from sagastream.core.steps import GRAPH, PLAIN_SHAPE, Shape, StepDefinition
from sagastream.core.strict_json import encode
from sagastream.core.transitions import Moment
from sagastream.errors import CorruptSaga
from sagastream.store.saga_hash import changed_fields, read
from support.states import graph_successors, graphs, written
from support.stories import CHARGE, RESERVE, SHIP

T_MS = 1_700_000_000_000
DUE_MS = T_MS + 60_000
DUE = b"2023-11-14T22:14:20.000Z"


def a_graph() -> SagaState:
    """A saga two of whose steps wait, with a value in every field that only a graph has."""
    reserve = replace(
        RESERVE,
        shape=Shape(
            id="reserve",
            after=(),
            when=b"true",
            has_references=True,
            compensation_params=b'{"why":{"$ref":"/failure/reason"}}',
        ),
    )
    charge = replace(CHARGE, shape=Shape(id="charge", retry_on="topped-up", retry_within_ms=5000))
    wait = StepDefinition(
        transaction="approval",
        service="",
        params=b"null",
        compensation=None,
        shape=Shape(id="approve", after=(1,), sends=False, wait="approval", wait_ms=86_400_000, goes_on=True),
    )
    pause = StepDefinition(
        transaction="pause",
        service="",
        params=b"null",
        compensation=None,
        shape=Shape(after=(1, 3), sends=False, wait_ms=1000),
    )
    return SagaState(
        saga_id="saga42",
        status=SagaStatus.PENDING,
        current_step=2,
        steps=(
            Step(
                definition=reserve,
                phase=Phase.COMPLETED,
                attempt=1,
                sent_ms=T_MS,
                answered_ms=T_MS,
                built=b'{"sku":"a"}',
                built_undo=b'{"why":"no"}',
                unsent_retries=2,
            ),
            Step(definition=charge, phase=Phase.BACKING_OFF, attempt=1, sent_ms=T_MS, error=b'"no"', due_ms=DUE_MS),
            Step(definition=wait, phase=Phase.AWAITING, attempt=1, sent_ms=T_MS, due_ms=DUE_MS + 1),
            Step(definition=pause),
            Step(definition=replace(SHIP, shape=Shape(when=b"false")), phase=Phase.BYPASSED),
        ),
        begun_ms=T_MS,
        updated_ms=T_MS,
        format=GRAPH,
        input=b'{"sku":"a"}',
        definition=DefinedBy(name="order", version=3, sha256="a" * 64),
        start_ms=T_MS - 1,
        signals=(
            KeptSignal(name="stocked", payload=b'{"n":[1,2.5]}', at_ms=T_MS),
            KeptSignal(name="topped-up", declined="no money", at_ms=T_MS + 1),
        ),
        failed_step=2,
    )


def parked(number: int, phase: Phase, **changes: Any) -> SagaState:
    saga = a_graph()
    step = replace(saga.steps[number - 1], phase=phase, due_ms=None, parked="why", **changes)
    return saga.with_step(number, step)


HASH = written(changed_fields(None, a_graph()))


def going_back() -> SagaState:
    """The same saga while two of its steps are being undone."""
    first, second, wait, *others = a_graph().steps
    undo: dict[str, Any] = {"phase": Phase.UNDO_OUT, "due_ms": DUE_MS, "compensation": "Undo"}
    undo |= {"compensation_sent_ms": T_MS, "compensation_attempt": 1}
    done = replace(wait, phase=Phase.COMPLETED, due_ms=None, answered_ms=T_MS)
    steps = (replace(first, **undo), replace(second, **undo, unknown=True), done, *others)
    return replace(a_graph(), status=SagaStatus.COMPENSATING, steps=steps, signals=(), compensating_steps=(2, 1))


HASH_BACK = written(changed_fields(None, going_back()))
RETRIED = a_graph().with_step(2, replace(a_graph().steps[1], phase=Phase.RETRY_AWAITED))
HASH_RETRIED = written(changed_fields(None, RETRIED))
HASHES = pytest.mark.parametrize("whole", [HASH, HASH_BACK, HASH_RETRIED], ids=["forward", "back", "retried"])


# --- there and back


def test_the_graph_of_these_tests_has_a_value_in_every_field_that_only_graphs_have() -> None:
    saga = a_graph()
    for name in ("format", "input", "definition", "start_ms", "signals", "failed_step"):
        assert getattr(saga, name) not in (None, (), 1)
    assert saga.steps[0].built is not None
    assert saga.steps[0].built_undo is not None
    assert saga.steps[0].unsent_retries == 2
    for field in fields(Shape):
        shapes = [step.definition.shape for step in saga.steps]
        assert any(getattr(shape, field.name) != getattr(PLAIN_SHAPE, field.name) for shape in shapes)


@given(graphs())
def test_a_graph_that_was_written_is_read_back(state: SagaState) -> None:
    assert read("saga42", written(changed_fields(None, state))) == replace(state, version=1)


@given(graph_successors())
def test_writing_only_what_changed_leads_to_the_same_as_writing_all(pair: tuple[SagaState, SagaState]) -> None:
    before, after = pair
    whole = written(changed_fields(None, before)) | {b"version": b"7"}
    assert read("saga42", written(changed_fields(before, after), onto=whole)) == replace(after, version=8)


@given(graph_successors())
def test_nothing_is_written_that_stands_there_already(pair: tuple[SagaState, SagaState]) -> None:
    before, after = pair
    whole = written(changed_fields(None, before)) | {b"version": b"7"}
    for name, value in written(changed_fields(before, after)).items():
        # If the saga moved, `waiting_for` is not built twice to be compared.
        assert whole.get(name) != value or (name == b"waiting_for" and before.updated_ms != after.updated_ms)


@given(graphs())
def test_nothing_that_is_as_usual_takes_up_a_field(state: SagaState) -> None:
    assert b"" not in written(changed_fields(None, state)).values()


@given(graphs())
def test_a_graph_that_was_read_back_can_be_shown(state: SagaState) -> None:
    found: Any = read("saga42", written(changed_fields(None, state)))
    assert protocol_view(found) == protocol_view(state)
    assert encode(protocol_view(found))


def test_a_graph_without_anything_that_is_a_graphs_is_read_back_too() -> None:
    step = Step(definition=RESERVE, phase=Phase.OUT, attempt=1, sent_ms=T_MS, due_ms=DUE_MS)
    saga = replace(a_graph(), steps=(step,), current_step=1, failed_step=None, input=None, definition=None)
    found = read("saga42", written(changed_fields(None, saga)))
    assert found == replace(saga, version=1)
    assert isinstance(found, SagaState)
    assert found.steps[0].definition.shape is PLAIN_SHAPE


def test_what_a_step_waits_for_no_longer_is_emptied() -> None:
    before = replace(a_graph(), version=4)
    step = replace(before.steps[2], phase=Phase.COMPLETED, due_ms=None, answered_ms=T_MS + 5, result=b'{"by":"b"}')
    after = replace(before.with_step(3, step), signals=(), updated_ms=T_MS + 5)
    assert written(changed_fields(before, after)) == {
        b"version": b"5",
        b"waiting_for": b"the time to send ChargePayment, step 2 (charge) again (attempt 2 of 3)",
        b"updated_at": b"2023-11-14T22:13:20.005Z",
        b"signals": b"",
        b"step3.phase": b"COMPLETED",
        b"step3.status": b"COMPLETED",
        b"step3.due_at": b"",
        b"step3.answered_at": b"2023-11-14T22:13:20.005Z",
        b"step3.result": b'{"by":"b"}',
        b"completed_steps": b"[1,3]",
    }


# --- what a person sees


def test_a_hash_reads_as_an_answer_to_where_the_saga_is_and_why() -> None:
    seen = {name.decode(): value.decode() for name, value in HASH.items()}
    assert seen["waiting_for"] == (
        "the time to send ChargePayment, step 2 (charge) again (attempt 2 of 3); the signal approval, step 3 (approve)"
    )
    assert (seen["format"], seen["input"], seen["failed_step"]) == ("2", '{"sku":"a"}', "2")
    assert orjson.loads(seen["definition"]) == {"name": "order", "version": 3, "sha256": "a" * 64}
    assert orjson.loads(seen["signals"]) == [
        {"name": "stocked", "at": "2023-11-14T22:13:20.000Z", "payload": {"n": [1, 2.5]}},
        {"name": "topped-up", "at": "2023-11-14T22:13:20.001Z", "decline": "no money"},
    ]
    assert seen["start_at"] == "2023-11-14T22:13:19.999Z"
    assert seen["send_again_at"] == seen["step2.due_at"] == "2023-11-14T22:14:20.000Z"
    assert {name: value for name, value in seen.items() if name.startswith("step1.")} == {
        "step1.transaction": "ReserveInventory",
        "step1.service": "inventory",
        "step1.params": '{"sku":"abc123","quantity":1}',
        "step1.id": "reserve",
        "step1.after": "[]",
        "step1.when": "true",
        "step1.references": "1",
        "step1.compensation_params": '{"why":{"$ref":"/failure/reason"}}',
        "step1.status": "COMPLETED",
        "step1.phase": "COMPLETED",
        "step1.sent_at": "2023-11-14T22:13:20.000Z",
        "step1.answered_at": "2023-11-14T22:13:20.000Z",
        "step1.params_sent": '{"sku":"a"}',
        "step1.undo_sent": '{"why":"no"}',
        "step1.unsent_retries": "2",
    }
    assert (seen["step2.retry_on"], seen["step2.retry_within_ms"]) == ("topped-up", "5000")
    assert (seen["step3.wait"], seen["step3.wait_ms"], seen["step3.on_timeout"]) == ("approval", "86400000", "continue")
    assert (seen["step4.after"], seen["step4.wait_ms"]) == ("[1,3]", "1000")
    assert not seen.keys() & {"step3.service", "step4.service"}
    assert (seen["step5.phase"], seen["step5.status"]) == ("BYPASSED", "PENDING")
    assert "step4.phase" not in seen
    assert "step3.params_sent" not in seen


def test_a_step_that_is_parked_says_so_itself_and_the_first_one_for_the_saga() -> None:
    saga = parked(2, Phase.PARKED)
    stored = written(changed_fields(None, saga))
    assert stored[b"step2.parked"] == stored[b"parked"] == b"why"
    assert stored[b"waiting_for"] == b"a person, step 2 (charge) is parked; the signal approval, step 3 (approve)"
    assert read("saga42", stored) == replace(saga, version=1)


# --- hashes that are not as they were


#: Without these fields a hash is damaged; all others may be missing, or are damaged without them, too.
NEEDED = [b"status", b"current_step", b"begun_at", b"updated_at", b"version", b"step2.due_at", b"step3.due_at"] + [
    b"step%d.%s" % (number, name) for number in (1, 2, 5) for name in (b"transaction", b"service", b"params", b"status")
]


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("name", NEEDED)
def test_a_hash_without_a_field_that_it_needs_is_corrupt(name: bytes, empty: bool) -> None:
    left = HASH | {name: b""} if empty else {key: value for key, value in HASH.items() if key != name}
    found = read("saga42", left)
    assert isinstance(found, CorruptSaga)
    assert str(found).startswith("the hash of saga saga42 is damaged: ")


@pytest.mark.parametrize("name", sorted(HASH | HASH_BACK | HASH_RETRIED))
@HASHES
def test_a_hash_without_any_one_field_is_never_worse_than_corrupt(name: bytes, whole: dict[bytes, bytes]) -> None:
    if name != b"format":  # without it, this is the hash of a plain saga
        decided_on(read("saga42", {key: value for key, value in whole.items() if key != name}))


def decided_on(found: object) -> None:
    """A state can be decided on, and written."""
    assert isinstance(found, SagaState | CorruptSaga)
    if isinstance(found, CorruptSaga):
        assert str(found).isprintable()
        return
    for now_ms in (T_MS + 7, DUE_MS + 7, T_MS + 400 * 86_400_000):
        moment = Moment(now_ms=now_ms, published={})
        for event in (
            Intervene(verb=Verb.RETRY, saga_id="saga42", reason="x"),
            Intervene(verb=Verb.CANCEL, saga_id="saga42", reason="x", now=True),
            Intervene(verb=Verb.ABANDON, saga_id="saga42", reason="x", now=True),
            Signal(saga_id="saga42", name="approval", payload=b"1"),
            Signal(saga_id="saga42", name="topped-up", declined="no"),
            Due(saga_id="saga42"),
        ):
            state = found
            for happens in (event, *[Due(saga_id="saga42")] * 3):
                decided = decide(state, happens, moment)
                assert isinstance(decided.state, SagaState)
                assert changed_fields(state, decided.state) is not None
                state = decided.state


@pytest.mark.parametrize(
    "wrong",
    [
        {b"step2.status": b"COMPLETED"},  # its phase says that it will be sent again
        {b"step2.phase": b"COMPLETED"},
        {b"step1.phase": b"OUT"},  # without a time
        {b"step2.phase": b"PARKED"},  # without a reason
        {b"step2.parked": b"why"},
        {b"step1.due_at": b"2023-11-14T22:13:20.000Z"},
        {b"status": b"COMPENSATING"},  # a step goes forward
        {b"status": b"COMPLETED"},
        {b"status": b"ABORTED"},
        {b"step1.phase": b"UNDO_OUT", b"step1.due_at": DUE, b"step1.undone_by": b"Undo"},
        {b"failed_step": b"6"},
        {b"step2.after": b"[2]"},
        {b"step2.after": b"[5]"},
        {b"step3.wait_ms": b""},  # a wait without an end
        {b"step4.wait_ms": b"", b"step4.service": b"s", b"step4.phase": b"AWAITING", b"step4.due_at": DUE},
        {b"step2.phase": b"AWAITING"},  # it sends a command
        {b"step3.phase": b"OUT"},  # it sends none
        {b"step2.retry_on": b"", b"step2.retry_within_ms": b"", b"step2.phase": b"RETRY_AWAITED"},
        {b"step2.retry_within_ms": b""},
        {b"step2.retry_on": b""},
    ],
    ids=str,
)
def test_a_hash_that_contradicts_itself_is_corrupt(wrong: dict[bytes, bytes]) -> None:
    assert isinstance(read("saga42", HASH | wrong), CorruptSaga)


def test_a_hash_of_a_live_graph_of_which_no_step_waits_for_anything_is_corrupt() -> None:
    """No time would come for it, and no person would be asked."""
    damaged = "the hash of saga saga42 is damaged: it is {}, and no step of it waits for anything"
    idle = HASH | dict.fromkeys([b"step2.phase", b"step2.due_at", b"step3.phase", b"step3.due_at"], b"")
    assert str(read("saga42", idle)) == damaged.format("PENDING")
    back = HASH_BACK | {b"step1.phase": b"COMPLETED", b"step1.due_at": b"", b"step2.phase": b"IN_DOUBT"}
    assert str(read("saga42", back | {b"step2.due_at": b""})) == damaged.format("COMPENSATING")
    to_start = replace(a_graph(), steps=tuple(Step(definition=step.definition) for step in a_graph().steps))
    whole = written(changed_fields(None, to_start))
    assert isinstance(read("saga42", whole), SagaState)
    assert str(read("saga42", whole | {b"start_at": b""})) == damaged.format("PENDING")


@pytest.mark.parametrize(
    "wrong",
    [
        {b"status": b"PENDING"},
        {b"step1.undone_by": b""},  # nobody may guess what is undoing a step
        {b"step2.undone_by": b"", b"step2.phase": b"UNDO_BACKING_OFF"},
    ],
    ids=str,
)
def test_a_hash_of_a_graph_that_goes_back_and_contradicts_itself_is_corrupt(wrong: dict[bytes, bytes]) -> None:
    assert isinstance(read("saga42", HASH_BACK | wrong), CorruptSaga)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("format", b"0"),
        ("input", b"{"),
        ("input", b"\xff"),
        *(("definition", value) for value in (b"{", b"1", b"[]", b"{}", b'{"name":"a b","version":1,"sha256":"a"}')),
        ("definition", b'{"name":"a","version":"1","sha256":"a"}'),
        ("start_at", b"soon"),
        *(("signals", value) for value in (b"{", b"1", b"{}", b"[1]", b"[{}]", b'[{"name":"a"}]')),
        ("signals", b'[{"name":"a b","at":"2023-11-14T22:13:20.000Z","payload":1}]'),
        ("signals", b'[{"name":"a","at":"yesterday","payload":1}]'),
        ("signals", b'[{"name":"a","at":"2023-11-14T22:13:20.000Z","decline":1}]'),
        *(("failed_step", value) for value in (b"0", b"-1", b"one", b"101")),
        *(("step1.phase", value) for value in (b"DONE", b"completed", b"\xff")),
        *(("step1.after", value) for value in (b"1", b"[0]", b"[[]]", b'["a"]', b"[1", b"null")),
        *(("step1.when", value) for value in (b"{", b"\xff", b"NaN")),
        *(("step1.compensation_params", value) for value in (b"{", b"\xff")),
        *(("step1.params_sent", value) for value in (b"{", b"\xff")),
        *(("step1.undo_sent", value) for value in (b"{", b"\xff")),
        *(("step1.unsent_retries", value) for value in (b"-1", b"twice", b"9" * 20)),
        ("step1.id", b"\xff"),
        *(("step2.due_at", value) for value in (b"soon", b"1700000000000")),
        ("step2.parked", b"\xff"),
        ("step2.retry_on", b"topped up"),
        *(("step2.retry_within_ms", value) for value in (b"0", b"-1", b"1e3", b"9" * 20)),
        ("step3.wait", b"an approval"),
        *(("step3.wait_ms", value) for value in (b"0", b"-1", b"1e3", b"9" * 20)),
        *(("step3.on_timeout", value) for value in (b"fail", b"1", b"CONTINUE")),
    ],
)
def test_a_hash_with_a_garbled_field_is_corrupt(name: str, value: bytes) -> None:
    found = read("saga42", HASH | {name.encode(): value})
    assert isinstance(found, CorruptSaga)
    assert str(found).isprintable()


@given(
    name=st.sampled_from(sorted({*HASH, *HASH_BACK, *HASH_RETRIED} - {b"format"})),
    value=st.binary(max_size=30)
    | st.integers().map(lambda number: str(number).encode())
    | st.sampled_from(sorted({*HASH.values(), *HASH_BACK.values()}))
    | st.sampled_from(Phase).map(str.encode),
    whole=st.sampled_from([HASH, HASH_BACK, HASH_RETRIED]),
)
def test_a_hash_with_any_one_field_garbled_is_never_worse_than_corrupt(
    name: bytes, value: bytes, whole: dict[bytes, bytes]
) -> None:
    decided_on(read("saga42", whole | {name: value}))
