"""What a sealed value looks like: one JSON value among others, which the orchestrator stores and copies unopened. Pure.

    {"$sealed": {"key": "2026-11", "from": "1/params", "data": "…"}}

`key` is the id of the key, `from` says what it was sealed as (such as the params of step 1), `data` is base64.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from sagastream.core.messages import is_id
from sagastream.core.strict_json import encode, value_of

#: The name of its only member.
NAME: Final = "$sealed"
_MEMBERS: Final = {"key", "from", "data"}
#: A text without this holds nothing sealed. All that values cost that are not sealed is to look for it.
MARK: Final = b'"$sealed"'


class SealedValue(NamedTuple):
    key: str
    source: str
    data: str

    @property
    def encoded(self) -> bytes:
        """As JSON."""
        return encode({NAME: {"key": self.key, "from": self.source, "data": self.data}})


def sealed_value(value: Any) -> SealedValue | None:
    """A JSON value as the sealed value that it is; None: it is another value. An object with `$sealed` and another
    member is no sealed value."""
    inner = value.get(NAME) if isinstance(value, dict) and len(value) == 1 else None
    if not isinstance(inner, dict) or inner.keys() != _MEMBERS:
        return None
    if not all(isinstance(member, str) for member in inner.values()) or not is_id(inner["key"]):
        return None
    return SealedValue(inner["key"], inner["from"], inner["data"])


def replaced(value: Any, by: Callable[[SealedValue], Any]) -> Any:
    """The value with something else in place of each sealed value in it."""
    if isinstance(value, dict):
        if (sealed := sealed_value(value)) is not None:
            return by(sealed)
        return {name: replaced(member, by) for name, member in value.items()}
    return [replaced(member, by) for member in value] if isinstance(value, list) else value


def keys_of(data: bytes | None) -> Sequence[str]:
    """The ids of the keys with which the values in a payload are sealed; none if nothing is."""
    keys: dict[str, None] = {}
    if data is not None and MARK in data:
        replaced(value_of(data), lambda sealed: keys.setdefault(sealed.key))
    return list(keys)


def is_sealed(data: bytes) -> bool:
    """Whether a payload as a whole is one sealed value."""
    return MARK in data and sealed_value(value_of(data)) is not None


def surely_differ(one: bytes, other: bytes) -> bool:
    """Whether two payloads differ, as far as that shows: one key seals the same value at the same place to the same
    bytes. Where other parts are sealed in one than in the other, it does not show."""
    return _surely_differ(value_of(one), value_of(other))


def _surely_differ(one: Any, other: Any) -> bool:
    there, here = sealed_value(one), sealed_value(other)
    if there is not None or here is not None:
        return there is not None and here is not None and there.key == here.key and there != here
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() != other.keys() or any(_surely_differ(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) != len(other) or any(map(_surely_differ, one, other))
    return isinstance(one, bool) is not isinstance(other, bool) or bool(one != other)
