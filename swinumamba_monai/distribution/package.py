# Copyright (c) the swinumamba_monai authors
# SPDX-License-Identifier: Apache-2.0
"""A bundle as others fetch it: by a URL, from GitHub as ``--source github`` expects it, from Hugging Face.

What is made, for a bundle NAME of version X::

    NAME_vX.zip             everything with the weights, an asset of a release: for ``download``
    NAME_vX_model.pt        the weights alone, another asset: for ``download_large_files``
    NAME_vX_encoder.safetensors  a pretrained encoder, where one is given: an asset for ``download_large_files`` alone
    models/model_info.json  what versions there are, committed at the tag of the release: for ``--source github``
    models/NAME/            everything without the weights, committed beside it, as the model zoo keeps its bundles
    huggingface/NAME/       everything with the weights: for ``push_to_hf_hub``

Archive and folders hold ``large_files.yml``, by which ``download_large_files`` fetches weights or checks their hash.
Links of the pages that lead out of the bundle, into the repository, become their text: no repository lies around it.

MONAI loads ``models/model.pt``, so that is what the weights become, whatever file they come from, in its precision.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch

from swinumamba_monai.atomic import remove_unfinished, write_file, writing_folder
from swinumamba_monai.distribution.archive import read_archive, write_archive
from swinumamba_monai.distribution.network_of_config import read_bundle_network
from swinumamba_monai.errors import InputError, explained
from swinumamba_monai.networks import SwinUMambaD
from swinumamba_monai.networks.encoders import name_encoder
from swinumamba_monai.pretrained import load_pretrained
from swinumamba_monai.run_lock import one_run
from swinumamba_monai.weight_files import find_checkpoint, read_weights

PARTS = ("LICENSE", "configs", "docs")  # parts of a bundle; the rest of its folder is what runs leave there
WEIGHTS = "models/model.pt"
ENCODER_WEIGHTS = "models/encoder.safetensors"
MODEL_INFO = "models/model_info.json"
LARGE_FILES = "large_files.yml"

_DIGEST = re.compile(rb'hash_val: "([0-9a-f]{64})"')
_LINK = re.compile(rb"\[([^\[\]]*)\]\(([^()\s]+)\)")


@dataclass(frozen=True)
class Package:
    """What :func:`package_bundle` made.

    Args:
        archive: zip of the bundle.
        sha256: SHA-256 of the zip, in hexadecimal digits.
        weights: file of the weights alone, or None for a bundle without any.
        encoder: file of the pretrained encoder, or None where none was given.
        huggingface_dir: folder that ``push_to_hf_hub`` takes as ``bundle_dir``.
    """

    archive: Path
    sha256: str
    weights: Path | None
    encoder: Path | None
    huggingface_dir: Path


def package_bundle(
    bundle_dir: str | PathLike,
    output_dir: str | PathLike,
    release_url: str | None = None,
    encoder_weights: str | PathLike | None = None,
) -> Package:
    """Make everything that the module's text lists; nothing is written before all of the bundle is found to be good.

    Args:
        bundle_dir: folder of the bundle; its weights, if it has any, are ``models/model.pt`` or
            ``models/model.safetensors``.
        output_dir: folder to write into, made if needed; other bundles and versions in it stay, and are kept in
            ``model_info.json``. The two folders of an earlier package of this bundle are brought up to date; files
            that no package put there are never replaced or removed.
        release_url: address below which the two assets will lie, such as
            ``https://github.com/OWNER/REPOSITORY/releases/download/TAG``. Without it the files name each other without
            an address.
        encoder_weights: safetensors file of a pretrained encoder to release with the bundle, such as stage 1 or 2 of
            the pretraining writes. It is no part of the archive: ``download_large_files`` fetches it as
            ``models/encoder.safetensors``, for ``--pretrained``.

    Raises:
        InputError: the bundle lacks a file or has a link; its version is not in its changelog, or MONAI would not take
            it for the latest; its weights do not fit its network, or those of the encoder none of VMamba's;
            ``model_info.json`` is damaged; a folder that would be written is the bundle's own, or holds a file that no
            package made; another process packs into ``output_dir``.
    """
    bundle, output = Path(bundle_dir).resolve(), Path(output_dir)
    version = check_version(bundle)
    folders = {"models": output / "models" / bundle.name, "huggingface": output / "huggingface" / bundle.name}
    for folder in folders.values():
        if bundle.is_relative_to(folder.resolve()) or folder.resolve().is_relative_to(bundle):
            raise InputError(f"{folder} would be written, but {bundle} is what is packed; give another output_dir.")
    with one_run(output, "package"):
        return _package(bundle, version, output, folders, release_url, encoder_weights)


def _package(
    bundle: Path,
    version: str,
    output: Path,
    folders: Mapping[str, Path],
    release_url: str | None,
    encoder_weights: str | PathLike | None,
) -> Package:
    files = _collect(bundle)
    weights = _weights(bundle)
    encoder = None if encoder_weights is None else _encoder(Path(encoder_weights))
    with explained(f"{output / MODEL_INFO} cannot be read", "give another output_dir"):
        file = output / MODEL_INFO
        info = {**json.loads(file.read_text(encoding="utf-8"))} if file.is_file() else {}

    stem = f"{bundle.name}_v{version}"
    address = f"{release_url.rstrip('/')}/" if release_url else ""
    contents_of = {WEIGHTS: weights, ENCODER_WEIGHTS: encoder}
    assets = {
        name: output / f"{stem}_{Path(name).name}" for name, content in contents_of.items() if content is not None
    }
    if assets:
        entries = [
            f'- path: "{name}"\n  url: "{address}{asset.name}"\n  hash_val: "{_sha256(contents_of[name])}"\n'
            '  hash_type: "sha256"\n'
            for name, asset in assets.items()
        ]
        files[LARGE_FILES] = "".join(["large_files:\n", *entries]).encode()
    whole = files | ({} if weights is None else {WEIGHTS: weights})
    contents = {"models": files, "huggingface": whole}
    packed = _packed_before(output, bundle.name)
    for name, asset in assets.items():
        if asset.exists() and not (
            asset.is_file() and _sha256(asset.read_bytes()) in packed | {_sha256(contents_of[name])}
        ):
            raise _not_ours(asset)
    stale = {name: _stale_files(folder, contents[name], packed) for name, folder in folders.items()}
    for name, folder in folders.items():
        _write_folder(folder, contents[name], stale[name])
    for name, asset in assets.items():
        _write(asset, contents_of[name])
    archive = write_archive(output / f"{stem}.zip", {f"{bundle.name}/{name}": file for name, file in whole.items()})
    content = archive.read_bytes()
    info[stem] = {"checksum": hashlib.sha1(content).hexdigest(), "source": f"{address}{archive.name}"}  # as in the zoo
    _write(output / MODEL_INFO, (json.dumps(dict(sorted(info.items())), indent=4) + "\n").encode())
    return Package(
        archive=archive,
        sha256=_sha256(content),
        weights=assets.get(WEIGHTS),
        encoder=assets.get(ENCODER_WEIGHTS),
        huggingface_dir=output / "huggingface",
    )


def read_metadata(bundle: Path) -> dict:
    """The content of ``configs/metadata.json``; an :class:`InputError` when there is no such thing."""
    path = bundle / "configs" / "metadata.json"
    with explained(f"{path} cannot be read", f"{bundle} is no bundle"):
        return {**json.loads(path.read_text(encoding="utf-8"))}  # a TypeError for what is no object


def check_version(bundle: Path) -> str:
    """The version of a bundle, if it can be released under it.

    Raises:
        InputError: there is no ``configs/metadata.json``; what it names is not in its changelog, is no version, or is
            not the last of the changelog in the order of text, which is how MONAI finds the latest (0.10.0 comes before
            0.9.0); or MONAI would cut the bundle's name.
    """
    metadata = read_metadata(bundle)
    version, changelog = metadata.get("version"), metadata.get("changelog")
    if not isinstance(version, str) or not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise InputError(f"{bundle} has the version {version!r}; give it one like 0.1.0 in configs/metadata.json.")
    if not isinstance(changelog, dict) or version not in changelog:
        raise InputError(f"{bundle} has the version {version}, which is not in the changelog of configs/metadata.json.")
    if (last := max(changelog)) != version:
        raise InputError(
            f"{bundle} has the version {version}, but MONAI sorts versions as text and would take {last} for the "
            "latest; give it one that comes last."
        )
    if "_v" in bundle.name:
        raise InputError(f"{bundle} has '_v' in its name, where MONAI takes the version to begin; rename the folder.")
    return version


def _collect(bundle: Path) -> dict[str, bytes]:
    """The files of a bundle by their names in it, without weights and without what runs have left."""
    files = {}
    for part in PARTS:
        path = bundle / part
        if not path.exists():
            raise InputError(f"{bundle} lacks {part}, which every bundle has.")
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_symlink():
                raise InputError(f"{file} is a link; put the file itself there.")
            if file.is_file() and not file.name.startswith("."):
                content = file.read_bytes()
                own = _without_outer_links(content, file.parent, bundle) if file.suffix == ".md" else content
                files[file.relative_to(bundle).as_posix()] = own
    return files


def _without_outer_links(page: bytes, folder: Path, bundle: Path) -> bytes:
    """A page of Markdown in which links out of the bundle, which lead nowhere from an archive, are their text."""

    def replace(link: re.Match[bytes]) -> bytes:
        target = link[2].decode(errors="replace").partition("#")[0]
        return link[0] if "://" in target or (folder / target).resolve().is_relative_to(bundle) else link[1]

    return _LINK.sub(replace, page)


def _weights(bundle: Path) -> bytes | None:
    """The weights of a bundle as a torch file, after they went into its network; None if it has none."""
    path = Path(find_checkpoint(bundle / "models"))
    if not path.is_file():
        return None
    read_bundle_network(bundle / "configs" / "inference.json", path)
    stream = io.BytesIO()  # torch.save puts the name of a file into it
    torch.save({name: weight.clone() for name, weight in sorted(read_weights(path).items())}, stream)
    return stream.getvalue()


def _encoder(path: Path) -> bytes:
    """A file of a pretrained encoder, after it went into a network with that encoder."""
    if path.suffix != ".safetensors":
        raise InputError(f"{path} is no .safetensors file, which is how an encoder is released; stage 1 writes one.")
    weights = read_weights(path)
    names = {name.removeprefix("vssm_encoder."): weight for name, weight in weights.items()}
    if (encoder := name_encoder(names)) is None:
        raise InputError(
            f"{path} holds none of VMamba's encoders whole; give what stage 1 or 2 of the pretraining wrote."
        )
    load_pretrained(SwinUMambaD(3, 2, encoder=encoder), path)
    return path.read_bytes()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _packed_before(output: Path, name: str) -> set[str]:
    """SHA-256 of every file that earlier packages of this bundle have left in ``output``, by their archives there.

    Raises:
        InputError: one of the archives cannot be read, or holds what no package puts there.
    """
    digests = set()
    for path in output.glob(f"{name}_v*.zip"):
        with explained(f"{path} is no archive that can be read", "move it away"):
            contents = read_archive(path)
        if contents is None or not all(file.startswith(f"{name}/") for file in contents):
            raise _not_ours(path)
        digests |= {_sha256(content) for content in contents.values()}
        digests |= {found.decode() for found in _DIGEST.findall(contents.get(f"{name}/{LARGE_FILES}", b""))}
    return digests


def _not_ours(path: Path) -> InputError:
    return InputError(f"{path} is not as a package left it; move it away or give another output_dir.")


def _stale_files(folder: Path, files: Mapping[str, bytes], packed: set[str]) -> list[Path]:
    """The files of an earlier package in ``folder`` that this one has no more.

    Raises:
        InputError: the folder holds a link, or a file that neither this package nor an earlier one made.
    """
    stale = []
    if not folder.is_symlink():
        for place in [folder, *(path for path in folder.rglob("*") if path.is_dir() and not path.is_symlink())]:
            remove_unfinished(place)  # what a package that was killed has left is nobody's file
    for path in [folder, *sorted(folder.rglob("*"))]:
        if path.is_symlink() or (path == folder and path.exists() and not path.is_dir()):
            raise InputError(f"{path} is no folder or file that package made; move it away or give another output_dir.")
        if not path.is_file():
            continue
        name, content = path.relative_to(folder).as_posix(), path.read_bytes()
        if content != files.get(name) and _sha256(content) not in packed:
            raise _not_ours(path)
        if name not in files:
            stale.append(path)
    return stale


def _write_folder(folder: Path, files: Mapping[str, bytes], stale: list[Path]) -> None:
    """Make a folder that holds these files and no others; ``stale`` are those of an earlier package to take away.

    One that is not there yet appears whole.
    """
    if not folder.exists():
        with writing_folder(folder) as unfinished:
            for name, content in files.items():
                _write(unfinished / name, content)
        return
    for path in stale:
        path.unlink()
        for parent in path.relative_to(folder).parents[:-1]:
            with suppress(OSError):  # not empty
                (folder / parent).rmdir()
    for name, content in files.items():
        _write(folder / name, content)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, content)
