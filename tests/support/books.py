"""A service that keeps its effects in a database with `Effects`, for each database and library that `Effects` supports.

Tests look at its table, the book; real processes run the service: `sagastream service support.books:service`. BOOKS in
the environment says which database, and where. The book only grows: each effect and each reversal adds a row. The
params of a step may ask that the process is killed or stopped at a named point. Each such thing happens once, so the
next process gets further.
"""

import contextlib
import os
import re
import signal
import sqlite3
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any, Final

import psycopg
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.orm import sessionmaker

from sagastream import Context, Effects, Reject, Service
from sagastream.effects import once
from sagastream.service.outbox import Outbox

#: The ways to keep books: what opens a connection, and to what.
WAYS: Final = (
    "sqlite3",
    "psycopg",
    "engine on sqlite",
    "engine on postgresql",
    "session on sqlite",
    "session on postgresql",
)

#: Where a process may die, in the order in which it reaches these points.
POINTS: Final = (
    "before the insert",
    "after the insert",
    "after the effect",
    "before the commit",
    "after the commit",
    "before the answer",
    "after the answer",
)


def is_on_postgres(way: str) -> bool:
    return way.endswith(("psycopg", "postgresql"))


def source(way: str, where: str, **options: Any) -> Any:
    """The source of the `Effects`. `where`: a file, or a dsn; `options`: of the Engine."""
    if way == "sqlite3":
        return lambda: sqlite3.connect(where, timeout=30)
    if way == "psycopg":
        return lambda: psycopg.connect(where)
    options.setdefault("poolclass", NullPool)  # nothing is left open when a test ends
    if is_on_postgres(way):
        engine = create_engine(where.replace("postgresql:", "postgresql+psycopg:", 1), **options)
    else:
        engine = create_engine(f"sqlite:///{where}", connect_args={"timeout": 30}, **options)
    return engine if way.startswith("engine") else sessionmaker(engine)


def run(db: Any, statement: str, **values: Any) -> Any:
    """Execute a statement on the `db` that a handler gets, of any kind. Its placeholders are written `:name`."""
    if isinstance(db, sqlite3.Connection):
        return db.execute(statement, values)
    if isinstance(db, psycopg.Connection):
        return db.execute(re.sub(r":(\w+)", r"%(\1)s", statement), values)
    return db.execute(text(statement), values)


def write(db: Any, key: str, what: str) -> None:
    run(db, "INSERT INTO book (key, what) VALUES (:key, :what)", key=key, what=what)


class Book:
    """The book, read from outside."""

    def __init__(self, where: str) -> None:
        self.where = where

    def _connect(self) -> Any:
        if self.where.startswith("postgresql:"):
            return contextlib.closing(psycopg.connect(self.where))
        return contextlib.closing(sqlite3.connect(self.where, timeout=30))

    def create(self) -> None:
        with self._connect() as db, db:
            db.execute("CREATE TABLE book (key TEXT, what TEXT)")

    def entries(self) -> dict[str, Counter[str]]:
        """How often each effect was done and reversed, by key."""
        with self._connect() as db:
            found: dict[str, Counter[str]] = {}
            for key, what in db.execute("SELECT key, what FROM book").fetchall():
                found.setdefault(key, Counter())[what] += 1
            return found

    def states(self) -> dict[str, str]:
        """What the table of the effects says."""
        with self._connect() as db:
            return dict(db.execute("SELECT key, state FROM sagastream_effects").fetchall())


# --- the service


@cache
def _folder() -> Path:
    return Path(os.environ["BOOKS_MARKS"])


def mark_of(folder: Path, key: str, point: str) -> Path:
    """The file that shows that a process has reached its point."""
    return folder / f"{key} {point}".replace("/", " ")


def _is_undo(context: Context) -> bool:
    return context.key != context.transaction_key


def _at(point: str, params: Any, context: Context) -> None:
    """Die here, or stop, if that was asked for and has not happened yet."""
    asked = params.get("undo" if _is_undo(context) else "do", {})
    for how, sign in (("dies", signal.SIGKILL), ("stops", signal.SIGSTOP)):
        if asked.get(how) == point:
            mark = mark_of(_folder(), context.key, point)
            with contextlib.suppress(FileExistsError), mark.open("x") as file:
                file.write(str(os.getpid()))
                file.flush()
                os.kill(os.getpid(), sign)


#: The commands for which this process has called handlers, and which it has not answered.
_in_hand: list[tuple[Any, Context]] = []


def _points_beyond_handlers() -> None:
    settle, release, send = once._settle, once._release, Outbox.send

    def settle_and(*arguments: Any) -> None:
        settle(*arguments)
        _at("before the commit", *_in_hand[-1])

    def release_and(*arguments: Any) -> None:
        release(*arguments)
        if _is_undo(_in_hand[-1][1]):
            _at("before the commit", *_in_hand[-1])

    def send_between(self: Outbox, ahead: int = 0) -> Any:
        if not self._ready:
            return send(self, ahead)
        for called in _in_hand:
            _at("before the answer", *called)
        overruled = send(self, ahead)
        for called in _in_hand:
            _at("after the answer", *called)
        _in_hand.clear()
        return overruled

    once._settle = settle_and  # type: ignore[assignment]
    once._release = release_and  # type: ignore[assignment]
    Outbox.send = send_between  # type: ignore[method-assign]


def make_service(way: str, where: str) -> Service:
    kept = Effects(source(way, where))
    service = Service("books", lease_ms=int(os.environ.get("BOOKS_LEASE_MS", "300")))

    @kept.once
    def take(params: Any, context: Context, db: Any) -> Any:
        _at("after the insert", params, context)
        if params.get("rejects") and not _has_been_away(context):
            raise Reject("as asked")
        write(db, context.key, "took")
        _at("after the effect", params, context)
        return {"key": context.key}

    @kept.undo
    def give_back(params: Any, context: Context, db: Any) -> None:
        _at("after the insert", params, context)
        assert context.result == {"key": context.transaction_key}
        write(db, context.transaction_key, "gave back")
        _at("after the effect", params, context)

    def with_points(handler: Any) -> Any:
        def called(params: Any, context: Context) -> Any:
            _in_hand.append((params, context))
            _at("before the insert", params, context)
            try:
                result = handler(params, context)
            finally:
                if _has_been_away(context):  # and is given no time to undo anything
                    mark_of(_folder(), context.key, "came back").touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            _at("after the commit", params, context)
            return result

        return called

    service.command("Take", compensation="GiveBack")(with_points(take))
    service.compensation("GiveBack")(with_points(give_back))
    return service


def _has_been_away(context: Context) -> bool:
    """Whether this process was stopped before it began with this command, and has gone on."""
    mark = mark_of(_folder(), context.key, "before the insert")
    return mark.exists() and mark.read_text() == str(os.getpid())


if "BOOKS" in os.environ:
    _points_beyond_handlers()
    service = make_service(*os.environ["BOOKS"].split("|"))
