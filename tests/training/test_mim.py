# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Masked image modelling: the masks, what of the image reaches the encoder, the loss, and what stage 3 takes of it."""

from __future__ import annotations

import pytest
import small_weights
import torch
from small_weights import BOTH

from swinumamba_monai.errors import InputError
from swinumamba_monai.networks import SwinUMamba, SwinUMambaD
from swinumamba_monai.pretrained import load_pretrained
from swinumamba_monai.training import FreezeEncoder, MaskedBatch, MaskedImageModel, MaskedL1Loss, random_patch_mask


def build(cls=SwinUMambaD, seed=0, **changes):
    return small_weights.build(cls, seed, **{"in_channels": 2, "depths": (1, 1, 1, 1), "d_state": 2, **changes})


class TestMasks:
    @pytest.mark.parametrize(
        "spatial_size, ratio, patch, expected",
        [((192, 192), 0.6, 32, 22), ((64, 96), 0.6, 16, 14), ((64, 64), 0.5, 32, 2), ((192, 192), 0.6, 4, 1382)],
    )
    def test_exactly_so_many_whole_patches(self, spatial_size, ratio, patch, expected):
        mask = random_patch_mask(5, spatial_size, ratio, patch)
        assert mask.shape == (5, 1, *spatial_size) and mask.dtype == torch.bool
        patches = mask.unfold(2, patch, patch).unfold(3, patch, patch).flatten(4).float().mean(-1)
        assert set(patches.unique().tolist()) == {0.0, 1.0}, "no patch is masked in part"
        assert patches.sum(dim=(1, 2, 3)).tolist() == [expected] * 5

    def test_every_patch_is_as_likely_as_another(self):
        """4000 draws of 7 in 12: the share of a patch has a standard deviation of 0.008."""
        mask = random_patch_mask(4000, (48, 64), 0.6, 16, torch.Generator().manual_seed(0))
        shares = mask[:, 0, ::16, ::16].float().mean(0)
        assert (shares - 7 / 12).abs().max() < 5 * 0.008

    @pytest.mark.parametrize("spatial_size, ratio, patch", [((100, 96), 0.6, 32), ((96, 100), 0.6, 32)])
    def test_patches_that_do_not_tile(self, spatial_size, ratio, patch):
        with pytest.raises(InputError, match="whole patches of 32"):
            random_patch_mask(1, spatial_size, ratio, patch)

    @pytest.mark.parametrize("ratio", [0.0, 0.1, 0.9, 1.0, -1.0])
    def test_all_or_nothing_masked(self, ratio):
        with pytest.raises(InputError, match="some must be masked"):
            random_patch_mask(1, (64, 64), ratio, 32)

    def test_batch(self):
        image = torch.rand(2, 3, 64, 64)
        inputs, target, (mask,), kwargs = MaskedBatch(mask_patch_size=16)({"image": image, "label": "unused"}, "cpu")
        assert inputs is image and kwargs == {}
        everywhere = mask.expand_as(image)
        assert torch.equal(target[everywhere], image[everywhere])
        assert target[~everywhere].isnan().all()

    def test_seeded_masks_stay(self):
        batch = {"image": torch.rand(2, 3, 64, 64)}
        fixed, free = MaskedBatch(mask_patch_size=16, seed=3), MaskedBatch(mask_patch_size=16)
        state = torch.get_rng_state()
        first, second = fixed(batch)[2][0], fixed(batch)[2][0]
        assert torch.equal(first, second)
        assert torch.equal(torch.get_rng_state(), state), "the training's random numbers are left alone"
        assert not torch.equal(free(batch)[2][0], free(batch)[2][0])


class TestModel:
    @BOTH
    def test_nothing_masked_is_seen(self, cls):
        model = MaskedImageModel(build(cls)).eval()
        mask = random_patch_mask(2, (64, 96), 0.6, 16)
        image = torch.randn(2, 2, 64, 96)
        other = torch.where(mask, 100 * torch.randn(2, 2, 64, 96), image)
        with torch.no_grad():
            prediction = model(image, mask)
            assert prediction.shape == image.shape
            assert torch.equal(prediction, model(other, mask))
            seen = torch.where(mask, image, image + 1)
            assert not torch.allclose(prediction, model(seen, mask)), "but what is not masked is"

    @BOTH
    def test_every_parameter_learns(self, cls):
        """DDP is told that none is unused."""
        model = MaskedImageModel(build(cls, drop_path_rate=0.0))
        image, target, (mask,), _ = MaskedBatch(mask_patch_size=16)({"image": torch.randn(2, 2, 64, 64)})
        MaskedL1Loss()(model(image, mask), target).backward()
        assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []

    def test_the_token_stands_for_masked_patches_alone(self):
        model = MaskedImageModel(build()).eval()
        seen = []
        model.vssm_encoder.layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        mask = random_patch_mask(2, (64, 64), 0.6, 16)
        image = torch.randn(2, 2, 64, 64)
        with torch.no_grad():
            model(image, mask)
            embedded = model.vssm_encoder.patch_embed(image)
        masked = mask[:, 0, ::4, ::4]
        assert (seen[0][masked] == model.mask_token).all()
        assert torch.equal(seen[0][~masked], embedded[~masked])

    def test_a_patch_masked_in_part_is_not_seen(self):
        model = MaskedImageModel(build()).eval()
        mask = torch.zeros(1, 1, 32, 32, dtype=torch.bool)
        mask[:, :, 5, 6] = True  # one pixel of the patch of rows 4 to 7 and columns 4 to 7
        image = torch.randn(1, 2, 32, 32)
        other = image.clone()
        other[:, :, 4:8, 4:8] = 7.0
        with torch.no_grad():
            assert torch.equal(model(image, mask), model(other, mask))

    def test_sides_that_do_not_divide(self):
        with pytest.raises(InputError, match="multiples of 32"):
            MaskedImageModel(build())(torch.rand(1, 2, 48, 64), torch.zeros(1, 1, 48, 64, dtype=torch.bool))

    def test_it_learns(self):
        """A few steps on stripes, which one patch tells of the others: better than the best constant by far."""
        torch.manual_seed(0)
        model = MaskedImageModel(build(drop_path_rate=0.0))
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
        batch, loss = MaskedBatch(mask_patch_size=16), MaskedL1Loss()
        signs = torch.tensor([1.0, -1.0]).repeat(4)
        image = (signs.view(-1, 1, 1, 1) * torch.sin(torch.arange(64) * 0.4)).expand(8, 2, 64, 64)
        for _ in range(40):
            inputs, target, (mask,), _ = batch({"image": image})
            value = loss(model(inputs, mask), target)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
        assert value < 0.5 * image.abs().mean()


class TestLoss:
    def test_is_the_mean_over_masked_pixels(self):
        target = torch.full((1, 2, 2, 2), torch.nan)
        target[0, :, 0, 0] = torch.tensor([1.0, 2.0])
        target[0, :, 1, 1] = torch.tensor([3.0, 4.0])
        prediction = torch.full((1, 2, 2, 2), 10.0, requires_grad=True)
        value = MaskedL1Loss()(prediction, target)
        assert value.item() == (9 + 8 + 7 + 6) / 4
        value.backward()
        expected = torch.where(target.isnan(), 0.0, 0.25)
        assert torch.equal(prediction.grad, expected), "pixels that were seen pull at nothing"

    def test_is_computed_in_the_images_precision(self):
        target = torch.full((1, 1, 100, 100), 1 / 3)
        value = MaskedL1Loss()(torch.zeros(1, 1, 100, 100, dtype=torch.bfloat16), target)
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(1 / 3, rel=1e-6)


class TestStages:
    @BOTH
    def test_stage_3_takes_the_encoder(self, cls):
        model = MaskedImageModel(build(cls, seed=1))
        net = build(cls)
        report = load_pretrained(net, model.state_dict())
        assert report.kind == "pretrained encoder"
        own = ("vssm_encoder.", "stem.")
        assert set(report.loaded) == {name for name in net.state_dict() if name.startswith(own)}
        assert set(report.skipped) == {"mask_token", "head.0.weight", "head.0.bias"}
        for name in report.loaded:
            assert torch.equal(net.state_dict()[name], model.state_dict()[name])

    def test_the_stem_is_not_for_the_other_network(self):
        with pytest.raises(InputError, match="the network has no stem"):
            load_pretrained(build(SwinUMambaD), MaskedImageModel(build(SwinUMamba)).state_dict())

    @BOTH
    def test_goes_on_from_itself(self, cls):
        first, second = MaskedImageModel(build(cls, seed=1)), MaskedImageModel(build(cls))
        report = load_pretrained(second, first.state_dict(), strict=True)
        assert report.missing == () and report.skipped == {}

    @BOTH
    def test_the_encoder_alone_is_frozen(self, cls):
        model = MaskedImageModel(build(cls))
        frozen = {id(p) for p in FreezeEncoder(model).parameters}
        names = {name.split(".")[0] for name, p in model.named_parameters() if id(p) not in frozen}
        assert names == {"vssm_encoder", "mask_token", "head"} | ({"stem"} if cls is SwinUMamba else set())
        learns = [n for n, p in model.vssm_encoder.named_parameters() if id(p) not in frozen]
        assert all(name.startswith("patch_embed.") for name in learns)
