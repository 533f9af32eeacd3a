"""Three services that book and cancel, for several shapes of a trip."""

import json
import sqlite3
from typing import Any

from sagastream import Context, Effects, Reject, Service


def connect() -> sqlite3.Connection:
    return sqlite3.connect("bookings.db", timeout=30)


effects = Effects(connect)
effects.create_table()
with connect() as db:
    db.execute("CREATE TABLE IF NOT EXISTS bookings (key TEXT PRIMARY KEY, what TEXT, told TEXT, state TEXT)")


@effects.once
def book(params: Any, context: Context, db: sqlite3.Connection) -> Any:
    if params.get("to") == "Atlantis":
        raise Reject("no_such_place")
    row = (context.key, params["what"], json.dumps(params))
    db.execute("INSERT INTO bookings VALUES (?, ?, ?, 'booked')", row)
    return {"id": f"{params['what']}-{context.saga_id}"}


@effects.undo
def cancel(params: Any, context: Context, db: sqlite3.Connection) -> None:
    db.execute("UPDATE bookings SET state = 'cancelled' WHERE key = ?", (context.transaction_key,))


def booking(name: str) -> Service:
    service = Service(name)
    service.command("Book", compensation="Cancel")(book)
    service.compensation("Cancel")(cancel)
    return service


transport, rooms, desk = booking("transport"), booking("rooms"), booking("desk")
