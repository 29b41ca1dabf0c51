"""Errors by type. Every message says what to do."""


class LaminaError(Exception):
    """Base of all errors raised by this package."""


class CompositionError(LaminaError, ValueError):
    """Stages, exits or their names do not make a multi-exit network."""


class ArgumentError(LaminaError, ValueError):
    """An argument is outside its range or does not fit the others."""


class TargetError(LaminaError):
    """No thresholds reach the target on this validation set."""


class MetadataError(LaminaError, ValueError):
    """`lamina.json` is missing, malformed or contradicts itself."""


class ExportError(LaminaError):
    """The network cannot be exported, or the file would not equal it."""
