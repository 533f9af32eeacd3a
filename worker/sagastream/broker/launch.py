"""What an embedded server is started with: its settings, its environment."""

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from sagastream.broker.home import Home
from sagastream.broker.program import find_program
from sagastream.broker.server_log import LOG
from sagastream.errors import BrokerError

#: How much memory the server's data take at most: a number of bytes, or with a unit as in redis.conf.
MEMORY_VARIABLE: Final = "SAGASTREAM_MAXMEMORY"
_UNITS: Final = {"": 1, "k": 1000, "kb": 1 << 10, "m": 10**6, "mb": 1 << 20, "g": 10**9, "gb": 1 << 30}
#: Below this, the streams of an empty store would fill it.
_LEAST_BYTES: Final = 16 << 20
#: How much a container may have.
_CGROUP: Final = Path("/sys/fs/cgroup/memory.max")

#: What a server does not know. An append-only file is a list of commands, and may come from somebody else. So it must
#: not load code, open a port, let others in, or talk to other servers.
_WITHOUT: Final = (
    "ACL",
    "CLUSTER",
    "CONFIG",
    "DEBUG",
    "FAILOVER",
    "MIGRATE",
    "MODULE",
    "PSYNC",
    "REPLICAOF",
    "SLAVEOF",
    "SYNC",
)


def launch(home: Home, reached_by: Mapping[str, object], life_fd: int, *, plain: bool) -> "subprocess.Popen[bytes]":
    """Start a server. `reached_by`: the settings that say where it listens, and what it asks then. It holds the lock
    `life_fd`, too, for as long as it lives. `plain`: in our environment as it is."""
    program, settings = find_program(), _settings(home, reached_by)
    with os.fdopen(home.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab") as log:
        process = subprocess.Popen(
            [program.path, "-"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd=home.path,
            env=with_jemalloc() if program.wants_jemalloc and not plain else None,
            start_new_session=True,  # Ctrl-C must not stop the store before the worker that writes to it
            pass_fds=[life_fd],
            umask=0o077,
        )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin:
        process.stdin.write(settings)
    return process


def _settings(home: Home, reached_by: Mapping[str, object]) -> bytes:
    """The server's configuration. It reads it from its standard input: everybody on the machine can read command
    lines."""
    settings = {
        "dir": home.path,
        "pidfile": home / "valkey.pid",
        "port": 0,
        "unixsocketperm": 700,
        "appendonly": "yes",
        "appendfsync": "always",
        "save": "",
        "maxmemory": most_memory(os.environ),
        "maxmemory-policy": "noeviction",
        # How often a second an idle server looks whether somebody has waited for long enough. With 10, the default,
        # what is due comes up to 0.1 s late. It costs 0.2 % of a core.
        "hz": 100,
        "sanitize-dump-payload": "yes",  # a file of data that was made to break the server is refused
        # The hash of a saga of up to about 50 steps stays in its compact encoding, in which HGETALL also shows the
        # fields in the order in which they were written. Not more: the records of a service are a hash, too, and a
        # compact one is searched field by field. With 2048, the first 2,000 sagas of an hour took twice as long.
        "hash-max-listpack-value": 1024,
        "hash-max-listpack-entries": 512,
        **reached_by,
    }
    lines = [f"{name} {_quoted(str(value))}" for name, value in settings.items()]
    return "\n".join([*lines, *(f'rename-command {command} ""' for command in _WITHOUT), ""]).encode()


def most_memory(environment: Mapping[str, str]) -> int:
    """How many bytes the server's data take at most: as `environment` says, or half of what there is.

    Without a limit, a flood of begins would end with the machine's memory, and with whatever the system kills then.
    Raises BrokerError.
    """
    asked = environment.get(MEMORY_VARIABLE, "")
    if not asked:
        return max(_LEAST_BYTES, _memory() // 2)
    found = re.fullmatch(r"([0-9]{1,15})([kmg]?b?)", asked.strip().lower())
    unit = None if found is None else _UNITS.get(found[2])
    if found is None or unit is None or (most := int(found[1]) * unit) < _LEAST_BYTES:
        raise BrokerError(f"{MEMORY_VARIABLE} is {asked!r}: give a whole number of kb, mb or gb, at least 16mb")
    return most


def _memory() -> int:
    """How much memory the machine or the container has, in bytes."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        return min(machine, int(_CGROUP.read_text()))
    except (OSError, ValueError):  # there is no container, or it has no limit of its own
        return machine


def with_jemalloc() -> dict[str, str]:
    """The environment of the server: with jemalloc, if the machine has it. The bundled server uses the malloc of the C
    library, which takes a third of the server's time when scripts handle many short words. Tuning that malloc by
    GLIBC_TUNABLES brought nothing. An LD_PRELOAD that is set already stays, even an empty one."""
    from ctypes.util import find_library  # only the start of a server needs it

    environment = dict(os.environ)
    with contextlib.suppress(OSError):  # find_library may run a compiler, and write a file for it
        if sys.platform == "linux" and (jemalloc := find_library("jemalloc")):
            environment.setdefault("LD_PRELOAD", jemalloc)
    return environment


def _quoted(text: str) -> str:
    """A value as the server's configuration has it: what is not plain ASCII as bytes in hexadecimal."""
    plain = (
        chr(byte) if 0x20 <= byte < 0x7F and byte not in b'"\\' else f"\\x{byte:02x}" for byte in os.fsencode(text)
    )
    return f'"{"".join(plain)}"'
