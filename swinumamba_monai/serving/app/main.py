# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The app that MONAI Label loads: one bundle, written and trained as on the command line."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from monai.transforms import SaveImaged
from PIL import Image

from swinumamba_monai.serving.start import stand_in_for_torchvision

stand_in_for_torchvision()  # before the first import that needs it, in the server and in the processes that train

from monailabel.config import settings  # noqa: E402
from monailabel.interfaces.app import MONAILabelApp  # noqa: E402
from monailabel.interfaces.datastore import Datastore  # noqa: E402
from monailabel.tasks.activelearning.first import First  # noqa: E402
from monailabel.tasks.activelearning.random import Random  # noqa: E402
from monailabel.tasks.infer.bundle import BundleInferTask  # noqa: E402
from monailabel.tasks.train.bundle import BundleTrainTask  # noqa: E402
from monailabel.transform.writer import PolygonWriter  # noqa: E402
from monailabel.utils.others.generic import name_to_device  # noqa: E402
from monailabel.utils.others.label_colors import get_color  # noqa: E402

from swinumamba_monai.data import read_image  # noqa: E402
from swinumamba_monai.data.files.images import is_image_file  # noqa: E402
from swinumamba_monai.data.files.label_map import LabelMap  # noqa: E402
from swinumamba_monai.data.prepare import inspection  # noqa: E402
from swinumamba_monai.errors import InputError  # noqa: E402
from swinumamba_monai.inference import ClassesToInstancesd, geojson  # noqa: E402
from swinumamba_monai.inference.polygons import CELL, class_names  # noqa: E402
from swinumamba_monai.instances import FlowsToInstancesd  # noqa: E402
from swinumamba_monai.serving.annotations import elements, read_asap  # noqa: E402
from swinumamba_monai.serving.requests import TRAINING, check_device, check_fields, check_segments  # noqa: E402
from swinumamba_monai.serving.studies import Studies  # noqa: E402
from swinumamba_monai.training import autocast_dtype, default_amp  # noqa: E402

# Folder in the server's own copy of this one, which goes when the server ends.
RESULTS = Path(__file__).parent / "results"
SENT = 60  # seconds after which a folder without a file is not one that is about to get it

LAST_CHECKPOINT = "label_checkpoint.pt"
DATASTORE_OPTIONS = ("auto_reload", "read_only")  # options among MONAI Label's settings


def _new_folder() -> str:
    """A folder for one answer; those whose file the server has sent and removed go."""
    RESULTS.mkdir(exist_ok=True)
    for folder in RESULTS.iterdir():
        with suppress(OSError):  # one that is not empty
            if time.time() - folder.stat().st_mtime > SENT:
                folder.rmdir()
    return tempfile.mkdtemp(dir=RESULTS)


def _are_polygons(image: str, label: str) -> bool:
    return label.lower().endswith(".xml") and is_image_file(Path(image))  # of volumes there are none


class InferTask(BundleInferTask):
    """A bundle's inference, with its own way back to the image's grid and its own writer.

    MONAI Label's would resize a prediction and write 2D files with rows and columns swapped.
    """

    def __init__(self, bundle: str, conf: dict) -> None:
        super().__init__(bundle, conf, add_post_restore=False, load_strict=True)
        transforms = self.bundle_config.get_parsed_content("postprocessing").transforms
        self.saver = next(t for t in transforms if isinstance(t, SaveImaged) and self.key_pred in t.keys)
        self.need = self.bundle_config.get_parsed_content("memory") if "memory" in self.bundle_config else None
        if any(isinstance(transform, ClassesToInstancesd | FlowsToInstancesd) for transform in transforms):
            self.names, self.labels = None, {CELL: 1}
        else:
            metadata, model = Path(bundle) / "configs" / "metadata.json", Path(bundle) / "models" / "model.pt"
            self.names = class_names(metadata, self.bundle_config.get_parsed_content("num_classes"), model)
            self.labels = {name: number for number, name in self.names.items()}

    def pre_transforms(self, data: dict | None = None) -> Sequence[Callable]:
        """Those of the bundle; an image that would not fit into memory is refused as soon as it is read."""
        load, *others = super().pre_transforms(data)
        return [load, *([self.check_memory] if self.need else []), *others]

    def check_memory(self, data: dict) -> dict:
        """The data as they are, of which the image has been read."""
        image = data[self.key_image]
        self.need.check("the image", image, image.meta)
        return data

    def run_inferer(self, data: dict, convert_to_batch: bool = True, device: str = "cuda") -> dict:
        """In the precision of the command line."""
        place = torch.device(device)
        dtype = autocast_dtype(default_amp(place), place)
        with torch.autocast(place.type, dtype=dtype, enabled=dtype is not None):
            return super().run_inferer(data, convert_to_batch, device)

    def writer(self, data: dict, extension: str | None = None, dtype: object = None) -> tuple[str, dict]:
        """The path of the file, and the polygons of a 2D prediction: as GeoJSON, and as MONAI Label's plugins do."""
        prediction = data[self.key_pred]
        result = {}
        if prediction.ndim == 3:
            polygons = geojson(prediction[0].cpu().numpy().astype(int), self.names)
            found = elements(polygons)
            colours = {element["label"]: get_color(element["label"], None) for element in found}
            annotation = {"annotation": {"elements": found, "labels": colours}}
            result = {"polygons": polygons, "annotations": [annotation]}  # which the plugin for CVAT reads
            if data.get("output") == "asap":  # which the extension for QuPath asks for
                return PolygonWriter()({**data, "result": annotation})[0], result
        save = self.saver.saver
        save.folder_layout.output_dir = _new_folder()
        save(prediction)
        (path,) = Path(save.folder_layout.output_dir).iterdir()
        return str(path), result


class TrainTask(BundleTrainTask):
    """A bundle's training on the labels that were saved, going on from ``model.pt`` unless ``pretrained`` is off.

    Args:
        bundle: its folder.
        conf: options of the server.
        names: names of the classes; None where labels are cells.
    """

    def __init__(self, bundle: str, conf: dict, names: dict[int, str] | None) -> None:
        super().__init__(bundle, conf, load_strict=True)
        self.names = names

    def __call__(self, request: dict, datastore: Datastore) -> dict:
        """What a request says goes into the config: it is checked here too, whoever sent it and by whatever way."""
        device = check_device("device", name_to_device(request.get("device", "cuda")))
        known = {name: value for name, value in request.items() if name in TRAINING}  # the server adds its own
        return super().__call__(check_fields({**known, "device": device}, TRAINING), datastore)

    def _fetch_datalist(self, request: dict, datastore: Datastore) -> list[dict]:
        """The labels as images, those too that are polygons; each is decoded and held against its image first."""
        items = super()._fetch_datalist(request, datastore)
        self.folder = tempfile.TemporaryDirectory(dir=RESULTS.parent)  # until the next training
        for number, item in enumerate(items):
            for key, path in item.items():
                if "#" in path:  # which a config takes for a place in itself
                    ending = "".join(suffix for suffix in Path(path).suffixes[-2:] if "#" not in suffix)
                    item[key] = shutil.copy(path, f"{self.folder.name}/{key}{number}{ending}")
            if _are_polygons(item["image"], item["label"]):
                numbers = read_asap(item["label"], read_image(item["image"]).shape[:2], self.names)
                item["label"] = f"{self.folder.name}/{number}.png"
                Image.fromarray(numbers).save(item["label"])
        if problems := [problem for problem in inspection.check_pairs(items, self._inspect) if problem]:
            raise InputError(f"{len(problems)} of {len(items)} saved labels cannot be trained on: {' '.join(problems)}")
        return items

    def check_label(self, image: str, label: str, info: dict) -> None:
        """Refuse a label, InputError, that a training would refuse, or learn with its classes exchanged."""
        check_segments(info, self.names or {})
        if _are_polygons(image, label):
            read_asap(label, read_image(image).shape[:2], self.names)
        elif problem := self._inspect(image, label).problem:
            raise InputError(problem)

    def _inspect(self, image: str, label: str) -> inspection.PairReport:
        """As the bundle's own training does it: MONAI Label takes whatever it is sent for a label."""
        if self.names is None:
            return inspection.inspect_cells(image, label)
        classes = LabelMap.of_names(map(str, range(self.bundle_config["num_classes"])))
        if is_image_file(Path(image)):
            return inspection.inspect_frames(image, label, classes)
        channels, nan = (self.bundle_config[name] for name in ("in_channels", "nan"))
        return inspection.inspect_volumes(image, label, classes, channels, nan)

    def _load_checkpoint(self, model_pytorch: str, pretrained: bool, train_handlers: list) -> None:
        if pretrained:  # MONAI Label's own cannot do without
            super()._load_checkpoint(model_pytorch, pretrained, train_handlers)

    def _update_overrides(self, overrides: dict) -> dict:
        if not (train := overrides[self.const.key_train_dataset_data()]):
            raise InputError("there are no labels to train on; save some first, and more than val_split takes.")
        if not overrides.get(self.const.key_validate_dataset_data()):
            overrides[self.const.key_validate_dataset_data()] = train
        overrides["device"] = f"$torch.device('{check_device('device', overrides['device'])}')"
        overrides["dataset_dir"] = str(Path(train[0]["image"]).parent)
        overrides["checkpoint#last_name"] = LAST_CHECKPOINT
        overrides["checkpoint#overwrite"] = True
        (Path(self.bundle_path) / "models" / LAST_CHECKPOINT).unlink(missing_ok=True)
        return overrides


class BundleApp(MONAILabelApp):
    """One bundle under its own name.

    Args:
        app_dir: folder of this file.
        studies: folder of the images.
        conf: has the path "bundle".
    """

    def __init__(self, app_dir: str, studies: str, conf: dict) -> None:
        self.bundle = Path(conf["bundle"])
        metadata = json.loads((self.bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
        super().__init__(
            app_dir, studies, conf, self.bundle.name, metadata["description"], metadata["version"], labels=[]
        )

    def init_datastore(self) -> Datastore:
        """The studies folder, with what MONAI Label's environment variables say of it."""
        options = {name: getattr(settings, f"MONAI_LABEL_DATASTORE_{name.upper()}") for name in DATASTORE_OPTIONS}
        extensions = settings.MONAI_LABEL_DATASTORE_FILE_EXT
        return Studies(self.check_label, self.studies, extensions=extensions, **options)

    def check_label(self, image: str, label: str, info: dict) -> None:
        """Refuse a label, InputError, that the bundle could not be trained on."""
        self.trainer.check_label(image, label, info)

    def init_infers(self) -> dict:
        task = InferTask(str(self.bundle), self.conf)
        self.trainer = TrainTask(str(self.bundle), self.conf, task.names)  # which checks labels where none train, too
        return {self.bundle.name: task}

    def init_trainers(self) -> dict:
        return {self.bundle.name: self.trainer}

    def init_strategies(self) -> dict:
        return {"random": Random(), "first": First()}

    def infer_wsi(self, request: dict, datastore: Datastore | None = None) -> dict:
        """What QuPath asks for: the whole image. MONAI Label would cut a TIFF file into tiles, and lose cells there."""
        return self.infer(request, datastore)
