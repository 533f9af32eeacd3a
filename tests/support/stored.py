"""All that a store holds, to compare it before and after something."""

from typing import Any

import redis


def dump(client: redis.Redis) -> dict[bytes, Any]:
    """All that is stored, except who read a stream when. The fields of a hash come in no particular order, since a
    server may change it while its table grows."""
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
