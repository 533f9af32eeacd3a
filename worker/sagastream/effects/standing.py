"""Which effects stand: the answer of a service that keeps its effects with `Effects` to the command sagastream_effects.

docs/protocol.md, "Which effects stand", says what is asked and answered.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from sagastream.effects import transactions
from sagastream.effects.transactions import Transaction
from sagastream.errors import Reject
from sagastream.service.context import Handler

#: A page looks at this many rows, whether they are in the range of time or not: so no page takes long, and none is
#: longer than a message may be.
_ROWS: Final = 2000
#: At most this many keys may be asked for at once.
_KEYS: Final = 500

_PAGE: Final = "SELECT key, state, changed_at FROM sagastream_effects WHERE key > :after ORDER BY key LIMIT {}"
_THESE: Final = "SELECT key, state, changed_at FROM sagastream_effects WHERE key IN ({})"


def answer(tx: Transaction, params: Any) -> dict[str, Any]:
    """A page of what stands. Raises Reject if what is asked makes no sense."""
    if not isinstance(params, dict):
        raise Reject("sagastream_effects takes an object")
    names = params.get("keys")
    if names is not None:
        if not isinstance(names, list) or len(names) > _KEYS or not all(isinstance(name, str) for name in names):
            raise Reject(f"keys must be a list of at most {_KEYS} strings")
        return {"effects": _effects(_these(tx, names)), "after": None}
    after, since_ms = params.get("after") or "", params.get("since_ms") or 0
    if not isinstance(after, str) or not isinstance(since_ms, int):
        raise Reject("after must be a string, since_ms a whole number")
    rows = tx.rows(_PAGE.format(_ROWS), after=after)
    effects = [effect for effect in _effects(rows) if effect["changed_ms"] >= since_ms]
    return {"effects": effects, "after": rows[-1][0] if len(rows) == _ROWS else None}


def _these(tx: Transaction, names: Sequence[str]) -> list[tuple[Any, ...]]:
    if not names:
        return []
    places = {f"key{number}": name for number, name in enumerate(names)}
    return tx.rows(_THESE.format(", ".join(f":{place}" for place in places)), **places)


def _effects(rows: Sequence[tuple[Any, ...]]) -> list[dict[str, Any]]:
    return [{"key": key, "state": state, "changed_ms": _milliseconds(changed)} for key, state, changed in rows]


def _milliseconds(changed: Any) -> int:
    """SQLite gives a text in UTC, PostgreSQL a datetime."""
    moment = changed if isinstance(changed, datetime) else datetime.fromisoformat(str(changed))
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)


def handler(open_: Callable[[], Any], *, is_async: bool) -> Handler:
    """The handler of the command, for a source that is async, or is not."""

    def standing(params: Any, _: Any) -> Any:
        with transactions.transaction(open_) as tx:
            return answer(tx, params)

    async def standing_async(params: Any, _: Any) -> Any:
        async with transactions.async_transaction(open_) as db:
            return await db.run_sync(lambda within: answer(transactions.within(within), params))

    return standing_async if is_async else standing
