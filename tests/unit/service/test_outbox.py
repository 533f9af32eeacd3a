"""What is ready to be sent, without a broker: how it is packed, what is remembered of it, where it cannot be sent."""

import logging
from collections.abc import Sequence
from typing import Any, Final

import pytest
import redis

from sagastream.broker.entries import Entry
from sagastream.core.commands import reply_to
from sagastream.core.service_actions import Answer
from sagastream.service import damaged
from sagastream.service.damaged import DamagedStreams
from sagastream.service.delivery import Delivery
from sagastream.service.last_sent import LastSent
from sagastream.service.packing import Quarantined, Ready, packed
from sagastream.store.keys import DONE_KEPT_S, Partition, StoreKeys
from sagastream.telemetry import Log
from support.values import a_charge

KEYS: Final = StoreKeys("saga", ["0", "1a"], "0")
FIRST, SECOND = KEYS.partitions
STREAMS: Final = {one.commands("payment"): one for one in KEYS.partitions}
NOW_S: Final = 1_700_000_000.0


def an_entry(partition: Partition, number: int) -> Entry:
    return Entry(stream=partition.commands("payment"), id=b"%d-0" % number, fields={b"body": b"{}"})


def an_answer(partition: Partition, number: int, kind: Any = "ok") -> tuple[Delivery, Answer]:
    command = a_charge()
    delivery = Delivery.of(an_entry(partition, number), command, partition)
    return delivery, Answer(reply_to(command, "Charge_ok"), kind)


def groups(args: Sequence[Any]) -> list[list[Any]]:
    """The arguments of each that is sent, after those of the whole call."""
    found, rest = [], list(args[3:])
    while rest:
        length = 9 + rest[8]
        found.append(rest[:length])
        rest = rest[length:]
    return found


def test_each_is_packed_with_the_streams_of_its_partition_and_its_record() -> None:
    ready: list[Ready] = [an_answer(SECOND, 1), Quarantined(an_entry(FIRST, 2), "why"), an_answer(SECOND, 3)]
    keys, args = packed(ready, STREAMS, "payment", holder="me", process="my name")
    assert args[:3] == ["payment", DONE_KEPT_S, "me"]
    one, aside, other = groups(args)
    assert [group[0] for group in (one, aside, other)] == [b"1-0", b"2-0", b"3-0"]
    sent_to = [keys[group[1] - 1] for group in (one, aside, other)]
    assert sent_to == [SECOND.replies("payment"), FIRST.quarantine_of("payment"), SECOND.replies("payment")]
    for commands, replies, quarantine in (keys[:3], keys[3:6]):
        partition = STREAMS[commands]
        assert (replies, quarantine) == (partition.replies("payment"), partition.quarantine_of("payment"))
    delivery = ready[0][0] if isinstance(ready[0], tuple) else None
    assert delivery is not None
    assert keys[one[2] - 1] == keys[other[2] - 1] == delivery.done
    assert one[3:5] == [delivery.record, delivery.tombstone]
    assert (aside[2], aside[6]) == (0, "final")
    assert aside[aside.index("reason") + 1] == "why"


def test_what_is_missing_of_the_answers_that_were_sent_last_is_named() -> None:
    last = LastSent()
    recorded, tried_again = an_answer(FIRST, 1), an_answer(SECOND, 2, "unknown")
    last.note([recorded, tried_again, Quarantined(an_entry(FIRST, 3), "why")], STREAMS, NOW_S)
    looking = last.missing(round(NOW_S * 1000), None, is_another=True)
    delivery, _ = recorded
    assert next(looking) == [("HEXISTS", delivery.done, delivery.record)]
    with pytest.raises(StopIteration) as ended:
        looking.send([0])
    assert ended.value.value == [f"the record {delivery.record} is gone"]


def test_a_record_that_may_have_expired_is_not_missed() -> None:
    last = LastSent()
    last.note([an_answer(FIRST, 1)], STREAMS, NOW_S)
    with pytest.raises(StopIteration) as ended:
        next(last.missing(round((NOW_S + DONE_KEPT_S) * 1000), None, is_another=True))
    assert ended.value.value == []


def test_damage_is_told_once_and_once_that_it_is_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(damaged, "_AGAIN_S", 60.0)
    streams, (stream, _) = DamagedStreams(Log("service", "service payment")), STREAMS
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            streams.found([stream], STREAMS, redis.ResponseError("WRONGTYPE saga:{0}:x is a list"))
        assert streams.left_alone() == {stream}
        streams.went([an_answer(SECOND, 1)], STREAMS)
        assert streams.left_alone() == {stream}
        streams.went([an_answer(FIRST, 2)], STREAMS)
    assert streams.left_alone() == set()
    told, over = [record.getMessage() for record in caplog.records]
    assert told.startswith("answers of partition 0 cannot be sent: saga:{0}:x is a list: something else has written")
    assert over == "answers of partition 0 can be sent again"
