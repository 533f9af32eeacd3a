"""The ids of the RQ jobs that run steps of sagas: `saga-<service>-<saga>-<step>-transaction`, or `…-compensation`.

The service stands first, so that its user can be allowed to use its own jobs and no others. RQ takes letters, digits, _
and - in ids; the other characters of names, and _ itself, are written as two characters, so that no two are mistaken.
"""

from typing import Final

from sagastream.broker.connection import DEFAULT_PREFIX
from sagastream.core.commands import Command

#: How the characters of a saga's id are written. Of a service and a prefix, - ends the name, so it is written so too.
_IN_IDS: Final = str.maketrans({"_": "__", ".": "_d", ":": "_c"})
_IN_NAMES: Final = str.maketrans({"_": "__", ".": "_d", "-": "_h"})


def job_id(command: Command, *, prefix: str = DEFAULT_PREFIX, partition: int = 0) -> str:
    """The id of the job of a command: the same for every attempt. `prefix`: of the store."""
    place = begins(prefix) + (f"_p{partition}" if partition else "")
    direction = "compensation" if command.compensating else "transaction"
    saga_id = command.saga_id.translate(_IN_IDS)
    return f"{place}-{command.service.translate(_IN_NAMES)}-{saga_id}-{command.step}-{direction}"


def begins(prefix: str) -> str:
    """What the ids of all jobs of a store begin with."""
    return "saga" if prefix == DEFAULT_PREFIX else "saga_x" + prefix.translate(_IN_NAMES)


def patterns(service: str, prefix: str, *, divided: bool) -> list[str]:
    """Patterns of the ids of all jobs of a service. `divided`: the store has several partitions."""
    # Digits only: `?` would stand for the - that ends the partition, too, and so let in jobs of other services.
    places = ["", *("_p" + "[0-9]" * digits for digits in (1, 2, 3))] if divided else [""]
    return [f"{begins(prefix)}{place}-{service.translate(_IN_NAMES)}-*" for place in places]
