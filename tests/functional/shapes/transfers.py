"""Accounts of two banks: money goes out of two, then into two others. No account goes below zero."""

import sqlite3
import time
from typing import Any

from sagastream import Context, Effects, Reject, Service

north, south = Service("north"), Service("south")
OPEN = ("a", "b", "c", "d")


def connect() -> sqlite3.Connection:
    return sqlite3.connect("transfers.db", timeout=30)


effects = Effects(connect)
effects.create_table()
with connect() as db:
    db.execute("CREATE TABLE IF NOT EXISTS accounts (name TEXT PRIMARY KEY, money INTEGER)")
    db.executemany("INSERT OR IGNORE INTO accounts VALUES (?, 100)", [(name,) for name in OPEN])


def move(db: sqlite3.Connection, name: str, amount: int) -> None:
    statement = "UPDATE accounts SET money = money + ? WHERE name = ? AND money + ? >= 0"
    if db.execute(statement, (amount, name, amount)).rowcount != 1:
        raise Reject(f"{name}: no such account, or too little money")


@effects.once
def take(params: Any, context: Context, db: sqlite3.Connection) -> None:
    move(db, params["from"], -params["amount"])


@effects.undo
def give_back(params: Any, context: Context, db: sqlite3.Connection) -> None:
    move(db, params["from"], params["amount"])


@effects.once
def pay(params: Any, context: Context, db: sqlite3.Connection) -> None:
    move(db, params["to"], params["amount"])


@effects.undo
def take_back(params: Any, context: Context, db: sqlite3.Connection) -> None:
    move(db, params["to"], -params["amount"])


def slow(params: Any, context: Context) -> Any:
    """A payment that is still under way when the one beside it has failed."""
    time.sleep(0.2)
    return pay(params, context)


for bank, paying in ((north, pay), (south, slow)):
    bank.command("Take", compensation="GiveBack")(take)
    bank.compensation("GiveBack")(give_back)
    bank.command("Pay", compensation="TakeBack")(paying)
    bank.compensation("TakeBack")(take_back)
