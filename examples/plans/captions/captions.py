"""`run_captioning.py` on captions that `examples/captions/make_captions.py` makes, once for all runs.

    python captions.py --source easy_vqa --source_dir DATA/easy_vqa --captions_dir made --image_model DINOV2 \\
        --decoder_config '{"model_type": "bert", "hidden_size": 64, "num_attention_heads": 4}' \\
        --do_train --do_eval --output_dir out

All other options are those of `run_captioning.py`; the tokenizer is that of the captions' words. With `--vit_config`
and `--bert_config`, the model is a `VisionEncoderDecoderModel` of such a ViT and such a BERT, from random weights.
With `--videomae_config`, such a VideoMAE is the encoder of the videos; it starts from the same random weights in all
runs.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    HfArgumentParser,
    VideoMAEConfig,
    VideoMAEImageProcessor,
    VideoMAEModel,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessor,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "captions"))
import make_captions
import run_captioning

from hf_lam.training.recorded_runs import write_once


@dataclass
class SourceArguments:
    """The source of the captions. All other options are those of `run_captioning.py`."""

    source: str = field(metadata={"help": f"What they are about: {', '.join(make_captions.SOURCES)}."})
    source_dir: str = field(metadata={"help": "Folder of its tables."})
    captions_dir: str = field(metadata={"help": "Folder of what is made; it may be used again."})
    vit_config: str | None = field(default=None, metadata={"help": "JSON with options of a ViT, for pictures."})
    bert_config: str | None = field(default=None, metadata={"help": "JSON with options of the BERT that writes."})

    videomae_config: str | None = field(
        default=None, metadata={"help": "JSON with options of a VideoMAE, for videos."}
    )

    def __post_init__(self) -> None:
        if (self.vit_config is None) != (self.bert_config is None):
            raise ValueError("--vit_config and --bert_config make one model: give both, or none.")


def _make_captions(wanted: SourceArguments, folder: Path) -> None:
    make_captions.make(make_captions.MakingArguments(wanted.source, wanted.source_dir, str(folder)))


def _make_model(wanted: SourceArguments, words: Path, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(words)
    vit = ViTConfig(**json.loads(str(wanted.vit_config)))
    roles: dict[str, Any] = {"vocab_size": len(tokenizer), "is_decoder": True, "add_cross_attention": True}
    bert = BertConfig(**json.loads(str(wanted.bert_config)), **roles)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(vit, bert)
    VisionEncoderDecoderModel(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": vit.image_size, "width": vit.image_size}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _make_video_encoder(wanted: SourceArguments, folder: Path) -> None:
    torch.manual_seed(0)
    config = VideoMAEConfig(**json.loads(str(wanted.videomae_config)))
    VideoMAEModel(config).save_pretrained(folder)
    side = {"height": config.image_size, "width": config.image_size}
    scale = [0.5] * config.num_channels
    VideoMAEImageProcessor(
        size={"shortest_edge": config.image_size}, crop_size=side, image_mean=scale, image_std=scale
    ).save_pretrained(folder)


def _made(wanted: SourceArguments, config: str, make: Callable[[Path], None]) -> Path:
    """The folder of a model with random weights, whose name is a hash of its options."""
    folder = Path(wanted.captions_dir, f"{wanted.source}-{hashlib.sha256(config.encode()).hexdigest()[:12]}")
    write_once(folder, make)
    return folder


def main(arguments: list[str] | None = None) -> dict[str, float]:
    kinds: Any = (SourceArguments,)
    parser = HfArgumentParser(kinds, description=__doc__, allow_abbrev=False)
    wanted, further = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    folder = Path(wanted.captions_dir, wanted.source)
    write_once(folder, partial(_make_captions, wanted))
    given = [
        option for split in make_captions.SPLITS for option in (f"--{split}_file", str(folder / f"{split}.parquet"))
    ]
    if wanted.vit_config is None:
        given += ["--decoder_tokenizer", str(folder / "words")]
    else:
        model = _made(
            wanted, f"{wanted.vit_config} {wanted.bert_config}", partial(_make_model, wanted, folder / "words")
        )
        given += ["--model_name_or_path", str(model), "--from_scratch", "true"]
    if wanted.videomae_config is not None:
        given += ["--video_model", str(_made(wanted, wanted.videomae_config, partial(_make_video_encoder, wanted)))]
    return run_captioning.main([*given, *further])


if __name__ == "__main__":
    main()
