"""Visits every world that a model can reach, and checks each."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import pytest

from exploration.bugs import Bug, ServicesBug, planted

Label = tuple[Any, ...]
#: A value that can be hashed.
World = Any


class Move(Protocol):
    """Something that can happen in a world."""

    @property
    def label(self) -> Label: ...

    @property
    def after(self) -> World: ...

    @property
    def fault(self) -> bool:
        """Whether this may happen or not."""

    @property
    def broken(self) -> str | None:
        """What is wrong with it; None: nothing."""


class Model(Protocol):
    """What can happen, and what must hold."""

    def start(self) -> World: ...

    def moves(self, world: World) -> Iterator[Move]:
        """All that can happen next."""

    def broken(self, world: World) -> str | None:
        """What is wrong with a world; None: nothing."""

    def broken_end(self, world: World) -> str | None:
        """The same, of a world in which nothing more happens, unless something goes wrong."""

    def describe(self, label: Label, after: World) -> str: ...


class Config(Protocol):
    """What is explored: world.Config or services_world.ServicesConfig."""

    @property
    def name(self) -> str: ...

    @property
    def bug(self) -> Bug | ServicesBug | None: ...

    def model(self) -> Model: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What an exploration has found."""

    worlds: int
    moves: int
    ends: int  # worlds in which nothing more happens, unless something goes wrong
    broken: str | None = None
    trace: tuple[str, ...] = ()  # the moves that led to it

    def __str__(self) -> str:
        text = f"{self.worlds:,} worlds, {self.moves:,} moves, {self.ends:,} ends"
        return "\n  ".join([text, *self.trace, f"BROKEN: {self.broken}"]) if self.broken else text


def every_run(config: Config) -> Found:
    """Follow every run to its end, depth first. Also finds runs that never end."""
    with planted(config.bug):
        return _every_run(config)


def shortest_break(config: Config, limit: int = 2_000_000) -> Found:
    """Look for the broken world that the fewest moves reach, breadth first, in up to `limit` worlds."""
    with planted(config.bug):
        return _shortest_break(config, limit)


def explore(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    """Every run ends, and all is well in every world. Prints how many there are."""
    found = every_run(config)
    with capsys.disabled():
        print(f"\n  {config.name}: {found}")
    assert found.broken is None, str(shortest_break(config))
    assert found.ends > 0


def find_planted(mistaken: Config, sound: Config, capsys: pytest.CaptureFixture[str]) -> None:
    """The mistake in `mistaken` is found, and nothing is wrong without it. Prints the shortest run that breaks."""
    found = shortest_break(mistaken)
    with capsys.disabled():
        print(f"\n  {mistaken.bug}: {found}")
    assert found.broken is not None
    assert found.trace
    assert every_run(sound).broken is None


def _every_run(config: Config) -> Found:  # noqa: C901 - one loop, in which all the time is spent
    model = config.model()
    start = model.start()
    under_way: dict[World, bool] = {start: True}
    path: list[tuple[World, Label | None, Iterator[Move], list[bool]]] = [(start, None, model.moves(start), [True])]
    moves = ends = 0

    def found(broken: str | None, last: Move | None = None) -> Found:
        steps = [(label, world) for world, label, _, _ in path if label is not None]
        if last is not None:
            steps.append((last.label, last.after))
        trace = tuple(model.describe(label, world) for label, world in steps) if broken else ()
        return Found(worlds=len(under_way), moves=moves, ends=ends, broken=broken, trace=trace)

    while path:
        world, _, following, is_end = path[-1]
        for move in following:
            moves += 1
            if not move.fault:
                is_end[0] = False
            if move.broken is not None:
                return found(move.broken, move)
            seen = under_way.get(move.after)
            if seen is None:
                under_way[move.after] = True
                if (broken := model.broken(move.after)) is not None:
                    return found(broken, move)
                path.append((move.after, move.label, model.moves(move.after), [True]))
                break
            if seen:
                return found("this goes round forever", move)
        else:
            if is_end[0]:
                ends += 1
                if (broken := model.broken_end(world)) is not None:
                    return found(broken)
            under_way[world] = False
            path.pop()
    return found(None)


def _shortest_break(config: Config, limit: int) -> Found:
    model = config.model()
    start = model.start()
    came: dict[World, tuple[World, Label] | None] = {start: None}
    waiting = deque([start])
    moves = ends = 0

    def found(broken: str | None, world: World, last: Move | None = None) -> Found:
        steps = [] if last is None else [(last.label, last.after)]
        while broken is not None and (step := came[world]) is not None:
            steps.append((step[1], world))
            world = step[0]
        trace = tuple(model.describe(label, after) for label, after in reversed(steps))
        return Found(worlds=len(came), moves=moves, ends=ends, broken=broken, trace=trace)

    while waiting and len(came) < limit:
        world = waiting.popleft()
        is_end = True
        for move in model.moves(world):
            moves += 1
            is_end = is_end and move.fault
            if move.broken is not None:
                return found(move.broken, world, move)
            if move.after not in came:
                came[move.after] = (world, move.label)
                if (broken := model.broken(move.after)) is not None:
                    return found(broken, move.after)
                waiting.append(move.after)
        if is_end:
            ends += 1
            if (broken := model.broken_end(world)) is not None:
                return found(broken, world)
    return found(None, start)
