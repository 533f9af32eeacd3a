"""What is known besides a document: what services publish, and what is deployed. A store tells it, or of services a
file, or the services themselves."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sagastream import files
from sagastream.broker.exchange import run
from sagastream.core.definition import SagaDefinition
from sagastream.core.messages import is_id, is_service
from sagastream.core.sending import Published
from sagastream.core.steps import AS_PUBLISHED, StepDefinition, StepKind
from sagastream.core.strict_json import decode
from sagastream.errors import DefinitionError, MalformedMessage, ServiceError
from sagastream.service.declaration import Service
from sagastream.store import definitions, layout, published
from sagastream_bridge.definitions.documents import CannotRead, Document, is_file, loaded

if TYPE_CHECKING:
    from sagastream.broker.connection import Broker


class Offered(NamedTuple):
    """What one service has."""

    undone_by: Mapping[str, str | None]  # the compensation of each command that says it; None: it needs none
    silent: frozenset[str] = frozenset()  # the commands that do not say what undoes them
    compensations: frozenset[str] = frozenset()  # those that no command names

    @property
    def commands(self) -> frozenset[str]:
        return self.silent | self.undone_by.keys()

    @property
    def all_compensations(self) -> frozenset[str]:
        return self.compensations | {name for name in self.undone_by.values() if name}


#: What is known of services, by their names.
Services = Mapping[str, Offered]


class Known(NamedTuple):
    """What is known besides a document."""

    services: Services | None = None  # what services publish; None: nobody tells it
    is_in_store: bool = False  # whether a store was asked
    deployed: SagaDefinition | None = None  # what the store has under the name and version of the document

    @property
    def published(self) -> Published | None:
        """What services publish, as the core has it."""
        if self.services is None:
            return None
        return {name: offered.undone_by for name, offered in self.services.items()}


def never_undone(definition: StepDefinition, services: Services | None) -> str | None:
    """Why nothing undoes a step, as far as that is known; None: something may."""
    if definition.kind is StepKind.RETRIABLE:
        return "a retriable step is never undone"
    if definition.compensation is None:
        return "compensation is null"
    offered = None if services is None else services.get(definition.service)
    if definition.compensation != AS_PUBLISHED or offered is None:
        return None
    is_needless = offered.undone_by.get(definition.transaction, AS_PUBLISHED) is None
    return f"its service says that {definition.transaction} needs no undo" if is_needless else None


def in_store(broker: "Broker", document: Document) -> Known:
    """What a store tells."""
    keys = layout.check(broker)
    names = run(broker.client, published.services(keys))
    services = {name: _from_hash(published.all_of(broker.client, keys, name)) for name in names}
    deployed, name, version = None, document.body.get("name"), document.body.get("version")
    if isinstance(name, str) and is_service(name) and type(version) is int:
        with suppress(DefinitionError):  # there is no such version
            deployed = run(broker.client, definitions.load(keys, name, version))
    return Known(services, is_in_store=True, deployed=deployed)


def services_at(places: tuple[str, ...]) -> Services:
    """What stands at these places: files, or Services as MODULE:NAME. Raises CannotRead, and OSError."""
    found: dict[str, Offered] = {}
    for place in places:
        found |= dict(_in_file(place)) if is_file(place) else dict([_of_service(place)])
    return found


def _from_hash(fields: Mapping[str, str]) -> Offered:
    commands = {name: undo for name, undo in fields.items() if is_id(name)}
    unnamed = {name[1:-1] for name in fields if name.startswith("(") and name.endswith(")")}
    return Offered(
        {name: undo or None for name, undo in commands.items() if undo != published.UNSAID},
        frozenset(name for name, undo in commands.items() if undo == published.UNSAID),
        frozenset(unnamed),
    )


def _of_service(place: str) -> tuple[str, Offered]:
    service = loaded(place)
    if not isinstance(service, Service):
        raise CannotRead(f"{place} is not a sagastream.Service")
    try:
        undone_by = service.publishes()
    except ServiceError as error:
        raise CannotRead(str(error)) from None
    silent = frozenset(service.commands) - undone_by.keys()
    return service.name, Offered(undone_by, silent, frozenset(service.compensations))


def _in_file(place: str) -> Iterator[tuple[str, Offered]]:
    try:
        value = decode(files.given(place))
    except MalformedMessage as error:
        raise CannotRead(f"{place}: {error}") from None
    if not isinstance(value, dict) or not all(is_service(name) for name in value):
        raise CannotRead(f"{place}: {_EXAMPLE}")
    for name, commands in value.items():
        if not isinstance(commands, dict) or not all(map(_is_pair, commands.items())):
            raise CannotRead(f"{place}: {name}: {_EXAMPLE}")
        yield name, Offered(commands)


def _is_pair(pair: tuple[str, Any]) -> bool:
    command, undo = pair
    return is_id(command) and (undo is None or (isinstance(undo, str) and is_id(undo)))


_EXAMPLE: Final = (
    'it must say what undoes each command (null: nothing needs to), as in {"payment": {"ChargeCard": "RefundCard"}}'
)
