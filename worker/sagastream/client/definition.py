"""Definitions, written in Python.

    order = Definition("order", version=3, input={...})
    reserve = order.step("ReserveInventory", service="inventory", params={"sku": order.input.sku})
    order.step("ChargePayment", service="payment", kind="pivot",
               params={"amount": order.input.total, "of": reserve.result.reservation_id})

They build the same JSON as a definition in a file. What is wrong is refused in the line in which it is written.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Literal, Self, Unpack

import orjson

from sagastream.client import requests
from sagastream.client.expressions import DefinedStep, Reference, condition_of, template_of
from sagastream.client.requests import SagaRequest
from sagastream.client.schema import check_input, check_schema
from sagastream.client.step_options import StepOptions, WaitOptions, spelt
from sagastream.core.definition import SagaDefinition, parse, read
from sagastream.core.expansion import expand, sketch
from sagastream.core.json_values import plain
from sagastream.core.messages import MAX_ACTOR_CHARS, DeadlineKind
from sagastream.core.parsing import operator_text
from sagastream.core.pointers import kind_of
from sagastream.core.strict_json import MAX_DEPTH, encode_payload, value_of
from sagastream.core.typed_values import Model, is_model, model
from sagastream.errors import MalformedMessage

#: What stands for the steps of a definition that has none yet.
_ANY_STEP: Final = {"transaction": "any", "service": "any"}


class Definition:
    """The shape of the sagas of one kind. `SagaClient.begin(definition, input, saga_id=…)` begins one of them."""

    def __init__(
        self,
        name: str,
        *,
        version: int,
        input: Mapping[str, Any] | bool | type | None = None,  # noqa: A002 - what the JSON calls it
        deadline_ms: int | None = None,
        deadline: DeadlineKind | None = None,
        example: Any = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            name: 1 to 128 characters of A-Z a-z 0-9 . _ -
            version: a whole number from 1. If you change the definition, raise it.
            input: what the input of a saga must be: a JSON Schema (2020-12); or a dataclass, an attrs class, a Struct
                of msgspec or a model of pydantic, as which the input is read, and from which the schema is made. None:
                any object.
            deadline_ms: of each saga, as for `SagaClient.begin`.
            deadline: of each saga, as for `SagaClient.begin`.
            example: an example of an input, for `sagastream lint` and `explore`.
            attributes: those of each saga, by their names: each a value, or a template with references into the input,
                such as `{"$ref": "/input/customer"}`. `attribute` adds one with an expression.

        Raises MalformedMessage, which says what is wrong.
        """
        self._model: Model | None = None
        members: dict[str, Any] = {"name": name, "version": version}
        if isinstance(input, type):
            self._model = _model(input)
            members |= _schema_of(self._model)
        elif input is not None:
            members["input"] = plain(input, MAX_DEPTH)
        for member, value in (("deadline_ms", deadline_ms), ("deadline", deadline)):
            if value is not None:
                members[member] = value
        if example is not None:
            members["example"] = self._as_json(example, "example")
        if attributes is not None:
            members["attributes"] = self._templates(attributes)
        sketch(parse(members | {"steps": [_ANY_STEP]}))
        self._members = members
        self._parsed: SagaDefinition | None = None
        self._steps: list[DefinedStep] = []

    @classmethod
    def from_json(cls, data: str | bytes) -> Self:
        """The definition in a JSON text. Raises MalformedMessage, which says what is wrong and where."""
        return cls.of(read(data.encode() if isinstance(data, str) else data))

    @classmethod
    def of(cls, parsed: SagaDefinition) -> Self:
        """A definition that was read."""
        more = {name: member for name, member in parsed.body.items() if name not in ("name", "version", "steps")}
        made = cls(parsed.name, version=parsed.version, **more)
        for step in parsed.steps:
            made.add(step)
        return made

    @property
    def name(self) -> str:
        return str(self._members["name"])

    @property
    def version(self) -> int:
        return int(self._members["version"])

    @property
    def input(self) -> Reference:
        """The input of a saga: `definition.input.total` refers to its member `total`."""
        return Reference("/input", self)

    @property
    def steps(self) -> Sequence[DefinedStep]:
        """Its steps, in order."""
        return tuple(self._steps)

    @property
    def parsed(self) -> SagaDefinition:
        """The definition as it is written in JSON, and read. Raises MalformedMessage if it has no steps."""
        if self._parsed is None:
            raise MalformedMessage(f"the definition {self.name} has no steps yet: add one with .step(…)")
        return self._parsed

    def json(self) -> str:
        """The definition in JSON, as it stands in a file. Raises MalformedMessage if it has no steps."""
        return orjson.dumps(self.parsed.body, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE).decode()

    def __repr__(self) -> str:
        steps = "1 step" if len(self._steps) == 1 else f"{len(self._steps)} steps"
        return f"<definition {self.name}, version {self.version}: {steps}>"

    def attribute(self, name: str, value: Any) -> None:
        """Add an attribute, which each saga gets: `order.attribute("customer", order.input.customer)`. A saga for which
        the value is null has none.

        Raises MalformedMessage, which says what is wrong; nothing was added then.
        """
        attributes = {**self._members.get("attributes", {}), **self._templates({name: value})}
        members = self._members | {"attributes": attributes}
        before: Sequence[Any] = [_ANY_STEP] if self._parsed is None else self._parsed.steps
        parsed = parse(members | {"steps": [*before]})
        self._members = members
        if self._parsed is not None:
            self._parsed = parsed

    def _templates(self, attributes: Any) -> Any:
        """Attributes as JSON has them."""
        if not isinstance(attributes, Mapping):
            return attributes  # which is refused
        return {name: template_of(value, self, f"attributes/{name}") for name, value in attributes.items()}

    @spelt(StepOptions)
    def step(
        self, transaction: str, *, service: str, params: Any = None, **options: Unpack[StepOptions]
    ) -> DefinedStep:
        """Add a step.

        Args:
            transaction: the name of the command that does it.
            service: the name of the service that does it.
            params: what the command gets: a JSON value that may hold references.
            options: see StepOptions. `after` is a step or a list of steps; each is what this method returned, an id or
                a number. `each` is a reference to a list in the input: the saga has one such step for each item.

        Raises MalformedMessage, which says what is wrong; nothing was added then.
        """
        step = {"transaction": transaction, "service": service} | ({} if params is None else {"params": params})
        return self.add(step | options)

    @spelt(WaitOptions)
    def wait(
        self,
        signal: str,
        *,
        timeout_ms: int,
        on_timeout: Literal["fail", "continue"] = "fail",
        **options: Unpack[WaitOptions],
    ) -> DefinedStep:
        """Add a wait: it completes when the signal of this name comes, and its result is the signal's payload.

        Args:
            signal: the name of the signal.
            timeout_ms: how long to wait for it at most.
            on_timeout: what happens if no signal comes in time: the step fails, or the saga goes on.
            options: see WaitOptions.

        Raises as `step` does.
        """
        more = {} if on_timeout == "fail" else {"on_timeout": on_timeout}
        return self.add({"wait": signal, "timeout_ms": timeout_ms} | more | options)

    @spelt(WaitOptions)
    def pause(self, wait_ms: int, **options: Unpack[WaitOptions]) -> DefinedStep:
        """Add a pause of so many milliseconds. Raises as `step` does."""
        return self.add({"wait_ms": wait_ms} | options)

    def saga(
        self,
        input: Any = None,  # noqa: A002 - as the JSON calls it
        *,
        saga_id: str,
        start_at: datetime | None = None,
        start_at_ms: int | None = None,
        attributes: Mapping[str, str | int] | None = None,
    ) -> SagaRequest:
        """A saga of this definition, for `begin_many`. Arguments and errors are those of `SagaClient.begin`:
        `attributes` are added to those of the definition, and win over them."""
        expanded = expand(self.parsed, self.checked(input))
        if attributes is not None:
            expanded["attributes"] = {**expanded.get("attributes", {}), **attributes}
        members: Any = {"saga_id": saga_id} | expanded
        request: SagaRequest = members
        if (start_ms := requests.start_ms_of(start_at, start_at_ms)) is not None:
            request["start_at_ms"] = start_ms
        return request

    def checked(self, data: Any) -> dict[str, Any]:
        """The input of a saga as its steps see it: as JSON and, if the definition names a class, with its defaults.

        Raises MalformedMessage if it is not as the definition says, with the place; and PackageMissing if the package
        that checks it is not installed."""
        found = self._as_json(data, "input")
        if self._model is None:
            check_input(self.parsed, found, "input")
        return found

    @property
    def checks_by_schema(self) -> bool:
        """Whether a JSON Schema checks the inputs, and no class does."""
        return self._model is None and self.parsed.schema is not None

    def _as_json(self, data: Any, called: str) -> dict[str, Any]:
        data = {} if data is None else data
        found = value_of(encode_payload(data)) if self._model is None else self._model.checked(data, called)
        if not isinstance(found, dict):
            raise MalformedMessage(f"{called} must be an object, which the steps can refer to, not {kind_of(found)}")
        return found

    def add(self, step: Mapping[str, Any]) -> DefinedStep:
        """Add a step, a wait or a pause as it is written in JSON; its members may hold references. Raises as `step`
        does."""
        number = len(self._steps) + 1
        written = {name: self._member(name, value, f"step {number}: {name}") for name, value in step.items()}
        before = () if self._parsed is None else self._parsed.steps
        parsed = parse(self._members | {"steps": [*before, written]})
        sketch(parsed)
        self._parsed = parsed
        what = written.get("transaction", f"wait for {written['wait']}" if "wait" in written else "pause")
        self._steps.append(added := DefinedStep(self, number, written.get("id", number), what))
        return added

    def _member(self, name: str, value: Any, where: str) -> Any:
        """A member of a step as JSON has it."""
        if name == "when":
            return condition_of(value, self, where)
        if name != "after":
            return template_of(value, self, where)
        return [self._named(one, where) for one in (value if isinstance(value, list | tuple) else [value])]

    def _named(self, step: object, where: str) -> object:
        """By what a step is named."""
        if not isinstance(step, DefinedStep):
            return step
        if step.definition is not self:
            raise MalformedMessage(f"{where}: {step!r} is a step of {step.definition!r}, not of this definition")
        return step.name


def deployable(definition: Definition) -> SagaDefinition:
    """The definition to be kept in a store. Raises MalformedMessage if its schema is not a JSON Schema, or its example
    is not as the schema says; and PackageMissing if the package that checks this is not installed."""
    parsed = definition.parsed
    check_schema(parsed)
    if parsed.example is not None:
        check_input(parsed, parsed.example, "example")
    return parsed


def deployer(actor: str | None) -> str | None:
    """Who deploys, as it is kept. Raises MalformedMessage if that is no name for people."""
    return None if actor is None else operator_text(actor, "actor", MAX_ACTOR_CHARS, stays_with="the version")


def _model(kind: type) -> Model:
    if not is_model(kind):
        text = "input must be a JSON Schema or a class (a dataclass, an attrs class, a Struct, a model)"
        raise MalformedMessage(f"{text}, and {kind.__qualname__} is none")
    try:
        return model(kind)
    except TypeError as error:
        raise MalformedMessage(f"input: {kind.__qualname__} cannot be read from JSON: {error}") from None


def _schema_of(described: Model) -> dict[str, Any]:
    """The member `input`, if the class can be described."""
    try:
        return {"input": described.schema}
    except TypeError:
        return {}
