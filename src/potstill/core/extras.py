"""Optional packages: which stage needs which, and the install line when one is missing.

In: a module's name. Out: the module, or one clear error. Imports nothing heavy by itself.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from types import ModuleType

from potstill.errors import MissingExtraError

# Extra -> {import name: distribution name}, as pyproject.toml declares them.
EXTRAS: dict[str, dict[str, str]] = {
    "documents": {
        "pypdfium2": "pypdfium2",
        "docx": "python-docx",
        "pptx": "python-pptx",
        "lxml": "lxml",
        "pyarrow": "pyarrow",
        "py3langid": "py3langid",
        "semchunk": "semchunk",
        "charset_normalizer": "charset-normalizer",
    },
    "ocr": {"rapidocr": "rapidocr", "onnxruntime": "onnxruntime", "PIL": "pillow"},
    "llamacpp": {
        "xllamacpp": "xllamacpp",
        "cyllama": "cyllama",
        "sentencepiece": "sentencepiece",
        "gguf": "gguf",
    },
    "train": {
        "torch": "torch",
        "transformers": "transformers",
        "accelerate": "accelerate",
        "peft": "peft",
        "safetensors": "safetensors",
        "tensorboard": "tensorboard",
        "numpy": "numpy",
        "jinja2": "jinja2",
        "sacrebleu": "sacrebleu",
    },
    "generate": {"json_repair": "json-repair", "rapidfuzz": "rapidfuzz"},
    "endpoint": {"httpx2": "httpx2"},
    "serve": {
        "fastapi": "fastapi",
        "uvicorn": "uvicorn",
        "prometheus_client": "prometheus-client",
        "httpx2": "httpx2",
        "numpy": "numpy",
        "jinja2": "jinja2",
        "py3langid": "py3langid",
    },
    "studio": {
        "fastapi": "fastapi",
        "uvicorn": "uvicorn",
        "jinja2": "jinja2",
        "httpx2": "httpx2",
        "numpy": "numpy",
    },
    "curate": {
        "rensa": "rensa",
        "numpy": "numpy",
        "jinja2": "jinja2",
        "py3langid": "py3langid",
    },
    "report": {"jinja2": "jinja2", "numpy": "numpy", "sacrebleu": "sacrebleu"},
    "quantised": {"bitsandbytes": "bitsandbytes"},
    "tune": {"optuna": "optuna"},
    "ray": {"ray": "ray"},
    "deepspeed": {"deepspeed": "deepspeed"},
    "otel": {
        "opentelemetry.sdk": "opentelemetry-sdk",
        "opentelemetry.exporter.otlp.proto.http": "opentelemetry-exporter-otlp-proto-http",
    },
    "remote": {"fsspec": "fsspec", "s3fs": "s3fs"},
    "onnx": {"onnx": "onnx", "onnxscript": "onnxscript", "onnxruntime": "onnxruntime"},
}
APART = frozenset({"ray", "deepspeed"})
"""Those that the extra `all` leaves out: for several machines, or several GPUs."""


def install_line(extra: str) -> str:
    """The command that brings an extra."""
    return f'pip install "potstill[{extra}]"'


def require(module: str, extra: str, purpose: str) -> ModuleType:
    """Import `module`, which `extra` brings. Errors: MissingExtraError says how to install it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise _missing(EXTRAS[extra].get(module, module), extra, purpose) from error


def missing(error: ModuleNotFoundError, purpose: str) -> MissingExtraError | None:
    """What to say of an import that failed, if one of the extras brings the module."""
    module = (error.name or "").partition(".")[0]
    extras = [extra for extra, modules in EXTRAS.items() if module in modules]
    if not extras:
        return None
    smallest = min(extras, key=lambda extra: len(EXTRAS[extra]))
    return _missing(EXTRAS[smallest][module], smallest, purpose)


def _missing(distribution: str, extra: str, purpose: str) -> MissingExtraError:
    return MissingExtraError(
        f"{purpose} needs the package {distribution}, which is not installed.",
        f"Install it with: {install_line(extra)}",
    )


def check_installed(module: str, purpose: str, extra: str | None = None) -> None:
    """Errors: MissingExtraError if a package, which `extra` brings or none, is not there; it is not
    imported."""
    if importlib.util.find_spec(module) is None:
        if extra is not None:
            raise _missing(EXTRAS[extra].get(module, module), extra, purpose)
        raise MissingExtraError(
            f"{purpose} needs the package {module}, which is not installed.",
            f"Install it with: pip install {module}",
        )


def installed_version(distribution: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
