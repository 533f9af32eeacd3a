"""What a process asks to see whether the store has lost writes, and what it makes of the answers."""

import contextlib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import redis

from sagastream.broker.failures import NodeAway
from sagastream.store.keys import StoreKeys
from sagastream.store.lineage import Lineage
from sagastream.store.losses import Loss
from sagastream.telemetry import Observer

KEYS = StoreKeys("saga", ["0"])
OLD, NEW, OTHER = "a" * 40, "b" * 40, "c" * 40
T = 1_700_000_000_000


class Watching(Observer):
    def __init__(self) -> None:
        self.lost: list[int | None] = []

    def writes_lost(self, *, since_ms: int | None, **_: object) -> None:
        self.lost.append(since_ms)


def info(
    history: str = OLD, offset: int = 10, before: str = "0" * 40, taken_over: int = -1, role: str = "master"
) -> bytes:
    return (
        f"# Replication\r\nrole:{role}\r\nmaster_replid:{history}\r\nmaster_replid2:{before}\r\n"
        f"master_repl_offset:{offset}\r\nsecond_repl_offset:{taken_over}\r\n"
    ).encode()


GROUPS = [[b"name", b"g", b"last-delivered-id", b"5-1"]]
TIME = [b"1700000000", b"0"]


def look(lineage: Lineage, answers: list[Any], beat_ms: int | None = None, kept: Any = 1) -> list[Any]:
    """Have it look; returns the commands that it sends after the first ones. `kept`: what they answer."""
    looking = lineage.look(KEYS, b"me", beat_ms)
    next(looking)
    try:
        more = list(looking.send(answers))
    except StopIteration:
        return []
    with pytest.raises(StopIteration):
        looking.send([kept])
    return more


def test_a_loss_is_told_once_and_kept_under_the_replication_id() -> None:
    watching = Watching()
    lineage = Lineage("worker w", area="worker", service="g", observer=watching)
    assert look(lineage, [TIME, info(), None, GROUPS]) == []
    assert look(lineage, [TIME, info(), b"1700000000000", GROUPS], beat_ms=T) == []
    lost = [TIME, info(NEW, before=OLD, taken_over=6), b"1699999999000", GROUPS]
    ((*_, command, _, field, _),) = look(lineage, lost, beat_ms=T)  # by even_if_full.lua
    assert (command, field) == ("HSETNX", NEW)
    assert watching.lost == [T - 1000]
    assert look(lineage, lost, beat_ms=T - 1000) == []
    assert watching.lost == [T - 1000]


def test_a_loss_that_a_new_master_refuses_to_keep_is_kept_at_the_next_look(caplog: pytest.LogCaptureFixture) -> None:
    """With min-replicas-to-write it takes no writes until it has a replica."""
    lineage = Lineage("worker w", area="worker", service="g")
    look(lineage, [TIME, info(), None, GROUPS])
    lost = [TIME, info(NEW, before=OLD, taken_over=6), b"1699999999000", GROUPS]
    refused = redis.ResponseError("NOREPLICAS Not enough good replicas to write.")
    (first,) = look(lineage, lost, beat_ms=T, kept=refused)
    assert look(lineage, lost, beat_ms=T) == [first]
    assert look(lineage, lost, beat_ms=T) == []
    assert [record.levelname for record in caplog.records] == ["WARNING"]  # of the loss alone


def test_it_counts_how_often_the_store_has_another_history_or_has_lost_writes() -> None:
    lineage = Lineage("worker w", area="worker", service="g")
    counted = []
    seen: list[tuple[list[Any], int | None]] = [
        ([TIME, info(), None, GROUPS], None),
        ([TIME, info(offset=20), b"%d" % T, GROUPS], T),
        ([TIME, info(NEW, before=OLD, taken_over=30), b"%d" % T, GROUPS], T),  # nothing is lost
        ([TIME, info(OTHER), b"%d" % T, GROUPS], T),  # a server that has started anew
        ([TIME, info(OTHER), None, []], T),  # it was emptied
        ([TIME, info(OTHER), None, []], None),
    ]
    for answers, beat_ms in seen:
        look(lineage, answers, beat_ms=beat_ms)
        counted.append(lineage.changes)
    assert counted == [0, 0, 1, 2, 3, 3]


def test_a_look_at_a_single_server_that_another_one_has_overtaken_says_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As if a former master that had hung answered late."""
    lineage = Lineage("worker w", area="worker", service="g")
    look(lineage, [TIME, info(), None, GROUPS])
    late = lineage.look(KEYS, b"me", T)
    next(late)
    taken_over = [TIME, info(NEW, before=OLD, taken_over=30), b"%d" % (T + 500), GROUPS]
    assert look(lineage, taken_over, beat_ms=T + 500) == []
    with pytest.raises(StopIteration):
        late.send([TIME, info(offset=20), b"%d" % T, GROUPS])
    assert look(lineage, taken_over, beat_ms=T + 500) == []
    assert (lineage.changes, [one for one in caplog.records if one.levelname == "WARNING"]) == (1, [])


NEWEST = [b"another", b"1700000000000"]


def as_bridge(lineage: Lineage, answers: list[Any], watched: bytes) -> None:
    """A process that writes no heartbeat looks. `watched`: at whose heartbeat."""
    looking = lineage.look(KEYS, b"", None)
    assert ("ZSCORE", KEYS.alive, watched) in next(looking)
    with contextlib.suppress(StopIteration):
        looking.send(answers)
        looking.send([1])  # it keeps a loss


@pytest.mark.parametrize(
    ("score", "level", "told"),
    [
        (b"1700000000000", "INFO", "it has all that this process saw until 2023"),
        (
            b"1700000009000",
            "INFO",
            "it has all that this process saw until 2023",
        ),  # the other one has compared by itself
        (b"1699999999000", "WARNING", "the store may have lost what was written after 2023"),
        (None, "WARNING", "the store may have lost what was written after 2023"),
    ],
)
def test_who_writes_no_heartbeat_looks_at_the_newest_one_of_others(
    score: bytes | None, level: str, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    lineage = Lineage("bridge", area="bridge", service="g")
    as_bridge(lineage, [TIME, info(), None, GROUPS, NEWEST], b"")
    as_bridge(lineage, [TIME, info(offset=144), b"1700000000000", GROUPS, NEWEST], b"another")
    as_bridge(lineage, [TIME, info(NEW, before=OLD, taken_over=11), score, GROUPS, NEWEST], b"another")
    (record,) = caplog.records
    assert record.levelname == level
    assert told in record.getMessage()
    assert "134 bytes" in record.getMessage()


@pytest.mark.parametrize("newest", [[], redis.ResponseError("NOPERM"), [b"another", b"nan"]])
def test_there_may_be_no_heartbeat_to_look_at(newest: Any, caplog: pytest.LogCaptureFixture) -> None:
    lineage = Lineage("bridge", area="bridge", service="g")
    as_bridge(lineage, [TIME, info(), None, GROUPS, newest], b"")
    as_bridge(lineage, [TIME, info(offset=144), None, GROUPS, newest], b"")
    as_bridge(lineage, [TIME, info(NEW, before=OLD, taken_over=11), None, GROUPS, newest], b"")
    assert "the store may have lost what was written" in caplog.text


def test_a_replica_is_not_compared() -> None:
    watching = Watching()
    lineage = Lineage("worker w", area="worker", service="g", observer=watching)
    look(lineage, [TIME, info(), None, GROUPS])
    look(lineage, [TIME, info(role="slave", offset=1), b"1", []], beat_ms=T)
    look(lineage, [TIME, info(), b"%d" % T, GROUPS], beat_ms=T)
    assert watching.lost == []


HUGE = 2**64 - 1


@pytest.mark.parametrize("score", [b"-1e300", b"-9e18", b"-1", b"0"])
def test_a_heartbeat_of_any_time_can_be_told(score: bytes) -> None:
    watching = Watching()
    lineage = Lineage("worker w", area="worker", service="g", observer=watching)
    look(lineage, [TIME, info(), None, GROUPS])
    look(lineage, [TIME, info(OTHER), score, GROUPS], beat_ms=T)
    assert len(watching.lost) == 1


@pytest.mark.parametrize("there", [f"{HUGE - 1}-0", f"{HUGE - 1}-{HUGE}"])
def test_a_stream_that_was_read_to_its_end_can_be_told(there: str) -> None:
    watching = Watching()
    lineage = Lineage("worker w", area="worker", service="g", observer=watching)
    look(lineage, [TIME, info(), None, [[b"name", b"g", b"last-delivered-id", f"{HUGE}-{HUGE}".encode()]]])
    look(lineage, [TIME, info(OTHER), None, [[b"name", b"g", b"last-delivered-id", there.encode()]]])
    assert len(watching.lost) == 1


@pytest.mark.parametrize(
    "answers",
    [
        [TIME, redis.ResponseError("NOPERM"), b"1", GROUPS],
        [TIME, b"garbled", redis.ResponseError("WRONGTYPE"), redis.ResponseError("ERR no such key")],
        [TIME, info(offset=0), b"nan", [[b"name", b"another", b"last-delivered-id", b"1-1"]]],
        [TIME, info().replace(b"offset:10", b"offset:x"), b"inf", GROUPS],
    ],
)
def test_whatever_the_server_answers_the_process_goes_on(answers: list[Any]) -> None:
    lineage = Lineage("worker w", area="worker", service="g")
    for _ in range(2):
        assert look(lineage, answers, beat_ms=None) == []


# --- partitions of a cluster


class Node:
    """A node of a cluster as its answers have it."""

    def __init__(self, name: str) -> None:
        self.name = self.history = name
        self.before = "0" * 40
        self.offset, self.taken_over = 10, 11
        self.is_away = False


class Cluster:
    """Answers the commands of one process that looks, from what each partition holds."""

    def __init__(self, partitions: int, nodes: list[Node]) -> None:
        self.keys = StoreKeys("saga", [str(number) for number in range(partitions)], "0")
        self.node_of = [nodes[number % len(nodes)] for number in range(partitions)]
        self.seen: list[dict[bytes, int]] = [{} for _ in range(partitions)]
        self.now_ms = T
        self.kept: dict[str, bytes] = {}
        self.asked: list[int] = []  # which partitions the last look has asked
        self.lineage = Lineage("w", area="worker", missing=self._missing)
        self.groups: list[Any] = []
        self.gone: dict[int, list[str]] = {}
        self.looked_for: list[int] = []  # in which partitions all is looked for, since they have another history

    def losses(self) -> list[Loss]:
        return [msgspec.json.decode(kept, type=Loss) for kept in self.kept.values()]

    def _missing(self, _: int, number: int | None, is_another: bool) -> Any:
        assert number is not None
        self.looked_for += [number] if is_another else []
        yield [("GET", self.keys.partitions[number].timers)]
        return self.gone.get(number, [])

    def look(self, member: bytes = b"w") -> list[int]:
        """Have it look. Returns the numbers of the partitions that go on from another moment."""
        self.now_ms += 1000
        self.asked, before = [], self.lineage.changes
        self.begins_to_look(member)()
        return [one.number for one in self.lineage.changed_since(before, self.keys)]

    def begins_to_look(self, member: bytes = b"w") -> Callable[[], None]:
        """Have it look. It gets the first answers when it calls what this returns; they are of now."""
        looking = self.lineage.look(self.keys, member, None)
        answers = [self._answer(words) for words in next(looking)]

        def goes_on() -> None:
            nonlocal answers
            with contextlib.suppress(StopIteration):
                while True:
                    answers = [self._answer(words) for words in looking.send(answers)]

        return goes_on

    def _answer(self, words: Any) -> Any:
        partition = next((self.keys.partition_of(word) for word in words if str(word).startswith("saga:")), None)
        assert partition is not None
        node, seen = self.node_of[partition.number], self.seen[partition.number]
        if node.is_away:
            return NodeAway("it is away", was_sent=True)
        match words:
            case ("EVALSHA_RO", _, 2, _, _, name):
                self.asked.append(partition.number)
                told = info(node.history, node.offset, node.before, node.taken_over)
                newest = max(seen.items(), key=lambda one: one[1], default=())
                score = seen.get(name)
                return [
                    TIME,
                    told,
                    node.name.encode(),
                    score and b"%d" % score,
                    self.groups,
                    [b"%b" % one for one in _words(newest)],
                ]
            case ("EVALSHA", _, 1, _, name, _, history):
                if history != node.history:
                    return None
                seen[name] = self.now_ms
                return self.now_ms
            case ("EVAL", _, 1, _, "HSETNX", _, field, value):
                self.kept.setdefault(field, value)
                return 1
            case _:
                return None


def _words(newest: Any) -> list[bytes]:
    return [word if isinstance(word, bytes) else b"%d" % word for word in newest]


def test_the_partitions_of_a_node_alone_are_those_that_have_lost_something() -> None:
    one, two = Node("one"), Node("two")
    cluster = Cluster(4, [one, two])
    assert [cluster.look() for _ in range(3)] == [[], [], []]
    assert cluster.asked == [0, 1, 2, 3]
    two.is_away = True
    assert cluster.look() == []
    two.is_away = False
    cluster.seen[1][b"w"] = cluster.seen[3][b"w"] = T + 1
    two.name, two.history, two.before = "replica", "new", "two"
    assert cluster.look() == [1, 3]
    (kept,) = cluster.kept.values()
    assert b'"partitions":[1,3]' in kept
    assert b'"found_by":"w"' in kept
    assert cluster.looked_for == [1, 3]
    assert cluster.lineage.taken() == {1: T + 1, 3: T + 1}
    assert cluster.lineage.taken() == {}
    assert [cluster.look() for _ in range(2)] == [[], []]


def test_what_is_missing_is_looked_for_in_the_partition_where_it_was_written() -> None:
    cluster = Cluster(2, [Node("one"), Node("two")])
    cluster.gone = {0: ["it was deleted"], 1: []}
    cluster.look()
    cluster.look()
    for node in cluster.node_of:
        node.before, node.history = node.history, f"{node.name} anew"
    cluster.gone = {0: ["it was deleted"], 1: ["saga s-1 is gone"]}
    assert cluster.look() == [0, 1]
    (loss,) = cluster.losses()
    assert (loss.partitions, loss.evidence) == ((1,), "partition 1: saga s-1 is gone")
    # The other may have lost what was not answered.
    assert cluster.lineage.taken().keys() == {0, 1}


def test_a_partition_that_moves_to_another_node_is_as_it_was() -> None:
    one, two = Node("one"), Node("two")
    cluster = Cluster(4, [one, two])
    cluster.look()
    cluster.look()
    cluster.node_of[1] = one
    assert [cluster.look(), cluster.look()] == [[], []]
    cluster.node_of[2] = Node("another")
    assert [cluster.look(), cluster.look()] == [[], []]


def test_a_look_that_another_one_has_overtaken_says_nothing() -> None:
    """As that of a thread that waits for another node, which hangs. This node gets the first heartbeat meanwhile, and
    the first entry is read."""
    one = Node("one")
    cluster = Cluster(1, [one])
    cluster.look()
    goes_on = cluster.begins_to_look()
    cluster.groups = [[b"name", b"orchestrator", b"last-delivered-id", b"5-1"]]
    assert [cluster.look() for _ in range(2)] == [[], []]
    goes_on()
    assert cluster.losses() == []
    goes_on = cluster.begins_to_look()
    one.before, one.history, one.taken_over = "one", "new", 11
    assert cluster.look() == [0]
    goes_on()
    assert cluster.look() == []
    assert (cluster.losses(), cluster.looked_for) == ([], [0])
    goes_on = cluster.begins_to_look()
    one.history, one.before = "another", ""
    goes_on()  # nothing has overtaken it
    assert cluster.look() == [0]


def test_of_many_partitions_each_look_is_at_each_node_and_at_others_in_turn() -> None:
    one, two = Node("one"), Node("two")
    cluster = Cluster(64, [one, two])
    asked = set()
    for _ in range(8):
        assert cluster.look() == []
        assert len(cluster.asked) == 16
        asked |= set(cluster.asked)
    assert asked == set(range(64))
    two.before, two.history = two.history, "two anew"
    assert cluster.look() == list(range(1, 64, 2))  # one of them has changed, so all were looked at


def test_a_process_without_heartbeats_looks_at_those_of_others_in_each_partition() -> None:
    one = Node("one")
    cluster = Cluster(1, [one])
    cluster.seen[0] = {b"another": T}
    cluster.look(b"")
    cluster.look(b"")
    one.before, one.history, one.taken_over, one.offset = "one", "new", 9, 20
    cluster.seen[0] = {b"another": T - 5000, b"newer": T + 90_000}
    assert cluster.look(b"") == [0]
    (loss,) = cluster.losses()
    assert not loss.certain
    assert cluster.seen[0].keys() == {b"another", b"newer"}
