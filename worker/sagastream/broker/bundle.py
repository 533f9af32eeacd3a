"""One connection to a whole cluster: a bundle of connections, one to each node, which is used like one connection.

It sends the commands of a round trip to all nodes at once, and gives the answers in the order of the commands. It
follows slots that have moved. If a node is away, the answers to its commands are errors, and the others are there.

Here is what it does, without the transport: each method is a generator that yields what to do next with one node, and
is sent what has come of it. to_cluster.py does it for callers that block, to_cluster_in_loop.py in an event loop.
"""

from collections import deque
from collections.abc import Generator, Sequence
from typing import Any, Final, NamedTuple

import redis
from redis.exceptions import AskError, ClusterDownError, MovedError, RedisError

from sagastream.broker.cluster_map import NAMELESS, ClusterMap
from sagastream.broker.failures import (
    NodeAway,
    NoNode,
    is_deleted,
    is_denied,
    is_outage,
    name_node,
    no_node_of,
    node_name,
    of_node,
    reason,
    refusal,
    said_by,
)
from sagastream.broker.routes import READINGS, Command, Part, routed
from sagastream.broker.urls import Address
from sagastream.broker.wire import Words
from sagastream.errors import BrokerError

#: A slot that moves to and fro is followed so often.
_MOST_MOVES: Final = 5


class Send(NamedTuple):
    """Send these commands to a node. What comes of it: None; or the error, which is NodeAway with `was_sent` if some of
    them may have arrived."""

    node: Address
    commands: list[Words]


class Read(NamedTuple):
    """Read the next answer of a node. What comes of it: the answer, or the error."""

    node: Address


class AskForMap(NamedTuple):
    """Ask this node for the map, over a connection of its own. What comes of it: the answer, or the error."""

    node: Address


class Reach(NamedTuple):
    """Connect to this server, one of several that the url names. What comes of it: None; or the error, which is a
    BrokerError if it is no node of a cluster."""

    server: Address


class Probe(NamedTuple):
    """See whether a node that was away answers again, without waiting for it. What comes of it: None, or the error."""

    node: Address


class Login(NamedTuple):
    """Connect to a node that answers again, before it is asked anything. What comes of it: None, or the error."""

    node: Address


class Wait(NamedTuple):
    """Wait until one of the readings has something, at most for so long. What comes of it: the answers that there are,
    errors among them."""

    command: Command
    block_ms: int


class Collect(NamedTuple):
    """Take what former readings of this consumer, which still wait, have got; of one that only looks, those with the
    same words. What comes of it: the answers, by slot; and the slots that still wait with the same words."""

    command: Command


ToDo = Send | Read | AskForMap | Reach | Probe | Login | Wait | Collect
Steps = Generator[ToDo, Any, Any]


def reached(cluster: ClusterMap) -> Steps:
    """Connect to the first that lets this process in, of the servers that the url names. Raises NoNode if none answers,
    redis.AuthenticationError if those that answer refuse the login, and BrokerError if one is no node of a cluster:
    each process might find another server then, with another store."""
    silent: list[str] = []
    refused: RedisError | None = None
    for server in cluster.seeds:
        error = yield Reach(server)
        if error is None:
            return
        if isinstance(error, redis.AuthenticationError):
            refused = refused or refusal(server, error)
            continue
        if not is_outage(error):
            raise error
        silent.append(f"{server} ({reason(error)})")
    if refused is not None:
        raise refused
    raise NoNode(f"none of the nodes that the url names can be reached: {', '.join(silent)}")


def no_node(server: Address) -> BrokerError:
    """That a server is no node of a cluster, although the url names several."""
    text = f"the url names several servers, so each must be a node of one cluster, and {server} is not"
    return BrokerError(f"{text}: name a single server, or its Sentinels with redis+sentinel://")


class Bundle:
    def __init__(self, cluster: ClusterMap) -> None:
        self._map = cluster
        self._commands: deque[Command] = deque()  # sent, and not read yet
        self._asked: dict[Address, deque[Part]] = {}  # by node: what it has not answered yet
        self._late: dict[int, list[Any]] = {}  # by command: what former readings have got
        self._time_asked_s: dict[int, float] = {}  # by command: when TIME was asked, by the map's clock for that
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
                self._ask_for_time(command)
        self._wait_once(these)
        self._commands.extend(these)
        parts = [part for command in these for part in command.parts if not part.is_answered]
        yield from self._send([*dict.fromkeys(reversed(parts))][::-1])  # a WAIT where it was asked for last

    def read(self) -> Steps:
        """The answer to the next command, errors among them."""
        command = self._commands.popleft()
        for part in command.parts:
            yield from self._answered(part)
        if command.name == "TIME" and (yield from self._has_time(command)):
            return self._map.time.now()
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
            if self._map.time.slot is None:
                for later in [one for one in self._commands if one.name == "TIME"]:  # it was asked before the waiting
                    yield from self._answered(later.parts[0])
                    yield from self._what_time_is_it(later, later.parts[0].slot)
        return answer

    def forget(self) -> None:
        """All connections are closed: no answer comes any more."""
        self._commands.clear()
        self._asked.clear()
        self._late.clear()
        self._time_asked_s.clear()

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

    def _ask_for_time(self, command: Command) -> None:
        """Have the node asked whose time is that of the cluster, if it is time to ask it."""
        time, part = self._map.time, command.parts[0]
        if time.slot is None or part.is_in_transaction:
            return
        if (asked_s := time.asks()) is None:
            part.ends(None)
        else:
            part.slot, part.may_go_elsewhere = time.slot, False
            self._time_asked_s[id(command)] = asked_s

    def _has_time(self, command: Command) -> Generator[ToDo, Any, bool]:
        """Whether the time of the cluster is the answer. If not, the answer of a node is used; this asks another node
        if the first is away."""
        time, part = self._map.time, command.parts[0]
        asked_s = self._time_asked_s.pop(id(command), None)
        if asked_s is not None and isinstance(part.answer, list):
            time.told(part.answer, asked_s)
        if time.slot is not None and time.is_known and not part.is_in_transaction:
            return True
        if isinstance(part.answer, NodeAway):
            yield from self._what_time_is_it(command, None)  # any other node knows
        return False

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


def half_sent(error: RedisError) -> NodeAway:
    """The error with which a sending has ended: the node may have got some of the commands, and does them."""
    away = NodeAway(str(error), was_sent=True)
    away.__cause__ = error
    return away
