"""How bulks are shown: as a line of a list, in full, and as JSON."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

from sagastream.console import printable
from sagastream.core.bulks import Bulk, BulkResult, BulkState
from sagastream.core.durations import spoken
from sagastream.store.bulks import told
from sagastream.store.columns import iso
from sagastream.store.operations import Operation
from sagastream_bridge.inspection.formatting import when

#: So many sagas are named that are parked now.
_PARKED_TOLD: Final = 5


def row(bulk: Bulk, now_ms: int) -> str:
    """A bulk on one line of a list."""
    by = f" by {bulk.actor}" if bulk.actor else ""
    ago = spoken(now_ms - bulk.begun_ms)
    return printable(f"{bulk.bulk_id}  {bulk.state:<8}{ago:>6}  {bulk.verb}: {progress(bulk)}{by}: {bulk.reason}")


def progress(bulk: Bulk) -> str:
    """How far it has come. That a saga has taken the request does not say what comes of it."""
    total = f"{bulk.total}" if bulk.total_is_exact else f"{bulk.total} or more"
    refused = f", {bulk.refused} refused" if bulk.refused else ""
    waits = f", {len(bulk.open)} not answered yet" if bulk.open else ""
    return f"{bulk.done} taken{refused}{waits}; {bulk.found} found of {total}"


def lines(
    bulk: Bulk,
    refused: Sequence[BulkResult],
    limit: int,
    now_ms: int,
    turns: Sequence[Operation] = (),
    *,
    parked_now: Sequence[str] = (),
) -> Iterator[str]:
    """A bulk in full. `refused`: what was refused of it; the newest of them are shown. `turns`: who has paused, resumed
    and stopped it. `parked_now`: the sagas that have taken the request, and are parked now."""
    now = " now" if bulk.now else ""
    said = [
        ("bulk", f"{bulk.bulk_id}  {bulk.state}"),
        ("asks", f"{bulk.verb}{now} of sagas with {told(bulk.filter)}"),
        ("reason", bulk.reason),
        ("by", bulk.actor or "somebody"),
        ("begun", when(bulk.begun_ms, now_ms)),
        *(_turn(one) for one in turns),
        ("so far", f"{progress(bulk)}; at most {bulk.rate} a second"),
    ]
    if parked_now:
        ids = ", ".join(parked_now[:_PARKED_TOLD]) + (" …" if len(parked_now) > _PARKED_TOLD else "")
        said.append(("parked", f"{len(parked_now)} of those that took it are parked now: {ids}"))
    if bulk.ended_ms is not None:
        said.append(("ended", when(bulk.ended_ms, now_ms)))
    elif bulk.state is BulkState.RUNNING:
        said.append(("moved", when(bulk.updated_ms, now_ms)))
    if bulk.last_error is not None and not bulk.ended:
        said.append(("error", f"{bulk.last_error}; it is tried again"))
    yield from (printable(f"{name:<9}{text}") for name, text in said)
    if refused and limit:
        shown = refused[-limit:]
        left = f", the newest {len(shown)} of {len(refused)}" if len(shown) < len(refused) else ""
        yield f"refused{left}:"
        yield from (printable(f"  {one.saga_id}  {one.refused}".rstrip()) for one in shown)


def _turn(one: Operation) -> tuple[str, str]:
    done = {"bulk pause": "paused", "bulk resume": "resumed", "bulk stop": "stopped"}.get(one.verb, one.verb)
    return done, f"{iso(one.at_ms)}  by {one.actor or 'somebody'}" + (f": {one.reason}" if one.reason else "")


def as_json(bulk: Bulk, turns: Sequence[Operation] | None = None, parked_now: Sequence[str] | None = None) -> str:
    """A bulk as one line of JSON. `turns`, `parked_now`: as for `lines`; None: that was not looked for."""
    said: dict[str, Any] = {name: getattr(bulk, name) for name in Bulk.__struct_fields__}
    said["filter"] = bulk.filter.body()
    said |= {"verb": str(bulk.verb), "state": str(bulk.state), "open": [one.saga_id for one in bulk.open]}
    for name in ("begun", "updated", "ended"):
        ms = said.pop(f"{name}_ms")
        said[f"{name}_at"] = None if ms is None else iso(ms)
    del said["cursor"]
    if turns is not None:
        said["turns"] = [
            {"verb": one.verb.removeprefix("bulk "), "at": iso(one.at_ms), "actor": one.actor, "reason": one.reason}
            for one in turns
        ]
    if parked_now is not None:
        said["parked_now"] = len(parked_now)
    return json.dumps(said)


def result_as_json(result: BulkResult) -> str:
    """What has come of one request, as one line of JSON."""
    return json.dumps({"saga_id": result.saga_id or None, "done": result.refused is None, "refused": result.refused})
