# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Write the three bundles of ``bundles/`` from the one source of each of their files in this folder.

    make bundles          # or: python bundle_sources/render.py

A config here (``train.json``, ...) is that of every bundle. In it stand for what is written elsewhere:

- ``"<task>"`` for the task's own value, which the task's file (``microscopy.json``, ...) has under the name of the
  config and the id of the value, written as MONAI writes ids: ``"train": {"network_def#in_channels": 3}``. What that
  file does not name is left out of the bundle; in a list it stands for the elements of a list.
- ``"<train>"`` for what ``train.json`` has under the same id.
- ``"<options>": "a b"`` for ``"a": "@a", "b": "@b"``.
- ``<name>`` inside of a text for the name of the task.

``README.md`` is made of lines in the same way: ``<task: NAME>`` stands for the lines below that name in
``microscopy.README.md``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

SOURCES = Path(__file__).parent
ROOT = SOURCES.parent
BUNDLES = ("abdomen_mri", "endoscopy", "microscopy")
CONFIGS = ("train", "pretrain", "inference", "evaluate", "multi_gpu_train", "multi_gpu_evaluate", "metadata")
WIDTH = 120
SLOT, AS_TRAIN, OPTIONS, NAME, LINES = "<task>", "<train>", "<options>", "<name>", re.compile(r"<task: .+>")


def render(name: str) -> dict[str, str]:
    """The files of a bundle by their paths in it, without weights.

    Args:
        name: one of ``BUNDLES``.

    Raises:
        ValueError: the task's file names a value that no source has a place for.
    """
    own = json.loads((SOURCES / f"{name}.json").read_text(encoding="utf-8"))
    files, training = {}, None
    for config in CONFIGS:
        source = json.loads((SOURCES / f"{config}.json").read_text(encoding="utf-8"))
        values = dict(own.pop(config, {}))
        filled = _fill(source, "", values, training)
        training = training or filled
        files[f"configs/{config}.json"] = dump(filled) + "\n"
        if values:
            raise ValueError(f"{name}.json names {', '.join(values)}, but {config}.json has no {SLOT} there.")
    if own:
        raise ValueError(f"{name}.json names {', '.join(own)}, which is no config.")
    files["configs/logging.conf"] = (SOURCES / "logging.conf").read_text(encoding="utf-8")
    files["docs/README.md"] = _fill_lines(f"{name}.README.md")
    files["docs/data_license.txt"] = (SOURCES / f"{name}.data_license.txt").read_text(encoding="utf-8")
    files = {path: text.replace(NAME, name) for path, text in files.items()}
    return {**files, "LICENSE": (ROOT / "LICENSE").read_text(encoding="utf-8")}


def _fill(value: object, place: str, values: dict[str, object], training: Mapping | None) -> object:
    """A part of a source with the task's own values, which are taken out of ``values``, and with those of training."""
    if isinstance(value, Mapping):
        result = {}
        for key, part in value.items():
            id_ = f"{place}#{key}" if place else key
            if key == OPTIONS:
                result |= {name: f"@{name}" for name in part.split()}
            elif part != SLOT or id_ in values:
                result[key] = _fill(part, id_, values, training)
        return result
    if isinstance(value, list):
        filled = []
        for index, part in enumerate(value):
            id_ = f"{place}#{index}"
            filled += values.pop(id_, []) if part == SLOT else [_fill(part, id_, values, training)]
        return filled
    if value == AS_TRAIN:
        for key in place.split("#"):
            training = training[key]
        return training
    return values.pop(place) if value == SLOT else value


def _fill_lines(own: str) -> str:
    """The README with the task's own lines."""
    sections: dict[str, list[str]] = {}
    for line in (SOURCES / own).read_text(encoding="utf-8").splitlines():
        if LINES.fullmatch(line):
            lines = sections[line] = []
        else:
            lines.append(line)
    result = []
    for line in (SOURCES / "README.md").read_text(encoding="utf-8").splitlines():
        result += sections.pop(line, []) if LINES.fullmatch(line) else [line]
    if sections:
        raise ValueError(f"{own} has {', '.join(sections)}, but README.md has no such place.")
    return "\n".join(result) + "\n"


def dump(value: object, indent: int = 0, before: int = 0) -> str:
    """JSON with what fits into a line on one line.

    Args:
        value: what to write.
        indent: blanks at the beginning of the line.
        before: characters before the value on its line, and a comma behind it.
    """
    line = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, (dict, list)) or not value or indent + before + len(line) < WIDTH:
        return line
    blanks = " " * (indent + 4)
    if isinstance(value, dict):
        keys = {json.dumps(key, ensure_ascii=False): part for key, part in value.items()}
        rows = [f"{blanks}{key}: {dump(part, indent + 4, len(key) + 2)}" for key, part in keys.items()]
    else:
        rows = [blanks + dump(part, indent + 4) for part in value]
    opening, closing = "{}" if isinstance(value, dict) else "[]"
    return "\n".join([opening, ",\n".join(rows), " " * indent + closing])


def main() -> None:
    """Write every bundle."""
    for name in BUNDLES:
        for path, text in render(name).items():
            file = ROOT / "bundles" / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
