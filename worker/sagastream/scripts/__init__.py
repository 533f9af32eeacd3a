"""The Lua scripts: one atomic change a file, its contract at the top of it."""

from collections.abc import Callable, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoScriptError

from sagastream import wire

if TYPE_CHECKING:
    import redis


def load(client: "redis.Redis", name: str, package: str = __name__) -> Callable[..., Any]:
    """The script `name`.lua of a package, to be called with keys and args.

    It is sent as EVALSHA; where the server has forgotten it, it is loaded and sent once more, whole: the server may
    forget it again in between, so that redis-py's own way of doing this can end a process.
    """
    text = resources.files(package).joinpath(f"{name}.lua").read_text()
    sha = client.register_script(text).sha

    def call(keys: Sequence[str], args: Sequence[str | bytes | int] = ()) -> Any:
        try:
            return wire.call(client, ("EVALSHA", sha, len(keys), *keys, *args))
        except NoScriptError:
            client.script_load(text)  # EVAL alone leaves it among those that Valkey evicts
            return wire.call(client, ("EVAL", text, len(keys), *keys, *args))

    return call
