# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""Exported networks take every size and compute what eager ones do.

Tolerance: float32 sums of other orders through some ten layers differ by about 1e-5 where logits are about 1.
"""

from __future__ import annotations

import copy
import json
import logging
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from small_weights import without_early_blocks

from swinumamba_monai import export
from swinumamba_monai.cli import main
from swinumamba_monai.errors import InputError
from swinumamba_monai.export import make_program
from swinumamba_monai.networks import SwinUMamba, SwinUMambaD, UMambaBot, build_network
from swinumamba_monai.networks.base import BaseNetwork
from swinumamba_monai.ops import selective_scan
from swinumamba_monai.ops.reference import selective_scan_ref
from swinumamba_monai.tasks import TASKS

NETWORKS = {"SwinUMambaD": SwinUMambaD, "SwinUMamba": SwinUMamba}
TOLERANCE = {"rtol": 0, "atol": 1e-4}
SMALL = {  # options of a bundle
    "network_def#feature_size": 8,
    "network_def#depths": [1, 1, 1, 1],
    "network_def#decoder_depths": [1, 1, 1],
}
needs_export = pytest.mark.skipif(not hasattr(torch.compiler, "is_exporting"), reason="needs torch 2.7 or later")


@pytest.fixture(scope="module")
def network_of():
    def build(name: str):
        torch.manual_seed(0)
        decoder = {"decoder_depths": (1, 1, 1)} if name == "SwinUMambaD" else {}
        return NETWORKS[name](2, 3, depths=(1, 1, 1, 1), feature_size=8, d_state=3, **decoder).eval()

    return {name: build(name) for name in NETWORKS}


@pytest.fixture(scope="module")
def thin_of(network_of):
    return {name: without_early_blocks(copy.deepcopy(network)) for name, network in network_of.items()}


@pytest.fixture(scope="module")
def program_of(thin_of):
    return cache(lambda name: make_program(thin_of[name]))


def random_images(smallest: int, channels: int = 2) -> list[torch.Tensor]:
    """Random sizes, and those where the padding is none or all but one pixel."""
    generator = torch.Generator().manual_seed(1)
    sizes = torch.randint(smallest, 150, (4, 2), generator=generator).tolist()
    sizes += [(64, 64), (65, 96), (smallest, 128)]
    return [torch.randn(1, channels, *size, generator=generator) for size in sizes]


@pytest.mark.parametrize("name", NETWORKS)
class TestNetworks:
    def test_torchscript(self, name, network_of, tmp_path):
        net, path = network_of[name], tmp_path / "model.ts"
        with torch.no_grad():
            traced = torch.jit.trace(net, torch.rand(1, 2, 64, 64), check_trace=False)
            assert "swinumamba::" not in str(traced.inlined_graph)  # it loads without this package
            traced.save(path)
            loaded = torch.jit.load(path)
            for x in [*random_images(1), torch.randn(3, 2, 40, 50)]:
                torch.testing.assert_close(loaded(x), net(x), **TOLERANCE)

    @needs_export
    def test_program(self, name, thin_of, program_of, tmp_path, uncached_shapes):
        torch.export.save(program_of(name), tmp_path / "model.pt2")
        loaded = torch.export.load(tmp_path / "model.pt2").module()
        with torch.no_grad():
            for x in random_images(33):
                torch.testing.assert_close(loaded(x), thin_of[name](x), **TOLERANCE)

    @needs_export
    def test_onnx(self, name, thin_of, program_of, tmp_path, monkeypatch, caplog, uncached_shapes):
        pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra: export)")
        onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra: export)")
        onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra: export)")
        monkeypatch.setattr(export, "make_program", lambda network: program_of(name))  # made once for both tests
        with caplog.at_level(logging.INFO):  # as the command logs
            path = export.export_onnx(thin_of[name], tmp_path / "model.onnx")
        assert [record for record in caplog.records if record.name.startswith(("onnx", "torch.onnx"))] == []
        model = onnx.load(path)
        assert {node.domain for node in model.graph.node} == {""} and not model.functions
        assert count_nodes(model.graph) < 650
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        with torch.no_grad():
            for x in random_images(1):
                (logits,) = session.run(None, {"image": x.numpy()})
                torch.testing.assert_close(torch.from_numpy(logits), thin_of[name](x), **TOLERANCE)


@needs_export
@pytest.mark.parametrize(
    ("name", "options"),
    [("nnUNet", {"base_channels": 4}), ("SegResNet", {"init_filters": 8}), ("UMambaBot", {"base_channels": 4})],
)
def test_programs_of_other_systems_take_other_sizes(name, options):
    """The padding, which all networks share, does not tie a program to the size it was made with."""
    torch.manual_seed(0)
    net = build_network(name, in_channels=2, out_channels=3, roi_size=(64, 64), **options).eval()
    run = make_program(net).module()
    with torch.no_grad():
        for size in ((64, 64), (70, 129), (100, 64)):
            x = torch.randn(1, 2, *size)
            torch.testing.assert_close(run(x), net(x), **TOLERANCE)


PLANNED = [("nnUNet", {}), ("UMambaBot", {"d_state": 2}), ("UMambaEnc", {"d_state": 2})]  # steps of 8 for crops of 32
AROUND_ONE_STEP = [(1, 1), (8, 8), (5, 16), (8, 9), (9, 8), (3, 30), (20, 24)]


def planned_network(name: str, options: dict) -> torch.nn.Module:
    torch.manual_seed(0)
    net = build_network(name, in_channels=2, out_channels=3, roi_size=(32, 32), base_channels=4, **options).eval()
    assert net.step == [8, 8]
    return net


@pytest.mark.parametrize("traced", [(8, 8), (16, 24)], ids=str)
@pytest.mark.parametrize(("name", "options"), PLANNED)
def test_traces_keep_the_second_pixel_of_small_images(name, options, traced):
    """An image of one pixel of the coarsest map gets another; a trace of such an image, or of a larger one, tells."""
    net = planned_network(name, options)
    with torch.no_grad():
        loaded = torch.jit.trace(net, torch.rand(1, 2, *traced), check_trace=False)
        for size in AROUND_ONE_STEP:
            x = torch.randn(2, 2, *size)
            torch.testing.assert_close(loaded(x), net(x), **TOLERANCE)


@needs_export
def test_onnx_keeps_the_second_pixel_of_small_images(tmp_path):
    """Also where ONNX Runtime rewrites the arithmetic of sizes."""
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra: export)")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra: export)")
    net = planned_network("nnUNet", {})
    path = export.export_onnx(net, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        for size in AROUND_ONE_STEP:
            x = torch.randn(1, 2, *size)
            (logits,) = session.run(None, {"image": x.numpy()})
            torch.testing.assert_close(torch.from_numpy(logits), net(x), **TOLERANCE)


def test_a_traced_nnformer_takes_several_images():
    torch.manual_seed(0)
    small = {"feature_size": 8, "num_heads": (1, 1, 1, 1), "depths": (2, 1, 1, 1)}
    net = build_network("NNFormer", in_channels=2, out_channels=3, roi_size=(64, 64), **small).eval()
    with torch.no_grad():
        loaded = torch.jit.trace(net, torch.rand(1, 2, 64, 64), check_trace=False)
        for size in ((1, 2, 64, 64), (3, 2, 50, 70)):
            x = torch.randn(size)
            torch.testing.assert_close(loaded(x), net(x), **TOLERANCE)


@needs_export
def test_programs_of_large_steps_take_other_sizes():
    """As those of nnU-Net's plan for crops of 512, 128 pixels: an example of one step would hold the program to it."""
    torch.manual_seed(0)
    net = UMambaBot(2, 3, strides=(1, 128), base_channels=2, d_state=2).eval()
    run = make_program(net).module()
    with torch.no_grad():
        for size in ((129, 140), (400, 300)):
            x = torch.randn(1, 2, *size)
            torch.testing.assert_close(run(x), net(x), **TOLERANCE)


@needs_export
def test_a_program_of_some_sizes_alone_is_refused():
    class Tall(BaseNetwork, torch.nn.Conv2d):
        step = (8, 8)

        def logits(self, x, all_heads):
            heads = torch.nn.Conv2d.forward(self, x)
            return [heads if x.shape[2] > x.shape[3] else -heads]

    with pytest.raises(InputError, match=r"^torch.export cannot follow Tall at any size \(.*\); TorchScript can"):
        make_program(Tall(2, 3, 1).eval())


@needs_export
def test_a_network_of_one_size_is_refused():
    small = {"hidden_size": 12, "mlp_dim": 8, "num_heads": 2}
    net = build_network("UNETR", in_channels=2, out_channels=3, roi_size=(128, 128), **small)
    with pytest.raises(InputError, match=r"cannot follow UNETR at any size \(.* up to 128×128.*\); TorchScript"):
        make_program(net.eval())


def count_nodes(graph) -> int:
    return sum(1 + sum(count_nodes(a.g) for a in node.attribute if a.HasField("g")) for node in graph.node)


def scan_inputs(length: int, scale: float, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """u, delta, A, B, C, D and delta_bias of two groups, as the scan of a sequence takes them."""
    generator = torch.Generator().manual_seed(length)
    shapes = (2, 6, length), (2, 6, length), (6, 4), (2, 2, 4, length), (2, 2, 4, length), (6,), (6,)
    u, delta, A, B, C, D, bias = (torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)
    return u, scale * delta, -A.exp(), B, C, D, bias


def expected(u, delta, A, B, C, D, bias):
    return selective_scan_ref(u, delta, A, B, C, D, delta_bias=bias, delta_softplus=True)


@pytest.mark.parametrize("scale", [1, 300], ids=["usual", "steps of hundreds"])
class TestScan:
    def test_traced_takes_other_lengths(self, scale):
        def scan(u, delta, A, B, C, D, bias):
            return selective_scan(u, delta, A, B, C, D, delta_bias=bias, delta_softplus=True)

        traced = torch.jit.trace(scan, scan_inputs(5, scale, torch.float64), check_trace=False)
        for length in (1, 63, 64, 65, 200):
            inputs = scan_inputs(length, scale, torch.float64)
            torch.testing.assert_close(traced(*inputs), expected(*inputs), rtol=1e-10, atol=1e-10)

    def test_onnx(self, scale):
        pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra: export)")
        onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra: export)")
        from swinumamba_monai.ops.export.onnx import SelectiveScan

        session = onnxruntime.InferenceSession(SelectiveScan.to_model_proto().SerializeToString())
        for length in (1, 63, 64, 65, 200):
            u, delta, A, B, C, D, bias = inputs = scan_inputs(length, scale, torch.float32)
            to_positions = [t.unflatten(1, (2, 3)).permute(0, 3, 1, 2) for t in (u, delta)]
            by_group = [t.unflatten(0, (2, 3)) for t in (A, D, bias)]
            arrays = [*to_positions, by_group[0], B.permute(0, 3, 1, 2), C.permute(0, 3, 1, 2), *by_group[1:]]
            names = [i.name for i in session.get_inputs()]
            (y,) = session.run(None, {n: np.ascontiguousarray(a.numpy()) for n, a in zip(names, arrays)})
            y64 = expected(*(t.double() for t in inputs))
            actual = torch.from_numpy(y).flatten(2).transpose(1, 2).double()
            # float32 against float64: rounding relative to the largest value
            torch.testing.assert_close(actual, y64, rtol=0, atol=1e-5 * float(y64.abs().max()))


class TestCommand:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"--config_file": "no.json"}, "no config file no.json"),
            ({"--ckpt_file": "no.pt"}, "no checkpoint file no.pt"),
            ({"--set": "feature_size=8"}, "--feature_size is no option of this config"),
            ({"--set": "num_classes"}, "--set takes NAME=VALUE"),
            ({"--set": "num_classes=3", "--config_file": "no.json"}, "no config file no.json"),
            ({"--set": "num_classes=3", "--num_classes": "3"}, "--num_classes and --set num_classes are both given"),
            ({"--filepath": "model.bin"}, "must end in .pt2"),
            ({"--filepath": "nowhere/model.pt2"}, "no folder nowhere"),
        ],
    )
    def test_bad_input_is_one_sentence(self, tmp_path, capsys, monkeypatch, network_of, options, words):
        monkeypatch.chdir(tmp_path)
        arguments = {**self.write_bundle(tmp_path, network_of), "--filepath": "model.pt2", **options}
        assert main(["export", "program", *(word for pair in arguments.items() for word in pair)]) == 1
        error = capsys.readouterr().err
        assert error.splitlines()[-1].startswith("error: ") and words in error.splitlines()[-1]
        assert not (tmp_path / "model.pt2").exists()

    @needs_export
    def test_program(self, tmp_path, monkeypatch, capsys):
        """Of nnU-Net, because that takes seconds; programs of the others are made above."""
        monkeypatch.chdir(tmp_path)
        torch.manual_seed(0)
        network = build_network("nnUNet", in_channels=2, out_channels=3, roi_size=(64, 32), base_channels=4).eval()
        torch.save(network.state_dict(), "model.pt")
        definition = {"_target_": "swinumamba_monai.networks.build_network", "name": "@network_name"}
        definition |= {"in_channels": "@in_channels", "out_channels": "@num_classes", "roi_size": "@roi_size"}
        config = {"network_name": "SwinUMambaD", "in_channels": 2, "num_classes": 3, "roi_size": [64, 64]}
        config["network_def"] = definition
        Path("inference.json").write_text(json.dumps(config))
        arguments = {"--config_file": "inference.json", "--ckpt_file": "model.pt", "--filepath": "model.pt2"}
        arguments["--network_name"] = "nnUNet"
        words = [*(word for pair in arguments.items() for word in pair), "--roi_size", "64", "32"]
        words += ["--set", "network_def#base_channels=4", "in_channels=2"]
        assert main(["export", "program", *words]) == 0
        assert "ready: model.pt2" in capsys.readouterr().out
        x = torch.rand(1, 2, 50, 77)
        with torch.no_grad():
            actual = torch.export.load("model.pt2").module()(x)
            torch.testing.assert_close(actual, network(x), **TOLERANCE)

    @staticmethod
    def write_bundle(folder, network_of) -> dict[str, str]:
        (folder / "inference.json").write_text(
            '{"in_channels": 2, "num_classes": 3, "network_def": {"_target_": "swinumamba_monai.networks.SwinUMamba",'
            ' "in_channels": "@in_channels", "out_channels": "@num_classes", "depths": [1, 1, 1, 1],'
            ' "feature_size": 8, "d_state": 3}}'
        )
        torch.save(network_of["SwinUMamba"].state_dict(), folder / "model.pt")
        return {"--config_file": "inference.json", "--ckpt_file": "model.pt"}


# In an interpreter that does not import this package: how each folder's file differs from its network, or nothing.
COMPARE = """
import json, sys, torch
differences = []
for folder in sys.argv[1:]:
    try:
        x, y = torch.load(f"{folder}/pair.pt")
        torch.testing.assert_close(torch.jit.load(f"{folder}/model.ts")(x), y, rtol=0, atol=1e-4)
        differences.append("")
    except Exception as error:
        differences.append(f"{folder}: {error!r}")
assert "swinumamba_monai" not in sys.modules
print(json.dumps(differences))
"""


def export_by_monai(bundle: str, folder: Path) -> None:
    """Write ``model.ts`` of a small network with MONAI's own command, and ``pair.pt``, what it takes and gives."""
    from monai.bundle import ConfigParser, ckpt_export

    root = f"{__file__.rsplit('/tests/', 1)[0]}/bundles/{bundle}"
    parser = ConfigParser()
    parser.read_config(f"{root}/configs/inference.json")
    parser.update(SMALL)
    net = parser.get_parsed_content("network_def").eval()
    torch.save(net.state_dict(), folder / "model.pt")
    ckpt_export(
        net_id="network_def",
        filepath=str(folder / "model.ts"),
        ckpt_file=str(folder / "model.pt"),
        config_file=f"{root}/configs/inference.json",
        bundle_root=root,
        use_trace=True,
        input_shape=[1, net.in_channels, 64, 64],
        **SMALL,
    )
    x = torch.rand(2, net.in_channels, 45, 99)
    with torch.no_grad():
        torch.save((x, net(x)), folder / "pair.pt")


@pytest.fixture(scope="module")
def differences(tmp_path_factory) -> dict[str, str]:
    """What :data:`COMPARE` says of each bundle; one interpreter, because importing torch is most of its time."""
    folders = {task: tmp_path_factory.mktemp(task) for task in TASKS}
    for task, folder in folders.items():
        export_by_monai(task, folder)
    line = [sys.executable, "-c", COMPARE, *map(str, folders.values())]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(zip(folders, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("bundle", TASKS)
def test_ckpt_export_of_the_bundles(bundle, differences):
    """MONAI's own command; the file loads in a process that does not import this package."""
    assert not differences[bundle]


@needs_export
def test_onnx_export_of_monai_names_our_command(tmp_path):
    """With one sentence, in the place of ninety lines about an operator without a translation."""
    pytest.importorskip("onnxscript")
    from monai.bundle import ConfigParser

    root = f"{__file__.rsplit('/tests/', 1)[0]}/bundles/microscopy"
    parser = ConfigParser()
    parser.read_config(f"{root}/configs/inference.json")
    parser.update(SMALL)
    torch.save(parser.get_parsed_content("network_def").state_dict(), tmp_path / "model.pt")
    command = f"--config_file {root}/configs/inference.json --bundle_root {root} --net_id network_def"
    command += f" --ckpt_file {tmp_path}/model.pt --filepath {tmp_path}/model.onnx --input_shape [1,3,64,64]"
    small = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]
    line = [sys.executable, "-m", "monai.bundle", "onnx_export", *command.split(), *small]
    # no fork, whose networks were imported before there was a command to ask for
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "use python -m swinumamba_monai export onnx" in done.stderr.splitlines()[-1]
