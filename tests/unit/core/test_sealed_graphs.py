"""Sealed values in sagas with an input: references copy members that nobody has opened on the way."""

import json
from typing import Any

import pytest
from msgspec.structs import replace

from sagastream import Context, Definition, Reject, Service, item
from sagastream.client import requests
from sagastream.client.answers import conflicting
from sagastream.client.requests import to_begin
from sagastream.codecs.keyring import Keyring
from sagastream.core.begin_parsing import parse_begin
from sagastream.core.commands import Command, reply_to
from sagastream.core.decision import decide
from sagastream.core.messages import Begin, Signal
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.same_saga import conflict
from sagastream.core.sealed_messages import (
    MAX_MEMBERS,
    open_begin,
    open_command,
    open_state,
    opened_message,
    sealed_begin,
    sealed_reply,
    sealed_signal,
)
from sagastream.core.sealed_values import is_sealed, keys_of
from sagastream.core.sealing import MAX_SEALED, UNDO, Place, open_value, seal
from sagastream.core.strict_json import encode
from sagastream.core.transitions import Moment
from sagastream.errors import CannotOpen, MalformedMessage
from sagastream.store import saga_hash
from sagastream.testing import Sagas
from support.graphs import Played
from support.values import a_command

KEY = Keyring.new_key()
RING = Keyring({"k": KEY})
ROTATED = Keyring({"new": Keyring.new_key(), "k": KEY})
SECRET = "mei.tanaka@example.org"


def begin(*steps: dict[str, Any], **members: Any) -> Begin:
    body: dict[str, Any] = {"saga_id": "s", "input": {"user": {"mail": SECRET}, "sum": 5}, "steps": list(steps)}
    return parse_begin(body | members)


def command_of(**members: Any) -> Command:
    return replace(a_command(compensating=members.pop("compensating", False)), **members)


def do(params: Any, **more: Any) -> dict[str, Any]:
    return {"transaction": "Do", "service": "work", "params": params, "compensation": None} | more


REFERS = do({"for": {"$ref": "/input/user"}, "note": "readable"})


def test_each_member_of_an_input_is_sealed_by_itself_and_bound_to_its_name() -> None:
    sealed = sealed_begin(RING, begin(REFERS, do({"note": SECRET})))
    assert sealed.input is not None
    members = json.loads(sealed.input)
    assert [member["$sealed"]["from"] for member in members.values()] == ["0/input/user", "0/input/sum"]
    assert SECRET.encode() not in sealed.body()
    assert is_sealed(sealed.steps[1].params)
    assert sealed.steps[0].params == json.dumps(REFERS["params"], separators=(",", ":")).encode()  # it is shape
    opened, why = open_begin(RING, sealed)
    assert (json.loads(opened.input or b""), why) == ({"user": {"mail": SECRET}, "sum": 5}, {})
    swapped = json.dumps({"user": members["sum"], "sum": members["user"]}).encode()
    opened, why = open_begin(RING, replace(sealed, input=swapped))
    assert opened.input == swapped
    assert "somebody has moved it" in why["input"]


def test_what_was_sealed_is_accepted_on_the_wire_and_is_not_sealed_twice() -> None:
    sealed = sealed_begin(RING, begin(REFERS, do({"note": SECRET})))
    assert parse_begin(json.loads(sealed.body()), plain=True).body() == sealed.body()
    assert sealed_begin(RING, sealed) == sealed
    assert sealed_begin(ROTATED, sealed) == sealed


def versioned(version: int, pointer: str, data: Any, ring: Keyring = RING) -> Begin:
    """By a definition whose versions refer to different parts of the input: those are sealed by themselves."""
    named = {"name": "order", "version": version, "sha256": f"{version}" * 64}
    return sealed_begin(ring, begin(do({"to": {"$ref": pointer}}), input=data, definition=named))


def test_a_worker_cannot_tell_whether_inputs_differ_that_are_sealed_in_other_parts() -> None:
    """It does not say that another saga has the id. A client opens both."""
    data = {"user": {"mail": SECRET, "name": "Mei"}}
    there = versioned(1, "/input/user", data)
    kept = decide(None, there, Moment(now_ms=0, published={})).state
    assert isinstance(kept, SagaState)
    again = versioned(2, "/input/user/mail", data)
    assert again.input != there.input
    assert conflict(kept, versioned(2, "/input/user", data)) is None
    assert conflict(kept, again) == (
        "cannot tell whether this is saga s as it began: its inputs and those of this request are sealed with key k in "
        "different parts; a client that has the keys can tell"
    )
    # What is sealed in the same part, or is not sealed, such as names, can be told.
    for differs in (
        versioned(2, "/input/user", {"user": {"mail": "x", "name": "Mei"}}),
        versioned(2, "/input/user/mail", data | {"more": 1}),
    ):
        assert str(conflict(kept, differs)).startswith("another saga has the id s: inputs differ, sealed with key k ")
    assert conflicting(kept, again, RING) is None
    refused = conflicting(kept, versioned(2, "/input/user/mail", {"user": {"mail": "x", "name": "Mei"}}), RING)
    assert refused is not None
    assert "another saga has the id s: inputs differ; they are sealed" in str(refused.error)


def test_a_saga_that_is_begun_again_under_another_key_is_the_same() -> None:
    state = Played(REFERS, input={"user": {"mail": SECRET}, "sum": 5}).saga
    asked: Any = {"saga_id": "trip-1", "input": {"user": {"mail": SECRET}, "sum": 5}, "steps": [REFERS]}
    again = to_begin(asked)
    kept = replace(state, input=sealed_begin(RING, again).input)
    assert conflicting(kept, sealed_begin(ROTATED, again), ROTATED) is None
    other = sealed_begin(ROTATED, replace(again, input=b'{"user":{"mail":"another"},"sum":5}'))
    refused = conflicting(kept, other, ROTATED)
    assert refused is not None
    assert "inputs differ; they are sealed" in str(refused.error)
    unknown = conflicting(kept, sealed_begin(ROTATED, again), Keyring({"new": Keyring.new_key()}))
    assert unknown is not None
    assert "cannot be opened" in str(unknown.error)


@pytest.mark.parametrize(
    ("step", "where"),
    [
        (
            do({"$concat": ["to ", {"$ref": "/input/user/mail"}]}),
            "step 1: params/$concat/1/$ref: /input/user/mail: the",
        ),
        (do({"$concat": ["to ", {"$ref": "/input/sum"}]}), "step 1: params/$concat/1/$ref: /input/sum"),
        (do(1, when={"gt": [{"$ref": "/input/sum"}, 3]}), "step 1: when/gt/0/$ref: /input/sum"),
        (
            do(1, compensation="Undo", compensation_params=[{"$concat": [{"$concat": [{"$ref": "/input/sum"}]}]}]),
            "step 1: compensation_params/0/$concat/0/$concat/0/$ref: /input/sum",
        ),
    ],
)
def test_what_workers_would_have_to_read_is_refused_before_it_is_sent(step: dict[str, Any], where: str) -> None:
    with pytest.raises(MalformedMessage) as error:
        sealed_begin(RING, begin(step))
    assert str(error.value).startswith(where)


def test_what_workers_copy_is_not_refused() -> None:
    steps = [
        do([{"$ref": "/input"}, {"$ref": "/input/sum", "default": 1}]),
        do({"$concat": ["saga ", {"$ref": "/saga/id"}]}),
        do(1, when={"exists": {"$ref": "/input/voucher"}}),
        do(1, when={"not": {"exists": {"$ref": "/input/user/mail"}}}),
        do({"$literal": {"$concat": [{"$ref": "/input/user/mail"}]}}),
    ]
    sealed_begin(RING, begin(*steps))


def test_where_references_lead_into_a_member_what_they_lead_to_is_sealed_by_itself() -> None:
    items = [{"sku": SECRET, "n~/": [1, 2]}, {"sku": "b", "n~/": []}]
    data: dict[str, Any] = {"items": items, "user": {"mail": SECRET}, "none": {}, "null": None}
    steps = [
        do({"sku": {"$ref": "/input/items/0/sku"}, "n": {"$ref": "/input/items/0/n~0~1/1"}}),
        do([{"$ref": "/input/items/1/sku"}, {"$ref": "/input/items"}, {"$ref": "/input/none/x", "default": 1}]),
        do({"$ref": "/input/null/x", "default": "none"}),
        do({"$ref": "/input/items/7/sku", "default": None}),
    ]
    sealed = sealed_begin(RING, begin(*steps, input=data))
    assert sealed.input is not None
    found = json.loads(sealed.input)
    assert [one["sku"]["$sealed"]["from"] for one in found["items"]] == ["0/input/items/0/sku", "0/input/items/1/sku"]
    assert [one["$sealed"]["from"] for one in found["items"][0]["n~/"]] == [
        "0/input/items/0/n~0~1/0",
        "0/input/items/0/n~0~1/1",
    ]
    assert found["user"]["$sealed"]["from"] == "0/input/user"
    opened, why = open_begin(RING, sealed)
    assert (json.loads(opened.input or b""), why) == (data, {})
    found["items"].reverse()
    assert "somebody has moved it" in open_begin(RING, replace(sealed, input=json.dumps(found).encode()))[1]["input"]
    # So the parts are copied, and open where they are copied to.
    played = Played(*steps, input=json.loads(sealed.input)).ok(1)
    params = [step.params for step in open_state(RING, replace(played.saga, saga_id="s"))[0].steps]
    assert json.loads(params[0]) == {"sku": SECRET, "n": 2}
    assert json.loads(params[1]) == ["b", items, 1]


def test_a_definition_makes_a_step_of_each_item_of_a_sealed_list() -> None:
    order = Definition("order", version=1)
    order.step("Pick", service="work", compensation=None, each=order.input.items, params={"sku": item.sku}, id="pick")
    sealed = sealed_begin(RING, to_begin(order.saga({"items": [{"sku": SECRET}, {"sku": "b"}]}, saga_id="s")))
    assert SECRET.encode() not in sealed.body()
    played = Played(*json.loads(sealed.body())["steps"], input=json.loads(sealed.input or b""))
    opened, why = open_state(RING, replace(played.saga, saga_id="s"))
    assert [json.loads(step.params) for step in opened.steps] == [{"sku": SECRET}, {"sku": "b"}]
    assert why == {}


def test_a_pointer_into_a_sealed_member_of_a_result_fails_with_the_place() -> None:
    first = do(1, id="first")
    played = Played(first, do({"$ref": "/steps/first/result/who/mail"}), input={})
    command = command_of(type="Do", saga_id="trip-1", step=1, input=b"{}")
    result = sealed_reply(RING, command, reply_to(command, "Do_ok", result=b'{"who":{"mail":"x"}}')).result
    played.ok(1, json.loads(result or b""))
    assert "is sealed, and can be copied only as a whole" in str(played.saga.reason)


def test_the_members_of_a_result_are_sealed_one_by_one_if_the_saga_has_an_input() -> None:
    command = command_of(input=b"{}")
    reply = reply_to(command, f"{command.type}_ok", result=b'{"id":"r1","n":{"a":1}}')
    sealed = sealed_reply(RING, command, reply).result
    assert sealed is not None
    members = json.loads(sealed)
    assert {member["$sealed"]["from"] for member in members.values()} == {f"{command.step}/result"}
    assert open_value(RING, sealed, Place(command.saga_id, command.step, "result")) == reply.result
    # The member as a worker copies it opens in the params of another step; a release without graphs does just this.
    copied = json.dumps({"of": members["id"]}).encode()
    assert open_value(RING, copied, Place(command.saga_id, command.step + 1, "params")) == b'{"of":"r1"}'


@pytest.mark.parametrize("result", [b"{}", b"[1,2]", b'"x"', b"null", b"7"])
def test_other_results_are_sealed_as_a_whole(result: bytes) -> None:
    command = command_of(input=b"{}")
    sealed = sealed_reply(RING, command, reply_to(command, f"{command.type}_ok", result=result)).result
    assert sealed is not None
    assert is_sealed(sealed)


def test_so_are_those_of_very_many_members_and_those_of_a_plain_saga() -> None:
    many = json.dumps({str(number): number for number in range(MAX_MEMBERS + 1)}).encode()
    for data, members in ((b"{}", many), (None, b'{"id":"r1"}')):
        command = command_of(input=data)
        sealed = sealed_reply(RING, command, reply_to(command, f"{command.type}_ok", result=members)).result
        assert sealed is not None
        assert is_sealed(sealed)


def test_an_input_of_too_many_members_is_refused() -> None:
    many = {str(number): 1 for number in range(MAX_SEALED + 1)}
    with pytest.raises(MalformedMessage, match=f"input: too many values to be sealed: more than {MAX_SEALED}"):
        sealed_begin(RING, begin(do(1), input=many))


def test_a_value_opens_only_where_references_may_have_copied_it() -> None:
    places = {
        "input": Place("s", 0, "input/user"),
        "signal": Place("s", 0, "signal/approve"),
        "result 1": Place("s", 1, "result"),
        "params 1": Place("s", 1, "params"),
    }
    opens = {
        Place("s", 1, "params"): {"input", "signal", "params 1"},
        Place("s", 2, "params"): {"input", "signal", "result 1"},
        Place("s", 1, UNDO): {"input", "signal", "result 1"},
        Place("s", 2, UNDO): {"input", "signal", "result 1"},
        Place("s", 1, "result"): {"result 1"},
        Place("s", 0, "input/user"): {"input"},
        Place("s", 0, "input/other"): set(),
        Place("s", 0, "signal/approve"): {"signal"},
        Place("s", 0, "signal/other"): set(),
        Place("t", 2, "params"): set(),
    }
    for place, wanted in opens.items():
        found = set()
        for name, source in places.items():
            try:
                open_value(RING, seal(RING, b"1", source), place)
                found.add(name)
            except CannotOpen:
                pass
        assert found == wanted, place


def test_all_of_a_command_is_opened_and_of_messages_that_are_shown() -> None:
    sealed = sealed_begin(RING, begin(REFERS))
    assert sealed.input is not None
    user = json.dumps(json.loads(sealed.input)["user"]).encode()
    command = command_of(saga_id="s", step=1, params=user, input=sealed.input, undo=user, compensating=True)
    opened = open_command(RING, command)
    assert json.loads(opened.params) == json.loads(opened.undo or b"") == {"mail": SECRET}
    assert json.loads(opened.input or b"") == {"user": {"mail": SECRET}, "sum": 5}
    with pytest.raises(CannotOpen):
        open_command(None, command)
    shown = opened_message(RING, json.loads(sealed.body()))
    assert shown["input"] == {"user": {"mail": SECRET}, "sum": 5}
    signal = sealed_signal(RING, Signal(saga_id="s", name="approve", payload=b'{"by":"%s"}' % SECRET.encode()))
    assert SECRET.encode() not in signal.body()
    assert opened_message(RING, json.loads(signal.body()))["payload"] == {"by": SECRET}
    assert opened_message(None, json.loads(signal.body())) == json.loads(signal.body())


def test_a_graph_runs_with_a_codec_and_nothing_that_it_keeps_is_readable() -> None:
    told: list[Any] = []
    service = Service("work")

    @service.command("Book", compensation="Cancel")
    def book(params: Any, context: Context) -> Any:
        told.append(("book", params, context.input["user"]["mail"]))
        return {"id": SECRET, "of": params}

    @service.compensation("Cancel")
    def cancel(params: Any, context: Context) -> None:
        told.append(("cancel", params, context.undo, context.result["id"]))

    @service.command("Pay", compensation=None)
    def pay(params: Any, context: Context) -> None:
        told.append(("pay", params))

    steps = [
        do(
            {"for": {"$ref": "/input/user"}},
            transaction="Book",
            id="book",
            compensation="Cancel",
            compensation_params={"id": {"$ref": "/steps/book/result/id"}, "why": {"$ref": "/failure/reason"}},
        ),
        {"id": "ok", "wait": "approve", "timeout_ms": 1000},
        do({"id": {"$ref": "/steps/book/result/id"}, "by": {"$ref": "/steps/ok/result/by"}}, transaction="Pay"),
    ]
    with Sagas(service, codec=RING) as sagas:
        sagas.on_wait("approve", {"by": SECRET})
        sagas.command("Pay").rejects("no")
        saga = sagas.begin(steps, {"user": {"mail": SECRET}})
        sagas.settle()
        kept = sagas._orchestrator.states[saga.saga_id]
    assert saga.status == "ABORTED"
    assert told == [
        ("book", {"for": {"mail": SECRET}}, SECRET),
        ("cancel", {"for": {"mail": SECRET}}, {"id": SECRET, "why": "Step 3 failed: no"}, SECRET),
    ]
    words = saga_hash.changed_fields(None, kept)
    assert SECRET not in " ".join(map(str, words))
    opened, why = open_state(RING, kept)
    assert why == {}
    assert opened.steps[1].result == b'{"by":"%s"}' % SECRET.encode()
    assert opened.steps[2].params == b'{"id":"%s","by":"%s"}' % (SECRET.encode(), SECRET.encode())
    assert opened == saga.state
    _, why = open_state(None, kept)
    assert set(why) == {"input", "1/params", "1/undo", "1/result", "0/signal/approve", "3/params"}
    assert keys_of(kept.input) == ["k"]


def test_a_kept_signal_is_opened_with_the_rest() -> None:
    signal = sealed_signal(RING, Signal(saga_id="trip-1", name="approve", payload=b'{"by":"x"}'))
    saga = Played(start_at_ms=1_800_000_000_000).signal("approve", json.loads(signal.payload)).saga
    assert open_state(RING, saga)[0].signals[0].payload == b'{"by":"x"}'
    assert open_state(None, saga)[1].keys() == {"0/signal/approve"}


STRANGE = {"$sealed": {"key": "nokey", "from": "0/input/x", "data": "AAAA"}}


def signalled(payload: Any) -> Signal:
    return Signal(saga_id="s", name="approve", payload=encode(payload))


@pytest.mark.parametrize(
    ("request_", "place"),
    [
        (begin(do(1), input={"x": STRANGE}), "input/x"),
        (begin(do(1), input={"a/b": [1, {"x": STRANGE}]}), "input/a~1b/1/x"),
        (begin(do({"for": {"$ref": "/input/x/y"}}), input={"x": {"y": STRANGE}}), "input/x/y"),
        (begin(do(1), do({"n": [STRANGE]})), "step 2: params/n/0"),
        (begin(do({"n": {"$literal": STRANGE}, "to": {"$ref": "/input/sum"}})), "step 1: params/n/$literal"),
        (begin(do(1, compensation="Undo", compensation_params=[STRANGE])), "step 1: compensation_params/0"),
        (signalled(STRANGE), "payload"),
        (signalled({"approved": [STRANGE]}), "payload/approved/0"),
    ],
)
def test_what_looks_sealed_and_was_not_sealed_here_is_refused(request_: Begin | Signal, place: str) -> None:
    def sent(codec: Keyring | None, *, accept_sealed: bool = False) -> Any:
        if isinstance(request_, Begin):
            return requests.sealed(codec, request_, accept_sealed=accept_sealed)
        return requests.to_send(codec, request_, accept_sealed=accept_sealed)

    with pytest.raises(MalformedMessage) as error:
        sent(None)
    text = f"{place}: it looks like a value that was sealed with key nokey, and this process has no keys to tell"
    assert str(error.value) == text
    with pytest.raises(MalformedMessage, match="a value in it is sealed, and cannot be opened"):
        sent(RING)
    assert sent(None, accept_sealed=True) is request_


@pytest.mark.parametrize("value", [{"$sealed": 1}, {"a": "$sealed"}, {"$sealed": STRANGE["$sealed"], "more": 1}])
def test_what_only_resembles_it_is_sent(value: Any) -> None:
    plain = begin(do(1), input={"x": value})
    assert requests.sealed(None, plain) is plain
    assert requests.to_send(None, signalled(value)) == signalled(value)


def test_a_signal_that_was_sealed_here_is_sent_as_it_is_and_what_is_in_it_is_sealed_once() -> None:
    sealed = sealed_signal(RING, signalled("yes"))
    assert sealed_signal(RING, sealed) is sealed
    part = json.loads(sealed.payload)
    assert sealed_signal(RING, signalled({"by": part, "at": 1})) == sealed_signal(
        RING, signalled({"by": "yes", "at": 1})
    )


@pytest.mark.parametrize("ring", [RING, None], ids=["with keys", "without"])
def test_a_result_that_looks_sealed_comes_through_or_is_a_failure_of_the_handler(ring: Keyring | None) -> None:
    service = Service("work")
    undone: list[Any] = []

    @service.command("Fetch", compensation="Drop")
    def fetch(params: Any, context: Context) -> Any:
        return {"found": STRANGE}  # from elsewhere

    @service.compensation("Drop")
    def drop(params: Any, context: Context) -> None:
        undone.append(context.result)

    @service.command("Use", compensation=None)
    def use(params: Any, context: Context) -> Any:
        raise Reject(str(params["it"] == STRANGE))

    steps: list[dict[str, Any]] = [
        {"transaction": "Fetch", "service": "work", "id": "fetch"},
        {"transaction": "Use", "service": "work", "compensation": None}
        | {"params": {"it": {"$ref": "/steps/fetch/result/found"}}},
    ]
    saga = Sagas(service, codec=ring).run(steps, input={})
    assert saga.status is SagaStatus.ABORTED
    if ring is None:  # nobody can say whether it is sealed, so nobody could undo it with its result
        assert "result/found: it looks like a value that was sealed with key nokey" in str(saga.state.reason)
        assert undone == [None]
    else:
        assert str(saga.state.reason).endswith("True")
        assert undone == [{"found": STRANGE}]
