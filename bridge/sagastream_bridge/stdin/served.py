"""A service that is played through the bridge's stdin and stdout: its commands go out as lines, its replies come as
lines."""

import threading
import time
from typing import Any, Final

import redis
from msgspec.structs import replace

from sagastream.broker.connection import BLOCK_MS, Broker
from sagastream.broker.group_reader import consumer_name
from sagastream.broker.outage import Outage
from sagastream.broker.partial import passes_over
from sagastream.broker.scripting import added_even_if_full
from sagastream.broker.wire import or_raise, round_trip
from sagastream.core import service_rules
from sagastream.core.commands import Command, Reply, failed, ok
from sagastream.core.parsing import parse_reply
from sagastream.core.sealed_messages import open_command, sealed_reply
from sagastream.core.sealing import Codec, Place, seal
from sagastream.core.service_actions import RUN, Answer, Undo
from sagastream.core.strict_json import decode, value_of
from sagastream.errors import CannotOpen
from sagastream.service.declaration import LEASE_MS
from sagastream.service.delivery import Delivery
from sagastream.service.inbox import CommandInbox
from sagastream.service.loading import load_service
from sagastream.store import layout, published
from sagastream.store.keys import StoreKeys
from sagastream.telemetry import Log, about
from sagastream_bridge.local.stack import SAMPLES
from sagastream_bridge.stdin.lines import ORCHESTRATOR, LineWriter

LOG: Final = Log("bridge", "sagastream bridge")


class ServedService:
    """One such service. It holds a command, and renews the lease, until the reply comes."""

    def __init__(self, broker: Broker, name: str, out: LineWriter, outage: Outage, codec: Codec | None = None) -> None:
        """`codec`: opens the commands that go out as lines, and seals the replies that come."""
        self.name = name
        self._broker = broker
        self._client: redis.Redis = broker.client
        self._keys: StoreKeys | None = None
        self._out = out
        self._outage = outage
        self._codec = codec
        self._told: set[str] = set()  # why commands could not be opened
        self._lock = threading.Lock()
        self._inbox = CommandInbox(
            broker.client,
            name,
            consumer=consumer_name(),
            lease_ms=LEASE_MS,
            on_join=self._join,
        )
        self._renew_at = 0.0
        self._held: dict[tuple[str, bytes], Delivery] = {}  # by where the entry stands
        #: (saga, step, type of the reply) -> where the entry stands
        self._by_reply: dict[tuple[str, int, str], tuple[str, bytes]] = {}
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
            at = self._by_reply.get((reply.saga_id, reply.step, reply.type))
            if at is None:
                if self._codec is not None and reply.result is not None:
                    place = Place(reply.saga_id, reply.step, "result")
                    reply = replace(reply, result=seal(self._codec, reply.result, place))
                self._unasked.append(reply)
            else:
                command = self._held[at].command
                sealed = reply if self._codec is None else sealed_reply(self._codec, command, reply)
                delivery = self._release(at)
                reply = replace(sealed, attempt=command.attempt)
                self._inbox.outbox.answer(delivery, Answer(reply, service_rules.kind(delivery.command, reply)))

    def send(self) -> None:
        """Send what was taken. If this raises redis.RedisError, call it again."""
        with self._lock:
            while overruled := self._inbox.outbox.send():
                # The step was undone meanwhile. The player of the service has seen both lines, and must undo the
                # effect.
                for delivery in overruled:
                    self._refuse(delivery)
            for reply in self._unasked.copy():
                keys = self._keys or layout.check(self._broker)
                adding = added_even_if_full(keys.of(reply.saga_id).replies(self.name), reply.fields())
                (answer,) = round_trip(self._client, [adding])
                if not passes_over(self._client, answer):  # else it is sent with the next turn
                    or_raise(answer)
                    self._unasked.remove(reply)

    def _turn(self) -> None:
        if time.monotonic() >= self._renew_at:
            self._inbox.reader.renew()
            self._renew_at = time.monotonic() + LEASE_MS / 3000
        # Without the lock: replies come in while this waits for commands.
        deliveries = self._inbox.read(BLOCK_MS)
        left = []
        for delivery in deliveries:
            if delivery.todo is not RUN:
                self._refuse(delivery)
            elif (opened := self._opened(delivery.command)) is None:
                left.append(delivery)
            else:
                self._give_out(delivery, opened)
        if left:
            self._inbox.leave(left)
        self.send()

    def _opened(self, command: Command) -> Command | None:
        """The command as its line says it; None: it cannot be opened, and is left to a process that can."""
        try:
            return open_command(self._codec, command)
        except CannotOpen as error:
            if (why := str(error)) not in self._told:
                self._told.add(why)
                text = f"{command.told}, cannot be opened: {why}"
                LOG.error(f"{text}; leaves it, unanswered, to processes that can", extra=about(command))
            return None

    def _refuse(self, delivery: Delivery) -> None:
        assert isinstance(delivery.todo, Undo)
        self._inbox.outbox.answer(delivery, delivery.todo.answer)

    def _give_out(self, delivery: Delivery, opened: Command) -> None:
        with self._lock:
            if delivery.entry.at in self._held:
                return
            self._held[delivery.entry.at] = delivery
            for kind in (ok, failed):
                self._by_reply[_reply_key(delivery, kind(delivery.command.type))] = delivery.entry.at
        self._out.message(ORCHESTRATOR, self.name, decode(opened.body()), _besides(opened))

    def _release(self, at: tuple[str, bytes]) -> Delivery:
        delivery = self._held.pop(at)
        for kind in (ok, failed):
            self._by_reply.pop(_reply_key(delivery, kind(delivery.command.type)), None)
        return delivery

    def _join(self) -> StoreKeys:
        """A service that is one of the samples publishes the compensations of the sample."""
        self._keys = keys = layout.check(self._broker, self._keys)
        commands = load_service(SAMPLES[self.name]).publishes() if self.name in SAMPLES else {}
        published.publish(self._client, keys, self.name, commands)
        return keys


def _besides(command: Command) -> dict[str, Any]:
    """What a command says besides its body: the same as the fields of its entry. The body of a compensation has no
    params, so those of the step that it undoes stand here."""
    data = {"input": command.input, "undo": command.undo}
    if command.compensating:
        data |= {"params": command.params, "result": command.result}
    found = {name: value_of(value) for name, value in data.items() if value is not None}
    return found if command.definition is None else found | {"definition": command.definition}


def _reply_key(delivery: Delivery, kind: str) -> tuple[str, int, str]:
    return delivery.command.saga_id, delivery.command.step, kind
