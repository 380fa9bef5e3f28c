"""`reptk plugin new`: write a part that works, and its test, from the templates in plugins/templates."""

import importlib.util
import keyword
import re
import shlex
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from reptk.config.part_catalog import KINDS, load_known_plugins, recipe_table
from reptk.config.plugins import CONTRIBUTED
from reptk.core.errors import UsageError
from reptk.core.files import write_text
from reptk.core.foreign_files import read_bytes

CLASS_SUFFIXES = {
    "loss": "Loss",
    "method": "Method",
    "dataset": "Dataset",
    "views": "Views",
    "evaluator": "Evaluator",
    "store": "Store",
}
"""What the name of a class ends with if the name of the part alone would be that of something else."""

TRIAL_RECIPE = "simclr_digits"
"""The recipe in which a new part is tried: it needs no download, and about a minute."""


MAX_COMPARED_BYTES = 1 << 16


class Template(NamedTuple):
    """The texts of a part and of its test, with the name and the class that are to be replaced in them."""

    part: str
    test: str
    name: str
    class_name: str


def create_plugin(kind: str, name: str, folder: Path) -> int:
    """Write NAME.py and test_NAME.py into a folder, and print what to do next. Returns the exit code.

    Args:
        kind: a key of `KINDS`.
        name: of the part.
        folder: where to write; created if it is missing.

    Raises:
        UsageError: the name cannot be used, or one of the files exists.
    """
    _check_name(kind, name)
    part_file, test_file = folder / f"{name}.py", folder / f"test_{name}.py"
    template = _read_template(kind)
    class_name = _class_name(kind, name, template)
    part_text = _renamed(template.part, template, name, class_name)
    test_text = _renamed(template.test, template, name, class_name)
    _check_is_free(part_file, None)
    # The test is written first, so it may be there alone if an earlier command was killed.
    _check_is_free(test_file, test_text)
    _check_module_name(name)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--out {folder} is a file; name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(test_file, test_text)
    write_text(part_file, part_text)
    print(f"{part_file}: {kind} {name}, a working example to edit")
    print(f"{test_file}: its test")
    print("next:")
    for command in trial_commands(kind, name, folder):
        print(f"  {command}")
    return 0


def trial_commands(kind: str, name: str, folder: Path = Path()) -> list[str]:
    """Return the commands that check a part, use it, and test it."""
    part_file = shlex.quote(str(folder / f"{name}.py"))
    test_file = shlex.quote(str(folder / f"test_{name}.py"))
    if kind == "store":
        return [
            f"reptk plugin check {part_file} address={name}:trial.json",
            f"reptk export photos.safetensors --to {name}:photos.json --plugin {part_file}",
            f"pytest {test_file}",
        ]
    return [
        f"reptk plugin check {part_file}",
        f"python -m reptk.recipe {TRIAL_RECIPE} --plugin {part_file} {recipe_table(KINDS[kind], name)}.name={name}",
        f"pytest {test_file}",
    ]


def _check_name(kind: str, name: str) -> None:
    """Check that a part of this kind can be registered under the name.

    Raises:
        UsageError: it is no name, or that of another part.
    """
    # In ASCII: Python imports `ﬁt.py` under another name than that of the file.
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or keyword.iskeyword(name):
        raise UsageError(
            f"name {name!r}: use lower-case letters, digits and underscores, a letter first, and no keyword of Python; "
            "e.g. my_loss"
        )
    load_known_plugins([])
    registry = KINDS[kind]
    if name in registry.names():
        raise UsageError(f"there is a {registry.kind} {name!r} already: reptk plugin list --kind {kind} {name}")


def _check_is_free(path: Path, text: str | None) -> None:
    """Check that nothing would be written over, except a file with this text.

    Raises:
        UsageError: there is another file.
    """
    if not path.exists() and not path.is_symlink():
        return
    if text is not None and path.is_file() and path.stat().st_size < MAX_COMPARED_BYTES:
        is_equal = read_bytes(path, MAX_COMPARED_BYTES) == text.encode()
        if is_equal:
            return
    raise UsageError(f"{path} exists, and nothing was written; take another name, or another folder: --out FOLDER")


def _check_module_name(name: str) -> None:
    """Check that `import NAME` would not import something else.

    Raises:
        UsageError: it would.
    """
    spec = importlib.util.find_spec(name)
    # A folder without Python files has no origin, and a module of its name comes first.
    if spec is not None and spec.origin is not None:
        raise UsageError(f"a module is called {name!r} already ({spec.origin}); take another name, e.g. my_{name}")


def _read_template(kind: str) -> Template:
    folder = files(CONTRIBUTED) / "templates"
    name = f"my_{kind}"
    part = (folder / f"{name}.py").read_text(encoding="utf-8")
    test = (folder / f"test_{name}.py").read_text(encoding="utf-8")
    return Template(part, test, name, _camel_case(name))


def _class_name(kind: str, name: str, template: Template) -> str:
    """Return the name in capitals, with a suffix if the template uses that name for something else, e.g. Tensor."""
    class_name = _camel_case(name)
    taken = set(re.findall(r"\w+", template.part + template.test)) - {template.class_name}
    while class_name in taken:
        class_name += CLASS_SUFFIXES[kind]
    return class_name


def _camel_case(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_"))


def _renamed(text: str, template: Template, name: str, class_name: str) -> str:
    """Return a text of the template with the names of the new part."""
    text = re.sub(rf"\b{template.class_name}\b", class_name, text)
    # Also within test_my_loss and eval.my_loss.
    return re.sub(rf"(?<![a-z]){template.name}\b", name, text)
