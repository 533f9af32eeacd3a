"""An observer that writes down what it is told."""

from typing import Any

from sagastream.telemetry import POINTS, Observer


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
