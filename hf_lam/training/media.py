"""Images, videos and audio out of a data set's rows: from encoded files, paths, raw bytes and arrays."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from math import gcd, prod
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets.utils.file_utils import xopen
from PIL import Image as PILImage
from PIL import ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    from PIL.Image import Image

# Of raw bytes, by the size of an entry: pixels, half and single precision.
_RAW_TYPES = {1: "uint8", 2: "<f2", 4: "<f4"}

# For av: a playlist or a session description among the files may not open other files or the network.
_NOTHING_ELSE = {"protocol_whitelist": "none"}


class UnreadableError(ValueError):
    """A file that is damaged, empty, missing, or of another kind."""


def read_image(value: Any, shape: Any = None, root: str | None = None, num_channels: int = 3) -> Image:
    """One image, turned as its EXIF data say.

    Args:
        value: a PIL image, an encoded file as bytes, a path, what an undecoded `datasets.Image` gives, an array
            `(height, width)` or `(height, width, channels)`, or its raw bytes together with `shape`.
        shape: of raw bytes.
        root: the folder that relative paths start from.
        num_channels: 3 for RGB, 1 for grey.

    Raises:
        UnreadableError: naming the file and the reason.
    """
    with _naming(value, "image"):
        array = _raw_array(value, shape)
        if array is not None:
            image = PILImage.fromarray(_as_pixels(array))
        elif isinstance(value, PILImage.Image):
            image = value
        else:
            try:
                image = PILImage.open(_opened(value, root))
            except UnidentifiedImageError as error:
                raise ValueError("it is empty, or no image of a known format") from error
        # Decodes all of it, so that a file that ends early shows now.
        image = _eight_bits(ImageOps.exif_transpose(image), image.format)
        return image.convert("L" if num_channels == 1 else "RGB")


def read_video(
    value: Any, num_frames: int, shape: Any = None, root: str | None = None, num_channels: int = 3
) -> list[Image]:
    """`num_frames` frames of one video, the middles of as many equal parts of it.

    Args:
        value: an encoded file as bytes, a path, what an undecoded `datasets.Video` gives, an array `(frames, height,
            width)` or `(frames, height, width, channels)`, its raw bytes together with `shape`, or a list of images.
            Encoded files need the package `av` (`pip install "hf-lam[video]"`).
        num_frames: how many. Of a shorter video, some come several times.
        shape: of raw bytes.
        root: the folder that relative paths start from.
        num_channels: 3 for RGB, 1 for grey.

    Raises:
        ImportError: for an encoded file without `av`.
        UnreadableError: naming the file and the reason.
    """
    with _naming(value, "video"):
        frames: Any = _raw_array(value, shape)
        if frames is None and isinstance(value, list):
            frames = value
        if frames is None:
            frames = _decoded_frames(value, num_frames, root)
        elif len(frames) == 0:
            raise ValueError("it has no frames")
        else:
            frames = [frames[index] for index in _middles(len(frames), num_frames)]
        return [read_image(frame, root=root, num_channels=num_channels) for frame in frames]


def read_audio(value: Any, sampling_rate: int | None, shape: Any = None, root: str | None = None) -> np.ndarray:
    """A mono waveform in [-1, 1] at `sampling_rate`, `(samples,)`, or a spectrogram as it is, `(frames, mel bins)`.

    Args:
        value: an encoded file as bytes, a path, what an undecoded `datasets.Audio` gives (these need the package
            `av`), a dictionary with `array` and `sampling_rate`, an array with one or two axes, or its raw bytes
            together with `shape`.
        sampling_rate: in Hz; `None` leaves it as it is.
        shape: of raw bytes.
        root: the folder that relative paths start from.

    Raises:
        ImportError: for an encoded file without `av`.
        UnreadableError: naming the file and the reason.
    """
    with _naming(value, "audio"):
        if isinstance(value, dict) and value.get("array") is not None:
            waveform = np.asarray(value["array"], np.float32)
            if waveform.ndim != 1 or waveform.size == 0:
                raise ValueError(f"a waveform must have one axis, and samples, got shape {waveform.shape}")
            return _resampled(waveform, int(value["sampling_rate"]), sampling_rate)
        array = _raw_array(value, shape)
        if array is None:
            array = _decoded_audio(value, sampling_rate, root)
        if array.ndim not in (1, 2) or array.size == 0:
            raise ValueError(f"it must have one axis (a waveform) or two (a spectrogram), got shape {array.shape}")
        return array.astype(np.float32)


@contextmanager
def _naming(value: Any, kind: str) -> Iterator[None]:
    """Turn what a decoder raises, which may be anything, into one error that names the file."""
    try:
        yield
    except (ImportError, UnreadableError):
        raise
    except Exception as error:
        path = value.get("path") if isinstance(value, dict) else value
        name = f"{kind} {path!r}" if isinstance(path, str) and path else kind
        # What `av` says of files that it was given as bytes.
        reason = str(error).removesuffix(": '<none>'")
        raise UnreadableError(f"{name}: {reason or type(error).__name__}") from error


def _opened(value: Any, root: str | None) -> Any:
    if isinstance(value, dict):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, (bytes, bytearray)):
        return io.BytesIO(value)
    if not isinstance(value, str):
        raise ValueError(f"expected a path or the bytes of a file, got {type(value).__name__}")
    path = value if root is None or "://" in value or os.path.isabs(value) else os.path.join(root, value)
    # Of `datasets`: what it streams from archives and from the Hub has no path in the file system.
    return xopen(path, "rb")


def _raw_array(value: Any, shape: Any) -> np.ndarray | None:
    """The array that `value` is, or holds as raw bytes; None for everything else."""
    if isinstance(value, (bytes, bytearray)) and shape is not None:
        entries = prod(shape)
        size = len(value) // entries if entries else 0
        if size not in _RAW_TYPES or size * entries != len(value):
            raise ValueError(f"{len(value)} bytes are no array of shape {list(shape)}")
        return np.frombuffer(value, _RAW_TYPES[size]).reshape(tuple(shape))
    if isinstance(value, list) and value and not isinstance(value[0], (list, int, float, np.ndarray)):
        return None  # a list of images
    return np.asarray(value) if isinstance(value, (list, np.ndarray)) else None


def _as_pixels(array: np.ndarray) -> np.ndarray:
    if array.ndim not in (2, 3) or array.size == 0:
        raise ValueError(f"an image must have 2 or 3 axes, and pixels, got shape {array.shape}")
    if array.dtype != np.uint8 and (array.min() < 0 or array.max() > 255 or array.dtype.kind == "f"):
        raise ValueError(f"pixels must be whole numbers from 0 to 255, got {array.dtype}")
    pixels = array.astype(np.uint8)
    return pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels


def _eight_bits(image: Image, file_format: str | None) -> Image:
    """Pixels of more bits, which PIL would clip: 16 are brought to 8, others must be from 0 to 255."""
    # Older versions of Pillow open a 16-bit PNG as 32-bit.
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format == "PNG"):
        return PILImage.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return PILImage.fromarray(_as_pixels(np.asarray(image))) if image.mode in ("I", "F") else image


def _middles(total: int, number: int) -> list[int]:
    """The middles of `number` equal parts of `total` frames."""
    return [(2 * index + 1) * total // (2 * number) for index in range(number)]


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError(
            'video and audio files are read with the package av. Run `pip install "hf-lam[video]"`.'
        ) from error
    return av


def _decoded_frames(value: Any, num_frames: int, root: str | None) -> list[Image]:
    av = _av()
    with _opened(value, root) as file:
        content = file.read()

    def frames() -> Iterator[Any]:
        with av.open(io.BytesIO(content), options=_NOTHING_ELSE) as container:
            if not container.streams.video:
                raise ValueError("it has no video stream")
            # An mp4 file that begins with its index decodes without an error to where it was cut off.
            if any(entry.pos + entry.size > len(content) for entry in container.streams.video[0].index_entries):
                raise ValueError("it ends early")
            yield from container.decode(video=0)

    # The count in a file's header may be missing or wrong.
    total = sum(1 for _ in frames())
    if total == 0:
        raise ValueError("it has no frames")
    wanted = _middles(total, num_frames)
    kept = {index: frame.to_image() for index, frame in enumerate(frames()) if index in wanted}
    return [kept[index] for index in wanted]


def _decoded_audio(value: Any, sampling_rate: int | None, root: str | None) -> np.ndarray:
    av = _av()
    with _opened(value, root) as file, av.open(file, options=_NOTHING_ELSE) as container:
        if not container.streams.audio:
            raise ValueError("it has no audio stream")
        rate = container.streams.audio[0].rate if sampling_rate is None else sampling_rate
        resampler = av.AudioResampler(format="flt", layout="mono", rate=rate)
        parts = [
            part.to_ndarray().reshape(-1)
            for frame in [*container.decode(audio=0), None]
            for part in resampler.resample(frame)
        ]
    if not parts:
        raise ValueError("it has no samples")
    return np.concatenate(parts)


def _resampled(waveform: np.ndarray, rate: int, wanted: int | None) -> np.ndarray:
    if wanted is None or rate == wanted:
        return waveform
    from scipy.signal import resample_poly

    factor = gcd(rate, wanted)
    return resample_poly(waveform, wanted // factor, rate // factor).astype(np.float32)
