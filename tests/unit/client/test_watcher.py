"""A watcher of sagas with the answers that a store would give, one round trip at a time."""

import threading
from collections.abc import Callable
from typing import Any

import orjson
import pytest
import redis

from sagastream.broker.exchange import Exchange, locked
from sagastream.client.answers import Accepted, Refused
from sagastream.client.requests import to_begin, to_intervene
from sagastream.client.waiting import Settled, Waiter
from sagastream.client.watcher import SagaWatcher
from sagastream.core.messages import Intervene, Verb
from sagastream.core.phases import Phase
from sagastream.core.saga import Intervention, SagaState, SagaStatus
from sagastream.core.step_state import Step
from sagastream.store.layout import Layout
from sagastream.store.saga_hash import changed_fields
from support.stores import KEYS, ONLY


def a_begin(saga_id: str) -> Accepted:
    return Accepted(begin=to_begin({"saga_id": saga_id, "steps": [{"transaction": "Do", "service": "work"}]}))


def a_saga(
    saga_id: str, status: SagaStatus = SagaStatus.PENDING, *, parked: str | None = None, **more: Any
) -> SagaState:
    begin = a_begin(saga_id).begin
    # A live saga always waits for something.
    now: dict[str, Any] = (
        {"phase": Phase.OUT, "due_ms": 5} if status is SagaStatus.PENDING else {"phase": Phase.COMPLETED}
    )
    if parked is not None:
        now = {"phase": Phase.PARKED, "parked": parked}
    steps = tuple(Step(definition=definition, attempt=1, sent_ms=1, **now) for definition in begin.steps)
    return SagaState(saga_id=saga_id, status=status, current_step=1, steps=steps, begun_ms=1, updated_ms=1, **more)


class Store:
    """What a broker holds: sagas and events. `reading` is called when a read of events begins."""

    def __init__(self) -> None:
        self.sagas: dict[str, SagaState] = {}
        self.events: list[tuple[bytes, dict[str, str]]] = []
        self.reading: Callable[[], None] = lambda: None
        self.looks: list[list[str]] = []  # the sagas that each look reads

    def tell(self, kind: str, saga_id: str, **fields: str) -> None:
        self.events.append((b"1-%d" % (len(self.events) + 1), {"kind": kind, "saga_id": saga_id} | fields))

    def end(self, saga_id: str) -> None:
        """End the saga as a worker does: hash and event at once."""
        self.sagas[saga_id] = a_saga(saga_id, SagaStatus.COMPLETED)
        self.tell("outcome", saga_id)

    def run(self, exchange: Exchange[Any]) -> Any:
        try:
            commands = next(exchange)
            while True:
                looked = [str(words[1]) for words in commands if words[0] == "HGETALL" and words[1] != KEYS.store]
                if looked:
                    self.looks.append([key.removeprefix(ONLY.saga("")) for key in looked])
                commands = exchange.send([self._answer(list(words)) for words in commands])
        except StopIteration as end:
            return end.value

    def _answer(self, words: list[Any]) -> Any:
        if words[0] == "TIME":
            return [b"1", b"0"]
        if words == ["HGETALL", KEYS.store]:
            return [b"protocol", b"2", b"partitions", b"1", b"tags", b"0"]
        if words[0] == "HGETALL":
            state = self.sagas.get(words[1].removeprefix(ONLY.saga("")))
            return [] if state is None else [_bytes(word) for word in changed_fields(None, state)]
        if words[0] == "XREVRANGE":
            return [[self.events[-1][0], []]] if self.events else []
        assert words[0] == "XREAD", words
        self.reading()
        place = int(words[-1].partition(b"-")[2])
        found = [(entry_id, fields) for entry_id, fields in self.events if int(entry_id.partition(b"-")[2]) > place]
        page = [[entry_id, [_bytes(word) for pair in fields.items() for word in pair]] for entry_id, fields in found]
        return [[ONLY.events.encode(), page]] if page else None


def _bytes(word: Any) -> bytes:
    return word if isinstance(word, bytes) else str(word).encode()


@pytest.fixture
def store() -> Store:
    return Store()


def names(settled: Settled) -> list[str]:
    return [waiter.saga_id for waiter, _ in settled]


def heard(watcher: SagaWatcher) -> list[bytes]:
    return [entry.fields[b"kind"] for entry in watcher.heard]


def watching(store: Store, *waiters: Waiter, in_order: bool = True) -> SagaWatcher:
    """A watcher that has looked at all sagas, and reads on from here."""
    watcher = SagaWatcher(Layout("saga"), waiters, in_order=in_order, in_all=True)
    while watcher._to_look or not watcher.is_in_place("a"):
        assert store.run(watcher.turn(0)) == []
    return watcher


# --- in order


@pytest.mark.parametrize("stray", [True, False])
def test_a_waiter_is_settled_after_all_that_was_heard_before_the_end(store: Store, stray: bool) -> None:
    store.sagas["a"] = a_saga("a")
    watcher = watching(store, waiter := Waiter.for_end_of("a"))
    if stray:
        store.tell("outcome", "a")  # whoever sent it: at the time of the look it is true
    store.tell("reply", "a")
    store.end("a")
    assert store.run(watcher.turn(1)) == []
    assert heard(watcher) == [b"outcome"] * stray + [b"reply", b"outcome"]
    assert [one for one, _ in store.run(watcher.turn(1))] == [waiter]
    assert heard(watcher) == []
    assert not watcher


def test_an_end_that_a_look_finds_first_waits_until_its_messages_were_heard_and_dealt_with(store: Store) -> None:
    store.sagas["a"] = a_saga("a")
    watcher = watching(store, Waiter.for_end_of("a"))
    store.tell("reply", "a")
    store.end("a")
    assert store.run(watcher.look_at(["a"])) == []
    assert store.run(watcher.turn(1)) == []
    assert heard(watcher) == [b"reply", b"outcome"]
    # Another thread looks while the first one still works on what it has read.
    assert store.run(watcher.look_at(["a"])) == []
    assert names(store.run(watcher.turn(0))) == ["a"]


def test_a_look_beside_a_turn_that_waits_settles_at_once(store: Store) -> None:
    store.end("a")
    watcher = watching(store)
    looked: list[Settled] = []

    def meanwhile() -> None:
        watcher.add(Waiter.for_end_of("a"))
        looked.append(store.run(watcher.look_at(["a"])))

    store.reading = meanwhile
    assert store.run(watcher.turn(1)) == []
    assert [names(settled) for settled in looked] == [["a"]]


def test_what_was_found_twice_settles_once(store: Store) -> None:
    store.sagas["a"] = a_saga("a")
    watcher = watching(store, Waiter.for_end_of("a"))
    store.end("a")
    assert store.run(watcher.look_at(["a"])) == []
    assert store.run(watcher.look_at(["a"])) == []
    store.run(watcher.turn(1))
    assert names(store.run(watcher.turn(0))) == ["a"]
    assert store.run(watcher.turn(1)) == []


def test_events_that_are_lost_are_not_waited_for(store: Store) -> None:
    store.sagas["a"] = a_saga("a")
    watcher = watching(store, Waiter.for_end_of("a"))
    store.tell("reply", "a")
    store.end("a")
    assert store.run(watcher.look_at(["a"])) == []
    store.events.clear()
    assert store.run(watcher.turn(1)) == []
    assert names(store.run(watcher.turn(1))) == ["a"]


def test_a_store_that_lost_its_last_events_is_read_from_its_new_end(store: Store) -> None:
    store.tell("reply", "a")
    store.tell("reply", "a")
    watcher = watching(store, Waiter.for_end_of("a"))
    watcher.lose_place()  # as after an outage
    del store.events[1:]
    store.run(watcher.turn(0))
    store.end("a")
    store.run(watcher.turn(1))
    assert heard(watcher) == [b"outcome"]
    assert names(store.run(watcher.turn(0))) == ["a"]


def test_an_end_that_the_store_has_lost_again_settles_nobody(store: Store) -> None:
    store.sagas["a"] = a_saga("a")
    watcher = watching(store, Waiter.for_end_of("a"))
    store.tell("reply", "a")
    store.end("a")
    assert store.run(watcher.look_at(["a"])) == []
    watcher.lose_place()  # a failover
    store.events.pop()
    store.sagas["a"] = a_saga("a")
    store.tell("parked", "b")
    assert store.run(watcher.turn(1)) == []
    assert store.run(watcher.turn(1)) == []
    assert watcher


def test_a_refusal_settles_with_the_events_before_it(store: Store) -> None:
    accepted = a_begin("a")
    store.sagas["a"] = a_saga("a")
    watcher = watching(store, Waiter.for_end_of(accepted), Waiter.for_end_of("a"))
    store.tell("reply", "a")
    body = orjson.dumps({"code": 22, "text": "why"}).decode()
    store.tell("refused", "a", request_id=str(accepted.begin.request_id), body=body)
    store.tell("refused", "a", request_id="another", body=body)
    [(waiter, outcome)] = store.run(watcher.turn(1))
    assert waiter.request is accepted.begin
    assert isinstance(outcome, Refused)
    assert heard(watcher) == [b"reply", b"refused", b"refused"]
    assert len(watcher.waiting_for("a")) == 1


def test_only_events_of_sagas_that_somebody_waits_for_are_heard(store: Store) -> None:
    watcher = watching(store, Waiter.for_end_of("a"))
    store.tell("reply", "b")
    store.tell("odd", "a")
    store.events.append((b"1-3", {"odd": "one"}))
    store.run(watcher.turn(1))
    assert heard(watcher) == [b"odd"]


# --- at once


def test_without_an_order_to_keep_a_look_settles_at_once(store: Store) -> None:
    store.sagas["a"] = a_saga("a")
    watcher = watching(store, Waiter.for_end_of("a"), in_order=False)
    store.tell("reply", "a")
    store.end("a")
    assert names(store.run(watcher.look_at(["a"]))) == ["a"]


# --- who waits


def test_all_who_wait_for_the_end_of_a_saga_are_settled_together(store: Store) -> None:
    mine, yours = Waiter.for_end_of(a_begin("a")), Waiter.for_end_of("a")
    watcher = watching(store, mine, Waiter.for_end_of("b"), yours)
    store.end("a")
    store.run(watcher.turn(1))
    assert [waiter for waiter, _ in store.run(watcher.turn(0))] == [mine, yours]
    assert watcher.waiting_for("a") == ()
    assert watcher


def test_who_asked_for_something_waits_past_the_end_until_it_was_done(store: Store) -> None:
    request = to_intervene(Verb.CANCEL, "a", "why")
    asked = Waiter(saga_id="a", request=request)
    watcher = watching(store, asked, Waiter.for_end_of("a"))
    store.end("a")
    store.run(watcher.turn(1))
    assert len(store.run(watcher.turn(0))) == 1
    assert watcher.waiting_for("a") == (asked,)
    store.sagas["a"] = store.sagas["a"].with_intervention(_done(request))
    store.tell("done", "a")
    store.run(watcher.turn(1))
    assert [waiter for waiter, _ in store.run(watcher.turn(0))] == [asked]


def _done(request: Intervene) -> Intervention:
    return Intervention(verb=str(request.verb), reason=request.reason, at_ms=2, request_id=request.request_id)


def test_who_waits_past_parking_is_settled_by_the_end_alone(store: Store) -> None:
    store.sagas["a"] = a_saga("a", parked="why")
    watcher = SagaWatcher(Layout("saga"), [Waiter.for_end_of("a"), patient := Waiter(saga_id="a", past_parking=True)])
    assert len(store.run(watcher.turn(0))) == 1
    assert watcher.waiting_for("a") == (patient,)
    store.end("a")
    assert names(store.run(watcher.look_at(["a"]))) == ["a"]


def test_two_who_wait_for_the_same_are_two_and_each_is_discarded_once() -> None:
    first, second = Waiter.for_end_of("a"), Waiter.for_end_of("a")
    watcher = SagaWatcher(Layout("saga"), [first, second])
    assert watcher.discard(first)
    assert not watcher.discard(first)
    assert watcher.waiting_for("a") == (second,)
    assert watcher.discard(second)
    assert not watcher
    assert not watcher.discard(Waiter.for_end_of("b"))


def test_a_sweep_looks_at_some_sagas_and_at_others_the_next_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    watcher = watching(store, *(Waiter.for_end_of(f"s{n}") for n in range(5)))
    monkeypatch.setattr("sagastream.client.watcher._AT_ONCE", 2)
    monkeypatch.setattr("sagastream.client.watcher._SWEEP_EVERY_S", 0.0)
    watcher._sweep_at = 0.0
    store.looks.clear()
    for _ in range(4):
        store.run(watcher.turn(1))
    assert store.looks == [["s0", "s1"], ["s2", "s3"], ["s4", "s0"]]


def test_a_look_that_fails_is_made_again(store: Store) -> None:
    watcher = watching(store, Waiter.for_end_of("a"))
    store.sagas["a"] = a_saga("a", SagaStatus.COMPLETED)
    look = watcher.look_at(["a"])
    next(look)
    with pytest.raises(redis.ConnectionError):
        look.throw(redis.ConnectionError("gone"))
    assert names(store.run(watcher.turn(0))) == ["a"]


# --- shared by threads


def test_a_locked_exchange_leaves_the_lock_to_others_during_its_round_trips() -> None:
    lock = threading.Lock()
    held: list[bool] = []

    def exchange() -> Exchange[str]:
        held.append(lock.locked())
        try:
            yield [("PING",)]
        except redis.ConnectionError:
            held.append(lock.locked())
        (answer,) = yield [("PING",)]
        held.append(lock.locked())
        return str(answer)

    shared = locked(exchange(), lock)
    assert next(shared) == [("PING",)]
    assert not lock.locked()
    assert shared.throw(redis.ConnectionError("gone")) == [("PING",)]
    assert not lock.locked()
    with pytest.raises(StopIteration) as end:
        shared.send(["PONG"])
    assert end.value.value == "PONG"
    assert not lock.locked()
    assert held == [True, True, True]


def test_what_a_locked_exchange_raises_frees_the_lock() -> None:
    lock = threading.Lock()

    def exchange() -> Exchange[None]:
        yield [("PING",)]

    shared = locked(exchange(), lock)
    next(shared)
    with pytest.raises(redis.ConnectionError):
        shared.throw(redis.ConnectionError("gone"))
    assert not lock.locked()
