"""What lines ask of a saga: how it stands now (saga_status), or once it has ended (saga_await)."""

from collections.abc import Callable
from typing import TypeVar

import redis

from sagastream.broker.connection import Broker
from sagastream.broker.exchange import run
from sagastream.broker.outage import Outage
from sagastream.broker.partial import passes_over
from sagastream.client import looking
from sagastream.client.answers import opened
from sagastream.client.answers import unread as as_unread
from sagastream.client.blocking import SagaClient
from sagastream.core.messages import Code, is_id
from sagastream.core.saga import SagaState
from sagastream.core.sealing import Codec
from sagastream.errors import MalformedMessage
from sagastream.store.keys import StoreKeys
from sagastream_bridge.stdin.follower import Asker, Follower
from sagastream_bridge.stdin.lines import BadLine, Line

_T = TypeVar("_T")


class Questions:
    """Those of one run of the bridge. Outages of the broker are waited out."""

    def __init__(
        self, broker: Broker, client: SagaClient, follower: Follower, outage: Outage, codec: Codec | None
    ) -> None:
        self._broker = broker
        self._client = client
        self._follower = follower
        self._outage = outage
        self._codec = codec

    def wait(self, line: Line, keys: StoreKeys) -> None:
        """Have the sender of a line told how its saga has ended. Raises as `look` does."""
        saga_id = self.look(line, keys).saga_id
        self._follower.add(Asker(caller=line.caller, saga_id=saga_id))
        # The saga may have ended, and no event may come for a while.
        self._outage.patiently(lambda: self._follower.look(saga_id))

    def look(self, line: Line, keys: StoreKeys) -> SagaState:
        """The saga that a line asks about. Raises BadLine or MalformedMessage if there is none."""
        if line.caller.msg_id is None:
            raise BadLine(f"{line.type} needs a msg_id, to be answered")
        saga_id = line.body.get("saga_id")
        if not is_id(saga_id):
            raise MalformedMessage("saga_id must be 1 to 128 characters of A-Z a-z 0-9 . _ : -")
        assert isinstance(saga_id, str)
        # In this order: the sender waits for the saga until it was seen in the store.
        begin = self._follower.begin_of(saga_id)
        state = self._read_for(line, lambda: self._client.get(saga_id))
        if state is not None:
            return state
        if begin is None:
            unknown = self._read_for(line, lambda: run(self._broker.client, looking.unknown(keys, saga_id)))
            raise BadLine(str(unknown), line.caller, unknown.code)
        unread = opened(self._codec, as_unread(begin))
        assert isinstance(unread, SagaState)
        return unread

    def _read_for(self, line: Line, read: Callable[[], _T]) -> _T:
        """What is read for the answer to a line. If only a node of a cluster is away that has it, the line is refused:
        the lines after it need not wait."""

        def once() -> _T:
            try:
                return read()
            except redis.RedisError as error:
                if not passes_over(self._broker.client, error):
                    raise
                raise BadLine(f"{error}: ask again later", line.caller, Code.UNAVAILABLE) from None

        return self._outage.patiently(once)
