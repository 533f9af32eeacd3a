"""The fixture `sagas`, for every pytest that has sagastream installed. Costs nothing until a test asks for it."""

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from sagastream.testing import Sagas

_SAGAS: Final = pytest.StashKey["Sagas"]()


@pytest.fixture
def sagas(request: pytest.FixtureRequest) -> "Iterator[Sagas]":
    """Sagas against services in this process, on a clock that never waits: see sagastream.testing."""
    from sagastream.testing import Sagas

    kit = request.node.stash[_SAGAS] = Sagas()
    yield kit
    kit.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """A test that fails shows what its sagas did. In a test that passes, every fault that it names must have
    happened."""
    try:
        passed = yield
    except BaseException:
        if (kit := item.stash.get(_SAGAS, None)) is not None and (told := kit.explain()):
            item.add_report_section("call", "sagas", told)
        raise
    if (kit := item.stash.get(_SAGAS, None)) is not None:
        kit.check_faults()
    return passed
