"""Images, videos and audio, whole and damaged."""

from __future__ import annotations

import io
import wave
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from hf_lam.training.media import UnreadableError, read_audio, read_image, read_video

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 12, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write_video(path: Path, levels: list[int], codec: str = "mpeg4", **options: str) -> bytes:
    """A video whose frame i has the grey level `levels[i]`."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=5)
        stream.width = stream.height = 32
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        for level in levels:
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), level, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.read_bytes()


def wav(waveform: np.ndarray, rate: int = 8000) -> bytes:
    """`waveform` (samples, channels) in [-1, 1]."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(waveform.shape[1])
        writer.setsampwidth(2)
        writer.setframerate(rate)
        writer.writeframes((waveform * 32767).astype("<i2").tobytes())
    return file.getvalue()


def test_every_form_of_an_image(tmp_path: Path) -> None:
    image = Image.fromarray(PIXELS)
    image.save(tmp_path / "a.png")
    forms: list[tuple[Any, Any]] = [
        (image, None),
        (encoded(image), None),
        (str(tmp_path / "a.png"), None),
        ("a.png", None),
        ({"bytes": encoded(image), "path": None}, None),
        ({"bytes": None, "path": "a.png"}, None),
        (PIXELS, None),
        (PIXELS.tolist(), None),
        (PIXELS.tobytes(), [20, 12, 3]),
    ]
    for value, shape in forms:
        np.testing.assert_array_equal(np.asarray(read_image(value, shape, root=str(tmp_path))), PIXELS)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_every_mode_becomes_rgb_or_grey(mode: str) -> None:
    content = encoded(Image.fromarray(PIXELS).convert(mode), "TIFF" if mode == "CMYK" else "PNG")
    assert (read_image(content).mode, read_image(content, num_channels=1).mode) == ("RGB", "L")


def test_sixteen_bits_are_not_clipped() -> None:
    grey = PIXELS[..., 0]
    for kind in ("PNG", "TIFF"):
        content = encoded(Image.fromarray(grey.astype(np.uint16) * 257), kind)
        np.testing.assert_array_equal(np.asarray(read_image(content, num_channels=1)), grey)


def test_exif_orientation() -> None:
    exif = Image.Exif()
    exif[0x112] = 6  # turned a quarter to the right when it is shown
    image = read_image(encoded(Image.fromarray(PIXELS), exif=exif))
    np.testing.assert_array_equal(np.asarray(image), np.rot90(PIXELS, -1))


@pytest.mark.parametrize(
    ("value", "shape", "message"),
    [
        (b"", None, "image: it is empty, or no image"),
        (b"text", None, "no image of a known format"),
        (encoded(Image.fromarray(PIXELS))[:400], None, "truncated"),
        (encoded(Image.fromarray(PIXELS), "JPEG")[:-20], None, "truncated"),
        ({"bytes": b"text", "path": "cat.png"}, None, "image 'cat.png'"),
        ("missing.png", None, "image 'missing.png'"),
        ("/", None, "directory"),
        (None, None, "got NoneType"),
        ({"bytes": None, "path": None}, None, "got NoneType"),
        (PIXELS.tobytes(), [20, 13, 3], "no array of shape"),
        (np.zeros((2, 2)), None, "whole numbers"),
        (np.full((2, 2), 256), None, "whole numbers"),
        (np.zeros((0, 2), np.uint8), None, "pixels"),
        (encoded(Image.fromarray(np.full((2, 2), 0.5, np.float32)), "TIFF"), None, "whole numbers"),
    ],
)
def test_unreadable_images_are_named(value: Any, shape: Any, message: str) -> None:
    with pytest.raises(UnreadableError, match=message):
        read_image(value, shape, root="/no_folder")


def test_a_decompression_bomb_is_unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UnreadableError, match="decompression bomb"):
        read_image(encoded(Image.fromarray(PIXELS)))


@pytest.mark.parametrize(("suffix", "codec"), [("mp4", "mpeg4"), ("gif", "gif")])
def test_the_middles_of_a_video(tmp_path: Path, suffix: str, codec: str) -> None:
    levels = [20 * index for index in range(10)]
    write_video(tmp_path / f"v.{suffix}", levels, codec)

    def seen(number: int) -> np.ndarray:
        return np.array([np.asarray(frame).mean() for frame in read_video(f"v.{suffix}", number, root=str(tmp_path))])

    tolerance = 25 if codec == "gif" else 4  # of 8 colours a channel
    np.testing.assert_allclose(seen(5), [20, 60, 100, 140, 180], atol=tolerance)
    assert len(seen(15)) == 15  # more than there are


def test_every_form_of_a_video() -> None:
    video = np.arange(4, dtype=np.uint8)[:, None, None] * np.ones((1, 6, 5), np.uint8)
    images = [Image.fromarray(frame) for frame in video]
    for value, shape in [(video, None), (video.tobytes(), [4, 6, 5]), (images, None), (video.tolist(), None)]:
        frames = read_video(value, 2, shape, num_channels=1)
        assert [np.asarray(frame)[0, 0] for frame in frames] == [1, 3]


def test_unreadable_videos_are_named(tmp_path: Path) -> None:
    levels = list(range(0, 200, 10))
    whole = write_video(tmp_path / "a.mp4", levels)
    index_first = write_video(tmp_path / "b.mp4", levels, movflags="faststart")
    assert len(read_video(index_first, 3)) == 3
    for value, message in [
        (b"", "video"),
        (b"text" * 99, "Invalid data found when processing input$"),
        (whole[: len(whole) // 2], "video"),
        (index_first[:-10], "ends early"),
        (wav(np.zeros((800, 1))), "no video stream"),
        ({"bytes": b"text", "path": "cat.mp4"}, "video 'cat.mp4'"),
        ("missing.mp4", "missing.mp4"),
        ([], "no frames"),
        (np.zeros((0, 2, 2), np.uint8), "no frames"),
        ([None], "got NoneType"),
        (None, "got NoneType"),
    ]:
        with pytest.raises(UnreadableError, match=message):
            read_video(value, 2, root=str(tmp_path))


def test_a_playlist_opens_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "secret.mp4", [0, 100])
    with pytest.raises(UnreadableError):
        read_video(b"ffconcat version 1.0\nfile 'secret.mp4'\n", 2)


def test_audio() -> None:
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)[:, None]
    np.testing.assert_allclose(read_audio(wav(tone), None), tone[:, 0], atol=1e-4)
    both = read_audio(wav(np.hstack([tone, tone])), 8000)
    assert np.corrcoef(both, tone[:, 0])[0, 1] > 0.999
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)
    samples = {"array": tone[:, 0], "sampling_rate": 8000}
    for resampled in (read_audio(wav(tone), 16000), read_audio(samples, 16000)):
        assert resampled.shape == (16000,) and resampled.dtype == np.float32
        np.testing.assert_allclose(resampled[500:-500], expected[500:-500], atol=0.02)
    spectrogram = np.arange(12, dtype="<f2").reshape(4, 3)
    np.testing.assert_array_equal(read_audio(spectrogram.tobytes(), None, [4, 3]), spectrogram)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"text" * 99, "audio"),
        (wav(np.zeros((0, 1))), "no samples"),
        (wav(np.zeros((800, 1)))[:30], "audio"),
        ({"bytes": b"text", "path": "cat.wav"}, "audio 'cat.wav'"),
        ({"array": np.zeros((2, 80)), "sampling_rate": 8000}, "one axis"),
        (np.zeros((2, 2, 2)), "one axis"),
        (None, "got NoneType"),
    ],
)
def test_unreadable_audio_is_named(value: Any, message: str) -> None:
    with pytest.raises(UnreadableError, match=message):
        read_audio(value, 8000)
