"""Measures sagastream against the floor: the bare stream traffic of the same sagas on the same server."""
