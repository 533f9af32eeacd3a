"""A cluster on this machine, for the time of a measurement."""

import contextlib
import ctypes
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import redis

from sagastream.broker import wire
from sagastream.broker.cluster_map import SLOTS
from sagastream.broker.launch import with_jemalloc
from sagastream.broker.program import Program, find_program
from sagastream.errors import BrokerError

#: Within which time the nodes must be a cluster, in seconds.
_READY_WITHIN_S: Final = 30.0
_PR_SET_PDEATHSIG: Final = 1  # of linux/prctl.h
_LIBC: Final = ctypes.CDLL(None)  # loaded here, since a process that was forked should do little


@contextmanager
def started(count: int, folder: Path) -> Iterator[str]:
    """So many masters, each with its part of the slots, as durable as an embedded server. They listen on loopback, with
    a password. Gives the url of one of them.

    Raises BrokerError."""
    program, password = find_program(), secrets.token_hex(16)
    with ExitStack() as stack:
        ports = _free_ports(2 * count)
        nodes = []
        for number, (port, bus) in enumerate(zip(ports[:count], ports[count:], strict=True)):
            process = _launched(program, folder / f"node-{number + 1}", port, bus, password)
            stack.callback(_end, process)
            nodes.append(stack.enter_context(redis.Redis(port=port, password=password, socket_timeout=10)))
        _join(nodes, ports, count)
        yield f"redis://:{password}@127.0.0.1:{ports[0]}"


def _launched(program: Program, folder: Path, port: int, bus: int, password: str) -> "subprocess.Popen[bytes]":
    folder.mkdir()
    settings = {
        "dir": folder,
        "bind": "127.0.0.1",
        "port": port,
        "cluster-enabled": "yes",
        "cluster-port": bus,
        "requirepass": password,
        "appendonly": "yes",
        "appendfsync": "always",
        "save": '""',
        "hash-max-listpack-value": 1024,
        "hash-max-listpack-entries": 512,
    }
    process = subprocess.Popen(
        [program.path, "-"],  # not as arguments, which everybody on the machine can read
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env=with_jemalloc() if program.wants_jemalloc else dict(os.environ),
        start_new_session=True,  # Ctrl-C must not stop it before the processes that use it
        # There are no other threads yet.
        preexec_fn=partial(_ends_with, os.getpid()) if sys.platform == "linux" else None,  # noqa: PLW1509
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin:
        process.stdin.write("".join(f"{name} {value}\n" for name, value in settings.items()).encode())
    return process


def _ends_with(parent: int) -> None:
    """In a process that starts: have the system kill it once its parent is dead, however that ends. So a bench that is
    killed leaves no nodes behind. Other systems than Linux have no such call."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:  # it has died meanwhile
        os._exit(1)


def _join(nodes: "list[redis.Redis]", ports: list[int], count: int) -> None:
    until = time.monotonic() + _READY_WITHIN_S
    for number, node in enumerate(nodes):
        while not _answers(node):
            _check_time(until)
        first, end = (SLOTS * at // count for at in (number, number + 1))
        _ask(node, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        _ask(node, "CLUSTER", "ADDSLOTSRANGE", first, end - 1)
        if number:
            _ask(node, "CLUSTER", "MEET", "127.0.0.1", ports[0], ports[count])
    while not all(_is_ready(node, count) for node in nodes):
        _check_time(until)


def _answers(node: "redis.Redis") -> bool:
    with contextlib.suppress(redis.RedisError):
        return bool(node.ping())
    return False


def _is_ready(node: "redis.Redis", count: int) -> bool:
    """Whether it knows all of them, and takes writes."""
    state = _ask(node, "CLUSTER", "INFO")
    facts = state if isinstance(state, dict) else dict(line.split(":") for line in state.decode().splitlines() if line)
    slots = {(first, last) for first, last, *_ in _raw(node, "CLUSTER", "SLOTS")}
    return facts["cluster_state"] == "ok" and len(slots) == count


def _ask(node: "redis.Redis", *words: Any) -> Any:
    return node.execute_command(*words)  # type: ignore[no-untyped-call]


def _raw(node: "redis.Redis", *words: Any) -> Any:
    """The answer as it comes, which redis-py would make something else of."""
    return wire.or_raise(*wire.round_trip(node, [words]))


def _check_time(until: float) -> None:
    if time.monotonic() > until:
        raise BrokerError(f"the nodes did not form a cluster within {_READY_WITHIN_S:g} s")
    time.sleep(0.05)


def _free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()  # its data are thrown away
    process.wait()
