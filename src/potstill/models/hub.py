"""A model of the Hugging Face hub: whether it is here, what the hub says of it, how it is fetched.

In: a hub id (org/name) and a revision. Out: its folder in the hub's own cache; a `Said`; one clear
line for whatever stands in the way, with the page on which it is settled. The login is the user's
own (HF_TOKEN, or `hf auth login`); its value is never read into a message. Knows nothing of
references to other places, and of what is inside a model.
"""

from __future__ import annotations

import errno
import json
import os
import re
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path
from time import monotonic
from typing import Any

from potstill.core.extras import require
from potstill.core.files import disk_refusal
from potstill.errors import MissingExtraError, ModelError, UnavailableError
from potstill.models.catalogue import published

FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
"""What is fetched of a repository."""
COMMIT = re.compile(r"[0-9a-f]{40}")
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)
SECONDS = 10.0  # longest wait for an answer of the hub
LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
OFFLINE = "HF_HUB_OFFLINE is set"
CONVERT = (
    "Only safetensors are loaded. Convert the model once, where you trust it: load it with "
    "transformers' from_pretrained, save it and its tokenizer with save_pretrained into a folder, "
    "and name that folder."
)


@dataclass(frozen=True)
class Said:
    """What the hub says of a model. parameters: of its safetensors files; None: it does not say.
    bytes: of the files that would be fetched; None: it does not say."""

    commit: str
    parameters: int | None
    bytes: int | None
    licence: str
    gated: bool
    files: tuple[str, ...]


@dataclass(frozen=True)
class Access:
    """How this machine stands to the hub."""

    reached: bool
    why: str
    """Why it is not reached; empty if it is."""
    token: str
    """Where a login comes from; empty: there is none."""


def page(name: str) -> str:
    """Where a model's terms are, and where access is asked for."""
    return f"https://huggingface.co/{name}"


def cache() -> Path:
    """The folder of the hub's own cache."""
    try:
        from huggingface_hub import constants
    except ImportError:
        return Path.home() / ".cache" / "huggingface"
    return Path(constants.HF_HUB_CACHE)


def cached(name: str, revision: str | None = None) -> Path | None:
    """The model's folder in the hub's own cache, if all of it is there; fetches nothing."""
    try:
        import huggingface_hub

        folder = Path(
            huggingface_hub.snapshot_download(
                name, revision=revision, local_files_only=True, allow_patterns=FILES
            )
        )
    except (ImportError, OSError, ValueError):
        return None
    return folder if is_whole(folder) else None


def is_whole(folder: Path) -> bool:
    """Whether weights are there, and every shard that an index names. The hub's library knows of
    what it fetched itself in one go alone."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file() or not index.is_file():
        return any(folder.glob("*.safetensors"))
    try:
        shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return all((folder / name).is_file() for name in shards)


def commit(name: str, revision: str | None = None) -> str:
    """The commit that stands for the model: the cached one, else the hub's own answer.

    Errors: UnavailableError, ModelError, as `check`.
    """
    if revision and COMMIT.fullmatch(revision):
        return revision
    folder = cached(name, revision)
    return folder.name if folder is not None else check(name, revision).commit


def snapshot(name: str, revision: str | None = None) -> Path:
    """The model's folder in the hub's own cache, fetched if it is not there.

    Errors: as `check`, before anything is fetched; StoreError for a disk that refuses.
    """
    folder = cached(name, revision)
    if folder is not None:
        return folder
    check(name, revision)
    hub = _library()
    try:
        # By the revision's own name, so that it is found under it when the hub cannot be asked.
        return Path(hub.snapshot_download(name, revision=revision, allow_patterns=FILES))
    except Exception as error:
        number = getattr(error, "errno", None)
        if number in DISK_ERRORS:
            reason = f"Cannot download {name} into {cache()}: {os.strerror(number)}."
            raise disk_refusal(reason, number) from error
        raise _explained(name, revision, error) from error


def check(name: str, revision: str | None = None) -> Said:
    """Asks the hub whether the model can be fetched from here, and says what it is.

    Errors: UnavailableError if the hub cannot be reached, or does not let this login have it;
    ModelError for a model or revision that there is not, or whose weights are no safetensors.
    """
    found = _asked(name, revision, int(monotonic() // 60))
    if isinstance(found, ModelError):
        raise type(found)(found.message, found.hint)
    return found


def said(name: str, revision: str | None = None) -> Said | None:
    """The same where it is only to be shown: None if the hub does not say."""
    try:
        return check(name, revision)
    except (ModelError, MissingExtraError):
        return None


@lru_cache(maxsize=64)
def _asked(name: str, revision: str | None, minute: int) -> Said | ModelError:
    """One answer a minute: a plan asks about the same model many times."""
    hub = _library()
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return _unreachable(name, OFFLINE)
    try:
        information = hub.HfApi().model_info(
            name, revision=revision, timeout=SECONDS, files_metadata=True
        )
        found = _read(information)
        _check_weights(name, found.files)
        if found.gated:
            _check_access(hub, name, found.commit)
    except ModelError as error:
        return error
    except Exception as error:
        return _explained(name, revision, error)
    return found


def _read(information: Any) -> Said:
    files = list(information.siblings or ())
    wanted = [one for one in files if any(fnmatch(one.rfilename, form) for form in FILES)]
    sizes: list[int | None] = [getattr(one, "size", None) for one in wanted]
    card = information.card_data
    licence = str((card.get("license") if card is not None else None) or "")
    if licence == "other":  # its own name stands beside it
        licence = str(card.get("license_name") or licence)
    return Said(
        commit=str(information.sha),
        parameters=information.safetensors.total if information.safetensors else None,
        bytes=sum(one or 0 for one in sizes) if sizes and None not in sizes else None,
        licence=licence,
        gated=bool(information.gated),
        files=tuple(one.rfilename for one in files),
    )


def _check_weights(name: str, files: tuple[str, ...]) -> None:
    """Errors: ModelError if the repository holds no safetensors."""
    endings = {Path(file).suffix for file in files}
    if ".safetensors" in endings:
        return
    if endings & {".bin", ".pt", ".pth"}:
        raise ModelError(
            f"{name} has its weights as pickle files alone (*.bin), which can run code and are not "
            "loaded.",
            CONVERT,
        )
    if ".gguf" in endings:
        raise ModelError(
            f"{name} holds GGUF files and no safetensors.",
            f"Download the one you want (`hf download {name} FILE`) and name that file.",
        )
    raise ModelError(f"{name} holds no weights (no *.safetensors).", f"Look at {page(name)}.")


def _check_access(hub: Any, name: str, revision: str) -> None:
    """Errors: UnavailableError if nobody is logged in; what the hub raises if it says no."""
    if not _token():
        raise _gated(name)
    # A head request for a file: whether this login may download.
    hub.HfApi().get_hf_file_metadata(
        url=hub.hf_hub_url(name, "config.json", revision=revision), timeout=SECONDS
    )


def access() -> Access:
    """Whether the hub can be reached from here, and whether there is a login."""
    try:
        hub = _library()
    except MissingExtraError as error:
        return Access(False, error.message, "")
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return Access(False, OFFLINE, _token())
    try:
        hub.get_session().head(constants.ENDPOINT, timeout=SECONDS / 2)
    except Exception as error:  # of whichever client the library uses
        return Access(False, type(error).__name__, _token())
    return Access(True, "", _token())


def _library() -> Any:
    return require("huggingface_hub", "train", "A model of the hub")


def _token() -> str:
    """Where the login comes from; empty if there is none. Its value goes nowhere."""
    import huggingface_hub
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(name, "").strip():
            return name
    try:
        found = huggingface_hub.get_token()  # of a file, or of places that the library knows
    except Exception:  # of an exchange over the network
        return ""
    kept = Path(constants.HF_TOKEN_PATH).is_file()
    return ("hf auth login" if kept else "huggingface_hub") if found else ""


def _gated(name: str) -> UnavailableError:
    if _token():
        return UnavailableError(
            f"{name} is gated, and your login has not been granted access to it.",
            f"Accept its terms, or ask for access, at {page(name)}, and see that the token may "
            "read gated repositories.",
        )
    return UnavailableError(
        f"{name} is gated, and there is no login here.",
        f"Accept its terms at {page(name)}, then {LOGIN}.",
    )


def _unreachable(name: str, why: str) -> UnavailableError:
    known = published(name)
    terms = f" Its terms are accepted at {page(name)}." if known and known.gated else ""
    begun = (cache() / f"models--{name.replace('/', '--')}" / "snapshots").is_dir()
    here = "not whole in the hub's cache" if begun else "not cached here"
    return UnavailableError(
        f"{name}: {here}, and the hub cannot be reached ({why}).",
        f"Connect to the network once, or name a local folder or a .gguf file.{terms}",
    )


def _explained(name: str, revision: str | None, error: Exception) -> ModelError:
    """What the hub's library raised, as one line with the way out."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError):  # a kind of RepositoryNotFoundError
        return _gated(name)
    if isinstance(error, errors.RevisionNotFoundError):
        return ModelError(
            f"{name} has no revision {revision!r}.",
            f"Its branches, tags and commits are listed at {page(name)}/tree/main.",
        )
    if isinstance(error, errors.DisabledRepoError):
        return UnavailableError(f"The hub has disabled {name}.", f"See {page(name)}.")
    if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
        private = "your login may not see it" if _token() else f"it is private: {LOGIN}"
        return ModelError(
            f"The hub knows no model {name}.", f"Check its name at {page(name)}; or {private}."
        )
    if status == 401 or isinstance(error, errors.LocalTokenNotFoundError):
        return UnavailableError(
            f"{name}: the hub does not accept the login (from {_token() or 'nowhere'}).",
            "The token may have expired: make another one, then " + LOGIN + ".",
        )
    if isinstance(error, errors.OfflineModeIsEnabled):
        return _unreachable(name, OFFLINE)
    if status is not None:
        return _unreachable(name, f"it answers with status {status}")
    if isinstance(error, OSError | ValueError | errors.HTTPError):  # ValueError: no JSON, as of a
        return _unreachable(name, type(error).__name__)  # network that wants a login of its own
    raise error
