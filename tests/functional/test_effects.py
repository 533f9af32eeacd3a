"""Effects on real databases, with real processes: each effect is there once, or was reversed once, wherever processes
die."""

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import psycopg
import pytest
from psycopg.rows import dict_row
from sqlalchemy import NullPool, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from sagastream import Context, Effects, Reject, Service
from sagastream.client.blocking import SagaClient
from sagastream.core.saga import SagaState, SagaStatus
from sagastream.errors import ServiceError
from sagastream.service.runner import ServiceRunner
from support import books
from support.books import POINTS, Book, is_on_postgres, run, source, write
from support.postgres import Postgres
from support.processes import Commands
from support.scenes import Scene, do
from support.servers import Server
from support.waiting import until

#: Each kind of database, with and without SQLAlchemy.
FOUR_WAYS: Final = ("sqlite3", "psycopg", "engine on postgresql", "session on sqlite")


@pytest.fixture
def book(request: pytest.FixtureRequest, way: str, tmp_path: Path) -> Book:
    """An empty book, and the table of the effects."""
    if is_on_postgres(way):
        postgres: Postgres = request.getfixturevalue("postgres")
        book = Book(postgres.new_database())
    else:
        book = Book(str(tmp_path / "books.db"))
    book.create()
    Effects(source(way, book.where)).create_table()
    return book


def command(number: int = 1, **options: Any) -> Context:
    key = f"s{number}/1/transaction"
    return Context(saga_id=f"s{number}", step=1, key=key, transaction_key=key, attempt=1, **options)


def compensation(number: int = 1) -> Context:
    key = f"s{number}/1/"
    return Context(
        saga_id=f"s{number}", step=1, key=f"{key}compensation", transaction_key=f"{key}transaction", attempt=1
    )


@pytest.mark.parametrize("way", books.WAYS)
def test_every_way_to_keep_books_tells_which_effects_stand(book: Book, way: str) -> None:
    effects = Effects(source(way, book.where))
    for number in range(1, 6):
        effects.once(lambda _, context, db: write(db, context.key, "done"))(None, command(number))
    effects.undo(lambda _, context, db: write(db, context.key, "undone"))(None, compensation(2))
    wanted = {f"s{number}/1/transaction": "undone" if number == 2 else "done" for number in range(1, 6)}
    for asked in ({"keys": [*wanted, "s9/1/transaction"]}, {"since_ms": round(time.time() * 1000) - 60_000}):
        answer = effects.standing(asked, command(9))
        assert {effect["key"]: effect["state"] for effect in answer["effects"]} == wanted
    assert effects.standing({"since_ms": round(time.time() * 1000) + 60_000}, command(9))["effects"] == []


# --- real sagas, real processes


class Shop:
    """Workers and services on real books. Services that die are started again."""

    def __init__(self, server: Server, commands: Commands, way: str, book: Book, marks: Path) -> None:
        self.client = SagaClient(server.broker())
        self.marks = marks
        self._commands = commands
        self._env = {
            "REDIS_URL": server.url,
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "BOOKS": f"{way}|{book.where}",
            "BOOKS_MARKS": str(marks),
        }
        commands.quiet("worker", env=self._env)
        self.services = [self._service(), self._service()]
        self.deaths = 0

    def _service(self) -> Any:
        return self._commands.quiet("service", "support.books:service", env=self._env)

    def begin(self, saga_id: str, *params: Any, **options: Any) -> None:
        few = {"attempts": 3, "compensation_attempts": 10}
        step: Any = {"transaction": "Take", "service": "books", "backoff_ms": 20} | few | options
        self.client.begin(saga_id, [step | {"params": each} for each in params])

    def settled(self, saga_ids: list[str]) -> dict[str, SagaState] | None:
        """The sagas, if all of them have ended or are parked."""
        for at, service in enumerate(self.services):
            if service.poll() is not None:
                self.deaths += 1
                self.services[at] = self._service()
        states = {saga_id: self.client.get(saga_id) for saga_id in saga_ids}
        return (
            {i: s for i, s in states.items() if s}
            if all(s and (s.ended or s.parked) for s in states.values())
            else None
        )


@pytest.fixture
def shop(server: Server, commands: Commands, way: str, book: Book, tmp_path: Path) -> Iterator[Shop]:
    (tmp_path / "marks").mkdir()
    shop = Shop(server, commands, way, book, tmp_path / "marks")
    try:
        yield shop
    finally:
        for service in shop.services:
            service.send_signal(signal.SIGCONT)


on_valkey = pytest.mark.parametrize("server", ["valkey"], indirect=True)


@pytest.mark.slow
@on_valkey
@pytest.mark.parametrize("way", [*FOUR_WAYS[:-1], pytest.param(FOUR_WAYS[-1], marks=pytest.mark.soak)])
def test_whoever_is_killed_where_there_is_one_effect_and_if_it_is_undone_one_reversal(shop: Shop, book: Book) -> None:
    sagas = {}
    for point in POINTS:
        name = point.replace(" ", "-")
        sagas[f"c-{name}"] = SagaStatus.COMPLETED
        shop.begin(f"c-{name}", {"do": {"dies": point}})
        sagas[f"a-{name}"] = SagaStatus.ABORTED
        shop.begin(f"a-{name}", {"undo": {"dies": point}}, {"rejects": True})
    states = until(lambda: shop.settled(list(sagas)), what="all sagas end", timeout_s=240)
    assert {saga_id: state.status for saga_id, state in states.items()} == sagas
    once, undone = Counter(took=1), Counter({"took": 1, "gave back": 1})
    assert book.entries() == {
        f"{saga_id}/1/transaction": once if status is SagaStatus.COMPLETED else undone
        for saga_id, status in sagas.items()
    }
    until(lambda: len(list(shop.marks.iterdir())) == 2 * len(POINTS), what="a death at every point")
    assert shop.deaths >= 2 * len(POINTS) - 2  # nobody need notice the deaths after the last answers


def came_to(shop: Shop, key: str, point: str) -> Path:
    mark = books.mark_of(shop.marks, key, point)
    return until(lambda: mark if mark.exists() else None, what=f"{key} comes {point}")


def goes_on(mark: Path) -> None:
    """Continue the process that was stopped at this point."""
    os.kill(int(until(mark.read_text, what="its pid")), signal.SIGCONT)


@on_valkey
@pytest.mark.parametrize("way", ["sqlite3", "psycopg"])
def test_a_process_that_is_held_for_dead_has_no_effect_once_its_step_was_undone(shop: Shop, book: Book) -> None:
    """It is stopped before it begins. It goes on when all is over, and dies before it can be told to undo its
    effect."""
    shop.begin("s1", {"do": {"stops": "before the insert"}}, {"rejects": True})
    zombie = came_to(shop, "s1/1/transaction", "before the insert")
    states = until(lambda: shop.settled(["s1"]), what="the saga ends")
    assert states["s1"].status is SagaStatus.ABORTED
    goes_on(zombie)
    came_to(shop, "s1/1/transaction", "came back")
    assert book.entries() == {"s1/1/transaction": Counter({"took": 1, "gave back": 1})}
    assert book.states() == {"s1/1/transaction": "undone", "s1/2/transaction": "rejected"}


@on_valkey
@pytest.mark.parametrize("way", ["sqlite3", "psycopg"])
def test_a_process_that_is_held_for_dead_has_no_effect_once_its_step_was_rejected(shop: Shop, book: Book) -> None:
    shop.begin("s1", {"do": {"stops": "before the insert"}, "rejects": True})  # by all but the stopped process
    zombie = came_to(shop, "s1/1/transaction", "before the insert")
    states = until(lambda: shop.settled(["s1"]), what="the saga ends")
    assert states["s1"].reason == "Step 1 failed: as asked"
    goes_on(zombie)
    came_to(shop, "s1/1/transaction", "came back")
    assert book.entries() == {}
    assert book.states() == {"s1/1/transaction": "rejected"}


def waits_for_a_lock(book: Book) -> bool:
    with psycopg.connect(book.where) as db:
        found = db.execute(
            "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        return found.fetchone() is not None


@on_valkey
@pytest.mark.parametrize("way", ["psycopg"])
def test_whoever_takes_over_waits_for_a_transaction_that_is_still_open(shop: Shop, book: Book) -> None:
    shop.begin("s1", {"do": {"stops": "after the effect"}}, {"rejects": True})
    sleeper = came_to(shop, "s1/1/transaction", "after the effect")
    until(lambda: waits_for_a_lock(book), what="another process waits")
    assert book.entries() == {}
    goes_on(sleeper)
    states = until(lambda: shop.settled(["s1"]), what="the saga ends")
    assert states["s1"].status is SagaStatus.ABORTED
    assert book.entries() == {"s1/1/transaction": Counter({"took": 1, "gave back": 1})}


# --- twins


class Handlers:
    """The handlers of a step that takes and gives back, called without a service."""

    def __init__(self, way: str, book: Book, **options: Any) -> None:
        kept = Effects(source(way, book.where, **options))

        @kept.once
        def take(params: Any, context: Context, db: Any) -> Any:
            write(db, context.key, "took")
            return {"by": params}

        @kept.undo
        def give_back(params: Any, context: Context, db: Any) -> None:
            write(db, context.transaction_key, "gave back")

        self.take, self.give_back = take, give_back


def patiently(handler: Any, params: Any, context: Context) -> Any:
    """Call it, as a service does, until the database lets it through."""
    while True:
        try:
            return handler(params, context)
        except Reject as rejection:
            return rejection.error
        except Exception as error:
            if getattr(getattr(error, "orig", error), "sqlstate", None) != "40001":  # serialization failure
                raise


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.parametrize("way", ["engine on postgresql", "session on postgresql"])
def test_of_many_twins_of_a_command_one_has_the_effect_and_all_have_its_result(
    book: Book, way: str, isolation: str
) -> None:
    handlers = Handlers(way, book, isolation_level=isolation)
    twins(handlers, book, undos=0)


@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.parametrize("way", ["engine on postgresql", "session on postgresql"])
def test_of_many_twins_of_a_command_and_its_compensation_nothing_remains(book: Book, way: str, isolation: str) -> None:
    handlers = Handlers(way, book, isolation_level=isolation)
    twins(handlers, book, undos=4)


@pytest.mark.parametrize("undos", [0, 4])
@pytest.mark.parametrize("way", ["sqlite3", "psycopg", "engine on sqlite", "session on sqlite"])
def test_twins_are_kept_apart_by_every_driver(book: Book, way: str, undos: int) -> None:
    twins(Handlers(way, book), book, undos=undos)


def twins(handlers: Handlers, book: Book, *, undos: int) -> None:
    """For each of some steps, run 8 threads at once; `undos` of them undo it."""
    at_once = threading.Barrier(8)

    def twin(number: int, who: int) -> Any:
        at_once.wait()
        # The compensations come first for some steps, and last for others.
        if (who + number) % 8 < undos:
            return patiently(handlers.give_back, None, compensation(number))
        return patiently(handlers.take, who, command(number))

    steps = range(8)
    with ThreadPoolExecutor(8) as threads:
        answers = [[each.result() for each in [threads.submit(twin, n, who) for who in range(8)]] for n in steps]
    entries = book.entries()
    for number, told in zip(steps, answers, strict=True):
        key = command(number).key
        if undos:
            assert entries.get(key, Counter()) in (Counter(), Counter({"took": 1, "gave back": 1}))
            assert book.states()[key] == "undone"
        else:
            assert entries[key] == Counter(took=1)
            assert told == [told[0]] * 8
            assert told[0]["by"] in range(8)


# --- one at a time


@pytest.mark.parametrize("isolation", ["REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.parametrize("way", ["engine on postgresql"])
def test_a_serialization_failure_is_raised_and_the_next_try_has_the_answer(
    book: Book, way: str, isolation: str
) -> None:
    began, may_end = threading.Event(), threading.Event()
    kept = Effects(source(way, book.where, isolation_level=isolation))

    @kept.once
    def take(params: Any, context: Context, db: Any) -> Any:
        began.set()
        may_end.wait(60)
        write(db, context.key, "took")
        return params

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(take, "first", command())
        assert began.wait(60)
        second = threads.submit(take, "second", command())
        until(lambda: waits_for_a_lock(book), what="the second waits for the first")
        may_end.set()
        assert first.result() == "first"
        with pytest.raises(Exception, match="could not serialize access"):
            second.result()
    assert take("second", command()) == "first"
    assert book.entries() == {command().key: Counter(took=1)}


@pytest.mark.parametrize("way", ["psycopg"])
def test_processes_that_create_the_table_at_once_do_not_get_into_each_others_way(postgres: Postgres, way: str) -> None:
    kept = Effects(source(way, postgres.new_database()))
    at_once = threading.Barrier(8)

    def create(_: int) -> None:
        at_once.wait()
        kept.create_table()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(create, range(8)))
    take = kept.once(lambda params, context, db: "done")
    assert take(None, command()) == "done"


# --- how PostgreSQL's drivers may be used wrongly


POSTGRES_WAYS: Final = ("psycopg", "engine on postgresql", "session on postgresql")


@pytest.mark.parametrize("ending", ["commit", "rollback", "COMMIT", "ROLLBACK"])
@pytest.mark.parametrize("way", POSTGRES_WAYS)
def test_a_handler_that_ends_the_transaction_is_refused(book: Book, way: str, ending: str) -> None:
    kept = Effects(source(way, book.where))

    @kept.once
    def take(params: Any, context: Context, db: Any) -> None:
        write(db, context.key, "took")
        if params == ending:
            _ = run(db, ending) if ending.isupper() else getattr(db, ending)()

    with pytest.raises(ServiceError, match=r"ended the transaction .*; leave out commit"):
        take(ending, command())
    if ending == "COMMIT":  # nothing stops it; but it is never done twice, and never without an error
        with pytest.raises(ServiceError, match="set its row in sagastream_effects"):
            take(None, command())
        assert book.entries() == {command().key: Counter(took=1)}
    else:
        assert book.entries() == {}
        take(None, command())
        assert book.states() == {command().key: "done"}


@pytest.mark.parametrize("way", POSTGRES_WAYS)
def test_a_database_error_that_a_handler_swallows_is_not_taken_for_an_effect(book: Book, way: str) -> None:
    kept = Effects(source(way, book.where))

    @kept.once
    def take(params: Any, context: Context, db: Any) -> None:
        write(db, context.key, "took")
        with contextlib.suppress(Exception):
            run(db, "INSERT INTO nowhere VALUES (1)")

    with pytest.raises(ServiceError, match=r"swallowed a database error in it.*current transaction is aborted"):
        take(None, command())
    assert book.entries() == {}


@pytest.mark.parametrize("way", ["psycopg"])
def test_connections_of_psycopg_may_be_in_any_mode_but_have_nothing_under_way(book: Book, way: str) -> None:
    def nothing(params: Any, context: Context, db: Any) -> str:
        write(db, context.key, "took")
        return "done"

    openers: list[Callable[[], Any]] = [
        lambda: psycopg.connect(book.where, autocommit=True),
        lambda: psycopg.connect(book.where, row_factory=dict_row),
        lambda: psycopg.connect(book.where, cursor_factory=psycopg.RawCursor),
        lambda: contextlib.closing(psycopg.connect(book.where)),  # as a pool lends its connections
    ]
    for number, opens in enumerate(openers):
        take = Effects(opens).once(lambda params, context, db: "done")
        assert [take(None, command(number)) for _ in range(2)] == ["done", "done"]

    def opens_and_looks() -> psycopg.Connection[Any]:
        db = psycopg.connect(book.where)
        db.execute("SELECT 1")
        return db

    with pytest.raises(ServiceError, match="opened with a transaction under way: commit that first"):
        Effects(opens_and_looks).once(nothing)(None, command())
    assert book.entries() == {}


@pytest.mark.parametrize("way", ["engine on postgresql", "session on postgresql"])
def test_an_engine_in_autocommit_mode_is_refused(book: Book, way: str) -> None:
    kept = Effects(source(way, book.where, isolation_level="AUTOCOMMIT"))
    with pytest.raises(ServiceError, match="is in autocommit mode, so nothing can be rolled back"):
        kept.once(lambda params, context, db: write(db, context.key, "took"))(None, command())
    assert book.entries() == {}


@pytest.mark.parametrize("way", ["psycopg"])
def test_async_connections_of_psycopg_are_refused_with_what_to_use(book: Book, way: str) -> None:
    async def play() -> None:
        async with await psycopg.AsyncConnection.connect(book.where) as db:
            with pytest.raises(ServiceError, match=r"AsyncConnection: for async handlers use an AsyncEngine"):
                Effects(lambda: db).create_table()

    asyncio.run(play())


@pytest.mark.parametrize("way", ["psycopg"])
@pytest.mark.parametrize("kind", [lambda engine: engine, async_sessionmaker])
def test_async_handlers_on_postgresql(book: Book, way: str, kind: Any) -> None:
    async def play() -> list[Any]:
        engine = create_async_engine(book.where.replace("postgresql:", "postgresql+psycopg:"), poolclass=NullPool)
        kept = Effects(kind(engine))

        @kept.once
        async def take(params: Any, context: Context, db: Any) -> Any:
            await db.execute(text("INSERT INTO book (key, what) VALUES (:key, 'took')"), {"key": context.key})
            return params

        @kept.undo
        async def give_back(params: Any, context: Context, db: Any) -> None:
            key = context.transaction_key
            await db.execute(text("INSERT INTO book (key, what) VALUES (:key, 'gave back')"), {"key": key})

        told = await asyncio.gather(*(take(who, command()) for who in range(8)))
        await asyncio.gather(*(give_back(None, compensation()) for _ in range(8)))
        with pytest.raises(Reject, match="after its compensation"):
            await take(None, command())
        return told

    told = asyncio.run(play())
    assert told == [told[0]] * 8
    assert book.entries() == {command().key: Counter({"took": 1, "gave back": 1})}


@on_valkey
@pytest.mark.parametrize("way", ["engine on postgresql"])
def test_a_service_tries_again_what_the_database_could_not_serialize(server: Server, book: Book, way: str) -> None:
    scene = Scene(server.broker())
    kept = Effects(source(way, book.where, isolation_level="SERIALIZABLE"))
    service = Service("work")
    calls = []

    @service.command("Do", compensation="Undo")
    @kept.once
    def take(params: Any, context: Context, db: Any) -> Any:
        calls.append(context.key)
        [before] = run(db, "SELECT count(*) FROM book WHERE what = 'took'").one()
        if len(calls) == 1:  # another one comes in between
            with psycopg.connect(book.where) as other:
                other.execute("UPDATE book SET what = 'another took'")
        run(db, "UPDATE book SET what = 'took'")
        return before

    service.compensation("Undo")(kept.undo(lambda params, context, db: run(db, "UPDATE book SET what = 'gave back'")))
    with psycopg.connect(book.where) as db:
        db.execute("INSERT INTO book VALUES ('the only one', 'is there')")
    scene.runner = ServiceRunner(scene.broker, service, scene.stop)
    scene.begin("s1", do())
    state = scene.play("s1")
    assert state.status is SagaStatus.COMPLETED
    assert (len(calls), state.steps[0].result) == (2, b"0")
    assert book.entries() == {"the only one": Counter(took=1)}
