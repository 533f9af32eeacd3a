"""Key names: one hash tag for each partition, no two names alike, and all of them in the catalogue."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sagastream.store import keys
from sagastream.store.keys import Partition, StoreKeys
from support.stores import KEYS, ONLY

IDS = st.from_regex(r"[A-Za-z0-9._:-]{1,128}", fullmatch=True)
SERVICES = st.from_regex(r"[A-Za-z0-9._-]{1,128}", fullmatch=True)
HOUR_MS = 3600 * 1000
OF_A_PARTITION = [
    ONLY.requests,
    ONLY.interventions,
    ONLY.timers,
    ONLY.ended,
    ONLY.begun,
    ONLY.indexed,
    ONLY.events,
    ONLY.quarantine,
    ONLY.confirm,
    ONLY.seen,
]


def hash_tag(key: str) -> str:
    """The part of a key that decides its place in a cluster: the text between the first { and the first } after it."""
    found = re.search(r"\{([^}]+)\}", key)
    assert found is not None
    return found[1]


@given(SERVICES, st.integers(0, 2**45))
def test_all_keys_of_a_partition_share_its_hash_tag_whatever_the_ids(name: str, begun_ms: int) -> None:
    made = [
        ONLY.saga(name),
        ONLY.commands(name),
        ONLY.replies(name),
        ONLY.quarantine_of(name),
        ONLY.done(name, begun_ms),
    ]
    assert {hash_tag(key) for key in [*OF_A_PARTITION, *made]} == {"0"}


def test_keys_are_as_the_design_names_them() -> None:
    assert ONLY.saga("saga42") == "saga:{0}:saga:saga42"
    assert ONLY.commands("payment") == "saga:{0}:commands:payment"
    assert ONLY.replies("payment") == "saga:{0}:replies:payment"
    assert ONLY.quarantine_of("payment") == "saga:{0}:quarantine:payment"
    assert ONLY.done("payment", 0) == "saga:{0}:done:payment:0"
    assert KEYS.published("payment") == "saga:services:payment"
    assert KEYS.definition("order") == "saga:definitions:order"
    assert (KEYS.alive, KEYS.running, KEYS.services) == ("saga:alive", "saga:running", "saga:services")
    assert KEYS.store == "saga:store"
    assert set(OF_A_PARTITION) == {
        f"saga:{{0}}:{name}"
        for name in [
            "requests",
            "interventions",
            "timers",
            "ended",
            "begun",
            "indexed",
            "events",
            "quarantine",
            "confirm",
            "seen",
        ]
    }


@given(SERVICES, SERVICES, st.integers(0, 2**45), st.integers(0, 2**45))
def test_keys_of_different_things_are_different(one: str, other: str, begun_ms: int, later_ms: int) -> None:
    made = [*OF_A_PARTITION, KEYS.alive, KEYS.running, KEYS.services, KEYS.store]
    for name in {one, other}:
        made += [
            ONLY.saga(name),
            ONLY.commands(name),
            ONLY.replies(name),
            ONLY.quarantine_of(name),
            KEYS.published(name),
        ]
        made += {ONLY.done(name, begun_ms), ONLY.done(name, later_ms)}
    assert len(set(made)) == len(made)


def test_what_was_done_for_a_saga_is_recorded_under_the_hour_it_began() -> None:
    assert ONLY.done("payment", 5 * HOUR_MS) == ONLY.done("payment", 6 * HOUR_MS - 1)
    assert ONLY.done("payment", 6 * HOUR_MS - 1) != ONLY.done("payment", 6 * HOUR_MS)


def test_the_catalogue_tells_of_every_key() -> None:
    catalogue = {line.split()[0] for line in (keys.__doc__ or "").splitlines() if line.startswith("    saga:")}
    made = [
        *OF_A_PARTITION,
        ONLY.full,
        KEYS.alive,
        KEYS.running,
        KEYS.store,
        KEYS.losses,
        KEYS.told,
        KEYS.paused,
        KEYS.operations,
        KEYS.bulks,
        KEYS.bulks_open,
        KEYS.bulk("<id>"),
        KEYS.bulk_results("<id>"),
        ONLY.saga("<saga_id>"),
        ONLY.index("<name>=<value>"),
        ONLY.commands("<service>"),
        ONLY.replies("<service>"),
        ONLY.quarantine_of("<service>"),
        KEYS.published("<service>"),
        KEYS.services,
        KEYS.definition("<name>"),
        KEYS.definitions,
        KEYS.samples,
    ]
    assert catalogue == {*made, "saga:{0}:done:<service>:<h>"}


SEVERAL = StoreKeys("shop", ["0", "1ab", "2c"])


def test_each_partition_has_its_tag_and_each_store_its_prefix() -> None:
    assert [one.requests for one in SEVERAL.partitions] == [
        "shop:{0}:requests",
        "shop:{1ab}:requests",
        "shop:{2c}:requests",
    ]
    assert [one.number for one in SEVERAL.partitions] == [0, 1, 2]
    assert (SEVERAL.alive, SEVERAL.published("till")) == ("shop:alive", "shop:services:till")


@given(IDS)
def test_a_saga_lives_in_the_partition_that_the_checksum_of_a_cluster_names(saga_id: str) -> None:
    assert SEVERAL.of(saga_id).number == crc16(saga_id.encode()) % 3
    assert KEYS.of(saga_id) is ONLY


def crc16(data: bytes) -> int:
    """As the specification of Redis Cluster describes it, bit by bit."""
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
    return crc


def test_the_checksum_is_that_of_the_specification() -> None:
    assert crc16(b"123456789") == 0x31C3


@given(SERVICES, st.sampled_from(SEVERAL.partitions))
def test_what_is_read_and_acknowledged_is_told_by_its_name(service: str, partition: Partition) -> None:
    assert SEVERAL.place_of(partition.requests) == (partition, "requests", "")
    assert SEVERAL.place_of(partition.interventions) == (partition, "interventions", "")
    assert SEVERAL.place_of(partition.replies(service)) == (partition, "replies", service)
    assert SEVERAL.place_of(partition.commands(service)) == (partition, "commands", service)


@pytest.mark.parametrize(
    "name",
    ["", "x", "saga:{0}:requests", "shop:{9}:requests", "shop:{0}:", "shop:{0}:events", "shop:{0}:timers",
     "shop:{0}:replies:", "shop:{0}:replies:a:b", "shop:{0}:replies", "shop:{0}:quarantine", "shop:{0}:quarantine:a",
     "shop:{0}:saga:s1", "shop:{0}:requests:x", "shop:services:a"],
)  # fmt: skip
def test_no_other_name_is(name: str) -> None:
    assert SEVERAL.place_of(name) is None


def test_which_partitions_one_call_may_touch() -> None:
    tags = ["0", "1", "2"]
    on_one_server, on_a_cluster = StoreKeys("saga", tags), StoreKeys("saga", tags, shared="0")
    first, _, last = on_one_server.partitions
    assert [list(those) for those in on_one_server.in_calls([first, last])] == [[first, last]]
    assert [list(those) for those in on_a_cluster.in_calls([first, last])] == [[first], [last]]
    assert on_one_server.in_calls([]) == on_a_cluster.in_calls([]) == []
