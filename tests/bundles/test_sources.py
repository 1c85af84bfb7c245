# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The bundles are what ``make bundles`` writes from bundle_sources, and a slip there is refused."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from bundle_runs import BUNDLES, ROOT

SOURCES = ROOT.parent / "bundle_sources"
_spec = importlib.util.spec_from_file_location("bundle_sources_render", SOURCES / "render.py")
rendering = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(rendering)


class TestCommitted:
    def test_is_what_is_rendered(self):
        stale = [str(path) for path, text in rendering.render().items() if path.read_text(encoding="utf-8") != text]
        assert not stale, "run `make bundles`; what is to last is changed in bundle_sources"

    @pytest.mark.parametrize("bundle", BUNDLES)
    def test_nothing_else_is_there(self, bundle):
        there = {path for folder in ("", "configs", "docs") for path in (ROOT / bundle / folder).iterdir()}
        rendered = {path for path in rendering.render() if path.is_relative_to(ROOT / bundle)}
        assert {path for path in there if path.is_file()} == rendered
        names = {path.relative_to(ROOT / bundle).as_posix() for path in rendered}
        configs = (
            "train pretrain evaluate inference multi_gpu_train multi_gpu_evaluate multi_gpu_inference metadata".split()
        )
        assert names == {
            *(f"configs/{name}.json" for name in configs),
            *("LICENSE", "configs/logging.conf", "docs/README.md", "docs/data_license.txt"),
        }

    def test_has_no_placeholder_left(self):
        for path, text in rendering.render().items():
            assert not rendering._PLACEHOLDER.search(text), path


class TestPlaceholders:
    def test_take_their_values(self):
        own, shared = {"size": 3, "train": {"rate": 0.5}, "name": "b"}, {"name": "a", "more": ["{size}", 4]}
        source = {
            "n": "{size}",
            "rate": "{train.rate}",
            "s": "x{name}-{size}",
            "no": "{gone?}",
            "list": [1, "{more}", [2]],
        }
        filled = {"n": 3, "rate": 0.5, "s": "xb-3", "list": [1, 3, 4, [2]]}
        assert rendering.Values(own, shared).fill(source) == filled

    def test_of_lists_and_references(self):
        values = rendering.Values({"extra": ["c"]})
        assert values.fill([1, "{gone?}"]) == [1]
        assert values.fill({"@": ["a", "{extra?}", "{gone?}"], "b": 1}) == {"a": "@a", "c": "@c", "b": 1}

    def test_of_a_value_with_placeholders_of_its_own(self):
        values = rendering.Values({"saver": {"keys": "{key}", "if": "{when?}", "ext": "{end}"}, "end": ".png"})
        assert values.fill([{"<": "saver", "key": "pred"}]) == [{"keys": "pred", "ext": ".png"}]
        given = {"<": "saver", "key": "b", "when": "{gone?}", "end": ".tif"}
        assert values.fill(given) == {"keys": "b", "ext": ".tif"}

    def test_leave_python_and_json_alone(self):
        for text in ("$f\"cuda:{os.environ['RANK']}\"", '`{"train": [...]}`'):
            assert rendering.Values({}).fill(text) == text

    def test_of_a_text(self):
        values = rendering.Values({"word": "long", "lines": "one\ntwo {word}"})
        assert values.fill_text("a {word} line\n\n{gone?}\n\n{lines}\n") == "a long line\n\none\ntwo long\n"

    def test_without_a_value_are_refused(self):
        with pytest.raises(KeyError, match="gone"):
            rendering.Values({"here": 1}, {"too": 2}).fill(["{gone}"])

    def test_a_value_that_nothing_asks_for_is_refused(self, tmp_path, monkeypatch):
        (tmp_path / "tasks").mkdir()
        monkeypatch.setattr(rendering, "SOURCES", tmp_path)
        for name in ("shared", "tasks/a"):
            (tmp_path / f"{name}.json").write_text("{}")
            (tmp_path / f"{name}.md").write_text("")
        (tmp_path / "tasks" / "a.json").write_text('{"train": {"sede": 0}}')
        with pytest.raises(ValueError, match=r"tasks/a says: train\.sede"):
            rendering.render()


def test_two_files_make_one_more_bundle(tmp_path, monkeypatch):
    """As docs/adding_a_task.md has it: those of endoscopy are a beginning, and the bundle is whole."""
    monkeypatch.setattr(rendering, "ROOT", tmp_path)
    monkeypatch.setattr(rendering, "SOURCES", tmp_path / "bundle_sources")
    shutil.copytree(SOURCES, rendering.SOURCES, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT.parent / "LICENSE", tmp_path)
    for suffix in (".json", ".md"):
        shutil.copy(SOURCES / "tasks" / f"endoscopy{suffix}", rendering.SOURCES / "tasks" / f"polyps{suffix}")
    texts = rendering.render()
    folder = tmp_path / "bundles" / "polyps"
    made = {path.relative_to(folder): text for path, text in texts.items() if path.is_relative_to(folder)}
    assert len(made) == 12 and "'polyps')" in made[Path("configs/train.json")]
    for path, text in made.items():
        assert text.replace("polyps", "endoscopy") == (ROOT / "endoscopy" / path).read_text(encoding="utf-8")


def test_json_fills_its_lines():
    node = {"short": [1, 2], "empty": {}, "long": [{"key": "x" * 50, "other": "y" * 30}, ["ä" * 60, "z" * 60]]}
    text = rendering.format_json(node)
    assert json.loads(text) == node
    assert max(map(len, text.splitlines())) <= rendering.WIDTH
    assert text.startswith('{\n    "short": [1, 2],\n    "empty": {},\n    "long": [\n        {"key": "xxx')
