"""`Sample`: one image and what is known about it. `Samples`: an immutable, ordered set of them.

Nothing here holds pixels: an image is opened when it is asked for and belongs to the caller, so that memory does not
grow with the number of images. Order and choice depend on names and seeds, never on how a disk lists its files.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from roadworthy.data.header import truncated
from roadworthy.detect.detections import Truth
from roadworthy.errors import InputError

KINDS = ("boxes", "classes", "images")
T = TypeVar("T")
R = TypeVar("R")


class Sample:
    """One image, opened on demand; immutable.

    name: unique within its set, relative to it, with "/" between folders; the same on every machine.
    path: the image file; or else `load`, a function that makes the image, with `key`, a text that changes whenever
        the image it makes would change (generator, version, seed, index).
    truth: labelled boxes, or a function that gives them when first asked (then kept), or None.
    label: 0-based class index of the whole image, or None.
    declared_hw: (height, width) that the labels claim for the image, compared when the image is opened; or None.
    """

    __slots__ = ("_digest", "_truth", "declared_hw", "key", "label", "load", "name", "path")

    name: str
    path: Path | None
    label: int | None
    load: Callable[[], NDArray[np.uint8]] | None
    key: str
    declared_hw: tuple[int, int] | None
    _truth: Truth | Callable[[], Truth] | None
    _digest: bytes | None

    def __init__(
        self,
        name: str,
        path: str | Path | None = None,
        truth: Truth | Callable[[], Truth] | None = None,
        label: int | None = None,
        load: Callable[[], NDArray[np.uint8]] | None = None,
        key: str = "",
        declared_hw: tuple[int, int] | None = None,
    ) -> None:
        if (path is None) == (load is None):
            raise ValueError(f"sample {name!r} needs either a path or a load function")
        if load is not None and not key:
            raise ValueError(f"sample {name!r} is generated and needs a key that stands for its content")
        values = {
            "name": name,
            "path": None if path is None else Path(path),
            "_truth": truth,
            "label": label,
            "load": load,
            "key": key,
            "declared_hw": declared_hw,
            "_digest": None,
        }
        for field, value in values.items():
            object.__setattr__(self, field, value)

    def __setattr__(self, field: str, value: object) -> None:
        raise AttributeError(f"a Sample does not change; make a new one instead of setting {field!r}")

    def __repr__(self) -> str:
        return f"Sample({self.name!r})"

    @property
    def truth(self) -> Truth | None:
        if callable(self._truth):
            object.__setattr__(self, "_truth", self._truth())
        return self._truth  # type: ignore[return-value]

    @property
    def has_truth(self) -> bool:
        """Whether there are labelled boxes (perhaps none in this image), without working them out."""
        return self._truth is not None

    def image(self) -> NDArray[np.uint8]:
        """The image, (H, W, 3) uint8 BGR, read anew at each call.

        Files are read as OpenCV does by default: turned as EXIF says, grey repeated over three channels, alpha
        dropped, 16 bits reduced to 8. Raises InputError naming a file that is missing, cut short or no image, or
        whose size is not the one its labels claim.
        """
        if self.path is not None:
            image = read_image(self.path)
        else:
            assert self.load is not None
            image = self.load()
            if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
                raise InputError(
                    f"sample {self.name} loads {image.dtype} of shape {image.shape}; "
                    "its load function must return uint8 of shape (height, width, 3) in BGR"
                )
        if self.declared_hw is not None and image.shape[:2] != self.declared_hw:
            raise InputError(
                f"the image {self.path or self.name} is {image.shape[0]}x{image.shape[1]} but its labels were made for "
                f"{self.declared_hw[0]}x{self.declared_hw[1]} (height x width); restore the image or correct the labels"
            )
        return image

    def digest(self) -> bytes:
        """SHA-256 over the file's bytes (or the key) and the labels; computed once, 32 bytes are kept."""
        if self._digest is None:
            content = hashlib.sha256()
            if self.path is None:
                content.update(b"key\0" + self.key.encode())
            else:
                _hash_file(self.path, content)
            labels = hashlib.sha256(repr(self.label).encode())
            if (truth := self.truth) is not None:
                for array in (truth.boxes_xyxy, truth.classes, truth.areas, truth.ignore):
                    labels.update(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes())
            object.__setattr__(self, "_digest", hashlib.sha256(content.digest() + labels.digest()).digest())
        assert self._digest is not None
        return self._digest


class Samples(Sequence[Sample]):
    """An immutable, ordered set of samples.

    kind: "boxes" (each has a truth), "classes" (each has a label) or "images" (nothing is promised).
    class_names: by class index; empty where the labels carry no names.
    Raises InputError for two samples of one name, and for a sample without the label that `kind` promises.
    """

    __slots__ = ("_content_id", "_items", "class_names", "kind")

    kind: str
    class_names: tuple[str, ...]
    _items: tuple[Sample, ...]
    _content_id: str | None

    def __init__(self, items: Iterable[Sample], kind: str = "images", class_names: Iterable[str] = ()) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind is {kind!r}; use one of {', '.join(KINDS)}")
        values = {"_items": tuple(items), "kind": kind, "class_names": tuple(class_names), "_content_id": None}
        for field, value in values.items():
            object.__setattr__(self, field, value)
        seen: set[str] = set()
        for sample in self._items:
            if sample.name in seen:
                raise InputError(f"the image {sample.name} is listed twice; keep one entry for each image")
            seen.add(sample.name)
            if (kind == "boxes" and not sample.has_truth) or (kind == "classes" and sample.label is None):
                raise InputError(f"the image {sample.name} has no label; label it or take it out of the set")

    def __setattr__(self, field: str, value: object) -> None:
        raise AttributeError(f"Samples do not change; make new ones instead of setting {field!r}")

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self._items)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Samples: ...
    def __getitem__(self, index: int | slice) -> Sample | Samples:
        return self._with(self._items[index]) if isinstance(index, slice) else self._items[index]

    def __repr__(self) -> str:
        return f"Samples({len(self)} {self.kind}, {len(self.class_names)} class names)"

    def take(self, n: int, seed: int = 0) -> Samples:
        """A seeded choice of n samples in the order of the set; the whole set when it holds no more than n.

        The choice depends on names and seed only, and a larger n adds to a smaller one.
        """
        if n < 1:
            raise InputError(f"{n} images were asked for; ask for at least 1")
        if n >= len(self):
            return self
        chosen = set(by_lot(self, seed)[:n])
        return self._with(sample for sample in self if sample in chosen)

    def where(self, wanted: Callable[[Sample], bool]) -> Samples:
        """The samples that are wanted, in the order of the set."""
        return self._with(s for s in self if wanted(s))

    @property
    def content_id(self) -> str:
        """SHA-256 (hex) over kind, class names, sorted sample names, file bytes and labels; read once, then kept.

        The order of the samples and the place of the files do not enter.
        """
        if self._content_id is None:
            total = hashlib.sha256(repr((self.kind, self.class_names)).encode())
            for sample in sorted(self, key=lambda s: s.name):
                name = sample.name.encode()
                total.update(len(name).to_bytes(8, "little") + name + sample.digest())
            object.__setattr__(self, "_content_id", total.hexdigest())
        assert self._content_id is not None
        return self._content_id

    def _with(self, items: Iterable[Sample]) -> Samples:
        return Samples(items, self.kind, self.class_names)


def by_lot(samples: Iterable[Sample], seed: int) -> list[Sample]:
    """The samples in an order drawn from their names and the seed alone."""
    return sorted(samples, key=lambda s: hashlib.sha256(f"{seed}/{s.name}".encode()).digest())


def read_image(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 BGR; see `Sample.image`. Raises InputError for a file that is missing, cut short or no image."""
    import cv2

    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"the image {path} cannot be read ({error.strerror}); restore it or take it out") from error
    if truncated(data):
        raise InputError(f"the image {path} is cut short after {len(data)} bytes; replace it or take it out of the set")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
    except cv2.error:
        image = None
    if image is None:
        raise InputError(f"the image {path} is corrupt or not an image; replace it or take it out of the set")
    return image  # type: ignore[return-value]


def prefetch(iterable: Iterable[T], fn: Callable[[T], R], workers: int = 1, depth: int = 4) -> Iterator[R]:
    """`map(fn, iterable)` with fn in background threads: results in order, at most `depth` of them ahead.

    An exception in fn appears where its result would have. Leaving the loop early (or closing the iterator) cancels
    what has not begun and waits for what has. The iterable itself is advanced in the caller's thread.
    """
    if workers < 1 or depth < 1:
        raise ValueError(f"workers is {workers} and depth is {depth}; both must be at least 1")

    def results() -> Iterator[R]:
        pool = ThreadPoolExecutor(workers, thread_name_prefix="prefetch")
        ahead: deque[Future[R]] = deque()
        try:
            for item in iterable:
                ahead.append(pool.submit(fn, item))
                if len(ahead) > depth:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    return results()


def _hash_file(path: Path, into: hashlib._Hash) -> None:
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                into.update(block)
    except OSError as error:
        raise InputError(f"the image {path} cannot be read ({error.strerror}); restore it or take it out") from error
