"""Every interleaving of what happens to the processes of a service: whatever is in their memory only, no effect stands
that should not. See docs/proof.md."""

from dataclasses import replace
from typing import Final

import pytest

from exploration.bugs import ServicesBug
from exploration.explore import explore, find_planted
from exploration.services_world import ServicesConfig

#: Visited with every run of the tests.
USUAL: Final = [
    ServicesConfig(name="whatever the handler comes to", outcomes="orba", gives_up=True),
    ServicesConfig(name="slow, told to end", outcomes="ora", slow=1, terms=1),
    ServicesConfig(name="slow twice, told to end", outcomes="or", slow=2, terms=1),
    ServicesConfig(name="slow, the undo fails", outcomes="or", slow=1, undo_failures=3),
    ServicesConfig(name="slow, the undo fails, told to end", outcomes="or", slow=1, undo_failures=2, terms=1),
    ServicesConfig(name="slow, the broker is away", outcomes="ora", slow=1, outages=1),
    ServicesConfig(name="slow, the broker is away, told to end", outcomes="or", slow=1, outages=1, terms=1),
    ServicesConfig(name="slow, killed", outcomes="ora", slow=1, kills=1),
    ServicesConfig(name="killed twice", outcomes="ora", kills=2, gives_up=True),
    ServicesConfig(name="handed back, slow", outcomes="or", slow=1, hand_backs=2),
    ServicesConfig(name="given up, slow, told to end", outcomes="ora", attempts=1, slow=1, terms=1, gives_up=True),
    ServicesConfig(name="given up, slow, the broker is away", outcomes="o", attempts=1, slow=1, outages=1,
                   gives_up=True),
    ServicesConfig(name="given up, slow, the undo fails, killed", outcomes="oa", attempts=1, slow=1, kills=1,
                   undo_failures=2, gives_up=True),
    ServicesConfig(name="a release that lacks the command, killed", outcomes="ora", kills=1, lacking=1, gives_up=True),
    ServicesConfig(name="a release that lacks the command, slow", outcomes="ora", slow=1, lacking=1, hand_backs=1),
    ServicesConfig(name="three processes, slow, told to end", outcomes="or", processes=3, slow=1, terms=1),
]  # fmt: skip

#: Takes minutes and gigabytes.
LONG: Final = [
    ServicesConfig(name="long: all of it", outcomes="ora", slow=1, terms=1, outages=1, kills=1, hand_backs=1,
                   undo_failures=2, gives_up=True),
    ServicesConfig(name="long: slow twice, the broker is away", outcomes="ora", slow=2, terms=1, outages=1,
                   undo_failures=2),
]  # fmt: skip

#: Each mistake, and a run of events in which it shows.
PLANTED: Final = [
    (ServicesBug.OWED_IN_MEMORY, ServicesConfig(name="told to end", slow=1, terms=1)),
    (ServicesBug.OWED_IN_MEMORY, ServicesConfig(name="the undo fails", slow=1, undo_failures=2)),
    (ServicesBug.OWED_IN_MEMORY, ServicesConfig(name="the broker is away", slow=1, outages=1)),
    (ServicesBug.OWED_IN_MEMORY, ServicesConfig(name="killed", slow=1, kills=1)),
    (ServicesBug.HELD_BY_ANYBODY, ServicesConfig(name="told to end", slow=1, terms=1)),
    (ServicesBug.LOST_IS_DROPPED, ServicesConfig(name="told to end", outcomes="ra", slow=1, terms=1)),
    (ServicesBug.LOST_IS_DROPPED, ServicesConfig(name="the broker is away", outcomes="ra", slow=1, outages=1)),
    (ServicesBug.LAST_ANSWERS_DROPPED, ServicesConfig(name="told to end", slow=1, terms=1)),
    (ServicesBug.OTHERS_ACKNOWLEDGED, ServicesConfig(name="told to end", outcomes="ra", slow=1, terms=1)),
    (ServicesBug.OTHERS_ACKNOWLEDGED, ServicesConfig(name="killed", outcomes="ro", slow=1, kills=1)),
    (ServicesBug.HANDED_BACK_IS_GONE, ServicesConfig(name="told to end", terms=1, gives_up=True)),
    (ServicesBug.SENT_AGAIN_AS_NEW, ServicesConfig(name="slow", slow=1)),
    (ServicesBug.OWN_COUNTS_AS_NEW, ServicesConfig(name="the broker is away", outages=1, outcomes="oa", gives_up=True,
                                                   attempts=1)),
    (ServicesBug.FAILED_UNDO_ANSWERED, ServicesConfig(name="the undo fails", slow=1, undo_failures=1)),
    (ServicesBug.DELIVERED_AGAIN_NOT_UNDONE, ServicesConfig(name="killed", kills=1, gives_up=True)),
    (ServicesBug.UNKNOWN_COMMAND_IS_FINAL, ServicesConfig(name="killed", kills=1, lacking=1)),
    (ServicesBug.UNKNOWN_COMMAND_IS_FINAL, ServicesConfig(name="killed, one attempt", kills=1, lacking=1, attempts=1)),
    (ServicesBug.NOT_UNDONE, ServicesConfig(name="slow", slow=1)),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("config", USUAL, ids=lambda config: config.name)
def test_no_effect_stands_whatever_happens_to_a_process(
    config: ServicesConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    explore(config, capsys)


@pytest.mark.soak
@pytest.mark.parametrize("config", LONG, ids=lambda config: config.name)
def test_no_effect_stands_if_more_happens_at_once(config: ServicesConfig, capsys: pytest.CaptureFixture[str]) -> None:
    explore(config, capsys)


@pytest.mark.parametrize(("bug", "config"), PLANTED, ids=lambda value: getattr(value, "name", ""))
def test_a_planted_mistake_is_found(
    bug: ServicesBug, config: ServicesConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    find_planted(replace(config, bug=bug), config, capsys)


def test_every_mistake_is_planted() -> None:
    assert {bug for bug, _ in PLANTED} == set(ServicesBug)
