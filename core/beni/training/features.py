"""The feature cache: each image is encoded once, before training, and no step and no judging runs an encoder.

The folder of the cache has a folder for each encoder with its weights and its view (`fingerprint`). One run at a time
writes: it holds the cache's lock. A run that trains holds a shared lock on its encoders' folders, and only folders that
nobody holds make room for others, those first that were used longest ago.
"""

import copy
import fcntl
import hashlib
import inspect
import json
import multiprocessing
import os
import shutil
import sys
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from beni.config import Part, RunConfig
from beni.data.batch import Pictures
from beni.data.features import DRAFT, FeatureStore, divided, features_bytes, write
from beni.data.loader import Rows, loader, worker_deaths_told
from beni.errors import ConfigError, ImageError, NotWritten
from beni.model.build import Built
from beni.model.config import spec_to_dict
from beni.processes import Processes
from beni.progress import bar
from beni.training.freeze import FreezeRow
from beni.training.shown import Place, Shown
from beni.types import EncoderSpec

FORMAT = 1
"""Of files and of what they mean; another one makes other folders."""
COMPUTING = ("torch", "torchvision", "timm", "transformers", "open_clip_torch", "pillow")
"""Packages whose versions decide what an encoder makes of an image."""
LOCK, USED = ".lock", ".used"


@dataclass(frozen=True, slots=True)
class Cached:
    """The features that a run is trained with."""

    store: FeatureStore
    images: int
    encoded: int
    """Of them, by this run."""
    seconds: float
    """That it took to look for them and to encode what was missing."""

    def summary(self) -> dict[str, Any]:
        """For result.json."""
        return {"images": self.images, "encoded": self.encoded, "seconds": self.seconds}


def check(config: RunConfig, table: Sequence[FreezeRow], streams: bool) -> None:
    """Refuse what cannot be trained on features that were made before.

    Raises:
        ConfigError: says which option stands in the way.
    """
    why = ""
    if trained := [row.part for row in table if row.part.startswith("encoder") and row.trainable]:
        why = f"{trained[0]} is trained, and its features change: load weights for it, or leave it out of --train"
    elif config.data.augment:
        why = "--augment changes every image in every epoch: set it to 0"
    elif streams:
        why = "nobody knows which images a stream will bring"
    if why:
        raise ConfigError(f"--feature-cache: {why}")


def fill(config: RunConfig, built: Built, rows: Rows, procs: Processes, dtype: torch.dtype, judging: bool) -> Cached:
    """Encode the images of a run that the cache does not have.

    The first process does, and the others wait.

    Args:
        config: the run's; `check` has passed.
        built: of the first process whole.
        rows: of training.
        procs: every one of them calls this.
        dtype: of the run's computation.
        judging: whether the images of validation and judging are needed, too.

    Raises:
        ConfigError: the features need more room than the cache may take; or another process does not see them.
        NotWritten: they cannot be written.
    """
    began = time.perf_counter()
    folder, told = Path(config.run.feature_cache).expanduser(), None
    if procs.is_main:
        try:
            shown = Shown.trained(rows)
            told = _filled(folder, config, built, shown.and_judged(config.data) if judging else shown, procs, dtype)
        except (OSError, SafetensorError) as error:
            why = getattr(error, "strerror", None) or error
            raise NotWritten(f"features cannot be kept in {folder}: {why}") from error
    procs.barrier()  # it takes as long as it takes
    names, images, encoded = procs.from_main(told and told[1:])
    if told is None and not all((folder / name / LOCK).is_file() for name in names.values()):
        raise ConfigError(f"--feature-cache {folder}: one process has written to it, and another one does not see it")
    store = told[0] if told else _held(folder, names)
    return Cached(store, images, encoded, time.perf_counter() - began)


def _filled(
    folder: Path, config: RunConfig, built: Built, shown: Shown, procs: Processes, dtype: torch.dtype
) -> tuple[FeatureStore, dict[str, str], int, int]:
    """The store, held; its folders' names; how many images a run needs, and how many of them this one has encoded."""
    specs, encoders = built.composer.encoders, built.model.encoders
    names = {
        key: fingerprint(config.encoders[key], config.view, specs[key], encoder, dtype)
        for key, encoder in encoders.items()
    }
    with _locked(folder):
        store = _held(folder, names)
        images, missing = _missing(shown, store, dtype)
        if missing:
            for own in store.folders.values():
                for draft in own.rglob(f"*{DRAFT}"):  # of somebody who was killed: there is one writer at a time
                    draft.unlink()
            make_room(folder, sum(each.room for each in missing), config.run.feature_cache_gb * 1e9)
            computing = {key: lowered(encoder, procs.device, dtype) for key, encoder in encoders.items()}
            loaded = _Loaded(missing, shown, store, config.batch.row_crops)
            unread = _encode(loaded, computing, procs, config.data.workers)
            if unread:
                print(f"{unread} of {images} images could not be read, and have no features", file=sys.stderr)
            return store, names, images, len(missing) - unread
    return store, names, images, 0


def fingerprint(part: Part, view: Part, spec: EncoderSpec, encoder: nn.Module, dtype: torch.dtype) -> str:
    """Equal for encoders that make the same features: of one class, with the same options, weights, and view.

    Their source files and the versions of what they compute with are taken for what they do.
    """
    described = {
        "format": FORMAT,
        "part": part.to_dict(),
        "view": view.to_dict(),
        "spec": spec_to_dict(spec),
        "dtype": str(dtype),
        "source": [_source(type(encoder)), _source(view.load())],
        "versions": [_version(package) for package in COMPUTING],
    }
    digest = hashlib.blake2b(json.dumps(described, sort_keys=True).encode(), digest_size=16)
    for name, tensor in encoder.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return f"{part.plugin.name.replace(os.sep, '_')}-{digest.hexdigest()}"


def _source(of: type) -> str:
    """A checksum of the file that a class is written in; empty for one that has no file."""
    try:
        return hashlib.blake2b(Path(inspect.getfile(of)).read_bytes(), digest_size=16).hexdigest()
    except (TypeError, OSError):
        return ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def lowered(encoder: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """A copy of an encoder that computes as it would in training: there parameters are lowered, and buffers are not."""
    computing = copy.deepcopy(encoder).to(device).eval()
    for parameter in computing.parameters():
        parameter.data = parameter.data.to(dtype)
    return computing


def _held(folder: Path, names: Mapping[str, str]) -> FeatureStore:
    """A store whose folders nobody deletes as long as there is the store."""
    store = FeatureStore({key: folder / name for key, name in names.items()})
    for own in store.folders.values():
        own.mkdir(parents=True, exist_ok=True)
        (own / USED).touch()
        handle = os.open(own / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(handle, fcntl.LOCK_SH)
        weakref.finalize(store, os.close, handle)
    return store


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Write to a cache as the only one."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another run writes to {folder}: waiting for it", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def make_room(folder: Path, needed: float, limit: float) -> None:
    """Delete features of encoders that no run uses, those first that were used longest ago, until there is room.

    Args:
        folder: of the cache; the caller holds its lock.
        needed: bytes that will be written.
        limit: bytes that the cache may take.

    Raises:
        ConfigError: there is not enough room all the same.
    """
    sizes = {each: _size(each) for each in folder.iterdir() if (each / USED).is_file()}
    total = sum(sizes.values()) + needed
    for each in sorted(sizes, key=lambda each: (each / USED).stat().st_mtime):
        if total <= limit:
            return
        with (each / LOCK).open("ab") as lock, suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(each)
            total -= sizes.pop(each)
    if total > limit:
        used = ", ".join(f"{each.name} ({size / 1e9:.2f} GB)" for each, size in sizes.items() if size)
        raise ConfigError(
            f"--feature-cache {folder}: this run needs {needed / 1e9:.2f} GB more, and {total / 1e9:.2f} GB with what "
            f"is in use: {used or 'nothing'}. Allow more than --feature-cache-gb {limit / 1e9:g}, judge fewer items "
            f"(--eval-limit), delete folders in it whose images nobody needs any more, or train without"
        )


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


class _Lacking(NamedTuple):
    """An image without features of some encoders: small, for there may be millions."""

    place: Place
    keys: tuple[str, ...]
    """Of those encoders."""
    crops: int
    """Most that one of them sees."""
    room: int
    """Bytes that the features will take."""


def _missing(shown: Shown, store: FeatureStore, dtype: torch.dtype) -> tuple[int, list[_Lacking]]:
    """How many different images there are, and what is missing of their features."""
    seen: set[bytes] = set()
    lacking: list[_Lacking] = []
    for place, key in shown:
        digest = hashlib.blake2b(key if isinstance(key, bytes) else key.encode(), digest_size=16).digest()
        if digest in seen:
            continue
        seen.add(digest)
        with suppress(ImageError):  # who asks for it will be told
            image = shown.find(place)
            keys = tuple(name for name, file in store.files(image).items() if not file.is_file())
            if keys:
                crops = max(len(image.layout.crops[name]) for name in keys)
                room = sum(features_bytes(image, name, shown.composer.encoders[name], dtype) for name in keys)
                lacking.append(_Lacking(place, keys, crops, room))
    return len(seen), lacking


class _Made(NamedTuple):
    """Encoder inputs of some images, by encoder key, and where the features of each go."""

    pixels: dict[str, Tensor]
    files: dict[str, list[Path]]
    crops: dict[str, list[int]]
    images: int
    unread: int


class _Loaded:
    """Encoder inputs of images without features, as many crops at a time as a row has at most."""

    def __init__(self, lacking: Sequence[_Lacking], shown: Shown, store: FeatureStore, most_crops: int) -> None:
        self.shown, self.store = shown, store
        self.groups: list[list[_Lacking]] = []
        crops = most_crops
        for each in lacking:
            if crops + each.crops > most_crops:
                self.groups.append([])
                crops = 0
            self.groups[-1].append(each)
            crops += each.crops

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> _Made:
        pictures, read = Pictures(self.shown.composer), []
        for each in self.groups[index]:
            with suppress(ImageError):  # who asks for it will be told
                image = self.shown.find(each.place)
                pictures.load(image)
                read.append((each, image, self.store.files(image)))
        pixels, files, crops = {}, {}, {}
        for key in self.store.folders:
            own = [(image, paths[key]) for each, image, paths in read if key in each.keys]
            if own:
                pixels[key] = pictures.stack([image for image, _ in own]).pixels[key]
                files[key] = [path for _, path in own]
                crops[key] = [len(image.layout.crops[key]) for image, _ in own]
        return _Made(pixels, files, crops, len(self.groups[index]), len(self.groups[index]) - len(read))


def _encode(loaded: _Loaded, encoders: Mapping[str, nn.Module], procs: Processes, workers: int) -> int:
    """Write what is missing; how many images could not be read."""
    unread, images = 0, sum(map(len, loaded.groups))
    before = multiprocessing.active_children()
    groups = iter(loader(loaded, workers, ahead=2))
    started = [process for process in multiprocessing.active_children() if process not in before]
    with worker_deaths_told(started), bar(total=images, desc="encoding images", unit="image", leave=False) as told:
        for made in groups:
            for key, pixels in made.pixels.items():
                with torch.no_grad():
                    features = encoders[key](pixels.to(procs.device))
                for file, own in zip(made.files[key], divided(features, made.crops[key]), strict=True):
                    write(file, own)
            unread += made.unread
            told.update(made.images)
    return unread
