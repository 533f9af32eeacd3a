"""Nothing stays of an erased saga that anybody has given it besides names."""

from sagastream.core.erasure import without_data
from sagastream.core.messages import Verb
from sagastream.core.saga import SagaState, protocol_view
from sagastream.store.saga_hash import changed_fields, read
from support.graph_stories import do, given_graph
from support.states import written

SECRET = "s3cret"
JSON_SECRET = b'"s3cret"'


def an_ended_graph() -> SagaState:
    """A graph with the secret wherever data can be."""
    story = given_graph(
        do(
            "a",
            params={"of": {"$ref": "/input/name"}, "by": SECRET},
            compensation_params=[SECRET, {"$ref": "/failure"}],
        ),
        do("b", when={"eq": [{"$ref": "/input/name"}, SECRET]}),
        {"wait": "go", "timeout_ms": 1000},
        {"wait": "later", "timeout_ms": 1000},
        do("c"),
        input={"name": SECRET},
    )
    story.when_signalled("later", JSON_SECRET, actor=SECRET, request_id="op-1")
    story.when("A_ok", 1, result=SECRET).when("B_ok", 2, result=SECRET)
    story.when_signalled("go", JSON_SECRET, request_id="op-2")
    story.when("C_failed", 5, error=SECRET).when("UnB_failed", 2, error=SECRET)
    story.when_due().when("UnB_ok", 2).when("UnA_ok", 1)
    assert story.saga.ended
    return story.saga


def test_nothing_of_a_graphs_data_stays_in_its_hash() -> None:
    saga = an_ended_graph()
    stored = written(changed_fields(None, saga))
    holding = {name for name, value in stored.items() if SECRET.encode() in value}
    assert holding == {
        b"input",
        b"interventions",
        b"reason",
        b"step1.params",
        b"step1.params_sent",
        b"step1.compensation_params",
        b"step1.undo_sent",
        b"step1.result",
        b"step2.when",
        b"step2.result",
        b"step2.compensation_error",
        b"step3.result",
        b"step4.result",
        b"step5.error",
    }
    erased = without_data(saga)
    whole = written(changed_fields(None, erased))
    # A definition is written once, so whoever erases writes the whole hash anew.
    assert not [name for name, value in whole.items() if SECRET.encode() in value]
    found = read("saga42", whole)
    assert isinstance(found, SagaState)
    assert protocol_view(found)["completed_steps"] == [1, 2, 3, 4]
    assert [step.phase for step in found.steps] == [step.phase for step in saga.steps]


def test_signals_that_nobody_has_taken_go_too() -> None:
    steps = (do("a", kind="pivot"), do("b", kind="retriable", attempts=1), {"wait": "go", "timeout_ms": 1000})
    story = given_graph(*steps).when_signalled("go", JSON_SECRET).when("A_ok", 1).when("B_failed", 2)
    story.when_asked(Verb.ABANDON, request_id="op-2").expect_status("ABORTED", "abandoned at step 2 (b): as agreed")
    assert [one.payload for one in story.saga.signals] == [JSON_SECRET]
    assert without_data(story.saga).signals == ()


def test_the_course_of_the_saga_stays() -> None:
    story = given_graph(do("a"), do("b", after=[])).when_asked(Verb.CANCEL, SECRET).when("A_ok", 1).when("B_ok", 2)
    story.when("UnB_ok", 2).when("UnA_ok", 1)
    erased = without_data(story.saga)
    assert (erased.status, erased.compensating_steps) == ("ABORTED", (2, 1))
    assert [(done.verb, done.reason) for done in erased.interventions] == [("cancel", "(erased)")]
    assert [step.definition.shape.id for step in erased.steps] == ["a", "b"]
