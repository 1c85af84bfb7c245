# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Ensembles, mirroring and entropy do what their equations say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import SimpleInferer, SlidingWindowInferer
from scipy.stats import entropy

from swinumamba_monai.errors import InputError
from swinumamba_monai.inference import Ensemble, MirrorInferer, Uncertaintyd, entropy_map
from swinumamba_monai.networks import SwinUMambaD

SMALL = {"in_channels": 1, "out_channels": 3, "feature_size": 8, "depths": (1,) * 4, "decoder_depths": (1,) * 3}


class TestEnsemble:
    @pytest.fixture
    def checkpoints(self, tmp_path):
        paths = []
        for seed in range(3):
            torch.manual_seed(seed)
            paths.append(tmp_path / f"{seed}.pt")
            torch.save(SwinUMambaD(**SMALL, d_state=2).state_dict(), paths[-1])
        return paths

    def test_is_the_mean_of_its_members(self, checkpoints):
        image = torch.rand(2, 1, 32, 64, generator=torch.Generator().manual_seed(0))
        ensemble = Ensemble(SwinUMambaD(**SMALL, d_state=2)).eval()
        with torch.no_grad():
            alone = []
            for path in checkpoints:
                ensemble.load(path)
                alone.append(ensemble(image))
            ensemble.load(checkpoints)
            together = ensemble(image)
        torch.testing.assert_close(together, sum(alone) / 3, rtol=0, atol=1e-5)
        assert not torch.allclose(alone[0], alone[1], atol=1e-3)

    def test_loads_into_the_network_it_was_given(self, checkpoints):
        network = SwinUMambaD(**SMALL, d_state=2)
        Ensemble(network).load([str(path) for path in checkpoints])
        first = torch.load(checkpoints[0], weights_only=True)
        assert all(torch.equal(first[name], weight) for name, weight in network.state_dict().items())

    def test_without_a_checkpoint(self):
        with pytest.raises(InputError, match="no checkpoint"):
            Ensemble(SwinUMambaD(**SMALL, d_state=2)).load([])


class TestMirrorInferer:
    @pytest.mark.parametrize("axes, passes", [((), 1), ((0,), 2), (1, 2), ((0, 1), 4), ((1, 0, 1), 4)])
    def test_is_the_mean_over_mirror_images(self, axes, passes):
        torch.manual_seed(0)
        network = torch.nn.Conv2d(2, 3, (3, 5), padding=(1, 2), dtype=torch.float64)
        calls = []

        def counted(x):
            calls.append(1)
            return network(x)

        image = torch.rand(2, 2, 17, 12, dtype=torch.float64)
        with torch.no_grad():
            found = MirrorInferer(SimpleInferer(), axes)(image, counted)
            flips = [[]]
            for axis in {axes} if isinstance(axes, int) else set(axes):
                flips += [[*flip, axis + 2] for flip in flips]
            expected = sum(network(image.flip(flip)).flip(flip) for flip in flips) / len(flips)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        assert len(calls) == passes

    def test_mirrors_windows(self):
        """A network that is its own mirror image gives the same, whatever the windows."""
        image = torch.rand(1, 1, 50, 41)
        windows = SlidingWindowInferer(24, sw_batch_size=3, overlap=0.25, mode="gaussian")

        def blur(x):
            return torch.nn.functional.avg_pool2d(x, 3, stride=1, padding=1)

        torch.testing.assert_close(MirrorInferer(windows, [0, 1])(image, blur), windows(image, blur), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("axes", [[2], [-1]], ids=str)
    def test_other_axes(self, axes):
        with pytest.raises(InputError, match="mirror_axes"):
            MirrorInferer(SimpleInferer(), axes)


class TestUncertainty:
    @pytest.mark.parametrize("shape", [(4, 6, 5), (4, 3, 5, 2)], ids=str)
    def test_entropy_is_scipys(self, shape):
        logits = 3 * np.random.default_rng(0).standard_normal(shape)
        p = np.exp(logits) / np.exp(logits).sum(0)
        found = entropy_map(torch.as_tensor(logits))
        assert found.shape == (1, *shape[1:]) and found.dtype == torch.float32
        np.testing.assert_allclose(found[0], entropy(p, base=4, axis=0), atol=1e-6)

    def test_certain_and_uniform(self):
        logits = torch.tensor([[1e4, 0.0], [0.0, 0.0], [-1e4, 0.0]])[:, None]
        torch.testing.assert_close(entropy_map(logits), torch.tensor([[[0.0, 1.0]]]), rtol=0, atol=1e-6)

    def test_stand_beside_the_logits_with_their_metadata(self):
        logits = MetaTensor(torch.randn(3, 4, 5), meta={"filename_or_obj": "a.png"})
        items = Uncertaintyd("pred", "probabilities", "entropy")({"pred": logits})
        assert items["pred"] is logits
        torch.testing.assert_close(items["probabilities"].sum(0).as_tensor(), torch.ones(4, 5))
        for key in ("probabilities", "entropy"):
            assert items[key].meta["filename_or_obj"] == "a.png"
