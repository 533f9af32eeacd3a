"""What is wrong in a document, as values."""

from enum import StrEnum
from typing import NamedTuple


class Code(StrEnum):
    """What kind of problem it is. These names are stable: a build may count on them."""

    MALFORMED = "malformed"  # a saga of it would be refused, for another reason than those below
    PIVOT = "pivot"  # the kinds of the steps contradict each other, or a step might run beside the pivot
    AFTER = "after"  # it comes after what is not an earlier step
    AFTER_REDUNDANT = "after-redundant"  # it comes after that step anyway
    REFERENCE = "reference"  # to what is not there, not yet, or may be missing
    CONDITION = "condition"  # it is none, or refers to what is not there
    LIMIT = "limit"  # it may have more steps than a saga may have, or its input is too large for so many
    DEADLINE = "deadline"  # it passes before all is done
    UNKNOWN_SERVICE = "unknown-service"
    UNKNOWN_COMMAND = "unknown-command"
    UNKNOWN_COMPENSATION = "unknown-compensation"
    NO_UNDO = "no-undo"  # neither the step nor its service says what undoes it
    NEEDLESS_UNDO = "needless-undo"  # something is said of an undo that there never is
    SCHEMA = "schema"  # what it says of its input is not a JSON Schema
    INPUT = "input"  # its schema does not know what a reference names
    EXAMPLE = "example"  # its example is not an input that its schema allows, or no saga can begin with it
    SAME_VERSION = "same-version"  # it is deployed under this version with another content


class Problem(NamedTuple):
    code: Code
    pointer: str  # to the value in the document
    text: str
