# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What cannot be served is refused with a sentence before a server starts."""

from __future__ import annotations

import pytest

from swinumamba_monai.errors import InputError
from swinumamba_monai.serving import serve, start


def test_refusals(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(start, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="make label"):
        serve(tmp_path, tmp_path)
    monkeypatch.setattr(start, "find_spec", lambda name: name)
    with pytest.raises(InputError, match="no bundle"):
        serve(tmp_path, tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "inference.json").write_text("{}")
    with pytest.raises(InputError, match=r"has no models/model\.pt"):
        serve(tmp_path, tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model.pt").touch()
    with pytest.raises(InputError, match="--studies"):
        serve(tmp_path, tmp_path / "images")
