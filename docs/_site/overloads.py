"""Makes the API reference show a function that has overloads by these alone.

Its own signature is `*args, **named`. Griffe looks there for the parameters that the docstring describes, and finds
none of them.
"""

from typing import Any

import griffe


class Overloads(griffe.Extension):
    """Gives each function that has overloads all their parameters."""

    def on_function_instance(self, *, func: griffe.Function, **_: Any) -> None:
        parameters = {one.name: one for overload in func.overloads or () for one in overload.parameters}
        if parameters:
            func.parameters = griffe.Parameters(*parameters.values())
