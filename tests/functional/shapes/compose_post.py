"""A post is put together from four parts that come from four places, and is then kept in three."""

import sqlite3
from typing import Any

from sagastream import Context, Effects, Service

parts, storage = Service("parts"), Service("storage")


def connect() -> sqlite3.Connection:
    return sqlite3.connect("compose_post.db", timeout=30)


effects = Effects(connect)
effects.create_table()
with connect() as db:
    db.execute("CREATE TABLE IF NOT EXISTS kept (place TEXT, owner TEXT, post TEXT)")


@parts.command("Text", compensation=None)
def text(params: Any, context: Context) -> Any:
    mentions = [word.removeprefix("@") for word in params["text"].split() if word.startswith("@")]
    return {"text": params["text"], "mentions": mentions}


@parts.command("Creator", compensation=None)
def creator(params: Any, context: Context) -> Any:
    return {"user": params["user"], "name": params["user"].title()}


@parts.command("Media", compensation=None)
def media(params: Any, context: Context) -> Any:
    return [{"id": one, "type": "image"} for one in params["media"]]


@parts.command("Id", compensation=None)
def unique_id(params: Any, context: Context) -> Any:
    return f"post-{context.saga_id}"


@storage.command("Keep", compensation="Drop")
@effects.once
def keep(params: Any, context: Context, db: sqlite3.Connection) -> None:
    db.execute("INSERT INTO kept VALUES (:place, :owner, :post)", params | {"post": str(params["post"])})


@storage.compensation("Drop")
@effects.undo
def drop(params: Any, context: Context, db: sqlite3.Connection) -> None:
    row = params | {"post": str(params["post"])}
    db.execute("DELETE FROM kept WHERE place = :place AND owner = :owner AND post = :post", row)
