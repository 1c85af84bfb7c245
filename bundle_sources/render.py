# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Write the bundles, and the overlays that share a recipe, from their sources: ``make bundles``.

A file of ``bundle/`` is the source of the file of that name in every ``bundles/TASK/``. Where the tasks differ it has
a placeholder in braces; what takes its place stands under that name

- in ``tasks/TASK.json`` or, if it is text of several lines, in ``tasks/TASK.md`` below a line ``<!-- name -->``;
- else in ``shared.json`` or ``shared.md``: what several configs have in common, or most of the tasks.

To change all bundles, edit ``bundle/`` or ``shared.json``; to change one, edit its files in ``tasks/``; for one more,
put its two files there. Then render. The placeholders:

- ``{train.max_epochs}`` is ``max_epochs`` in the object ``train``. Values may have placeholders of their own.
- ``{spacing?}`` may be missing: the entry of the object or list, or the line of the text, is then left out.
- A list in the place of an item of a list is put in item by item.
- ``"@": ["seed", "amp"]`` in an object stands for ``"seed": "@seed", "amp": "@amp"``, MONAI's references to options;
  an object in the place of the list is put in entry by entry.
- ``{"<": "saver", "key": "entropy"}`` is the value of ``saver``, in which ``{key}`` is ``entropy``.
- ``{options}`` are the names at the top of the config, before ``network_def``; ``{settings}`` those of them that make
  a run what it is, each with its value as an expression.
- ``{package_version}`` is the version of the Python package, ``{task}`` the bundle's name.

A name that a task does not have is refused, and so is a value that no source asks for.
"""

from __future__ import annotations

import json
import re
from itertools import takewhile
from pathlib import Path

import swinumamba_monai

SOURCES = Path(__file__).parent
ROOT = SOURCES.parent
# The source of an overlay, and the systems that are trained by its recipe.
OVERLAYS = {"nnUNet": ("nnUNet", "UMambaBot", "UMambaEnc")}
WIDTH = 120  # columns of a line of JSON
# Options that may change from one part of a run to the next: where files lie (data_dir is the data's own place), how
# long it goes on, what is seen of it, and where it computes.
NO_SETTINGS = set(
    "bundle_root dataset_dir output_dir ckpt_dir cache_dir resume max_epochs early_stop_patience log_interval "
    "picture_interval num_pictures sw_batch_size cache_rate device amp_dtype".split()
)

_PLACEHOLDER = re.compile(r"\{([\w.]+)(\??)\}")
_MISSING = object()  # the value of an optional placeholder that has none; null is a value


class Values:
    """What takes the place of the placeholders.

    Args:
        layers: parsed JSON objects; the first one that has a name gives its value.
        used: names that were asked for already.
    """

    def __init__(self, *layers: dict, used: set[str] | None = None) -> None:
        self.layers = layers
        self.used: set[str] = set() if used is None else used

    def find(self, name: str, optional: bool = False):
        """The value of a placeholder, with its own placeholders filled in.

        Raises:
            KeyError: no layer has the name, and it is not optional.
        """
        for layer in self.layers:
            value = layer
            for part in name.split("."):
                value = value.get(part, _MISSING) if isinstance(value, dict) else _MISSING
            if value is not _MISSING:
                self.used.add(name)
                return self.fill(value)
        if optional:
            return _MISSING
        raise KeyError(f"{{{name}}} has no value")

    def fill(self, node):
        """A copy of parsed JSON in which values have taken the place of the placeholders."""
        if isinstance(node, str):
            whole = _PLACEHOLDER.fullmatch(node)
            if whole:
                return self.find(whole[1], optional=whole[2] == "?")
            return _PLACEHOLDER.sub(lambda match: str(self.find(match[1])), node)
        if isinstance(node, list):
            filled = []
            for item in node:
                value = self.fill(item)
                if isinstance(item, str) and isinstance(value, list):
                    filled += value
                elif value is not _MISSING:
                    filled.append(value)
            return filled
        if isinstance(node, dict) and "<" in node:
            own = {key: self.fill(item) for key, item in node.items() if key != "<"}
            given = {key: value for key, value in own.items() if value is not _MISSING}
            return Values(given, *self.layers, used=self.used).find(node["<"])
        if isinstance(node, dict):
            filled = {}
            for key, item in node.items():
                value = self.fill(item)
                if key == "@":
                    filled |= value if isinstance(value, dict) else {name: f"@{name}" for name in value}
                elif value is not _MISSING:
                    filled[key] = value
            return filled
        return node

    def fill_text(self, text: str) -> str:
        """The same for text, line by line; of the empty lines around one that is left out, one stays."""
        lines = [self.fill(line) for line in text.splitlines()]
        return re.sub(r"\n{3,}", "\n\n", "\n".join(line for line in lines if line is not _MISSING)) + "\n"

    def unused(self, layer: dict) -> list[str]:
        """The names of ``layer`` that no source asked for."""
        names = []
        for name, value in layer.items():
            inside = isinstance(value, dict) and name not in self.used
            names += [f"{name}.{inner}" for inner in value] if inside else [name]
        return [name for name in names if name not in self.used]


def format_json(node, indent: int = 0, taken: int = 0) -> str:
    """JSON in which every object and list that fits into a line stands on one.

    Args:
        node: parsed JSON.
        indent: number of columns before the line.
        taken: number of columns that a key and a comma take of the line.
    """
    line = json.dumps(node, ensure_ascii=False)
    if not isinstance(node, (dict, list)) or not node or indent + taken + len(line) <= WIDTH:
        return line
    inner = indent + 4
    keys = [f"{json.dumps(key)}: " for key in node] if isinstance(node, dict) else [""] * len(node)
    values = node.values() if isinstance(node, dict) else node
    lines = [" " * inner + key + format_json(value, inner, len(key) + 1) for key, value in zip(keys, values)]
    opening, closing = "{}" if isinstance(node, dict) else "[]"
    return f"{opening}\n" + ",\n".join(lines) + f"\n{' ' * indent}{closing}"


def read_values(path: Path) -> dict:
    """What ``path.json`` says, and the texts of ``path.md`` under their names."""
    values = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    text = path.with_suffix(".md").read_text(encoding="utf-8")
    _, *parts = re.split(r"^<!-- (\w+) -->\n", text, flags=re.MULTILINE)
    return values | {name: section.strip("\n") for name, section in zip(parts[::2], parts[1::2])}


def render() -> dict[Path, str]:
    """The text of every file that has a source here.

    Raises:
        KeyError: a source asks for what a task does not say.
        ValueError: a task, or what is shared, says what no source asks for.
    """
    shared = read_values(SOURCES / "shared")
    given = {"package_version": swinumamba_monai.__version__}
    everywhere, files = Values(), {}
    for task in sorted(path.stem for path in (SOURCES / "tasks").glob("*.json")):
        bundle, own = ROOT / "bundles" / task, read_values(SOURCES / "tasks" / task)
        values = Values(own, shared, given | {"task": task})
        for source in sorted((SOURCES / "bundle").glob("*/*")):
            files[bundle / source.relative_to(SOURCES / "bundle")] = _fill_file(values, source)
        files[bundle / "LICENSE"] = (ROOT / "LICENSE").read_text(encoding="utf-8")
        if unused := values.unused(own):
            raise ValueError(f"no source asks for what tasks/{task} says: {', '.join(unused)}")
        everywhere.used |= values.used
    if unused := everywhere.unused(shared):
        raise ValueError(f"no source asks for what is shared: {', '.join(unused)}")
    for name, systems in OVERLAYS.items():
        for system in systems:
            path = ROOT / "swinumamba_monai" / "configs" / "baselines" / f"{system}.json"
            files[path] = _fill_file(Values({"network_name": system}), SOURCES / "overlays" / f"{name}.json")
    return files


def _fill_file(values: Values, source: Path) -> str:
    text = source.read_text(encoding="utf-8")
    if source.suffix != ".json":
        return values.fill_text(text)
    node = json.loads(text)
    top = {name: node[name] for name in takewhile(lambda name: name != "network_def", node)}
    hidden = ("imports", "tracking_uri")  # it may hold a password
    options = {name: value for name, value in values.fill(top).items() if name not in hidden}
    settings = {
        name: f"$is_on(@{name})" if isinstance(value, bool) else f"@{name}"
        for name, value in options.items()
        if name not in NO_SETTINGS
    }
    own = {"options": list(options), "settings": settings}
    return format_json(Values(*values.layers, own, used=values.used).fill(node)) + "\n"


if __name__ == "__main__":
    for path, text in render().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
