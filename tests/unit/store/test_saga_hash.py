"""A saga's hash says all of a saga, whatever was written before; and a damaged hash is recognised."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct
from msgspec.structs import fields, replace

from sagastream.core.decision import decide
from sagastream.core.messages import Due, Intervene, Verb
from sagastream.core.phases import Phase
from sagastream.core.saga import Intervention, SagaState, SagaStatus, protocol_view
from sagastream.core.step_state import Step
from sagastream.core.steps import ATTEMPTS, PERSISTENT_ATTEMPTS, StepDefinition, StepKind
from sagastream.core.strict_json import encode
from sagastream.core.transitions import Moment
from sagastream.errors import CorruptSaga, NewerFormat
from sagastream.store.saga_hash import changed_fields, read
from support.states import AWAITED, states, successors, written
from support.stories import CHARGE, RESERVE, SHIP, given_saga
from support.values import TRACEPARENT


def a_saga() -> SagaState:
    """A saga that is parked while it is undone, with a value in every field."""
    definition = StepDefinition(transaction="Reserve", service="inventory", params=b'{"sku":"abc123"}')
    charge = StepDefinition(
        transaction="Charge",
        service="payment",
        params=b"null",
        compensation="Refund",
        kind=StepKind.PIVOT,
        timeout_ms=250,
        attempts=1,
        compensation_attempts=2,
        backoff_ms=7,
        retry_failed=True,
    )
    mail = StepDefinition(transaction="Mail", service="mail", params=b"[]", compensation=None)
    return SagaState(
        saga_id="saga42",
        status=SagaStatus.COMPENSATING,
        current_step=1,
        steps=(
            Step(
                definition=definition,
                phase=Phase.UNDO_PARKED,
                attempt=2,
                sent_ms=1_700_000_000_001,
                answered_ms=1_700_000_000_002,
                result=b'{"id":"r1"}',
                compensation="Release",
                compensation_attempt=10,
                compensation_sent_ms=1_700_000_000_005,
                compensation_answered_ms=1_700_000_000_006,
                compensation_error=b'"closed"',
                tried_before=1,
                parked="Release of step 1 failed: closed",
            ),
            Step(
                definition=charge,
                phase=Phase.UNDO_SKIPPED,
                attempt=1,
                sent_ms=1_700_000_000_002,
                answered_ms=1_700_000_000_003,
                error=b'"no"',
                unknown=True,
                late_ms=1_700_000_000_004,
                done_by="pay-1",
                compensation_done_by="pay-2",
                compensation="Refund",
                compensation_attempt=1,
                compensation_sent_ms=1_700_000_000_003,
            ),
            Step(definition=mail),
        ),
        compensating_steps=(2, 1),
        reason="Step 2 failed: no",
        cancelling="the deadline has passed",
        deadline_ms=1_700_000_000_004,
        hard_deadline=True,
        set_back_ms=3_600_000,
        set_forward_ms=1_800_000,
        interventions=(
            Intervention(verb="retry", reason="open again", at_ms=1_700_000_000_005, request_id="op-1"),
            Intervention(verb="cancel now", reason="came too late", at_ms=1_700_000_000_006, actor="ann@web1"),
        ),
        duplicates=3,
        begun_ms=1_700_000_000_000,
        updated_ms=1_700_000_000_006,
        request_id="me-1",
        echo=True,
        attributes={"customer": "c42", "basket": 815},
        traceparent=TRACEPARENT,
        tracestate="a=1,b=2",
        journal=b'{"what":"parked","at_ms":1700000000005,"step":1,"why":"closed"}',
    )


def at_work(phase: Phase) -> SagaState:
    """The same saga, but a command is out, or will be sent again."""
    first = replace(a_saga().steps[0], phase=phase, due_ms=1_700_000_060_005, parked=None)
    return a_saga().with_step(1, first)


HASH = written(changed_fields(None, a_saga()))
#: The same, with the times of a saga that is not parked.
HASH_OUT = written(changed_fields(None, at_work(Phase.UNDO_OUT)))
HASH_BACKING_OFF = written(changed_fields(None, at_work(Phase.UNDO_BACKING_OFF)))
#: The attributes that a plain saga does not have: see test_graph_hash.py.
OF_GRAPHS: dict[type[Struct], set[str]] = {
    SagaState: {"format", "input", "definition", "start_ms", "signals", "failed_step"},
    Step: {"built", "built_undo", "unsent_retries"},
    StepDefinition: {"shape"},
}
#: Without these fields a hash is damaged; all others may be missing.
NEEDED = [b"status", b"current_step", b"begun_at", b"updated_at", b"version"] + [
    b"step%d.%s" % (number, name) for number in (1, 2, 3) for name in (b"transaction", b"service", b"params", b"status")
]


# --- there and back


def test_the_saga_of_these_tests_has_a_value_in_every_field() -> None:
    saga = a_saga()
    usual = SagaState(saga_id="", status=SagaStatus.PENDING, current_step=0, steps=(), begun_ms=0, updated_ms=0)
    for field in fields(SagaState):
        is_said = getattr(saga, field.name) != getattr(usual, field.name)
        assert is_said is not (field.name == "version" or field.name in OF_GRAPHS[SagaState])
    unsaid = Step(definition=StepDefinition(transaction="", service="", params=b""))
    steps = [*saga.steps, *at_work(Phase.UNDO_OUT).steps]
    for field in fields(Step):
        is_said = any(getattr(step, field.name) != getattr(unsaid, field.name) for step in steps)
        assert is_said is not (field.name in OF_GRAPHS[Step])
    for field in fields(StepDefinition):
        definition = saga.steps[1].definition
        is_said = getattr(definition, field.name) != getattr(unsaid.definition, field.name)
        assert is_said is not (field.name in OF_GRAPHS[StepDefinition])


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
        # If the saga moved, `waiting_for` is not built twice to be compared.
        assert whole.get(name) != value or (name == b"waiting_for" and before.updated_ms != after.updated_ms)


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


@pytest.mark.parametrize(
    ("phase", "emptied_too"),
    [
        (Phase.UNDO_PARKED, b"parked"),
        (Phase.UNDO_OUT, b"times_out_at"),
        (Phase.UNDO_BACKING_OFF, b"send_again_at"),
    ],
)
def test_what_no_longer_holds_is_emptied_rather_than_deleted(phase: Phase, emptied_too: bytes) -> None:
    before = replace(a_saga() if phase is Phase.UNDO_PARKED else at_work(phase), version=4)
    left = replace(before.steps[0], phase=Phase.COMPLETED, due_ms=None, parked=None)
    after = replace(before, status=SagaStatus.ABORTED, cancelling=None, reason=None, interventions=()).with_step(
        1, left
    )
    emptied = written(changed_fields(before, after))
    assert emptied == {
        b"status": b"ABORTED",
        emptied_too: b"",
        b"cancelling": b"",
        b"reason": b"",
        b"interventions": b"",
        b"waiting_for": after.waiting_for.encode(),
        b"version": b"5",
    }
    whole = written(changed_fields(None, before)) | {b"version": b"4"}
    assert read("saga42", whole | emptied) == replace(after, version=5)


def test_all_members_of_the_protocols_state_are_there() -> None:
    assert HASH.keys() >= {name.encode() for name in protocol_view(a_saga())}
    assert orjson.loads(HASH[b"completed_steps"]) == [1, 2]  # one was done, of the other it was heard too late


def test_what_changes_again_and_again_comes_first() -> None:
    """HGETALL lists a hash in the order in which its fields were first written, and the server goes through it in that
    order to find one."""
    state = given_saga(RESERVE, CHARGE, SHIP).state
    assert list(written(changed_fields(None, state)))[:10] == [
        b"version",
        b"updated_at",
        b"status",
        b"current_step",
        b"completed_steps",
        b"waiting_for",
        b"times_out_at",
        b"step1.status",
        b"step2.status",
        b"step3.status",
    ]


def test_a_step_counts_among_the_completed_ones_once_it_was_done() -> None:
    story = given_saga(RESERVE, CHARGE, SHIP)
    stored = written(changed_fields(None, story.state))
    seen = []
    for kind, number in (
        ("ReserveInventory_ok", 1),
        ("ChargePayment_ok", 2),
        ("CreateShipment_failed", 3),
        ("RefundPayment_ok", 2),
        ("ReleaseReservation_ok", 1),
    ):
        before = story.state
        story.when(kind, number)
        changed = written(changed_fields(before, story.state))
        seen.append(changed.get(b"completed_steps"))
        stored |= changed
        view = protocol_view(story.saga)
        assert [orjson.loads(stored[name]) for name in (b"completed_steps", b"compensating_steps")] == [
            view["completed_steps"],
            view["compensating_steps"],
        ]
    assert seen == [b"[1]", b"[1,2]", None, None, None]


def test_a_step_that_completes_and_goes_back_in_one_change_counts_too() -> None:
    story = given_saga(RESERVE, CHARGE).when_asked(Verb.CANCEL)
    before = story.state
    story.when("ReserveInventory_ok", 1)
    assert story.saga.steps[0].being_undone
    assert written(changed_fields(before, story.state))[b"completed_steps"] == b"[1]"


@pytest.mark.parametrize("times", [1, 5])
def test_a_last_change_that_is_centuries_ahead_leaves_times_that_can_be_written(times: int) -> None:
    """It counts as one before the clock was set back."""
    end_of_9999_ms = 253_402_300_799_999
    story = given_saga(RESERVE, CHARGE, deadline_ms=90_000)
    for _ in range(times):
        story.state = replace(story.saga, updated_ms=end_of_9999_ms)
        story.when_due(after_ms=10)
    assert (story.saga.updated_ms, story.saga.times_out_ms) == (story.now_ms, story.now_ms)
    stored = written(changed_fields(None, story.saga))
    assert read("saga42", stored) == replace(story.saga, version=1)


def test_an_error_is_emptied_once_its_step_was_done() -> None:
    before = replace(a_saga(), version=4)
    done = replace(before.steps[1], error=None, unknown=False, answered_ms=5, phase=Phase.UNDO_SKIPPED)
    after = replace(before, steps=(before.steps[0], done, before.steps[2]))
    assert written(changed_fields(before, after)) == {
        b"step2.error": b"",
        b"step2.unknown": b"",
        b"step2.answered_at": b"1970-01-01T00:00:00.005Z",
        b"step2.status": b"COMPLETED",
        b"version": b"5",
    }


@given(states())
def test_nothing_that_is_as_usual_takes_up_a_field(state: SagaState) -> None:
    assert b"" not in written(changed_fields(None, state)).values()


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
    assert seen["step1.compensation_attempt"] == "10"
    assert seen["step1.compensation_error"] == '"closed"'
    assert seen["step2.late_at"] == "2023-11-14T22:13:20.004Z"
    assert (seen["step2.unknown"], seen["step2.skipped"], seen["step2.retry_failed"]) == ("1", "1", "1")
    assert (seen["step2.kind"], seen["step2.timeout_ms"], seen["step2.attempts"]) == ("pivot", "250", "1")
    assert (seen["deadline_at"], seen["deadline"]) == ("2023-11-14T22:13:20.004Z", "hard")
    assert seen["clock_set_back_ms"] == "3600000"
    assert seen["clock_set_forward_ms"] == "1800000"
    assert HASH_OUT[b"times_out_at"] == HASH_BACKING_OFF[b"send_again_at"] == b"2023-11-14T22:14:20.005Z"
    assert orjson.loads(seen["interventions"]) == [
        {"verb": "retry", "reason": "open again", "at": "2023-11-14T22:13:20.005Z", "request_id": "op-1"},
        {
            "verb": "cancel now",
            "reason": "came too late",
            "at": "2023-11-14T22:13:20.006Z",
            "request_id": None,
            "actor": "ann@web1",
        },
    ]
    assert not seen.keys() & {"step1.compensation", "step1.kind", "step1.timeout_ms", "step1.unknown", "step2.attempt"}
    assert "step3.sent_at" not in seen


def test_the_hash_of_a_saga_that_has_just_begun_says_no_more_than_there_is_to_say() -> None:
    step = Step(
        definition=StepDefinition(transaction="Reserve", service="inventory", params=b"7"),
        phase=Phase.OUT,
        attempt=1,
        sent_ms=5,
        due_ms=60_005,
    )
    saga = SagaState(
        saga_id="saga42",
        status=SagaStatus.PENDING,
        current_step=1,
        steps=(step,),
        begun_ms=5,
        updated_ms=5,
    )
    assert written(changed_fields(None, saga)) == {
        b"saga_id": b"saga42",
        b"status": b"PENDING",
        b"completed_steps": b"[]",
        b"compensating_steps": b"[]",
        b"waiting_for": b"inventory to answer Reserve, step 1",
        b"current_step": b"1",
        b"steps": b"1",
        b"begun_at": b"1970-01-01T00:00:00.005Z",
        b"updated_at": b"1970-01-01T00:00:00.005Z",
        b"times_out_at": b"1970-01-01T00:01:00.005Z",
        b"version": b"1",
        b"step1.transaction": b"Reserve",
        b"step1.service": b"inventory",
        b"step1.params": b"7",
        b"step1.status": b"PENDING",
        b"step1.sent_at": b"1970-01-01T00:00:00.005Z",
    }


def test_a_retriable_step_with_as_many_attempts_as_is_usual_for_one_says_its_kind_alone() -> None:
    usual = StepDefinition(
        transaction="A", service="s", params=b"7", kind=StepKind.RETRIABLE, attempts=PERSISTENT_ATTEMPTS
    )
    for definition, told in ((usual, None), (replace(usual, attempts=ATTEMPTS), b"3")):
        step = Step(definition=definition, phase=Phase.UNDO_PARKED, parked="why")
        saga = replace(a_saga(), steps=(step,), current_step=1, compensating_steps=())
        found = written(changed_fields(None, saga))
        assert (found[b"step1.kind"], found.get(b"step1.attempts")) == (b"retriable", told)
        assert read("saga42", found) == replace(saga, version=1)


# --- hashes that are not as they were


def test_no_hash_is_no_saga() -> None:
    assert read("saga42", {}) is None


@pytest.mark.parametrize("empty", [False, True])
@pytest.mark.parametrize("name", NEEDED)
def test_a_hash_without_a_field_that_it_needs_is_corrupt(name: bytes, empty: bool) -> None:
    left = HASH | {name: b""} if empty else {key: value for key, value in HASH.items() if key != name}
    found = read("saga42", left)
    assert isinstance(found, CorruptSaga)
    assert str(found).startswith("the hash of saga saga42 is damaged: ")


ANY_HASH = pytest.mark.parametrize("whole", [HASH, HASH_OUT, HASH_BACKING_OFF], ids=["parked", "out", "backing off"])
#: Nobody may guess what is undoing a step.
UNDONE_BY = b"step1.undone_by"


@pytest.mark.parametrize("name", sorted(HASH.keys() | HASH_OUT.keys() | HASH_BACKING_OFF.keys() - set(NEEDED)))
@ANY_HASH
def test_a_field_that_need_not_be_there_is_missed_as_if_it_were_empty(name: bytes, whole: dict[bytes, bytes]) -> None:
    missing = read("saga42", {key: value for key, value in whole.items() if key != name})
    if name in NEEDED or (name == UNDONE_BY and whole is not HASH):
        assert isinstance(missing, CorruptSaga)
        return
    assert isinstance(missing, SagaState)
    assert read("saga42", whole | {name: b""}) == missing


@ANY_HASH
@pytest.mark.parametrize("name", sorted(HASH | HASH_OUT | HASH_BACKING_OFF))
def test_a_hash_without_any_one_field_is_never_worse_than_corrupt(name: bytes, whole: dict[bytes, bytes]) -> None:
    found = read("saga42", {key: value for key, value in whole.items() if key != name})
    assert isinstance(found, SagaState | CorruptSaga)


@pytest.mark.parametrize("status", AWAITED, ids=str)
def test_a_live_saga_that_waits_for_nothing_is_due_at_once_and_sent_again(status: SagaStatus) -> None:
    # No saga reaches this, but a hash that was written by hand may.
    state = at_work(Phase.UNDO_OUT)
    if status is SagaStatus.PENDING:
        state = replace(state, status=status).with_step(1, replace(state.step, phase=Phase.OUT))
    whole = written(changed_fields(None, state))
    del whole[b"times_out_at"]
    found = read("saga42", whole)
    assert isinstance(found, SagaState)
    assert found.due_ms == 0
    decision = decide(found, Due(saga_id="saga42"), Moment(now_ms=1_700_000_000_007, published={}))
    (command,) = decision.commands
    assert (command.type, command.attempt) == (found.step.command, found.step.current_attempt + 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {b"step1.status": b"PENDING"},  # its saga goes back, and is at this step
        {b"step1.status": b"COMPENSATED"},
        {b"step1.skipped": b"1"},
        {b"status": b"PENDING"},
        {b"step2.status": b"PENDING"},  # which was skipped
        {b"step2.status": b"COMPENSATED"},
    ],
    ids=str,
)
def test_a_hash_that_contradicts_itself_is_corrupt(wrong: dict[bytes, bytes]) -> None:
    found = read("saga42", HASH | wrong)
    assert isinstance(found, CorruptSaga)


#: The status and whether it was skipped, what else the hash says about the step, and what follows.
SAID = [
    ("PENDING", {}, Phase.WAITING),
    ("COMPLETED", {}, Phase.COMPLETED),
    ("FAILED", {}, Phase.FAILED),
    ("FAILED", {"unknown": b"1"}, Phase.IN_DOUBT),
    ("COMPENSATED", {"unknown": b"1"}, Phase.COMPENSATED),
    ("FAILED", {"skipped": b"1", "unknown": b"1"}, Phase.SKIPPED),
    ("FAILED", {"skipped": b"1", "answered_at": b"2023-11-14T22:13:20.003Z"}, Phase.UNDO_SKIPPED),
    ("COMPLETED", {"skipped": b"1", "answered_at": b"2023-11-14T22:13:20.003Z"}, Phase.UNDO_SKIPPED),
]


@pytest.mark.parametrize(("status", "more", "phase"), SAID)
def test_the_phase_of_a_step_follows_from_what_the_hash_says(status: str, more: dict[str, bytes], phase: Phase) -> None:
    said = {b"step3.status": status.encode()} | {f"step3.{name}".encode(): value for name, value in more.items()}
    found = read("saga42", HASH | said)
    assert isinstance(found, SagaState)
    assert (found.steps[2].phase, found.steps[2].status) == (phase, status)


LIMITS = ("timeout_ms", "attempts", "compensation_attempts", "backoff_ms")


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
        ("compensating_steps", b"[2,"),
        ("duplicates", b"many"),
        ("cancelling", b"\xff"),
        ("times_out_at", b"1700000000000"),
        ("send_again_at", b"soon"),
        ("deadline_at", b"2023-11-14T22:13:20.004+00:00"),
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
        ("step1.undone_by", b"Release it"),
        ("step1.attempt", b"many"),
        ("step1.attempt", b"1.5"),
        ("step1.attempt", b"-1"),
        ("step1.compensation_attempt", b"many"),
        ("step1.compensation_attempt", b"-1"),
        ("step1.tried_before", b"many"),
        ("step1.tried_before", b"-1"),
        ("step1.tried_before", b"9" * 5000),
        ("step1.late_at", b"late"),
        ("step2.kind", b"PIVOT"),
        ("step2.kind", b"\xff"),
        *((f"step2.{name}", value) for name in LIMITS for value in (b"0", b"-1", b"many", b"1e3", b"9" * 20)),
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


@pytest.mark.parametrize(
    "value",
    [
        *(b"{", b"1", b"null", b"true", b'"retry"', b'""', b"{}", b'{"verb":"retry"}', b"[1]", b"[null]", b'["retry"]'),
        *(b"[{}]", b"[[]]", b'[{"verb":"retry","reason":"x","at":"2023-11-14T22:13:20.005Z"}]'),
        b'[{"verb":"retry","reason":"x","at":null,"request_id":null}]',
        b'[{"verb":"retry","reason":"x","at":"yesterday","request_id":null}]',
        b'[{"verb":null,"reason":"x","at":"2023-11-14T22:13:20.005Z","request_id":null}]',
        b'[{"verb":"retry","reason":7,"at":"2023-11-14T22:13:20.005Z","request_id":null}]',
        b'[{"verb":"retry","reason":"x","at":"2023-11-14T22:13:20.005Z","request_id":7}]',
    ],
)
def test_a_hash_whose_interventions_are_no_list_of_them_is_corrupt(value: bytes) -> None:
    assert isinstance(read("saga42", HASH | {b"interventions": value}), CorruptSaga)


@pytest.mark.parametrize("name", ["step1.params", "step1.result", "step1.compensation_error", "step2.error"])
@pytest.mark.parametrize("value", [b"\xff", b"{", b"NaN"])
def test_a_hash_with_a_payload_that_is_no_json_is_corrupt(name: str, value: bytes) -> None:
    assert isinstance(read("saga42", HASH | {name.encode(): value}), CorruptSaga)


@given(
    name=st.sampled_from(sorted({*HASH, *HASH_OUT, *HASH_BACKING_OFF} - {b"compensating_steps"})),
    value=st.binary(max_size=30)
    | st.integers().map(lambda number: str(number).encode())
    | st.sampled_from(sorted(HASH.values()))
    | st.datetimes().map(lambda time: time.isoformat().encode()),
    whole=st.sampled_from([HASH, HASH_OUT, HASH_BACKING_OFF]),
)
def test_a_hash_with_any_one_field_garbled_is_never_worse_than_corrupt(
    name: bytes, value: bytes, whole: dict[bytes, bytes]
) -> None:
    found = read("saga42", whole | {name: value})
    assert isinstance(found, SagaState | CorruptSaga)
    if isinstance(found, SagaState):  # … and can be decided on, and written
        moment = Moment(now_ms=1_700_000_000_007, published={})
        asked = Intervene(verb=Verb.RETRY, saga_id="saga42", reason="x")
        for event in (asked, Due(saga_id="saga42")):
            decided = decide(found, event, moment)
            assert isinstance(decided.state, SagaState)
            assert changed_fields(found, decided.state) is not None


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


# --- formats


def test_a_format_is_written_where_it_is_not_the_plain_one() -> None:
    assert b"format" not in HASH
    assert written(changed_fields(None, replace(a_saga(), format=9)))[b"format"] == b"9"


def test_a_hash_of_a_newer_format_is_told_from_a_damaged_one_whatever_else_it_says() -> None:
    for there in (HASH, {b"status": b"DREAMING", b"version": b"x"}):
        found = read("saga42", there | {b"format": b"9"})
        assert isinstance(found, NewerFormat)
        assert not isinstance(found, CorruptSaga)
        assert (found.saga_id, found.format) == ("saga42", 9)
        assert str(found) == "saga saga42 has format 9: only a newer release of sagastream can read it"


def test_a_hash_may_name_the_plain_format() -> None:
    assert read("saga42", HASH | {b"format": b"1"}) == read("saga42", HASH)


@pytest.mark.parametrize("value", [b"0", b"-1", b"two", b"1.5"])
def test_a_hash_with_a_format_that_is_not_a_number_from_1_is_damaged(value: bytes) -> None:
    assert isinstance(read("saga42", HASH | {b"format": value}), CorruptSaga)
