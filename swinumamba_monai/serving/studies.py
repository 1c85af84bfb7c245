# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""The folder of images and labels of the annotation server, out of which no name of a client leads."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable
from pathlib import Path

from swinumamba_monai.errors import InputError, listed
from swinumamba_monai.serving.start import LABELS, OWN_FILES, stand_in_for_torchvision

stand_in_for_torchvision()

from fastapi import HTTPException  # noqa: E402
from monailabel.datastore.local import LocalDatastore  # noqa: E402

logger = logging.getLogger(__name__)
# Methods that read or change the list of images, which one thread at a time may do
IN_TURN = (
    "_init_from_datastore_file", "datalist", "get_image_info", "get_image_uri", "get_label_info", "get_label_uri",
    "get_labeled_images", "get_labels_by_image_id", "get_unlabeled_images", "json", "list_images", "refresh", "status",
    "update_image_info", "update_label_info",
)  # fmt: skip


def _in_turn(method: Callable) -> Callable:
    @functools.wraps(method)
    def call(self: Studies, *args: object, **kwargs: object) -> object:
        with self.turn:
            return method(self, *args, **kwargs)

    return call


class Studies(LocalDatastore):
    """MONAI Label's local datastore; it changes no files of a name that is one of a link, a folder or its own files.

    A link would lead it out of the studies folder; of an image called "labels" it would remove all labels. The server
    uses it, and so do the processes in which it predicts or trains. MONAI Label looks after the folder in a thread of
    its own: here that thread takes turns with the requests, and does not end for what it cannot read.
    """

    def __init__(self, check_label: Callable[[str, str, dict], None], *args: object, **options: object) -> None:
        """As MONAI Label's, with what refuses a label, InputError: of both paths, and what is said of the label."""
        self.check_label = check_label
        self.turn = threading.RLock()
        self.left_out: set[str] = set()
        super().__init__(*args, **options)

    @_in_turn
    def add_image(self, image_id: str, image_filename: str, image_info: dict) -> str:
        """As MONAI Label's, and its labels stay listed; HTTPException 403 for a name that is not to be touched."""
        self._check_files(image_id or self._to_id(Path(image_filename).name)[0], of_image=True)
        image_id = super().add_image(image_id, image_filename, image_info)
        self.refresh()  # MONAI Label forgets them, though their files are there, until it starts again
        return image_id

    @_in_turn
    def remove_image(self, image_id: str) -> None:
        """As MONAI Label's, and off the list at once; HTTPException 403 for a name that is not to be touched."""
        self._check_files(image_id, of_image=True)
        super().remove_image(image_id)
        self.refresh()

    @_in_turn
    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict) -> str:
        """As MONAI Label's, in the place of the label before; HTTPException 403 for a name that is not to be touched.

        Raises:
            InputError: the label cannot be trained on; the one before is as it was.
        """
        self._check_files(image_id, of_image=False)
        if image := self.get_image_uri(image_id):
            try:
                self.check_label(image, label_filename, label_info)
            except InputError as error:  # which names the server's copy of what was sent
                raise InputError(f"Not saved: {str(error).replace(label_filename, 'the label')}") from error
        label_id = super().save_label(image_id, label_filename, label_tag, label_info)
        saved = Path(self.get_label_uri(image_id, label_tag))
        for path in saved.parent.iterdir():  # with another ending it would come back when this one is removed
            if self._to_id(path.name)[0] == image_id and not path.samefile(saved):
                path.unlink()
        return label_id

    @_in_turn
    def remove_label(self, label_id: str, label_tag: str) -> None:
        """As MONAI Label's, and off the list at once; HTTPException 403 for a name that is not to be touched."""
        self._check_files(label_id, of_image=False)
        super().remove_label(label_id, label_tag)
        self.refresh()

    def _reconcile_datastore(self) -> None:
        """As MONAI Label's, which leaves files out in silence: here the log names them, each once."""
        super()._reconcile_datastore()
        served = {self._filename(name, entry.image.ext) for name, entry in self._datastore.objects.items()}
        there = {path.name for path in Path(self._datastore_path).iterdir() if not path.name.startswith(".")}
        if new := sorted(there - served - OWN_FILES - {LABELS} - self.left_out):
            self.left_out.update(new)
            logger.warning(
                "Not served of %s: %s. Served are files that end in %s, and of one name with several endings one.",
                self._datastore_path,
                listed(new),
                ", ".join(extension.lstrip("*") for extension in self._extensions),
            )

    def _on_any_event(self, event: object) -> None:
        try:
            super()._on_any_event(event)
        except Exception:
            logger.warning("The studies folder could not be looked through; it will be when it changes.", exc_info=True)

    def _check_files(self, name: str, of_image: bool) -> None:
        """Refuse a name whose image, if it is of one, or whose labels are to stay as they are."""
        studies = Path(self._datastore_path)
        labels = studies / LABELS
        tags = [path for path in labels.glob("*") if path.is_dir()]
        start = f"{name}.".casefold()  # some file systems tell no case
        found = [
            path
            for folder in [studies] * of_image + tags
            for path in folder.iterdir()
            if f"{path.name}.".casefold().startswith(start)
        ]
        links = any(path.is_symlink() for path in [labels, *tags])
        if links or any(path.is_symlink() or path.is_dir() or path.name in OWN_FILES for path in found):
            raise HTTPException(status_code=403, detail="links, folders and the server's own files stay as they are.")


for _name in IN_TURN:
    setattr(Studies, _name, _in_turn(getattr(LocalDatastore, _name)))
