"""The fields of a saga's hash: every attribute has one, and no two have the same."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct
from msgspec.structs import fields

from sagastream.core.saga import SagaState
from sagastream.core.step_state import Step
from sagastream.core.steps import Shape, StepDefinition
from sagastream.store import columns
from sagastream.store.columns import iso


def test_every_attribute_is_kept_in_a_field_of_its_own() -> None:
    # An attribute that is added to one of these structs belongs into its table, or into this list with the reason.
    not_written = {
        SagaState: {"saga_id", "steps", "version"},  # the key; fields of their own; compared and set by the commit
        # Fields of its own; told by status, skipped and the saga's; none of a plain saga.
        Step: {"definition", "phase", "due_ms", "parked", "built", "built_undo", "unsent_retries"},
        StepDefinition: {"shape"},  # fields of its own
        Shape: {"sends"},  # told by wait and wait_ms
    }
    told_otherwise = {SagaState: {"parked", "times_out_ms", "send_again_ms"}, Step: {"status", "skipped"}}
    tables: dict[type[Struct], Any] = {
        SagaState: columns.SAGA,
        Step: columns.STEP,
        StepDefinition: columns.DEFINITION,
        Shape: columns.SHAPE,
    }
    for kind, table in tables.items():
        attributes = {field.name for field in fields(kind)} - not_written[kind]
        assert table.keys() == attributes | told_otherwise.get(kind, set())
        assert len({column.field for column in table.values()}) == len(table)


def test_every_attribute_of_a_step_of_a_graph_is_kept_in_a_field_of_its_own() -> None:
    attributes = {field.name for field in fields(Step)} - {"definition"}
    assert columns.STEP_OF_GRAPH.keys() == attributes | {"status", "skipped"}
    assert {name: columns.STEP_OF_GRAPH[name] for name in columns.STEP} == columns.STEP


def test_no_two_fields_of_a_step_have_the_same_name() -> None:
    tables = (columns.STEP_OF_GRAPH, columns.DEFINITION, columns.SHAPE)
    names = [column.field for table in tables for column in table.values()]
    assert len(set(names)) == len(names)


@given(st.integers(0, 4_000_000_000_000))
def test_a_time_is_written_in_utc_with_milliseconds(ms: int) -> None:
    text = iso(ms)
    assert text.endswith(f".{ms % 1000:03}Z")
    assert len(text) == len("2023-11-14T22:13:20.000Z")
