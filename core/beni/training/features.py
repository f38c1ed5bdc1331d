"""The feature cache: each image is encoded once, before training, and no step runs an encoder.

The folder of the cache has a folder for each encoder with its weights and its view (`fingerprint`). One run at a time
writes: it holds the cache's lock. A run that trains holds a shared lock on its encoders' folders, and only folders that
nobody holds make room for others, those first that were used longest ago.
"""

import copy
import fcntl
import hashlib
import json
import math
import multiprocessing
import os
import shutil
import sys
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from beni.config import Part, RunConfig
from beni.data.batch import Pictures, dummy_document
from beni.data.document import Composer, DocumentImage
from beni.data.features import FeatureStore, divided, features_bytes
from beni.data.loader import loader, worker_deaths_told
from beni.errors import ConfigError, ImageError, NotWritten
from beni.interfaces import VisionEncoder
from beni.model.build import Built
from beni.model.config import spec_to_dict
from beni.processes import Processes
from beni.sample import Sample
from beni.training.freeze import FreezeRow
from beni.types import EncoderSpec

FORMAT = 1
"""Of files and of what they mean; another one makes other folders."""
IMAGES_AT_ONCE = 16
"""Images that are encoded together."""
LOCK, USED = ".lock", ".used"
_LABEL = "encoding images"


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


def fill(config: RunConfig, built: Built, sources: Sequence[Sequence[Sample]], procs: Processes) -> Cached:
    """Encode the images of a run that the cache does not have.

    The first process does, and the others wait. The encoders compute in the run's precision.

    Args:
        config: the run's; `check` has passed.
        built: of the first process whole.
        sources: whose images are needed.
        procs: every one of them calls this.

    Raises:
        ConfigError: the features need more room than the cache may take.
        NotWritten: there is no room on the disk.
    """
    began = time.perf_counter()
    folder, told = Path(config.run.feature_cache).expanduser(), None
    if procs.is_main:
        try:
            told = _filled(folder, config, built, sources, procs)
        except OSError as error:
            raise NotWritten(f"features cannot be kept in {folder}: {error.strerror or error}") from error
    procs.barrier()  # it takes as long as it takes
    names, images, encoded = procs.from_main(told and told[1:])
    store = told[0] if told else _held(folder, names)
    return Cached(store, images, encoded, time.perf_counter() - began)


def _filled(
    folder: Path, config: RunConfig, built: Built, sources: Sequence[Sequence[Sample]], procs: Processes
) -> tuple[FeatureStore, dict[str, str], int, int]:
    """The store, held; its folders' names; how many images a run needs, and how many of them were missing."""
    encoders: Mapping[str, VisionEncoder] = dict(built.model.encoders.items())  # type: ignore[arg-type]
    specs, parts, dtype = built.composer.encoders, config.encoders, procs.dtype
    names = {key: fingerprint(parts[key], config.view, specs[key], encoder, dtype) for key, encoder in encoders.items()}
    with _locked(folder):
        store = _held(folder, names)
        images = _images(sources, built.composer)
        missing = [image for image in images if not store.has(image)]
        needed = sum(features_bytes(image, key, specs[key], dtype) for image in missing for key in specs)
        make_room(folder, needed, round(config.run.feature_cache_gb * 1e9))
        if missing:
            _encode(missing, encoders, store, built.composer, config, procs)
    return store, names, len(images), len(missing)


def fingerprint(part: Part, view: Part, spec: EncoderSpec, encoder: nn.Module, dtype: torch.dtype) -> str:
    """Equal for encoders that make the same features: of one class, with the same options, weights, and view."""
    parts = {"part": part.to_dict(), "view": view.to_dict(), "spec": spec_to_dict(spec)}
    described = parts | {"format": FORMAT, "dtype": str(dtype)}
    digest = hashlib.blake2b(json.dumps(described, sort_keys=True).encode(), digest_size=16)
    for name, tensor in encoder.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return f"{part.plugin.name}-{digest.hexdigest()}"


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


def make_room(folder: Path, needed: int, limit: int) -> None:
    """Delete features that nobody uses, those first that were used longest ago, until there is room for more.

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
            total -= sizes[each]
    if total > limit:
        raise ConfigError(
            f"--feature-cache {folder}: this run needs {needed / 1e9:.2f} GB more, and with what is in use that would "
            f"be {total / 1e9:.2f} GB: allow more than --feature-cache-gb {limit / 1e9:g}, or train without"
        )


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def _images(sources: Sequence[Sequence[Sample]], composer: Composer) -> list[DocumentImage]:
    """The different images of some sources, and the one that stands in rows without any; not those without a size."""
    found = {image.ref.key: image for image in dummy_document(composer).images}
    for source in sources:
        for index in range(len(source)):
            for ref in source[index].images:
                if ref.key not in found:
                    with suppress(ImageError):  # it is never planned
                        found[ref.key] = DocumentImage(ref, 0, composer.layout(ref), ())
    return list(found.values())


class _Loaded:
    """Encoder inputs of some images at a time, and the images: those that can be read."""

    def __init__(self, images: Sequence[DocumentImage], composer: Composer) -> None:
        self.images, self.composer = images, composer

    def __len__(self) -> int:
        return math.ceil(len(self.images) / IMAGES_AT_ONCE)

    def __getitem__(self, index: int) -> tuple[list[DocumentImage], dict[str, Tensor]]:
        pictures, readable = Pictures(self.composer), []
        for image in self.images[index * IMAGES_AT_ONCE : (index + 1) * IMAGES_AT_ONCE]:
            with suppress(ImageError):  # who trains on it will be told
                pictures.load(image)
                readable.append(image)
        return readable, pictures.stack(readable).pixels if readable else {}


def _encode(
    images: Sequence[DocumentImage],
    encoders: Mapping[str, VisionEncoder],
    store: FeatureStore,
    composer: Composer,
    config: RunConfig,
    procs: Processes,
) -> None:
    computing = {key: copy.deepcopy(each).to(procs.device, procs.dtype).eval() for key, each in encoders.items()}
    before = multiprocessing.active_children()
    batches = iter(loader(_Loaded(images, composer), config.data.workers, ahead=2))
    started = [process for process in multiprocessing.active_children() if process not in before]
    with worker_deaths_told(started), tqdm(total=len(images), desc=_LABEL, unit="image", leave=False) as bar:
        for readable, pixels in batches:
            for key, encoder in computing.items():
                if readable:
                    with torch.no_grad():
                        features = encoder(pixels[key].to(procs.device))
                    crops = [len(image.layout.crops[key]) for image in readable]
                    for image, own in zip(readable, divided(features, crops), strict=True):
                        store.write(key, image, own)
            bar.update(min(IMAGES_AT_ONCE, len(images) - bar.n))
