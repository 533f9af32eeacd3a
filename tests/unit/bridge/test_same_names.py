"""What a person can do is called the same on a page, on the command line and in clients: verbs, options, members."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, get_type_hints

import click
import pytest

from sagastream import AsyncSagaClient, Bulk, HistoryEvent, Pause, SagaClient
from sagastream.client.listing import Search
from sagastream.core.filtering import Filter
from sagastream.core.saga import Intervention
from sagastream.store.definitions import Deployed, Version
from sagastream.store.operations import Operation
from sagastream.testing import Saga, Sagas
from sagastream_bridge.commands.main import cli
from sagastream_bridge.dashboard.finding import Search as PageSearch

#: What somebody may do: the command line, and the methods that do the same. Those of many take a search.
ACTIONS: Final = {
    "cancel": ("cancel", "begin_bulk"),
    "retry": ("retry", "begin_bulk"),
    "skip": ("skip", "begin_bulk"),
    "abandon": ("abandon", "begin_bulk"),
    "signal": ("signal",),
    "pause": ("pause",),
    "resume": ("resume",),
    "paused": ("paused",),
    "list": ("find",),
    "erase": ("erase_many",),
    "deploy": ("deploy",),
    "bulk": ("bulks", "bulk", "pause_bulk", "resume_bulk", "stop_bulk"),
    "operations": ("operations",),
    "drop-commands": ("drop_commands",),
    "quarantine list": ("quarantined",),
    "quarantine replay": ("replay_quarantined",),
    "quarantine drop": ("drop_quarantined",),
}
#: What only a terminal needs: how something is shown, and the question whether many are meant.
OF_TERMINALS: Final = {"json", "yes", "follow", "limit"}
#: How the command line writes what a client takes as one argument: a file of a definition; which of three is done to a
#: bulk; many ids; an id that stands behind the name of the command.
WRITTEN: Final = {"source": "definition", "entry_ids": "entry_id"}
#: What clients take for several verbs, and refuse for these.
NOT_TAKEN: Final = {"retry": {"now"}, "skip": {"now"}}
#: The fields of a form that say which form it was.
OF_FORMS: Final = {"form_token", "key", "resumes"}
REFERENCE: Final = Path(__file__).parents[3] / "docs" / "reference" / "clients.md"
TEMPLATES: Final = Path(inspect.getfile(PageSearch)).parent / "templates"


def command(words: str) -> click.Command:
    found: click.Command = cli
    for word in words.split():
        assert isinstance(found, click.Group)
        found = found.commands[word]
    return found


def on_the_command_line(words: str) -> set[str]:
    """What a command takes, as a client would call it."""
    names = set()
    for parameter in command(words).params:
        name = parameter.name if isinstance(parameter, click.Argument) else parameter.opts[0].lstrip("-")
        assert name is not None
        names.add(WRITTEN.get(name, name.replace("-", "_")))
    return names - OF_TERMINALS


def of_method(method: Any) -> set[str]:
    """What a method takes. The command line tells the unit of a time beside it."""
    names = set()
    for name, parameter in inspect.signature(method).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            names |= set(get_type_hints(Search))
        else:
            names.add(name.removesuffix("_s"))
    return names - {"self", "limit"}


def of_client(client: type, methods: tuple[str, ...]) -> set[str]:
    names: set[str] = set()
    for method in methods:
        names |= of_method(getattr(client, method))
    return names - {"verb"}  # which command it is


@pytest.mark.parametrize("words", ACTIONS)
def test_the_command_line_and_the_clients_name_it_alike(words: str) -> None:
    methods = ACTIONS[words]
    turns = {"pause", "resume", "stop"} if words == "bulk" else set()  # each is a method of its own
    assert on_the_command_line(words) - turns == of_client(SagaClient, methods) - NOT_TAKEN.get(words, set())
    for method in methods:
        sync, other = (inspect.signature(getattr(client, method)) for client in (SagaClient, AsyncSagaClient))
        assert sync.parameters == other.parameters, method


@pytest.mark.parametrize("verb", ["cancel", "retry", "skip", "abandon", "signal"])
def test_a_saga_of_a_test_names_it_alike(verb: str) -> None:
    assert of_method(getattr(Saga, verb)) == of_method(getattr(SagaClient, verb)) - {"saga_id", "timeout"}


@pytest.mark.parametrize("verb", ["pause", "resume"])
def test_a_pause_in_a_test_names_it_alike(verb: str) -> None:
    assert of_method(getattr(Sagas, verb)) == of_method(getattr(SagaClient, verb))


@pytest.mark.parametrize("client", [SagaClient, AsyncSagaClient])
def test_the_reference_lists_each_method_of_a_client(client: type) -> None:
    text = REFERENCE.read_text()
    listed = re.search(rf"::: sagastream\.{client.__name__}\n.*?members: \[(.*?)\]", text, re.DOTALL)
    assert listed is not None
    names = [name.strip() for name in listed[1].split(",")]
    assert sorted(names) == sorted(name for name in dir(client) if not name.startswith("_"))


# --- pages


def forms(template: str) -> Iterator[tuple[str, set[str]]]:
    """The address of each form of a page that does something, and the names of its fields."""
    pieces = (TEMPLATES / "pieces.html").read_text()
    macro = re.search(r"{% macro reason_and_name.*?endmacro", pieces, re.DOTALL)
    assert macro is not None
    why_and_who = macro[0]

    def filled_in(call: re.Match[str]) -> str:
        names = ["reason", *(["decline"] if '"decline"' in call[0] else [])]
        return "".join(why_and_who.replace("{{ name }}", name) for name in names)

    text = re.sub(r"{{ pieces\.reason_and_name\(.*?\) }}", filled_in, (TEMPLATES / template).read_text())
    for action, body in re.findall(r'<form[^>]*method="post"[^>]*action="(.*?)">(.*?)</form>', text, re.DOTALL):
        names = set(re.findall(r'<(?:input|textarea|select)[^>]*?\bname="(\w+)"', body))
        if "search.given" in body:
            names |= set(PageSearch.NAMES)
        yield action, names - OF_FORMS


#: Each form: which of the actions it does. What is in its address is no field.
FORMS: Final = {
    ("saga.html", "/sagas/"): ("cancel", "retry", "skip", "abandon", "signal", "resume"),
    ("services.html", "/services/"): ("pause", "resume"),
    ("bulk_begin.html", "/bulks/begin"): ("cancel", "retry", "skip", "abandon"),
    ("bulk.html", "/bulks/"): ("bulk",),
    ("quarantined.html", "/quarantine/"): ("quarantine replay", "quarantine drop"),
}


def test_the_forms_of_pages_name_it_alike() -> None:
    found = {(path.name, action): names for path in TEMPLATES.glob("*.html") for action, names in forms(path.name)}
    found = {of: names for of, names in found.items() if of[1] not in ("/login", "/logout")}
    known = set()
    for (page, action), names in found.items():
        [key] = [key for key in FORMS if key[0] == page and action.startswith(key[1])]
        known.add(key)
        allowed = set().union(*(of_client(SagaClient, ACTIONS[verb]) for verb in FORMS[key]))
        assert names - {"verb"} <= allowed, (page, action)
        assert {"reason", "actor"} <= names
    assert known == set(FORMS)


def test_a_search_has_the_same_names_everywhere() -> None:
    names = set(get_type_hints(Search))
    assert set(PageSearch.NAMES) == names
    assert {name.removesuffix("_ms") for name in Filter.__struct_fields__} == names
    assert names <= on_the_command_line("list")


def test_who_did_it_is_the_actor_everywhere() -> None:
    for kind in (Intervention, HistoryEvent, Pause, Operation, Bulk, Version, Deployed):
        assert "actor" in kind.__struct_fields__, kind
        assert "by" not in kind.__struct_fields__, kind

    def all_commands(group: click.Group) -> Iterator[click.Command]:
        for one in group.commands.values():
            yield from all_commands(one) if isinstance(one, click.Group) else (one,)

    options = {option for one in all_commands(cli) for parameter in one.params for option in parameter.opts}
    assert "--actor" in options
    assert "--by" not in options
