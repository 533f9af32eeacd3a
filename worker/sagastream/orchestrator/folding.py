"""What a turn makes of its inputs: parts that are committed one after the other, and a change for each saga."""

from collections.abc import Mapping, Sequence
from typing import Final

from sagastream.core.commands import Reply
from sagastream.core.decision import decide
from sagastream.core.messages import Begin, Due
from sagastream.core.saga import Found
from sagastream.core.transitions import Moment
from sagastream.orchestrator.change import Change
from sagastream.orchestrator.streams import Input, OfPartition

#: After this many messages are decided on, they are sent off to be committed, and meanwhile the next are decided on.
_PART: Final = 32


def parts_of(inputs: Sequence[OfPartition]) -> list[list[OfPartition]]:
    """These inputs in parts, each a list of the inputs of one saga after another, and of one partition after another. A
    part has _PART inputs, or a few more, since no saga is in two parts."""
    parts: list[list[OfPartition]] = []
    room = 0
    for partition, of_one in inputs:
        by_saga: dict[str | None, list[Input]] = {}
        for item in of_one:
            by_saga.setdefault(item[1].saga_id, []).append(item)
        for those in by_saga.values():
            if room <= 0:
                parts.append([])
                room = _PART
            parts[-1].append((partition, those))
            room -= len(those)
    return parts


def fold(part: Sequence[OfPartition], states: Mapping[str, Found], moment: Moment) -> list[Change]:
    """Decide on the inputs: one change for each saga, however many inputs it got. A saga gets no change if nothing
    changes and nothing is left to others."""
    changes: list[Change] = []
    for partition, inputs in part:
        saga_id = inputs[0][1].saga_id
        before = None if saga_id is None else states[saga_id]
        change = Change(partition=partition, saga_id=saga_id, before=before, after=before)
        for entry, event in inputs:
            decision = decide(change.after, event, moment)
            change.add(
                entry,
                decision,
                gives_up=not isinstance(event, Reply),
                is_begin=isinstance(event, Begin),
                leased=entry is None and isinstance(event, Due) and event.leased,
            )
        if change.left or not change.is_empty:
            changes.append(change)
    return changes
