"""Packages needed by some formats only."""

from __future__ import annotations

import importlib
from typing import Any

from lamina.errors import ExportError


def needed(package: str, extra: str) -> Any:  # noqa: ANN401 - whatever the package has
    """A package of an optional extra.

    Raises:
        ExportError: if it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ExportError(
            f"this needs {package}, which does not import here ({error}): "
            f"pip install 'lamina[{extra}]'"
        ) from error
