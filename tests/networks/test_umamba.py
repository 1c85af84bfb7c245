# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""U-Mamba's two networks and Mamba's mixer; the numbers of the released code are in test_golden.py."""

from __future__ import annotations

import copy
import io
import json
import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fvcore.nn import FlopCountAnalysis
from fvcore.nn.jit_handles import get_shape
from monai.data import MetaTensor

from swinumamba_monai.errors import InputError
from swinumamba_monai.networks import Mamba, UMambaBot, UMambaEnc
from swinumamba_monai.networks.residual_unet import ResidualBlock
from swinumamba_monai.ops import selective_scan
from swinumamba_monai.pretrained import load_pretrained

CLASSES = [UMambaBot, UMambaEnc]
BOTH = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
DIMS = pytest.mark.parametrize("spatial_dims", [2, 3])
TINY = {"base_channels": 4, "d_state": 4, "strides": (1, 2, 2), "scan_backend": "portable"}


def build(cls, seed=0, **changes):
    torch.manual_seed(seed)
    net = cls(1, 3, **{**TINY, **changes})
    for module in net.modules():
        if isinstance(module, ResidualBlock):  # U-Mamba_Enc's blocks begin as their skips, which hides mistakes
            torch.nn.init.ones_(module.conv2.norm.weight)
    return net


def image(*shape, seed=0, **options):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(**options)


def loss_of(heads):
    return sum((head.float() ** 2).mean() for head in heads)


class TestMamba:
    def mixer(self, **options):
        torch.manual_seed(0)
        return Mamba(24, d_state=4, scan_backend="portable", **options)

    def test_names_and_shapes_of_mamba_ssm(self):
        shapes = {name: tuple(p.shape) for name, p in Mamba(24).named_parameters()}
        assert shapes == {
            "in_proj.weight": (96, 24),
            "conv1d.weight": (48, 1, 4),
            "conv1d.bias": (48,),
            "x_proj.weight": (34, 48),  # ceil(24 / 16) + 2 * 16
            "dt_proj.weight": (48, 2),
            "dt_proj.bias": (48,),
            "A_log": (48, 16),
            "D": (48,),
            "out_proj.weight": (24, 48),
        }

    def test_is_what_its_equations_say(self):
        mixer, x = self.mixer().double(), image(2, 11, 24, dtype=torch.float64)
        u, gate = mixer.in_proj(x).chunk(2, dim=-1)
        u = F.silu(mixer.conv1d(u.mT)[..., :11])
        low_rank, B, C = mixer.x_proj(u.mT).split([2, 4, 4], dim=-1)
        delta = F.softplus(mixer.dt_proj(low_rank)).mT
        y = selective_scan(u, delta, -mixer.A_log.exp(), B.mT, C.mT, mixer.D, backend="reference")
        torch.testing.assert_close(mixer(x), mixer.out_proj(y.mT * F.silu(gate)), rtol=0, atol=1e-12)

    def test_is_causal(self):
        mixer, x = self.mixer(), image(1, 9, 24)
        changed = x.clone()
        changed[:, 5] += 1
        difference = (mixer(changed) - mixer(x)).abs().amax(dim=(0, 2))
        assert difference[:5].max() == 0 and difference[5:].min() > 0

    @pytest.mark.parametrize("length", [1, 2, 7])
    def test_short_sequences(self, length):
        assert self.mixer()(image(2, length, 24)).shape == (2, length, 24)

    def test_initial_scan(self):
        mixer = Mamba(512)
        assert torch.equal(mixer.A_log, torch.arange(1, 17.0).log().expand(1024, 16))
        assert torch.equal(mixer.D, torch.ones(1024))
        assert mixer.dt_proj.weight.abs().max().item() == pytest.approx(32**-0.5, rel=0.01)
        steps = F.softplus(mixer.dt_proj.bias)
        assert 0.999e-3 <= steps.min() and steps.max() <= 0.1001
        assert steps.median().item() == pytest.approx(1e-2, rel=0.2)  # log-uniform

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float16, 0.004)], ids=str)
    def test_autocast(self, dtype, tolerance):
        """bfloat16 keeps 8 bits and float16 11; five products round once each."""
        mixer, x = self.mixer(), image(2, 200, 24)
        expected = mixer(x)
        with torch.autocast("cpu", dtype):
            actual = mixer(x)
        assert actual.dtype == dtype
        assert (actual - expected).norm() <= tolerance * expected.norm()
        actual.float().square().sum().backward()  # a mean's gradients would be zero in float16
        assert all(p.grad.isfinite().all() and p.grad.abs().max() > 0 for p in mixer.parameters())

    def test_unknown_backend(self):
        with pytest.raises(ValueError, match=r"^scan_backend must be one of"):
            Mamba(8, scan_backend="gpu")


class TestPublishedSize:
    """On the meta device, where a network is built without its memory."""

    COUNTS = pytest.mark.parametrize(
        ("cls", "in_channels", "out_channels", "roi_size", "parameters"),
        [
            (UMambaBot, 1, 14, (320, 320), 63_344_180),
            (UMambaBot, 3, 8, (384, 640), 63_335_696),
            (UMambaBot, 3, 3, (512, 512), 86_150_037),
            (UMambaEnc, 1, 14, (320, 320), 67_333_428),
            (UMambaEnc, 3, 8, (384, 640), 67_324_944),
            (UMambaEnc, 3, 3, (512, 512), 91_835_029),
        ],
    )

    @COUNTS
    def test_parameters(self, cls, in_channels, out_channels, roi_size, parameters):
        with torch.device("meta"):
            net = cls(in_channels, out_channels, roi_size=roi_size)
        assert sum(p.numel() for p in net.parameters()) == parameters

    @BOTH
    def test_names_and_shapes_are_the_released_ones(self, cls, reference_dir):
        manifest = json.loads((reference_dir / "manifests" / f"{cls.__name__}_v1_AbdomenMRI.json").read_text())
        with torch.device("meta"):
            state = cls(1, 14).state_dict()
        assert {name: list(t.shape) for name, t in state.items()} == {
            entry["name"]: entry["shape"] for entry in manifest["entries"]
        }

    def test_flops(self):
        """fvcore's rule and 9·B·L·D·N + B·L·D a scan; the paper prints what is left without two of the projections."""

        def scan_flops(inputs, outputs):
            batch, length, groups, channels = get_shape(inputs[0])
            return batch * length * groups * channels * (9 * get_shape(inputs[2])[-1] + 1)

        net = UMambaEnc(1, 14, scan_backend="portable")
        flops = FlopCountAnalysis(net, torch.zeros(1, 1, 320, 320)).tracer_warnings("none")
        flops.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        flops.set_op_handle("swinumamba::selective_scan", scan_flops)
        with torch.no_grad():
            counts = flops.by_module()
        assert round(counts[""] / 1e9, 4) == 51.4941
        projections = sum(n for name, n in counts.items() if name.endswith(("x_proj", "out_proj")))
        assert round((counts[""] - projections) / 1e9, 4) == 49.8999


SIZES = {2: [(1, 1), (1, 7), (5, 3), (4, 4), (8, 12), (13, 21)], 3: [(1, 1, 1), (3, 5, 9), (4, 8, 12)]}


class TestSizes:
    @BOTH
    @pytest.mark.parametrize("size", SIZES[2] + SIZES[3], ids=str)
    def test_every_size(self, cls, size):
        net, x = build(cls, spatial_dims=len(size)), image(2, 1, *size)
        heads = net(x)
        assert isinstance(heads, list)
        assert [tuple(h.shape) for h in heads] == [(2, 3, *(math.ceil(side / s) for side in size)) for s in (1, 2)]
        single = net.eval()(x)
        assert isinstance(single, torch.Tensor) and torch.equal(single, heads[0])

    @BOTH
    def test_padding_repeats_the_border(self, cls):
        net, x = build(cls).eval(), image(1, 1, 10, 11)
        by_hand = torch.cat([x, x[:, :, -1:].expand(-1, -1, 2, -1)], dim=2)
        by_hand = torch.cat([by_hand, by_hand[..., -1:]], dim=3)
        assert torch.equal(net(x), net(by_hand)[:, :, :10, :11])

    @BOTH
    def test_a_pixel_at_the_bottleneck_gets_a_neighbour(self, cls):
        net, x = build(cls).eval(), image(1, 1, 4, 4)
        by_hand = torch.cat([x, x[..., -1:].expand(-1, -1, -1, 4)], dim=3)
        assert torch.equal(net(x), net(by_hand)[..., :4])

    @BOTH
    def test_without_deep_supervision(self, cls):
        net, x = build(cls, deep_supervision=False), image(2, 1, 9, 10)
        out = net(x)
        assert out.shape == (2, 3, 9, 10)
        net.deep_supervision = True
        assert torch.equal(net(x)[0], out)

    @BOTH
    def test_anisotropic_plan(self, cls):
        """As nnU-Net plans for thick slices: the first stages leave the first axis as it is."""
        strides, kernels = [[1, 1, 1], [1, 2, 2], [2, 2, 2]], [[1, 3, 3], [3, 3, 3], [3, 3, 3]]
        net = build(cls, spatial_dims=3, strides=strides, kernel_size=kernels)
        heads = net(image(1, 1, 5, 9, 11))
        assert [tuple(head.shape[2:]) for head in heads] == [(5, 9, 11), (5, 5, 6)]
        assert net.encoder.stages[0].blocks[0].conv1.conv.weight.shape[2:] == (1, 3, 3)

    @pytest.mark.parametrize(("roi_size", "stages"), [((320, 320), 7), ((512, 512), 8), ((16, 64), 4), ([64] * 3, 5)])
    def test_plan(self, roi_size, stages):
        with torch.device("meta"):
            net = UMambaBot(1, 2, spatial_dims=len(roi_size), roi_size=roi_size)
        assert len(net.encoder.stages) == stages
        assert all(side % step == 0 for side, step in zip(roi_size, net.step))
        assert net.channels[-1] == min(32 * 2 ** (stages - 1), 512 if len(roi_size) == 2 else 320)

    @DIMS
    @pytest.mark.parametrize("shape", [(1, 8), (1, 2, 8, 8), (1, 2, 8, 8, 8), (1, 1, 0, 8), (1, 1, 8, 0, 8)], ids=str)
    def test_wrong_input(self, spatial_dims, shape):
        axes = "d, h, w" if spatial_dims == 3 else "h, w"
        with pytest.raises(ValueError) as error:
            build(UMambaBot, spatial_dims=spatial_dims)(torch.zeros(shape))
        assert str(error.value) == f"expected an input of shape (b, 1, {axes}), got {shape}."


class TestComputation:
    @BOTH
    @DIMS
    def test_gradients_reach_every_parameter(self, cls, spatial_dims):
        net = build(cls, spatial_dims=spatial_dims)
        loss_of(net(image(2, 1, *(8, 12, 8)[-spatial_dims:]))).backward()
        silent = {name for name, p in net.named_parameters() if p.grad is None or not p.grad.abs().max() > 0}
        assert silent == set()

    def test_mamba_replaces_each_map_of_the_encoder(self):
        """U-Mamba_Enc once more in plain words: no residual connection around Mamba, and skips that went through it."""
        net, x = build(UMambaEnc).double(), image(2, 1, 8, 12, dtype=torch.float64)
        y, skips = net.encoder.stem.convs(x), []
        for stage, layer in zip(net.encoder.stages, net.encoder.mamba_layers):
            y = stage(y)
            pixels = y.flatten(2).mT
            pixels = F.layer_norm(pixels, pixels.shape[2:], layer.norm.weight, layer.norm.bias, 1e-5)
            y = layer.mamba(pixels).mT.reshape(y.shape)
            skips.append(y)
        y = skips.pop()
        for up, stage in zip(net.decoder.transpconvs, net.decoder.stages):
            y = stage(torch.cat([up(y), skips.pop()], dim=1))
        torch.testing.assert_close(net(x)[0], net.decoder.seg_layers[-1](y), rtol=0, atol=1e-10)

    @BOTH
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
    def test_autocast(self, cls, dtype):
        """The convolutions round to 8 or 11 bits, some twenty of them; Mamba stays in float32. LayerNorm over few
        channels would enlarge the errors: hence 16 of them."""
        net, x = build(cls, base_channels=16), image(2, 1, 16, 24)
        seen = []
        for module in net.modules():
            if isinstance(module, Mamba):
                module.in_proj.register_forward_hook(lambda module, inputs, out: seen.append(out.dtype))
        expected = net(x)[0]
        seen.clear()
        with torch.autocast("cpu", dtype):
            heads = net(x)
        assert set(seen) == {torch.float32} and {head.dtype for head in heads} == {dtype}
        assert (heads[0] - expected).norm() <= (0.1 if dtype == torch.bfloat16 else 0.015) * expected.norm()
        loss_of(heads).backward()
        assert all(p.grad.isfinite().all() for p in net.parameters())

    @BOTH
    def test_half_parameters(self, cls):
        net = build(cls).bfloat16()
        assert net(image(1, 1, 8, 12, dtype=torch.bfloat16))[0].dtype == torch.bfloat16

    @BOTH
    def test_monai_tensors(self, cls):
        net, x = build(cls).eval(), image(1, 1, 9, 10)
        out = net(MetaTensor(x))
        assert isinstance(out, MetaTensor) and torch.equal(out.as_tensor(), net(x))

    @BOTH
    def test_initialisation(self, cls):
        torch.manual_seed(0)
        net = cls(1, 2, strides=(1, 2, 2))
        he = math.sqrt(2 / (1 + 1e-4) / (64 * 9))
        assert net.encoder.stages[1].blocks[1].conv1.conv.weight.std().item() == pytest.approx(he, rel=0.05)
        assert net.encoder.stages[1].blocks[1].conv1.conv.bias.abs().max() == 0
        gains = {m.conv2.norm.weight.unique().item() for m in net.modules() if isinstance(m, ResidualBlock)}
        assert gains == {0.0 if cls is UMambaEnc else 1.0}


class TestModule:
    @BOTH
    def test_trace(self, cls):
        """TorchScript by tracing, at one size; scripting cannot, because the list of heads depends on the mode."""
        net, x = build(cls).eval(), image(1, 1, 8, 12)
        with torch.no_grad():
            traced = torch.jit.trace(net, x)
            file = io.BytesIO()
            torch.jit.save(traced, file)
            file.seek(0)
            y = image(1, 1, 8, 12, seed=1)
            torch.testing.assert_close(torch.jit.load(file)(y), net(y), rtol=0, atol=1e-5)

    def test_export(self):
        net, x = build(UMambaEnc).eval(), image(1, 1, 9, 11)
        y = image(1, 1, 9, 11, seed=1)
        torch.testing.assert_close(torch.export.export(net, (x,)).module()(y), net(y), rtol=0, atol=1e-5)

    @BOTH
    def test_copies(self, cls):
        net, x = build(cls).eval(), image(1, 1, 8, 12)
        twin = pickle.loads(pickle.dumps(copy.deepcopy(net)))
        assert torch.equal(twin(x), net(x))
        twin.load_state_dict(released(net.state_dict()))
        assert torch.equal(twin(x), net(x))

    @BOTH
    def test_state_dict(self, cls):
        net, x = build(cls).eval(), image(1, 1, 8, 12)
        file = io.BytesIO()
        torch.save(net.state_dict(), file)
        file.seek(0)
        twin = build(cls, seed=1).eval()
        assert not torch.equal(twin(x), net(x))
        twin.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(twin(x), net(x))


def released(state):
    """The same tensors under all the names that the released code has for them."""
    weights = {}
    for name, tensor in state.items():
        names = [name, name.replace(".conv.", ".all_modules.0.").replace(".norm.", ".all_modules.1.")]
        if ".mamba_layers." in name:
            names = names[:1]
        for alias in dict.fromkeys(names):
            weights[alias] = tensor
            if alias.startswith("encoder."):
                weights["decoder." + alias] = tensor
    return weights


class TestReleasedCheckpoints:
    @BOTH
    def test_names_are_the_releases(self, cls, reference_dir):
        manifest = json.loads((reference_dir / "manifests" / f"{cls.__name__}_v1_AbdomenMRI.json").read_text())
        names = {name for entry in manifest["entries"] for name in (entry["name"], *entry["aliases"])}
        with torch.device("meta"):
            state = cls(1, 14).state_dict()
        assert len(names) == manifest["num_keys_in_official_state_dict"] and released(state).keys() == names

    @BOTH
    @pytest.mark.parametrize("every_name", [True, False])
    def test_trainer_file_loads(self, cls, every_name, tmp_path):
        """Made like nnU-Net's checkpoint_final.pth; and with DDP's prefix in front of the names."""
        net, twin, x = build(cls).eval(), build(cls, seed=1).eval(), image(1, 1, 8, 12)
        weights = released(net.state_dict()) if every_name else net.state_dict()
        torch.save(
            {
                "network_weights": {"module." + name: tensor for name, tensor in weights.items()},
                "logging": {"mean_fg_dice": [np.float64(0.5)]},
                "_best_ema": np.float64(0.5),
                "current_epoch": 1000,
                "trainer_name": "nnUNetTrainer" + cls.__name__,
                "inference_allowed_mirroring_axes": (0, 1),
            },
            tmp_path / "checkpoint_final.pth",
        )
        report = load_pretrained(twin, tmp_path / "checkpoint_final.pth", strict=True)
        assert torch.equal(twin(x), net(x))
        assert set(report.loaded) == net.state_dict().keys() and not report.missing
        assert report.skipped.keys() == weights.keys() - net.state_dict().keys()

    @BOTH
    def test_load_state_dict_is_strict(self, cls):
        net, twin, x = build(cls).eval(), build(cls, seed=1).eval(), image(1, 1, 8, 12)
        weights = released(net.state_dict())
        twin.load_state_dict(weights)
        assert torch.equal(twin(x), net(x))
        with pytest.raises(RuntimeError, match="Unexpected key"):
            twin.load_state_dict({**weights, "decoder.encoder.other.weight": torch.zeros(1)})

    def test_other_networks_are_refused(self):
        net, other = build(UMambaBot), build(UMambaEnc)
        before = copy.deepcopy(net.state_dict())
        with pytest.raises(InputError, match="is not of this network"):
            load_pretrained(net, {"network_weights": released(other.state_dict())})
        with pytest.raises(InputError, match="does not fit the network"):
            load_pretrained(net, {"network_weights": released(build(UMambaBot, base_channels=8).state_dict())})
        assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


NOT_COUNTS = (0, -1, 1.0, "1", None, True)
WRONG = [
    *(("base_channels", value) for value in NOT_COUNTS),
    *(("d_state", value) for value in NOT_COUNTS),
    *(("spatial_dims", value) for value in (1, 4, "2", None)),
    *(("strides", value) for value in (2, (1,), (2, 2), (1, 0), (1, (2, 2, 2)), (1, "2"), "12", [])),
    *(("kernel_size", value) for value in (2, 0, "3", (3, 3), (3, 3, 4), None)),
    *(("scan_backend", value) for value in ("gpu", "", None)),
]


class TestArguments:
    @BOTH
    @pytest.mark.parametrize(("name", "value"), WRONG, ids=str)
    def test_wrong_argument_is_named(self, cls, name, value):
        with pytest.raises(ValueError, match=rf"^{name} must be .*got .*\.$"):
            build(cls, **{name: value})

    @BOTH
    @pytest.mark.parametrize("value", [0, True, None, "1"], ids=str)
    def test_wrong_channels_are_named(self, cls, value):
        with pytest.raises(ValueError, match=r"^in_channels must be"):
            cls(value, 2)
        with pytest.raises(ValueError, match=r"^out_channels must be"):
            cls(1, value)

    @pytest.mark.parametrize("roi_size", [(64,), (64, 64, 64), (64, 0), (4, 4), 64, "ab"], ids=str)
    def test_wrong_roi_size_is_named(self, roi_size):
        with pytest.raises(ValueError, match=r"^roi_size must be"):
            UMambaBot(1, 2, roi_size=roi_size)
