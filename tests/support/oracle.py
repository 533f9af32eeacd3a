"""Services that write down their effects outside the broker, in a SQLite file: what really happened.

Real processes run them: `sagastream service support.oracle:alpha`, with ORACLE_FILE in the environment. An effect and
its idempotency key go into one transaction. A compensation removes what it finds and leaves a tombstone, so the effect
cannot come after it. A log that only grows says in which order things were done, and whether anything was done twice.
"""

import os
import sqlite3
import time
from collections import defaultdict
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

from sagastream import Context, Reject, Service

NAMES: Final = ("alpha", "beta", "gamma")

#: What the params of a step may ask of its transaction under "how". Those in FAILING never lead to an ok.
WORKING: Final = ("ok", "slow", "raise before", "raise after")
FAILING: Final = ("reject", "always raise before", "always raise after")
#: Its first attempt comes to its end after the step has timed out. A later one is refused, unless the first was done.
LATE: Final = "late, then refuse"
#: … and of its compensation under "undo".
UNDOING: Final = ("ok", "slow", "raise before", "raise after")

_SLOW_S: Final = 0.015
_LATE_S: Final = 0.8
_SCHEMA: Final = """
    CREATE TABLE IF NOT EXISTS effects (key TEXT PRIMARY KEY) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS tombstones (key TEXT PRIMARY KEY) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS rejections (key TEXT PRIMARY KEY) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS log (seq INTEGER PRIMARY KEY AUTOINCREMENT, what TEXT, key TEXT);
    CREATE INDEX IF NOT EXISTS log_key ON log (key, what);
"""


def prepare(file: Path) -> None:
    """Make the file, empty."""
    with closing(_open(str(file))) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(_SCHEMA)


def is_free(file: Path) -> bool:
    """Whether no process stands still inside a transaction."""
    with closing(_open(str(file), timeout_s=1)) as db:
        try:
            db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        db.execute("ROLLBACK")
    return True


def _open(file: str, *, timeout_s: float = 60) -> sqlite3.Connection:
    # A service that is stopped inside a transaction keeps the others waiting.
    db = sqlite3.connect(file, timeout=timeout_s, isolation_level=None)
    # Only processes are killed here, never the machine: so what was committed is there.
    db.execute("PRAGMA synchronous = OFF")
    return db


@cache
def _db() -> sqlite3.Connection:
    return _open(os.environ["ORACLE_FILE"])


def _called(db: sqlite3.Connection, what: str, key: str) -> int:
    """Log a call. Returns how many there were before."""
    [before] = db.execute("SELECT count(*) FROM log WHERE key = ? AND what = ?", (key, what)).fetchone()
    db.execute("INSERT INTO log (what, key) VALUES (?, ?)", (what, key))
    return int(before)


def do(params: Any, context: Context) -> Any:
    how, key, db = params["how"], context.key, _db()
    if how == "slow":
        time.sleep(_SLOW_S)
    if how == LATE and context.attempt == 1:
        time.sleep(_LATE_S)
    with db:
        db.execute("BEGIN IMMEDIATE")
        calls = _called(db, "called to do", key)
        undone = db.execute("SELECT 1 FROM tombstones WHERE key = ?", (key,)).fetchone()
        too_early = how == "always raise before" or (how == "raise before" and not calls)
        refuses = how == "reject" or (how == "refuse once" and context.attempt == 1) or _is_rejected(db, how, context)
        if not (undone or too_early or refuses) and (
            db.execute("INSERT OR IGNORE INTO effects VALUES (?)", (key,)).rowcount == 1
        ):
            db.execute("INSERT INTO log (what, key) VALUES ('did', ?)", (key,))
    if undone:
        raise Reject("undone before it came")
    if refuses:
        raise Reject("as asked")
    if too_early or how == "always raise after" or (how == "raise after" and not calls):
        raise RuntimeError("as asked")
    if how == "slow":
        time.sleep(_SLOW_S)
    return {"key": key}


def _is_rejected(db: sqlite3.Connection, how: str, context: Context) -> bool:
    """Whether an attempt was rejected for good. It stays rejected, as README asks of a service."""
    if how == LATE and context.attempt > 1 and not context.retried:
        done = "SELECT ? FROM effects WHERE key = ?"
        db.execute(f"INSERT OR IGNORE INTO rejections SELECT ? WHERE NOT EXISTS ({done})", (context.key,) * 3)
    return db.execute("SELECT 1 FROM rejections WHERE key = ?", (context.key,)).fetchone() is not None


def undo(params: Any, context: Context) -> None:
    how, key, db = params["undo"], context.transaction_key, _db()
    if how == "slow":
        time.sleep(_SLOW_S)
    with db:
        db.execute("BEGIN IMMEDIATE")
        calls = _called(db, "called to undo", key)
        too_early = how == "raise before" and not calls
        if not too_early:
            db.execute("INSERT OR IGNORE INTO tombstones VALUES (?)", (key,))
            if db.execute("DELETE FROM effects WHERE key = ?", (key,)).rowcount == 1:
                db.execute("INSERT INTO log (what, key) VALUES ('undid', ?)", (key,))
    if too_early or (how == "raise after" and not calls):
        raise RuntimeError("as asked")
    if how == "slow":
        time.sleep(_SLOW_S)


def _service(name: str) -> Service:
    service = Service(name, lease_ms=int(os.environ.get("ORACLE_LEASE_MS", "30000")))
    service.command("Do", compensation="Undo")(do)
    service.compensation("Undo")(undo)
    return service


alpha, beta, gamma = map(_service, NAMES)


@dataclass(slots=True)
class Record:
    """What really happened to one saga's steps, by their numbers."""

    effects: set[int] = field(default_factory=set)  # the effects that are there
    did: list[int] = field(default_factory=list)  # in the order in which they were done
    undid: list[int] = field(default_factory=list)  # in the order in which they were undone
    calls: dict[int, int] = field(default_factory=lambda: defaultdict(int))  # of the transaction's handler


def records(file: Path) -> dict[str, Record]:
    """What really happened, by saga."""
    found: dict[str, Record] = defaultdict(Record)
    with closing(_open(str(file))) as db:
        for (key,) in db.execute("SELECT key FROM effects"):
            saga_id, step = _split(key)
            found[saga_id].effects.add(step)
        for what, key in db.execute("SELECT what, key FROM log ORDER BY seq"):
            saga_id, step = _split(key)
            if what == "did":
                found[saga_id].did.append(step)
            elif what == "undid":
                found[saga_id].undid.append(step)
            elif what == "called to do":
                found[saga_id].calls[step] += 1
    return found


def _split(key: str) -> tuple[str, int]:
    saga_id, step, _ = key.rsplit("/", 2)
    return saga_id, int(step)
