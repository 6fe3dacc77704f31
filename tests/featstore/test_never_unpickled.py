"""Nothing is ever unpickled: a pickle runs whatever its author wrote, and models and features come from strangers."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("featstore", "matcher", "cli", "tools", "benchmarks")

MODULES = frozenset(
    {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "shelve"}
)
"""Modules that unpickle, or load code as well."""

LOADERS = frozenset({"load", "hub", "jit", "load_state_dict_from_url", "read_pickle"})
"""What torch, numpy and pandas call their readers."""

WITHOUT_WEIGHTS = ("Tokenizer", "Processor", "BitImageProcessorPil", "kind")
"""Whose `from_pretrained` reads JSON and text only: tokenizers, image processors, schedulers (`kind`)."""


def offences(source: str) -> Iterator[str]:
    """What in a module's source could unpickle something, as `line: what`."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (f"{node.lineno}: import {name.name}" for name in names if _unpickles(name.name))
            case ast.ImportFrom(module=module, names=names):
                if _unpickles(module or "") or any(_unpickles(name.name) for name in names):
                    yield f"{node.lineno}: from {module}"
                elif module and module.split(".")[0] in ("torch", "numpy"):
                    yield from (f"{node.lineno}: from {module} import {n.name}" for n in names if n.name in LOADERS)
            case ast.Call(func=function, keywords=keywords):
                given = {word.arg: word.value for word in keywords}
                called = ast.unparse(function)
                if "allow_pickle" in given and not _is(given["allow_pickle"], False):
                    yield f"{node.lineno}: allow_pickle"
                if called == "torch.load" and not _is(given.get("weights_only"), True):
                    yield f"{node.lineno}: torch.load"
                if called.startswith(("torch.hub.", "torch.jit.load", "pd.read_pickle", "pandas.read_pickle")):
                    yield f"{node.lineno}: {called}"
                if called in ("__import__", "importlib.import_module") and _names_a_module(node):
                    yield f"{node.lineno}: {called}"
                if (
                    called.endswith(".from_pretrained")
                    and not called.removesuffix(".from_pretrained").endswith(WITHOUT_WEIGHTS)
                    and not _is(given.get("use_safetensors"), True)
                ):
                    yield f"{node.lineno}: {called} without use_safetensors=True"


def _unpickles(module: str) -> bool:
    return not MODULES.isdisjoint(module.split("."))


def _is(node: ast.expr | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def _names_a_module(call: ast.Call) -> bool:
    return any(isinstance(word, ast.Constant) and _unpickles(str(word.value)) for word in call.args)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import os, pickle as p",
        "from pickle import loads",
        "import joblib",
        "from multiprocessing import dill",
        "from torch import load",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import torch\ntorch.load(path, weights_only=flag)",
        "import torch\ntorch.hub.load('a', 'b')",
        "import torch\ntorch.jit.load(path)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import numpy as np\nnp.load(path, allow_pickle=flag)",
        "importlib.import_module('pickle')",
        "__import__('shelve')",
        "UNet.from_pretrained(folder)",
        "UNet.from_pretrained(folder, use_safetensors=None)",
    ],
)
def test_the_search_finds(source: str) -> None:
    assert list(offences(source))


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(path, weights_only=True)",
        "import numpy as np\nnp.load(path)\nnp.load(path, allow_pickle=False)",
        "UNet.from_pretrained(folder, use_safetensors=True)",
        "CLIPTokenizer.from_pretrained(folder)",
    ],
)
def test_the_search_lets_pass(source: str) -> None:
    assert list(offences(source)) == []


def test_nothing_is_unpickled() -> None:
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    assert len(files) > 100
    found = [f"{path.relative_to(ROOT)}:{what}" for path in files for what in offences(path.read_text("utf-8"))]
    assert found == []
