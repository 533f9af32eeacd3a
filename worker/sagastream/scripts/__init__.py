"""The Lua scripts: one atomic change a file, its contract at the top of it."""

from collections.abc import Callable, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoScriptError

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
        words: Any = (*keys, *args)
        try:
            return client.evalsha(sha, len(keys), *words)
        except NoScriptError:
            client.script_load(text)  # EVAL alone leaves it among those that Valkey evicts
            return client.eval(text, len(keys), *words)

    return call
