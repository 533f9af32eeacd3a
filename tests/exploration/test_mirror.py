"""The scripts on real servers do what mirror.py says, for all calls in all orders."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from exploration import mirror
from sagastream.broker import scripting
from sagastream.core.commands import Command
from sagastream.core.moves import begin
from sagastream.core.saga import SagaState
from sagastream.orchestrator.change import Change
from sagastream.orchestrator.commit import Store
from sagastream.store.columns import iso
from support.servers import KINDS, Server
from support.stores import ONLY

COMMANDS = [
    Command(service="work", type=kind, saga_id="s", step=number, params=b"1", compensating=kind == "Undo", begun_ms=0)
    for number in (1, 2)
    for kind in ("Do", "Undo", "Stray")
]
LOOKED_UP = st.tuples(st.just("recall"), st.sampled_from(COMMANDS), st.booleans(), st.just(""))
ANSWERED = st.tuples(
    st.just("answer"), st.sampled_from(COMMANDS), st.booleans(), st.sampled_from(["ok", "failed", "unknown", "final"])
)


@pytest.fixture(scope="module", params=KINDS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A shared server for the whole module: one test is many examples, and Hypothesis wants the same fixture for
    all."""
    shared: Server = request.getfixturevalue(f"shared_{request.param}")
    shared.clear()
    yield shared
    shared.close_brokers()


@settings(deadline=None, max_examples=150)
@given(calls=st.lists(LOOKED_UP | ANSWERED, max_size=25), data=st.data())
def test_a_services_records_are_as_the_mirror_has_them(server: Server, calls: list[Any], data: st.DataObject) -> None:
    client = server.broker().client
    key, commands, replies = (f"{name}:{uuid.uuid4().hex}" for name in ("records", "commands", "replies"))
    recall, answer = scripting.load(client, "recall"), scripting.load(client, "answer")
    records: mirror.Records = {}
    seen = [b""]
    for number, (call, command, _again, kind) in enumerate(calls):
        if call == "recall":
            wanted = mirror.recall(
                records,
                record=command.record,
                tombstone=command.tombstone,
                compensating=command.compensating,
            )
            arguments = [60, 1, command.record, command.tombstone, int(command.compensating)]
            _, *known = recall(keys=[key], args=arguments)
            is_known = wanted.record is not None or wanted.tombstone
            assert known == ([[1, wanted.record, int(wanted.tombstone)]] if is_known else [])
            records = wanted.records
            seen.append(wanted.record or b"")
        else:
            tombstone = "" if command.compensating else command.tombstone
            looked_up = data.draw(st.sampled_from(seen))
            payload, body = b'{"n":%d}' % number if number % 3 else b"", b'{"type":"Do_ok","n":%d}' % number
            told = mirror.answer(
                records,
                record=command.record,
                tombstone=tombstone,
                seen=looked_up,
                kind=kind,
                payload=payload,
                body=body,
            )
            arguments = [
                "work",
                60,
                "a consumer that holds nothing",
                "1-1",
                2,
                4,
                command.record,
                tombstone,
                looked_up,
                kind,
                payload,
                4,
                "body",
                body,
                "n",
                number,
            ]
            before = client.xlen(replies)
            overruled = answer(keys=[commands, replies, "quarantine", key], args=arguments)
            assert overruled == ([-1] if told.sent is None else [])
            assert client.xlen(replies) == before + (told.sent is not None)
            if told.sent is not None:
                newest: Any = client.xrevrange(replies, count=1)
                wanted_fields = {b"body": told.sent, b"n": str(number).encode()}
                assert newest[0][1] == wanted_fields | ({b"unknown": b"1"} if told.in_doubt else {})
            records = told.records
        assert client.hgetall(key) == {name.encode(): value for name, value in records.items()}


#: A version, and the time of the last change.
COMPARED = st.none() | st.tuples(st.integers(1, 3), st.sampled_from([1_700_000_000_000, 1_700_000_000_001]))


@settings(deadline=None, max_examples=50)
@given(there=COMPARED, seen=COMPARED)
def test_a_commit_compares_as_the_mirror_has_it(
    server: Server, there: tuple[int, int] | None, seen: tuple[int, int] | None
) -> None:
    from exploration.configurations import step
    from exploration.rules import NOW
    from sagastream.core.messages import Begin
    from sagastream.core.transitions import Moment

    client = server.broker().client
    saga_id = uuid.uuid4().hex
    decision = begin(Begin(saga_id=saga_id, steps=(step(),)), Moment(now_ms=NOW, published={}))
    assert isinstance(decision.state, SagaState)
    if there is not None:
        client.hset(ONLY.saga(saga_id), mapping={"version": there[0], "updated_at": iso(there[1])})
    loaded = None
    if seen is not None:
        loaded = replace(decision.state, version=seen[0], updated_ms=seen[1], reason="as it was")
    change = Change(
        partition=ONLY, saga_id=saga_id, before=loaded, after=decision.state, commands=list(decision.commands)
    )
    commands = client.xlen(ONLY.commands("work"))
    lost, stuck = Store(client).commit([change], NOW)
    assert (lost, stuck) == ([] if mirror.commits(there, seen) else [change], [])
    # All or nothing: the command and the timer come with the state.
    assert client.xlen(ONLY.commands("work")) == commands + (not lost)
    assert (client.zscore(ONLY.timers, saga_id) is None) == bool(lost)
