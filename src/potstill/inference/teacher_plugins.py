"""Teachers that write rows, by plug-ins (`potstill.teachers`): a backend that Potstill lacks.

In: a reference plugin:NAME or plugin:NAME:MODEL. Out: a TextModel whose failures name the plug-in's
package; what its replies depend on. Knows no backend by itself. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

from potstill.core.plugins import PREFIX, Loaded, described, load
from potstill.errors import PotstillError
from potstill.inference.base import Reply, Request, TextModel

GROUP = "potstill.teachers"
T = TypeVar("T")


class TeacherPlugin(Protocol):
    """What an entry point of `potstill.teachers` names. MODEL is the reference's end, perhaps
    empty; what it means is the plug-in's own."""

    version: str
    """Raise it when replies would differ: rows are then asked for again."""

    def identity(self, model: str) -> str:
        """What replies depend on besides the version, such as a digest of the weights. Light."""
        ...

    def open(self, model: str, *, threads: int, parallel: int, context_tokens: int) -> TextModel:
        """The model. threads: processor threads; parallel: requests at once; context_tokens:
        longest prompt and reply together."""
        ...


def is_plugin(reference: str) -> bool:
    """Whether a model reference names a plug-in's model."""
    return reference.startswith(PREFIX)


def plugin_identity(reference: str) -> str:
    """What replies depend on. Errors: PluginError."""
    loaded, model = _loaded(reference)
    with _explained(loaded, f"cannot say what {reference} is"):
        return f"{reference} {loaded.identity} {loaded.object.identity(model)}"


def open_plugin(reference: str, *, threads: int, parallel: int, context_tokens: int) -> TextModel:
    """The plug-in's model. Errors: PluginError."""
    loaded, model = _loaded(reference)
    with _explained(loaded, f"cannot open {reference}"):
        opened = loaded.object.open(
            model, threads=threads, parallel=parallel, context_tokens=context_tokens
        )
    for name in ("complete", "stream", "count_tokens", "token_ids", "close"):
        if not callable(getattr(opened, name, None)):
            raise loaded.broken(f"opened a model that has no {name}")
    return _Guarded(loaded, opened)


def _loaded(reference: str) -> tuple[Loaded, str]:
    name, _, model = reference.removeprefix(PREFIX).partition(":")
    return load(GROUP, name.strip(), ("identity", "open")), model.strip()


@contextmanager
def _explained(loaded: Loaded, what: str) -> Iterator[None]:
    try:
        yield
    except PotstillError:
        raise
    except Exception as error:
        raise loaded.broken(f"{what}: {described(error)}") from error


class _Guarded:
    """The model of a plug-in; whatever it raises names the package."""

    def __init__(self, loaded: Loaded, model: TextModel) -> None:
        self.loaded, self.model = loaded, model

    def complete(self, requests: Iterable[Request]) -> Iterator[tuple[int, Reply]]:
        """As the plug-in answers."""
        for place, reply in self._each(lambda: self.model.complete(requests)):
            if not isinstance(reply, Reply):
                raise self.loaded.broken("answered with something that is no Reply")
            yield place, reply

    def stream(self, request: Request) -> Iterator[str]:
        """As the plug-in answers."""
        yield from self._each(lambda: self.model.stream(request))

    def count_tokens(self, text: str) -> int:
        """As the plug-in counts."""
        with _explained(self.loaded, "cannot count tokens"):
            return self.model.count_tokens(text)

    def token_ids(self, text: str, special: bool = False) -> list[int]:
        """As the plug-in reads."""
        with _explained(self.loaded, "cannot make tokens"):
            return self.model.token_ids(text, special)

    def close(self) -> None:
        """Give back what the plug-in holds."""
        with _explained(self.loaded, "cannot be closed"):
            self.model.close()

    def _each(self, begin: Callable[[], Iterator[T]]) -> Iterator[T]:
        """Errors of the plug-in alone are explained, not those of whoever takes the answers."""
        with _explained(self.loaded, "failed to answer"):
            found = iter(begin())
        while True:
            with _explained(self.loaded, "failed to answer"):
                try:
                    one = next(found)
                except StopIteration:
                    return
            yield one
