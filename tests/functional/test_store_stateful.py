"""The store on real servers: whatever workers commit, in whatever order, it holds what a plain model says. It has two
partitions, and a commit is about sagas of both.

Services are paused and resumed meanwhile. A worker knows of that what it has read last.
"""

import contextlib
from collections import Counter, defaultdict
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from msgspec.structs import replace

from sagastream.broker.entries import Entry
from sagastream.broker.exchange import run
from sagastream.core.begin_parsing import parse_begin
from sagastream.core.commands import Reply
from sagastream.core.decision import Event, decide
from sagastream.core.indexing import held_names, index_names, of_held
from sagastream.core.messages import Due, Fields, Intervene, Verb
from sagastream.core.saga import Found, SagaState
from sagastream.core.step_state import HELD_MS
from sagastream.core.transitions import Decision, Moment
from sagastream.errors import CorruptSaga, RequestRefused
from sagastream.orchestrator.change import Change
from sagastream.orchestrator.commit import Store
from sagastream.orchestrator.pauses import Pauses
from sagastream.store import keys, pauses
from sagastream.store.indexes import names_in
from sagastream.store.keys import StoreKeys
from sagastream.store.sagas import read
from support.scenes import do
from support.servers import Server
from support.stored import dump

RETENTION_MS = 3_600_000
#: What services publish. Nobody knows what undoes Do of `silent`, so sagas with it are parked.
PUBLISHED = {"work": {"Do": "Undo"}, "stuck": {"Do": "Undo"}}
SHAPES: dict[str, list[dict[str, Any]]] = {
    "one": [do(1)],
    "two": [do(1), do(2, attempts=2)],
    "nobody knows": [do(1, service="silent"), do(2)],
    "for good": [do(1, compensation=None), do(2, kind="pivot"), do(3, kind="retriable", attempts=1)],
    "stuck": [do(1), do(2, service="stuck")],
}
KEYS = StoreKeys("saga", ["0", "1"])
#: The first and the last are in the same partition.
SAGAS = ["s0", "s1", "s2"]
STREAMS = [stream for one in KEYS.partitions for stream in (one.requests, one.replies("work"))]
STUCK = [one.commands("stuck") for one in KEYS.partitions]
SERVICES = ["silent", "stuck", "work"]
#: What is paused and resumed.
PAUSES = [("work", None), ("work", "Do"), ("work", "Undo"), ("stuck", None)]


class Workers(RuleBasedStateMachine):
    """Two workers load, decide and commit. What they hold may be out of date by then."""

    client: redis.Redis
    ran: Counter[str]

    def __init__(self) -> None:
        super().__init__()
        self.client.flushall()
        self.stores = [Store(self.client, retention_ms=RETENTION_MS) for _ in range(2)]
        self.held: list[dict[str, Found]] = [dict.fromkeys(SAGAS), dict.fromkeys(SAGAS)]
        self.pauses = [self._new_pauses() for _ in range(2)]
        _, self.now_ms = read(self.client, KEYS, [])
        for stream in STREAMS:
            self.client.xgroup_create(stream, keys.ORCHESTRATOR_GROUP, id="0", mkstream=True)
        # The model: what must be in the store.
        self.states: dict[str, SagaState | None] = dict.fromkeys(SAGAS)
        self.ended_ms: dict[str, int] = {}
        self.placed: dict[str, tuple[tuple[str, ...], int]] = {}  # in which indexes each is, and its score
        self.woken: set[str] = set()  # those that were held, and are due since somebody has resumed something
        self.to_sweep: set[str] = set()  # ids in ended of sagas that somebody deleted: the next sweep takes them out
        self.appended: dict[str, list[Fields]] = defaultdict(list)
        self.pending: dict[tuple[str, bytes], Entry] = {}
        self.is_stuck = False
        self.damaged: set[str] = set()
        self.unnoticed: set[str] = set()  # those of them whose version stands: who read it before writes

    # --- what the workers do

    @rule(worker=st.integers(0, 1), sagas=st.sets(st.sampled_from(SAGAS), min_size=1))
    def load(self, worker: int, sagas: set[str]) -> None:
        found, _ = read(self.client, KEYS, sagas)
        for saga_id, state in found.items():
            if saga_id in self.damaged:
                assert isinstance(state, CorruptSaga)
            else:
                assert state == self.states[saga_id]
            self.held[worker][saga_id] = state
        self.ran["loaded"] += len(sagas)

    @rule(ms=st.sampled_from([1, 70_000, 10_000_000]))
    def time_passes(self, ms: int) -> None:
        self.now_ms += ms

    whats = st.sampled_from(["begin", "ok", "failed", "unknown", "undone", "due", *Verb])

    @rule(
        worker=st.integers(0, 1),
        letters=st.lists(
            st.tuples(st.sampled_from(SAGAS), whats, st.sampled_from(list(SHAPES)), st.integers(1, 3), st.booleans()),
            min_size=1, max_size=4,
        ),
    )  # fmt: skip
    def turn(self, worker: int, letters: list[tuple[str, str, str, int, bool]]) -> None:
        """Fold these letters over what the worker holds, and commit it."""
        changes: dict[str, Change] = {}
        for saga_id, what, shape, step, old in letters:
            state = self.held[worker][saga_id]
            change = changes.setdefault(
                saga_id, Change(partition=KEYS.of(saga_id), saga_id=saga_id, before=state, after=state)
            )
            event = self._event(change.after, saga_id, what, shape, step)
            change.add(self._entry(saga_id, event, old), self._decided(worker, change.after, event), leased=True)
        in_order = sorted(changes.values(), key=lambda change: change.partition.number)
        self._commit(worker, [change for change in in_order if not change.is_empty])

    # --- what is paused

    @rule(
        what=st.sampled_from(PAUSES),
        resume=st.booleans(),
        heard_by=st.sets(st.integers(0, 1)),
        looks=st.none() | st.integers(0, 1),
    )
    def pause_or_resume(
        self, what: tuple[str, str | None], resume: bool, heard_by: set[int], looks: int | None = None
    ) -> None:
        """`looks`: the worker that then looks at the sagas that were woken."""
        if not resume:
            run(self.client, pauses.pause(KEYS, *what, "maintenance", None))
        else:
            with contextlib.suppress(RequestRefused):  # it is not paused
                run(self.client, pauses.resume(KEYS, *what, "done", None))
        for worker in heard_by:
            self._hear(worker)
        if looks is not None:
            self._look_at_woken(looks)

    @rule(saga=st.sampled_from(SAGAS), worker=st.integers(0, 1), what=st.sampled_from(PAUSES))
    def hold(self, saga: str, worker: int, what: tuple[str, str | None]) -> None:
        """Pause something, begin a saga, and have it go as far as it goes."""
        self.pause_or_resume(what, resume=False, heard_by={worker})
        self.begin_and_go_back(saga, worker, "two")

    @rule(worker=st.integers(0, 1))
    def release(self, worker: int) -> None:
        """Resume all that is paused. A worker that starts finds what others have held, who may not have heard of it yet
        and die."""
        for what in PAUSES:
            self.pause_or_resume(what, resume=True, heard_by=set())
        self.pauses[worker] = self._new_pauses()
        self._hear(worker)
        self._look_at_woken(worker)
        held = {saga_id for saga_id, state in self.states.items() if state is not None and held_names(state)}
        assert self.is_stuck or not held - self.damaged

    def _look_at_woken(self, worker: int) -> None:
        woken = self.woken - self.damaged
        self.load(worker, woken)
        self.turn(worker, [(saga_id, "due", "one", 1, False) for saga_id in sorted(woken)])
        assert self.is_stuck or not woken & self.woken  # each was sent, or stays held until it is woken again

    def _hear(self, worker: int) -> None:
        """The worker reads what is paused, and makes those due that may be held no more."""
        known = self.pauses[worker]
        before = known.names
        run(self.client, known.read())
        while known.wake(SERVICES, KEYS.partitions):
            pass
        resumed = {of_held(name.partition("/")[0]) for name in before - known.names}
        for saga_id, score in self._scores("timers").items():
            state = self.states[saga_id]
            assert state is not None
            names = held_names(state)
            assert names or score == (float("inf") if state.due_ms is None else state.due_ms)
            if names and score < HELD_MS:
                self.woken.add(saga_id)
            assert saga_id in self.woken or not resumed.intersection(names)
        self.ran["woken"] += len(self.woken)

    # --- what goes wrong

    @rule(worker=st.integers(0, 1), saga=st.sampled_from(SAGAS))
    def drive_on(self, worker: int, saga: str) -> None:
        """Answer what the saga waits for, on a fresh state, so that sagas reach their ends."""
        self.load(worker, {saga})
        state = self.held[worker][saga]
        if isinstance(state, SagaState) and not state.ended and state.parked is None:
            if held_names(state):
                self.release(worker)
                return
            what = "ok" if state.status == "PENDING" else "undone"
            self.turn(worker, [(saga, what, "one", state.current_step, False)])

    @rule(saga=st.sampled_from(SAGAS), worker=st.integers(0, 1), shape=st.sampled_from(list(SHAPES)))
    def begin_and_go_back(self, saga: str, worker: int, shape: str) -> None:
        self.load(worker, {saga})
        self.turn(
            worker, [(saga, "begin", shape, 1, False), (saga, "ok", shape, 1, False), (saga, "failed", shape, 2, False)]
        )

    @rule(
        saga=st.sampled_from(SAGAS),
        shape=st.sampled_from(list(SHAPES)),
        first=whats,
        second=whats,
        step=st.integers(1, 2),
    )
    def race(self, saga: str, shape: str, first: str, second: str, step: int) -> None:
        """Both hold the saga as it is, and both change it."""
        self.load(0, {saga})
        self.load(1, {saga})
        self.turn(0, [(saga, first, shape, step, False)])
        self.turn(1, [(saga, second, shape, step, True)])

    @rule(saga=st.sampled_from(SAGAS), worker=st.integers(0, 1), other=st.sampled_from(SAGAS))
    def run_into_what_is_in_the_way(self, saga: str, worker: int, other: str) -> None:
        """One saga needs the key that is not a stream, another does not."""
        self.something_is_in_the_way_of_a_service(there=True)
        self.load(worker, {saga, other})
        letters = [
            (saga, "begin", "stuck", 1, False),
            (saga, "ok", "stuck", 1, False),
            (other, "begin", "one", 1, False),
        ]
        self.turn(worker, letters)

    @precondition(lambda self: not self.damaged)
    @rule(saga=st.sampled_from(SAGAS), how=st.sampled_from(["a string", "no version", "another version", "a field"]))
    def damage_a_saga(self, saga: str, how: str) -> None:
        if self.states[saga] is None:
            return
        key = KEYS.saga(saga)
        if how == "a string":
            self.client.set(key, "in the way")
        elif how == "no version":
            self.client.hdel(key, "version")
        elif how == "a field":
            self.client.hset(key, "status", "ODD")
            self.unnoticed.add(saga)
        else:
            self.client.hset(key, "version", "07")
        self.damaged.add(saga)

    @precondition(lambda self: self.damaged)
    @rule()
    def forget_the_damaged(self) -> None:
        """A person deletes them."""
        for saga_id in self.damaged:
            self.client.delete(KEYS.saga(saga_id))
            self.client.zrem(KEYS.of(saga_id).timers, saga_id)
            self.client.zrem(KEYS.of(saga_id).ended, saga_id)
            self.states[saga_id] = None
            self.woken.discard(saga_id)
            self.ended_ms.pop(saga_id, None)
            self.to_sweep.discard(saga_id)
        self.now_ms += 1  # that takes a person a while
        self.damaged.clear()
        self.unnoticed.clear()

    @rule(there=st.booleans())
    def something_is_in_the_way_of_a_service(self, there: bool) -> None:
        if there and not self.client.exists(*STUCK):
            self.client.mset(dict.fromkeys(STUCK, "in the way"))
            self.is_stuck = True
        elif not there and self.is_stuck:
            self.client.delete(*STUCK)
            self.is_stuck = False

    # --- how they do it

    def _scores(self, name: str) -> dict[str, float]:
        """What stands in a zset of every partition: each saga in its own."""
        found: dict[str, float] = {}
        for partition in KEYS.partitions:
            members: Any = self.client.zrange(getattr(partition, name), 0, -1, withscores=True)
            assert all(KEYS.of(member.decode()) is partition for member, _ in members)
            found |= {member.decode(): score for member, score in members}
        return found

    def _event(self, state: Found, saga_id: str, what: str, shape: str, step: int) -> Event:
        request_id = f"r{len(self.appended[KEYS.of(saga_id).events])}"
        if what == "begin":
            body = {"saga_id": saga_id, "steps": SHAPES[shape]}
            return parse_begin(body, request_id=request_id, echo=shape == "two")
        if what in list(Verb):
            return Intervene(verb=Verb(what), saga_id=saga_id, reason="so", request_id=request_id)
        if what == "due":
            return Due(saga_id=saga_id)
        kind = {"ok": "Do_ok", "undone": "Undo_ok"}.get(what, "Do_failed")
        return Reply(type=kind, saga_id=saga_id, step=step, unknown=what == "unknown", error=None)

    def _new_pauses(self) -> Pauses:
        made = Pauses(self.client, 5_000)
        made.join(KEYS)
        return made

    def _decided(self, worker: int, state: Found, event: Event) -> Decision:
        known = self.pauses[worker]
        moment = Moment(now_ms=self.now_ms, published=PUBLISHED, paused=known.names, pauses=known.all)
        return decide(state, event, moment)

    def _entry(self, saga_id: str, event: Event, old: bool) -> Entry | None:
        """An entry with this message, read by a worker; with `old`, one that is in the store already, as after a late
        takeover."""
        partition = KEYS.of(saga_id)
        if isinstance(event, Due):
            return None
        pending = [entry for entry in self.pending.values() if KEYS.partition_of(entry.stream) is partition]
        if old and pending:
            return pending[0]
        stream = partition.replies("work") if isinstance(event, Reply) else partition.requests
        self.client.xadd(stream, {"body": "x"})
        page: Any = self.client.xreadgroup(keys.ORCHESTRATOR_GROUP, "p", {stream: ">"}, count=1)
        [(entry_id, fields)] = page[0][1]
        entry = self.pending[stream, entry_id] = Entry(stream=stream, id=entry_id, fields=fields)
        return entry

    def _commit(self, worker: int, changes: list[Change]) -> None:
        before = dump(self.client)
        lost, stuck = self.stores[worker].commit(changes, self.now_ms)
        wins: list[Change] = []
        after_a_sweep: list[Change] = []
        for change in changes:
            saga_id = str(change.saga_id)
            fits = isinstance(change.before, CorruptSaga) or (
                saga_id not in self.damaged - self.unnoticed and change.before == self.states[saga_id]
            )
            left, _ = self.placed.get(saga_id, ((), 0))
            if fits and change.before is None and left and index_names(_state(change.after)):
                # What an earlier saga has left is swept before this one begins, after the others.
                after_a_sweep.append(change)
                del self.placed[saga_id]
                self.to_sweep.discard(saga_id)
            needs_stuck = self.is_stuck and any(command.service == "stuck" for command in change.commands)
            assert (change in lost) == (not fits), saga_id
            assert (change in stuck) == (fits and needs_stuck), saga_id
            if fits and not needs_stuck:
                wins.append(change)
        for change in sorted(wins, key=lambda one: one in after_a_sweep):
            self._apply(change)
        if not wins and not after_a_sweep:
            assert dump(self.client) == before
        self.ran["won"] += len(wins)
        self.ran["lost"] += len(lost)
        self.ran["stuck"] += len(stuck)

    def _apply(self, change: Change) -> None:
        """The model's commit."""
        saga_id = str(change.saga_id)
        before, after = change.before, change.after
        if isinstance(after, SagaState) and after is not before:
            version = before.version if isinstance(before, SagaState) else 0
            self.states[saga_id] = replace(after, version=version + 1)
            if after.ended or (before is None and saga_id in self.placed):
                self.to_sweep.discard(saga_id)
            self.placed[saga_id] = index_names(after), after.begun_ms
            self.ran["held"] += bool(held_names(after))
            if after.ended and not (isinstance(before, SagaState) and before.ended):
                self.ended_ms[saga_id] = self.now_ms
                self.ran[after.status] += 1
            self.ran["parked"] += after.parked is not None
        elif change.is_gone and after is None:
            self.to_sweep.add(saga_id)
        if change.rearm or after is not before:
            self.woken.discard(saga_id)
        for command in change.commands:
            self.appended[change.partition.commands(command.service)].append(command.fields())
        for notice in change.notices:
            self.appended[change.partition.events].append(notice.fields())
        for entry, reason in change.quarantined:
            self.appended[change.partition.quarantine].append(entry.quarantined(reason))
        for entry in change.entries:
            self.pending.pop((entry.stream, entry.id), None)

    # --- what must hold after each

    @invariant()
    def sagas_are_as_the_model_has_them(self) -> None:
        whole = [saga_id for saga_id in SAGAS if saga_id not in self.damaged]
        found, _ = read(self.client, KEYS, whole)
        assert found == {saga_id: self.states[saga_id] for saga_id in whole}
        for saga_id in whole:
            state = self.states[saga_id]
            version = self.client.hget(KEYS.saga(saga_id), "version")
            assert version == (None if state is None else str(state.version).encode())

    @invariant()
    def live_sagas_have_a_time_and_ended_ones_a_term(self) -> None:
        there = self._scores("timers")
        live = {saga_id: state for saga_id, state in self.states.items() if state is not None and not state.ended}
        scores = {saga_id: float("inf") if state.due_ms is None else state.due_ms for saga_id, state in live.items()}
        assert all(there[saga_id] < HELD_MS for saga_id in self.woken)
        assert there | {saga_id: scores[saga_id] for saga_id in self.woken} == scores
        assert self._scores("ended") == dict.fromkeys(self.to_sweep, 0) | self.ended_ms
        assert all((state.parked is not None) == (scores[saga_id] == float("inf")) for saga_id, state in live.items())
        for saga_id in self.states.keys() - self.damaged:
            ttl = self.client.pttl(KEYS.saga(saga_id))
            if saga_id in self.ended_ms:
                assert 0 < ttl <= RETENTION_MS
            else:
                assert ttl == (-1 if saga_id in live else -2)

    @invariant()
    def sagas_are_in_the_indexes_that_they_say_and_in_no_others(self) -> None:
        """One whose hash was deleted stays where it was until it is swept, or begun again."""
        expected: dict[str, dict[str, float]] = defaultdict(dict)
        for saga_id, (names, begun_ms) in self.placed.items():
            for name in names:
                expected[KEYS.of(saga_id).index(name)][saga_id] = begun_ms
            expected[KEYS.of(saga_id).begun][saga_id] = begun_ms
        stored: Any = [*self.client.keys("saga:*:index:*"), *self.client.keys("saga:*:begun")]
        found: Any = {key.decode(): self.client.zrange(key, 0, -1, withscores=True) for key in stored}
        there = {key: {saga_id.decode(): score for saga_id, score in of_it} for key, of_it in found.items()}
        assert there == expected
        for partition in KEYS.partitions:
            told: Any = self.client.hgetall(partition.indexed)
            assert {saga_id.decode(): names_in(names) for saga_id, names in told.items()} == {
                saga_id: names for saga_id, (names, _) in self.placed.items() if names and KEYS.of(saga_id) is partition
            }

    @invariant()
    def what_was_appended_is_there_once_and_in_order(self) -> None:
        for stream, expected in self.appended.items():
            if stream in STUCK and (self.is_stuck or not self.client.exists(stream)):
                continue  # it was deleted together with the wrong value at its key
            found: Any = self.client.xrange(stream)
            as_sent = [{name.encode(): _bytes(value) for name, value in fields.items()} for fields in expected]
            kept = [self._as_sent(entry_id, fields) for entry_id, fields in found]
            assert kept == as_sent[len(as_sent) - len(kept) :] if stream in STUCK else kept == as_sent

    @staticmethod
    def _as_sent(entry_id: bytes, fields: dict[bytes, bytes]) -> dict[bytes, bytes]:
        """The fields without what the script adds to a first attempt: no service has recorded anything here."""
        is_first = b"not_after_ms" in fields and fields[b"attempt"] == b"1"
        assert fields.pop(b"unrecorded_ms", None) == (entry_id.partition(b"-")[0] if is_first else None)
        return fields

    @invariant()
    def what_was_dealt_with_is_acknowledged_and_the_rest_is_not(self) -> None:
        for stream in STREAMS:
            waiting = sorted(entry.id for entry in self.pending.values() if entry.stream == stream)
            left: Any = self.client.xrange(stream)
            held: Any = self.client.xpending_range(stream, keys.ORCHESTRATOR_GROUP, "-", "+", 1000)
            assert sorted(entry_id for entry_id, _ in left) == waiting
            assert sorted(one["message_id"] for one in held) == waiting


def _state(found: Found) -> SagaState | None:
    return found if isinstance(found, SagaState) else None


def _bytes(value: str | bytes | int) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


@pytest.mark.slow
@pytest.mark.both_in_soak
def test_whatever_workers_commit_the_store_holds_what_the_model_says(server: Server) -> None:
    Workers.client, Workers.ran = server.broker().client, Counter()
    run_state_machine_as_test(
        Workers,
        settings=settings(
            max_examples=120,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            phases=set(Phase) - {Phase.explain},
            suppress_health_check=list(HealthCheck),
        ),
    )
    print(dict(Workers.ran))
    wanted = ("won", "lost", "stuck", "parked", "held", "woken", "COMPLETED", "ABORTED")
    assert min(Workers.ran[what] for what in wanted) >= 5, Workers.ran
