# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""nnFormer: sizes, modes, arguments, and its attention against one written pixel by pixel."""

from __future__ import annotations

import pytest
import torch
from small_umamba import image
from torch.utils.flop_counter import FlopCounterMode

from swinumamba_monai.networks import NNFormer
from swinumamba_monai.networks.nnformer_attention import TransformerBlock

TINY = {"in_channels": 2, "out_channels": 3, "feature_size": 16, "num_heads": (1, 2, 4, 8), "drop_path_rate": 0.0}
ROI = {2: (64, 64), 3: (32, 64, 64)}
ODD = {2: (50, 37), 3: (17, 40, 33)}
DIMS = pytest.mark.parametrize("dims", [2, 3])


def build(dims, seed=0, **changes):
    torch.manual_seed(seed)
    return NNFormer(**{**TINY, "spatial_dims": dims, "roi_size": ROI[dims], **changes})


class TestPublishedSize:
    """On the meta device, where a network is built without its memory."""

    def test_windows_of_the_released_configuration(self):
        with torch.device("meta"):
            net = NNFormer(1, 14)
        shifts = [[(block.window, block.shift) for block in stage.blocks] for stage in net.model_down.layers]
        assert shifts == [[(4, 0), (4, 2)], [(4, 0), (4, 2)], [(8, 0), (8, 0)], [(4, 0), (4, 0)]]
        heads = [stage.blocks[0].attn.num_heads for stage in net.decoder.layers]
        assert heads == [12, 24, 48]

    def test_released_names(self):
        with torch.device("meta"):
            shapes = {name: tuple(w.shape) for name, w in NNFormer(1, 14).state_dict().items()}
        expected = {
            "model_down.patch_embed.proj1.conv1.weight": (96, 1, 3, 3, 3),
            "model_down.patch_embed.proj2.norm1.weight": (192,),
            "model_down.layers.0.blocks.1.attn.qkv.weight": (576, 192),
            "model_down.layers.2.blocks.0.attn.relative_position_bias_table": (15**3, 24),
            "model_down.layers.2.blocks.0.attn.relative_position_index": (512, 512),
            "model_down.layers.2.downsample.reduction.weight": (1536, 768, 3, 3, 3),
            "model_down.norm3.weight": (1536,),
            "decoder.layers.0.Upsample.up.weight": (384, 192, 2, 2, 2),
            "decoder.layers.2.blocks.0.attn.kv.weight": (1536, 768),
            "final.2.up.weight": (768, 14, 2, 4, 4),
        }
        assert {name: shapes.get(name) for name in expected} == expected
        assert "model_down.patch_embed.proj2.norm2.weight" not in shapes
        assert len(shapes) == 250

    @pytest.mark.parametrize(
        "in_channels, out_channels, roi_size, millions, gflops",
        [(1, 14, (320, 320), 114.2, 52.2), (3, 8, (384, 640), 114.1, 119.0), (3, 3, (512, 512), 114.0, 126.5)],
    )
    def test_cost_in_2d_as_documented(self, in_channels, out_channels, roi_size, millions, gflops):
        with torch.device("meta"), torch.no_grad():
            net = NNFormer(in_channels, out_channels, spatial_dims=2, roi_size=roi_size)
            with FlopCounterMode(display=False) as counter:
                net(torch.zeros(1, in_channels, *roi_size))
        assert round(counter.get_total_flops() / 2e9, 1) == gflops  # torch counts a multiply-add as two
        assert round(sum(p.numel() for p in net.parameters()) / 1e6, 1) == millions


class TestAttention:
    @DIMS
    @pytest.mark.parametrize("shift", [0, 2])
    @pytest.mark.parametrize("cross", [False, True])
    def test_equals_one_window_at_a_time(self, dims, shift, cross):
        """Each query alone, float64: where it looks follows from coordinates, not from rolls and masks."""
        torch.manual_seed(0)
        window, dim, heads = 4, 8, 2
        block = TransformerBlock(dim, window, shift, heads, dims, 0.0, cross).double().eval()
        with torch.no_grad():
            block.attn.relative_position_bias_table.normal_()
        spatial = (8, 8, 4)[:dims] if shift else (6, 8, 5)[:dims]
        x, skip = (torch.randn(1, *spatial, dim, dtype=torch.float64) for _ in range(2))
        with torch.no_grad():
            actual = block(x, skip if cross else None)
            padded = [-(-side // window) * window for side in spatial]
            places = torch.cartesian_prod(*(torch.arange(side) for side in padded))

            def rows(t):
                full = torch.zeros(*padded, dim, dtype=torch.float64)
                full[tuple(slice(side) for side in spatial)] = block.norm1(t[0])
                return full.reshape(-1, dim)

            q, source = rows(x), rows(skip if cross else x)
            if cross:
                k, v = block.attn.kv(source).chunk(2, dim=-1)
            else:
                q, k, v = block.attn.qkv(q).chunk(3, dim=-1)
            cell = torch.div(places - shift, window, rounding_mode="floor")
            together = (cell[:, None] == cell[None]).all(-1)
            offset = (places[:, None] - places[None] + window - 1).clamp(0, 2 * window - 2)
            strides = torch.tensor((7, 1) if dims == 2 else (11, 7, 1))
            bias = block.attn.relative_position_bias_table[(offset * strides).sum(-1)]
            outs = []
            for h in range(heads):
                part = slice(h * dim // heads, (h + 1) * dim // heads)
                logits = q[:, part] @ k[:, part].T / (dim // heads) ** 0.5 + bias[..., h]
                outs.append(logits.masked_fill(~together, -torch.inf).softmax(-1) @ v[:, part])
            y = block.attn.proj(torch.cat(outs, dim=-1)).reshape(1, *padded, dim)
            y = y[(slice(None), *(slice(side) for side in spatial))]
            expected = (x + skip if cross else x) + y
            expected = expected + block.mlp(block.norm2(expected))
        # exp(-100) of the released mask is 4e-44
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


class TestForward:
    @DIMS
    def test_any_size_and_all_heads(self, dims):
        net, x = build(dims), image(2, 2, *ODD[dims])
        heads = net(x)
        assert [tuple(head.shape) for head in heads] == [
            (2, 3, *(-(-side // scale) for side in ODD[dims])) for scale in (1, 2, 4)
        ]
        with torch.no_grad():
            alone = net.eval()(x)
        torch.testing.assert_close(alone, heads[0].detach(), rtol=0, atol=1e-5)
        net.train().deep_supervision = False
        assert net(x).shape == (2, 3, *ODD[dims])

    def test_one_pixel(self):
        assert build(2).eval()(image(1, 2, 1, 1)).shape == (1, 3, 1, 1)

    @DIMS
    def test_padding_repeats_the_last_pixels(self, dims):
        net, x = build(dims).eval(), image(1, 2, *ODD[dims])
        filled = x
        for axis, (side, stride) in enumerate(zip(ODD[dims], net.step), start=2):
            index = torch.arange(-(-side // stride) * stride).clamp(max=side - 1)
            filled = filled.index_select(axis, index)
        with torch.no_grad():
            whole = net(filled)[(..., *(slice(side) for side in ODD[dims]))]
            assert torch.equal(net(x), whole)

    @DIMS
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
    def test_every_parameter_gets_a_gradient(self, dims, dtype):
        net = build(dims)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            heads = net(image(1, 2, *ODD[dims]))
        sum((head.float() ** 2).mean() for head in heads).backward()
        dead = [
            n for n, p in net.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()
        ]
        assert dead == []

    def test_learns_under_bfloat16_autocast(self):
        net, x = build(2), image(2, 2, 64, 64)
        target = (x[:, 0] > 0).long()
        optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
        losses = []
        for _ in range(20):
            with torch.autocast("cpu", torch.bfloat16):
                logits = net(x)[0]
            loss = torch.nn.functional.cross_entropy(logits.float(), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.8 * losses[0]

    @DIMS
    def test_trace(self, dims):
        """A trace holds for the size it saw: windows and padding are counted in Python."""
        net, x = build(dims).eval(), image(1, 2, *ODD[dims])
        with torch.no_grad():
            traced = torch.jit.trace(net, x, check_trace=False)
            other = image(1, 2, *ODD[dims], seed=1)
            torch.testing.assert_close(traced(other), net(other), rtol=0, atol=1e-5)

    @DIMS
    def test_state_dict_round_trip(self, dims):
        one, two, x = build(dims).eval(), build(dims, seed=1).eval(), image(1, 2, *ODD[dims])
        with torch.no_grad():
            assert not torch.equal(one(x), two(x))
            two.load_state_dict(one.state_dict(), strict=True)
            assert torch.equal(one(x), two(x))


class TestWrongArguments:
    @pytest.mark.parametrize(
        "changes",
        [
            {"in_channels": 0},
            {"out_channels": True},
            {"feature_size": 15},
            {"spatial_dims": 1},
            {"depths": (2, 2, 2)},
            {"num_heads": (3, 6, 12, 24)},
            {"window_size": (4, 4, 0, 4)},
            {"patch_size": (3, 4)},
            {"roi_size": (64, 64, 64)},
            {"drop_path_rate": 1.0},
        ],
        ids=lambda changes: next(iter(changes)),
    )
    def test_argument(self, changes):
        with pytest.raises(ValueError, match=next(iter(changes))):
            build(2, **changes)
