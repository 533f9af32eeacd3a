"""A warehouse: one step for each item of an order, all at once; then all of them go into one box."""

import sqlite3
from typing import Any

from sagastream import Context, Effects, Reject, Service

warehouse = Service("warehouse")


def connect() -> sqlite3.Connection:
    return sqlite3.connect("picking.db", timeout=30)


effects = Effects(connect)
effects.create_table()
with connect() as db:
    db.execute("CREATE TABLE IF NOT EXISTS shelf (sku TEXT PRIMARY KEY, quantity INTEGER)")
    db.execute("CREATE TABLE IF NOT EXISTS boxes (id TEXT PRIMARY KEY, parts TEXT)")
    db.executemany("INSERT OR IGNORE INTO shelf VALUES (?, 5)", [("pen",), ("cup",), ("hat",)])


@warehouse.command("Open", compensation="Close")
@effects.once
def open_box(params: Any, context: Context, db: sqlite3.Connection) -> Any:
    db.execute("INSERT INTO boxes VALUES (?, 'nothing yet')", (context.saga_id,))
    return {"box": context.saga_id}


@warehouse.compensation("Close")
@effects.undo
def close_box(params: Any, context: Context, db: sqlite3.Connection) -> None:
    db.execute("DELETE FROM boxes WHERE id = ?", (context.saga_id,))


@warehouse.command("Pick", compensation="PutBack")
@effects.once
def pick(params: Any, context: Context, db: sqlite3.Connection) -> Any:
    taken = "UPDATE shelf SET quantity = quantity - :quantity WHERE sku = :sku AND quantity >= :quantity"
    if db.execute(taken, params).rowcount != 1:
        raise Reject({"not_enough": params["sku"]})
    return f"{params['line'] + 1}: {params['quantity']} {params['sku']}"


@warehouse.compensation("PutBack")
@effects.undo
def put_back(params: Any, context: Context, db: sqlite3.Connection) -> None:
    db.execute("UPDATE shelf SET quantity = quantity + :quantity WHERE sku = :sku", params)


@warehouse.command("Pack", compensation=None)
@effects.once
def pack(params: Any, context: Context, db: sqlite3.Connection) -> None:
    db.execute("UPDATE boxes SET parts = ? WHERE id = ?", (", ".join(params["parts"]), params["box"]))
