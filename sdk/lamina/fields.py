"""Fields of a JSON object, read with their types and named in errors by their path."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, NoReturn

from lamina.errors import MetadataError
from lamina.model import NAME

if TYPE_CHECKING:
    from collections.abc import Sequence


def parse_json(text: str | bytes) -> dict[str, Any]:
    """One JSON object, without NaN, infinities and duplicate fields.

    Raises:
        MetadataError: if it is invalid.
    """

    def refuse(constant: str) -> NoReturn:
        raise MetadataError(f"{constant} is no JSON number")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        document = dict(pairs)
        if len(document) != len(pairs):
            raise MetadataError(f"a field occurs twice among {[name for name, _ in pairs]}")
        return document

    try:
        document = json.loads(text, parse_constant=refuse, object_pairs_hook=once)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MetadataError(f"lamina.json is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise MetadataError("lamina.json must be a JSON object")
    return document


class Fields:
    """The fields of one object.

    Attributes:
        path: of the object in the file, with a closing dot; empty at the top.
    """

    def __init__(self, values: dict[str, Any], path: str) -> None:
        self._values = values
        self.path = path

    def only(self, *names: str) -> None:
        """Refuses fields that are not among `names`."""
        unknown = sorted(set(self._values) - set(names))
        if unknown:
            raise MetadataError(f"{self.path}{unknown[0]}: unknown field")

    def is_null(self, name: str) -> bool:
        """Whether the field exists and is null."""
        return self._get(name) is None

    def text(self, name: str) -> str:
        """A string that is not empty."""
        value = self._get(name)
        if not isinstance(value, str) or not value:
            self._refuse(name, value, "a string that is not empty")
        return value

    def choice(self, name: str, choices: Sequence[str]) -> str:
        """One of a few strings."""
        value = self._get(name)
        if not isinstance(value, str) or value not in choices:
            self._refuse(name, value, f"one of {', '.join(choices)}")
        return value

    def boolean(self, name: str) -> bool:
        """True or false."""
        value = self._get(name)
        if not isinstance(value, bool):
            self._refuse(name, value, "true or false")
        return value

    def integer(self, name: str, low: int) -> int:
        """A whole number of `low` or more."""
        value = self._get(name)
        if not _is_integer(value) or value < low:
            self._refuse(name, value, f"a whole number of {low} or more")
        return int(value)

    def integers(self, name: str) -> tuple[int, ...]:
        """A list of whole numbers."""
        value = self._get(name)
        if not isinstance(value, list) or not all(_is_integer(v) for v in value):
            self._refuse(name, value, "a list of whole numbers")
        return tuple(value)

    def positive(self, name: str) -> float:
        """A number above 0."""
        value = self._number(name)
        if value <= 0.0:
            self._refuse(name, value, "a number above 0")
        return value

    def share(self, name: str) -> float:
        """A number within 0..=1."""
        value = self._number(name)
        if not 0.0 <= value <= 1.0:
            self._refuse(name, value, "a number within 0..=1")
        return value

    def nested(self, name: str) -> Fields:
        """An object."""
        value = self._get(name)
        if not isinstance(value, dict):
            self._refuse(name, value, "an object")
        return Fields(value, f"{self.path}{name}.")

    def objects(self, name: str, at_least: int = 0) -> list[Fields]:
        """A list of objects."""
        value = self._get(name)
        if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
            self._refuse(name, value, "a list of objects")
        if len(value) < at_least:
            raise MetadataError(f"{self.path}{name}: has {len(value)}, at least {at_least} needed")
        return [Fields(v, f"{self.path}{name}[{i}].") for i, v in enumerate(value)]

    def _number(self, name: str) -> float:
        value = self._get(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._refuse(name, value, "a number")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number):
            self._refuse(name, value, "a number that double precision holds")
        return number

    def _get(self, name: str) -> Any:  # noqa: ANN401, JSON may hold anything
        if name not in self._values:
            raise MetadataError(f"{self.path}{name}: missing")
        return self._values[name]

    def _refuse(self, name: str, value: object, wanted: str) -> NoReturn:
        shown = repr(value)
        if len(shown) > 60:
            shown = shown[:57] + "..."
        raise MetadataError(f"{self.path}{name}: {shown} is not {wanted}")


def as_label(fields: Fields, name: str) -> str:
    """A name of a stage or an exit."""
    value = fields.text(name)
    if not NAME.fullmatch(value):
        raise MetadataError(
            f"{fields.path}{name}: {value[:80]!r} is not a label of lower-case letters, digits and "
            "inner hyphens"
        )
    return value


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
