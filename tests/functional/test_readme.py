"""The README's own example, word for word."""

import re
from pathlib import Path

from support.processes import Commands

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_service_of_the_readme_runs_as_it_stands_there(commands: Commands) -> None:
    service = re.search(r"```python\n# shop\.py\n(.*?)```", README, re.DOTALL)
    shell = re.search(r"\n((?:    .*\n)*    sagastream up --service(?:.*\n)(?:    .*\n)*)", README)
    assert service is not None
    assert shell is not None
    (commands.folder / "shop.py").write_text(service[1])
    done = commands.shell(shell[1])
    assert "o-1 ABORTED: Step 2 failed: insufficient_funds" in done.stdout
    assert re.search(r"undone by RefundCard +sent .*answered", done.stdout)
    assert "refunded what was charged under o-1/1/transaction" in done.stderr
    assert "Traceback" not in done.stderr
