"""The fixture `sagas`, in every pytest run where sagastream is installed. It costs nothing until a test uses it."""

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Final

import pytest

if TYPE_CHECKING:
    from sagastream.testing import Sagas

_SAGAS: Final = pytest.StashKey["Sagas"]()


@pytest.fixture
def sagas(request: pytest.FixtureRequest) -> "Iterator[Sagas]":
    """Sagas that run against services in this process, with a clock that never waits. See sagastream.testing."""
    from sagastream.testing import Sagas

    kit = request.node.stash[_SAGAS] = Sagas()
    yield kit
    kit.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """If a test fails, its report shows what its sagas did. If it passes, every fault that it declared must have
    happened; otherwise it fails."""
    try:
        passed = yield
    except BaseException:
        if (kit := item.stash.get(_SAGAS, None)) is not None and (told := kit.explain()):
            item.add_report_section("call", "sagas", told)
        raise
    if (kit := item.stash.get(_SAGAS, None)) is not None:
        kit.check_faults()
    return passed
