"""Key names: one hash tag for each partition, no two names alike, and all of them in the catalogue."""

import re

from hypothesis import given
from hypothesis import strategies as st

from sagastream.store import keys

IDS = st.from_regex(r"[A-Za-z0-9._:-]{1,128}", fullmatch=True)
HOUR_MS = 3600 * 1000
OF_A_PARTITION = [keys.REQUESTS, keys.REPLIES, keys.TIMERS, keys.ENDED, keys.EVENTS, keys.QUARANTINE]


def hash_tag(key: str) -> str:
    """The part of a key that decides its place in a cluster: the text between the first { and the first } after it."""
    found = re.search(r"\{([^}]+)\}", key)
    assert found is not None
    return found[1]


@given(IDS, st.integers(0, 2**45))
def test_all_keys_of_a_partition_share_its_hash_tag_whatever_the_ids(name: str, begun_ms: int) -> None:
    made = [keys.saga(name), keys.commands(name), keys.done(name, begun_ms)]
    assert {hash_tag(key) for key in [*OF_A_PARTITION, *made]} == {"0"}


def test_keys_are_as_the_design_names_them() -> None:
    assert keys.saga("saga42") == "saga:{0}:saga:saga42"
    assert keys.commands("payment") == "saga:{0}:commands:payment"
    assert keys.done("payment", 0) == "saga:{0}:done:payment:0"
    assert keys.published("payment") == "saga:services:payment"
    assert (keys.ALIVE, keys.RUNNING, keys.STORE) == ("saga:alive", "saga:running", "saga:store")
    assert set(OF_A_PARTITION) == {
        f"saga:{{0}}:{name}" for name in ("requests", "replies", "timers", "ended", "events", "quarantine")
    }


@given(IDS, IDS, st.integers(0, 2**45), st.integers(0, 2**45))
def test_keys_of_different_things_are_different(one: str, other: str, begun_ms: int, later_ms: int) -> None:
    made = [*OF_A_PARTITION, keys.ALIVE, keys.RUNNING, keys.STORE]
    for name in {one, other}:
        made += [keys.saga(name), keys.commands(name), keys.published(name)]
        made += {keys.done(name, begun_ms), keys.done(name, later_ms)}
    assert len(set(made)) == len(made)


def test_what_was_done_for_a_saga_is_recorded_under_the_hour_it_began() -> None:
    assert keys.done("payment", 5 * HOUR_MS) == keys.done("payment", 6 * HOUR_MS - 1)
    assert keys.done("payment", 6 * HOUR_MS - 1) != keys.done("payment", 6 * HOUR_MS)


def test_the_catalogue_tells_of_every_key() -> None:
    catalogue = {line.split()[0] for line in (keys.__doc__ or "").splitlines() if line.startswith("    saga:")}
    made = [
        *OF_A_PARTITION,
        keys.ALIVE,
        keys.RUNNING,
        keys.STORE,
        keys.saga("<saga_id>"),
        keys.commands("<service>"),
        keys.published("<service>"),
    ]
    assert catalogue == {key.replace("{0}", "{p}") for key in made} | {"saga:{p}:done:<service>:<h>"}
