"""Parts of a virtual machine, which are made, joined, and taken apart again in the opposite order."""

import sqlite3
from typing import Any

from sagastream import Context, Effects, Reject, Service

cloud = Service("cloud")


def connect() -> sqlite3.Connection:
    return sqlite3.connect("instance.db", timeout=30)


effects = Effects(connect)
effects.create_table()
with connect() as db:
    db.execute("CREATE TABLE IF NOT EXISTS log (seq INTEGER PRIMARY KEY, saga_id TEXT, what TEXT)")


@effects.once
def make(params: Any, context: Context, db: sqlite3.Connection) -> Any:
    if params.get("size", 0) > 100:
        raise Reject("no_server_is_so_large")
    db.execute("INSERT INTO log (saga_id, what) VALUES (?, ?)", (context.saga_id, f"make {params['part']}"))
    return {"id": f"{params['part']}-{context.step}"}


@effects.undo
def take_apart(params: Any, context: Context, db: sqlite3.Connection) -> None:
    db.execute("INSERT INTO log (saga_id, what) VALUES (?, ?)", (context.saga_id, f"undo {params['part']}"))


cloud.command("Make", compensation="TakeApart")(make)
cloud.compensation("TakeApart")(take_apart)
