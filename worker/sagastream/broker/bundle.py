"""One connection to a whole cluster: a bundle of connections, one to each node, which is used like one connection.

It sends the commands of a round trip to all nodes at once, and gives the answers in the order of the commands. It
follows slots that have moved. If a node is away, the answers to its commands are errors, and the others are there.

Here is what it does, without the transport: each method is a generator that yields what to do next with one node, and
is sent what has come of it; see to_do.py.
"""

from collections import deque
from collections.abc import Generator, Sequence
from typing import Any, Final

import redis
from redis.exceptions import AskError, ClusterDownError, MovedError, RedisError

from sagastream.broker.cluster_map import NAMELESS, ClusterMap
from sagastream.broker.failures import (
    NodeAway,
    is_deleted,
    is_denied,
    name_node,
    no_node_of,
    node_name,
    of_node,
    refusal,
    said_by,
)
from sagastream.broker.routes import READINGS, Command, Part, routed
from sagastream.broker.to_do import AskForMap, Collect, Login, Probe, Read, Send, Steps, ToDo, Wait
from sagastream.broker.trip_time import TripTime
from sagastream.broker.urls import Address
from sagastream.broker.wire import Words

#: A slot that moves to and fro is followed so often.
_MOST_MOVES: Final = 5


class Bundle:
    def __init__(self, cluster: ClusterMap) -> None:
        self._map = cluster
        self._commands: deque[Command] = deque()  # sent, and not read yet
        self._asked: dict[Address, deque[Part]] = {}  # by node: what it has not answered yet
        self._late: dict[int, list[Any]] = {}  # by command: what former readings have got
        self._time = TripTime(cluster.time)
        self._has_followed = False  # whether a slot has moved since all answers were read

    @property
    def is_idle(self) -> bool:
        """Whether all answers were read."""
        return not self._commands and not any(self._asked.values())

    def expects(self, node: Address) -> bool:
        """Whether a node has still to answer something."""
        return bool(self._asked.get(node))

    def open(self) -> Steps:
        """Have the map. Raises the error of the node that was asked last, if there is none."""
        if self._map.wants_asking() or not self._map.masters:
            yield from self._ask_for_map(must=not self._map.masters)

    def send(self, commands: Sequence[Words]) -> Steps:
        """Send these commands to their nodes."""
        if self._map.wants_asking():
            yield from self._ask_for_map()
        self._has_followed = self._has_followed and not self.is_idle
        these = routed(commands)
        for command in these:
            if command.reading is not None:
                yield from self._collect(command)
            elif command.name == "TIME":
                self._time.ask(command)
        self._wait_once(these)
        self._commands.extend(these)
        parts = [part for command in these for part in command.parts if not part.is_answered]
        yield from self._send([*dict.fromkeys(reversed(parts))][::-1])  # a WAIT where it was asked for last

    def read(self) -> Steps:
        """The answer to the next command, errors among them."""
        command = self._commands.popleft()
        for part in command.parts:
            yield from self._answered(part)
        if command.name == "TIME":
            if self._time.is_of_cluster(command):
                return self._map.time.now()
            if isinstance(command.parts[0].answer, NodeAway):
                yield from self._what_time_is_it(command, None)  # any other node knows
        if command.name in READINGS:
            self._note_unread(command)
        answer = command.answer()
        if command.name == "WAIT" and self._has_followed:
            return 0  # it has waited at another node than the one that was written to
        reading = command.reading
        if reading is None:
            return answer
        late = self._late.pop(id(command), [])
        if late:
            answer = [*(answer if isinstance(answer, list) else []), *late]
        if not answer and reading.block_ms is not None:
            waited = yield Wait(command, reading.block_ms)
            nothing = [None] * (len(reading.by_slot) - len(waited))  # the other slots have given
            answer = reading.merged([*waited, *nothing])
            yield from self._has_waited()
        return answer

    def forget(self) -> None:
        """All connections are closed: no answer comes any more."""
        self._commands.clear()
        self._asked.clear()
        self._late.clear()
        self._time.forget()

    def _collect(self, command: Command) -> Steps:
        reading = command.reading
        assert reading is not None
        got, waiting = yield Collect(command)
        for part in command.parts:
            has_looked = reading.consumer is None and isinstance(got.get(part.slot), list)
            if has_looked or (part.slot in waiting and part.slot not in got):
                part.ends(None)  # nothing, until that reading has something
        late = [stream for answer in got.values() if isinstance(answer, list) for stream in answer]
        if late:
            self._late[id(command)] = late

    def _note_unread(self, command: Command) -> None:
        """What others have is the answer, so it does not tell of slots that cannot be read."""
        for part in command.parts:
            if isinstance(part.answer, redis.ResponseError) and part.slot is not None and not is_deleted(part.answer):
                self._map.unread(part.slot, part.answer)

    def _wait_once(self, commands: Sequence[Command]) -> None:
        """Several WAITs for one node become the last of them: each would have to pass until the next one begins."""
        last: dict[Any, list[Part]] = {}
        for command in reversed(commands):
            if command.name == "WAIT" and (slot := command.parts[0].slot) is not None:
                asked = (self._map.node_of(slot), *command.parts[0].words)
                command.parts = last.setdefault(asked, command.parts)

    def _has_waited(self) -> Steps:
        """Have each TIME that follows in the round trip tell the time after the waiting: it was asked before that."""
        if self._map.time.slot is None:
            for later in [one for one in self._commands if one.name == "TIME"]:
                yield from self._answered(later.parts[0])
                yield from self._what_time_is_it(later, later.parts[0].slot)

    def _what_time_is_it(self, command: Command, slot: int | None) -> Steps:
        """Ask again: the node of this slot, or any (None)."""
        command.parts = [Part(command.parts[0].words, slot)]
        yield from self._send(command.parts)
        yield from self._answered(command.parts[0])

    def _send(self, parts: Sequence[Part]) -> Steps:
        by_node: dict[Address, list[Part]] = {}
        for part in parts:
            node = self._map.anybody() if part.slot is None else self._map.node_of(part.slot)
            if node is None:
                self._map.is_out_of_date()
                part.ends(no_node_of(part.slot))
            elif (error := (yield from self._unreachable(node))) is None:
                by_node.setdefault(node, []).append(part)
            elif part.may_go_elsewhere and (other := self._map.anybody()) not in (None, node):
                assert other is not None
                by_node.setdefault(other, []).append(part)
            else:
                part.ends(of_node(node, error, was_sent=False))
        for node, those in by_node.items():
            error = yield Send(node, [part.words for part in those])
            if error is None:
                self._asked.setdefault(node, deque()).extend(those)
            else:
                self._cut(node, error, those)

    def _unreachable(self, node: Address) -> Generator[ToDo, Any, RedisError | None]:
        """Why a node cannot be asked now; None: it can. One that was away is back if it also lets this process in.
        Raises the error if none does."""
        if not self._map.is_away(node):
            return None
        if not self._map.may_try(node):
            return self._map.why_away(node)
        error: RedisError | None = yield Probe(node)
        if error is None:
            error = yield Login(node)
        if error is None:
            self._map.answered(node)
        else:
            self._failed(node, error)
        return error

    def _answered(self, part: Part) -> Steps:
        """Read until this part is answered."""
        while not part.is_answered:
            node = next(node for node, parts in self._asked.items() if part in parts)
            answer = yield Read(node)
            asked = self._asked.get(node)
            if asked is None or not asked:  # the node was cut off meanwhile
                continue
            if isinstance(answer, redis.ConnectionError | redis.TimeoutError):
                self._cut(node, answer, ())
            else:
                yield from self._came(node, asked.popleft(), answer)

    def _came(self, node: Address, part: Part, answer: Any) -> Steps:
        if not isinstance(answer, RedisError):
            part.ends(answer)
            return
        if isinstance(answer, MovedError | AskError) and not part.is_in_transaction and part.moves < _MOST_MOVES:
            part.moves += 1
            self._has_followed = True
            # Without a host, it is where this node listens.
            to: Address | None = Address(answer.host or node.host, answer.port)
            if answer.host == NAMELESS:
                yield from self._ask_for_map()
                to = self._map.node_of(answer.slot_id) if isinstance(answer, MovedError) else None
            if to is None:
                part.ends(answer)
                return
            if isinstance(answer, MovedError):
                self._map.moved(answer.slot_id, to)
            # A MovedError is an AskError, too.
            yield from self._ask_there(part, to, asking=not isinstance(answer, MovedError))
            return
        if isinstance(answer, ClusterDownError):
            self._map.is_out_of_date(node)
        if isinstance(answer, redis.ResponseError):
            name_node(answer, node, part.slot)
            if is_denied(answer):
                self._map.troubles.met(said_by(answer) or "", answer)
        part.ends(answer)

    def _ask_there(self, part: Part, node: Address, *, asking: bool) -> Steps:
        error = yield from self._unreachable(node)
        if error is not None:
            part.ends(of_node(node, error, was_sent=False))
            return
        error = yield Send(node, [("ASKING",), part.words] if asking else [part.words])
        if error is not None:
            self._cut(node, error, [part])
            return
        asked = self._asked.setdefault(node, deque())
        if asking:
            asked.append(Part(("ASKING",), None))
        asked.append(part)

    def _cut(self, node: Address, error: RedisError, sending: Sequence[Part]) -> None:
        """The connection to a node has ended. `sending`: what was being sent. Raises the error if no node lets this
        process in."""
        self._failed(node, error)
        for part in self._asked.pop(node, ()):
            part.ends(of_node(node, error, was_sent=True))
        for part in sending:
            part.ends(of_node(node, error, was_sent=isinstance(error, NodeAway) and error.was_sent))

    def _failed(self, node: Address, error: RedisError) -> None:
        self._map.failed(node, error)
        if self._map.refuses:
            raise refusal(node, error)

    def _ask_for_map(self, *, must: bool = False) -> Steps:
        """Ask the nodes for the map, until one has it. `must`: raise the last error if none has it."""
        error: Any = None
        for node in self._map.to_ask():
            answer = yield AskForMap(node)
            if not isinstance(answer, RedisError):
                if self._map.is_now(answer, node):
                    return
                answer = redis.ConnectionError(f"{node_name(node)} knows no node that has slots")
            error = refusal(node, answer)
        if must:
            raise error
