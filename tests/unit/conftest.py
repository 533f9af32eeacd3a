"""How property tests run: no time limit for an example, and the same examples each time on a build server."""

import os

from hypothesis import settings

settings.register_profile("unit", deadline=None, derandomize="CI" in os.environ, database=None)
settings.load_profile("unit")
