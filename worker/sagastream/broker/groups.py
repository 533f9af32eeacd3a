"""The group of a reader, made on each stream that it reads. What holds no stream, or cannot be asked, is left out."""

from collections.abc import Sequence

import redis

from sagastream.broker import partial, scripting, wire
from sagastream.broker.failures import is_wrong_type
from sagastream.telemetry import Log


class Groups:
    """Those of one reader."""

    def __init__(self, client: "redis.Redis", group: str, log: Log) -> None:
        self._client = client
        self._group = group
        self._log = log
        self._left_out: set[str] = set()
        self._told: set[str] = set()  # those that hold no stream, and that this was told of

    @property
    def left_out(self) -> list[str]:
        """Those that are not read for now: their key holds something else, or its node is away."""
        return sorted(self._left_out)

    def anew(self) -> None:
        """No stream is read any more, so none is left out."""
        self._left_out.clear()

    def made(self, streams: Sequence[str]) -> list[str]:
        """Have the group on these streams. Returns those on which it is. What cannot be read is left out for now, and
        the others are read."""
        # From 0: entries that were added before the group was created are for it too.
        making = [
            scripting.even_if_full(stream, "XGROUP", "CREATE", stream, self._group, "0", "MKSTREAM")
            for stream in streams
        ]
        made: list[str] = []
        for stream, answer in zip(streams, wire.round_trip(self._client, making), strict=True):
            if partial.passes_over(self._client, answer):
                self._left_out.add(stream)
                continue
            if isinstance(answer, redis.RedisError) and not str(answer).startswith("BUSYGROUP"):
                if not is_wrong_type(answer):
                    raise answer
                if stream not in self._told:
                    self._log.error(f"{stream} is not a stream: it is not read, until it is one or is gone")
                self._told.add(stream)
                self._left_out.add(stream)
                continue
            made.append(stream)
            self._left_out.discard(stream)
            self._told.discard(stream)
        return made
