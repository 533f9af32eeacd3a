"""The services of the random graphs: those of oracle.py, which also write down what they were told, and may be told to
refuse an undo once, or to die.

Real processes run them: `sagastream service support.graph_services:alpha`, with ORACLE_FILE in the environment.
"""

import json
import os
import signal
import sqlite3
from collections import defaultdict
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from sagastream import Context, Reject, Service
from support import oracle, random_graphs

_SCHEMA: Final = """
    CREATE TABLE IF NOT EXISTS told (seq INTEGER PRIMARY KEY, key TEXT, attempt INTEGER, told TEXT);
    CREATE INDEX IF NOT EXISTS told_key ON told (key);
"""


def prepare(file: Path) -> None:
    with closing(sqlite3.connect(file, timeout=60, isolation_level=None)) as db:
        db.executescript(_SCHEMA)


def told(file: Path) -> dict[str, list[Any]]:
    """What the handlers were told, by idempotency key, each time that one was called."""
    found: dict[str, list[Any]] = defaultdict(list)
    with closing(sqlite3.connect(file, timeout=60)) as db:
        for key, text in db.execute("SELECT key, told FROM told ORDER BY seq"):
            found[key].append(json.loads(text))
    return found


def _told(params: Any, context: Context, **more: Any) -> bool:
    """Write it down. Returns whether the handler was called for the first time."""
    text = json.dumps({"params": params, "input": context.input} | more)
    db = oracle._db()
    [before] = db.execute("SELECT count(*) FROM told WHERE key = ?", (context.key,)).fetchone()
    db.execute("INSERT INTO told (key, attempt, told) VALUES (?, ?, ?)", (context.key, context.attempt, text))
    return not before


def _do(params: Any, context: Context) -> Any:
    is_first, how = _told(params, context), params["how"]
    if is_first and how == "die before":
        os.kill(os.getpid(), signal.SIGKILL)
    oracle.do(params, context)
    if is_first and how == "die after":
        os.kill(os.getpid(), signal.SIGKILL)
    return random_graphs.result_of(context.saga_id, context.step, params)


def _undo(params: Any, context: Context) -> None:
    is_first = _told(params, context, undo=context.undo, result=context.result)
    if params["undo"] == random_graphs.REFUSE_ONCE and is_first:
        raise Reject("not today")
    oracle.undo(params, context)


def _service(name: str) -> Service:
    service = Service(name, lease_ms=int(os.environ.get("ORACLE_LEASE_MS", "30000")))
    service.command("Do", compensation="Undo")(_do)
    service.compensation("Undo")(_undo)
    service.command(random_graphs.KEEP, compensation=None)(_do)
    return service


alpha, beta, gamma = map(_service, oracle.NAMES)
