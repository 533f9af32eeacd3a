"""What the processes used: CPU time by kind of process, memory of the server; and in which batches they worked."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """CPU seconds of each kind of process, since they started."""

    server: float
    workers: float
    services: float
    #: Since the server started: entries that were added to streams, readings by groups, and calls of scripts.
    entries: int
    readings: int
    scripts: int

    def since(self, before: "Account") -> "Account":
        return Account(
            entries=self.entries - before.entries,
            readings=self.readings - before.readings,
            scripts=self.scripts - before.scripts,
            server=self.server - before.server,
            workers=self.workers - before.workers,
            services=self.services - before.services,
        )


def account(servers: "Sequence[redis.Redis]", pids: Mapping[str, Sequence[int]]) -> Account:
    """`servers`: the server, or the nodes of a cluster. `pids`: of the workers and of the services."""
    used: list[Any] = [client.info("cpu") for client in servers]
    calls: list[Any] = [client.info("commandstats") for client in servers]
    return Account(
        **{
            what: sum(int(each.get(f"cmdstat_{command}", {"calls": 0})["calls"]) for each in calls)
            for what, command in (("entries", "xadd"), ("readings", "xreadgroup"), ("scripts", "evalsha"))
        },
        server=sum(float(each["used_cpu_user"]) + float(each["used_cpu_sys"]) for each in used),
        workers=sum(map(_cpu_s, pids["workers"])),
        services=sum(map(_cpu_s, pids["services"])),
    )


def used_memory(servers: "Sequence[redis.Redis]") -> int:
    """Bytes of their data."""
    infos: list[Any] = [client.info("memory") for client in servers]
    return sum(int(info["used_memory_dataset"]) for info in infos)


def memory_of(pids: Sequence[int]) -> int:
    """Bytes of memory that these processes use."""
    asked = ["ps", "-o", "rss=", "-p", ",".join(map(str, pids))]
    return 1024 * sum(map(int, subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()))


def _cpu_s(pid: int) -> float:
    stat = Path(f"/proc/{pid}/stat")
    if stat.exists():
        user, system = stat.read_text().rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    shown = subprocess.run(["ps", "-o", "cputime=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    seconds = 0.0
    for part in shown.strip().split(":"):
        seconds = seconds * 60 + float(part or 0)
    return seconds
