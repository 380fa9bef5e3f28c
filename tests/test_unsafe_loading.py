"""No code of reptk, its plugins or benchmarks loads data in a way that can execute what the data say."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("reptk", "plugins", "benchmarks") for path in (ROOT / folder).rglob("*.py"))

BANNED_MODULES = {"pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml", "xml"}
BANNED_CALLS = {
    *("eval", "exec", "compile", "__import__", "execfile", "os.system", "os.popen", "tempfile.mktemp"),
    *("runpy.run_path", "runpy.run_module", "torch.hub.load", "torch.jit.load", "torch.package.PackageImporter"),
    *("pandas.read_pickle", "pd.read_pickle", "numpy.fromregex", "shutil.unpack_archive"),
}
BANNED_METHODS = {"extractall", "set_default_load"}
REQUIRED_ARGUMENTS = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "numpy.load": ("allow_pickle", False),
}
IMPORTS_BY_NAME = {
    "reptk/__init__.py": "public names, from a table",
    "reptk/cli/__init__.py": "verbs, from a table",
    "reptk/config/plugins.py": "plugins that the user names or trusts, and contributed ones",
    "reptk/config/registry.py": "the modules of the built-in parts",
    "reptk/core/numba_jit.py": "compiled loops, named by the callers",
    "benchmarks/chaos.py": "modules of reptk, from a list",
    "benchmarks/disturbances/commands.py": "modules of reptk's commands, from a list",
    "benchmarks/disturbances/phases.py": "modules of reptk, from a table",
}
"""Files that import modules by names that are no literals, and which these are. None of them comes from a file."""


def faults(source: str, file: str = "reptk/x.py") -> list[str]:
    """Return the unsafe calls and imports in a source text, as `line: what`."""
    return [f"{line}: {what}" for line, what in _faults(ast.parse(source), file)]


def _faults(tree: ast.AST, file: str) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            for alias in node.names:
                if alias.name in ("torch", "numpy") and alias.asname not in (None, "np"):
                    yield node.lineno, f"import {alias.name} as {alias.asname}"
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
            for alias in node.names:
                # Under another name, calls would not be recognized.
                if f"{node.module}.{alias.name}" in REQUIRED_ARGUMENTS:
                    yield node.lineno, f"from {node.module} import {alias.name}"
        else:
            names = []
        for name in names:
            if name.partition(".")[0] in BANNED_MODULES:
                yield node.lineno, f"import {name}"
        if isinstance(node, ast.Call):
            for what in _faults_of_call(node, file):
                yield node.lineno, what


def _faults_of_call(call: ast.Call, file: str) -> Iterator[str]:
    name = _dotted_name(call.func)
    if name in BANNED_CALLS:
        yield name
    if name.rpartition(".")[2] in BANNED_METHODS:
        yield name
    if name in REQUIRED_ARGUMENTS:
        argument, value = REQUIRED_ARGUMENTS[name]
        if _literal(call, argument) is not value:
            yield f"{name} without {argument}={value}"
    if _literal(call, "weights_only") is False or _literal(call, "allow_pickle") is True:
        yield f"{name} that unpickles"
    if _literal(call, "shell") not in (None, False) or _literal(call, "trust_remote_code") not in (None, False):
        yield f"{name} that executes"
    if (
        name.rpartition(".")[2] == "import_module"
        and not isinstance(call.args[0], ast.Constant)
        and file not in IMPORTS_BY_NAME
    ):
        yield f"{name} of a name that is no literal"


def _dotted_name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def _literal(call: ast.Call, argument: str) -> object:
    """Return the value of a keyword argument; None if it is missing, and a text if it is no literal."""
    for keyword in call.keywords:
        if keyword.arg == argument:
            return keyword.value.value if isinstance(keyword.value, ast.Constant) else "no literal"
    return None


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_is_loaded_unsafely(path: Path) -> None:
    file = str(path.relative_to(ROOT))
    assert faults(path.read_text(encoding="utf-8"), file) == [], file


def test_files_that_import_by_name_exist() -> None:
    for file in IMPORTS_BY_NAME:
        assert "import_module(" in (ROOT / file).read_text(), file


# The check of the check

UNSAFE = (
    *("import pickle", "from pickle import loads", "import yaml", "import joblib", "from xml.etree import ElementTree"),
    *("eval('1')", "exec(text)", "compile(text, '', 'exec')", "__import__(name)", "os.system('ls')"),
    *("torch.load(path)", "torch.load(path, weights_only=False)", "torch.load(path, weights_only=safe)"),
    *("from torch import load", "from numpy import load", "import torch as t"),
    *("np.load(path)", "np.load(path, allow_pickle=True)", "np.load(path, allow_pickle=flag)"),
    *("numpy.load(path)", "read(path, allow_pickle=True)", "torch.hub.load('a', 'b')", "torch.jit.load(path)"),
    *("importlib.import_module(name)", "import_module(f'{a}.b')", "archive.extractall(folder)"),
    *(
        "subprocess.run(command, shell=True)",
        "subprocess.run(command, shell=flag)",
        "load(name, trust_remote_code=True)",
    ),
    "def f():\n    if x:\n        return [eval(y) for y in z]",
)
SAFE = (
    *("import json", "torch.load(path, weights_only=True)", "np.load(path, allow_pickle=False)", "module.eval()"),
    *("importlib.import_module('faiss')", "subprocess.run(['git'], shell=False)", "re.compile('x')", "model.compile()"),
)


@pytest.mark.parametrize("source", UNSAFE)
def test_an_unsafe_call_is_detected(source: str) -> None:
    assert len(faults(source)) >= 1


@pytest.mark.parametrize("source", SAFE)
def test_a_safe_call_is_not(source: str) -> None:
    assert faults(source) == []


def test_imports_by_name_are_permitted_by_file() -> None:
    assert faults("importlib.import_module(name)", "reptk/config/plugins.py") == []
