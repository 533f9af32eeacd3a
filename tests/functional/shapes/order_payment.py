"""An order, its payment, its stock: each may be refused, may break, or may not answer."""

import sqlite3
import time
from typing import Any

from sagastream import Context, Effects, Reject, Service

orders, payment, inventory = Service("orders"), Service("payment"), Service("inventory")


def connect() -> sqlite3.Connection:
    return sqlite3.connect("order_payment.db", timeout=30)


effects = Effects(connect)
effects.create_table()
with connect() as db:
    db.execute("CREATE TABLE IF NOT EXISTS log (seq INTEGER PRIMARY KEY, saga_id TEXT, what TEXT)")


def log(db: sqlite3.Connection, context: Context, what: str) -> None:
    db.execute("INSERT INTO log (saga_id, what) VALUES (?, ?)", (context.saga_id, what))


@orders.command("CreateOrder", compensation="CancelOrder")
@effects.once
def create(params: Any, context: Context, db: sqlite3.Connection) -> Any:
    if params["quantity"] < 1:
        raise Reject("nothing_ordered")
    log(db, context, "ordered")
    return {"order_id": context.saga_id, "total": params["quantity"] * 10}


@orders.compensation("CancelOrder")
@effects.undo
def cancel(params: Any, context: Context, db: sqlite3.Connection) -> None:
    log(db, context, f"cancelled: {context.undo}")


@effects.once
def charge(params: Any, context: Context, db: sqlite3.Connection) -> Any:
    if params["card"] == "declined":
        raise Reject("card_declined")
    log(db, context, f"charged {params['total']}")
    return {"payment_id": f"p-{context.saga_id}"}


@payment.command("ChargePayment", compensation="RefundPayment")
def charge_and_answer(params: Any, context: Context) -> Any:
    result = charge(params, context)
    if params["card"] == "the line goes dead":
        raise ConnectionError("it was charged, and nobody knows")
    return result


@payment.compensation("RefundPayment")
@effects.undo
def refund(params: Any, context: Context, db: sqlite3.Connection) -> None:
    if params["card"] == "refunds are slow" and context.attempt == 1:
        raise TimeoutError("the bank is closed")
    log(db, context, "refunded")


@effects.once
def reserve(params: Any, context: Context, db: sqlite3.Connection) -> Any:
    if params["sku"] == "sold out":
        raise Reject("out_of_stock")
    if params["sku"] == "a broken row":
        raise ValueError("no such column")
    log(db, context, "reserved")
    return {"shelf": 7}


@inventory.command("ReserveStock", compensation="ReleaseStock")
def look_and_reserve(params: Any, context: Context) -> Any:
    if params["sku"] == "far away":
        time.sleep(2)
    return reserve(params, context)


@inventory.compensation("ReleaseStock")
@effects.undo
def release(params: Any, context: Context, db: sqlite3.Connection) -> None:
    log(db, context, "released")
