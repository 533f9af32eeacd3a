"""Examines the server of a store: its release, what a crash would lose, what takes its place, its memory."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from sagastream.broker.connection import Broker
from sagastream.broker.exchange import run
from sagastream.broker.launch import MEMORY_VARIABLE
from sagastream.client.evidence import troubles_of_broker
from sagastream.core.causes import CauseKind
from sagastream.orchestrator.room import FULL_AT, ROOM_AT
from sagastream.store import published
from sagastream.store.keys import StoreKeys
from sagastream_bridge.inspection import memory, succession_check
from sagastream_bridge.inspection.findings import Finding, ok, problem, problem_of, warning
from sagastream_bridge.inspection.holes import holes

#: What findings about holes of the server are about.
SECURITY: Final = "security"


class ServerCheck:
    def __init__(self, broker: Broker, keys: StoreKeys) -> None:
        self._broker = broker
        self._client = broker.client
        self._keys = keys

    def examine(self) -> Iterator[Finding]:
        info: Any = self._client.info()
        yield from self._release(info)
        yield from self._troubles()
        yield self._durability(info)
        yield from succession_check.examine(self._broker, info)
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

    def _durability(self, info: Mapping[str, Any]) -> Finding:
        if not info["aof_enabled"]:
            return problem("durability", "appendonly is off: a crash loses what was accepted", "set appendonly yes")
        if (mode := self._broker.appendfsync()) is None:
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
        services = run(self._client, published.services(self._keys))
        parts = memory.parts(self._client, self._keys, services)
        parts.append(memory.Part("all else", max(0, used - sum(part.bytes for part in parts))))
        taken = ", ".join(f"{part.what} {part.bytes // 1024} KiB" for part in parts)
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
