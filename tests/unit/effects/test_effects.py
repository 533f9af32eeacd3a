"""The rules of effects, on SQLite: what is done once, undone once, kept as rejected, and what is refused."""

import asyncio
import contextlib
import functools
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Engine, Integer, NullPool, Text, create_engine, func, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Session, scoped_session, sessionmaker

from sagastream import Context, Effects, MalformedMessage, Reject, Service
from sagastream.effects.once import CREATE_TABLE
from sagastream.errors import ServiceError
from support.books import run

KEY = "s1/1/transaction"


def command(**options: Any) -> Context:
    return Context(saga_id="s1", step=1, key=KEY, transaction_key=KEY, attempt=1, **options)


def compensation(again: str = "", **options: Any) -> Context:
    """The compensation of the step; `again`: with the key that it has if a command was overruled."""
    key = f"s1/1/compensation{again}"
    return Context(saga_id="s1", step=1, key=key, transaction_key=KEY, attempt=1, **options)


def engine(file: str, **options: Any) -> Engine:
    """With its default pool, so that a connection that was given back is used again."""
    made = create_engine(f"sqlite:///{file}", **options)
    _engines.append(made)
    return made


_engines: list[Engine] = []

#: Every source of effects that works with SQLite, made from the path of a file.
SOURCES: dict[str, Callable[[str], Any]] = {
    "sqlite3": lambda file: lambda: sqlite3.connect(file),
    "sqlite3 without isolation level": lambda file: lambda: sqlite3.connect(file, isolation_level=None),
    "sqlite3 with rows": lambda file: lambda: with_rows(sqlite3.connect(file)),
    "sqlite3 that is lent": lambda file: lambda: contextlib.closing(sqlite3.connect(file)),
    "engine": engine,
    "engine in autocommit mode": lambda file: engine(file, isolation_level="AUTOCOMMIT"),
    "sessionmaker": lambda file: sessionmaker(engine(file)),
    "scoped session": lambda file: scoped_session(sessionmaker(engine(file))),
    "function that gives a Session": lambda file: functools.partial(Session, engine(file)),
    "function that gives a Connection": lambda file: engine(file).connect,
}
if sys.version_info >= (3, 12):
    SOURCES |= {
        "sqlite3 without autocommit": lambda file: lambda: sqlite3.connect(file, autocommit=False),
        "engine without autocommit": lambda file: engine(file, connect_args={"autocommit": False}),
    }


def with_rows(connection: sqlite3.Connection) -> sqlite3.Connection:
    connection.row_factory = lambda cursor, row: {"row": row}
    return connection


class Till:
    """A till whose handlers do what a test says, and its contents."""

    def __init__(self, source: Any, file: str) -> None:
        self.file = file
        self.effects = Effects(source)
        self.effects.create_table()
        with contextlib.closing(sqlite3.connect(file)) as db, db:
            db.execute("CREATE TABLE IF NOT EXISTS till (what TEXT)")
        self.charge = self.effects.once(self._charge)
        self.refund = self.effects.undo(self._refund)
        self.calls = 0
        self.told: Any = None
        self.then: Callable[[Any], Any] = lambda db: {"n": self.calls}

    def _charge(self, params: Any, context: Context, db: Any) -> Any:
        self.calls += 1
        run(db, "INSERT INTO till VALUES ('charge')")
        return self.then(db)

    def _refund(self, params: Any, context: Context, db: Any) -> None:
        self.calls += 1
        self.told = context.result
        run(db, "INSERT INTO till VALUES ('refund')")
        self.then(db)

    def rows(self) -> list[str]:
        with contextlib.closing(sqlite3.connect(self.file)) as db:
            return [what for [what] in db.execute("SELECT what FROM till")]

    def states(self) -> dict[str, str]:
        with contextlib.closing(sqlite3.connect(self.file)) as db:
            return dict(db.execute("SELECT key, state FROM sagastream_effects").fetchall())


@pytest.fixture(params=SOURCES)
def till(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Till]:
    """With every kind of source."""
    yield Till(SOURCES[request.param](str(tmp_path / "till.db")), str(tmp_path / "till.db"))
    while _engines:
        _engines.pop().dispose()


@pytest.fixture
def plain(tmp_path: Path) -> Till:
    """With sqlite3 alone, for tests where the source makes no difference."""
    file = str(tmp_path / "till.db")
    return Till(lambda: sqlite3.connect(file), file)


def raises(error: BaseException) -> Callable[[Any], Any]:
    def then(db: Any) -> Any:
        raise error

    return then


def test_a_command_that_comes_again_has_the_same_answer_and_no_further_effect(till: Till) -> None:
    assert [till.charge(None, command()) for _ in range(3)] == [{"n": 1}] * 3
    assert till.rows() == ["charge"]
    assert till.states() == {KEY: "done"}


def test_an_effect_is_reversed_once_and_never_comes_again(till: Till) -> None:
    till.charge(None, command())
    for again in ("", "", "/7-0"):
        till.refund(None, compensation(again, result="what the orchestrator knows"))
    assert till.told == {"n": 1}
    with pytest.raises(Reject, match="it came after its compensation"):
        till.charge(None, command())
    assert till.rows() == ["charge", "refund"]
    assert till.states() == {KEY: "undone"}


def test_a_compensation_before_its_command_leaves_a_tombstone(till: Till) -> None:
    for again in ("", "/7-0"):
        till.refund(None, compensation(again))
    with pytest.raises(Reject, match="it came after its compensation"):
        till.charge(None, command())
    till.refund(None, compensation())
    assert till.rows() == []
    assert till.calls == 0


def test_a_handler_that_raises_leaves_nothing_and_may_be_called_again(till: Till) -> None:
    till.then = raises(RuntimeError("no luck"))
    with pytest.raises(RuntimeError, match="no luck"):
        till.charge(None, command())
    assert till.rows() == []
    assert till.states() == {}
    till.then = lambda db: "luck"
    assert till.charge(None, command()) == "luck"
    till.then = raises(RuntimeError("no luck"))
    with pytest.raises(RuntimeError, match="no luck"):
        till.refund(None, compensation())
    assert till.states() == {KEY: "done"}
    till.then = lambda db: None
    till.refund(None, compensation())
    assert till.rows() == ["charge", "refund"]


def test_a_reject_rolls_back_and_is_the_answer_from_then_on(till: Till) -> None:
    till.then = raises(Reject({"why": "insufficient_funds"}))
    for _ in range(2):
        with pytest.raises(Reject) as rejected:
            till.charge(None, command())
        assert rejected.value.error == {"why": "insufficient_funds"}
    assert till.calls == 1
    assert till.rows() == []
    till.refund(None, compensation())
    assert till.states() == {KEY: "rejected"}
    assert till.calls == 1


def test_a_reject_that_is_no_last_word_is_not_kept(till: Till) -> None:
    till.then = raises(Reject("busy"))
    with pytest.raises(Reject):
        till.charge(None, command(retried=True))
    assert till.states() == {}
    till.then = lambda db: "done"
    assert till.charge(None, command(retried=True)) == "done"
    assert till.rows() == ["charge"]


def test_a_twin_that_was_rejected_while_the_other_was_done_has_its_answer(plain: Till) -> None:
    def done_by_another(db: sqlite3.Connection) -> Any:
        # Between the rollback and the record of the rejection the other delivery comes.
        plain.then = lambda db: "done"
        plain.effects._open = opener_that_first(lambda: plain.charge(None, command()), plain)
        raise Reject("insufficient_funds")

    plain.then = done_by_another
    assert plain.charge(None, command()) == "done"
    assert plain.rows() == ["charge"]


def opener_that_first(does: Callable[[], Any], till: Till) -> Callable[[], sqlite3.Connection]:
    usual = till.effects._open

    def opener() -> sqlite3.Connection:
        till.effects._open = usual
        does()
        return sqlite3.connect(till.file)

    return opener


@pytest.mark.parametrize("error", ["text", {"a": [1, None]}, None, 7])
def test_an_error_is_told_again_as_it_was(plain: Till, error: Any) -> None:
    plain.then = raises(Reject(error))
    told = []
    for _ in range(2):
        with pytest.raises(Reject) as rejected:
            plain.charge(None, command())
        told.append(rejected.value.error)
    assert told == [error, error]


@pytest.mark.parametrize("result", [None, 0, "", [], {"a": {"b": "ü\x00"}}, 1.5, True, 2**63])
def test_a_result_is_told_again_as_it_was(plain: Till, result: Any) -> None:
    plain.then = lambda db: result
    assert [plain.charge(None, command()) for _ in range(2)] == [result, result]
    plain.then = lambda db: None
    plain.refund(None, compensation())
    assert plain.told == result


@pytest.mark.parametrize("result", [object(), float("nan"), 2**64, {1: 2}])
def test_a_result_that_is_no_json_leaves_nothing(till: Till, result: Any) -> None:
    till.then = lambda db: result
    with pytest.raises(MalformedMessage):
        till.charge(None, command())
    assert till.rows() == []
    assert till.states() == {}


# --- what a handler must not do


def and_more(end: Callable[[Any], Any]) -> Callable[[Any], None]:
    def then(db: Any) -> None:
        end(db)
        run(db, "INSERT INTO till VALUES ('more')")

    return then


def with_itself(db: Any) -> None:
    with db:
        run(db, "INSERT INTO till VALUES ('more')")


ENDINGS: dict[str, Callable[[Any], Any]] = {
    "commit": lambda db: db.commit(),
    "commit, then more": and_more(lambda db: db.commit()),
    "rollback": lambda db: db.rollback(),
    "rollback, then more": and_more(lambda db: db.rollback()),
    "with db": with_itself,
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_handler_that_ends_the_transaction_is_refused_and_nothing_stands(till: Till, ending: str) -> None:
    till.then = ENDINGS[ending]
    with pytest.raises(ServiceError, match=r"ended the transaction .*; leave out commit"):
        till.charge(None, command())
    assert till.rows() == []
    assert till.states() == {}
    till.then = lambda db: "done"
    assert till.charge(None, command()) == "done"
    till.then = ENDINGS[ending]
    with pytest.raises(ServiceError, match="ended the transaction"):
        till.refund(None, compensation())
    assert till.rows() == ["charge"]
    assert till.states() == {KEY: "done"}


@pytest.mark.parametrize("statement", ["COMMIT", "ROLLBACK", "executescript"])
def test_with_sqlite3_statements_that_end_it_are_refused_too(plain: Till, statement: str) -> None:
    plain.then = lambda db: db.executescript("SELECT 1") if statement == "executescript" else db.execute(statement)
    with pytest.raises(ServiceError, match="ended the transaction"):
        plain.charge(None, command())
    assert plain.rows() == []


def test_a_reject_from_within_a_with_of_its_own_tells_what_is_wrong(plain: Till) -> None:
    def then(db: sqlite3.Connection) -> None:
        with db:
            raise Reject("no")

    plain.then = then
    with pytest.raises(ServiceError, match="leave out commit"):
        plain.charge(None, command())
    assert plain.rows() == []


def test_savepoints_are_the_handlers_own(plain: Till) -> None:
    def then(db: sqlite3.Connection) -> None:
        db.execute("SAVEPOINT mine")
        db.execute("INSERT INTO till VALUES ('more')")
        db.execute("ROLLBACK TO mine")
        db.execute("RELEASE mine")

    plain.then = then
    plain.charge(None, command())
    assert plain.rows() == ["charge"]


def test_what_a_handler_committed_past_all_guards_is_never_done_again_but_told(tmp_path: Path) -> None:
    file = str(tmp_path / "till.db")
    till = Till(create_engine(f"sqlite:///{file}", poolclass=NullPool), file)
    till.then = lambda db: db.execute(text("COMMIT"))
    with pytest.raises(ServiceError, match="ended the transaction"):
        till.charge(None, command())
    till.then = lambda db: "done"
    for call, context in ((till.charge, command()), (till.refund, compensation())):
        with pytest.raises(ServiceError, match=f"{KEY} was committed by its handler .* set its row"):
            call(None, context)
    assert till.rows() == ["charge"]
    with contextlib.closing(sqlite3.connect(file)) as db, db:
        db.execute("UPDATE sagastream_effects SET state = 'done'")
    till.refund(None, compensation())
    assert till.rows() == ["charge", "refund"]


# --- the ORM


class Base(DeclarativeBase):
    pass


class Payment(Base):
    __tablename__ = "payments"
    id = Column(Integer, primary_key=True)
    key = Column(Text)


def test_what_is_added_to_a_session_belongs_to_the_effect(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'till.db'}", poolclass=NullPool)
    sessions = sessionmaker(engine)
    Base.metadata.create_all(engine)
    effects = Effects(sessions)
    effects.create_table()

    @effects.once
    def charge(params: Any, context: Context, session: Session) -> Any:
        session.add(Payment(key=context.key))
        if params == "reject":
            raise Reject("no")
        session.flush()
        return session.scalars(select(func.count()).select_from(Payment)).one()

    with pytest.raises(Reject):
        charge("reject", command())
    with sessions() as session:
        assert session.scalars(select(Payment.key)).all() == []
    other = Context(saga_id="s2", step=1, key="s2/1/transaction", transaction_key="s2/1/transaction", attempt=1)
    assert [charge(None, other) for _ in range(2)] == [1, 1]
    with sessions() as session:
        assert session.scalars(select(Payment.key)).all() == ["s2/1/transaction"]


# --- async


@pytest.mark.parametrize("kind", [lambda engine: engine, async_sessionmaker])
def test_async_handlers_have_the_same_rules(tmp_path: Path, kind: Callable[[AsyncEngine], Any]) -> None:
    async def play() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'till.db'}", poolclass=NullPool)
        effects = Effects(kind(engine))
        asked: list[BaseException | None] = []

        @effects.once
        async def charge(params: Any, context: Context, db: Any) -> Any:
            await db.execute(text("INSERT INTO till VALUES ('charge')"))
            if params == "commit":
                await db.commit()
            if asked and (error := asked.pop()):
                raise error
            return "done"

        @effects.undo
        async def refund(params: Any, context: Context, db: Any) -> None:
            assert context.result == "done"
            await db.execute(text("INSERT INTO till VALUES ('refund')"))

        async with engine.begin() as db:
            await db.execute(text(CREATE_TABLE))
            await db.execute(text("CREATE TABLE till (what TEXT)"))
        with pytest.raises(ServiceError, match="leave out commit"):
            await charge("commit", command())
        asked.append(RuntimeError("no luck"))
        with pytest.raises(RuntimeError):
            await charge(None, command())
        asked.append(Reject("busy"))
        with pytest.raises(Reject):
            await charge(None, command(retried=True))
        assert [await charge(None, command()) for _ in range(2)] == ["done", "done"]
        await refund(None, compensation())
        await refund(None, compensation())
        with pytest.raises(Reject, match="after its compensation"):
            await charge(None, command())
        other = Context(saga_id="s2", step=1, key="s2/1/transaction", transaction_key="s2/1/transaction", attempt=1)
        asked.append(Reject("no"))
        for _ in range(2):
            with pytest.raises(Reject, match="no"):
                await charge(None, other)
        async with engine.connect() as db:
            assert (await db.execute(text("SELECT what FROM till"))).scalars().all() == ["charge", "refund"]
        await engine.dispose()

    asyncio.run(play())


def test_async_handlers_and_what_they_are_given_must_fit(tmp_path: Path) -> None:
    async def waits(params: Any, context: Context, db: Any) -> None: ...

    def plain(params: Any, context: Context, db: Any) -> None: ...

    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'till.db'}")
    with pytest.raises(ServiceError, match="plain must be declared with async def"):
        Effects(engine).once(plain)
    with pytest.raises(ServiceError, match="waits is async: its effects need an AsyncEngine"):
        Effects(lambda: sqlite3.connect(":memory:")).undo(waits)
    with pytest.raises(ServiceError, match="use a migration, with CREATE_TABLE"):
        Effects(engine).create_table()


# --- what is refused


def test_a_missing_table_is_told_with_what_to_do(tmp_path: Path) -> None:
    effects = Effects(lambda: sqlite3.connect(tmp_path / "till.db"))
    for handler, context in ((effects.once(nothing), command()), (effects.undo(nothing), compensation())):
        with pytest.raises(ServiceError, match=r"the table sagastream_effects is missing: call create_table\(\)"):
            handler(None, context)


def nothing(params: Any, context: Context, db: Any) -> None:
    """A handler that does nothing."""


def test_once_is_for_commands_and_undo_for_compensations(plain: Till) -> None:
    with pytest.raises(ServiceError, match=r"s1/1/compensation is a compensation: .*@effects.undo"):
        plain.charge(None, compensation())
    with pytest.raises(ServiceError, match=r"s1/1/transaction is a command: .*@effects.once"):
        plain.refund(None, command())
    assert plain.states() == {}


def test_a_handler_that_is_made_for_the_other_kind_is_refused_where_it_is_declared(plain: Till) -> None:
    service = Service("till")
    charge, refund = plain.effects.once(nothing), plain.effects.undo(nothing)

    @functools.wraps(charge)
    def logged(params: Any, context: Context) -> Any:
        return charge(params, context)

    with pytest.raises(ServiceError, match=r"till: Charge is a command: its handler is made with @effects\.once"):
        service.command("Charge", compensation="Refund")(refund)
    with pytest.raises(ServiceError, match=r"till: Refund is a compensation: its handler is made with @effects\.undo"):
        service.compensation("Refund")(logged)
    service.command("Charge", compensation="Refund")(charge)
    service.compensation("Refund")(refund)


def test_a_connection_is_no_source(tmp_path: Path) -> None:
    with (
        contextlib.closing(sqlite3.connect(":memory:")) as connection,
        pytest.raises(ServiceError, match=r"not sqlite3.Connection: .*like `lambda: sqlite3.connect\(file\)`"),
    ):
        Effects(connection)
    with pytest.raises(ServiceError, match=r"not builtins.str"):
        Effects("sqlite:///till.db")


@pytest.mark.parametrize("given", [None, 7, object()])
def test_what_is_no_connection_is_refused_when_it_is_opened(given: object) -> None:
    with pytest.raises(ServiceError, match="they know connections of sqlite3 and psycopg, and SQLAlchemy's"):
        Effects(lambda: given).create_table()


def test_a_connection_with_a_transaction_under_way_is_refused(tmp_path: Path) -> None:
    def opens() -> sqlite3.Connection:
        db = sqlite3.connect(tmp_path / "till.db")
        db.execute("CREATE TABLE IF NOT EXISTS t (a)")
        db.execute("INSERT INTO t VALUES (1)")
        return db

    with pytest.raises(ServiceError, match="opened with a transaction under way: commit that first"):
        Effects(opens).create_table()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="sqlite3 has no autocommit before Python 3.12")
def test_a_connection_of_sqlite3_with_autocommit_is_refused(tmp_path: Path) -> None:
    options: dict[str, Any] = {"autocommit": True}
    with pytest.raises(ServiceError, match=r"autocommit=True, where rollback\(\) does nothing; open it without"):
        Effects(lambda: sqlite3.connect(tmp_path / "till.db", **options)).create_table()


def test_handlers_take_three(plain: Till) -> None:
    def takes_two(params: Any, context: Context) -> None: ...

    with pytest.raises(ServiceError, match=r"takes \(params, context, db\); takes_two: "):
        plain.effects.once(takes_two)  # type: ignore[arg-type]


def test_what_comes_out_is_a_handler_like_any_other(plain: Till) -> None:
    wrapped = plain.effects.once(nothing)
    assert (wrapped.__name__, wrapped.__doc__) == ("nothing", "A handler that does nothing.")
    Service("till").command("Nothing", compensation=None)(wrapped)
    with pytest.raises(ServiceError, match=r"a handler takes \(params, context\)"):
        Service("till").command("Nothing", compensation=None)(nothing)  # type: ignore[type-var]


def test_neither_sqlalchemy_nor_psycopg_is_needed() -> None:
    script = """
import sqlite3, sys
for name in ("sqlalchemy", "psycopg"):
    sys.modules[name] = None
from sagastream import Context, Effects
effects = Effects(lambda: sqlite3.connect("file:till?mode=memory&cache=shared", uri=True))
kept = sqlite3.connect("file:till?mode=memory&cache=shared", uri=True)
effects.create_table()
context = Context(saga_id="s1", step=1, key="k", transaction_key="k", attempt=1)
print(effects.once(lambda params, context, db: "done")(None, context))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout == "done\n", done.stderr
