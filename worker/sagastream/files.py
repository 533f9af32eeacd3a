"""Files that a person names, read so that nothing hangs and no memory is filled, whatever stands at that place.

A pipe may be named, as `<(…)` of a shell does. A device may not: some have no end, and some wait for a person.
"""

import errno
import os
import select
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

#: The longest content that is read, in bytes: 16 times that of the largest message.
MOST_BYTES: Final = 16 << 20
#: How long it may take until something comes out of a pipe, in seconds.
SILENCE_S: Final = 30.0
#: The name of standard input.
STDIN: Final = "-"
#: How much is read at a time, in bytes.
PIECE_BYTES: Final = 1 << 16
#: How long to wait if a file says both that it has something and that it has not, in seconds.
_AGAIN_S: Final = 0.05

Named = str | os.PathLike[str]
#: Looks at a file that is open. Raises what is wrong with it.
Check = Callable[[os.stat_result], object]


def given(where: str) -> bytes:
    """What stands in a file, or with - on standard input. Raises OSError, with words for a person in `strerror`."""
    if where != STDIN:
        return content(where)
    if len(found := sys.stdin.buffer.read(MOST_BYTES + 1)) > MOST_BYTES:
        raise _too_large(where)
    return found


def content(path: Named, check: Check | None = None) -> bytes:
    """What stands in a file. Raises OSError, with words for a person in `strerror`, and what `check` raises."""
    found = bytearray()
    for piece in pieces(path, check):
        found += piece
        if len(found) > MOST_BYTES:
            raise _too_large(path)
    return bytes(found)


def pieces(path: Named, check: Check | None = None) -> Iterator[bytes]:
    """The same, piece by piece and without an end, for what is kept in another file."""
    _refuse_device(Path(path).stat(), path)  # before it is opened: that alone makes some devices do something
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        told = os.fstat(fd)
        _refuse_device(told, path)
        if check is not None:
            check(told)
        yield from _read(fd, path)
    except OSError as error:
        error.filename = error.filename or os.fspath(path)  # os.read knows none
        raise
    finally:
        os.close(fd)


def refuse_unusual(path: Named) -> None:
    """Check a file before something else reads it, and reads all of it. Raises OSError."""
    told = Path(path).stat()
    if not stat.S_ISREG(told.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", os.fspath(path))
    if told.st_size > MOST_BYTES:
        raise _too_large(path)


def _read(fd: int, path: Named) -> Iterator[bytes]:
    ready = select.poll()
    ready.register(fd, select.POLLIN)
    heard = time.monotonic()
    while (left_s := heard + SILENCE_S - time.monotonic()) > 0:
        if not ready.poll(left_s * 1000):
            break
        try:
            piece = os.read(fd, PIECE_BYTES)
        except BlockingIOError:  # as a log of the kernel has it
            time.sleep(_AGAIN_S)
            continue
        if not piece:
            return
        yield piece
        heard = time.monotonic()
    text = f"nothing came out of it for {SILENCE_S:g} seconds: does something write into this pipe?"
    raise OSError(errno.ETIMEDOUT, text, os.fspath(path))


def _refuse_device(told: os.stat_result, path: Named) -> None:
    if stat.S_ISCHR(told.st_mode) or stat.S_ISBLK(told.st_mode):
        raise OSError(errno.EINVAL, "it is a device, not a file", os.fspath(path))


def _too_large(path: Named) -> OSError:
    return OSError(errno.EFBIG, f"it is larger than {MOST_BYTES >> 20} MiB", os.fspath(path))
