"""What one process publishes of its service: the commands, and what undoes each; see store/published.py."""

import time
from typing import Final

import redis

from sagastream.broker.connection import Broker
from sagastream.broker.partial import passes_over
from sagastream.service.declaration import Service
from sagastream.service.report import ServiceReport
from sagastream.store import layout, published
from sagastream.store.keys import StoreKeys

#: After this time a service publishes its commands again, in seconds: they may have been deleted.
_PUBLISH_EVERY_S: Final = 30.0
#: … and after this time if it could not.
_TRY_AGAIN_S: Final = 1.0


class Publication:
    """Keeps published what a service has."""

    def __init__(self, broker: Broker, service: Service, report: ServiceReport) -> None:
        """Raises ServiceError if the service is declared wrongly."""
        self._broker = broker
        self._service = service
        self._report = report
        self._publishes = service.publishes()
        self._keys: StoreKeys | None = None  # of the store in which it publishes; None: it has not joined
        self._again_at_s = float("inf")
        self._unusable: list[str] = []  # the keys at which it could not publish
        self._over = 0  # how many connections had been opened when it last published
        self._changes = 0  # … and how often the store had changed, see Lineage.changes

    def join(self) -> StoreKeys:
        """Open the store, and publish there from now on."""
        self._keys = keys = layout.check(self._broker, self._keys)
        self._publish(keys)
        return keys

    def again(self, changes: int = 0) -> None:
        """Publish again, after a while; and at once if there is a new connection, or the store is found to have changed
        so many times: it may have lost what was published."""
        if self._keys is None:
            return
        is_another = self._broker.connections != self._over or changes != self._changes
        if (is_another or time.monotonic() >= self._again_at_s) and self._publish(self._keys):
            self._changes = changes

    def _publish(self, keys: StoreKeys) -> bool:
        """Returns whether the store has been told. Of a cluster, the node may be away that keeps this. Then it is tried
        again soon: what the other nodes have is worked on meanwhile."""
        over = self._broker.connections
        try:
            unusable = published.publish(
                self._broker.client,
                keys,
                self._service.name,
                self._publishes,
                commands=self._service.commands,
                compensations=self._service.compensations,
            )
        except redis.RedisError as error:
            if not passes_over(self._broker.client, error):
                raise
            self._again_at_s = time.monotonic() + _TRY_AGAIN_S
            return False
        self._over = over
        if unusable and unusable != self._unusable:
            self._report.not_published(unusable)
        self._unusable = unusable
        self._again_at_s = time.monotonic() + _PUBLISH_EVERY_S
        return True
