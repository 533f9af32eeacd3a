"""Finding sagas, on real servers: all that match and no others, a page at a time, newest first."""

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from sagastream import AsyncSagaClient, SagaClient
from sagastream.core.begin_parsing import parse_begin
from sagastream.core.decision import decide
from sagastream.core.filtering import Filter, matches, parse_filter
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.core.transitions import Moment
from sagastream.orchestrator.change import Change, filled
from sagastream.orchestrator.commit import Store
from sagastream.store import finding, sagas
from sagastream_bridge.inspection import list_views, lookup
from support.processes import Commands
from support.scenes import Scene, do
from support.servers import Server
from support.stores import KEYS, ONLY, divided

#: When the first saga of `stored` began; the next ones later, every second one at the same time as the one before.
T_MS = 1_700_000_000_000

_STATUSES = (SagaStatus.PENDING, SagaStatus.COMPLETED, SagaStatus.COMPLETED, SagaStatus.ABORTED)


def stored(client: Any, keys: Any, count: int) -> list[SagaState]:
    """So many sagas in every state, as workers would have written them; in the order of their begins."""
    states = []
    changes: dict[Any, list[Change]] = {}
    for number in range(count):
        now_ms = T_MS + number // 2
        body: dict[str, Any] = {"saga_id": f"s{number:05}", "steps": [do(number), do(0, name="Pay", service="till")]}
        body["attributes"] = {"customer": f"c{number % 7}", "number": number % 3}
        begun = decide(None, parse_begin(body), Moment(now_ms=now_ms, published={})).state
        assert isinstance(begun, SagaState)
        status = _STATUSES[number % 4] if number % 5 else SagaStatus.PENDING
        state = replace(begun, status=status, reason="sold out" if number % 4 == 3 else None)
        states.append(state)
        partition = keys.of(state.saga_id)
        change = Change(partition=partition, saga_id=state.saga_id, before=None, after=state)
        changes.setdefault(partition, []).append(change)
    for partition, those in changes.items():
        for at in range(0, len(those), 100):
            some = those[at : at + 100]
            assert Store(client).commit(some, T_MS) == ([], [])
            written = [one.written for one in some]
            fill = [filled(partition, state) for state in written if isinstance(state, SagaState)]
            assert Store(client).commit(fill, T_MS) == ([], [])  # with the times of their begins
    read, _ = sagas.read(client, keys, [state.saga_id for state in states])
    return [state for state in read.values() if isinstance(state, SagaState)]


FILTERS: list[dict[str, Any]] = [
    {},
    {"status": "PENDING"},
    {"status": "COMPLETED"},
    {"status": "ABORTED"},
    {"where": {"customer": "c3"}},
    {"where": {"customer": "c3", "number": 1}},
    {"where": {"customer": "c3"}, "status": "ABORTED"},
    {"where": {"customer": "nobody"}},
    {"error": "SOLD"},
    {"at": "work/Do"},
    {"at": "Pay"},
    {"status": "PARKED"},
]


@pytest.mark.parametrize("partitions", [1, 3])
def test_all_that_match_are_found_and_no_others_in_order(
    server: Server, partitions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finding, "_LOOKED_AT", 60)  # so that a page ends before it is full
    monkeypatch.setattr(finding, "_FEW_LIVE", 20)
    broker = server.broker()
    keys = divided(broker, partitions) if partitions > 1 else KEYS
    client = SagaClient(broker)
    states = sorted(stored(broker.client, keys, 400), key=lambda one: (one.begun_ms, one.saga_id), reverse=True)
    now_ms = T_MS + 10**9
    for body in FILTERS:
        wanted = parse_filter(body, "the search")
        expected = [state.saga_id for state in states if matches(state, wanted, now_ms)]
        found: list[str] = []
        cursor, pages, totals = None, 0, set()
        while pages == 0 or cursor is not None:
            options: Any = {name: value for name, value in body.items() if name != "where"}
            page = client.find(where=body.get("where"), limit=7, cursor=cursor, **options)
            assert len(page.sagas) <= 7
            least = page.total <= len(expected)
            told = (body, pages, page.total, page.total_is_exact, len(expected))
            assert page.total == len(expected) if page.total_is_exact else least, told
            found += [state.saga_id for state in page.sagas]
            totals.add((page.total, page.total_is_exact))
            cursor, pages = page.cursor, pages + 1
            assert pages < 200
        assert found == expected, body
        if wanted.is_by_index:
            assert totals == {(len(expected), True)}, body
    listed = [state.saga_id for state in client.list() if isinstance(state, SagaState)]
    assert listed == [state.saga_id for state in states]


def test_few_live_sagas_are_found_among_many_that_have_ended(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = server.broker()
    states = stored(broker.client, KEYS, 400)
    monkeypatch.setattr(finding, "_LOOKED_AT", 200)
    page = SagaClient(broker).find(status="PENDING", limit=1000)
    pending = [state.saga_id for state in states if state.status == "PENDING"]
    assert [state.saga_id for state in page.sagas] == pending[::-1]
    assert (page.total, page.total_is_exact, page.cursor) == (len(pending), True, None)


def test_a_list_goes_on_until_its_page_is_full_or_says_among_which_it_found_none(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = server.broker()
    states = stored(broker.client, KEYS, 400)
    monkeypatch.setattr(finding, "_LOOKED_AT", 60)
    for saga_id in ("s00003", "s00007", "s00399"):
        broker.client.hset(ONLY.saga(saga_id), "reason", "no money")
    wanted = Filter(error="no money")
    whole = lookup.listing(broker, wanted, 50, None)
    assert [state.saga_id for state in whole.page.sagas] == ["s00399", "s00007", "s00003"]
    assert (whole.page.cursor, whole.page.total, whole.page.total_is_exact) == (None, 3, True)
    assert whole.page.looked_at == len(states)
    first = lookup.listing(broker, wanted, 1, None)
    second = lookup.listing(broker, wanted, 1, first.page.cursor)
    assert [state.saga_id for state in (*first.page.sagas, *second.page.sagas)] == ["s00399", "s00007"]

    monkeypatch.setattr(lookup, "_GOES_ON_S", 0)
    none = lookup.listing(broker, Filter(error="nobody says that"), 50, None)
    told = list_views.counted(none, 50)
    assert told.startswith(f"none among the 60 that began last; --cursor {none.page.cursor} looks on; ")
    assert "; --status aborted, --status compensating or --status parked is faster; " in told
    again = lookup.listing(broker, none.wanted, 50, none.page.cursor)
    assert list_views.counted(again, 50).startswith("none among the next 60; --cursor ")
    of_one = lookup.listing(broker, Filter(error="nobody", where=(("number", "1"),), status="PENDING"), 50, None)
    told = list_views.counted(of_one, 50)
    assert told.startswith("none among the 60 with number=1 that began last; --cursor ")
    assert "faster" not in told


def test_ages_choose_a_part_of_an_index(server: Server) -> None:
    broker = server.broker()
    scene = Scene(broker)
    for number in range(3):
        scene.client.begin(f"s{number}", [do(1)], attributes={"customer": "c1"})
    scene.play("s2")
    broker.client.zadd(ONLY.begun, {"s0": 5})
    broker.client.zadd(ONLY.index("customer=c1"), {"s0": 5})
    broker.client.hset(ONLY.saga("s0"), "begun_at", "1970-01-01T00:00:00.005Z")
    client = SagaClient(broker)
    old, new = client.find(older=timedelta(days=1)), client.find(where={"customer": "c1"}, newer=timedelta(days=1))
    assert ([state.saga_id for state in old.sagas], old.total, old.total_is_exact) == (["s0"], 1, True)
    assert ([state.saga_id for state in new.sagas], new.total, new.total_is_exact) == (["s2", "s1"], 2, True)


def test_what_cannot_be_read_is_told_beside_the_others(server: Server) -> None:
    broker = server.broker()
    states = stored(broker.client, KEYS, 5)
    broker.client.hset(ONLY.saga("s00002"), "version", "x")
    broker.client.delete(ONLY.saga("s00001"))
    page = SagaClient(broker).find()
    assert [state.saga_id for state in page.sagas] == ["s00004", "s00003", "s00000"]
    assert ["s00002" in str(error) for error in page.unreadable] == [True]
    assert len(states) == 5


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "x",
        "1.5.0.0e.a",
        *(f"1.{Filter().mark}.{rest}" for rest in ("5.0.0e.", "5.0.0e.a b", "-5.0.0e.a", "5.0.0e.a\n")),
    ],
)
def test_a_cursor_that_no_page_has_had_is_refused(cursor: str) -> None:
    with pytest.raises(ValueError, match="no cursor that a page has had"):
        finding.check_page(50, cursor, Filter())


def test_a_cursor_is_of_one_search() -> None:
    wanted = parse_filter({"where": {"a": 1, "b": "2"}, "newer_ms": 5}, "the search")
    cursor = f"1.{wanted.mark}.5.0.0e.a"
    same = parse_filter({"newer_ms": 5, "where": {"b": 2, "a": "1"}}, "the search")
    assert finding.check_page(50, cursor, same) is not None
    for other in (Filter(), replace(wanted, newer_ms=6), replace(wanted, where=())):
        with pytest.raises(ValueError, match="this cursor is of another search"):
            finding.check_page(50, cursor, other)


@pytest.mark.parametrize("limit", [0, 1001, -1, True, 5.0])
def test_a_page_has_1_to_1000_sagas(limit: Any) -> None:
    with pytest.raises(ValueError, match="limit must be a whole number from 1 to 1000"):
        finding.check_page(limit, None, Filter())


def test_an_event_loop_finds_too(server: Server) -> None:
    broker = server.broker()
    stored(broker.client, KEYS, 20)

    async def found() -> list[str]:
        async with AsyncSagaClient(broker) as client:
            first = await client.find(where={"number": 1}, limit=3)
            second = await client.find(where={"number": 1}, limit=100, cursor=first.cursor)
            return [state.saga_id for state in (*first.sagas, *second.sagas)]

    assert asyncio.run(found()) == [f"s{number:05}" for number in range(19, -1, -3)]


def test_the_command_line_finds_page_by_page(server: Server, commands: Commands) -> None:
    broker = server.broker()
    stored(broker.client, KEYS, 30)
    broker.client.sadd(KEYS.services, "till")

    def listed(*options: str) -> tuple[list[str], dict[str, Any]]:
        run = commands.run("list", "--json", *options, REDIS_URL=server.url)
        *rows, last = map(json.loads, run.stdout.splitlines())
        return [row["saga_id"] for row in rows], last

    expected = [f"s{number:05}" for number in range(28, -1, -7)]
    first, last = listed("--where", "customer=c0", "--limit", "3")
    assert (first, last["total"], last["total_is_exact"]) == (expected[:3], 5, True)
    another = last["cursor"]
    second, last = listed("--where", "customer=c0", "--cursor", another)
    assert (second, last["cursor"]) == (expected[3:], None)
    assert listed("--status", "aborted", "--error", "SOLD OUT", "--older", "1h", "--newer", "9999d")[0]
    assert listed("--at", "work/Do", "--where", "number=1", "--where", "customer=c3")[0] == ["s00010"]
    told = commands.run("list", "--where", "customer=c0", "--limit", "3", REDIS_URL=server.url)
    assert [line.split()[3] for line in told.stdout.splitlines()] == expected[:3]
    assert {line.split()[4] for line in told.stdout.splitlines()} == {"customer=c0,"}
    assert "3 shown of 5 (--cursor 1." in told.stderr
    for wrong, text in (
        (["--at", "till"], "till is a service: --at till/COMMAND"),
        (["--parked", "till"], "till is a service: --parked till/COMMAND"),
        (["--cursor", "x"], "--cursor: this is no cursor"),
        (["--cursor", another], "--cursor: this cursor is of another search: give the same search with it"),
    ):
        refused = commands.run("list", *wrong, REDIS_URL=server.url)
        assert refused.returncode == 2
        assert text in refused.stderr
        assert "Traceback" not in refused.stderr
