"""Videos and sounds that were cut off are refused; what went to a pipe declares no length, and passes."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers.media import encoded, sound, video
from hf_lam.training.media import UnreadableError, read_audio, read_video
from hf_lam.training.media_ends import looks_whole

TONE = 0.5 * np.sin(2 * np.pi * 440 * np.arange(12000) / 16000)


def frames() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 255, (32, 48, 3), dtype=np.uint8) for _ in range(10)]


def read_frames(content: bytes) -> np.ndarray:
    return np.stack([np.asarray(frame) for frame in read_video(content, 3)])


def read_sound(content: bytes) -> np.ndarray:
    return read_audio(content, 16000)


VIDEOS: dict[str, dict[str, Any]] = {
    "mp4": {"container": "mp4", "codec": "libx264"},
    "mp4 in fragments": {
        "container": "mp4",
        "codec": "libx264",
        "options": {"movflags": "frag_keyframe+empty_moov"},
        "codec_options": {"g": "5"},
    },
    "mov": {"container": "mov", "codec": "mjpeg", "pixels": "yuvj420p"},
    "mkv": {"container": "matroska", "codec": "libx264"},
    "webm": {"container": "webm", "codec": "libvpx"},
    "ts": {"container": "mpegts", "codec": "libx264"},
    "m2v in ts": {"container": "mpegts", "codec": "mpeg2video"},
    "mpg": {"container": "mpeg", "codec": "mpeg2video"},
    "avi": {"container": "avi", "codec": "mpeg4"},
    "wmv": {"container": "asf", "codec": "mpeg4"},
    "ogv": {"container": "ogg", "codec": "libvpx"},
    "gif": {"container": "gif", "codec": "gif", "pixels": "rgb8"},
}
SOUNDS: dict[str, dict[str, Any]] = {
    "wav": {},
    "wav of floats": {"codec": "pcm_f64le"},
    "rf64": {"options": {"rf64": "always"}},
    "adpcm": {"codec": "adpcm_ima_wav"},
    "w64": {"container": "w64"},
    "aiff": {"container": "aiff", "codec": "pcm_s24be"},
    "au": {"container": "au", "codec": "pcm_s16be"},
    "caf": {"container": "caf", "codec": "pcm_s16be"},
    "flac": {"container": "flac", "codec": "flac"},
    "mp3": {"container": "mp3", "codec": "libmp3lame"},
    "mp3 without a count": {"container": "mp3", "codec": "libmp3lame", "options": {"write_xing": "0"}},
    "mp3 of many rates": {"container": "mp3", "codec": "libmp3lame", "rate": 44100},
    "mp2": {"container": "mp2", "codec": "mp2", "rate": 44100},
    "opus": {"container": "ogg", "codec": "libopus", "rate": 48000},
    "flac in ogg": {"container": "ogg", "codec": "flac"},
    "m4a": {"container": "ipod", "codec": "aac"},
    "m4a that begins with its index": {
        "container": "ipod",
        "codec": "alac",
        "options": {"movflags": "frag_keyframe+empty_moov"},
    },
    "mka": {"container": "matroska", "codec": "libopus", "rate": 48000},
    "ts": {"container": "mpegts", "codec": "aac"},
}
NOT_PIPED = ("mov", "m4a", "rf64", "w64", "aiff")


def check(content: bytes, read: Callable[[bytes], np.ndarray]) -> None:
    """Cut off anywhere, it is refused, or gives the same as the whole; most of it is seen without reading."""
    assert looks_whole(content)
    assert looks_whole(content[: len(content) // 2 - 1]) == content.startswith(b"fLaC")
    whole = read(content)
    for cut in [1, 100, *np.linspace(2, 0.8 * len(content), 8).astype(int)]:
        try:
            part = read(content[:-cut])
        except UnreadableError:
            continue
        np.testing.assert_array_equal(part, whole, err_msg=f"{cut} of {len(content)} bytes cut off")
    with pytest.raises(UnreadableError):
        read(content[: len(content) // 2 - 1])


@pytest.mark.parametrize("kind", VIDEOS)
def test_a_video_that_was_cut_off(kind: str) -> None:
    check(video(frames(), **VIDEOS[kind]), read_frames)


@pytest.mark.parametrize("kind", SOUNDS)
def test_a_sound_that_was_cut_off(kind: str) -> None:
    check(sound(TONE, **SOUNDS[kind]), read_sound)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "npy", "npz"])
def test_whether_a_picture_or_an_array_was_cut_off_is_seen_without_reading(kind: str) -> None:
    (pixels, *_), file = frames(), io.BytesIO()
    if kind.startswith("np"):
        (np.save if kind == "npy" else np.savez)(file, pixels)
    content = file.getvalue() or encoded(Image.fromarray(pixels), kind)
    assert looks_whole(content)
    assert not any(looks_whole(content[:end]) for end in (-1, -5, len(content) // 2, 10, 3, 0))


def test_what_is_of_no_known_kind_does_not_look_whole() -> None:
    assert not any(map(looks_whole, (b"a text", b"", bytes(1000), b"<!DOCTYPE html>" * 100)))


@pytest.mark.parametrize("kind", [kind for kind in VIDEOS if kind not in NOT_PIPED and kind != "mp4"])
def test_a_video_from_a_pipe_passes(kind: str) -> None:
    options = dict(VIDEOS[kind])
    if options["codec"] == "libx264":
        # x264 does not always choose the same; without losses all its choices show the same.
        options["codec_options"] = {**options.get("codec_options", {}), "qp": "0"}
    whole, piped = (read_frames(video(frames(), **options, is_piped=is_piped)) for is_piped in (False, True))
    np.testing.assert_array_equal(piped, whole)


@pytest.mark.parametrize("kind", [kind for kind in SOUNDS if kind not in NOT_PIPED])
def test_a_sound_from_a_pipe_passes(kind: str) -> None:
    assert len(read_sound(sound(TONE, **SOUNDS[kind], is_piped=True))) >= len(TONE) * 16000 // SOUNDS[kind].get(
        "rate", 16000
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (slice(40, 44), b"\0\0\0\0"),  # never written
        (slice(40, 44), b"\xff\xff\xff\xff"),
        (slice(40, 44), b"\x00\xf0\xff\x7f"),  # nearly 2 GB, as sox and arecord write
        (slice(4, 8), b"\0\0\0\0"),  # that of the whole file, which nobody needs
    ],
)
def test_lengths_that_nobody_knew(field: slice, value: bytes) -> None:
    content = bytearray(sound(TONE, options={"fflags": "+bitexact"}))
    assert content[36:40] == b"data"
    content[field] = value
    np.testing.assert_array_equal(read_sound(bytes(content)), read_sound(sound(TONE)))


def test_a_length_that_counts_the_header_too() -> None:
    content = bytearray(sound(TONE, options={"fflags": "+bitexact"}))
    for size in (len(content), len(content) - 8):
        content[40:44] = size.to_bytes(4, "little")
        assert len(read_sound(bytes(content))) == len(TONE)


@pytest.mark.parametrize("tail", [b"TAG" + bytes(125), b"APETAGEX" + bytes(40)])
def test_what_follows_an_mp3_is_no_frame(tail: bytes) -> None:
    content = sound(TONE, container="mp3", codec="libmp3lame", options={"write_xing": "0"})
    np.testing.assert_allclose(read_sound(content + tail)[:12000], read_sound(content)[:12000], atol=1e-3)
