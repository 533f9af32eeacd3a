"""A saga_begin line that names a definition of the store in place of steps."""

from typing import Any, Final

from sagastream.client.blocking import SagaClient
from sagastream.core.attributes import parse_attributes
from sagastream.core.begin_parsing import MAX_VERSION
from sagastream.core.members import checked_object, limit

_MEMBERS: Final = {"type", "msg_id", "saga_id", "definition", "version", "input", "start_at_ms", "attributes"}


def names_definition(body: dict[str, Any]) -> bool:
    """Whether this saga_begin has the name of a definition, and no steps."""
    return "steps" not in body and isinstance(body.get("definition"), str)


def with_steps(client: SagaClient, body: dict[str, Any]) -> dict[str, Any]:
    """The same saga_begin with the steps that are made from the definition: its current version, or the one that
    `version` says.

    Raises MalformedMessage, which says what is wrong and where; DefinitionError: there is no such definition;
    PackageMissing: the package that checks its input is not installed; and redis.RedisError.
    """
    checked_object(body, "the body", _MEMBERS)
    version = limit(body["version"], "version", "the body", MAX_VERSION) if "version" in body else None
    definition = client.definition(body["definition"], version)
    given = {name: member for name, member in body.items() if name not in ("definition", "version")}
    attributes = parse_attributes(body["attributes"], "the body: attributes") if "attributes" in body else None
    made: dict[str, Any] = {**definition.saga(body.get("input"), saga_id="", attributes=attributes)}
    del made["saga_id"]
    return given | made
