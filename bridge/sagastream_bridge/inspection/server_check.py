"""Examines the server of a store, or each node of its cluster: its release, what a crash would lose, what takes its
place, its memory."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import redis

from sagastream.broker.connection import Broker
from sagastream.broker.exchange import run
from sagastream.broker.failures import is_outage
from sagastream.broker.launch import MEMORY_VARIABLE
from sagastream.client.evidence import troubles_of_broker
from sagastream.core.causes import CauseKind
from sagastream.orchestrator.room import FULL_AT, ROOM_AT
from sagastream.store import published
from sagastream.store.keys import StoreKeys
from sagastream_bridge.inspection import cluster_check, memory, succession_check
from sagastream_bridge.inspection.findings import OK, Finding, ok, problem, problem_of, warning
from sagastream_bridge.inspection.holes import holes

#: What findings about holes of the server are about.
SECURITY: Final = "security"


def examine(broker: Broker, keys: StoreKeys | None) -> Iterator[Finding]:
    """The server, or the nodes of the cluster. `keys`: None: nothing can be said of the store."""
    servers = broker.servers()
    if not broker.is_cluster:
        yield from ServerCheck(broker, broker.client, keys).examine()
        return
    found = cluster_check.seen(broker, keys)
    partitions = None if keys is None else len(keys.tags)
    nodes: list[Finding] = []
    silent: list[str] = []  # the addresses of masters that do not answer
    wrong: dict[Finding, list[str]] = {}  # and the nodes of which it is so: most settings are alike on all
    clocks: dict[str, int] = {}
    coverage: dict[str, str] = {}
    moving: set[int] = set()
    for one in found.masters:
        if (client := servers.get(one.address)) is None:  # it has no slots, or is new
            continue
        try:
            findings = list(ServerCheck(broker, client, None if keys is None else keys.only(one.partitions)).examine())
            clocks[one.address] = cluster_check.ahead_ms(client)
            coverage[one.address] = cluster_check.coverage(client)
            moving |= cluster_check.moving(client)
        except redis.RedisError as error:
            if not (is_outage(error) or isinstance(error, redis.AuthenticationError)):
                raise
            nodes.append(cluster_check.of_away(one, error, partitions))
            silent += [one.address] if is_outage(error) else []  # one that refuses the login is there
            continue
        well = [finding.text for finding in findings if finding.level == OK]
        nodes.append(ok(f"node {one.address}", "; ".join([*well, *cluster_check.held(one, partitions)])))
        for finding in findings:
            if finding.level != OK:
                wrong.setdefault(finding, []).append(one.address)
    yield from cluster_check.of_view(found, partitions, silent)
    yield from nodes
    for finding, addresses in wrong.items():
        where = "each node" if len(addresses) == len(clocks) > 1 else f"node {', '.join(addresses)}"
        yield replace(finding, text=f"{where}: {finding.text}")
    yield from cluster_check.of_coverage(coverage)
    if keys is not None:
        yield from cluster_check.of_moving(moving, keys)
    yield from cluster_check.of_clocks(clocks)


class ServerCheck:
    def __init__(self, broker: Broker, client: "redis.Redis", keys: StoreKeys | None) -> None:
        """`client`: of the server. `keys`: of what it has of the store; None: that is not known."""
        self._broker = broker
        self._client = client
        self._keys = keys

    def examine(self) -> Iterator[Finding]:
        info: Any = self._client.info()
        yield from self._release(info)
        yield from self._troubles()
        yield self._durability(info)
        yield from self._succession(info)
        yield from self._memory()

    def _release(self, info: Mapping[str, Any]) -> Iterator[Finding]:
        kind, version = (
            ("Valkey", info["valkey_version"]) if "valkey_version" in info else ("Redis", info["redis_version"])
        )
        name = f"{kind} {version}"
        if int(str(info["redis_version"]).split(".", maxsplit=1)[0]) < 7:
            yield problem("server", f"{name} is too old: Redis 7.0 or Valkey 8 or later is needed")
        else:
            yield ok("server", name)
        if (known := holes(kind, str(version))) is not None:
            yield warning(SECURITY, known)

    def _troubles(self) -> Iterator[Finding]:
        _, troubles = run(self._client, troubles_of_broker())
        for cause in troubles:
            if cause.kind is not CauseKind.BROKER_FULL:  # of which _memory tells
                yield problem_of("server", cause.text, cause)

    def _succession(self, info: Mapping[str, Any]) -> Iterator[Finding]:
        if self._broker.is_cluster:
            yield from succession_check.of_replicas(info, watched=False)
        else:
            yield from succession_check.examine(self._broker, info)

    def _durability(self, info: Mapping[str, Any]) -> Finding:
        if not info["aof_enabled"]:
            return problem("durability", "appendonly is off: a crash loses what was accepted", "set appendonly yes")
        if (mode := self._broker.appendfsync(self._client)) is None:
            return warning("durability", "appendonly is on; the server does not say with which appendfsync")
        if mode != "always":
            return warning(
                "durability", f"appendfsync is {mode}: a power cut loses what was accepted last", "set always"
            )
        return ok("durability", "appendonly with appendfsync always")

    def _memory(self) -> Iterator[Finding]:
        info: Any = self._client.info("memory")
        used, most = int(info["used_memory"]), int(info["maxmemory"])
        if info["maxmemory_policy"] != "noeviction":
            policy = info["maxmemory_policy"]
            yield problem("memory", f"maxmemory-policy is {policy}: it may drop sagas", "set noeviction")
        elif most and used >= FULL_AT * most:
            yield self._full(used, most)
        else:
            yield ok("memory", f"{used // 2**20} MiB used, " + (f"at most {most // 2**20} MiB" if most else "no limit"))

    def _full(self, used: int, most: int) -> Finding:
        """What fills the store, and what helps."""
        taken = ", ".join(f"{part.what} {part.bytes // 1024} KiB" for part in self._parts(used))
        state = f"{used / most:.0%} of maxmemory ({most / 2**20:.0f} MiB) is used"
        begins = f"sagas begin again below {ROOM_AT:.0%}, and what has begun goes on"
        more = f"{max(2 * most, 2 * used) // 2**20}mb"
        how = f"CONFIG SET maxmemory {more}"
        if self._broker.embedded is not None:
            how = f"stop all, then start it with {MEMORY_VARIABLE}={more}"
        return problem(
            "memory",
            f"{state}: {begins}. That is about: {taken}",
            f"raise it: {how}",
            "or keep less from now on: fewer --retention-days, small results",
        )

    def _parts(self, used: int) -> list[memory.Part]:
        parts = []
        if self._keys is not None:
            client = self._broker.client  # of a cluster, too: it finds the node
            parts = memory.parts(client, self._keys, run(client, published.services(self._keys)))
        return [*parts, memory.Part("all else", max(0, used - sum(part.bytes for part in parts)))]
