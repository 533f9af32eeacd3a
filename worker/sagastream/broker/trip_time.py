"""TIME on a connection to a cluster: whether a node is asked, and whether the time of the cluster is the answer."""

from sagastream.broker.cluster_time import ClusterTime
from sagastream.broker.routes import Command


class TripTime:
    """What one connection knows of each TIME that it has to answer."""

    def __init__(self, time: ClusterTime) -> None:
        self._time = time
        self._asked_s: dict[int, float] = {}  # by command: when the node was asked, by the clock of `time`

    def ask(self, command: Command) -> None:
        """Have the node asked whose time is that of the cluster, if it is time to ask it."""
        time, part = self._time, command.parts[0]
        if time.slot is None or part.is_in_transaction:
            return
        if (asked_s := time.asks()) is None:
            part.ends(None)
        else:
            part.slot, part.may_go_elsewhere = time.slot, False
            self._asked_s[id(command)] = asked_s

    def is_of_cluster(self, command: Command) -> bool:
        """Whether the answer is the time of the cluster. If not, it is that of the node that was asked."""
        time, part = self._time, command.parts[0]
        asked_s = self._asked_s.pop(id(command), None)
        if asked_s is not None and isinstance(part.answer, list):
            time.told(part.answer, asked_s)
        return time.slot is not None and time.is_known and not part.is_in_transaction

    def forget(self) -> None:
        """No answer comes any more."""
        self._asked_s.clear()
