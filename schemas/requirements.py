"""Who is asked, by what clients say of themselves: requirements such as ``rows >= 1000`` or ``region = north``."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from refold.schemas.canonical import Name, Scalar, Within
from refold.schemas.errors import InvalidRecord, UsageError

COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
_WORDS = re.compile(r"\s*([^\s<>=!]+)\s*(!=|>=|<=|==?|>|<)\s*(.*?)\s*")


@dataclass(frozen=True, slots=True)
class Requirement:
    """One requirement on one property.

    Numbers compare with numbers and texts with texts; a property that is lacking or of another kind meets none, not
    even ``!=``.
    """

    name: Name
    comparison: Annotated[str, Within(1, 2)]
    value: Scalar

    def __post_init__(self) -> None:
        if self.comparison not in COMPARISONS:
            raise InvalidRecord("form", f"no comparison {self.comparison!r}")

    def holds(self, properties: Mapping[str, Scalar]) -> bool:
        """Whether a client with these properties meets it."""
        found = properties.get(self.name)
        if found is None or isinstance(found, str) != isinstance(self.value, str):
            return False
        return COMPARISONS[self.comparison](found, self.value)

    def __str__(self) -> str:
        value = str(self.value).lower() if isinstance(self.value, bool) else str(self.value)
        return f"{self.name} {self.comparison} {value}"


Requirements = Annotated[tuple[Requirement, ...], Within(0, 32)]


def meets(requirements: Iterable[Requirement], properties: Mapping[str, Scalar]) -> bool:
    """Whether a client with these properties meets all of them."""
    return all(requirement.holds(properties) for requirement in requirements)


def requirement_of(text: str) -> Requirement:
    """Return the requirement that a text such as ``rows >= 1000`` is.

    Raises
    ------
    UsageError
        It is none.
    """
    words = _WORDS.fullmatch(text)
    if words is None or not words[3]:
        hint = "write NAME, one of = != >= <= > <, and a value: `rows >= 1000`, `region = north`"
        raise UsageError(f"{text!r} is no requirement", hint=hint)
    return Requirement(words[1], "=" if words[2] == "==" else words[2], _value(words[3]))


def _value(text: str) -> Scalar:
    if text in ("true", "false"):
        return text == "true"
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
