"""The Lua scripts: one atomic change a file, its contract at the top of it."""

from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import redis


def load(client: "redis.Redis", name: str) -> Any:
    """The script `name`.lua, to be called with keys and args.

    It is sent as EVALSHA; where the server has forgotten it, it is loaded and sent once more.
    """
    return client.register_script(resources.files(__package__).joinpath(f"{name}.lua").read_text())
