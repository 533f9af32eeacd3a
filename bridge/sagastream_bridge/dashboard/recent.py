"""What the sagas that ended last say of services and definitions: how long steps take, what fails, what is in use.

No index has that, so a sample is read, of a bounded number of sagas.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from msgspec import Struct

from sagastream.broker.exchange import Exchange
from sagastream.broker.wire import unless_refused
from sagastream.core.phases import Phase
from sagastream.core.saga import SagaState
from sagastream.core.step_state import Step, StepStatus
from sagastream.store.keys import StoreKeys
from sagastream.store.sagas import load

#: So many of the sagas that ended last are read, and so many of those that are due next.
MOST_ENDED: Final = 300
MOST_LIVE: Final = 200


class CommandFigures(Struct, frozen=True, kw_only=True):
    """One command of a service in the sample."""

    command: str
    count: int  # how often it was answered for good
    p50_ms: int  # of those
    p95_ms: int
    failed: int  # how many of its steps have failed, by an answer
    given_up: int  # how many of its steps went without an answer that says whether they were done
    again: int  # how many were sent more than once
    error: str | None  # the error that came most often, as JSON


class InUse(Struct, frozen=True, kw_only=True):
    """A version of a definition in the sample."""

    live: int
    completed: int
    aborted: int


class Recent(Struct, frozen=True, kw_only=True):
    """What the sample says."""

    looked_at: int
    commands: Mapping[str, Sequence[CommandFigures]]  # by service, those with the most answers first
    definitions: Mapping[tuple[str, int], InUse]  # by name and version


def read(keys: StoreKeys) -> Exchange[Recent]:
    """Read the sample."""
    share = len(keys.partitions)
    ended, live = max(1, MOST_ENDED // share), max(1, MOST_LIVE // share)
    pages = yield [
        *(("ZREVRANGEBYSCORE", partition.ended, "+inf", "-inf", "LIMIT", 0, ended) for partition in keys.partitions),
        *(("ZRANGE", partition.timers, 0, live - 1) for partition in keys.partitions),
    ]
    ids = [one.decode(errors="backslashreplace") for page in pages for one in unless_refused(page, ())]
    states, _ = yield from load(keys, ids)
    return of(state for state in states.values() if isinstance(state, SagaState))


def of(states: Iterable[SagaState]) -> Recent:
    """What these sagas say."""
    steps: dict[tuple[str, str], list[Step]] = {}
    uses: dict[tuple[str, int], Counter[str]] = {}
    looked_at = 0
    for state in states:
        looked_at += 1
        for step in state.steps:
            if step.sent_ms is not None and step.definition.shape.sends:
                steps.setdefault((step.definition.service, step.definition.transaction), []).append(step)
        if (by := state.definition) is not None:
            status = str(state.status).lower() if state.ended else "live"
            uses.setdefault((by.name, by.version), Counter())[status] += 1
    commands: dict[str, list[CommandFigures]] = {}
    for (service, command), those in steps.items():
        commands.setdefault(service, []).append(_figures(command, those))
    return Recent(
        looked_at=looked_at,
        commands={
            service: sorted(found, key=lambda one: (-one.count, one.command)) for service, found in commands.items()
        },
        definitions={
            one: InUse(live=count["live"], completed=count["completed"], aborted=count["aborted"])
            for one, count in uses.items()
        },
    )


def _figures(command: str, steps: Sequence[Step]) -> CommandFigures:
    took = sorted(
        step.answered_ms - step.sent_ms
        for step in steps
        if step.answered_ms is not None and step.sent_ms is not None and not step.unknown
    )
    errors = Counter(step.error for step in steps if step.error is not None)
    return CommandFigures(
        command=command,
        count=len(took),
        p50_ms=_quantile(took, 0.5),
        p95_ms=_quantile(took, 0.95),
        failed=sum(_has_failed(step) for step in steps),
        given_up=sum(_is_given_up(step) for step in steps),
        again=sum(step.attempt > 1 for step in steps),
        error=errors.most_common(1)[0][0].decode(errors="backslashreplace") if errors else None,
    )


def _has_failed(step: Step) -> bool:
    return (step.status is StepStatus.FAILED or step.phase is Phase.PARKED) and not step.unknown


def _is_given_up(step: Step) -> bool:
    """Not one that is tried again, though the outcome of an attempt is unknown."""
    return step.unknown and (step.answered_ms is not None or step.phase is Phase.PARKED)


def _quantile(ordered: Sequence[int], part: float) -> int:
    """At most this part of the values is greater; 0 if there are none."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else 0
