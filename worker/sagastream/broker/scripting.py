"""Calling the Lua scripts, which stand in sagastream/scripts: one atomic change a file."""

import hashlib
from collections.abc import Callable, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import NoScriptError, ResponseError

from sagastream.broker.exchange import Exchange, run

if TYPE_CHECKING:
    import redis

#: The package with the scripts of sagastream itself.
_SCRIPTS: Final = "sagastream.scripts"


class Script:
    """The script `name`.lua of a package.

    It is sent as EVALSHA; where the server has forgotten it, it is loaded and sent once more, whole: the server may
    forget it again in between, so that redis-py's own way of doing this can end a process.
    """

    def __init__(self, name: str, package: str = _SCRIPTS) -> None:
        self._text = resources.files(package).joinpath(f"{name}.lua").read_text()
        self._sha = hashlib.sha1(self._text.encode(), usedforsecurity=False).hexdigest()  # the name that servers use

    def call(self, keys: Sequence[str], args: Sequence[str | bytes | int] = ()) -> Exchange[Any]:
        """What it returns; raises what it, or the server, refuses with."""
        (answer,) = yield [("EVALSHA", self._sha, len(keys), *keys, *args)]
        if isinstance(answer, NoScriptError):
            # EVAL alone leaves it among those that Valkey evicts.
            _, answer = yield [("SCRIPT", "LOAD", self._text), ("EVAL", self._text, len(keys), *keys, *args)]
        if isinstance(answer, ResponseError):
            raise answer
        return answer


def load(client: "redis.Redis", name: str, package: str = _SCRIPTS) -> Callable[..., Any]:
    """The script `name`.lua of a package, to be called with keys and args."""
    script = Script(name, package)

    def call(keys: Sequence[str], args: Sequence[str | bytes | int] = ()) -> Any:
        return run(client, script.call(keys, args))

    return call
