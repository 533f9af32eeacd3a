"""What a test names must be there: services, commands, signals. Otherwise it does not test what it claims."""

from collections.abc import Collection, Mapping
from difflib import get_close_matches

from sagastream.core.commands import Command
from sagastream.core.messages import Begin
from sagastream.core.saga import SagaState
from sagastream.core.steps import AS_PUBLISHED
from sagastream.errors import ScenarioError
from sagastream.service.declaration import Service


def check_known(name: str, services: Mapping[str, Service]) -> None:
    """Raises ScenarioError if none of these services has a command or a compensation of this name."""
    names = {registration.name: service.name for service in services.values() for registration in service.registrations}
    if name not in names:
        raise ScenarioError(f"no service that is served has {name}; {_what_there_is(name, names)}")


def check_served(
    begin: Begin, services: Mapping[str, Service], published: Mapping[str, Mapping[str, str | None]]
) -> None:
    """Raises ScenarioError if a step of this saga names what none of these services has."""
    for number, definition in enumerate(begin.steps, 1):
        if not definition.shape.sends:
            continue
        service = services.get(definition.service)
        if service is None:
            known = _what_there_is(definition.service, services)
            raise ScenarioError(f"step {number}: no service {definition.service} is served; {known}")
        command = Command(
            service=service.name,
            type=definition.transaction,
            saga_id=begin.saga_id,
            step=number,
            params=b"null",
            begun_ms=0,
        )
        if service.registration(command) is None:
            known = _what_there_is(definition.transaction, published[service.name])
            raise ScenarioError(f"step {number}: service {service.name} has no command {command.type}; {known}")
        if definition.compensation not in (AS_PUBLISHED, None):
            check_known(definition.compensation, services)


def untaken_signal(names: Collection[str], states: Collection[SagaState]) -> str | None:
    """What is wrong with a signal that `on_wait` says comes, and that no step of any saga here names; None: there is
    none. If no saga has begun, nobody knows."""
    if not states:
        return None
    shapes = [step.definition.shape for state in states for step in state.steps]
    taken = {name: None for shape in shapes for name in (shape.wait, shape.retry_on) if name is not None}
    for name in names:
        if name not in taken:
            known = _what_there_is(name, taken) if taken else "no step waits for any"
            return f"on_wait({name!r}): no step of these sagas takes this signal; {known}"
    return None


def _what_there_is(name: str, names: Mapping[str, object]) -> str:
    """A hint: the name that was probably meant, or all names."""
    if meant := get_close_matches(name, names, n=1):
        return f"did you mean {meant[0]}?"
    return f"there is {', '.join(names)}" if names else "nothing is served yet: call sagas.serve(service) first"
