"""A transaction in a service's own database: how it is begun, guarded and committed with sqlite3, psycopg, SQLAlchemy.

What differs between these three stays here; `once` has the rules. psycopg and SQLAlchemy are never imported from here:
if the service has not imported them, it cannot give us one of their connections.
"""

import contextlib
import inspect
import re
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final, Protocol

from sagastream.errors import ServiceError

#: What a handler must not do, and what to do instead.
NOT_ITS_OWN: Final = (
    "it ended the transaction that it was given, or swallowed a database error in it; leave out commit(), rollback() "
    "and, with sqlite3, `with db:` and executescript(): the transaction is committed when the handler returns, and "
    "rolled back when it raises"
)
_PLACEHOLDER: Final = re.compile(r":(\w+)")
#: sqlite3's number for BEGIN, COMMIT and ROLLBACK, which the module does not name before Python 3.14.
_SQLITE_TRANSACTION: Final = 22


class Transaction(Protocol):
    """A transaction that has begun. Placeholders of statements are written `:name`."""

    handle: Any  # what the handler gets: the connection, or the Session
    is_postgresql: bool

    def execute(self, statement: str, **values: str | None) -> int:
        """How many rows it changed."""

    def row(self, statement: str, **values: str | None) -> tuple[Any, ...] | None:
        """The first row it finds."""

    def rows(self, statement: str, **values: str | None) -> list[tuple[Any, ...]]:
        """All rows that it finds."""

    def guarded(self) -> contextlib.AbstractContextManager[None]:
        """While the handler runs: if it commits, that is refused, and before it happens if the driver allows that."""


def is_async(source: object) -> bool:
    """Whether what a source opens can only be used with await."""
    return isinstance(source, _sqlalchemys("sqlalchemy.ext.asyncio", "AsyncEngine", "async_sessionmaker"))


def opener_of(source: Any) -> Callable[[], Any]:
    """The function that opens a connection or Session of a source. Raises ServiceError if there is none."""
    if isinstance(source, _sqlalchemys("sqlalchemy", "Engine") + _sqlalchemys("sqlalchemy.ext.asyncio", "AsyncEngine")):
        opener: Callable[[], Any] = source.connect
        return opener
    if callable(source) and not isinstance(source, sqlite3.Connection):
        return source  # type: ignore[no-any-return]
    raise ServiceError(
        f"effects need something that opens a connection for each command, not {_kind(source)}: an Engine or "
        "sessionmaker of SQLAlchemy, or a function, like `lambda: sqlite3.connect(file)`"
    )


@contextlib.contextmanager
def transaction(open_: Callable[[], Any]) -> Iterator[Transaction]:
    """Open a connection and begin; commit, or roll back if something raises; close. Raises ServiceError if no driver
    here knows the connection, or if a transaction on it is not ours alone to commit."""
    opened: Any = open_()
    if isinstance(opened, _sqlalchemys("sqlalchemy", "Connection") + _sqlalchemys("sqlalchemy.orm", "Session")):
        with opened, opened.begin():
            yield _SqlAlchemyTransaction(opened)
    elif hasattr(opened, "cursor"):
        beginning = _plain(opened)  # not closed if it is refused: its close() may have to be awaited
        with contextlib.closing(opened), beginning as begun:
            yield begun
    elif hasattr(opened, "__enter__"):  # of a pool, to which the connection goes back
        with opened as lent, _plain(lent) as begun:
            yield begun
    else:
        raise ServiceError(f"effects cannot use {_kind(opened)}: {_KNOWN}")


@contextlib.asynccontextmanager
async def async_transaction(open_: Callable[[], Any]) -> AsyncIterator[Any]:
    """The same for AsyncEngine and async_sessionmaker: yields the connection or Session itself. A function that its
    `run_sync` calls gets the transaction from `within`."""
    async with open_() as opened, opened.begin():
        yield opened


def within(connection: Any) -> Transaction:
    """The transaction that has begun on a connection or Session of SQLAlchemy."""
    return _SqlAlchemyTransaction(connection)


_KNOWN: Final = "they know connections of sqlite3 and psycopg, and SQLAlchemy's on SQLite and PostgreSQL"


def _sqlalchemys(module: str, *names: str) -> tuple[Any, ...]:
    """Classes of SQLAlchemy; none if the service has not imported it yet."""
    found = (getattr(sys.modules.get(module), name, None) for name in names)
    return tuple(each for each in found if each is not None)


def _kind(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _plain(connection: Any) -> contextlib.AbstractContextManager[Transaction]:
    psycopg = sys.modules.get("psycopg")
    if isinstance(connection, sqlite3.Connection):
        return _begun_on_sqlite(connection)
    if psycopg is not None and isinstance(connection, psycopg.Connection):
        return _begun_on_psycopg(connection, psycopg)
    if inspect.iscoroutinefunction(getattr(connection, "commit", None)):
        raise ServiceError(f"effects cannot use {_kind(connection)}: for async handlers use an AsyncEngine")
    raise ServiceError(f"effects cannot use {_kind(connection)}: {_KNOWN}")


@contextlib.contextmanager
def _begun_on_sqlite(connection: sqlite3.Connection) -> Iterator[Transaction]:
    autocommit = getattr(connection, "autocommit", None)  # from Python 3.12 on
    if autocommit is True:
        raise ServiceError("the sqlite3 connection has autocommit=True, so rollback() does nothing; open it without")
    # Python has several ways to begin, at different moments. This is one that always begins here.
    if not connection.in_transaction:
        connection.execute("BEGIN IMMEDIATE")
    elif autocommit is not False:  # with autocommit=False there is always a transaction
        raise ServiceError("the sqlite3 connection was opened with a transaction under way: commit that first")
    try:
        yield _SqliteTransaction(connection)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite ends it by itself if the disk is full
            connection.execute("ROLLBACK")
        raise


class _SqliteTransaction:
    is_postgresql = False

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.handle = connection

    def execute(self, statement: str, **values: str | None) -> int:
        return self.handle.execute(statement, values).rowcount

    def row(self, statement: str, **values: str | None) -> tuple[Any, ...] | None:
        found: tuple[Any, ...] | None = self._plain(statement, values).fetchone()
        return found

    def rows(self, statement: str, **values: str | None) -> list[tuple[Any, ...]]:
        return self._plain(statement, values).fetchall()

    def _plain(self, statement: str, values: dict[str, str | None]) -> sqlite3.Cursor:
        cursor = self.handle.cursor()
        cursor.row_factory = None
        return cursor.execute(statement, values)

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        refused = []

        def authorize(action: int, what: str | None, *_: str | None) -> int:
            if action != _SQLITE_TRANSACTION:
                return sqlite3.SQLITE_OK
            refused.append(what)
            return sqlite3.SQLITE_DENY

        self.handle.set_authorizer(authorize)
        try:
            yield
        except sqlite3.DatabaseError as error:
            if refused:
                raise ServiceError(NOT_ITS_OWN) from error
            raise
        finally:
            self.handle.set_authorizer(None)


@contextlib.contextmanager
def _begun_on_psycopg(connection: Any, psycopg: Any) -> Iterator[Transaction]:
    # Inside another transaction, psycopg's transaction() is a savepoint: nothing would be committed.
    if connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
        raise ServiceError("the psycopg connection was opened with a transaction under way: commit that first")
    with connection.transaction():  # refuses commit() and rollback() inside
        yield _PsycopgTransaction(connection, psycopg)


class _PsycopgTransaction:
    is_postgresql = True

    def __init__(self, connection: Any, psycopg: Any) -> None:
        self.handle = connection
        self._psycopg = psycopg

    def execute(self, statement: str, **values: str | None) -> int:
        return int(self._run(statement, values).rowcount)

    def row(self, statement: str, **values: str | None) -> tuple[Any, ...] | None:
        found: tuple[Any, ...] | None = self._run(statement, values).fetchone()
        return found

    def rows(self, statement: str, **values: str | None) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = self._run(statement, values).fetchall()
        return found

    def _run(self, statement: str, values: dict[str, str | None]) -> Any:
        # Our own cursor: the connection's own kind may use other placeholders and return other rows.
        cursor = self._psycopg.Cursor(self.handle, row_factory=self._psycopg.rows.tuple_row)
        return cursor.execute(_PLACEHOLDER.sub(r"%(\1)s", statement), values)

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        try:
            yield
        except self._psycopg.ProgrammingError as error:
            if "forbidden within a Transaction context" in str(error):
                raise ServiceError(NOT_ITS_OWN) from error
            raise


class _SqlAlchemyTransaction:
    """Of a Connection, or of a Session."""

    def __init__(self, handle: Any) -> None:
        import sqlalchemy
        from sqlalchemy.orm import Session

        self.handle = handle
        self._sqlalchemy = sqlalchemy
        self._connection = handle.connection() if isinstance(handle, Session) else handle
        dialect = self._connection.dialect.name
        if dialect not in ("sqlite", "postgresql"):
            raise ServiceError(f"effects cannot use {dialect}: {_KNOWN}")
        self.is_postgresql = dialect == "postgresql"
        raw = self._connection.connection
        if getattr(raw.dbapi_connection, "autocommit", None) is True:
            raise ServiceError("the engine is in autocommit mode, so nothing can be rolled back; open it without")
        driver: Any = raw.driver_connection
        if not self.is_postgresql and not driver.in_transaction:
            self._connection.exec_driver_sql("BEGIN IMMEDIATE")  # pysqlite would wait until the first change

    def execute(self, statement: str, **values: str | None) -> int:
        return int(self._run(statement, values).rowcount)

    def row(self, statement: str, **values: str | None) -> tuple[Any, ...] | None:
        found = self._run(statement, values).fetchone()
        return None if found is None else tuple(found)

    def rows(self, statement: str, **values: str | None) -> list[tuple[Any, ...]]:
        return [tuple(found) for found in self._run(statement, values).fetchall()]

    def _run(self, statement: str, values: dict[str, str | None]) -> Any:
        options = {"preserve_rowcount": True}
        return self._connection.execute(self._sqlalchemy.text(statement), values, execution_options=options)

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        def refuse(connection: Any) -> None:
            # Without this, SQLAlchemy would give the connection back to its pool with the transaction still open.
            connection.connection.rollback()
            raise ServiceError(NOT_ITS_OWN)

        self._sqlalchemy.event.listen(self._connection, "commit", refuse)
        try:
            yield
        except self._sqlalchemy.exc.InvalidRequestError as error:
            if "closed transaction inside context manager" in str(error):
                raise ServiceError(NOT_ITS_OWN) from error
            raise
        finally:
            self._sqlalchemy.event.remove(self._connection, "commit", refuse)
