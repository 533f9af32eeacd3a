"""The answers that a process has sent since it last looked: if their records are gone, the store has lost writes."""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from sagastream.broker.exchange import Exchange
from sagastream.broker.wire import or_raise
from sagastream.core.steps import STANDING
from sagastream.service.packing import Ready, entry_of
from sagastream.store.keys import DONE_KEPT_S, Partition
from sagastream.store.written_since import WrittenSince

#: How many answers of one call are remembered, to see whether the store has lost them: it loses whole calls.
_OF_EACH: Final = 16


class _Recorded(NamedTuple):
    """The record of an answer that the broker has."""

    done: str  # the key of its hash
    record: str
    at_ms: float  # when it was sent, by the broker's clock


class LastSent:
    """Those of one process. One thread may look while another sends."""

    def __init__(self) -> None:
        self._sent: WrittenSince[_Recorded] = WrittenSince()

    def note(self, sent: Sequence[Ready], partitions: Mapping[str, Partition], now_s: float) -> None:
        """The broker has recorded these. `partitions`: by the stream of their commands; `now_s`: by its clock."""
        now_ms = now_s * 1000
        for one in sent[-_OF_EACH:]:
            # Whoever asks which effects stand deletes the record of the answer.
            if isinstance(one, tuple) and one[1].is_last_word and one[0].command.type != STANDING:
                recorded = _Recorded(one[0].done, one[0].record, now_ms)
                self._sent.note(partitions[entry_of(one).stream].number, [recorded])

    def missing(self, now_ms: int, number: int | None, is_another: bool) -> Exchange[list[str]]:
        """The records of these that the store no longer has, as far as can be told. See lineage.Missing."""
        sent = self._sent.all(number) if is_another else self._sent.last(number)
        asked = [one for one in sent if now_ms < one.at_ms + DONE_KEPT_S * 1000]  # the others may have expired
        answers = (yield [("HEXISTS", one.done, one.record) for one in asked]) if asked else []
        gone = [one.record for one, there in zip(asked, answers, strict=True) if not or_raise(there)]
        self._sent.looked(number)
        return [f"the record {record} is gone" for record in gone]
