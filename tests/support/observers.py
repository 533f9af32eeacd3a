"""An observer that writes down what it is told; code that is called as a handler is."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sagastream.core.commands import Command
from sagastream.telemetry import POINTS, Observer, handled, handling


@contextmanager
def called_with(command: Command) -> Iterator[None]:
    """In the `with` block, as in a handler that is called with this command."""
    token = handling(command)
    try:
        yield
    finally:
        handled(token)


class Notes(Observer):
    """`told`: (method, arguments), in order."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []

    def __getattribute__(self, name: str) -> Any:
        if name not in POINTS:
            return super().__getattribute__(name)
        return lambda **arguments: self.told.append((name, arguments))

    @property
    def points(self) -> list[str]:
        return [point for point, _ in self.told]

    def of(self, point: str) -> list[dict[str, Any]]:
        """The arguments of each call of one method."""
        return [arguments for name, arguments in self.told if name == point]
