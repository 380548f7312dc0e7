"""Writes `docs/fusion.md` from the rows of the tests beside it: `PYTHONPATH=tests python -m fusion.write_table`."""

from __future__ import annotations

from pathlib import Path

from helpers.fusion_encoders import ENCODERS, FusionEncoder

PAGE = Path(__file__).parents[2] / "docs" / "fusion.md"

_HEAD = """# Which encoders a fusion model can have

The tables of this page are written by `PYTHONPATH=tests python -m fusion.write_table` from the rows of the tests in
`tests/fusion/`, and a test fails where it says anything else. Every row is shown there on a tiny random model:

- a sample gets in a batch what the stock encoder makes of it alone, whatever its padding holds and on whichever side
  it stands; gradients are the same, too, in `eager` attention and the fast paths;
- every parameter has a gradient, also where a batch or a sample lacks the modality: mask tokens, poolers, predictors
  and norms that only poolers read are left out;
- `save_pretrained` and loading, with hf_lam and by `trust_remote_code=True` without it, give the same model;
- layers of its own can be left out (`own_layers`), or that is refused;
- fusion layers start from its upper layers (`fusion_from`) and then compute what it does, or that is refused.

`from_modality_pretrained` takes a Hub id, a folder or a loaded model. Of a task model it takes the encoder; of a
model with a decoder (Whisper), its encoder; of one with an encoder for each modality (CLIP, SigLIP), that of the
modality; of a folder of sentence-transformers, the transformer; of a folder of hf_lam without mechanisms, the model
that it was made from. It reads all configurations first, and refuses what does not fit before weights are read or
downloaded.

What an encoder cannot run on, what gives no sequence of tokens (convolutions, SAM), decoders, and encoders of sound
whose parts see padding and take no mask (SEW, Wav2Vec2-Conformer, adapters) are refused by name. Encoders that are not
in the tables are tried by the same rules; text encoders with convolutions (ConvBERT, MobileBERT, CANINE) are what they
are in transformers: there, padding does change what is next to it.
"""

_KINDS = {"text": "Text", "image": "Images", "video": "Video", "audio": "Sound"}
_NOTES = {
    "text": """\
`input_ids`, with `attention_mask` and `token_type_ids` where the encoder takes them. CLIP's text encoder is
causal: as an encoder that is no matter, but fusion layers cannot start from it.
""",
    "image": """\
`pixel_values`, all images of a batch of one size. Where the table says so, that can be another size than the
encoder was made for, such as 224 pixels for a checkpoint of 518: its positions are interpolated, as in transformers.

SigLIP 2 takes patches: `pixel_values` `(batch, patches, numbers)`, `image_mask` and `spatial_shapes`, the rows and
columns of each image. Without a mask, the shapes say how many patches there are; without shapes, they are a square.
(SigLIP 2 checkpoints of one size, of the type `siglip`, are a SigLIP.)
""",
    "video": """\
`video_values`. V-JEPA 2 is its encoder alone, without the predictor; it takes any number of frames.
""",
    "audio": """\
`audio_values`. Padding may hold anything and stand on either side; `audio_mask` says where there is sound.

- **Whisper** (its encoder) takes log-mel bands over time. With the frames of its whole window, usually 3,000, and
  without a mask, it is what it is in Whisper. A shorter input, or an `audio_mask` over frames, cuts the window to the
  sound: each gets what a Whisper for sounds of just that length makes of it, with the first positions of this one.
  Two frames, or an odd last one, are a token.
- **wav2vec 2.0 and its kin** take waveforms at 16 kHz. Where the first norm is over time (the base models), it is over
  the time of each sound, which transformers does not do: there, padding changes the sound, and those models are
  used without a mask. A sound too short for one token is as one with zeros behind it. `mask_time_prob` and
  `mask_feature_prob` (SpecAugment) have no effect; `layerdrop` is as in transformers.
- **Wav2Vec2-BERT** takes frames, with a mask over them.
- **AST**, and a ViT that takes spectrograms as images, take sounds of one length; `has_audio` says which samples have
  one.
""",
}
_TITLES = ("encoder", "values, after the batch", "mask", "`own_layers`", "`fusion_from`")


def write_page() -> str:
    """The text of the page."""
    parts = [_HEAD]
    for modality, title in _KINDS.items():
        rows = [_row(row) for row in ENCODERS.values() if row.modality == modality]
        parts += [f"## {title}\n", _NOTES[modality], _table(rows)]
    return "\n".join(parts)


def _row(row: FusionEncoder) -> tuple[str, ...]:
    return row.title, row.row, row.mask, "yes" if row.cut else "whole", "yes" if row.taken else "no"


def _table(rows: list[tuple[str, ...]]) -> str:
    lines = [_TITLES, ("---",) * len(_TITLES), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(write_page(), encoding="utf-8")
