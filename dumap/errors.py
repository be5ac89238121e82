"""The errors that users see. Each class has an exit code; each message says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class DumapError(Exception):
    """Base of all errors that dumap raises on purpose.

    Attributes
    ----------
    exit_code : int
        Exit code of the command.
    """

    exit_code = 1


class ConfigError(DumapError):
    """A configuration value is unknown, of the wrong type or out of range."""

    exit_code = 2


class ParameterError(ConfigError, ValueError):
    """A parameter of an estimator or of a function for AnnData is not allowed. The error is also a ValueError."""


def missing_packages(feature: str, *packages: str) -> ConfigError:
    """Return the error for missing packages, with the command that installs them."""
    return ConfigError(f"{feature} needs what is not installed here: pip install {' '.join(packages)}")


class InputError(DumapError):
    """The input cannot be read or cannot be embedded."""

    exit_code = 3


class DataError(InputError, ValueError):
    """The data or the neighbours that a program gave cannot be embedded. The error is also a ValueError."""


class BudgetError(DumapError):
    """The plan does not fit the workers' memory or the disk."""

    exit_code = 4


class ClusterError(DumapError):
    """The cluster is out of reach, lost, or unfit for the run."""

    exit_code = 5


class StorageError(DumapError):
    """The output cannot be written, or a written object is missing or damaged."""

    exit_code = 6


class DamageError(StorageError):
    """A committed part's object is missing, or its bytes are not the written ones.

    Attributes
    ----------
    stage, part : str
    """

    def __init__(self, message: str, stage: str, part: str) -> None:
        super().__init__(message, stage, part)
        self.stage, self.part = stage, part

    def __str__(self) -> str:
        return str(self.args[0])


class DroppedError(DamageError):
    """A part was dropped, because no stage needed it any more: see the setting `keep`."""


class LockError(DumapError):
    """Another driver works on the output."""

    exit_code = 8


class RunMismatchError(DumapError):
    """The output belongs to a run with other parameters, input or versions."""

    exit_code = 7


class CancelledError(DumapError):
    """The run was cancelled on the cluster that drove it."""

    exit_code = 130


class Terminated(KeyboardInterrupt):
    """The process received a signal to end."""

    exit_code = 143


class TaskError(DumapError):
    """A task failed, or its workers died again and again; the message names stage and part."""

    exit_code = 9


@contextmanager
def as_value_errors() -> Iterator[None]:
    """Raise errors of parameters and data as errors that are also a ValueError."""
    try:
        yield
    except ConfigError as error:
        raise ParameterError(str(error)) from error
    except InputError as error:
        raise DataError(str(error)) from error
