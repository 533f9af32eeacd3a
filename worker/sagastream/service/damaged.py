"""The partitions in which a process cannot answer, since something else has written where the answers go."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from sagastream.service.packing import Ready, entry_of
from sagastream.store.keys import Partition
from sagastream.store.reach import ranges
from sagastream.telemetry import Log

if TYPE_CHECKING:
    import redis

#: How soon answers are tried again whose stream is damaged, in seconds.
_AGAIN_S: Final = 0.5


class DamagedStreams:
    """Those that one process has found. Their answers stay ready, and are tried again later."""

    def __init__(self, log: Log) -> None:
        self._log = log
        #: The streams of their commands, and when to try again, by time.monotonic.
        self.until_s: Mapping[str, float] = {}

    def left_alone(self) -> set[str]:
        """Those that were found a moment ago."""
        now_s = time.monotonic()
        return {stream for stream, until_s in self.until_s.items() if until_s > now_s}

    def found(self, streams: Iterable[str], partitions: Mapping[str, Partition], error: "redis.RedisError") -> None:
        """Answers to commands of these streams were refused with this error."""
        again_s = time.monotonic() + _AGAIN_S
        for stream in streams:
            if stream not in self.until_s:
                text = f"{_named([stream], partitions)} cannot be sent: {str(error).removeprefix('WRONGTYPE ')}"
                todo = "rename that key or delete it" + (". The others go on" if len(partitions) > 1 else "")
                self._log.error(f"{text}: something else has written there; {todo}")
            self.until_s = {**self.until_s, stream: again_s}

    def went(self, sent: Sequence[Ready], partitions: Mapping[str, Partition]) -> None:
        """These were sent: their streams are whole."""
        if not self.until_s:
            return
        if whole := self.until_s.keys() & {entry_of(one).stream for one in sent}:
            self.until_s = {stream: until_s for stream, until_s in self.until_s.items() if stream not in whole}
            self._log.warning(f"{_named(whole, partitions)} can be sent again")


def _named(streams: Iterable[str], partitions: Mapping[str, Partition]) -> str:
    """The answers to commands of these streams."""
    if len(partitions) == 1:
        return "answers"
    return f"answers of partition {ranges(partitions[stream].number for stream in streams)}"
