# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Every system by its name, at toy size: shapes, any image, gradients, wrong arguments, a state dict there and back."""

from __future__ import annotations

import copy
import pickle
from functools import partial

import monai.bundle
import pytest
import torch
from monai.data import MetaTensor

from swinumamba_monai.errors import InputError
from swinumamba_monai.networks import SYSTEMS, SwinUMambaD, build_network

ROI = (64, 64)
TOY = {
    "nnUNet": {"base_channels": 4},
    "SegResNet": {"init_filters": 8},
    "UNETR": {"feature_size": 4, "hidden_size": 24, "mlp_dim": 24, "num_heads": 2},
    "SwinUNETR": {"feature_size": 12},
    "SwinUMamba": {"feature_size": 8, "depths": (1, 1, 1, 1), "d_state": 4},
    "SwinUMambaD": {"feature_size": 8, "depths": (1, 1, 1, 1), "decoder_depths": (1, 1, 1), "d_state": 4},
    "UMambaBot": {"base_channels": 4},
    "UMambaEnc": {"base_channels": 4},
    "NNFormer": {"feature_size": 8, "num_heads": (1, 1, 1, 1)},
}
EVERY = pytest.mark.parametrize("name", SYSTEMS)


def build(name: str, **options) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_network(name, in_channels=2, out_channels=3, roi_size=ROI, **{**TOY[name], **options})


@EVERY
def test_shapes_and_gradients(name):
    network = build(name, deep_supervision=True)
    output = network(torch.randn(2, 2, *ROI))
    assert isinstance(output, list) == SYSTEMS[name].deep_supervision
    heads = output if SYSTEMS[name].deep_supervision else [output]
    assert heads[0].shape == (2, 3, *ROI)
    sizes = [head.shape[2] for head in heads]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes), "finest first"
    sum(head.square().mean() for head in heads).backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)
    assert _idle(network) == []


def _idle(network: torch.nn.Module) -> list[str]:
    """The parameters that want a gradient and got none, over which DistributedDataParallel stumbles."""
    return [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]


@EVERY
def test_one_output_without_deep_supervision(name):
    network = build(name)
    output = network.train()(torch.randn(2, 2, *ROI))
    assert output.shape == (2, 3, *ROI)
    output.square().mean().backward()
    assert _idle(network) == []


@EVERY
def test_distributed_without_a_search_for_unused_parameters(name, tmp_path):
    """The second step is where DistributedDataParallel misses a gradient."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        network = torch.nn.parallel.DistributedDataParallel(build(name))
        for _ in range(2):
            network(torch.randn(2, 2, *ROI)).square().mean().backward()
        # Its reducer must not outlive the process group: whoever ends the group's threads with Python's lock in hand
        # waits for ever where one of them wants it.
        del network
    finally:
        torch.distributed.destroy_process_group()


@EVERY
def test_quantize_dynamic(name):
    """Linear layers of eight bits; those whose weights an operator reads stay as they are."""
    network, x = build(name).eval(), torch.randn(1, 2, *ROI)
    quantized = torch.ao.quantization.quantize_dynamic(network)
    with torch.no_grad():
        expected, actual = network(x), quantized(x)
    # Eight bits through twenty untrained layers of four to eight channels: U-Mamba_Enc's instance norms of 2×2 pixels
    # raise them to 0.54; logits that have nothing to do with each other differ by 1.4.
    assert (actual - expected).std() < 0.7 * expected.std()


SUPERVISED = pytest.mark.parametrize("name", [name for name, system in SYSTEMS.items() if system.deep_supervision])


@SUPERVISED
def test_heads_in_evaluation_when_asked_for(name):
    network, x = build(name, deep_supervision=True).eval(), torch.randn(1, 2, *ROI)
    with torch.no_grad():
        alone = network(x)
        network.heads_in_eval = True
        heads = network(x)
        assert len(heads) > 1 and torch.equal(heads[0], alone)
        assert [h.shape for h in heads] == [h.shape for h in network.train()(x)]
        network.eval().deep_supervision = False
        assert torch.equal(network(x), alone)


@SUPERVISED
def test_deep_supervision_switched_on_later(name):
    network, x = build(name), torch.randn(2, 2, 50, 37)
    frozen = [n for n, p in network.named_parameters() if not p.requires_grad]
    assert frozen, "the heads that are not used"
    outputs = []
    for network.deep_supervision in (False, True):
        torch.manual_seed(1)  # of the drop path
        outputs.append(network(x))
    alone, heads = outputs
    assert alone.shape == (2, 3, 50, 37) and torch.equal(heads[0], alone)
    sum(head.square().mean() for head in heads).backward()
    assert _idle(network) == [] and all(network.get_parameter(n).grad is not None for n in frozen)


@EVERY
@pytest.mark.parametrize("size", [(64, 64), (50, 37)], ids=str)
def test_image_of_any_size(name, size):
    network = build(name, deep_supervision=True).eval()
    x = torch.randn(1, 2, *size)
    with torch.no_grad():
        logits = network(x)
    assert logits.shape == (1, 3, *size)


@EVERY
def test_state_dict_there_and_back(name, tmp_path):
    network, other = build(name, deep_supervision=True).eval(), build(name).eval()
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    weights = torch.load(tmp_path / "model.pt", weights_only=True)
    other.load_state_dict(weights)  # the heads of deep supervision are there either way
    x = torch.randn(1, 2, *ROI)
    with torch.no_grad():
        assert torch.equal(network(x), other(x))


@EVERY
@torch.no_grad()
def test_copies_are_independent(name):
    network, x = build(name).eval(), torch.randn(1, 2, *ROI)
    expected = network(x)
    twin = pickle.loads(pickle.dumps(copy.deepcopy(network)))
    assert torch.equal(twin(x), expected)
    for parameter in twin.parameters():
        parameter.zero_()
    assert torch.equal(network(x), expected) and not torch.equal(twin(x), expected)


@EVERY
@torch.no_grad()
def test_metadata_stays(name):
    network, x = build(name).eval(), torch.randn(1, 2, *ROI)
    y = network(MetaTensor(x, meta={"name": "a"}))
    assert isinstance(y, MetaTensor) and y.meta["name"] == "a" and torch.equal(y.as_tensor(), network(x))


@EVERY
def test_wrong_input(name):
    network = build(name).eval()
    for shape in [(2, 8, 8), (1, 1, 8, 8), (1, 2, 0, 8), (1, 2, 8, 0), (0, 2, 8, 8), (1, 2, 8, 8, 8)]:
        with pytest.raises(ValueError) as error:
            network(torch.zeros(shape))
        assert str(error.value) == f"expected an input of shape (b, 2, h, w), got {shape}."


def test_wrong_name():
    with pytest.raises(ValueError, match=r"^network_name must be one of nnUNet, .*, got 'UNet'\.$"):
        build_network("UNet", in_channels=1, out_channels=2, roi_size=ROI)
    with pytest.raises(ValueError, match="a switch must be True or False, got 'no'"):
        build_network("nnUNet", in_channels=1, out_channels=2, roi_size=ROI, deep_supervision="no")


@pytest.mark.parametrize("switch", [True, "True", "true", False, "False", "false"])
def test_deep_supervision_as_text(switch):
    """As the command line hands it over."""
    output = build("nnUNet", deep_supervision=switch).train()(torch.randn(2, 2, *ROI))
    assert isinstance(output, list) == (str(switch).lower() == "true")


@pytest.mark.parametrize("roi_size", [(64,), (64, 0), (64, 64, 64), (64, 2.5)], ids=str)
def test_wrong_roi_size(roi_size):
    with pytest.raises(ValueError, match="roi_size must be two positive integers"):
        build_network("SegResNet", in_channels=1, out_channels=2, roi_size=roi_size)


def test_a_script_is_refused_with_the_command_and_a_trace_is_not():
    small = {"depths": (1, 1, 1, 1), "decoder_depths": (1, 1, 1), "feature_size": 8, "d_state": 4}
    net = build_network("SwinUMambaD", in_channels=1, out_channels=2, roi_size=(32, 32), **small)
    with pytest.raises(InputError, match=r'--use_trace True --input_shape "\[1,1,64,64\]" to ckpt_export'):
        torch.jit.script(net)
    image = torch.rand(1, 1, 32, 32)
    torch.testing.assert_close(torch.jit.trace(net.eval(), image)(image), net(image))


def test_what_monai_leaves_as_it_was_is_said(tmp_path, caplog):
    """``monai.bundle.load(..., model=net)`` of a bundle with another number of classes loads what fits."""
    small = {"feature_size": 4, "depths": (1, 1, 1, 1), "decoder_depths": (1, 1, 1), "d_state": 2}
    saved, same, other = SwinUMambaD(1, 3, **small), SwinUMambaD(1, 3, **small), SwinUMambaD(1, 5, **small)
    (tmp_path / "mine" / "models").mkdir(parents=True)
    torch.save(saved.state_dict(), tmp_path / "mine" / "models" / "model.pt")
    load = partial(monai.bundle.load, "mine", bundle_dir=tmp_path, device="cpu")
    load(model=same)
    records = [record for record in caplog.records if record.name.startswith("swinumamba")]
    assert not records
    for name, tensor in same.state_dict().items():
        assert torch.equal(tensor, saved.state_dict()[name])
    load(model=other)
    shapes = {name: tensor.shape for name, tensor in saved.state_dict().items()}
    different = [name for name, tensor in other.state_dict().items() if tensor.shape != shapes.get(name)]
    (record,) = (record for record in caplog.records if record.name.startswith("swinumamba"))
    assert different and record.getMessage().startswith(f"{len(different)} of {len(shapes)} tensors stay as they were")
    assert different[0] in record.getMessage()
    load(model=SwinUMambaD(3, 3, **small))  # for images of other channels
    encoder = {name: tensor for name, tensor in saved.state_dict().items() if name.startswith("vssm_encoder.")}
    torch.save(encoder, tmp_path / "mine" / "models" / "model.pt")
    load(model=same)
    assert len([record for record in caplog.records if record.name.startswith("swinumamba")]) == 3
    assert f"of {len(shapes)} tensors stay" in caplog.records[-1].getMessage()


@pytest.mark.parametrize("change", [{"depths": (1, 1, 1, 2)}, {"d_state": 3}, {"feature_size": 8}], ids=str)
def test_monai_does_not_load_a_part_of_another_network(tmp_path, change):
    """``--pretrained`` refuses such a file as well."""
    small = {"feature_size": 4, "depths": (1, 1, 1, 1), "decoder_depths": (1, 1, 1), "d_state": 2}
    saved, other = SwinUMambaD(1, 3, **small), SwinUMambaD(1, 3, **{**small, **change})
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    (tmp_path / "mine" / "models").mkdir(parents=True)
    torch.save(saved.state_dict(), tmp_path / "mine" / "models" / "model.pt")
    with pytest.raises(ValueError, match=r"tensors would stay as they were.*make the network that the weights are of"):
        monai.bundle.load("mine", model=other, bundle_dir=tmp_path, device="cpu")
    for name, tensor in other.state_dict().items():
        assert torch.equal(tensor, before[name])
    other.load_state_dict(other.state_dict())  # which changes nothing, as in every module
    other.load_state_dict({"decoder.seg_layers.0.bias": torch.ones(3)}, strict=False)
    assert other.decoder.seg_layers[0].bias.tolist() == [1, 1, 1]
