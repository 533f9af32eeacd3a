"""The Lua scripts: one atomic change a file, its contract at the top of it. Services in other languages copy them.

`load` and `Script` stand in `sagastream.broker.scripting`. A service with scripts of its own may import them from here.
"""

from sagastream.broker.scripting import Script, load

__all__ = ["Script", "load"]
