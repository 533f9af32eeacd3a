"""Stock, payment, and a parcel that is called back by its tracking number, which only its result says."""

import sqlite3
from typing import Any

from sagastream import Context, Effects, Service

shop, carrier = Service("shop"), Service("carrier")


def connect() -> sqlite3.Connection:
    return sqlite3.connect("shipping.db", timeout=30)


effects = Effects(connect)
effects.create_table()
with connect() as db:
    db.execute("CREATE TABLE IF NOT EXISTS log (seq INTEGER PRIMARY KEY, saga_id TEXT, what TEXT)")
    db.execute("CREATE TABLE IF NOT EXISTS parcels (tracking TEXT PRIMARY KEY, state TEXT)")


@effects.once
def do(params: Any, context: Context, db: sqlite3.Connection) -> None:
    db.execute("INSERT INTO log (saga_id, what) VALUES (?, ?)", (context.saga_id, f"do {params['what']}"))


@effects.undo
def undo(params: Any, context: Context, db: sqlite3.Connection) -> None:
    db.execute("INSERT INTO log (saga_id, what) VALUES (?, ?)", (context.saga_id, f"undo {params['what']}"))


shop.command("Do", compensation="Undo")(do)
shop.compensation("Undo")(undo)


@carrier.command("Ship", compensation="CallBack")
@effects.once
def ship(params: Any, context: Context, db: sqlite3.Connection) -> Any:
    tracking = f"T-{context.saga_id}"
    db.execute("INSERT INTO parcels VALUES (?, 'sent')", (tracking,))
    return {"tracking": tracking, "label": {"to": params["to"]}}


@carrier.compensation("CallBack")
@effects.undo
def call_back(params: Any, context: Context, db: sqlite3.Connection) -> None:
    db.execute("UPDATE parcels SET state = 'called back' WHERE tracking = ?", (context.undo["tracking"],))
