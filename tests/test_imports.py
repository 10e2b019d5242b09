"""Modules import in the order that docs/design.md lists, without cycles, and mostly at their top.

Imports inside functions and under ``TYPE_CHECKING`` count like all others.
"""

from __future__ import annotations

import ast
import dataclasses
import re
import sys
from collections.abc import Iterator

import pytest
from commands import ROOT

PACKAGE = ROOT / "finetune_jax"

# Modules, beside the commands, that import modules of this package inside a function, by reason.
INSIDE_FUNCTIONS = {
    "": "imports the API when one of its names is first used",
    "models": "imports a module of the models when one of its names is first used",
    "data.sources": "imports one data source by its name",
    "ablation.launch": "imports one launcher by its name",
    "ablation.search": "imports one search by its name",
}
# Libraries that a module may import inside a function: optional, or slow to import.
INSIDE_FUNCTIONS_LIBRARIES = {
    *("absl", "aiohttp", "array_record", "cv2", "datasets", "etils", "fsspec", "grain", "h5py"),
    *("huggingface_hub", "imagecorruptions", "jax", "matplotlib", "ml_collections", "optuna"),
    *(
        "orbax",
        "PIL",
        "pillow_heif",
        "pyrage",
        "cryptography",
        "model_signing",
        "qwix",
        "ray",
        "rich",
        "scipy",
        "sklearn",
        "submitit",
        "tensorboardX",
    ),
    *(
        "jax2onnx",
        "onnx",
        "onnxruntime",
        "tensorflow_datasets",
        "tensorstore",
        "tokenizers",
        "tqdm",
    ),
}


@dataclasses.dataclass(frozen=True)
class Import:
    """One import of a module; names are relative to the package, ``""`` is the package itself."""

    source: str
    target: str
    inside_function: bool
    line: int


def modules() -> dict[str, ast.Module]:
    """The syntax trees of all modules; ``ablation`` is the ``__init__`` file of the package."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text())
    return found


def imports(name: str, tree: ast.Module, known: set[str]) -> Iterator[Import]:
    """The imports of modules of this package by one module."""

    def visit(node: ast.AST, inside: bool) -> Iterator[Import]:
        inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for full in _imported(node):
            if full.split(".")[0] == "finetune_jax":
                target = full.partition(".")[2]
                while target and target not in known:
                    target = target.rpartition(".")[0]
                yield Import(name, target, inside, getattr(node, "lineno", 0))
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside)

    yield from visit(tree, False)


def libraries_inside_functions(tree: ast.Module) -> Iterator[str]:
    """Top-level packages of others that a module imports inside its functions."""
    for outer in ast.walk(tree):
        if isinstance(outer, ast.FunctionDef | ast.AsyncFunctionDef):
            for node in ast.walk(outer):
                yield from (
                    full.split(".")[0]
                    for full in _imported(node)
                    if full.split(".")[0] not in {"finetune_jax", *sys.stdlib_module_names}
                )


def _imported(node: ast.AST) -> list[str]:
    """Full names that a node imports, by a statement or by ``importlib.import_module``."""
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative import"
        return [f"{node.module}.{alias.name}" for alias in node.names]
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
        argument = node.args[0]
        # Of an f-string, the text before the first field names the package.
        first = argument.values[0] if isinstance(argument, ast.JoinedStr) else argument
        if isinstance(first, ast.Constant):
            return [str(first.value).rstrip(".")]
    return []


def rows() -> list[tuple[str, list[str]]]:
    """Rows of the table of packages in docs/design.md, from the top: name, modules."""
    section = (ROOT / "docs" / "design.md").read_text().partition("## Packages and their order")[2]
    lines = re.findall(r"^\| (\w+) \| (`.*?`) \|", section.partition("\n## ")[0], re.M)
    return [(name, re.findall(r"`(.*?)`", members)) for name, members in lines]


TREES = modules()
IMPORTS = [i for name, tree in TREES.items() for i in imports(name, tree, {*TREES})]
ROWS = rows()


def row_of(module: str) -> int:
    """Index of the row of a module; the longest listed prefix decides."""
    if not module:
        module = "__init__"
    prefixes = [(member, i) for i, (_, members) in enumerate(ROWS) for member in members]
    fits = [(len(m), i) for m, i in prefixes if module == m or module.startswith(f"{m}.")]
    assert fits, f"docs/design.md lists no row for finetune_jax.{module}"
    return max(fits)[1]


def is_command(module: str) -> bool:
    return bool(module) and ROWS[row_of(module)][0] == "commands"


def test_the_table_lists_every_module_once_and_no_other():
    listed = [member for _, members in ROWS for member in members]
    assert len(listed) == len({*listed}) and len(ROWS) > 10
    for module in TREES:
        row_of(module)
    assert {*listed} - {"__init__"} <= {*TREES}


def test_imports_go_down_the_rows():
    # The package itself re-exports the API, and every module may read the version.
    upward = {
        (i.source, i.target)
        for i in IMPORTS
        if i.source and i.target and row_of(i.target) < row_of(i.source)
    }
    assert not upward


def test_no_command_imports_another():
    found = [i for i in IMPORTS if is_command(i.source) and i.target and is_command(i.target)]
    assert not found


def test_no_modules_import_each_other_in_a_circle():
    graph: dict[str, set[str]] = {module: set() for module in TREES}
    for i in IMPORTS:
        # The package's file gives the public names on demand; importing it imports no module.
        if i.source and i.target and i.source != i.target:
            graph[i.source].add(i.target)
    assert not {*circles(graph)}


def circles(graph: dict[str, set[str]]) -> Iterator[frozenset[str]]:
    """Strongly connected components of more than one node."""
    reach = {node: _reached(graph, node) for node in graph}
    groups = {frozenset(m for m in reach[n] if n in reach[m]) for n in graph}
    yield from (group for group in groups if len(group) > 1)


def _reached(graph: dict[str, set[str]], start: str) -> set[str]:
    found, ahead = set(), [start]
    while ahead:
        for node in graph[ahead.pop()] - found:
            found.add(node)
            ahead.append(node)
    return found


def test_imports_inside_functions_are_the_listed_ones():
    inside = {i.source for i in IMPORTS if i.inside_function and not is_command(i.source)}
    assert not inside - {*INSIDE_FUNCTIONS}


def test_libraries_imported_inside_functions_are_optional_or_slow():
    for module, tree in TREES.items():
        if not is_command(module):
            found = {*libraries_inside_functions(tree)}
            assert found <= INSIDE_FUNCTIONS_LIBRARIES, module


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("def f():\n  from finetune_jax.training import loop", ("training.loop", True)),
        ("if TYPE_CHECKING:\n  from finetune_jax.setup import Setup", ("setup", False)),
        ("import finetune_jax.data.text", ("data.text", False)),
        ("f = lambda n: import_module(f'finetune_jax.pretrained.maps.{n}')", ("pretrained", True)),
    ],
)
def test_every_form_of_import_is_seen(text, expected):
    known = {"training", "training.loop", "setup", "data", "data.text", "pretrained"}
    (found,) = imports("a", ast.parse(text), known)
    assert (found.target, found.inside_function) == expected


def test_a_circle_is_found():
    assert [*circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})] == [frozenset("abc")]
