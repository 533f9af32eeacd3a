"""What an embedded server is started with: its settings, its environment."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Final

from sagastream.broker.home import Home
from sagastream.broker.program import find_program
from sagastream.broker.server_log import LOG

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
    program = find_program()
    with os.fdopen(home.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "ab") as log:
        process = subprocess.Popen(
            [program.path, "-"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd=home.path,
            env=_environment() if program.wants_jemalloc and not plain else None,
            start_new_session=True,  # Ctrl-C must not stop the store before the worker that writes to it
            pass_fds=[life_fd],
            umask=0o077,
        )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin:
        process.stdin.write(_settings(home, reached_by))
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
        "maxmemory-policy": "noeviction",
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


def _environment() -> dict[str, str]:
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
