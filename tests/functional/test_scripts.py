"""The scripts on real servers: what a service records, which sagas are due, consumers that leave, and keys of wrong
types."""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from exploration import mirror
from sagastream.broker import read_ahead, scripting, wire
from sagastream.broker.entries import BATCH, Entry
from sagastream.broker.exchange import Exchange, run, run_each
from sagastream.broker.group_reader import GroupReader
from sagastream.core import service_rules
from sagastream.core.begin_parsing import parse_begin
from sagastream.core.commands import Command, Reply, failed, ok, reply_to
from sagastream.core.decision import decide
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.service_actions import Answer, Kind, Run, Undo
from sagastream.core.transitions import Moment
from sagastream.orchestrator.change import Change
from sagastream.orchestrator.commit import Store
from sagastream.store import keys, sagas
from support.scenes import Scene, do
from support.servers import Server
from support.stored import dump
from support.stores import KEYS, ONLY, due
from support.values import GARBLED_RECORDS
from support.waiting import until

WORK = ONLY.commands("work")
GROUP = "work"
KEPT_S = 1000


@pytest.fixture
def client(server: Server) -> redis.Redis:
    return server.broker().client


# --- recall.lua and answer.lua, and service_rules.py


#: Results and errors, as they are written in a record.
PAYLOADS = st.sampled_from([None, b"1", b"null", b'"a b"', b'{"a":"\\n"}', b'{"type":"Else_ok","step":7}'])


@dataclass
class InHand:
    """A command that a process has read and not answered yet."""

    entry_id: bytes
    command: Command
    todo: Run | Undo | Answer
    seen: bytes = b""  # its record, when it was looked up
    lost: bool = False  # another process has taken it over


def _without_handler(step: Run | Undo | Answer) -> Reply | None:
    """The reply that a command gets without its handler; None: the handler is called."""
    match step:
        case Answer(reply=reply) | Undo(refusal=reply):
            return reply
    return None


@dataclass
class Books:
    """What a service's records must hold, by hash, and what it must have replied, according to the mirror."""

    records: dict[str, mirror.Records] = field(default_factory=dict)
    replies: list[tuple[bytes, bytes]] = field(default_factory=list)  # body, attempt

    def of(self, command: Command) -> mirror.Records:
        return self.records.get(ONLY.done("work", command.begun_ms), {})

    def recall(self, command: Command) -> list[Any]:
        found = mirror.recall(
            self.of(command),
            record=command.record,
            tombstone=command.tombstone,
            compensating=command.compensating,
        )
        self.records[ONLY.done("work", command.begun_ms)] = found.records
        return [found.record, int(found.tombstone)]

    def answer(self, held: InHand, reply: Reply, kind: str) -> bool:
        """Whether the answer stands; False: it was overruled."""
        command = held.command
        told = mirror.answer(
            self.of(command),
            record=command.record,
            tombstone="" if command.compensating else command.tombstone,
            seen=held.seen,
            kind=kind,
            payload=reply.payload or b"",
            body=reply.body(),
        )
        self.records[ONLY.done("work", command.begun_ms)] = told.records
        if told.sent is None:
            return False
        self.replies.append((told.sent, b"%d" % command.attempt))
        return True


class Services(RuleBasedStateMachine):
    """Several processes of one service look commands up and answer them, in any order."""

    client: redis.Redis
    ran: Counter[str]

    def __init__(self) -> None:
        super().__init__()
        self.client.flushall()
        self.client.xgroup_create(WORK, GROUP, id="0", mkstream=True)
        self.recall = scripting.load(self.client, "recall")
        self.answer = scripting.load(self.client, "answer")
        self.books = Books()
        self.in_hand: list[InHand] = []
        self.quarantined = self.garbled = 0
        self.others: list[bytes] = []  # what was answered, and another process holds

    def _look_up(self, commands: list[Command]) -> list[list[Any]]:
        hashes: dict[str, int] = {}
        args: list[Any] = [KEPT_S]
        for command in commands:
            index = hashes.setdefault(ONLY.done("work", command.begun_ms), len(hashes) + 1)
            args += (index, command.record, command.tombstone, int(command.compensating))
        now_ms, *known = self.recall(keys=list(hashes), args=args)
        assert abs(now_ms - time.time() * 1000) < 60_000
        assert all(record is not None or tombstone for _, record, tombstone in known)
        found: list[list[Any]] = [[None, 0] for _ in commands]
        for number, record, tombstone in known:
            found[number - 1] = [record, tombstone]
        return found

    commands = st.builds(
        lambda saga, step, undo, other, attempt, retried: Command(
            service="work",
            type=("Undo" if undo else "Do") + ("2" if other else ""),
            saga_id=f"s{saga}",
            step=step,
            params=b"null",
            compensating=undo,
            attempt=attempt,
            begun_ms=saga // 2 * 3_600_000,  # two sagas share a hash, a third has its own
            retried=retried,
        ),
        st.integers(0, 2), st.integers(1, 2), st.booleans(), st.sampled_from([False, False, False, True]),
        st.integers(1, 3), st.booleans(),
    )  # fmt: skip

    @rule(batch=st.lists(st.tuples(commands, st.booleans()), min_size=1, max_size=3))
    def read(self, batch: list[tuple[Command, bool]]) -> None:
        for command, _ in batch:
            fields: dict[Any, Any] = command.fields()
            self.client.xadd(WORK, fields)
        page: Any = self.client.xreadgroup(GROUP, "p", {WORK: ">"}, count=len(batch))
        found = self._look_up([command for command, _ in batch])
        expected = [self.books.recall(command) for command, _ in batch]
        assert found == expected
        for (command, again), (entry_id, _), (record, tombstone) in zip(batch, page[0][1], found, strict=True):
            todo = service_rules.delivered(command, record=record, tombstone=bool(tombstone), again=again)
            self.in_hand.append(InHand(entry_id=entry_id, command=command, todo=todo, seen=record or b""))
            self.ran["read"] += 1

    @precondition(lambda self: self.in_hand)
    @rule(data=st.data(), count=st.integers(1, 3))
    def answer_some_of_them(self, data: st.DataObject, count: int) -> None:
        self.answer_some(data, count)

    def answer_some(self, data: st.DataObject, count: int) -> None:
        args: list[Any] = [GROUP, KEPT_S, "p"]
        streams = {WORK: 1, ONLY.replies("work"): 2, ONLY.quarantine: 3}
        expected, standing = [], []
        chosen = []
        for number in range(1, min(count, len(self.in_hand)) + 1):
            held = self.in_hand.pop(data.draw(st.integers(0, len(self.in_hand) - 1)))
            if not held.lost and data.draw(st.sampled_from([False, False, False, True])):
                held = self._taken_over(held)
            chosen.append(held)
            command = held.command
            outcome = data.draw(st.sampled_from(["ok", "ok", "failed", "unknown", "unknown", "quarantine"]))
            if outcome == "quarantine":
                entry = Entry(stream=WORK, id=held.entry_id, fields={b"body": command.body()})
                words = [word for pair in entry.quarantined("so").items() for word in pair]
                args += (held.entry_id, 3, 0, "", "", b"", "final", "", len(words), *words)
                self.quarantined += 1
                self.others += [held.entry_id] if held.lost else []
                continue
            reply = _without_handler(held.todo)
            if reply is not None and not reply.unknown:
                kind: Kind = "final"
            else:
                reply = reply_to(
                    command,
                    (ok if outcome == "ok" else failed)(command.type),
                    result=data.draw(PAYLOADS) if outcome == "ok" else None,
                    error=None if outcome == "ok" else data.draw(PAYLOADS),
                    unknown=outcome == "unknown",
                )
                kind = service_rules.kind(command, reply)
            record = streams.setdefault(ONLY.done("work", command.begun_ms), len(streams) + 1)
            words = [word for pair in reply.fields().items() for word in pair]
            tombstone = "" if command.compensating else command.tombstone
            args += (held.entry_id, 2, record, command.record, tombstone, held.seen, kind, reply.payload or b"")
            args += (len(words), *words)
            agreed = self._as_the_rules_have_it(command, reply, kind)
            if self.books.answer(held, reply, kind):
                assert agreed == self.books.replies[-1][0]
                standing.append(held)
                self.others += [held.entry_id] if held.lost else []
            else:
                assert agreed is None
                expected.append(-number if held.lost else number)
            self.ran[f"answered {kind}"] += 1
        assert self.answer(keys=list(streams), args=args) == expected
        self.ran["overruled"] += len(expected)
        # An overruled command is undone, and then answered.
        for number in expected:
            held = chosen[abs(number) - 1]
            refused = Answer(service_rules.refusal(held.command), "final")
            self.in_hand.append(InHand(entry_id=held.entry_id, command=held.command, todo=refused, lost=held.lost))

    def _taken_over(self, held: InHand) -> InHand:
        """Another process takes a command over."""
        self.client.xclaim(WORK, GROUP, "q", 0, [held.entry_id])
        self.ran["taken over"] += 1
        return replace(held, lost=True)

    def _as_the_rules_have_it(self, command: Command, reply: Reply, kind: str) -> bytes | None:
        """What service_rules.py would send if it were asked at this moment; None: the command must be undone first."""
        records = self.books.of(command)
        now = service_rules.delivered(
            command, record=records.get(command.record), tombstone=command.tombstone in records, again=True
        )
        if isinstance(now, Undo) and kind in ("ok", "unknown"):
            return None
        recorded = _without_handler(now)
        is_recorded = recorded is not None and recorded != service_rules.refusal(command)
        return recorded.body() if is_recorded and recorded is not None else reply.body()

    @precondition(lambda self: self.garbled < 2)  # a damaged value in place of a tombstone or a record
    @rule(
        saga=st.integers(0, 2),
        value=st.sampled_from(
            [b"", b"junk", b"ok", b"okay {}", b"unknown {}", b"ok {", b"ok  ", b"ok [}", b"failed \xff", b"failed no"]
        ),
    )
    def garble_a_record(self, saga: int, value: bytes) -> None:
        """A damaged record counts as none."""
        key, name = ONLY.done("work", saga // 2 * 3_600_000), f"s{saga}/1/transaction/Do"
        self.books.records[key] = {**self.books.records.get(key, {}), name: value}
        self.client.hset(key, name, value)
        self.client.expire(key, KEPT_S)
        self.garbled += 1
        self.ran["garbled"] += 1

    @invariant()
    def the_records_are_as_they_should_be(self) -> None:
        for hour in (0, 1):
            key = ONLY.done("work", hour * 3_600_000)
            there: Any = self.client.hgetall(key)
            assert {name.decode(): value for name, value in there.items()} == self.books.records.get(key, {})
            assert not there or 0 < self.client.ttl(key) <= KEPT_S

    @invariant()
    def every_answer_was_sent_once_and_its_command_is_gone_unless_another_holds_it(self) -> None:
        sent: Any = self.client.xrange(ONLY.replies("work"))
        assert [(fields[b"body"], fields[b"attempt"]) for _, fields in sent] == self.books.replies
        assert self.client.xlen(ONLY.quarantine) == self.quarantined
        left: Any = self.client.xrange(WORK)
        waiting = sorted([*self.others, *(held.entry_id for held in self.in_hand)])
        assert sorted(entry_id for entry_id, _ in left) == waiting
        held: Any = self.client.xpending_range(WORK, GROUP, "-", "+", 1000)
        assert sorted(one["message_id"] for one in held) == waiting


@pytest.mark.parametrize(
    "record", [*GARBLED_RECORDS, b"ok ", b"failed ", b'ok {"a":[1,null]}', b'failed "no"', b"ok 1"]
)
def test_the_script_and_the_rules_agree_on_what_a_record_says(client: redis.Redis, record: bytes) -> None:
    command = Command(service="work", type="Do", saga_id="s:1", step=12, params=b"1", begun_ms=0)
    client.hset(ONLY.done("work", 0), command.record, record)
    client.xgroup_create(WORK, GROUP, id="0", mkstream=True)
    words = ["1-1", 2, 4, command.record, command.tombstone, "", "final", "", 2, "body", "its own"]
    names = [WORK, ONLY.replies("work"), ONLY.quarantine, ONLY.done("work", 0)]
    assert scripting.load(client, "answer")(keys=names, args=[GROUP, KEPT_S, "p", *words]) == []
    found = _without_handler(service_rules.delivered(command, record=record, tombstone=False, again=False))
    [(_, sent)] = client.xrange(ONLY.replies("work"))  # type: ignore[misc]  # the answer is not awaited
    assert sent == {b"body": b"its own" if found is None else found.body()}
    assert client.hget(ONLY.done("work", 0), command.record) == record


@pytest.mark.slow
@pytest.mark.both_in_soak
def test_the_scripts_and_the_rules_agree_whatever_is_answered_in_whatever_order(client: redis.Redis) -> None:
    Services.client, Services.ran = client, Counter()
    run_state_machine_as_test(
        Services,
        settings=settings(
            max_examples=100,
            stateful_step_count=30,
            deadline=None,
            phases=set(Phase) - {Phase.explain},
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(dict(Services.ran))
    assert (
        min(
            Services.ran[kind]
            for kind in ("read", "overruled", "taken over", "garbled", "answered final", "answered ok")
        )
        > 20
    )


# --- due.lua


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    offsets=st.lists(
        st.integers(-(10**7), -1000) | st.integers(60_000, 10**9) | st.sampled_from(["+inf", "-inf"]), max_size=12
    ),
    count=st.integers(1, 8),
    lease_ms=st.integers(5_000, 50_000),
)
def test_what_is_due_is_leased_and_what_is_parked_never_is(
    client: redis.Redis, offsets: list[int | str], count: int, lease_ms: int
) -> None:
    client.flushall()
    store = Store(client)
    _, begun_ms = sagas.read(client, KEYS, [])
    scores = {f"s{n}": float(at) if isinstance(at, str) else begun_ms + at for n, at in enumerate(offsets)}
    if scores:
        client.zadd(ONLY.timers, scores)
    ids, wait_ms = due(store, count, lease_ms)
    _, now_ms = sagas.read(client, KEYS, [])
    in_time = sorted((score, saga_id) for saga_id, score in scores.items() if score <= begun_ms)
    assert ids == [saga_id for _, saga_id in in_time[:count]]
    after = {saga_id: client.zscore(ONLY.timers, saga_id) for saga_id in scores}
    for saga_id, score in scores.items():
        found = after[saga_id]
        assert found is not None
        if saga_id in ids:
            assert begun_ms + lease_ms <= found <= now_ms + lease_ms
        else:
            assert found == score
    waiting = [score for score in after.values() if score is not None and score != float("inf")]
    if not waiting:
        assert wait_ms is None
    else:
        assert wait_ms is not None
        assert max(0.0, min(waiting) - now_ms) <= wait_ms <= max(0.0, min(waiting) - begun_ms) + 1


def test_what_was_leased_comes_up_again_for_another(client: redis.Redis) -> None:
    store, other = Store(client), Store(client)
    client.zadd(ONLY.timers, {"s1": 0, "s2": "inf"})
    assert due(store, 10, 100)[0] == ["s1"]
    ids, wait_ms = due(other, 10, 100)
    assert ids == []
    assert wait_ms is not None
    assert 0 < wait_ms <= 100
    assert until(lambda: due(other, 10, 60_000)[0], what="the lease ends") == ["s1"]
    assert client.zscore(ONLY.timers, "s2") == float("inf")


def test_with_many_due_at_once_each_is_leased_to_one(client: redis.Redis) -> None:
    store = Store(client)
    client.zadd(ONLY.timers, {f"s{n}": n for n in range(1000)})
    pages = [due(store, BATCH, 60_000)[0] for _ in range(9)]
    assert [len(page) for page in pages] == [BATCH] * 7 + [1000 - 7 * BATCH, 0]
    assert sorted(itertools.chain(*pages)) == sorted(f"s{n}" for n in range(1000))


# --- forget.lua and leave.lua


def consumers(client: redis.Redis) -> dict[str, int]:
    """The consumers of the group, and how many entries each holds."""
    there: Any = client.xinfo_consumers(WORK, GROUP)
    return {consumer["name"].decode(): consumer["pending"] for consumer in there}


def group_with(client: redis.Redis, **holds: int) -> None:
    client.flushall()
    client.xgroup_create(WORK, GROUP, id="0", mkstream=True)
    with client.pipeline(transaction=False) as pipeline:
        for _ in range(sum(holds.values())):
            pipeline.xadd(WORK, {"body": "x"})
        pipeline.execute()
    for name, count in holds.items():
        if count:
            client.xreadgroup(GROUP, name, {WORK: ">"}, count=count)
        else:
            client.xgroup_createconsumer(WORK, GROUP, name)


def test_only_consumers_that_hold_nothing_and_were_not_seen_for_long_are_forgotten(client: redis.Redis) -> None:
    group_with(client, holds=1, gone=0, fresh=0)
    forget = scripting.load(client, "forget")
    assert forget(keys=[WORK], args=[GROUP, 60_000]) == 0

    def idle() -> dict[str, int]:
        there: Any = client.xinfo_consumers(WORK, GROUP)
        return {consumer["name"].decode(): consumer["idle"] for consumer in there}

    until(lambda: min(idle().values()) > 500, what="all were idle for long")
    client.xreadgroup(GROUP, "fresh", {WORK: "0"}, count=1)
    assert forget(keys=[WORK], args=[GROUP, 400]) == 1
    assert consumers(client) == {"holds": 1, "fresh": 0}


def ping() -> Exchange[Any]:
    (answer,) = yield [("PING",)]
    return answer


def test_what_came_along_is_not_lost_where_more_would_come_along(client: redis.Redis) -> None:
    reader = GroupReader(client, group=GROUP, consumer="me", lease_ms=9000, on_join=lambda: [WORK])
    assert reader.read(1) == []
    added = [client.xadd(WORK, {"n": n}) for n in (1, 2)]
    assert [run(client, reader.read_along(ping(), lambda _: {WORK: 1})) for _ in added] == [b"PONG"] * 2
    assert [reader.read(1)[0].id for _ in added] == added


def test_exchanges_that_begin_one_after_the_other_are_on_their_way_while_the_next_is_made(client: redis.Redis) -> None:
    def adds(times: int) -> Exchange[list[Any]]:
        found = []
        for _ in range(times):
            found += yield [("INCR", "n")]
        return found

    def made() -> Iterator[Exchange[list[Any]]]:
        yield adds(1)
        until(lambda: client.get("n") == b"1", what="the first has come")
        yield adds(3)
        until(lambda: client.get("n") == b"2", what="the second has begun")
        yield adds(1)

    assert run_each(client, made()) == [[1], [2, 4, 5], [3]]


def test_where_exchanges_break_off_their_answers_are_no_answers_to_what_comes_next(client: redis.Redis) -> None:
    def slow() -> Exchange[Any]:
        (answer,) = yield [("BLPOP", "nothing", "0.2")]
        return answer

    def made() -> Iterator[Exchange[Any]]:
        yield slow()
        raise ValueError("as asked")

    with pytest.raises(ValueError, match="as asked"):
        run_each(client, made())
    assert wire.round_trip(client, [("ECHO", "mine")]) == [b"mine"]


def test_what_a_dead_reader_held_is_taken_over_where_there_is_always_something_to_read_ahead(
    client: redis.Redis,
) -> None:
    reader = GroupReader(client, group=GROUP, consumer="me", lease_ms=100, on_join=lambda: [WORK])
    assert reader.read(1) == []
    client.xadd(WORK, {"held": "1"})
    client.xreadgroup(GROUP, "victim", {WORK: ">"})

    def is_taken_over() -> bool:
        client.xadd(WORK, {"new": "1"})
        assert run(client, reader.read_along(ping(), lambda _: {WORK: 1})) == b"PONG"
        return any(entry.taken_over and b"held" in entry.fields for entry in reader.read(1))

    until(is_taken_over, what="it is taken over")


def test_what_was_read_ahead_long_ago_is_asked_for_anew_for_others_may_have_it_by_now(
    client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = GroupReader(client, group=GROUP, consumer="me", lease_ms=9000, on_join=lambda: [WORK])
    assert reader.read(1) == []
    taken, kept = (client.xadd(WORK, {"n": n}) for n in (1, 2))
    run(client, reader.read_along(ping(), lambda _: {WORK: 2}))
    client.xclaim(WORK, GROUP, "another", 0, [taken])
    monkeypatch.setattr(read_ahead, "_FRESH_S", 0.0)
    assert [(entry.id, entry.again) for entry in reader.read(1)] == [(kept, True)]


def test_a_reader_that_finds_nothing_is_seen_to_be_alive(client: redis.Redis) -> None:
    """Redis 7.0 does not count a read that finds nothing."""
    reader = GroupReader(client, group=GROUP, consumer="p", lease_ms=200, on_join=lambda: [WORK, ONLY.replies("work")])
    reader.read(1)
    ends, longest_ms = time.monotonic() + 3, 50.0
    while time.monotonic() < ends:
        began_s = time.monotonic()
        assert reader.read(50) == []
        for stream in reader.streams:
            there: Any = client.xinfo_consumers(stream, GROUP)
            longest_ms = max(longest_ms, (time.monotonic() - began_s) * 1000)  # on a busy machine, all takes longer
            assert [consumer["idle"] < 500 + 4 * longest_ms for consumer in there] == [True]


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(holds=st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 3), min_size=1))
def test_a_consumer_that_holds_something_is_never_forgotten(client: redis.Redis, holds: dict[str, int]) -> None:
    group_with(client, **holds)
    forget = scripting.load(client, "forget")
    forget(keys=[WORK], args=[GROUP, -1])
    assert consumers(client) == {name: count for name, count in holds.items() if count}
    pending: Any = client.xpending(WORK, GROUP)
    assert pending["pending"] == sum(holds.values())


@pytest.mark.parametrize("count", [0, 1, 999, 1000, 1001, 2500])
def test_what_a_leaver_holds_is_there_for_others_at_once(client: redis.Redis, count: int) -> None:
    group_with(client, leaver=count, other=1)
    leave = scripting.load(client, "leave")
    assert leave(keys=[WORK], args=[GROUP, "leaver"]) == count
    assert consumers(client) == ({"leaver": count} if count else {}) | {"other": 1}
    taken, cursor = 0, b"0-0"
    while True:
        cursor, page, *_ = client.xautoclaim(WORK, GROUP, "heir", 3600_000, cursor, count=1000)
        taken += len(page)
        if cursor == b"0-0":
            break
    assert taken == count
    assert consumers(client)["other"] == 1


@pytest.mark.parametrize("page", [1, 2, 3, 100])
def test_what_is_held_is_not_changed_by_a_count_from_now_if_the_clock_goes_on(client: redis.Redis, page: int) -> None:
    group_with(client, holds=3, other=2)
    before: Any = client.xpending_range(WORK, GROUP, "-", "+", 9)
    client.xclaim(WORK, GROUP, "holds", 0, [before[0]["message_id"]], idle=50_000, justid=True)
    recount = scripting.load(client, "recount")
    after, calls = b"", 0
    while calls == 0 or after:
        after, calls = recount(keys=[WORK], args=[GROUP, after, page]), calls + 1
    assert calls in (5 // page, 5 // page + 1)
    found: Any = client.xpending_range(WORK, GROUP, "-", "+", 9)
    kept = [(one["message_id"], one["consumer"], one["times_delivered"]) for one in before]
    assert [(one["message_id"], one["consumer"], one["times_delivered"]) for one in found] == kept
    assert found[0]["time_since_delivered"] >= 50_000


def test_nothing_is_counted_where_there_is_no_group(client: redis.Redis) -> None:
    recount = scripting.load(client, "recount")
    assert recount(keys=[WORK], args=[GROUP, "", 9]) == b""
    client.set(WORK, "x")
    assert recount(keys=[WORK], args=[GROUP, "", 9]) == b""


def test_a_leaver_of_a_group_or_stream_that_is_gone_is_let_go(client: redis.Redis) -> None:
    for name, args in (("leave", [GROUP, "p"]), ("forget", [GROUP, 0])):
        client.flushall()
        assert scripting.load(client, name)(keys=[WORK], args=args) == 0
        client.xadd(WORK, {"body": "x"})
        assert scripting.load(client, name)(keys=[WORK], args=args) == 0
        assert dump(client).keys() == {WORK.encode()}


# --- keys of wrong types

TYPES: dict[str, Callable[[redis.Redis, str], object]] = {
    "string": lambda client, key: client.set(key, "in the way"),
    "list": lambda client, key: client.rpush(key, "in the way"),
    "set": lambda client, key: client.sadd(key, "in the way"),
    "zset": lambda client, key: client.zadd(key, {"in the way": 1}),
    "hash": lambda client, key: client.hset(key, "in the way", "1"),
    "stream": lambda client, key: client.xadd(key, {"in the way": 1}),
}


REFUSED = object()


def of_wrong_type(call: Callable[[], Any]) -> Any:
    """What the call returns, or REFUSED if a key had the wrong type. Any other error fails the test."""
    try:
        return call()
    except redis.ResponseError as error:
        if not str(error).startswith("WRONGTYPE"):
            raise
        return REFUSED


class Calls:
    """One call of each script that writes, for each key that it gets, on a store that was prepared for it."""

    def __init__(self, client: redis.Redis) -> None:
        self.client = client
        client.flushall()
        self.store = Store(client)
        for stream, group in (
            (ONLY.requests, keys.ORCHESTRATOR_GROUP),
            (ONLY.replies("work"), keys.ORCHESTRATOR_GROUP),
            (WORK, GROUP),
        ):
            client.xgroup_create(stream, group, id="0", mkstream=True)
        client.xadd(ONLY.events, {"kind": "x"})
        client.xadd(ONLY.quarantine, {"reason": "x"})
        client.zadd(ONLY.timers, {"due": 1, "later": 9e12})
        client.zadd(ONLY.ended, {"old": 1})
        client.hset(ONLY.done("work", 0), "x", "y")
        self.entries = [self._read(ONLY.requests, b"1"), self._read(ONLY.replies("work"), b"2")]
        self.command = self._read(WORK, b"3", GROUP)
        begin = parse_begin(
            {
                "saga_id": "s1",
                "steps": [do(1), do(2)],
            },
            echo=True,
        )
        decision = decide(None, begin, Moment(now_ms=1, published={}))
        start = Change(partition=ONLY, saga_id="s1", before=None, after=None)
        start.add(None, decision)
        assert self.store.commit([start], 1) == ([], [])
        states, _ = sagas.read(self.client, KEYS, ["s1"])
        self.state = states["s1"]

    def _read(self, stream: str, body: bytes, group: str = keys.ORCHESTRATOR_GROUP) -> Entry:
        self.client.xadd(stream, {"body": body})
        page: Any = self.client.xreadgroup(group, "p", {stream: ">"}, count=1)
        [(entry_id, fields)] = page[0][1]
        return Entry(stream=stream, id=entry_id, fields=fields)

    def commit(self) -> Any:
        assert isinstance(self.state, SagaState)
        change = Change(partition=ONLY, saga_id="s1", before=self.state, after=self.state)
        reply = Reply(type="Do_ok", saga_id="s1", step=1)
        change.add(self.entries[1], decide(self.state, reply, Moment(now_ms=2, published={})))
        change.add(
            self.entries[0],
            decide(change.after, Reply(type="Odd_ok", saga_id="s1", step=1), Moment(now_ms=2, published={})),
        )
        ended = Change(partition=ONLY, saga_id="s2", before=None, after=None)
        ended.add(None, decide(None, parse_begin({"saga_id": "s2", "steps": [do(1)]}), Moment(now_ms=2, published={})))
        ended.add(
            None, decide(ended.after, Reply(type="Do_failed", saga_id="s2", step=1), Moment(now_ms=2, published={}))
        )
        return self.store.commit([change, ended], 2)

    def due(self) -> Any:
        return due(self.store, 10, 5000)

    def recall(self) -> Any:
        key = ONLY.done("work", 0)
        return scripting.load(self.client, "recall")(keys=[key], args=[9, 1, "f", "t", 1])

    def answer(self) -> Any:
        names = [WORK, ONLY.replies("work"), ONLY.quarantine, ONLY.done("work", 0)]
        args = [
            GROUP,
            9,
            "p",
            self.command.id,
            2,
            4,
            "f",
            "t",
            "",
            "ok",
            "",
            2,
            "body",
            "b",
            "0-1",
            3,
            0,
            "",
            "",
            "",
            "final",
            "",
            2,
            "a",
            "b",
        ]
        return scripting.load(self.client, "answer")(keys=names, args=args)

    def forget(self) -> Any:
        self.client.ping()
        return scripting.load(self.client, "forget")(keys=[WORK], args=[GROUP, 60_000])

    def leave(self) -> Any:
        return scripting.load(self.client, "leave")(keys=[WORK], args=[GROUP, "p"])


#: Each script, and each key that it gets, with the right type of the key.
SCRIPT_KEYS = {
    "commit": {
        ONLY.timers: "zset", ONLY.ended: "zset", ONLY.events: "stream", ONLY.quarantine: "stream", WORK: "stream",
        ONLY.requests: "stream", ONLY.replies("work"): "stream", ONLY.saga("s1"): "hash", ONLY.saga("s2"): "hash",
        ONLY.begun: "zset", ONLY.index("status=ABORTED"): "zset", ONLY.indexed: "hash",
    },
    "due": {ONLY.timers: "zset"},
    "recall": {ONLY.done("work", 0): "hash"},
    "answer": {WORK: "stream", ONLY.replies("work"): "stream", ONLY.quarantine: "stream", ONLY.done("work", 0): "hash"},
    "forget": {WORK: "stream"},
    "leave": {WORK: "stream"},
}  # fmt: skip
CASES = [
    (script, key, kind)
    for script, its in SCRIPT_KEYS.items()
    for key, right in its.items()
    for kind in TYPES
    if kind != right
]


def test_what_stands_in_the_way_of_a_script_is_not_touched_and_nothing_is_done_by_halves(client: redis.Redis) -> None:
    """For each script, each of its keys, and each wrong type: if the call was refused, nothing has changed; if not, all
    of it was done."""
    outcomes: Counter[str] = Counter()
    for script, key, kind in CASES:
        calls = Calls(client)
        kept = client.dump(key)
        client.delete(key)
        TYPES[kind](client, key)
        before = dump(client)
        where = f"{script}.lua, {key}, {kind}"
        answer = of_wrong_type(getattr(calls, script))
        if answer is REFUSED:
            assert dump(client) == before, where
            outcomes["refused"] += 1
        else:
            after = dump(client)
            assert after[key.encode()] == before[key.encode()], where
            if script == "commit":
                lost, stuck = answer
                moved = {"s1", "s2"} - {change.saga_id for change in (*lost, *stuck)}
                check_commit(client, calls, moved, before, where)
            else:
                assert (answer, after) == (0, before), where
            outcomes["done as far as it could be"] += 1
        # Once the key is mended, the call succeeds.
        client.delete(key)
        if kept is not None:
            client.restore(key, 0, kept)
        getattr(calls, script)()
    print(len(CASES), dict(outcomes))
    assert outcomes["refused"] > 20
    assert outcomes["done as far as it could be"] > 20


def check_commit(client: redis.Redis, calls: Calls, moved: set[str], before: dict[bytes, Any], where: str) -> None:
    """A saga that was changed has all that belongs to the change; the others have none of it."""
    after = dump(client)
    versions = {saga_id: after.get(ONLY.saga(saga_id).encode()) for saga_id in ("s1", "s2")}
    for saga_id in ("s1", "s2"):
        assert (versions[saga_id] != before.get(ONLY.saga(saga_id).encode())) == (saga_id in moved), where
    if not moved:
        assert after == before, where
    if "s1" in moved:
        for entry in calls.entries:
            if client.type(entry.stream) == b"stream":
                left: Any = client.xrange(entry.stream, entry.id, entry.id)
                assert left == [], f"{where}: {entry.stream} was not acknowledged"
        assert client.zscore(ONLY.timers, "s1") is not None, where
    if "s2" in moved:
        assert client.zscore(ONLY.ended, "s2") == 2, where
        assert client.zscore(ONLY.begun, "s2") == client.zscore(ONLY.index("status=ABORTED"), "s2") == 2, where
        assert client.hget(ONLY.indexed, "s2") == b'["status=ABORTED"]', where
        assert client.pttl(ONLY.saga("s2")) > 0, where


def test_a_full_store_takes_every_script_but_begin(client: redis.Redis) -> None:
    for script in list(SCRIPT_KEYS):
        calls = Calls(client)
        before, held = dump(client), consumers(client)
        client.config_set("maxmemory", 1)
        try:
            getattr(calls, script)()
        finally:
            client.config_set("maxmemory", 0)
        assert script in ("leave", "forget") or (dump(client), consumers(client)) != (before, held), script


def test_a_store_that_takes_nothing_is_changed_by_no_script(client: redis.Redis) -> None:
    for script in list(SCRIPT_KEYS):
        calls = Calls(client)
        if script == "leave":
            client.xgroup_createconsumer(WORK, GROUP, "leaver")
        before, held = dump(client), consumers(client)
        client.replicaof("127.0.0.1", 1)
        try:
            with pytest.raises(redis.ReadOnlyError):
                getattr(calls, script)()
            assert (dump(client), consumers(client)) == (before, held), script
        finally:
            client.replicaof("NO", "ONE")
        getattr(calls, script)()


#: What is said if the process ends and does not wait: this is not an outage, and a restart does not mend it.
PROCESS_KEYS = {
    ONLY.timers: "zset", ONLY.ended: "zset", ONLY.events: "stream", ONLY.requests: "stream",
    ONLY.interventions: "stream", ONLY.replies("work"): "stream", KEYS.services: "set",
    ONLY.quarantine_of("work"): "stream",
    WORK: "stream", ONLY.quarantine: "stream", ONLY.saga("s1"): "hash", "done": "hash", KEYS.published("work"): "hash",
}  # fmt: skip


@pytest.mark.parametrize(("key", "right"), PROCESS_KEYS.items())
def test_processes_go_on_once_what_stood_in_their_way_is_gone(
    server: Server, key: str, right: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each process either goes on with what it can do, or ends without having changed anything; `sagastream up` starts
    it again."""
    monkeypatch.setattr("sagastream.orchestrator.worker.LEASE_MS", 1)
    scene = Scene(server.broker())
    for kind in sorted({"string", "zset", "hash"} - {right}):
        scene.redis.flushall()
        scene.effects.done.clear()
        scene.effects.undone.clear()
        scene.worker, scene.runner = Scene(scene.broker).worker, Scene(scene.broker).runner
        scene.runner = type(scene.runner)(scene.broker, scene.effects.service, scene.stop)
        # If the hash was away, a reply was set aside; the command is sent again after its timeout.
        scene.begin("s1", *(do(params, timeout_ms=250, attempts=50) for params in (1, 2, "fail")))
        scene.worker.turn(block_ms=1)
        scene.runner.turn(block_ms=1)
        scene.redis.xadd(ONLY.replies("work"), {"body": "garbage"})
        scene.redis.xadd(WORK, {"body": "garbage"})
        scene.begin("s2", do(1))
        state = scene.client.get("s1")
        assert state is not None
        place = ONLY.done("work", state.begun_ms) if key == "done" else key
        kept, left = scene.redis.dump(place), scene.redis.pttl(place)
        scene.redis.delete(place)
        TYPES[kind](scene.redis, place)
        for process in (scene.worker, scene.runner, scene.worker, scene.runner):
            scene.worker._due.at_once()
            of_wrong_type(lambda process=process: process.turn(block_ms=1))  # type: ignore[misc]
        scene.redis.delete(place)
        if kept is not None:
            scene.redis.restore(place, max(left, 0), kept)
        # Start it again: a process that ended has ended with entries that it had read.
        scene.worker._inbox.recover()
        scene.runner._inbox.reader.recover()
        assert scene.play("s1").status is SagaStatus.ABORTED, kind
        assert scene.play("s2").status is SagaStatus.COMPLETED, kind
        assert Counter(scene.effects.done) == Counter(["s1/1/transaction", "s1/2/transaction", "s2/1/transaction"]), (
            kind
        )
        assert scene.effects.undone == ["s1/2/transaction", "s1/1/transaction"], kind
