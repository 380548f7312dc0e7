"""Images, videos and audio out of a data set's rows: from encoded files, paths, raw bytes and arrays."""

from __future__ import annotations

import io
import os
from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from math import gcd, prod
from numbers import Number
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets.utils.file_utils import xopen
from PIL import Image as PILImage
from PIL import ImageOps, UnidentifiedImageError

from .media_ends import EndsEarlyError, check_end, declared_flac_samples

if TYPE_CHECKING:
    from PIL.Image import Image

# Of raw bytes, by the size of an entry: pixels, half and single precision.
_RAW_TYPES = {1: "uint8", 2: "<f2", 4: "<f4"}

# For av: a playlist or a session description among the files may not open other files or the network.
_NOTHING_ELSE = {"protocol_whitelist": "none"}

# The last frame of a stream that was cut off need not be the last one that is shown: codecs reorder up to so many.
_REORDERED = 16

# Arrays of more axes than one have at most so many channels (7.1).
_MOST_CHANNELS = 8

# With more channels in a buffer each, av's `to_ndarray` reads behind the last one and ends the process.
_MOST_BUFFERS = 7


class UnreadableError(ValueError):
    """A file that is damaged, empty, missing, or of another kind."""


def read_image(value: Any, shape: Any = None, root: str | None = None, num_channels: int = 3) -> Image:
    """One image, turned as its EXIF data say.

    Args:
        value: a PIL image, an encoded file as bytes, a path, what an undecoded `datasets.Image` gives, an array
            `(height, width)`, `(height, width, channels)` or `(channels, height, width)` with pixels from 0 to 255, or
            its raw bytes together with `shape`.
        shape: shape of the array, if `value` is its raw bytes.
        root: the folder that relative paths start from.
        num_channels: 3 for RGB, 1 for grey.

    Raises:
        UnreadableError: naming the file and the reason.
    """
    with naming(value, "image"):
        array = raw_array(value, shape)
        if array is not None:
            image = PILImage.fromarray(_as_pixels(array))
        elif isinstance(value, PILImage.Image):
            image = value
        else:
            try:
                image = PILImage.open(opened(value, root))
            except UnidentifiedImageError as error:
                raise ValueError("it is empty, or no image of a known format") from error
        # Decodes all of it, so that a file that ends early shows now.
        image = _eight_bits(ImageOps.exif_transpose(image), image.format)
        return image.convert("L" if num_channels == 1 else "RGB")


def read_video(
    value: Any, num_frames: int, shape: Any = None, root: str | None = None, num_channels: int = 3
) -> list[Image]:
    """`num_frames` frames of one video, turned as the file says: those shown in the middles of as many equal parts.

    Args:
        value: an encoded file as bytes, a path, what an undecoded `datasets.Video` gives, an array `(frames, height,
            width)`, `(frames, height, width, channels)` or `(frames, channels, height, width)`, its raw bytes together
            with `shape`, or a list of images. Encoded files need the package `av` (`pip install "hf-lam[video]"`).
        num_frames: number of frames. A shorter video gives some of them several times.
        shape: shape of the array, if `value` is its raw bytes.
        root: the folder that relative paths start from.
        num_channels: 3 for RGB, 1 for grey.

    Raises:
        ImportError: for an encoded file without `av`.
        UnreadableError: naming the file and the reason.
    """
    with naming(value, "video"):
        frames: Any = raw_array(value, shape)
        if frames is None and isinstance(value, (list, tuple)):
            frames = value
        if frames is None:
            frames = _decoded_frames(value, num_frames, root)
        elif len(frames) == 0:
            raise ValueError("it has no frames")
        else:
            frames = [frames[index] for index in _middles(len(frames), num_frames)]
        return [read_image(frame, root=root, num_channels=num_channels) for frame in frames]


def read_audio(value: Any, sampling_rate: int | None, shape: Any = None, root: str | None = None) -> np.ndarray:
    """A waveform at `sampling_rate`, `(samples,)`, or a spectrogram as it is, `(frames, mel bins)`.

    A waveform is the mean of its channels. Whole numbers become numbers in [-1, 1), by their width; floats are as they
    are.

    Args:
        value: an encoded file as bytes, a path, what an undecoded `datasets.Audio` gives (these need the package
            `av`), a dictionary with `array`, `(samples,)` or with a second axis for channels, and `sampling_rate`; an
            array with one axis, which is taken to be at `sampling_rate`, or two, a spectrogram; or its raw bytes
            together with `shape`.
        sampling_rate: wanted sampling rate in Hz; `None` leaves it as it is.
        shape: shape of the array, if `value` is its raw bytes.
        root: the folder that relative paths start from.

    Raises:
        ImportError: for an encoded file without `av`.
        UnreadableError: naming the file and the reason.
    """
    with naming(value, "audio"):
        if isinstance(value, dict) and value.get("array") is not None:
            channels = _channels(_array(value["array"]))
            sound = _resampled(_amplitudes(channels).mean(0), value.get("sampling_rate"), sampling_rate)
        else:
            array = raw_array(value, shape)
            if array is None:
                array = _decoded_audio(value, sampling_rate, root)
            if array.ndim not in (1, 2) or array.size == 0:
                raise ValueError(f"it must have one axis (a waveform) or two (a spectrogram), got shape {array.shape}")
            sound = _amplitudes(array) if array.ndim == 1 else array
        sound = sound.astype(np.float32)
        bad = sound.size - np.count_nonzero(np.isfinite(sound))
        if bad:
            raise ValueError(f"{bad} of its {sound.size} values are NaN or infinite")
        return sound


@contextmanager
def naming(value: Any, kind: str) -> Iterator[None]:
    """Turn what a decoder raises, which may be anything, into one `UnreadableError` that names the file."""
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


def opened(value: Any, root: str | None) -> Any:
    """The file that a value holds the bytes or the path of, as a file object."""
    if isinstance(value, dict):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, (bytes, bytearray)):
        return io.BytesIO(value)
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str):
        raise ValueError(f"expected a path or the bytes of a file, got {type(value).__name__}")
    if "://" in value:
        # Of `datasets`: what it streams from archives and from the Hub has no path in the file system.
        return xopen(value, "rb")
    return open(value if root is None else os.path.join(root, value), "rb")


def raw_array(value: Any, shape: Any) -> np.ndarray | None:
    """The array that `value` is, or holds as raw bytes; None for everything else."""
    if isinstance(value, (bytes, bytearray)) and shape is not None:
        entries = prod(shape)
        size = len(value) // entries if entries else 0
        if size not in _RAW_TYPES or size * entries != len(value):
            raise ValueError(f"{len(value)} bytes are no array of shape {list(shape)}")
        return np.frombuffer(value, _RAW_TYPES[size]).reshape(tuple(shape))
    if isinstance(value, (list, tuple)):
        first = next(iter(value), 0)
        return _array(value) if isinstance(first, (list, tuple, Number)) or _is_array(first) else None
    return _array(value) if _is_array(value) else None


def _is_array(value: Any) -> bool:
    """Whether it is an array of any library: numpy, torch, pandas."""
    return hasattr(value, "__array__") and not isinstance(value, PILImage.Image)


def _array(value: Any) -> np.ndarray:
    return value.numpy(force=True) if isinstance(value, torch.Tensor) else np.asarray(value)


def _as_pixels(array: np.ndarray) -> np.ndarray:
    if array.ndim not in (2, 3) or array.size == 0:
        raise ValueError(f"an image must have 2 or 3 axes, and pixels, got shape {array.shape}")
    if array.dtype != np.uint8 and (array.min() < 0 or array.max() > 255 or array.dtype.kind == "f"):
        raise ValueError(f"pixels must be whole numbers from 0 to 255, got {array.dtype}")
    pixels = array.astype(np.uint8) * (255 if array.dtype == bool else 1)
    if pixels.ndim == 3 and pixels.shape[0] in (1, 3, 4) and pixels.shape[-1] not in (1, 3, 4):
        pixels = np.moveaxis(pixels, 0, -1)
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
    content = _content(value, root)

    def frames() -> Iterator[Any]:
        with av.open(io.BytesIO(content), options=_NOTHING_ELSE) as container:
            if not container.streams.video:
                raise ValueError("it has no video stream")
            _check_index(container.streams.video[0], content)
            yield from container.decode(video=0)

    # The count in a file's header may be missing or wrong.
    times: list[int | None] = []
    ends: deque[bool] = deque(maxlen=_REORDERED)
    last = 0
    for frame in frames():
        times.append(frame.pts)
        ends.append(frame.is_corrupt)
        last = frame.duration
    if not times:
        raise ValueError("it has no frames")
    if any(ends):
        raise EndsEarlyError("its last frames are not complete")
    wanted = _shown_in_the_middles(times, last, num_frames)
    kept = {index: _upright(frame) for index, frame in enumerate(frames()) if index in wanted}
    return [kept[index] for index in wanted]


def _content(value: Any, root: str | None) -> bytes:
    """The bytes of a video or audio file that was not cut off."""
    with opened(value, root) as file:
        content = file.read()
    check_end(content)
    return content


def _check_index(stream: Any, content: bytes) -> None:
    # An mp4 file that begins with its index decodes without an error to where it was cut off.
    if any(entry.pos + entry.size > len(content) for entry in stream.index_entries):
        raise EndsEarlyError("its index names bytes behind its end")


def _shown_in_the_middles(times: Sequence[int | None], last: int | None, number: int) -> list[int]:
    """Find the frames that are shown in the middles of `number` equal parts of a video.

    Args:
        times: ticks at which each frame begins.
        last: duration of the last frame, if that is known.
        number: number of parts.
    """
    total = len(times)
    known = [time for time in times if time is not None]
    if len(known) < total or total == 1 or known != sorted(known) or known[0] == known[-1]:
        return _middles(total, number)
    first, spacing = known[0], (known[-1] - known[0]) / (total - 1)
    last = last or round(spacing)
    # Times are rounded, in some containers to milliseconds, so that equal parts would end before a frame or behind it.
    is_even = all(abs(time - first - index * spacing) < spacing / 2 for index, time in enumerate(known))
    if is_even and last < 1.5 * spacing:
        return _middles(total, number)
    length = known[-1] + last - first
    return [bisect_right(known, first + (2 * index + 1) * length / (2 * number) + 1) - 1 for index in range(number)]


def _upright(frame: Any) -> Image:
    """A frame as it is shown: a file may say how its frames are turned and mirrored."""
    image = frame.to_image()
    turned = next((bytes(data) for data in frame.side_data if data.type.name == "DISPLAYMATRIX"), None)
    if turned is None:
        return image
    # A pixel at (x, y) is shown at (a x + c y, b x + d y).
    a, b, _, c, d, *_ = np.frombuffer(turned, np.int32).tolist()
    pixels, across, down = np.asarray(image), a, d
    if abs(a) + abs(d) < abs(b) + abs(c):
        pixels, across, down = pixels.swapaxes(0, 1), c, b
    return PILImage.fromarray(np.ascontiguousarray(pixels[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]))


def _decoded_audio(value: Any, sampling_rate: int | None, root: str | None) -> np.ndarray:
    av = _av()
    content = _content(value, root)
    with av.open(io.BytesIO(content), options=_NOTHING_ELSE) as container:
        if not container.streams.audio:
            raise ValueError("it has no audio stream")
        _check_index(container.streams.audio[0], content)
        frames = [(frame.sample_rate, _mono(frame)) for frame in container.decode(audio=0)]
    total, declared = sum(len(samples) for _, samples in frames), declared_flac_samples(content)
    if total == 0:
        raise ValueError("it has no samples")
    if declared is not None and total < declared:
        raise EndsEarlyError(f"it has {total} of {declared} samples")
    # A stream of several pieces may change its rate.
    wanted = sampling_rate or frames[0][0]
    pieces = [(rate, [samples for _, samples in piece]) for rate, piece in groupby(frames, lambda frame: frame[0])]
    return np.concatenate([_resampled(np.concatenate(samples), rate, wanted) for rate, samples in pieces])


def _mono(frame: Any) -> np.ndarray:
    if frame.format.is_planar and len(frame.planes) > _MOST_BUFFERS:
        (frame,) = _av().AudioResampler(format="dbl").resample(frame)
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(frame.samples, -1).T
    return _amplitudes(samples).mean(0)


def _channels(array: np.ndarray) -> np.ndarray:
    """A waveform as `(channels, samples)`."""
    if array.ndim == 1 and array.size:
        return array[None]
    if array.ndim == 2 and array.size and min(array.shape) <= _MOST_CHANNELS and array.shape[0] != array.shape[1]:
        return array if array.shape[0] < array.shape[1] else array.T
    raise ValueError(
        "a waveform must have one axis, and samples, or a second axis for at most "
        f"{_MOST_CHANNELS} channels, got shape {array.shape}"
    )


def _amplitudes(samples: np.ndarray) -> np.ndarray:
    """Samples of any kind as float64, which keeps a mean of equal channels equal to each."""
    kind, size = samples.dtype.kind, samples.dtype.itemsize
    if kind == "u" and size == 1:
        return samples / 128.0 - 1
    if kind == "i" and size in (1, 2, 4):
        return samples / float(1 << 8 * size - 1)
    if kind in "iu" and np.abs(samples).max() > 1:
        raise ValueError(
            f"a waveform of whole numbers ({samples.dtype}, as lists of them become) does not say which one is the "
            "loudest; divide them by it, by 32768 if they were 16 bits wide, or give an array of that width"
        )
    return samples.astype(np.float64)


def _resampled(waveform: np.ndarray, rate: Any, wanted: int | None) -> np.ndarray:
    if wanted is None:
        return waveform
    if not isinstance(rate, Number) or not rate > 0 or rate != int(rate):  # type: ignore[operator, call-overload]
        raise ValueError(f"a waveform needs its sampling_rate, a whole number of Hz, got {rate!r}")
    if rate == wanted:
        return waveform
    from scipy.signal import resample_poly

    factor = gcd(int(rate), wanted)  # type: ignore[call-overload]
    return resample_poly(waveform, wanted // factor, int(rate) // factor)  # type: ignore[call-overload]
