"""A loan: who scores well gets it at once, anybody else only if a clerk has looked at it."""

import sqlite3
from typing import Any

from sagastream import Context, Effects, Service

bank = Service("bank")


def connect() -> sqlite3.Connection:
    return sqlite3.connect("loan.db", timeout=30)


effects = Effects(connect)
effects.create_table()
with connect() as db:
    db.execute("CREATE TABLE IF NOT EXISTS log (seq INTEGER PRIMARY KEY, saga_id TEXT, what TEXT)")


def log(db: sqlite3.Connection, context: Context, what: str) -> None:
    db.execute("INSERT INTO log (saga_id, what) VALUES (?, ?)", (context.saga_id, what))


@bank.command("Score", compensation=None)
@effects.once
def score(params: Any, context: Context, db: sqlite3.Connection) -> Any:
    log(db, context, "score")
    return {"score": params["income"] // 100}


@bank.command("Grant", compensation="Withdraw")
@effects.once
def grant(params: Any, context: Context, db: sqlite3.Connection) -> Any:
    log(db, context, f"grant at {params['rate']}")
    return {"rate": params["rate"]}


@bank.compensation("Withdraw")
@effects.undo
def withdraw(params: Any, context: Context, db: sqlite3.Connection) -> None:
    log(db, context, "withdraw")


@bank.command("PayOut", compensation=None)
@effects.once
def pay_out(params: Any, context: Context, db: sqlite3.Connection) -> None:
    log(db, context, f"pay out at {params['at once'] or params['reviewed']}")
