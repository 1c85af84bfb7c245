# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The notebook runs top to bottom, and is kept without its outputs."""

from __future__ import annotations

import json
import sys

from doc_commands import ROOT
from forked import run_forked

NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"
# Its code cells one after another in one namespace, as Jupyter runs them.
RUNNER = """
import json, sys, tempfile
import matplotlib
matplotlib.use("Agg")
tempfile.tempdir = sys.argv[2]
namespace = {"__name__": "__main__"}
for number, cell in enumerate(json.load(open(sys.argv[1], encoding="utf-8"))["cells"]):
    if cell["cell_type"] == "code":
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), namespace)
assert namespace["labels"].shape == namespace["image"].shape[:2]
assert len(namespace["table"]["score"]) == namespace["labels"].max() > 3, "the network that ships finds the nuclei"
predictions, truths = namespace["predictions"], namespace["load_datalist"](namespace["data"], "test")
assert len(predictions) == len(truths) == len(namespace["scores"]) == 3
assert any(namespace["read_image"](file).max() > 0 for file in predictions), "no cell was found"
assert max(float(row["f1"]) for row in namespace["scores"]) > 0, "no cell was right"
"""


def test_it_runs(tmp_path, monkeypatch):
    (tmp_path / "run_notebook.py").write_text(RUNNER)
    monkeypatch.syspath_prepend(tmp_path)
    done = run_forked([sys.executable, "-m", "run_notebook", str(NOTEBOOK), str(tmp_path)], NOTEBOOK.parent)
    assert done.returncode == 0, done.stderr[-3000:]


def test_it_is_kept_without_outputs():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    for cell in notebook["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"] == [] and cell["execution_count"] is None)
