"""The lines of redis-cli that show a saga."""

import shlex

import pytest

from sagastream.broker import urls
from sagastream.core.phases import Phase
from sagastream.core.saga import SagaStatus
from sagastream.errors import CorruptSaga
from sagastream.store.keys import StoreKeys
from sagastream_bridge.inspection.by_hand import looks
from support.shown import NOW_MS, a_saga, a_step

KEYS = StoreKeys("saga", ["0"])


def test_a_live_saga_is_shown_with_its_commands_and_what_services_remember() -> None:
    saga = a_saga(a_step(phase=Phase.OUT))
    lines = [look.line("redis-cli") for look in looks(KEYS, saga.saga_id, saga)]
    assert lines == [
        "redis-cli HGETALL 'saga:{0}:saga:saga42'",
        "redis-cli ZSCORE 'saga:{0}:timers' saga42",
        "redis-cli HGET 'saga:{0}:indexed' saga42",
        f"redis-cli HSCAN 'saga:{{0}}:done:payment:{saga.begun_ms // 3_600_000}' 0 MATCH 'saga42/*' COUNT 100000",
        "redis-cli XRANGE 'saga:{0}:commands:payment' - + COUNT 10",
    ]
    assert shlex.split(lines[0])[2] == KEYS.saga("saga42")


def test_of_one_that_has_ended_there_are_no_commands() -> None:
    saga = a_saga(a_step(phase=Phase.COMPLETED), status=SagaStatus.COMPLETED, updated_ms=NOW_MS)
    names = [look.words[:2] for look in looks(KEYS, saga.saga_id, saga)]
    assert ("ZSCORE", KEYS.partitions[0].ended) in names
    assert not any(name == "XRANGE" for name, _ in names)


def test_of_one_that_is_not_there_only_its_request_may_be() -> None:
    ((name, key, *_),) = [look.words for look in looks(KEYS, "s1", None)]
    assert (name, key) == ("XREVRANGE", KEYS.partitions[0].requests)


def test_one_that_cannot_be_read_is_shown_as_it_stands() -> None:
    names = [look.words[0] for look in looks(KEYS, "s1", CorruptSaga("s1", "odd"))]
    assert names == ["HGETALL", "ZSCORE", "HGET"]


@pytest.mark.parametrize(
    ("node", "line"),
    [
        (urls.Address("n", 2), "redis-cli -c -u rediss://n:2"),
        (urls.Address("::1", 2), "redis-cli -c -u 'rediss://[::1]:2'"),
        (None, "redis-cli -u rediss://h:1"),
    ],
)
def test_on_a_cluster_redis_cli_begins_at_a_node_and_follows_keys(node: urls.Address | None, line: str) -> None:
    assert urls.redis_cli("rediss://u:p@h:1,i:1", node) == line
