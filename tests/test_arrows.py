# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The arrows of docs/architecture.md: no module imports itself by way of others, rooms use what the page says."""

from __future__ import annotations

import ast
import re
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import swinumamba_monai

PACKAGE = Path(swinumamba_monai.__file__).parent
PAGE = PACKAGE.parent / "docs" / "architecture.md"


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports() -> dict[str, set[str]]:
    """For each module the modules of the package that it imports, at its head, inside a function or by a lazy face.

    What a task's record loads when it is asked (``Task.files``) is left out: nothing knows it before.
    """
    files = {module_name(path): path for path in PACKAGE.rglob("*.py")}
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in files.items()}
    faces = {name: _handed_on(tree, name) for name, tree in trees.items() if files[name].name == "__init__.py"}
    found = {}
    for name, tree in trees.items():
        package = name if name in faces else name.rpartition(".")[0]
        named = set(_imported(tree, package))
        found[name] = {faces.get(source, {}).get(alias, source) for source, alias in named}
        found[name] |= {f"{source}.{alias}" for source, alias in named}
        found[name] = found[name] & set(files) - {name}
    return found


def _handed_on(tree: ast.AST, package: str) -> dict[str, str]:
    """The module of each name that a lazy face hands on."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "lazy_loader.attach":
            (names,) = (ast.literal_eval(keyword.value) for keyword in node.keywords if keyword.arg == "submod_attrs")
            root = node.args[0].value if isinstance(node.args[0], ast.Constant) else package
            return {alias: f"{root}.{module}" for module, aliases in names.items() for alias in aliases}
    return {}


def _imported(tree: ast.AST, package: str):
    """Modules with what is taken of them, or with nothing."""
    for node in _running_nodes(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*parents, *([node.module] if node.module else [])])
            yield from ((source, alias.name) for alias in node.names)


def _running_nodes(tree: ast.AST):
    """All nodes but those below ``if TYPE_CHECKING``, which are not run."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            yield node
            yield from _running_nodes(node)


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_no_circle_of_imports():
    try:
        TopologicalSorter(imports()).prepare()
    except CycleError as error:
        pytest.fail(f"a circle of imports: {' → '.join(error.args[1])}")
    assert len(imports()) > 150 and "swinumamba_monai.errors" in imports()["swinumamba_monai.cells"]


def rows() -> list[tuple[list[str], set[str]]]:
    """The rooms of each row of the page's table, and those that they use."""
    found = re.findall(r"^\| ((?:`[\w/.]+`(?:, )?)+) \|.*\| (.*?) \|$", PAGE.read_text(encoding="utf-8"), re.M)
    return [(re.findall(r"`(\w+)(?:/|\.py)?`", rooms), set(re.findall(r"`(\w+)`", uses))) for rooms, uses in found]


def test_the_page_says_what_a_room_uses():
    used = {name: set() for rooms, _ in rows() for name in rooms}
    for module, others in imports().items():
        if room(module) in used:
            used[room(module)] |= {room(other) for other in others} & set(used) - {room(module)}
    assert len(used["commands"]) > 10  # "all"
    for names, uses in rows():
        if names != ["commands"]:
            assert set().union(*(used[name] for name in names)) == uses, f"{' and '.join(names)} in {PAGE.name}"
