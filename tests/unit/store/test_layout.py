"""How a store is laid out: where its partitions are in a cluster, and what is no store of this release."""

from collections import Counter
from typing import Any

import pytest
import redis

from sagastream.errors import SettingsError, StoreMismatch
from sagastream.store.keys import StoreKeys, slot
from sagastream.store.layout import MAX_PARTITIONS, Layout, _fields, _keys

SLOTS = 16384


def tags(partitions: int) -> list[str]:
    return _fields(partitions)["tags"].split(" ")


@pytest.mark.parametrize("partitions", [1, 2, 3, 4, 6, 7, 16, 64])
def test_the_partitions_spread_evenly_over_the_slots(partitions: int) -> None:
    """The nodes of a cluster hold ranges of slots of the same size."""
    slots = [slot(tag) for tag in tags(partitions)]
    for number, found in enumerate(slots):
        place = (slots[0] + number * SLOTS // partitions) % SLOTS
        away = min(abs(found - place), SLOTS - abs(found - place))
        assert away <= SLOTS // partitions // 8, (number, tags(partitions)[number])
    for nodes in (2, 3, 4, 6):
        held = Counter(found * nodes // SLOTS for found in slots)
        assert max(held.values()) <= -(-partitions // nodes) + 1


def test_a_tag_is_the_number_of_its_partition_and_a_few_letters_at_most() -> None:
    found = tags(64)
    assert found[0] == "0"
    assert len(set(found)) == 64
    for number, tag in enumerate(found):
        rest = tag.removeprefix(str(number))
        assert len(rest) <= 3
        assert rest == "" or (rest.isalpha() and rest.islower())


class Store:
    """The hash of a store, and who writes it. Another process may be faster."""

    def __init__(self, fields: dict[str, str], faster: dict[str, str] | None = None) -> None:
        self.fields = fields
        self._faster = faster
        self.writes = 0
        self.used: set[str] = set()  # other keys of the store

    def run(self, exchange: Any) -> Any:
        try:
            commands = next(exchange)
            while True:
                commands = exchange.send([self._answer(words) for words in commands])
        except StopIteration as end:
            return end.value

    def _answer(self, words: Any) -> Any:
        if words[0] == "HGETALL":
            return [word.encode() for pair in self.fields.items() for word in pair]
        if words[:2] == ("XINFO", "GROUPS"):
            return [[b"name", b"orchestrator"]] if words[2] in self.used else redis.ResponseError("ERR no such key")
        if words[0] == "MULTI":
            self.fields |= self._faster or {}
        if words[0] == "HSETNX":
            self.writes += 1
            self.fields.setdefault(words[2], words[3])
        return b"OK"


def test_the_first_one_makes_the_store_and_the_others_find_it() -> None:
    store = Store({})
    first = store.run(Layout("saga", 3).opened())
    assert (len(first.partitions), store.fields) == (3, _fields(3))
    second = store.run(Layout("saga").opened())
    assert (second.tags, store.writes) == (first.tags, 3)


def test_if_two_make_it_at_once_one_of_them_has_made_it() -> None:
    store = Store({}, faster=_fields(2))
    assert len(store.run(Layout("saga").opened()).partitions) == 2
    with pytest.raises(StoreMismatch, match="has 2 partitions, not 3"):
        Store({}, faster=_fields(2)).run(Layout("saga", 3).opened())


def test_a_store_that_lacks_only_its_layout_is_not_made_again_without_its_number() -> None:
    key, store = "saga:{0}:requests", Store({})
    store.used = {key}
    for refused in (Layout("saga").opened(), Layout("saga").looked()):
        with pytest.raises(StoreMismatch) as raised:
            store.run(refused)
        assert str(raised.value) == (
            f"saga:store is gone, and {key} is there: somebody has deleted the number of partitions. Set it again "
            "as it was: sagastream init --partitions N"
        )
    keys = StoreKeys("saga", _fields(3)["tags"].split())
    store.used = {one.requests for one in keys.partitions}
    with pytest.raises(StoreMismatch, match="the number of partitions, which is not 2: there is no saga:"):
        store.run(Layout("saga", 2).opened())
    assert store.writes == 0
    assert len(store.run(Layout("saga", 3).opened()).partitions) == 3


def test_who_only_looks_writes_nothing() -> None:
    store = Store({})
    assert store.run(Layout("saga").looked()).tags == ("0",)
    assert (store.writes, store.fields) == (0, {})


def test_it_is_read_once() -> None:
    store = Store(_fields(2))
    layout = Layout("saga")
    keys = store.run(layout.opened())
    store.fields = {"protocol": "9"}
    assert store.run(layout.opened()) is keys
    assert store.run(layout.looked()) is keys


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"partitions": "1"}, "made by an earlier release"),
        ({"x": "y"}, "made by an earlier release"),
        ({"protocol": "1", "partitions": "1", "tags": "0"}, "has protocol '1', and this release knows 2"),
        ({"protocol": "3"}, "has protocol '3', and this release knows 2"),
        ({"protocol": "2"}, "is damaged"),
        ({"protocol": "2", "partitions": "1"}, "is damaged"),
        ({"protocol": "2", "partitions": "2", "tags": "0"}, "is damaged"),
        ({"protocol": "2", "partitions": "2", "tags": "0  1"}, "is damaged"),
        ({"protocol": "2", "partitions": "1", "tags": ""}, "is damaged"),
        ({"protocol": "2", "partitions": "2", "tags": "a a"}, "is damaged"),
        ({"protocol": "2", "partitions": "1", "tags": "}x{"}, "is damaged"),
        ({"protocol": "2", "partitions": "1", "tags": "x" * 21}, "is damaged"),
    ],
)
def test_what_is_no_store_of_this_release_is_refused_in_one_sentence(fields: dict[str, str], said: str) -> None:
    with pytest.raises(StoreMismatch, match=f"^saga:store .*{said}") as caught:
        _keys("saga", fields, None)
    assert "\n" not in str(caught.value)


def test_a_key_that_is_no_hash_is_told_of() -> None:
    read = Layout("saga").opened()
    next(read)
    with pytest.raises(StoreMismatch, match="saga:store is not a hash: something else has written there"):
        read.send([redis.ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value")])


def test_what_may_not_make_a_store_says_who_must() -> None:
    made = Layout("saga").opened()
    next(made)
    looking = made.send([[]])  # whether other keys of a store are there
    assert made.send([redis.ResponseError("ERR no such key") for _ in looking]) == [("HELLO",)]
    assert len(made.send([redis.ResponseError("NOPERM")])) == 5
    with pytest.raises(StoreMismatch, match="there is no store saga yet, and this user may not make it"):
        made.send([b"OK", *[redis.exceptions.NoPermissionError("NOPERM")] * 3, redis.ResponseError("EXECABORT")])


@pytest.mark.parametrize(("mode", "alive"), [(b"standalone", "saga:alive"), (b"cluster", "saga:{0}:alive")])
def test_on_a_cluster_the_keys_of_the_whole_store_have_a_tag(mode: bytes, alive: str) -> None:
    looked = Layout("saga", 2).looked()
    next(looked)
    looking = looked.send([[]])
    looked.send([redis.ResponseError("ERR no such key") for _ in looking])
    with pytest.raises(StopIteration) as ended:
        looked.send([[b"server", b"valkey", b"mode", mode]])
    keys = ended.value.value
    assert (keys.alive, keys.store) == (alive, "saga:store")
    assert keys.apart is (mode == b"cluster")


def test_a_shared_tag_that_is_none_of_the_store_is_refused() -> None:
    fields = {"protocol": "2", "partitions": "1", "tags": "0", "shared": "x"}
    with pytest.raises(StoreMismatch, match="is damaged: it says that the keys of the whole store have the tag 'x'"):
        _keys("saga", fields, None)


@pytest.mark.parametrize("wrong", ["0", "-1", "257", "1000", "x", "1.0", " 1", "\u0663"])
def test_the_number_of_partitions_is_checked(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGASTREAM_PARTITIONS", wrong)
    with pytest.raises(SettingsError, match="SAGASTREAM_PARTITIONS must be a whole number from 1 to 256, not"):
        Layout("saga")


def test_the_environment_says_how_many_there_are_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAGASTREAM_PARTITIONS", "3")
    assert len(Store({}).run(Layout("saga").opened()).partitions) == 3
    with pytest.raises(StoreMismatch, match=r"has 2 partitions, not 3, as SAGASTREAM_PARTITIONS or --partitions says"):
        Store(_fields(2)).run(Layout("saga").opened())


def test_most_partitions_have_tags_of_their_own() -> None:
    names = {one.base for one in StoreKeys("saga", [f"{n}x" for n in range(MAX_PARTITIONS)]).partitions}
    assert len(names) == MAX_PARTITIONS
