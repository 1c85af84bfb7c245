# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""What MONAI's model zoo asks of a bundle (``ci/verify_bundle.py`` there), and a run of it on an image.

The checks run the bundle's configs, which are code: verify only bundles that you would run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

import torch
from monai.bundle import ConfigWorkflow, ckpt_export, verify_metadata, verify_net_in_out

from swinumamba_monai.atomic import temporary_folder
from swinumamba_monai.distribution.network_of_config import build_bundle_network, read_bundle_network
from swinumamba_monai.distribution.package import check_version, read_metadata
from swinumamba_monai.errors import InputError, find_input_error
from swinumamba_monai.pretrained import load_pretrained
from swinumamba_monai.tasks import TASKS
from swinumamba_monai.weight_files import find_checkpoint

FILES = ("LICENSE", "docs/README.md", "configs/metadata.json", "configs/train.json", "configs/inference.json")
# Required by meta_schema_20240725.json, which the metadata names; it is not fetched, so that no network is needed.
FIELDS = (
    "schema version monai_version pytorch_version numpy_version required_packages_version task description authors "
    "copyright network_data_format changelog"
).split()
TENSOR_FIELDS = "type format num_channels spatial_shape dtype value_range".split()


@dataclass
class _Bundle:
    """A bundle that is verified, and a folder for what that makes."""

    root: Path
    scratch: Path
    schema_file: str | None
    override: dict = field(default_factory=dict)

    def config(self, name: str) -> str:
        return str(self.root / "configs" / f"{name}.json")

    def checkpoint(self) -> str:
        """The bundle's weights as MONAI's exporter reads them; random ones for a bundle that has none."""
        path = self.scratch / "model.pt"
        if not path.exists():
            network = build_bundle_network(self.config("inference"), self.override)
            weights = Path(find_checkpoint(self.root / "models"))
            if weights.is_file():
                load_pretrained(network, weights, strict=True)
            torch.save(network.state_dict(), path)
        return str(path)

    def dataset_dir(self) -> str:
        config = Path(self.config("inference")).read_text(encoding="utf-8")
        tasks = [task for name, task in TASKS.items() if f"'{name}'" in config]  # as dataset_dir_or_synthetic takes it
        if len(tasks) != 1:
            raise InputError(
                f"{self.config('inference')} must name one of the tasks {', '.join(TASKS)}, in "
                "dataset_dir_or_synthetic, whose images it is run on."
            )
        (task,) = tasks
        folder = self.scratch / "data"
        if not folder.exists():
            task.synthesize(folder, num_train=2, num_validation=1, num_test=1, **task.small_data)
        return str(folder)

    def workflow(self, name: str, run_id: str, **override) -> ConfigWorkflow:
        """A workflow of the bundle that is ready to run and writes to the scratch folder."""
        workflow = ConfigWorkflow(
            config_file=self.config(name),
            meta_file=self.config("metadata"),
            run_id=run_id,
            workflow_type=name,
            logging_file=False,
            bundle_root=str(self.scratch),
            **{"dataset_dir": self.dataset_dir(), "num_workers": 0, "device": "$torch.device('cpu')"},
            **{**self.override, **override},
        )
        hook = sys.excepthook
        try:
            workflow.initialize()
        finally:
            sys.excepthook = hook
        return workflow


def verify_bundle(
    bundle_dir: str | PathLike, schema_file: str | None = None, override: Mapping[str, object] | None = None
) -> Iterator[tuple[str, str | None]]:
    """Run every check, also after one has failed; nothing is written into the bundle.

    Args:
        bundle_dir: folder of the bundle.
        schema_file: file of the schema that the metadata names; needs the package ``jsonschema``.
            Without it the presence and kind of the required fields are checked.
        override: id-value pairs for its configs, such as a smaller network.

    Yields:
        what was checked, and None or a sentence on what is wrong.
    """
    root = Path(bundle_dir).resolve()
    with temporary_folder("verify") as scratch:
        bundle = _Bundle(root, scratch, schema_file, dict(override or {}))
        for name, check in _CHECKS.items():
            try:
                check(bundle)
            except Exception as error:  # a config can fail in any way, and the other checks are still to be made
                yield name, str(find_input_error(error) or f"{type(error).__name__}: {error}")
            else:
                yield name, None


def _check_files(bundle: _Bundle) -> None:
    if missing := [name for name in FILES if not (bundle.root / name).is_file()]:
        raise InputError(f"{bundle.root} lacks {', '.join(missing)}.")


def _check_metadata(bundle: _Bundle) -> None:
    if bundle.schema_file is not None:
        verify_metadata(meta_file=bundle.config("metadata"), filepath=bundle.schema_file)
    metadata = read_metadata(bundle.root)
    missing = [name for name in FIELDS if name not in metadata]
    for side in ("inputs", "outputs"):
        tensors = metadata.get("network_data_format", {}).get(side, {})
        if not tensors:
            missing.append(f"network_data_format#{side}")
        for key, tensor in tensors.items():
            missing += [f"{side}#{key}#{name}" for name in TENSOR_FIELDS if name not in tensor]
    if missing:
        raise InputError(f"{bundle.config('metadata')} lacks {', '.join(missing)}.")
    if not isinstance(metadata.get("supported_apps", {}), dict):
        raise InputError(f'"supported_apps" in {bundle.config("metadata")} must be an object.')


def _check_network(bundle: _Bundle) -> None:
    verify_net_in_out(
        net_id="network_def",
        meta_file=bundle.config("metadata"),
        config_file=bundle.config("inference"),
        device="cpu",
        any=64,
        **bundle.override,
    )


def _check_properties(name: str, run_id: str) -> Callable[[_Bundle], None]:
    def check(bundle: _Bundle) -> None:
        if missing := bundle.workflow(name, run_id).check_properties():
            raise InputError(f"{bundle.config(name)} lacks {', '.join(missing)}.")

    return check


def _check_torchscript(bundle: _Bundle) -> None:
    path = bundle.scratch / "model.ts"
    (image,) = read_metadata(bundle.root)["network_data_format"]["inputs"].values()
    ckpt_export(
        net_id="network_def",
        filepath=str(path),
        ckpt_file=bundle.checkpoint(),
        meta_file=bundle.config("metadata"),
        config_file=bundle.config("inference"),
        use_trace=True,
        input_shape=[1, image["num_channels"], 64, 64],
        **bundle.override,
    )
    network = read_bundle_network(bundle.config("inference"), bundle.checkpoint(), bundle.override)
    x = torch.rand(1, image["num_channels"], 64, 96)
    with torch.inference_mode():
        difference = (torch.jit.load(path)(x) - network(x)).abs().max().item()
    if not difference < 1e-3:
        raise InputError(f"the exported network of {bundle.root} differs from its own by {difference:.2g}.")


def _check_inference(bundle: _Bundle) -> None:
    output = bundle.scratch / "predictions"
    workflow = bundle.workflow("inference", "inference", ckpt_path=bundle.checkpoint(), output_dir=str(output))
    workflow.run()
    workflow.finalize()
    if not any(output.rglob("*")):
        raise InputError(f"inference with {bundle.root} wrote nothing.")


_CHECKS: dict[str, Callable[[_Bundle], object]] = {
    "files": _check_files,
    "version and changelog": lambda bundle: check_version(bundle.root),
    "metadata": _check_metadata,
    "network gives what the metadata says": _check_network,
    "properties of train.json": _check_properties("train", "training"),
    "properties of inference.json": _check_properties("inference", "inference"),
    "TorchScript export": _check_torchscript,
    "inference on an image": _check_inference,
}
