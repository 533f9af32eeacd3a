"""Calls the Lua scripts of sagastream/scripts: one atomic change per file."""

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import NoScriptError

from sagastream.broker.exchange import Exchange, run
from sagastream.broker.wire import Words, or_raise

if TYPE_CHECKING:
    import redis

#: The package that holds the scripts of sagastream itself.
_SCRIPTS: Final = "sagastream.scripts"


class Script:
    """The script `name`.lua of a package.

    It is called by EVALSHA. If the server has forgotten it, it is loaded, and called once more by EVAL, with its whole
    text: the server may forget it again in between. (redis-py calls EVALSHA again there, which may fail and end a
    process.)
    """

    def __init__(self, name: str, package: str = _SCRIPTS) -> None:
        self._text = _text(name, package)
        self._sha = hashlib.sha1(self._text.encode(), usedforsecurity=False).hexdigest()  # its name in the server

    def call(
        self, keys: Sequence[str], args: Sequence[str | bytes | int] = (), *, reads_only: bool = False
    ) -> Exchange[Any]:
        """What the script returns. `reads_only`: so that whoever may only read its keys may call it. Raises
        redis.ResponseError if the script, or the server, refuses, and NodeAway."""
        by_name, by_text = ("EVALSHA_RO", "EVAL_RO") if reads_only else ("EVALSHA", "EVAL")
        (answer,) = yield [(by_name, self._sha, len(keys), *keys, *args)]
        if isinstance(answer, NoScriptError):
            # Not EVAL alone: Valkey may evict a script that only EVAL has brought.
            _, answer = yield [("SCRIPT", "LOAD", self._text), (by_text, self._text, len(keys), *keys, *args)]
        return or_raise(answer)


def even_if_full(key: str, *words: str | bytes | int) -> Words:
    """A command that writes to `key`, made so that a full store takes it: without it, sagas that are under way could
    not end, and would free no memory. Such commands are rare, so each brings the text of the script along."""
    return ("EVAL", _text("even_if_full", _SCRIPTS), 1, key, *words)


def added_even_if_full(stream: str, fields: Mapping[Any, Any]) -> Words:
    """An XADD of an entry with these fields, which a full store takes."""
    return even_if_full(stream, "XADD", stream, "*", *[word for field in fields.items() for word in field])


@functools.cache
def _text(name: str, package: str) -> str:
    return resources.files(package).joinpath(f"{name}.lua").read_text()


def load(client: "redis.Redis", name: str, package: str = _SCRIPTS) -> Callable[..., Any]:
    """The script `name`.lua of a package, as a function of keys and args."""
    script = Script(name, package)

    def call(keys: Sequence[str], args: Sequence[str | bytes | int] = ()) -> Any:
        return run(client, script.call(keys, args))

    return call
