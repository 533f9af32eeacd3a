"""Which streams a worker reads, how many entries of each, and what an entry says in its place."""

from typing import Any

import pytest

from sagastream.broker.entries import BATCH, Entry
from sagastream.core.commands import Reply
from sagastream.core.messages import Begin, Due, Intervene, Unreadable
from sagastream.core.strict_json import encode
from sagastream.orchestrator.room import Room
from sagastream.orchestrator.streams import _A_FEW, _A_FEW_EVERY, _MANY_REPLIES, _QUIET, _REQUESTS, Streams
from sagastream.store.keys import StoreKeys
from support.stores import KEYS, ONLY, in_each

SEVERAL = StoreKeys("saga", ["0", "1a", "2b"])
BEGIN = {"type": "saga_begin", "saga_id": "s", "steps": [{"transaction": "A", "service": "till"}]}
CANCEL = {"type": "saga_cancel", "saga_id": "s", "reason": "why"}
REPLY = {"type": "A_ok", "saga_id": "s", "step": 1}


def an_entry(stream: str, body: Any = None, number: int = 1) -> Entry:
    return Entry(stream=stream, id=b"%d-0" % number, fields={b"body": encode(body)})


def replies(count: int, service: str = "till") -> list[Entry]:
    return [an_entry(ONLY.replies(service), REPLY, number) for number in range(count)]


def test_replies_come_first_and_begins_before_operators_requests() -> None:
    assert Streams(KEYS, ["till", "hotel"], Room("worker")).names == [
        ONLY.replies("hotel"),
        ONLY.replies("till"),
        ONLY.requests,
        ONLY.interventions,
    ]
    names = Streams(SEVERAL, ["till"], Room("worker")).names
    assert names == [
        *(one.replies("till") for one in SEVERAL.partitions),
        *(one.requests for one in SEVERAL.partitions),
        *(one.interventions for one in SEVERAL.partitions),
    ]


def test_after_many_replies_no_begins_are_read_but_a_few_now_and_then_and_operators_always() -> None:
    streams = Streams(KEYS, ["till"], Room("worker"))
    usual = {ONLY.replies("till"): BATCH, ONLY.requests: _REQUESTS, ONLY.interventions: BATCH}
    assert streams.wanted(streams.names) == usual
    wanted = []
    for _ in range(2 * _A_FEW_EVERY):
        streams.read(replies(_MANY_REPLIES), {}, has_more=False)
        wanted.append(streams.wanted(streams.names).get(ONLY.requests, 0))
        # One count for all that is read then: it is one call.
        assert streams.wanted(streams.names)[ONLY.interventions] == BATCH
    assert wanted == 2 * ([0] * (_A_FEW_EVERY - 1) + [_A_FEW])
    streams.read(replies(_MANY_REPLIES - 1), {}, has_more=False)
    assert streams.wanted(streams.names) == usual


def test_the_replies_of_all_services_count_together() -> None:
    streams = Streams(KEYS, ["till", "hotel"], Room("worker"))
    streams.read([*replies(_MANY_REPLIES // 2), *replies(_MANY_REPLIES // 2, "hotel")], {}, has_more=False)
    assert ONLY.requests not in streams.wanted(streams.names)


def test_what_was_read_before_counts_when_a_service_is_new() -> None:
    streams = Streams(KEYS, ["till"], Room("worker"))
    streams.read(replies(BATCH), {}, has_more=False)
    more = streams.with_services(["till", "hotel"])
    assert more.has_more
    assert ONLY.requests not in more.wanted(more.names)
    assert ONLY.replies("hotel") in more.wanted(more.names)


def test_a_full_read_of_one_stream_may_have_left_replies() -> None:
    streams = Streams(KEYS, ["till", "hotel"], Room("worker"))
    for entries, has_more in (
        ([*replies(BATCH - 1), *replies(BATCH - 1, "hotel"), an_entry(ONLY.requests, BEGIN)], False),
        (replies(BATCH), True),
        ([], False),
    ):
        streams.read(entries, {}, has_more=False)
        assert streams.has_more == has_more


@pytest.mark.parametrize(("services", "each"), [(1, BATCH), (8, BATCH), (16, BATCH // 2), (1024, 8)])
def test_a_turn_reads_fewer_replies_of_each_service_if_there_are_many(services: int, each: int) -> None:
    streams = Streams(KEYS, [f"s{number}" for number in range(services)], Room("worker"))
    assert streams.wanted(streams.names)[ONLY.replies("s0")] == each


def test_only_streams_that_the_reader_reads_are_wanted_and_always_at_least_one() -> None:
    streams = Streams(KEYS, ["till"], Room("worker"))
    assert streams.wanted([ONLY.requests]) == {ONLY.requests: _REQUESTS}
    streams.read(replies(_MANY_REPLIES), {}, has_more=False)
    assert streams.wanted([ONLY.requests]) == {ONLY.requests: 1}
    assert streams.wanted(streams.names) == {ONLY.replies("till"): BATCH, ONLY.interventions: BATCH}


# --- what an entry says


def opened(stream: str, body: Any) -> Any:
    return Streams(KEYS, ["till"], Room("worker")).opened(an_entry(stream, body))[1]


def test_an_entry_says_what_its_stream_is_for() -> None:
    assert isinstance(opened(ONLY.requests, BEGIN), Begin)
    assert isinstance(opened(ONLY.interventions, CANCEL), Intervene)
    reply = opened(ONLY.replies("till"), REPLY | {"service": "hotel"})
    assert isinstance(reply, Reply)
    assert reply.service == "till"  # whatever it says


@pytest.mark.parametrize(
    ("stream", "body", "said"),
    [
        (ONLY.requests, CANCEL, f"a request about a saga that is there belongs into {ONLY.interventions}"),
        (ONLY.interventions, BEGIN, f"a saga_begin belongs into {ONLY.requests}"),
    ],
)
def test_a_request_on_the_wrong_stream_says_nothing_that_counts(stream: str, body: Any, said: str) -> None:
    entry = an_entry(stream, body)
    entry.fields[b"request_id"] = b"me"
    event = Streams(KEYS, ["till"], Room("worker")).opened(entry)[1]
    assert isinstance(event, Unreadable)
    assert (event.text, event.request_id, event.saga_id) == (said, None, None)


def test_what_is_in_the_partition_of_another_saga_says_nothing_that_counts() -> None:
    streams = Streams(SEVERAL, ["till"], Room("worker"))
    ids = in_each(SEVERAL)
    for number, saga_id in enumerate(ids):
        for partition in SEVERAL.partitions:
            for stream, body in (
                (partition.requests, BEGIN),
                (partition.interventions, CANCEL),
                (partition.replies("till"), REPLY),
            ):
                entry, event = streams.opened(an_entry(stream, body | {"saga_id": saga_id}))
                assert streams.partition_of((entry, event)) is partition
                if partition.number == number:
                    assert not isinstance(event, Unreadable)
                else:
                    assert isinstance(event, Unreadable)
                    assert event.text == f"saga {saga_id} is in partition {number}, not in {partition.number}"


def test_a_saga_that_is_due_is_in_its_own_partition() -> None:
    streams = Streams(SEVERAL, [], Room("worker"))
    found = [streams.partition_of((None, Due(saga_id=saga_id))).number for saga_id in in_each(SEVERAL)]
    assert found == [0, 1, 2]


@pytest.mark.parametrize(("count", "left", "has_more"), [(4, False, True), (3, False, False), (3, True, True)])
def test_a_stream_that_gave_all_that_was_asked_for_may_have_more(count: int, left: bool, has_more: bool) -> None:
    streams = Streams(KEYS, ["till"], Room("worker"))
    streams.read(replies(count), {ONLY.replies("till"): 4}, has_more=left)
    assert streams.has_more == has_more


@pytest.mark.parametrize("services", [1, 40])
def test_the_streams_are_quiet_if_one_entry_came_at_a_time_lately(services: int) -> None:
    names = [f"s{number}" for number in range(services)]
    streams = Streams(KEYS, names, Room("worker"))
    for _ in range(_QUIET):
        assert not streams.are_quiet
        streams.read(replies(1, "s0"), {}, has_more=False)
    streams.read([], {}, has_more=False)
    assert streams.are_quiet
    # One count for all: it is one call.
    assert streams.wanted(streams.names) == dict.fromkeys(streams.names, {1: _REQUESTS, 40: 1024 // 40}[services])
    assert streams.with_services([*names, "hotel"]).are_quiet
    streams.read(replies(2, "s0"), {}, has_more=False)
    assert not streams.are_quiet
