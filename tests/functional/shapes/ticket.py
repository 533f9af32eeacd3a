"""A kitchen's ticket, the card as the point of no return, two confirmations. The kitchen says what it costs."""

import sqlite3
from typing import Any

from sagastream import Context, Effects, Reject, Service

kitchen, accounting, orders = Service("kitchen"), Service("accounting"), Service("orders")
PRICES = {"soup": 5, "rice": 7}


def connect() -> sqlite3.Connection:
    return sqlite3.connect("ticket.db", timeout=30)


effects = Effects(connect)
effects.create_table()
with connect() as db:
    db.execute("CREATE TABLE IF NOT EXISTS tickets (id TEXT PRIMARY KEY, total INTEGER, state TEXT)")
    db.execute("CREATE TABLE IF NOT EXISTS cards (card TEXT, total INTEGER)")
    db.execute("CREATE TABLE IF NOT EXISTS orders (ticket TEXT PRIMARY KEY, total INTEGER)")


@kitchen.command("CreateTicket", compensation="CancelTicket")
@effects.once
def create(params: Any, context: Context, db: sqlite3.Connection) -> Any:
    total = sum(PRICES[dish] for dish in params["dishes"])
    db.execute("INSERT INTO tickets VALUES (?, ?, 'PENDING')", (context.key, total))
    return {"ticket": context.key, "total": total}


@kitchen.compensation("CancelTicket")
@effects.undo
def cancel(params: Any, context: Context, db: sqlite3.Connection) -> None:
    db.execute("UPDATE tickets SET state = 'CANCELLED' WHERE id = ?", (context.transaction_key,))


@accounting.command("AuthoriseCard", compensation=None)
@effects.once
def authorise(params: Any, context: Context, db: sqlite3.Connection) -> None:
    if params["card"] == "expired":
        raise Reject("card_expired")
    db.execute("INSERT INTO cards VALUES (:card, :total)", params)


@kitchen.command("ConfirmTicket", compensation=None)
@effects.once
def confirm(params: Any, context: Context, db: sqlite3.Connection) -> None:
    db.execute("UPDATE tickets SET state = 'CONFIRMED' WHERE id = :ticket AND total = :total", params)


@orders.command("ApproveOrder", compensation=None)
@effects.once
def approve(params: Any, context: Context, db: sqlite3.Connection) -> None:
    db.execute("INSERT INTO orders VALUES (:ticket, :total)", params)
