"""Which saga `sagastream begin` is asked for: that of a file, or one of a definition."""

import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sagastream import files
from sagastream_bridge.commands.context import WrongUsage
from sagastream_bridge.commands.given import document_at, json_or_file
from sagastream_bridge.commands.terminal import safe

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sagastream.client.blocking import SagaClient
    from sagastream.client.definition import Definition
    from sagastream.core.attributes import Attributes
    from sagastream.core.messages import Begin
    from sagastream.core.saga import SagaState


class ToBegin:
    """What a person has asked for."""

    def __init__(
        self,
        what: str,
        *,
        data: str | None,
        saga_id: str | None,
        version: int | None,
        start_at: str | None,
        attributes: "Sequence[str]" = (),
    ) -> None:
        """`what`: a file, MODULE:NAME, or the name of a definition of the store. `data`: the input of the saga, as JSON
        or @FILE. `attributes`: each as NAME=VALUE. Raises click.ClickException, CannotRead and MalformedMessage if this
        cannot be a saga, and PackageMissing if there is no package that checks its input."""
        from sagastream.core.messages import is_service

        if what == files.STDIN and data == f"@{files.STDIN}":
            raise WrongUsage("- and --input @- are both standard input: put one of them into a file")
        self._name = what
        self._version = version
        self._data = None if data is None else json_or_file(data, "--input")
        self._saga_id = saga_id
        self._start_at = None if start_at is None else _moment(start_at)
        self._attributes = _attributes(attributes)
        self._begin: Begin | None = None
        self._given: Definition | None = None  # one that stands in a file or a module
        if is_place(what):
            self._read(what)
        elif not is_service(what):
            raise WrongUsage(safe(f"{what!r:.200} is neither a file nor the name of a definition"))

    def request(self, client: "SagaClient", patiently: "Callable[[Callable[[], Definition]], Definition]") -> "Begin":
        """The request to begin the saga. A definition that stands in no file is read from the store, `patiently`.

        Raises DefinitionError if there is none, MalformedMessage, PackageMissing and redis.RedisError."""
        if self._begin is not None:
            return self._begin
        return self._saga_of(patiently(lambda: client.definition(self._name, self._version)))

    def differs(self, client: "SagaClient") -> str | None:
        """If the store has other content under the name and version of a definition that was given in a file: that, for
        people. No saga is refused for it: one that began before that was deployed may be begun again. Raises
        redis.RedisError."""
        from sagastream.errors import DefinitionError

        if self._given is None:
            return None
        given = self._given.parsed
        try:
            deployed = client.definition(given.name, given.version).parsed
        except DefinitionError:  # there is none
            return None
        if deployed.sha256 == given.sha256:
            return None
        text = f"{self._name} is not what was deployed as version {given.version} of {given.name}"
        return f"{text}: the saga has the steps of {self._name}; raise the version, and deploy it"

    def _saga_of(self, definition: "Definition") -> "Begin":
        from sagastream.client.requests import to_begin
        from sagastream.errors import MalformedMessage

        saga_id = self._saga_id or f"{definition.name}-{uuid.uuid4().hex}"
        try:
            request = definition.saga(self._data, saga_id=saga_id, start_at=self._start_at, attributes=self._attributes)
            return to_begin(request)
        except MalformedMessage as error:
            hint = "" if self._data is not None else " (no input was given: --input gives one)"
            raise MalformedMessage(f"{error}{hint}") from None

    def _read(self, where: str) -> None:
        from sagastream.core.begin_parsing import parse_begin
        from sagastream.errors import MalformedMessage

        document = document_at(where)
        without: dict[str, Any] = {"--version": self._version}
        if not document.is_definition:
            without |= {"--input": self._data, "--id": self._saga_id, "--start-at": self._start_at}
        holds = "one version of a definition" if document.is_definition else "a saga with its id"
        if (option := next((name for name, value in without.items() if value is not None), None)) is not None:
            raise WrongUsage(safe(f"{option} does not go with {document.where}, which holds {holds}"))
        if document.is_definition:
            self._given = document.definition
            self._begin = self._saga_of(self._given)
            return
        body = document.body
        if self._attributes is not None:
            if "attributes" in body:
                raise WrongUsage(safe(f"--attribute does not go with {document.where}, which has attributes"))
            body = body | {"attributes": self._attributes}
        try:
            self._begin = parse_begin(body, request_id=uuid.uuid4().hex)
        except MalformedMessage as error:
            raise click.ClickException(safe(f"{document.where}: {error}")) from None


def _attributes(texts: "Sequence[str]") -> "Attributes | None":
    from sagastream.core.attributes import named, parse_attributes
    from sagastream.errors import MalformedMessage

    try:
        return parse_attributes(named(texts, "--attribute"), "--attribute")
    except MalformedMessage as error:
        raise WrongUsage(safe(str(error))) from None


def begun_before(request: "Begin", there: "SagaState | None") -> str | None:
    """If another request has begun the saga: that, and how it is, for people. `there`: the saga that is there now."""
    if there is None or there.request_id == request.request_id:
        return None
    text = f"{there.saga_id} was begun before: it is {there.status}"
    if (why := f"parked: {there.parked}" if there.parked else there.reason) is not None:
        text += f": {why}"
    asked, began = request.definition, there.definition
    if asked is not None and began is not None and began.version != asked.version:
        text += f"; it began with version {began.version} of {began.name}, and stays with it"
    return text


def is_place(what: str) -> bool:
    """Whether this is meant as a file, or as an object in Python, and not as the name of a definition of the store. No
    such name has a colon."""
    return what == files.STDIN or what.endswith(".json") or ":" in what or Path(what).is_file()


def _moment(text: str) -> datetime:
    from sagastream.core.begin_parsing import MAX_START_MS, MIN_START_MS

    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise WrongUsage(safe(f"--start-at: {text!r:.80} is not a time like 2026-12-24T08:00+01:00")) from None
    if moment.tzinfo is None:
        raise WrongUsage(safe(f"--start-at: {text} has no time zone: write it behind, as in 2026-12-24T08:00+01:00"))
    first, last = (datetime.fromtimestamp(ms / 1000, UTC) for ms in (MIN_START_MS, MAX_START_MS))
    if not first <= moment <= last:
        raise WrongUsage(safe(f"--start-at: {text} is not between {first:%Y-%m-%d} and {last:%Y-%m-%d}"))
    return moment
