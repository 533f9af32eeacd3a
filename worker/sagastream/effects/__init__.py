"""The idempotency key and the effect in one transaction, so that the effect happens once and is undone once."""

from sagastream.effects.once import CREATE_TABLE, Effects

__all__ = ["CREATE_TABLE", "Effects"]
