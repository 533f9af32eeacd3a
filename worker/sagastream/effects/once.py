"""Effects that happen once: the idempotency key and the effect in one transaction of the service's own database.

    effects = Effects(engine)

    @service.command("ChargeCard", compensation="RefundCard")
    @effects.once
    def charge(params, context, db):
        db.execute(text("INSERT INTO payments …"), …)
        return {"payment_id": …}

    @service.compensation("RefundCard")
    @effects.undo
    def refund(params, context, db):
        db.execute(text("DELETE FROM payments …"), …)

The key is written first, so that another delivery of the command waits until this transaction has committed or rolled
back. A committed row says how its step ended:

    done      the effect is there; `result` is what the handler returned
    rejected  the step has failed; `result` is the error
    undone    the effect was reversed, or must not happen any more because its compensation came first

`rejected` and `undone` stay for good. A compensation turns `done` into `undone`, in the transaction that reverses the
effect. So no effect can stay that nobody undoes: not if a process was taken for dead and goes on, and not if a command
comes after its compensation.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import orjson
from msgspec.structs import replace

from sagastream.console import describe
from sagastream.core.json_values import unwritable_result
from sagastream.core.strict_json import encode, encode_payload
from sagastream.effects import standing, transactions
from sagastream.effects.transactions import NOT_ITS_OWN, Transaction
from sagastream.errors import Reject, ServiceError
from sagastream.service import typed_params
from sagastream.service.context import Context, Handler
from sagastream.service.handlers import error_of
from sagastream.service.registration import MADE_FOR, NO_JSON, Kind, is_async
from sagastream.service.typed_params import model_of_params

#: The table, for a migration; the same in SQLite and PostgreSQL.
CREATE_TABLE: Final = """\
CREATE TABLE IF NOT EXISTS sagastream_effects (
    key TEXT NOT NULL PRIMARY KEY,
    state TEXT NOT NULL,
    result TEXT,
    changed_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT CURRENT_TIMESTAMP
)"""

_INSERT: Final = """\
INSERT INTO sagastream_effects (key, state, result) VALUES (:key, :state, :result) ON CONFLICT (key) DO NOTHING"""
_SELECT: Final = "SELECT state, result FROM sagastream_effects WHERE key = :key"
_UPDATE: Final = """\
UPDATE sagastream_effects SET state = :state, result = coalesce(:result, result), changed_at = CURRENT_TIMESTAMP
WHERE key = :key AND state = :before"""
#: A trip wire: it is gone if the handler has ended the transaction, even if it has begun another one.
_SAVEPOINT: Final = "SAVEPOINT sagastream_effect"
_RELEASE: Final = "RELEASE SAVEPOINT sagastream_effect"
#: Another program can take this lock only by chance, and then one waits for the other. The letters `sagaeffe`.
_LOCK: Final = "SELECT pg_advisory_xact_lock(8314040055113344613)"

#: A handler that also gets the transaction: (params, context, db) -> any JSON value, or a coroutine of one.
EffectHandler = Callable[[Any, Context, Any], Any]


class Effects:
    """The effects of a service in one database: which were done, and which were undone or rejected for good."""

    def __init__(self, source: Any) -> None:
        """
        Args:
            source: opens a connection for each command. It is an Engine or sessionmaker of SQLAlchemy, or the async
                form of one; or a function that returns a new connection of sqlite3 or psycopg, or lends one, as
                `connection` of psycopg's pool does.

        Raises ServiceError if it is none of these.
        """
        self._open = transactions.opener_of(source)
        self._is_async = transactions.is_async(source)

    @property
    def standing(self) -> Handler:
        """The handler for `Service.standing`: it answers which effects stand, so that they can be compared with the
        sagas after a failover."""
        return standing.handler(self._open, is_async=self._is_async)

    def create_table(self) -> None:
        """Create the table if it does not exist. Several processes may call this at the same time.

        Raises ServiceError if the source is async: then use a migration, with CREATE_TABLE.
        """
        if self._is_async:
            raise ServiceError("an async Engine cannot create the table here: use a migration, with CREATE_TABLE")
        with transactions.transaction(self._open) as tx:
            if tx.is_postgresql:  # there, two that create one table at once fail in spite of IF NOT EXISTS
                tx.row(_LOCK)
            tx.execute(CREATE_TABLE)

    def once(self, handler: EffectHandler) -> Handler:
        """Decorate the handler of a command. Your handler takes `(params, context, db)`; `db` is the connection or
        Session of an open transaction.

        What your handler changes through `db` happens once, however often the command is delivered:

        - It runs in one transaction, which is committed together with its result.
        - If it was done before, your handler is not called. The answer is the same result, or the same Reject.
        - If it raises, its changes are rolled back. A Reject is kept as the answer, unless the orchestrator is going to
          send the command again (`context.retried`).
        - If the step's compensation came first, your handler is not called, and the answer is a Reject.

        Returns a handler for `Service.command`. When called, that raises ServiceError if the table is missing, or if
        your handler has ended the transaction. Raises ServiceError if your handler cannot be called with three
        arguments, or is async and the source is not, or the other way round.
        """
        self._check(handler, "command")
        return _like(handler, self._once_async(handler) if self._is_async else self._once(handler), "command")

    def _once(self, handler: EffectHandler) -> Handler:
        read = _reader(handler)

        def once(params: Any, context: Context) -> Any:
            key = _key_of_command(context)
            try:
                with transactions.transaction(self._open) as tx:
                    if (row := _claim(tx, key, _BEGUN)) is None:
                        with tx.guarded():
                            result = handler(read(params), context, tx.handle)
                        _settle(tx, key, result)
                        return result
            except Reject as rejection:
                if context.retried:
                    raise
                # In a new transaction: a Session that goes on would still write what the handler has added to it.
                with transactions.transaction(self._open) as tx:
                    row = _claim(tx, key, _rejected(rejection))
                if row is None:
                    raise
            return _answer(row, key)  # also if another delivery was done while this one was rejected

        return once

    def _once_async(self, handler: EffectHandler) -> Handler:
        read = _reader(handler)

        async def once(params: Any, context: Context) -> Any:
            key = _key_of_command(context)
            try:
                async with transactions.async_transaction(self._open) as db:
                    tx = await db.run_sync(transactions.within)
                    if (row := await db.run_sync(lambda _: _claim(tx, key, _BEGUN))) is None:
                        with tx.guarded():
                            result = await handler(read(params), context, db)
                        await db.run_sync(lambda _: _settle(tx, key, result))
                        return result
            except Reject as rejection:
                if context.retried:
                    raise
                rejected = _rejected(rejection)
                async with transactions.async_transaction(self._open) as db:
                    row = await db.run_sync(lambda db: _claim(transactions.within(db), key, rejected))
                if row is None:
                    raise
            return _answer(row, key)

        return once

    def undo(self, handler: EffectHandler) -> Handler:
        """Decorate the handler of a compensation. Your handler takes `(params, context, db)` and reverses what the
        handler under `once` has done; `context.result` is the result that this one returned.

        - If there is an effect, your handler is called in the transaction that marks it as undone. Once that has
          committed, your handler is not called again.
        - If there is no effect, your handler is not called. The command is marked instead, so that it has none if it
          comes later.

        Returns a handler for `Service.compensation`. Raises ServiceError as `once` does.
        """
        self._check(handler, "compensation")
        return _like(handler, self._undo_async(handler) if self._is_async else self._undo(handler), "compensation")

    def _undo(self, handler: EffectHandler) -> Handler:
        read = _reader(handler)

        def undo(params: Any, context: Context) -> None:
            key = _key_of_undone(context)
            with transactions.transaction(self._open) as tx:
                if (done := _take_back(tx, key)) is not None:
                    with tx.guarded():
                        handler(read(params), replace(context, result=done.value), tx.handle)
                    _release(tx, key)

        return undo

    def _undo_async(self, handler: EffectHandler) -> Handler:
        read = _reader(handler)

        async def undo(params: Any, context: Context) -> None:
            key = _key_of_undone(context)
            async with transactions.async_transaction(self._open) as db:
                tx = await db.run_sync(transactions.within)
                if (done := await db.run_sync(lambda _: _take_back(tx, key))) is not None:
                    with tx.guarded():
                        await handler(read(params), replace(context, result=done.value), db)
                    await db.run_sync(lambda _: _release(tx, key))

        return undo

    def _check(self, handler: EffectHandler, made_for: Kind) -> None:
        name = getattr(handler, "__name__", repr(handler))
        if made_for == "command" and (kind := unwritable_result(handler)) is not None:
            raise ServiceError(f"{name} returns {kind}, {NO_JSON}")
        try:
            inspect.signature(handler).bind(None, None, None)
        except TypeError as error:
            raise ServiceError(f"a handler with effects takes (params, context, db); {name}: {error}") from None
        if is_async(handler) and not self._is_async:
            raise ServiceError(f"{name} is async: its effects need an AsyncEngine or async_sessionmaker of SQLAlchemy")
        if self._is_async and not is_async(handler):
            raise ServiceError(f"{name} must be declared with async def: its effects are in an async Engine")


def _reader(handler: EffectHandler) -> Callable[[Any], Any]:
    """Params as the handler takes them. They are read once its key is written: only then is it known whether the effect
    is there already, even if the class that the handler names takes no such params any more."""
    if (model := model_of_params(handler)) is None:
        return lambda params: params
    return lambda params: typed_params.read(model, encode(params))


class _Row(NamedTuple):
    """What the table says about a step."""

    state: str
    result: str | None = None  # JSON

    @property
    def value(self) -> Any:
        return None if self.result is None else orjson.loads(self.result)


def _rejected(rejection: Reject) -> _Row:
    return _Row("rejected", error_of(rejection).decode())


#: Never committed, unless a handler does so itself.
_BEGUN: Final = _Row("begun")


def _like(handler: EffectHandler, wrapper: Handler, kind: Kind) -> Handler:
    """`wrapper` with the name of the handler, its own parameters, and a mark that says what it can be declared as."""
    functools.update_wrapper(wrapper, handler, assigned=("__module__", "__name__", "__qualname__", "__doc__"))
    del wrapper.__wrapped__  # type: ignore[attr-defined]
    setattr(wrapper, MADE_FOR, kind)
    return wrapper


def _key_of_command(context: Context) -> str:
    if context.key != context.transaction_key:
        raise ServiceError(f"{context.key} is a compensation: declare its handler with @effects.undo, not once")
    return context.key


def _key_of_undone(context: Context) -> str:
    if context.key == context.transaction_key:
        raise ServiceError(f"{context.key} is a command: declare its handler with @effects.once, not undo")
    return context.transaction_key


def _claim(tx: Transaction, key: str, row: _Row) -> _Row | None:
    """Write the row of a step. Returns None, or the row if there is one already. Waits for a transaction that has just
    written it."""
    try:
        tx.execute(_SAVEPOINT)
        if tx.execute(_INSERT, key=key, state=row.state, result=row.result) == 1:
            return None
        found = tx.row(_SELECT, key=key)
    except Exception as error:
        if "sagastream_effects" in str(error) and ("no such table" in str(error) or "does not exist" in str(error)):
            text = "the table sagastream_effects is missing: call create_table(), or create it with a migration"
            raise ServiceError(text) from error
        raise
    if found is None:
        raise ServiceError(f"{key} was deleted from sagastream_effects just now")
    return _Row(*found)


def _take_back(tx: Transaction, key: str) -> _Row | None:
    """Mark a step as undone. Returns what is to be reversed; None: nothing."""
    row = _claim(tx, key, _Row("undone"))
    if row is not None and row.state == "begun":
        raise _unclear(key)
    if row is None or row.state != "done":
        return None
    # If two come at once, the second one waits here for the first, and then finds no row that is done.
    return row if tx.execute(_UPDATE, key=key, before="done", state="undone", result=None) == 1 else None


def _settle(tx: Transaction, key: str, result: Any) -> None:
    """Keep what the handler returned. Raises MalformedMessage if it cannot be written as JSON."""
    _release(tx, key)
    kept = encode_payload(result).decode()
    if tx.execute(_UPDATE, key=key, before="begun", state="done", result=kept) != 1:
        raise ServiceError(f"{key}: {NOT_ITS_OWN}")


def _release(tx: Transaction, key: str) -> None:
    """Make sure that the transaction is still the one that was begun."""
    try:
        tx.execute(_RELEASE)
    except Exception as error:
        raise ServiceError(f"{key}: {NOT_ITS_OWN} ({describe(error)})") from error


def _answer(row: _Row, key: str) -> Any:
    """The answer to a command that comes again."""
    if row.state == "done":
        return row.value
    if row.state == "rejected":
        raise Reject(row.value)
    if row.state == "undone":
        raise Reject("cancelled: it came after its compensation")
    raise _unclear(key)


def _unclear(key: str) -> ServiceError:
    return ServiceError(
        f"{key} was committed by its handler before the handler had ended; look at what it has done, then set its row "
        "in sagastream_effects to done or undone"
    )
