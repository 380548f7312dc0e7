"""Videos and sounds in every container, codec and width, as bytes."""

from __future__ import annotations

import io
import wave
from collections.abc import Sequence
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image


class Pipe(io.RawIOBase):
    """A file that cannot be gone back in, so that no header tells the length."""

    def __init__(self) -> None:
        self.written = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.written += data
        return len(data)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def video(
    frames: Sequence[np.ndarray],
    container: str = "mp4",
    codec: str = "mpeg4",
    pixels: str = "yuv420p",
    *,
    times: Sequence[int] | None = None,
    turn: dict[str, Any] | None = None,
    is_piped: bool = False,
    options: dict[str, str] | None = None,
    codec_options: dict[str, str] | None = None,
) -> bytes:
    """Frames `(height, width, 3)`, turned when shown: ten a second, or at `times` and until the last, in 1/100 s."""
    target: Any = Pipe() if is_piped else io.BytesIO()
    height, width = frames[0].shape[:2]
    with av.open(target, "w", format=container, options=options or {}) as file:
        stream = file.add_stream(codec, rate=10 if times is None else 100, options=codec_options or {})
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        if turn is not None:
            if not hasattr(stream, "set_display_rotation"):
                pytest.skip("this PyAV reads how a video is turned, and cannot write it")
            stream.set_display_rotation(**turn)
        for index, pixels_of_frame in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels_of_frame), format="rgb24")
            if times is not None:
                frame.pts, frame.duration = times[index], times[index + 1] - times[index]
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return bytes(target.written) if is_piped else target.getvalue()


def sound(
    waveform: np.ndarray,
    rate: int = 16000,
    container: str = "wav",
    codec: str = "pcm_s16le",
    *,
    layout: str = "mono",
    is_piped: bool = False,
    options: dict[str, str] | None = None,
) -> bytes:
    """A waveform `(samples,)` in [-1, 1] in every channel of the layout, or `(channels, samples)`."""
    target: Any = Pipe() if is_piped else io.BytesIO()
    with av.open(target, "w", format=container, options=options or {}) as file:
        stream = file.add_stream(codec, rate=rate, layout=layout)
        count = stream.layout.nb_channels
        channels = np.broadcast_to(waveform, (count, waveform.shape[-1])).astype(np.float64)
        frame = av.AudioFrame.from_ndarray(channels.T.reshape(1, -1), format="dbl", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        size = stream.codec_context.frame_size or 0
        resampler = av.AudioResampler(format=stream.format.name, layout=layout, rate=rate, frame_size=size)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            file.mux(stream.encode(part))
        file.mux(stream.encode(None))
    return bytes(target.written) if is_piped else target.getvalue()


def wav(waveform: np.ndarray, rate: int = 8000) -> bytes:
    """`waveform` (samples, channels) in [-1, 1]."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(waveform.shape[1])
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes((waveform * 32767).astype("<i2").tobytes())
    return file.getvalue()
