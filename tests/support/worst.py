"""The dearest JSON texts of the largest size: what each costs to read is the most that any text may cost."""

import gc
import json
import time
from collections.abc import Callable
from typing import Final

from sagastream.core.strict_json import MAX_BYTES, MAX_OBJECTS, MAX_VALUES

#: As much of a text as leaves room for the other members of a body.
_ROOM: Final = MAX_BYTES - 2048
#: As many values as leave room for them.
_MOST: Final = MAX_VALUES - 100


def _list(item: str, count: int = MAX_BYTES) -> str:
    return "[" + ",".join([item] * min(count, _ROOM // (len(item) + 1))) + "]"


def _keys(count: int) -> str:
    return ",".join(f'"{number:x}":1' for number in range(count))


def _nested(opening: str, closing: str, containers: int, levels: int = 55) -> str:
    return _list(opening * levels + "1" + closing * levels, containers // levels)


#: Texts that are read.
VALID: Final[dict[str, str]] = {
    "empty arrays": _list("[]", _MOST),
    "nested arrays": _nested("[", "]", _MOST - 2000),
    "nested objects": _nested('{"a":', "}", MAX_OBJECTS - 200),
    "one object": "{" + _keys(_MOST) + "}",
    "one object, in another form": "{ " + _keys(_MOST) + "}",
    "numbers in another form": _list("1e0", _MOST),
    "strings of signs": _list('",[{:"', _MOST),
    "escapes": '"' + "\\u0041" * (_ROOM // 6) + '"',
    "backslashes": '"' + "\\\\" * (_ROOM // 2) + '"',
    "digits of one number": "1." + "1" * (_ROOM - 2),
    "numbers of 19 digits": _list("1" * 19, _MOST),
    "blanks": "[" + " " * (_ROOM - 2) + "]",
}
#: Texts that are refused.
INVALID: Final[dict[str, str]] = {
    "too many empty arrays": _list("[]"),
    "too many objects": _list('{"a":1}', _MOST),
    "too many nested arrays": _nested("[", "]", MAX_BYTES),
    "too many strings": _list('""'),
    "the first key of many twice": '{"0":0,' + _keys(_MOST - 1) + "}",
    "one key every time": "{" + ",".join(['"a":1'] * _MOST) + "}",
    "one key of many objects twice": _list('{"a":1,"a":1}', _MOST // 3),
    "brackets without an end": "[" * _ROOM,
    "braces without an end": '{"a":' * (_ROOM // 5),
    "a fault at the end": "[" + "[]," * (_MOST - 1),
    "integers over 64 bits": _list("1" * 21, _MOST),
    "a million digits": "1" * _ROOM,
    "many quotes": '"' * _ROOM,
}


#: What the calculation in `_pace` costs on the machine in whose milliseconds costs are told. It is an idle one.
_REFERENCE_MS: Final = 14.0


def cpu_ms(call: Callable[[], object], *, enough_ms: float = 20) -> float:
    """The CPU time that a call takes on that machine, in milliseconds: the least of some tries. A slower machine, and a
    busy one, whose caches others use too, takes several times as much; so does a calculation before and after it."""
    return least_cpu_ms(lambda: _once(call), enough_ms=enough_ms)


def least_cpu_ms(measured: Callable[[], float], *, enough_ms: float) -> float:
    """The least of fifty measurements of a CPU time, each as it would be on that machine, in milliseconds.
    `enough_ms`: if one is less, there are no more. So only what is dear, or tried at a bad time, is tried so often."""
    least = float("inf")
    gc.freeze()  # what other tests have left behind is not collected again and again meanwhile
    try:
        pace = _pace()
        for _ in range(50):
            took = measured()
            pace_then = _pace()
            least = min(least, 2 * took / (pace + pace_then))
            if least < enough_ms:
                break
            pace = pace_then
    finally:
        gc.unfreeze()
    return least


def _pace() -> float:
    """How many times as much CPU time as on that machine something takes that allocates as much as the dearest text
    does, as the standard library reads it."""
    gc.disable()
    try:
        return _once(lambda: json.loads(VALID["one object"])) / _REFERENCE_MS
    finally:
        gc.enable()


def _once(call: Callable[[], object]) -> float:
    began = time.thread_time()
    call()
    return (time.thread_time() - began) * 1000
