"""A run's exported files to a Hugging Face repository of the user's.

In: the folder of exported files, the repository's name. Out: what would be sent; then one commit.
The user's own login is used (`hf auth login`, or HF_TOKEN): no token is read, kept or shown here.
Knows nothing of runs.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from potstill.core.extras import require
from potstill.core.files import folder_files
from potstill.errors import InputError, UsageError

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]{0,95}")
SECRET = re.compile(r"hf_\w+")


@dataclass(frozen=True)
class Parcel:
    """What a push sends."""

    repository: str
    private: bool
    folder: Path
    files: tuple[tuple[str, int], ...]
    """Path in the repository, bytes."""

    @property
    def bytes(self) -> int:
        return sum(size for _, size in self.files)

    def as_dict(self) -> dict[str, Any]:
        files = [{"path": path, "bytes": size} for path, size in self.files]
        return {
            **asdict(self),
            "folder": str(self.folder),
            "files": files,
            "bytes": self.bytes,
        }


def packed(folder: Path, repository: str, *, public: bool = False) -> Parcel:
    """What would be sent; sends nothing.

    Errors: UsageError for a name that is no USER/NAME; InputError without a model card or files.
    """
    if not NAME.fullmatch(repository):
        raise UsageError(
            f"{repository!r} is no repository's name.",
            "Write it as USER/NAME, with letters, digits, '-', '_' and '.'.",
        )
    files = sorted(folder_files(folder)) if folder.is_dir() else []
    sizes = tuple((path.as_posix(), (folder / path).stat().st_size) for path in files)
    if "README.md" not in dict(sizes):
        raise InputError(
            f"{folder} holds no exported student with a model card.", "Finish the run first."
        )
    return Parcel(repository, not public, folder, sizes)


def send(parcel: Parcel, api: Any = None) -> str:
    """Make the repository if it is not there, and send everything in one commit; returns its URL.

    api: an HfApi, if not the user's own. Errors: UsageError without a login, for a name that is
    not the user's, where a public repository would take what was meant to be private, and where
    the hub refuses.
    """
    hub = require("huggingface_hub", "train", "Pushing to the Hugging Face hub")
    from huggingface_hub import errors

    api = api or hub.HfApi()
    name = parcel.repository
    try:
        api.create_repo(name, repo_type="model", private=parcel.private, exist_ok=True)
        if parcel.private and not api.repo_info(name, repo_type="model").private:
            raise UsageError(
                f"The repository {name} is there already and is public.",
                "Add --public if everyone may read the student, or take another name.",
            )
        done = api.upload_folder(
            repo_id=name,
            repo_type="model",
            folder_path=parcel.folder,
            commit_message="Student distilled with Potstill",
        )
    except errors.LocalTokenNotFoundError as error:
        raise _refused(name, "you are not logged in") from error
    except errors.OfflineModeIsEnabled as error:
        raise UsageError(
            f"Nothing was sent to {name}: HF_HUB_OFFLINE forbids the network.", "Unset it."
        ) from error
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        reason = SECRET.sub("(token)", " ".join(str(error).split())[:300])
        raise _refused(name, reason or type(error).__name__) from error
    return str(getattr(done, "repo_url", None) or f"https://huggingface.co/{name}")


def _refused(name: str, reason: str) -> UsageError:
    return UsageError(
        f"The hub did not take the push to {name}: {reason.rstrip('.')}.",
        "Log in with `hf auth login`, or set HF_TOKEN to a token that may write to it; the same "
        "command sends only what is not there yet.",
    )
