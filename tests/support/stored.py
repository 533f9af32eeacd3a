"""All that a store holds, for comparing it before and after."""

from typing import Any

import redis


def dump(client: redis.Redis) -> dict[bytes, Any]:
    """All that is stored, but for who read a stream when. Of a hash its fields, whatever their order: a server may put
    them into another one while it grows its table."""
    found: dict[bytes, Any] = {}
    there: Any = client.keys()
    for key in there:
        kind: Any = client.type(key)
        if kind == b"stream":
            found[key] = client.xrange(key)
        elif kind == b"hash":
            found[key] = (client.hgetall(key), client.pexpiretime(key))
        else:
            found[key] = (client.dump(key), client.pexpiretime(key))
    return found
