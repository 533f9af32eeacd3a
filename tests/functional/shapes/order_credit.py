"""An order, the customer's credit as the point of no return, the approval. A rejected order says why."""

import sqlite3
from typing import Any

from sagastream import Context, Effects, Reject, Service

orders, customers = Service("orders"), Service("customers")
LIMIT = 1000


def connect() -> sqlite3.Connection:
    return sqlite3.connect("order_credit.db", timeout=30)


effects = Effects(connect)
effects.create_table()
with connect() as db:
    db.execute("CREATE TABLE IF NOT EXISTS orders (id TEXT PRIMARY KEY, total INTEGER, state TEXT, why TEXT)")
    db.execute("CREATE TABLE IF NOT EXISTS credit (order_id TEXT PRIMARY KEY, customer TEXT, total INTEGER)")


@orders.command("CreateOrder", compensation="RejectOrder")
@effects.once
def create(params: Any, context: Context, db: sqlite3.Connection) -> Any:
    db.execute("INSERT INTO orders VALUES (?, ?, 'PENDING', NULL)", (context.saga_id, params["total"]))
    return {"order_id": context.saga_id}


@orders.compensation("RejectOrder")
@effects.undo
def reject(params: Any, context: Context, db: sqlite3.Connection) -> None:
    told = (context.undo["why"], context.result["order_id"])
    db.execute("UPDATE orders SET state = 'REJECTED', why = ? WHERE id = ?", told)


@customers.command("ReserveCredit", compensation=None)
@effects.once
def reserve(params: Any, context: Context, db: sqlite3.Connection) -> None:
    taken = "SELECT coalesce(sum(total), 0) FROM credit WHERE customer = ?"
    [used] = db.execute(taken, (params["customer"],)).fetchone()
    if used + params["total"] > LIMIT:
        raise Reject({"code": "credit_limit", "left": LIMIT - used})
    db.execute("INSERT INTO credit VALUES (:order_id, :customer, :total)", params)


@orders.command("ApproveOrder", compensation=None)
@effects.once
def approve(params: Any, context: Context, db: sqlite3.Connection) -> None:
    db.execute("UPDATE orders SET state = 'APPROVED' WHERE id = ?", (params["order_id"],))
