"""The worker and the sample services that a bridge runs itself, if its embedded server has none."""

import time
from collections.abc import Collection
from typing import Final

from sagastream.broker.connection import Broker
from sagastream.store import heartbeat
from sagastream.store.keys import StoreKeys
from sagastream_bridge.local.stack import SAMPLES, Stack

#: How long no worker may be there before the bridge of an embedded server runs its own, in seconds: the
#: process that has just started the server may be starting a worker.
_LONELY_S: Final = 2.0


class OwnStack:
    def __init__(self, broker: Broker, served: Collection[str]) -> None:
        """`served`: the services that the lines of the bridge play."""
        self._broker = broker
        self._served = served
        self._stack: Stack | None = None
        self._lonely_since = time.monotonic()

    @property
    def runs(self) -> bool:
        return self._stack is not None

    def tend(self, keys: StoreKeys) -> None:
        """Run them if nobody else does: because this bridge started the server, or because the process that ran them
        has gone. Call this again and again."""
        if self._broker.embedded is None:
            return
        if self._stack is None:
            if not self._broker.embedded.owned and not self._is_lonely(keys):
                return
            services = [where for name, where in SAMPLES.items() if name not in self._served]
            self._stack = Stack(self._broker, workers=1, services=services, log_dir=self._broker.embedded.home.path)
        self._stack.tend()

    def stop(self) -> None:
        if self._stack is not None:
            self._stack.stop()

    def _is_lonely(self, keys: StoreKeys) -> bool:
        """Whether no worker has been there for a while."""
        if heartbeat.worker_is_alive(self._broker.client, keys):
            self._lonely_since = time.monotonic()
        return time.monotonic() - self._lonely_since > _LONELY_S
