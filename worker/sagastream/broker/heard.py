"""Writes the heartbeat of a reader along with its readings."""

from typing import Protocol, TypeVar

import redis

from sagastream.broker.exchange import Exchange, together
from sagastream.broker.failures import NodeAway
from sagastream.telemetry import Log

_T = TypeVar("_T")


class Heartbeat(Protocol):
    """Tells others that a reader is alive; see store/heartbeat.py."""

    @property
    def due_s(self) -> float:
        """In how many seconds it is time to be heard again; 0: it is time."""

    @property
    def is_alone(self) -> bool:
        """Whether what it reads does not depend on who else is heard."""

    def beat(self) -> Exchange[None]:
        """Be heard. Raises redis.ResponseError."""

    def end(self, *, holds: bool) -> Exchange[None]:
        """Be known to have ended; `holds`: the consumer stays in a group with what it still holds."""


class Heard:
    def __init__(self, heartbeat: Heartbeat | None, log: Log) -> None:
        """`heartbeat`: None: the reader is not heard."""
        self._heartbeat = heartbeat
        self._log = log
        self._refused = ""  # why the broker does not take it

    def along(self, reading: Exchange[_T]) -> Exchange[_T]:
        """The read and, if one is due, the heartbeat before it, since the read may wait."""
        if self._heartbeat is None or self._heartbeat.due_s:
            return (yield from reading)
        _, found = yield from together(self.beat(self._heartbeat), reading)
        return found

    @property
    def comes_first(self) -> bool:
        """Whether a heartbeat is due on which it depends what is read next."""
        return self._heartbeat is not None and not self._heartbeat.is_alone and not self._heartbeat.due_s

    def first(self) -> Exchange[None]:
        """The heartbeat, if it comes first."""
        if self._heartbeat is not None and self.comes_first:
            yield from self.beat(self._heartbeat)

    def alone(self) -> Exchange[None]:
        """The heartbeat, if one is due, while nothing is read."""
        if self._heartbeat is not None and not self._heartbeat.due_s:
            yield from self.beat(self._heartbeat)

    def waits(self, block_ms: int) -> int:
        """For how long a reading may wait: `block_ms`, or until the next heartbeat if what it reads depends on that."""
        if self._heartbeat is None or self._heartbeat.is_alone:
            return block_ms
        return max(1, min(block_ms, round(self._heartbeat.due_s * 1000)))

    def beat(self, heartbeat: Heartbeat) -> Exchange[None]:
        """Write the heartbeat. If the broker refuses it, or its node is away, entries are read all the same."""
        try:
            yield from heartbeat.beat()
        except (NodeAway, redis.exceptions.ClusterDownError):
            return  # it is tried again, and the node is told of already
        except redis.ResponseError as error:
            if str(error) != self._refused:
                self._refused = str(error)
                self._log.warning(f"the broker does not take the heartbeat of this process: {error}")
