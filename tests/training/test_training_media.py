"""Images, videos and audio, whole and damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from helpers.media import encoded, sound, video, wav
from hf_lam.training.media import UnreadableError, read_audio, read_image, read_video

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 12, 3), dtype=np.uint8)


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
        (tmp_path / "a.png", None),
        (torch.from_numpy(PIXELS), None),
        (torch.from_numpy(PIXELS).permute(2, 0, 1), None),
        (PIXELS.transpose(2, 0, 1).tolist(), None),
        (PIXELS.astype(np.int64), None),
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


def test_truth_values_are_black_and_white() -> None:
    grey = PIXELS[..., 0] > 128
    from_file = read_image(encoded(Image.fromarray(grey)), num_channels=1)
    np.testing.assert_array_equal(np.asarray(from_file), grey * 255)
    np.testing.assert_array_equal(np.asarray(read_image(grey, num_channels=1)), grey * 255)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize(
    ("orientation", "shown"),
    [
        (1, PIXELS),
        (2, PIXELS[:, ::-1]),
        (3, np.rot90(PIXELS, 2)),
        (4, PIXELS[::-1]),
        (5, PIXELS.swapaxes(0, 1)),
        (6, np.rot90(PIXELS, -1)),
        (7, np.rot90(PIXELS, 2).swapaxes(0, 1)),
        (8, np.rot90(PIXELS)),
    ],
)
def test_exif_orientation(orientation: int, shown: np.ndarray, kind: str) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    image = read_image(encoded(Image.fromarray(PIXELS), kind, exif=exif, **options))
    np.testing.assert_array_equal(np.asarray(image), shown)


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


STORED = np.zeros((32, 48, 3), np.uint8)
STORED[:16, :24], STORED[:16, 24:], STORED[16:, :24] = (250, 10, 10), (10, 250, 10), (10, 10, 250)


@pytest.mark.parametrize("container", ["mp4", "mov", "matroska"])
@pytest.mark.parametrize(
    ("turn", "shown"),
    [
        ({"degrees": 0}, STORED),
        ({"degrees": 90}, np.rot90(STORED)),
        ({"degrees": 180}, np.rot90(STORED, 2)),
        ({"degrees": 270}, np.rot90(STORED, 3)),
        ({"degrees": 0, "hflip": True}, STORED[:, ::-1]),
        ({"degrees": 0, "vflip": True}, STORED[::-1]),
        ({"degrees": 90, "hflip": True}, np.rot90(STORED)[:, ::-1]),
        ({"degrees": 270, "hflip": True}, np.rot90(STORED, 3)[:, ::-1]),
    ],
)
def test_a_video_is_turned_as_it_is_shown(turn: dict[str, Any], shown: np.ndarray, container: str) -> None:
    if container == "matroska" and len(turn) > 1:
        pytest.skip("Matroska has angles, and no mirrors")
    for frame in read_video(video([STORED] * 3, container, "libx264", "yuv444p", turn=turn), 2):
        assert np.abs(np.asarray(frame).astype(int) - shown).max() < 40 and np.asarray(frame).shape == shown.shape


@pytest.mark.parametrize(
    ("codec", "pixels"),
    [
        ("libx264", "yuv420p"),
        ("libx264", "yuv444p10le"),
        ("libx264", "yuvj444p"),
        ("libx264rgb", "rgb24"),
        ("ffv1", "bgr0"),
        ("ffv1", "gbrp10le"),
        ("mjpeg", "yuvj420p"),
        ("mpeg4", "yuv420p"),
        ("libvpx", "yuv420p"),
    ],
)
def test_the_same_colours_from_every_codec(codec: str, pixels: str) -> None:
    (frame,) = read_video(video([STORED] * 3, "matroska", codec, pixels), 1)
    difference = np.abs(np.asarray(frame).astype(int) - STORED)
    difference[12:20] = difference[:, 20:28] = 0  # where colours meet
    assert difference.max() < 12


def test_odd_sizes() -> None:
    odd = np.random.default_rng(0).integers(0, 256, (33, 21, 3), dtype=np.uint8)
    (frame,) = read_video(video([odd] * 3, "matroska", "ffv1", "bgr0"), 1)
    np.testing.assert_array_equal(np.asarray(frame), odd)


def test_frames_that_last_longer_fill_more_of_the_video() -> None:
    levels = [0, 40, 80, 120, 160, 200]
    shown = [1, 4, 8, 3, 3, 1]  # tenths of a second
    frames = [np.full((32, 32, 3), level, np.uint8) for level in levels]
    times = [10 * time for time in np.cumsum([0, *shown]).tolist()]
    even = [frame for frame, tenths in zip(frames, shown, strict=True) for _ in range(tenths)]
    for container, codec, pixels in (("matroska", "ffv1", "bgr0"), ("mp4", "mpeg4", "yuv420p")):
        seen = [
            [int(np.asarray(frame).mean()) for frame in read_video(content, 5)]
            for content in (
                video(frames, container, codec, pixels, times=times),
                video(even, container, codec, pixels),
            )
        ]
        np.testing.assert_allclose(seen[0], seen[1], atol=4)


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


TONE = 0.5 * np.sin(2 * np.pi * 440 * np.arange(8000) / 16000)


@pytest.mark.parametrize("layout", ["mono", "stereo", "2.1", "quad", "5.1", "7.1"])
@pytest.mark.parametrize(
    ("container", "codec", "tolerance"),
    [
        ("wav", "pcm_u8", 1e-2),
        ("wav", "pcm_s16le", 1e-4),
        ("wav", "pcm_s24le", 1e-6),
        ("wav", "pcm_s32le", 1e-6),
        ("wav", "pcm_f32le", 1e-6),
        ("wav", "pcm_f64le", 1e-6),
        ("aiff", "pcm_s16be", 1e-4),
        ("flac", "flac", 1e-4),
        ("matroska", "pcm_s16le", 1e-4),
    ],
)
def test_the_same_sound_from_every_file(container: str, codec: str, tolerance: float, layout: str) -> None:
    if codec == "flac" and layout == "2.1":
        pytest.skip("not a layout of FLAC")
    if container == "aiff" and layout == "7.1":
        pytest.skip("PyAV 18.1 frees this layout twice")
    np.testing.assert_allclose(
        read_audio(sound(TONE, 16000, container, codec, layout=layout), 16000), TONE, atol=tolerance
    )


@pytest.mark.parametrize("layout", ["stereo", "5.1"])
def test_a_sound_is_the_mean_of_its_channels(layout: str) -> None:
    channels = np.stack([(index + 1) / 10 * TONE for index in range(2 if layout == "stereo" else 6)])
    expected = channels.mean(0)
    for codec in ("pcm_s24le", "pcm_f32le"):
        np.testing.assert_allclose(read_audio(sound(channels, codec=codec, layout=layout), 16000), expected, atol=1e-6)
    for array in (channels, channels.T, torch.from_numpy(channels), channels.tolist()):
        samples = {"array": array, "sampling_rate": 16000}
        np.testing.assert_allclose(read_audio(samples, 16000), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.int32, np.float32, np.float64])
def test_the_same_sound_from_arrays_of_every_width(dtype: Any) -> None:
    samples = TONE
    if np.dtype(dtype).kind != "f":
        samples = np.round(TONE * 2.0 ** (8 * np.dtype(dtype).itemsize - 1) + (128 if dtype == np.uint8 else 0))
    for value in (samples.astype(dtype), {"array": samples.astype(dtype), "sampling_rate": 16000.0}):
        np.testing.assert_allclose(
            read_audio(value, 16000), TONE, atol=1e-2 if np.dtype(dtype).itemsize == 1 else 1e-4
        )
    tensor = torch.from_numpy(samples.astype(dtype))
    np.testing.assert_array_equal(read_audio(tensor, 16000), read_audio(samples.astype(dtype), 16000))


@pytest.mark.parametrize("rate", [8000, 22050, 44100, 48000])
def test_files_and_arrays_are_resampled_alike(rate: int) -> None:
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate // 2) / rate)
    from_file = read_audio(sound(tone, rate, codec="pcm_f64le", layout="stereo"), 16000)
    np.testing.assert_array_equal(from_file, read_audio({"array": tone, "sampling_rate": rate}, 16000))
    np.testing.assert_allclose(from_file[500:-500], TONE[500:-500], atol=5e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_unreadable(bad: float) -> None:
    broken = TONE.copy()
    broken[7] = bad
    spectrogram = np.zeros((4, 3))
    spectrogram[1, 2] = bad
    for value in (broken, broken.tolist(), {"array": broken, "sampling_rate": 8000}, spectrogram):
        with pytest.raises(UnreadableError, match="values are NaN or infinite"):
            read_audio(value, 16000)
    with pytest.raises(UnreadableError, match="1 of its 8000 values"):
        read_audio(sound(broken, codec="pcm_f32le"), 16000)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"array": TONE}, "needs its sampling_rate"),
        ({"array": TONE, "sampling_rate": float("nan")}, "needs its sampling_rate"),
        ({"array": TONE, "sampling_rate": 0}, "needs its sampling_rate"),
        ([0, 300, -300], "does not say which one is the loudest"),
        ({"array": np.zeros((30, 80)), "sampling_rate": 8000}, "at most 8 channels"),
        (b"text" * 99, "audio"),
        (wav(np.zeros((0, 1))), "no samples"),
        (wav(np.zeros((800, 1)))[:30], "audio"),
        ({"bytes": b"text", "path": "cat.wav"}, "audio 'cat.wav'"),
        ({"array": np.zeros((2, 2, 80)), "sampling_rate": 8000}, "one axis"),
        (np.zeros((2, 2, 2)), "one axis"),
        (None, "got NoneType"),
    ],
)
def test_unreadable_audio_is_named(value: Any, message: str) -> None:
    with pytest.raises(UnreadableError, match=message):
        read_audio(value, 8000)
