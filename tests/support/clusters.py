"""A cluster of servers, each at a port of its own on loopback: its nodes die, hang, come and go, and slots move."""

import contextlib
import random
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry

from sagastream.broker.connection import Broker
from support.gates import CLIENTS, Gates
from support.servers import OwnServer, binary_of
from support.waiting import until

SLOTS: Final = 16384
#: For how long a node must be silent until the others take it for down: short, since tests wait for that.
NODE_TIMEOUT_MS: Final = 1000
#: Ports of nodes, and of their talk with each other. Below those that the kernel gives to connections: a node that died
#: is to find its port free.
_PORTS: Final = range(10_000, 32_768)
#: How many slots are moved together, and how many keys of one slot.
_SLOTS_AT_ONCE, _KEYS_AT_ONCE = 512, 100


@dataclass(eq=False)
class Node(OwnServer):
    """One server of a cluster. `url` leads to it; a client that knows clusters finds the others from there."""

    port: int = 0
    bus: int = 0  # the port at which the other nodes reach it
    settings: tuple[str, ...] = ()  # besides those of all nodes
    source: str = ""  # the address that it comes from, if there are gates …
    gates: tuple[int, int] | None = None  # … and the ports of its own
    is_parted: bool = False
    _id: str = ""

    def _listens(self) -> tuple[str, ...]:
        return (
            *("--port", str(self.port), "--bind", "127.0.0.1", "--repl-diskless-sync-delay", "0"),
            *("--cluster-enabled", "yes", "--cluster-port", str(self.bus), "--cluster-announce-ip", "127.0.0.1"),
            *("--cluster-node-timeout", str(NODE_TIMEOUT_MS), "--cluster-config-file", "nodes.conf"),
            # If a node is down, only its own slots are; and a replica takes over, whatever it lacks.
            *("--cluster-require-full-coverage", "no", "--cluster-replica-validity-factor", "0"),
            *self._behind_gates(),
            *self.settings,
        )

    def _behind_gates(self) -> tuple[str, ...]:
        if self.gates is None:
            return ()
        port, bus = map(str, self.gates)
        return ("--cluster-announce-port", port, "--cluster-announce-bus-port", bus, "--bind-source-addr", self.source)

    def connect(self) -> redis.Redis:
        """Not of `sagastream`, whose clients ask the other nodes, too. A node that hangs fails soon."""
        return redis.Redis(port=self.port, protocol=2, socket_timeout=10.0, retry=Retry(NoBackoff(), 0))

    def ask(self, *words: Any) -> Any:
        """What it answers to one command, as it comes."""
        with self.connect() as client:
            return client.execute_command(*words)

    @property
    def node_id(self) -> str:
        if not self._id:
            self._id = self.ask("CLUSTER", "MYID").decode()
        return self._id

    @property
    def is_live(self) -> bool:
        """Whether its process runs and is not paused."""
        if self.process is None or self.process.poll() is not None:
            return False
        return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T"

    def pause(self) -> None:
        super().pause()
        until(lambda: not self.is_live, what="it stands still")


class Cluster:
    """`nodes`: all that belong to it, also those that are dead or paused. At first, the masters are at the front, and
    node `n` of them has the n-th part of the slots; then come the replicas, in the same order."""

    def __init__(
        self, kind: str, folder: Path, masters: int = 3, replicas: int = 0, *settings: str, gates: bool = False
    ) -> None:
        """`replicas`: of each master. `settings`: arguments of each node. `gates`: have all, clients and nodes, reach
        each other through gates, which is slower."""
        self._kind, self._folder, self._settings = kind, folder, settings
        self._gates = Gates() if gates else None
        self.brokers: list[Broker] = []
        self.nodes: list[Node] = []
        try:
            self._start(masters, replicas)
        except BaseException:
            self.stop()
            raise

    def _start(self, masters: int, replicas: int) -> None:
        for _ in range(masters * (1 + replicas)):
            self.nodes.append(self._node())
        for number, node in enumerate(self.nodes):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number < masters:
                first, end = (SLOTS * at // masters for at in (number, number + 1))
                node.ask("CLUSTER", "ADDSLOTSRANGE", first, end - 1)
            for other in self.nodes[:number]:
                _meet(node, other)
        for number, node in enumerate(self.nodes[masters:]):
            master = self.nodes[number % masters]
            until(partial(_replicates, node, master), what="a replica knows its master")
        self.wait_ok()

    def _node(self) -> Node:
        folder = self._folder / f"node-{len(self.nodes) + 1}"
        folder.mkdir()
        port, bus = free_ports(2)
        node = Node(binary_of(self._kind), folder, f"redis://127.0.0.1:{port}", port=port, bus=bus)
        node.settings = self._settings
        if self._gates is not None:
            node.source = f"127.0.0.{len(self.nodes) + 2}"
            node.gates = (self._gates.open(node.source, port), self._gates.open(node.source, bus))
            node.url = f"redis://127.0.0.1:{node.gates[0]}"
        try:
            node.start()
        except BaseException:
            node.stop()
            raise
        return node

    # --- who is where

    @property
    def url(self) -> str:
        """That of a node that answers."""
        return self.live[0].url

    def broker(self) -> Broker:
        self.brokers.append(Broker(self.url))
        return self.brokers[-1]

    @property
    def live(self) -> list[Node]:
        """The nodes that are neither dead nor paused, nor parted from the others."""
        return [node for node in self.nodes if node.is_live and not node.is_parted]

    @property
    def masters(self) -> list[Node]:
        """Those that hold slots, in the order of their first slots."""
        holders = (self._named(slots[2]) for slots in sorted(_slots(self.live[0])))
        return list(dict.fromkeys(holders))

    def node_of(self, key: str | bytes | int) -> Node:
        """The node that holds a key, or a slot, by what one that answers says."""
        slot = key if isinstance(key, int) else slot_of(key)
        for first, last, holder in _slots(self.live[0]):
            if first <= slot <= last:
                return self._named(holder)
        raise AssertionError(f"nobody holds slot {slot}")

    def slots_of(self, node: Node) -> list[int]:
        found = [range(first, last + 1) for first, last, holder in _slots(self.live[0]) if holder == node.node_id]
        return [slot for part in found for slot in part]

    def replicas_of(self, node: Node) -> list[Node]:
        return [self._named(one.node_id) for one in _known(self.live[0]) if one.master_id == node.node_id]

    def _named(self, node_id: str) -> Node:
        return next(node for node in self.nodes if node.node_id == node_id)

    def all_keys(self) -> set[bytes]:
        found: set[bytes] = set()
        for node in self.masters:
            with node.connect() as client:
                found |= set(client.scan_iter(count=1000))
        return found

    def described(self) -> str:
        """What each live node says of all, for the message of a failure."""
        told = []
        for node in self.live:
            try:
                told += [f"{node.url} says:", node.ask("CLUSTER", "NODES").decode()]
            except redis.RedisError as error:
                told.append(f"{node.url} says: {error}")
        return "\n".join(told)

    # --- waiting

    def wait_ok(self) -> None:
        """Until every live node knows all nodes and says that all is well, they agree who holds what and who replicates
        whom, each slot has a live holder, and each live replica has all."""
        until(self._is_ok, what="all live nodes say that the cluster is well")

    def _is_ok(self) -> bool:
        with contextlib.suppress(redis.RedisError):
            live = self.live
            views = [(_slots(node), {one.node_id: one.master_id for one in _known(node)}) for node in live]
            holding, _ = views[0]
            return (
                all(view == views[0] for view in views)
                and sum(last - first + 1 for first, last, _ in holding) == SLOTS
                and {holder for _, _, holder in holding} <= {node.node_id for node in live}
                and all(self._is_well(node) for node in live)
            )
        return False

    def _is_well(self, node: Node) -> bool:
        known = _known(node)
        with node.connect() as client:
            about: Any = client.info("replication")
            state = client.execute_command("CLUSTER", "INFO")
        live = {one.node_id for one in self.live}
        return (
            b"cluster_state:ok" in state
            and {one.node_id for one in known} == {one.node_id for one in self.nodes}
            and all(one.is_seen for one in known if one.node_id in live)
            and (about["role"] == "master" or about["master_link_status"] == "up")
        )

    def wait_for_replicas(self, node: Node) -> None:
        """Until its replicas have all that it has now."""
        with node.connect() as client:
            client.set(self._key_at(node), "1")
            replicas = len([one for one in self.replicas_of(node) if one.is_live])
            assert client.wait(replicas, 10_000) == replicas

    def _key_at(self, node: Node) -> str:
        """A key of the tests that this node holds."""
        slots = set(self.slots_of(node))
        return next(key for n in range(1 << 20) if slot_of(key := f"support:{{{n}}}") in slots)

    # --- what happens to it

    @contextlib.contextmanager
    def falling_behind(self, node: Node) -> Iterator[None]:
        """Within this, nothing that the node accepts reaches its replicas: they are paused. At the end they go on, and
        have lost it if the node is dead by then."""
        replicas = self.replicas_of(node)
        for replica in replicas:
            replica.pause()
        node.ask("CLIENT", "KILL", "TYPE", "replica")  # else the kernel would keep what comes, and hand it over later
        try:
            yield
        finally:
            for replica in replicas:
                replica.resume()

    @contextlib.contextmanager
    def parted(self, *nodes: Node, clients: bool) -> Iterator[None]:
        """Within this, nothing goes between these nodes and the others. `clients`: nor between these and clients; what
        tests themselves ask the nodes reaches all."""
        assert self._gates is not None, "this cluster has no gates"
        ones = {node.source for node in nodes}
        others = {node.source for node in self.nodes} - ones
        for node in nodes:
            node.is_parted = True
        try:
            with self._gates.cut(ones, others | ({CLIENTS} if clients else set())):
                yield
        finally:
            for node in nodes:
                node.is_parted = False

    def move_slots(self, what: Iterable[int | str | bytes], to: Node) -> None:
        """Move slots, or those of keys, with all keys in them, as the tools of the servers do. They may be in use."""
        slots = sorted({one if isinstance(one, int) else slot_of(one) for one in what})
        by_source: dict[int, list[int]] = {}
        for first, last, holder in _slots(to):
            if holder != to.node_id:
                by_source.setdefault(self.nodes.index(self._named(holder)), []).extend(
                    slot for slot in slots if first <= slot <= last
                )
        for number, of_source in by_source.items():
            for at in range(0, len(of_source), _SLOTS_AT_ONCE):
                self._move(of_source[at : at + _SLOTS_AT_ONCE], self.nodes[number], to)

    def _move(self, slots: list[int], source: Node, to: Node) -> None:
        with source.connect() as near, to.connect() as far:
            _each(far, [("CLUSTER", "SETSLOT", slot, "IMPORTING", source.node_id) for slot in slots])
            _each(near, [("CLUSTER", "SETSLOT", slot, "MIGRATING", to.node_id) for slot in slots])
            rest = slots
            while rest:
                pages = _each(near, [("CLUSTER", "GETKEYSINSLOT", slot, _KEYS_AT_ONCE) for slot in rest])
                rest = [slot for slot, page in zip(rest, pages, strict=True) if page]
                for page in filter(None, pages):
                    near.execute_command("MIGRATE", "127.0.0.1", to.port, "", 0, 5000, "KEYS", *page)
            # First at the target: if it did not know, and the source did, nobody would hold them.
            ends = [("CLUSTER", "SETSLOT", slot, "NODE", to.node_id) for slot in slots]
            _each(far, ends)
            with contextlib.suppress(redis.ResponseError):  # it has heard that it holds nothing, and is a replica now
                _each(near, ends)
        for node in self.live:
            if node not in (source, to) and node in self.masters:
                with node.connect() as client:
                    _each(client, ends)

    @contextlib.contextmanager
    def half_moved(self, key: str, to: Node) -> Iterator[None]:
        """Within this, the slot of this key is on its way to this node, which has this key by now, and no other. At the
        end, it is back."""
        slot, source = slot_of(key), self.node_of(key)
        with source.connect() as near, to.connect() as far:
            far.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", source.node_id)
            near.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", to.node_id)
            near.execute_command("MIGRATE", "127.0.0.1", to.port, "", 0, 5000, "KEYS", key)
            try:
                yield
            finally:
                near.execute_command("CLUSTER", "SETSLOT", slot, "STABLE")
                far.execute_command("MIGRATE", "127.0.0.1", source.port, "", 0, 5000, "KEYS", key)
                far.execute_command("CLUSTER", "SETSLOT", slot, "STABLE")

    def migrate_slots(self, what: Iterable[int | str | bytes], to: Node) -> None:
        """Have the nodes themselves move these slots, or those of keys, all at once: Valkey 9 does that."""
        slots = {one if isinstance(one, int) else slot_of(one) for one in what}
        for source in self.masters:
            its = sorted(slots & set(self.slots_of(source)))
            if its and source is not to:
                ranges = [end for slot in its for end in (slot, slot)]
                source.ask("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", *ranges, "NODE", to.node_id)
        until(lambda: slots <= set(self.slots_of(to)), what="the nodes have moved the slots")

    def add_node(self) -> Node:
        """A master that holds no slots yet."""
        node = self._node()
        for other in self.live:
            _meet(node, other)
        self.nodes.append(node)
        self.wait_ok()
        return node

    def empty_node(self, node: Node) -> None:
        """Move all that it holds to the other masters."""
        others = [one for one in self.masters if one is not node]
        slots = self.slots_of(node)
        for number, other in enumerate(others):
            first, end = (len(slots) * at // len(others) for at in (number, number + 1))
            self.move_slots(slots[first:end], other)

    # --- its end

    def close_brokers(self) -> None:
        while self.brokers:
            self.brokers.pop().close()

    def clear(self) -> None:
        """Bring all nodes back to their state at the start. Slots stay where they are."""
        for node in self.nodes:
            node.clear()

    def stop(self) -> None:
        self.close_brokers()
        for node in self.nodes:
            node.stop()
        if self._gates is not None:
            self._gates.close()


def slot_of(key: str | bytes) -> int:
    return int(key_slot(key.encode() if isinstance(key, str) else key))


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on."""
    found: list[int] = []
    while len(found) < count:
        port = random.choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            found += [port] if port not in found else []
    return found


def _meet(node: Node, other: Node) -> None:
    node.ask("CLUSTER", "MEET", "127.0.0.1", *(other.gates or (other.port, other.bus)))


def _replicates(node: Node, master: Node) -> bool:
    with contextlib.suppress(redis.ResponseError):  # it does not know it yet
        node.ask("CLUSTER", "REPLICATE", master.node_id)
        return True
    return False


def _each(client: redis.Redis, commands: list[tuple[Any, ...]]) -> list[Any]:
    """The answers to many commands. Raises the first error."""
    pipeline: Any = client.pipeline(transaction=False)
    for command in commands:
        pipeline.execute_command(*command)
    return list(pipeline.execute())


def _slots(node: Node) -> list[tuple[int, int, str]]:
    """First and last slot, and the id of the holder: all ranges, as this node sees it."""
    return sorted((first, last, holder[2].decode()) for first, last, holder, *_ in node.ask("CLUSTER", "SLOTS"))


@dataclass(frozen=True, slots=True)
class _Known:
    """What one node says of another."""

    node_id: str
    is_seen: bool  # and not down, or of unknown name
    master_id: str | None


def _known(node: Node) -> list[_Known]:
    found = []
    for line in node.ask("CLUSTER", "NODES").decode().splitlines():
        node_id, _, flags, master_id, *_ = line.split()
        wrong = {"fail", "fail?", "handshake", "noaddr"} & set(flags.split(","))
        found.append(_Known(node_id, not wrong, None if master_id == "-" else master_id))
    return found
