"""All that a store holds, to compare it before and after something, and to search it."""

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


def keys_with_bytes(client: "redis.Redis", wanted: bytes) -> list[str]:
    """The keys whose value holds these bytes, even if no command would show them, as those of a deleted entry."""
    client.config_set("rdbcompression", "no")  # else DUMP may hide them
    found: Any = client.keys()
    return sorted(key.decode() for key in found if wanted in (client.dump(key) or b""))
