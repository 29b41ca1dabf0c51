"""All rows of the table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import image_models
import language_models
import sized_models
import small_models
import vision

if TYPE_CHECKING:
    from entry import Entry


def all_entries() -> list[Entry]:
    """The rows, in the order of the table."""
    found = [
        *vision.all_entries(),
        *image_models.all_entries(),
        *language_models.all_entries(),
        *small_models.all_entries(),
        *sized_models.all_entries(),
    ]
    names = [entry.name for entry in found]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ValueError(f"names twice in the registry: {sorted(twice)}")
    return found


def find(name: str) -> Entry:
    """The row of that name."""
    for entry in all_entries():
        if entry.name == name:
            return entry
    raise KeyError(f"no model {name} in the registry")
