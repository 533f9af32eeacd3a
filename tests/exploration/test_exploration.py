"""Every interleaving of small sagas: the rules hold, and planted mistakes are found. See docs/proof.md."""

from dataclasses import replace

import pytest

from exploration.bugs import Bug
from exploration.configurations import GRAPHS, LONG, PLANTED, USUAL, step
from exploration.explore import every_run, explore, find_planted, shortest_break
from exploration.world import WORKERS, Config


@pytest.mark.slow
@pytest.mark.parametrize("config", USUAL, ids=lambda config: config.name)
def test_every_run_of_a_small_saga_ends_well(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    explore(config, capsys)


@pytest.mark.slow
@pytest.mark.parametrize("config", GRAPHS, ids=lambda config: config.name)
def test_every_run_of_a_small_graph_ends_well(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    explore(config, capsys)


@pytest.mark.soak
@pytest.mark.parametrize("config", LONG, ids=lambda config: config.name)
def test_every_run_of_a_larger_one_ends_well(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    explore(config, capsys)


@pytest.mark.parametrize(("bug", "config"), PLANTED, ids=lambda value: getattr(value, "name", ""))
def test_a_planted_mistake_is_found(bug: Bug, config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    find_planted(replace(config, bug=bug), config, capsys)


def test_two_workers_of_the_explored_runs_take_the_same_partition_for_theirs() -> None:
    """A partition has one worker that prefers it, until some have not heard of the same workers as others. So runs are
    explored in which two take entries of a saga, or find it due, at the same time; of entries that were delivered to
    one of them, too."""
    both = [config for config in [*USUAL, *GRAPHS] if config.workers == 2]
    assert len(both) > 10
    assert any(config.zombies and config.worker_crashes for config in both)
    model = next(config for config in both if config.zombies).model()
    reached, seen = [model.start()], {model.start()}
    while not any(all(held) for held in (model.workers.values[world[WORKERS]] for world in reached)):
        reached = [move.after for world in reached for move in model.moves(world) if move.after not in seen]
        seen.update(reached)
        assert reached, "never do both hold something"


def test_every_mistake_is_planted() -> None:
    assert {bug for bug, _ in PLANTED} == set(Bug)


def test_what_a_slow_process_does_that_dies_unheard_is_known_to_nobody() -> None:
    """This is the limit of what a runtime can promise, and the reason why a service keeps its own books."""
    slow = Config(name="", steps=(step(),), outcomes=("o",), zombies=1, service_crashes=1, orphans_die=True)
    assert every_run(replace(slow, orphans_die=False)).broken is None
    found = shortest_break(slow)
    assert found.broken == "the saga is ABORTED, and step 1 remains done (COMPENSATED)"
    assert any("a process dies" in line for line in found.trace)
