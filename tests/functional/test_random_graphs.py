"""Random graphs on real processes that are killed: every effect is there as the saga's end says, undone in a legal
order, and each handler was told what its references find.

A short run belongs to the suite. `pytest -m soak tests/functional/test_random_graphs.py` runs SAGASTREAM_SOAK_GRAPHS
sagas, by default 1000, and kills the server, too; SAGASTREAM_SOAK_SEED makes others. `--junitxml` writes down what was
done to how many.
"""

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from support.faults import Scale
from support.graph_world import MODULE, GraphWorld, graph_world_of
from support.processes import Commands

pytestmark = pytest.mark.slow

SHORT: Final = Scale(sagas=60, factor=1)
LONG: Final = Scale(sagas=int(os.environ.get("SAGASTREAM_SOAK_GRAPHS", "1000")), factor=10)
#: Why a reply is quarantined that comes after its step was given up.
TOO_LATE: Final = "too late"


@pytest.fixture
def world(request: pytest.FixtureRequest, tmp_path: Path, commands: Commands) -> Iterator[GraphWorld]:
    scale, partitions = request.param
    with graph_world_of(scale, tmp_path, commands, partitions=partitions) as made:
        if scale is LONG:
            made.seed = os.environ.get("SAGASTREAM_SOAK_SEED", made.seed)
        began = time.monotonic()
        yield made
        seconds = round(time.monotonic() - began, 1)
        request.node.user_properties.extend([*made.figures.items(), ("seconds", seconds)])


RUNS: Final = [pytest.param((SHORT, 1), id="short"), pytest.param((LONG, 3), id="long", marks=pytest.mark.soak)]


@pytest.mark.parametrize("hasty", [False, True], ids=["answered", "timing out"])
@pytest.mark.parametrize("world", RUNS, indirect=True)
def test_what_graphs_say_is_what_happened_whatever_is_killed(world: GraphWorld, hasty: bool) -> None:
    chance = random.Random(20261129)
    world.hasty = hasty  # … as entries that a killed process holds are, long before its lease ends
    world.start(workers=3, services=2, module=MODULE)

    def any_fault() -> None:
        kind = chance.random()
        if kind < 0.45:
            world.kill_one_of(world.workers, chance)
        elif kind < 0.85:
            world.kill_one_of(world.services, chance)
        elif kind < 0.97 or world.factor == 1:
            world.replace(chance.choice(world.services))
        else:
            world.server.kill()
            world.server.start()
            world.figures["kills of the server"] += 1

    with world.attended():
        world.run(any_fault, every_s=0.3, times=10)
        world.verdict(unfit=(TOO_LATE,))
    assert world.figures["kills"] >= 8
    for what in ("COMPLETED", "ABORTED", "steps BYPASSED", "steps COMPENSATED", "signals in time: taken"):
        assert world.figures[what] > 0, (what, world.figures)
