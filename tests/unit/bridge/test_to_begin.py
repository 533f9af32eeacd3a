"""Which saga `sagastream begin` is asked for."""

import json
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from sagastream.client.blocking import SagaClient
from sagastream.core.messages import Begin
from sagastream.errors import MalformedMessage
from sagastream_bridge.commands.context import WrongUsage
from sagastream_bridge.commands.main import cli
from sagastream_bridge.commands.to_begin import ToBegin
from sagastream_bridge.definitions.documents import CannotRead

STEPS = [{"transaction": "Do", "service": "work"}]
SCHEMA = {"type": "object", "required": ["total"]}

#: Definitions whose input is a class. A module a test: Python imports a module once.
MODULE = """
import dataclasses, typing
import attrs, msgspec, pydantic
from sagastream import Definition

@dataclasses.dataclass
class Plain:
    total: int
    note: str = "none"

@attrs.define
class Attrs:
    total: int
    note: str = "none"

class Struct(msgspec.Struct):
    total: int
    note: str = "none"

class Model(pydantic.BaseModel):
    total: typing.Annotated[int, pydantic.Field(multiple_of=7)]
    note: str = "none"

plain, of_attrs, of_struct, of_model = (
    Definition(one.__name__, version=1, input=one) for one in (Plain, Attrs, Struct, Model)
)
for one in (plain, of_attrs, of_struct, of_model):
    one.step("Do", service="work", params=one.input)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "typed_sagas.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)


def begin(what: str, data: object = None, **options: Any) -> Begin:
    """The request, which takes no store."""
    asked = ToBegin(
        what,
        data=None if data is None else json.dumps(data),
        **{"saga_id": "s1", "version": None, "start_at": None} | options,
    )

    def reads_a_store(_: object) -> Any:
        raise AssertionError("a store was asked")

    client: SagaClient = object()  # type: ignore[assignment]
    return asked.request(client, reads_a_store)


def saved(body: object) -> str:
    Path("saga.json").write_text(json.dumps(body))
    return "saga.json"


@pytest.mark.parametrize("name", ["plain", "of_attrs", "of_struct", "of_model"])
def test_an_input_is_checked_by_the_class_of_its_definition(name: str) -> None:
    where = f"typed_sagas:{name}"
    found = begin(where, {"total": 7, "unknown": 1}).input
    assert found is not None
    assert json.loads(found) == {"total": 7, "note": "none"}
    with pytest.raises(MalformedMessage, match=r"^input/total: "):
        begin(where, {"total": "seven"})


def test_a_class_may_refuse_what_no_schema_says() -> None:
    with pytest.raises(MalformedMessage, match=r"^input/total: input should be a multiple of 7"):
        begin("typed_sagas:of_model", {"total": 8})


def test_who_gives_no_input_is_told_how() -> None:
    where = saved({"name": "order", "version": 1, "input": SCHEMA, "steps": STEPS})
    with pytest.raises(MalformedMessage, match=r"^input: 'total' is a required property \(no input .*--input"):
        begin(where)
    with pytest.raises(MalformedMessage, match=r"^input: 'total' is a required property$"):
        begin(where, {})


def test_a_file_that_is_neither_a_saga_nor_a_definition_says_what_each_has() -> None:
    with pytest.raises(
        CannotRead, match=r"^saga\.json: a definition has a name and a version, and a saga has a saga_id$"
    ):
        begin(saved({"steps": STEPS}))


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"type": "saga_begin", "steps": STEPS}, "saga.json: the body: saga_id is missing"),
        ({"saga_id": "s1", "steps": []}, "saga.json: steps must be a list of 1 to 100"),
    ],
)
def test_what_says_that_it_is_a_saga_is_read_as_one(body: object, text: str) -> None:
    with pytest.raises(click.ClickException) as error:
        begin(saved(body), saga_id=None)
    assert error.value.message.startswith(text)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"start_at": "1969-12-31T23:59+00:00"}, r"--start-at: 1969-.* is not between 2000-01-01 and 9998-01-01"),
        ({"start_at": "9999-01-01T00:00+00:00"}, r"--start-at: 9999-.* is not between 2000-01-01 and 9998-"),
        ({"data": "@"}, r"--input: the name of a file is missing behind @"),
        ({"what": "-", "data": "@-"}, r"- and --input @- are both standard input: put one of them into a file"),
    ],
)
def test_a_wrong_option_is_told_by_its_name(options: dict[str, Any], text: str) -> None:
    given = {"what": "order", "data": None, "saga_id": None, "version": None, "start_at": None} | options
    with pytest.raises(WrongUsage, match=text):
        ToBegin(**given)


def test_a_saga_has_its_id_and_its_input() -> None:
    body = {"saga_id": "s2", "steps": STEPS}
    assert begin(saved(body), saga_id=None).saga_id == "s2"
    with pytest.raises(WrongUsage, match=r"--input does not go with saga\.json, which holds a saga with its id"):
        begin(saved(body), {}, saga_id=None)
    with pytest.raises(WrongUsage, match=r"--version does not go with .* one version of a definition"):
        begin(saved({"name": "order", "version": 1, "steps": STEPS}), version=2)


def test_a_missing_package_is_no_wrong_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    where = saved({"name": "order", "version": 1, "input": {"const": "of this test alone"}, "steps": STEPS})
    for command in (["begin", where], ["deploy", where]):
        result = CliRunner().invoke(cli, command)
        assert result.exit_code == 1
        assert result.stderr.endswith(
            "the package jsonschema, which checks that, is missing: pip install jsonschema jsonschema-rs\n"
        )
