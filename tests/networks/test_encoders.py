# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""VMamba's later encoders: by name, in both networks, with their weights, in pretraining; against the equations."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from small_umamba import image
from torch import nn

from swinumamba_monai.errors import InputError
from swinumamba_monai.networks import ENCODERS, SYSTEMS, SwinUMamba, SwinUMambaD, build_network, build_vmamba
from swinumamba_monai.networks.encoders import name_encoder
from swinumamba_monai.networks.vss_later import ConvDownsample, ConvPatchEmbed, VSSMLPBlock
from swinumamba_monai.ops import selective_scan_ref
from swinumamba_monai.ops.reference import scan_orders
from swinumamba_monai.pretrained import load_pretrained
from swinumamba_monai.training import FreezeEncoder, MaskedBatch, MaskedImageModel, MaskedL1Loss

BOTH = pytest.mark.parametrize("cls", [SwinUMambaD, SwinUMamba], ids=lambda cls: cls.__name__)
LATER = [name for name in ENCODERS if name != "vmamba_tiny_v0"]
SMALL = {"depths": (1, 1, 1, 1), "feature_size": 8}


def build(cls=SwinUMambaD, seed=0, **changes):
    torch.manual_seed(seed)
    options = {"in_channels": 1, "out_channels": 3, "encoder": "vmamba_tiny_s2l5", "scan_backend": "portable", **SMALL}
    if cls is SwinUMambaD:
        options["decoder_depths"] = (1, 1, 1)
    return cls(**{**options, **changes})


def classifier(name="vmamba_tiny_s2l5", seed=1, **changes):
    torch.manual_seed(seed)
    return build_vmamba(name, **{"num_classes": 5, **SMALL, **changes})


class TestReleased:
    @pytest.mark.parametrize(
        "name, tensors, parameters",
        [
            ("vmamba_tiny_v0", 212, 22_893_448),
            ("vmamba_tiny_s1l8", 276, 30_249_064),
            ("vmamba_tiny_s2l5", 222, 30_705_832),
            ("vmamba_small_s2l15", 402, 50_147_752),
            ("vmamba_base_s2l15", 402, 88_557_800),
        ],
    )
    def test_sizes(self, name, tensors, parameters):
        """The released READMEs say 23, 30, 31, 50 and 89 M."""
        with torch.device("meta"):
            net = build_vmamba(name)
        state = net.state_dict()
        assert (len(state), sum(p.numel() for p in net.parameters())) == (tensors, parameters)
        assert name_encoder(state) == name

    @BOTH
    @pytest.mark.parametrize("name", ENCODERS)
    def test_the_networks_have_them(self, cls, name):
        with torch.device("meta"):
            net, first = cls(1, 14, encoder=name), build_vmamba(name)
        own = {key.removeprefix("vssm_encoder."): w.shape for key, w in net.state_dict().items()}
        assert name_encoder({key: torch.empty(shape, device="meta") for key, shape in own.items()}) == name
        blocks = {key: w.shape for key, w in first.state_dict().items() if ".blocks." in key}
        assert blocks.items() <= own.items()

    def test_unknown(self):
        with pytest.raises(ValueError, match="encoder must be one of vmamba_tiny_v0"):
            build_vmamba("vmamba_huge")
        with pytest.raises(ValueError, match="encoder must be one of vmamba_tiny_v0"):
            SwinUMambaD(1, 2, encoder="vmamba_huge")

    def test_other_weights_have_no_name(self):
        assert name_encoder({}) is None
        assert name_encoder({"layers.0.blocks.0.op.A_logs": torch.zeros(4, 1)}) is None
        assert name_encoder(classifier().state_dict()) is None


class TestBlock:
    """Each layer is what VMamba's final version says, written out with the scan of the reference."""

    def test_equations(self):
        torch.manual_seed(0)
        block = VSSMLPBlock(6, d_state=1, expand=2, scan_backend="portable").double()
        for parameter in block.parameters():
            nn.init.normal_(parameter, std=0.5)
        p, x = dict(block.named_parameters()), image(2, 3, 5, 6).double()
        normed = F.layer_norm(x, (6,), p["norm.weight"], p["norm.bias"])
        maps = F.conv2d(
            F.linear(normed, p["op.in_proj.weight"]).permute(0, 3, 1, 2), p["op.conv2d.weight"], None, 1, 1, 1, 12
        )
        pixels = F.silu(maps).flatten(2)  # (b, d, l)
        A, D = -p["op.A_logs"].float().exp().double().view(4, 12, 1), p["op.Ds"].view(4, 12)
        merged = torch.zeros_like(pixels)
        for k, order in enumerate(scan_orders(3, 5)):
            u = pixels[..., order]
            low_rank, B, C = torch.einsum("bdl,cd->bcl", u, p["op.x_proj_weight"][k]).split([1, 1, 1], dim=1)
            delta = torch.einsum("brl,dr->bdl", low_rank, p["op.dt_projs_weight"][k])
            options = {"delta_bias": p["op.dt_projs_bias"][k], "delta_softplus": True}
            merged = merged.index_add(2, order, selective_scan_ref(u, delta, A[k], B, C, D[k], **options))
        merged = F.layer_norm(
            merged.unflatten(2, (3, 5)).permute(0, 2, 3, 1), (12,), p["op.out_norm.weight"], p["op.out_norm.bias"]
        )
        y = x + F.linear(merged, p["op.out_proj.weight"])
        hidden = F.linear(
            F.layer_norm(y, (6,), p["norm2.weight"], p["norm2.bias"]), p["mlp.fc1.weight"], p["mlp.fc1.bias"]
        )
        expected = y + F.linear(F.gelu(hidden), p["mlp.fc2.weight"], p["mlp.fc2.bias"])
        torch.testing.assert_close(block(x), expected, rtol=0, atol=1e-12)

    @pytest.mark.parametrize("backend", ["portable", "numba", "reference"])
    def test_backends_agree(self, backend):
        """In float32; the differences are those of the order in which a few hundred numbers are added."""
        if backend == "numba":
            pytest.importorskip("numba")
        block, other = (VSSMLPBlock(8, d_state=1, expand=1, scan_backend=b) for b in (backend, "portable"))
        other.load_state_dict(block.state_dict())
        results = []
        for module in (block, other):
            x = image(2, 7, 6, 8).requires_grad_()
            out = module(x)
            out.square().mean().backward()
            results.append([out, x.grad, *(p.grad for p in module.parameters())])
        for actual, expected in zip(*results):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("patch_size, convolutions", [(4, 2), (2, 1)])
    def test_resolution(self, patch_size, convolutions):
        embed = ConvPatchEmbed(3, 8, patch_size)
        assert embed(image(1, 3, 16, 24)).shape == (1, 16 // patch_size, 24 // patch_size, 8)
        assert sum(isinstance(m, nn.Conv2d) for m in embed) == convolutions
        assert ConvDownsample(8)(image(1, 6, 4, 8)).shape == (1, 3, 2, 16)

    def test_drop_path_skips_either_half(self):
        block = VSSMLPBlock(4, d_state=1, drop_path=0.9).train()
        x = image(64, 2, 2, 4)
        changed = (block(x) - x).flatten(1).abs().amax(1) > 0
        assert 0 < changed.sum() < 40  # 0.19 of the samples; 40 of 64 come with a probability below 1e-12


class TestNetworks:
    @BOTH
    @pytest.mark.parametrize("size", [(1, 1), (33, 50), (64, 96)], ids=str)
    def test_every_size(self, cls, size):
        heads = build(cls)(image(2, 1, *size))
        assert heads[0].shape == (2, 3, *size) and len(heads) == 4

    @BOTH
    def test_every_parameter_gets_a_gradient(self, cls):
        net = build(cls, drop_path_rate=0.0)
        sum(head.square().mean() for head in net(image(2, 1, 64, 64))).backward()
        assert [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []

    @BOTH
    def test_gradient_checkpointing(self, cls):
        results = []
        for use_checkpoint in (False, True):
            net = build(cls, drop_path_rate=0.0, use_checkpoint=use_checkpoint)
            loss = net(image(1, 1, 32, 32))[0].square().mean()
            loss.backward()
            results.append([loss, *(p.grad for p in net.parameters())])
        for one, two in zip(*results):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)

    @BOTH
    def test_trace(self, cls):
        net = build(cls, scan_backend="auto").eval()
        traced = torch.jit.trace(net, image(1, 1, 64, 64), check_trace=False)
        x = image(2, 1, 40, 77)
        with torch.no_grad():
            torch.testing.assert_close(traced(x), net(x), rtol=0, atol=1e-4)

    def test_the_dagger_has_the_same_blocks_in_its_decoder(self):
        net = build()
        blocks = [block for stage in net.decoder.stages for block in stage.blocks]
        assert len(blocks) == 3 and all(type(block) is VSSMLPBlock for block in blocks)
        assert {block.op.d_state for block in blocks} == {1}
        assert blocks[0].op.out_proj.weight.shape == (32, 64)

    def test_their_own_drop_path_and_channels(self):
        with torch.device("meta"):
            net = SwinUMambaD(1, 2, encoder="vmamba_base_s2l15")
        assert net.vssm_encoder.channels == [128, 256, 512, 1024]
        assert net.vssm_encoder.layers[3].blocks[1].drop_path.drop_prob == pytest.approx(0.6)
        assert net.decoder.stages[0].blocks[0].drop_path.drop_prob == pytest.approx(0.6)

    def test_rms_norm(self):
        assert build(norm_name="rms")(image(1, 1, 32, 32))[0].isfinite().all()

    def test_blocks_of_fig_6_belong_to_the_papers_encoder(self):
        with pytest.raises(ValueError, match="block_type must be VSS with the encoder vmamba_tiny_s2l5"):
            build(block_type="Vim")


class TestByName:
    @pytest.mark.parametrize("system", [name for name, system in SYSTEMS.items() if system.vmamba])
    def test_switch(self, system):
        net = build_network(system, in_channels=1, out_channels=2, roi_size=64, encoder="vmamba_tiny_s1l8", **SMALL)
        assert isinstance(net.vssm_encoder.layers[0].blocks[0], VSSMLPBlock)

    @pytest.mark.parametrize("system", [name for name, system in SYSTEMS.items() if not system.vmamba])
    def test_networks_without(self, system):
        with pytest.raises(InputError, match=f"{system} has no VMamba encoder: --encoder goes with SwinUMamba and"):
            build_network(system, in_channels=1, out_channels=2, roi_size=64, encoder="vmamba_tiny_s1l8")

    def test_unknown(self):
        with pytest.raises(InputError, match=r"encoder must be one of .*vmamba_base_s2l15, got 'x+\.\.\."):
            build_network("SwinUMambaD", in_channels=1, out_channels=2, roi_size=64, encoder="x" * 1000)


class TestWeights:
    def test_released_names_load_strictly_also_as_convolutions(self):
        one, two = classifier(), classifier(seed=2)
        state = {
            name: w[..., None, None] if w.ndim == 2 and "proj.weight" in name else w
            for name, w in one.state_dict().items()
        }
        assert any(w.shape[2:] == (1, 1) for w in state.values())
        two.load_state_dict(state, strict=True)
        with torch.no_grad():
            assert torch.equal(one.eval()(image(1, 3, 32, 64)), two.eval()(image(1, 3, 32, 64)))
        with pytest.raises(RuntimeError, match="Missing key"):
            two.load_state_dict(dict(list(state.items())[1:]), strict=True)

    @BOTH
    def test_the_encoder_gets_all_but_the_patch_embedding(self, cls, tmp_path):
        torch.save({"model": classifier().state_dict(), "epoch": 264}, tmp_path / "vssm1.pth")
        net = build(cls)
        report = load_pretrained(net, tmp_path / "vssm1.pth")
        assert report.kind == "VMamba checkpoint"
        assert {name.split(".")[0] for name in report.skipped} == {"patch_embed", "classifier"}
        left = [name for name in report.missing if name.startswith("vssm_encoder.")]
        assert left and all(name.startswith("vssm_encoder.patch_embed.") for name in left)
        net.vssm_encoder.patch_embed = classifier().patch_embed
        with torch.no_grad():
            for actual, expected in zip(
                net.vssm_encoder(image(1, 3, 32, 64)), classifier().features(image(1, 3, 32, 64))
            ):
                torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)

    def test_the_decoder_gets_blocks_too(self):
        net = build()
        load_pretrained(net, {"model": classifier().state_dict()}, decoder=True)
        for stage, source in zip(net.decoder.stages, (2, 1, 0)):
            for name, weight in stage.state_dict().items():
                assert torch.equal(weight, net.vssm_encoder.layers[source].state_dict()[name])

    @pytest.mark.parametrize(
        "net, file", [("vmamba_tiny_v0", "vmamba_tiny_s1l8"), ("vmamba_tiny_s1l8", "vmamba_tiny_v0")]
    )
    def test_the_other_version_is_refused(self, net, file):
        net, weights = build(encoder=net, d_state=1), classifier(file, d_state=1).state_dict()
        before = {name: w.clone() for name, w in net.state_dict().items()}
        with pytest.raises(
            InputError, match=r"another version: its encoder is of .* version, this network's is of .*--encoder"
        ):
            load_pretrained(net, {"model": weights})
        with pytest.raises(InputError, match="a Swin-UMamba checkpoint of another version"):
            load_pretrained(net, build(encoder=file, d_state=1).state_dict())
        assert all(torch.equal(before[name], w) for name, w in net.state_dict().items())

    def test_another_encoder_of_the_version_is_named(self):
        with torch.device("meta"):
            net, file = SwinUMambaD(1, 2, encoder="vmamba_small_s2l15"), build_vmamba("vmamba_tiny_s1l8")
        with pytest.raises(InputError, match="is vmamba_tiny_s1l8, this network's is vmamba_small_s2l15"):
            load_pretrained(net, {"model": file.state_dict()})


class TestPretraining:
    @BOTH
    def test_every_parameter_learns_and_nothing_masked_is_seen(self, cls):
        model = MaskedImageModel(build(cls, drop_path_rate=0.0))
        x, target, (mask,), _ = MaskedBatch(mask_patch_size=32)({"image": image(2, 1, 64, 96)})
        with torch.no_grad():
            assert torch.equal(model(x, mask), model(torch.where(mask, 7.0, x), mask))
        MaskedL1Loss()(model(x, mask), target).backward()
        assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []

    @BOTH
    def test_the_training_takes_it_and_may_freeze_it(self, cls):
        net = build(cls)
        report = load_pretrained(net, MaskedImageModel(build(cls, seed=1)).state_dict())
        assert report.kind == "pretrained encoder"
        assert set(report.loaded) == {n for n in net.state_dict() if n.startswith(("vssm_encoder.", "stem."))}
        frozen = {id(p) for p in FreezeEncoder(net).parameters}
        free = [n for n, p in net.vssm_encoder.named_parameters() if id(p) not in frozen]
        assert free and all(name.startswith("patch_embed.") for name in free)
