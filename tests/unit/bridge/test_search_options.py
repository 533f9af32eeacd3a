"""What the options of a search may say; the broker is not asked for that."""

import pytest
from click.testing import CliRunner

from sagastream_bridge.commands.main import cli

_WRONG = [
    (["--where", "customer"], "--where 'customer' is not NAME=VALUE"),
    (["--where", "Customer=2"], "--where: 'Customer' is no name of an attribute"),
    (["--where", "status=parked"], "--where: status is no attribute; use --status parked"),
    (["--where", "at=till/Charge"], "--where: at is no attribute; use --at till/Charge"),
    (["--where", "held=\x1b[2J"], "--where: held is no attribute"),
    (["--where", "customer=a", "--where", "customer=b"], "--where names customer twice"),
    (["--where", "customer=a", "--where", "customer=a"], "--where names customer twice"),
    (["--at", ""], "--at must be a text of 1 to 512 characters"),
    (["--at", "payment/"], "--at must be COMMAND or SERVICE/COMMAND, not 'payment/'"),
    (["--at", "/"], "--at must be COMMAND or SERVICE/COMMAND, not '/'"),
    (["--at", "a/b/c"], "--at must be COMMAND or SERVICE/COMMAND, not 'a/b/c'"),
    (["--parked", "/Pay"], "--parked must be COMMAND or SERVICE/COMMAND, not '/Pay'"),
    (["--error", ""], "--error must be a text of 1 to 512 characters"),
    (["--definition", ""], "--definition must be a text of 1 to 512 characters"),
    (["--older", "1"], "'--older': '1' is not a duration like 500ms, 90s, 30m, 1h, 2d, 1w or 1h30m"),
    (["--newer", "99999999999d"], "'--newer': '99999999999d' is too long: at most 1157407d"),
    (["--older", "2h", "--newer", "1h"], "--older 2 h and --newer 1 h together find nothing"),
]


@pytest.mark.parametrize(("options", "told"), _WRONG, ids=lambda value: " ".join(value) if type(value) is list else "")
def test_a_search_that_makes_no_sense_is_wrong_usage(options: list[str], told: str) -> None:
    for command in (["list"], ["abandon", "--reason", "r", "--yes"]):
        done = CliRunner().invoke(cli, [*command, *options])
        assert (done.exit_code, told in done.output) == (2, True), done.output
        assert "\x1b" not in done.output


@pytest.mark.parametrize(
    ("attributes", "told"),
    [
        (["customer"], "--attribute 'customer' is not NAME=VALUE"),
        (["a=1", "a=2"], "--attribute names a twice"),
        (["status=1"], "--attribute: status is taken"),
        ([f"a{number}=1" for number in range(9)], "--attribute: 9 are too many"),
    ],
)
def test_an_attribute_that_makes_no_sense_is_wrong_usage(attributes: list[str], told: str) -> None:
    given = [word for one in attributes for word in ("--attribute", one)]
    done = CliRunner().invoke(cli, ["begin", "order", *given])
    assert (done.exit_code, told in done.output) == (2, True), done.output
