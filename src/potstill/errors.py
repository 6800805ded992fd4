"""Every error that Potstill raises on purpose, in one tree.

    PotstillError                 exit code 1   something that was foreseen went wrong
    ├── UsageError                exit code 2   the command or the recipe cannot be understood
    │   └── RecipeError                         a recipe field is unknown or impossible
    ├── InputError                exit code 3   a document or a data file cannot be used
    │   └── AbsentError                         a document or a data file is not there yet
    ├── ModelError                exit code 4   a model cannot be found, loaded or trusted
    │   ├── TeacherError                        the teacher answered nothing usable
    │   └── UnavailableError                    a model cannot be had now: no hub, login, key, terms
    ├── StoreError                exit code 5   a stored result is damaged or locked
    ├── MissingExtraError         exit code 6   an optional package is needed; the message names it
    │   └── PluginError                         a plug-in is not there, or does not work
    ├── TrainingError             exit code 7   training cannot start or cannot go on
    └── BudgetError               exit code 8   the recipe's budget is spent; more of it goes on

An error is one line that says what happened and where, and a hint that says what to do next.
In: words. Out: `str(error)` for people, `exit_code` for shells. This file imports nothing.
"""

from __future__ import annotations

from collections.abc import Mapping


class PotstillError(Exception):
    """A foreseen failure.

    `message` says what and where, `hint` says the way out.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = " ".join(message.split())
        self.hint = " ".join(hint.split())

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()

    @property
    def as_dict(self) -> dict[str, str]:
        """The error as plain values, so that it can cross to another process; see `error_from`."""
        return {"error": type(self).__name__, "message": self.message, "hint": self.hint}

    def __reduce__(self) -> tuple[type[PotstillError], tuple[str, str]]:
        return (type(self), (self.message, self.hint))


class UsageError(PotstillError):
    """The command line or the call cannot be understood."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe field is unknown, has the wrong type, or asks for the impossible."""


class InputError(PotstillError):
    """A document or a data file cannot be used."""

    exit_code = 3


class AbsentError(InputError):
    """A document or a data file is not there yet. A plan shows it and goes on; a run refuses."""


class ModelError(PotstillError):
    """A model cannot be found, loaded, converted or trusted."""

    exit_code = 4


class TeacherError(ModelError):
    """The teacher answered nothing that can be used."""


class UnavailableError(ModelError):
    """A model cannot be had now: no hub, no login, no access, no key, terms that are not accepted.
    A plan shows it and goes on; a run refuses."""


class StoreError(PotstillError):
    """A stored result is damaged or locked, or the disk refuses it."""

    exit_code = 5


class MissingExtraError(PotstillError):
    """An optional package is needed; the hint is its install line."""

    exit_code = 6


class PluginError(MissingExtraError):
    """A plug-in is not installed, cannot be imported, or does not do what it must."""


class TrainingError(PotstillError):
    """Training cannot start, or cannot go on."""

    exit_code = 7


class BudgetError(PotstillError):
    """The recipe's budget is spent. What was paid for is kept."""

    exit_code = 8


class MachineError(PotstillError):
    """The machine clearly lacks the memory or the disk for the run."""

    exit_code = 9


def error_from(values: Mapping[str, str]) -> PotstillError:
    """The error whose `as_dict` another process has told; what else is in there counts for nothing.
    A class that is not known here becomes a PotstillError."""
    known: dict[str, type[PotstillError]] = {
        kind.__name__: kind
        for kind in (
            UsageError,
            RecipeError,
            InputError,
            AbsentError,
            ModelError,
            TeacherError,
            UnavailableError,
            StoreError,
            MissingExtraError,
            PluginError,
            TrainingError,
            BudgetError,
            MachineError,
        )
    }
    kind = known.get(values["error"], PotstillError)
    return kind(values["message"], values.get("hint", ""))
