"""No line of Potstill runs what it reads: found by reading the code, file by file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "potstill"
FILES = sorted(SOURCE.rglob("*.py"))
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "jsonpickle"}
CALLS = {"eval", "exec", "compile", "__import__"}
"""As functions; `model.eval()` and `re.compile()` are methods of something else."""
YAML = {"load", "load_all", "full_load", "unsafe_load", "unsafe_load_all", "Loader", "FullLoader"}


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Each call and how its function is written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def said(call: ast.Call, name: str) -> object:
    """The plain value of a keyword; None if it is not given."""
    for keyword in call.keywords:
        if keyword.arg == name:
            return keyword.value.value if isinstance(keyword.value, ast.Constant) else "computed"
    return None


def problems(text: str) -> list[str]:
    """What could run code that came with data."""
    tree = ast.parse(text)
    found = []
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [one.name for one in node.names]
        if isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        found += [f"imports {one}" for one in names if one.partition(".")[0] in PICKLES]
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "yaml":
            found += [f"yaml.{node.attr}"] if node.attr in YAML else []
    for name, call in calls(tree):
        last = name.rpartition(".")[2]
        if name in CALLS or name in ("os.system", "os.popen"):
            found.append(name)
        if name == "torch.load" and said(call, "weights_only") is not True:
            found.append("torch.load of more than weights")
        if name in ("np.load", "numpy.load") and said(call, "allow_pickle") is not False:
            found.append("np.load that does not refuse pickles")
        if said(call, "shell") not in (None, False):
            found.append("a shell")
        if said(call, "trust_remote_code") not in (None, False):
            found.append("trust_remote_code")
        auto = "Auto" in name and last in ("from_pretrained", "from_config")
        if auto and said(call, "trust_remote_code") is not False:
            found.append(f"{name} that may ask for remote code")
        if last == "XMLParser" and said(call, "resolve_entities") is not False:
            found.append("an XML parser that resolves entities")
    return found


def test_nothing_runs_what_it_reads() -> None:
    found = {path.relative_to(SOURCE).as_posix(): problems(path.read_text()) for path in FILES}
    assert len(found) > 300
    assert {name: some for name, some in found.items() if some} == {}


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "yaml.load(text)",
        "yaml.compose(text, Loader=yaml.FullLoader)",
        "eval(text)",
        "torch.load(path)",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(words, shell=True)",
        "os.system(words)",
        "AutoModel.from_pretrained(folder)",
        "load(folder, trust_remote_code=True)",
        "etree.XMLParser()",
    ],
)
def test_each_is_found(line: str) -> None:
    assert len(problems(line)) == 1


def test_what_is_safe_is_not_found() -> None:
    safe = (
        "model.eval(); re.compile(text); yaml.safe_load(text); np.load(path, allow_pickle=False)\n"
        "torch.load(path, weights_only=True)\n"
        "AutoModel.from_pretrained(folder, trust_remote_code=False)\n"
    )
    assert problems(safe) == []
