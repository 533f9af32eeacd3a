"""Makes the API reference show whole signatures: all overloads, and each option of `**options: Unpack[…]` by itself.

A function that has overloads has a signature `*args, **named` of its own, where Griffe looks for the parameters that
the docstring describes, and finds none. Griffe has an extension for options, which adds them to the docstring too,
where the project describes them already.
"""

from collections.abc import Iterator
from typing import Any

import griffe

_UNPACK = "typing.Unpack"


class Signatures(griffe.Extension):
    """Gives functions and their overloads all their parameters."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        for function in _functions(pkg):
            overloads = function.overloads or ()
            for one in (*overloads, function):
                one.parameters = griffe.Parameters(*_spelt_out(one, pkg.modules_collection))
            if overloads:
                named = {parameter.name: parameter for one in overloads for parameter in one.parameters}
                function.parameters = griffe.Parameters(*named.values())


def _functions(place: griffe.Object) -> Iterator[griffe.Function]:
    for member in place.members.values():
        if isinstance(member, griffe.Function):
            yield member
        elif isinstance(member, griffe.Module | griffe.Class):
            yield from _functions(member)


def _spelt_out(function: griffe.Function, modules: griffe.ModulesCollection) -> Iterator[griffe.Parameter]:
    for parameter in function.parameters:
        taken = parameter.annotation
        if isinstance(taken, griffe.ExprSubscript) and taken.canonical_path == _UNPACK:
            keyword = griffe.ParameterKind.keyword_only
            for name, option in _members(modules[taken.slice.canonical_path]):
                yield griffe.Parameter(name, annotation=option.annotation, kind=keyword, default="None")
        else:
            yield parameter


def _members(options: griffe.Class) -> Iterator[tuple[str, griffe.Attribute]]:
    for base in options.resolved_bases:
        yield from _members(base)
    yield from ((name, one) for name, one in options.members.items() if isinstance(one, griffe.Attribute))
