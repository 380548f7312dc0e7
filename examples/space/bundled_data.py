"""The data that the bundled models learn: sentences about films, and tones that are low, high, or rise."""

from __future__ import annotations

import numpy as np

RATE = 16_000
SECONDS = 1.0
PITCHES = ("low", "high", "rising")
MOODS = ("bad", "good")

_BAD = ("dull", "awful", "boring", "clumsy", "silly", "tiresome", "cold", "pointless")
_GOOD = ("funny", "moving", "clever", "charming", "warm", "gripping", "brilliant", "wonderful")
# A sentence, and whether its mood is that of the word in it.
_SENTENCES = (
    ("the film is {}", True),
    ("what a {} story", True),
    ("i found it {} from the first scene to the last", True),
    ("the acting is {} and so is the script", True),
    ("it is not {} at all", False),
    ("nothing about this film is {}", False),
)


def make_sentences() -> tuple[list[str], list[int]]:
    """Sentences about films, and the index of each one's mood in `MOODS`."""
    texts, moods = [], []
    for mood, words in enumerate((_BAD, _GOOD)):
        for word in words:
            for sentence, is_meant in _SENTENCES:
                texts.append(sentence.format(word))
                moods.append(mood if is_meant else 1 - mood)
    return texts, moods


def make_words() -> list[str]:
    """Every word of these sentences, sorted."""
    return sorted({word for text in make_sentences()[0] for word in text.split()})


def make_sound(pitch: int, draw: np.random.Generator) -> np.ndarray:
    """A tone of `SECONDS` at `RATE`, `(samples,)`, with a little noise; `pitch` is its index in `PITCHES`."""
    low, high = draw.uniform(500, 700), draw.uniform(1300, 1500)
    start, end = ((low, low), (high, high), (low, high))[pitch]
    time = np.arange(round(RATE * SECONDS)) / RATE
    tone = np.sin(2 * np.pi * (start * time + (end - start) / (2 * SECONDS) * time**2))
    return (0.4 * tone + 0.02 * draw.normal(size=len(time))).astype(np.float32)


def make_sounds(number: int) -> tuple[list[np.ndarray], list[int]]:
    """So many sounds, the same ones every time, and the index of each one's pitch in `PITCHES`."""
    draw = np.random.default_rng(0)
    pitches = [index % len(PITCHES) for index in range(number)]
    return [make_sound(pitch, draw) for pitch in pitches], pitches
