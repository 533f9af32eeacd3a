"""A reader of a consumer group, as far as it needs no broker."""

from sagastream.broker.group_reader import consumer_name


def test_no_consumer_name_is_given_twice() -> None:
    assert len({consumer_name() for _ in range(100)}) == 100
