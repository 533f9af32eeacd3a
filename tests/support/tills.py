"""Services that keep their effects with `Effects` and say which stand; each in a SQLite file in the folder TILLS.

`choosy` keeps no rejection: it refuses every command while the file `refuse` is in that folder.
"""

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from sagastream import Context, Effects, Reject, Service


def _service(name: str) -> Service:
    file = Path(os.environ["TILLS"]) / f"{name}.db"
    effects = Effects(lambda: sqlite3.connect(file, timeout=30))
    effects.create_table()
    with closing(sqlite3.connect(file, timeout=30)) as made:
        made.execute("CREATE TABLE IF NOT EXISTS ledger (key TEXT, by INTEGER)")
    service = Service(name, lease_ms=2000)

    @effects.once
    def do(params: Any, context: Context, db: sqlite3.Connection) -> Any:
        db.execute("INSERT INTO ledger VALUES (?, 1)", (context.key,))
        return {"key": context.key}

    @effects.undo
    def undo(params: Any, context: Context, db: sqlite3.Connection) -> None:
        db.execute("INSERT INTO ledger VALUES (?, -1)", (context.transaction_key,))

    def choosy(params: Any, context: Context) -> Any:
        if (Path(os.environ["TILLS"]) / "refuse").exists():
            raise Reject("not now")
        return do(params, context)

    service.command("Do", compensation="Undo")(choosy if name == "choosy" else do)
    service.compensation("Undo")(undo)
    service.standing(effects.standing)
    return service


def standing(folder: Path) -> set[str]:
    """The keys of the effects that really stand, whichever service they are of."""
    found: set[str] = set()
    for file in folder.glob("*.db"):
        with closing(sqlite3.connect(file, timeout=30)) as db:
            found |= {key for (key,) in db.execute("SELECT key FROM sagastream_effects WHERE state = 'done'")}
    return found


def not_once(folder: Path) -> set[str]:
    """The keys of the effects that were done more than once, or undone more often than done."""
    found: set[str] = set()
    wrong = "SELECT key FROM ledger GROUP BY key HAVING sum(by) NOT IN (0, 1) OR sum(by = 1) != 1"
    for file in folder.glob("*.db"):
        with closing(sqlite3.connect(file, timeout=30)) as db:
            found |= {key for (key,) in db.execute(wrong)}
    return found


if "TILLS" in os.environ:
    early, late, choosy = map(_service, ("early", "late", "choosy"))
