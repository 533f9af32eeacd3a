"""A service that is played through the bridge's stdin and stdout: its commands go out as lines, its replies come as
lines."""

import threading
import time
from typing import Any

import redis
from msgspec.structs import replace

from sagastream.broker.connection import BLOCK_MS, Broker
from sagastream.broker.group_reader import consumer_name
from sagastream.broker.outage import Outage
from sagastream.core import service_rules
from sagastream.core.messages import Reply, failed, ok
from sagastream.core.parsing import parse_reply
from sagastream.core.service_rules import RUN, Answer, Undo
from sagastream.core.strict_json import decode
from sagastream.service.declaration import LEASE_MS
from sagastream.service.inbox import CommandInbox, Delivery
from sagastream.service.loading import load_service
from sagastream.store import keys, published
from sagastream_bridge.local.stack import SAMPLES
from sagastream_bridge.stdin.lines import ORCHESTRATOR, LineWriter


class ServedService:
    """One such service. It holds a command, and renews the lease, until the reply comes."""

    def __init__(self, broker: Broker, name: str, out: LineWriter, outage: Outage) -> None:
        self.name = name
        self._client: redis.Redis = broker.client
        self._out = out
        self._outage = outage
        self._lock = threading.Lock()
        self._inbox = CommandInbox(
            broker.client,
            name,
            consumer=consumer_name(),
            lease_ms=LEASE_MS,
            on_join=self._publish,
        )
        self._renew_at = 0.0
        self._held: dict[bytes, Delivery] = {}  # by entry id
        self._by_reply: dict[tuple[str, int, str], bytes] = {}  # (saga, step, type of the reply) -> entry id
        self._unasked: list[Reply] = []

    def run(self) -> None:
        """Write commands out until the bridge stops. Then give back the commands that were not answered."""
        self._outage.keep(self._turn, self._inbox.reader.recover)
        self._outage.once(self._inbox.reader.leave)

    def reply(self, body: dict[str, Any]) -> None:
        """Take a reply that came as a line; `send` sends it. A reply to no command that is held here is sent, too: the
        orchestrator decides what to do with it. Raises MalformedMessage."""
        reply = parse_reply(body)
        with self._lock:
            entry_id = self._by_reply.get((reply.saga_id, reply.step, reply.type))
            if entry_id is None:
                self._unasked.append(reply)
            else:
                delivery = self._release(entry_id)
                reply = replace(reply, attempt=delivery.command.attempt)
                self._inbox.answer(delivery, Answer(reply, service_rules.kind(delivery.command, reply)))

    def send(self) -> None:
        """Send what was taken. If this raises redis.RedisError, call it again."""
        with self._lock:
            while overruled := self._inbox.send():
                # The step was undone meanwhile. The player of the service has seen both lines, and must undo the
                # effect.
                for delivery in overruled:
                    self._refuse(delivery)
            while self._unasked:
                fields: dict[Any, Any] = self._unasked[0].fields()
                self._client.xadd(keys.REPLIES, fields)
                self._unasked.pop(0)

    def _turn(self) -> None:
        if time.monotonic() >= self._renew_at:
            self._inbox.reader.renew()
            self._renew_at = time.monotonic() + LEASE_MS / 3000
        # Without the lock: replies come in while this waits for commands.
        deliveries = self._inbox.read(BLOCK_MS)
        for delivery in deliveries:
            if delivery.todo is RUN:
                self._give_out(delivery)
            else:
                self._refuse(delivery)
        self.send()

    def _refuse(self, delivery: Delivery) -> None:
        assert isinstance(delivery.todo, Undo)
        self._inbox.answer(delivery, delivery.todo.answer)

    def _give_out(self, delivery: Delivery) -> None:
        with self._lock:
            if delivery.entry.id in self._held:
                return
            self._held[delivery.entry.id] = delivery
            for kind in (ok, failed):
                self._by_reply[_reply_key(delivery, kind(delivery.command.type))] = delivery.entry.id
        self._out.message(ORCHESTRATOR, self.name, decode(delivery.command.body()))

    def _release(self, entry_id: bytes) -> Delivery:
        delivery = self._held.pop(entry_id)
        for kind in (ok, failed):
            self._by_reply.pop(_reply_key(delivery, kind(delivery.command.type)), None)
        return delivery

    def _publish(self) -> None:
        """A service that is one of the samples publishes the compensations of the sample."""
        if self.name in SAMPLES:
            published.publish(self._client, self.name, load_service(SAMPLES[self.name]).publishes())


def _reply_key(delivery: Delivery, kind: str) -> tuple[str, int, str]:
    return delivery.command.saga_id, delivery.command.step, kind
