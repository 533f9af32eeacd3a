"""A service that is played by whoever holds the bridge's stdin: its commands go out as lines, lines are its replies."""

import threading
import time
from typing import Any

import redis

from sagastream import keys
from sagastream.answers import Answers
from sagastream.broker import BLOCK_MS, Broker, Outage
from sagastream.console import say
from sagastream.errors import MalformedMessage
from sagastream.messages import Command, Reply, decode, ok, parse_command, parse_reply
from sagastream.service import LEASE_MS
from sagastream.streams import Entry, GroupReader, consumer_name
from sagastream_bridge.lines import ORCHESTRATOR, LineWriter


class ServedService:
    """One such service. A command is held, and its lease renewed, until its reply comes."""

    def __init__(self, broker: Broker, name: str, out: LineWriter, outage: Outage, stop: threading.Event) -> None:
        self.name = name
        self._client = broker.client
        self._out = out
        self._outage = outage
        self._stop = stop
        self._inbox = GroupReader(broker.client, [keys.commands(name)], name, consumer_name(), LEASE_MS)
        self._lock = threading.Lock()
        self._answers = Answers(broker.client, name)
        self._held: dict[tuple[str, int, str], tuple[Entry, Command]] = {}
        self._held_ids: set[bytes] = set()
        self._unasked: list[Reply] = []

    def run(self) -> None:
        """Write commands out until `stop` is set."""
        renew_at = time.monotonic()
        while not self._stop.is_set():
            try:
                if time.monotonic() >= renew_at:
                    self._inbox.recover()  # reading what is held again renews the lease on it
                    renew_at = time.monotonic() + LEASE_MS / 3000
                for entry in self._inbox.read(BLOCK_MS):
                    self._give_out(entry)
                self.send()
                self._outage.over()
            except redis.RedisError as error:
                self._outage.wait(error)
                self._inbox.recover()

    def reply(self, body: dict[str, Any]) -> None:
        """Take a reply that came as a line; `send` sends it on. One that answers no command in hand is sent all the
        same: what to think of it is the orchestrator's business. Raises MalformedMessage."""
        reply = parse_reply(body)
        held = (reply.saga_id, reply.step, reply.type.removesuffix("_ok").removesuffix("_failed"))
        with self._lock:
            if held in self._held:
                entry, command = self._held.pop(held)
                self._held_ids.discard(entry.id)
                self._answers.reply(entry, command, reply)
            else:
                self._unasked.append(reply)

    def send(self) -> None:
        """Send what was taken. To be called again where it raised redis.RedisError."""
        with self._lock:
            self._answers.send()
            while self._unasked:
                self._client.xadd(keys.REPLIES, {"body": self._unasked[0].body()})
                self._unasked.pop(0)

    def _give_out(self, entry: Entry) -> None:
        with self._lock:
            if entry.id in self._held_ids:
                return
            try:
                command = parse_command(self.name, entry.fields, int(entry.id.split(b"-")[0]))
            except MalformedMessage as error:
                say(f"service {self.name}", f"quarantined the entry {entry.id.decode()}: {error}")
                self._answers.quarantine(entry, str(error))
                return
            if entry.redelivered and self._answers.recorded(command) is not None:
                done = Reply(type=ok(command.type), saga_id=command.saga_id, step=command.step)
                self._answers.reply(entry, command, done)  # the script sends the recorded one in its place
                return
            self._held_ids.add(entry.id)
            self._held[command.saga_id, command.step, command.type] = (entry, command)
        self._out.message(ORCHESTRATOR, self.name, decode(command.body()))
