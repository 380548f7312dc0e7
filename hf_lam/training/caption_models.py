"""Models that write captions, as runs train them: fusion models with a decoder, and `VisionEncoderDecoderModel`."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer, TrOCRProcessor

from ..mechanism_options import json_object
from ..modeling.targets_hf_lam import token_ids_of
from .fusion_arguments import FusionArguments
from .models import load_config, load_image_processor, load_model, load_pretrained

_OF_DECODERS = ("decoder_model", "decoder_config", "decoder_tokenizer", "decoder_lam")
_IMAGES = "vision_encoder_decoder"


@dataclass
class CaptioningArguments(FusionArguments):
    """A saved model that writes captions, or what a new one is made of: encoders or vectors, and a decoder."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "A saved fusion model that writes text, or a VisionEncoderDecoderModel. Without it, a new one "
            "is made of the encoders, columns of vectors and decoder that are named."
        },
    )
    decoder_model: str | None = field(
        default=None,
        metadata={
            "help": "The decoder of a new model, a Hub id or a folder: a decoder such as GPT-2, or an encoder such "
            "as BERT used as one. Cross-attention that it lacks starts from random weights."
        },
    )
    decoder_config: str | None = field(
        default=None,
        metadata={
            "help": "The configuration of a decoder with random weights, in place of --decoder_model, as JSON or a "
            'JSON file: \'{"model_type": "gpt2", "n_embd": 64, "n_layer": 2, "n_head": 4}\'. The vocabulary is that '
            "of --decoder_tokenizer."
        },
    )
    decoder_tokenizer: str | None = field(
        default=None,
        metadata={"help": "The tokenizer of the captions. Unless given, that of --decoder_model or --text_model."},
    )
    decoder_lam: str | None = field(
        default=None,
        metadata={
            "help": "Options of a learnable mask in the cross-attention of a new decoder, as JSON or a JSON file: "
            "'{\"rank\": 8}'."
        },
    )

    def check_source(self) -> None:
        super().check_source()
        given = [name for name in _OF_DECODERS if getattr(self, name) is not None]
        if self.model_name_or_path is not None:
            if given:
                raise ValueError(
                    f"--{given[0]} is for a new model; --model_name_or_path has a decoder and a tokenizer of its own."
                )
            return
        if (self.decoder_model is None) == (self.decoder_config is None):
            raise ValueError("a new model needs a decoder: give --decoder_model or --decoder_config, one of them.")
        options = self.decoder_options()
        if self.decoder_config is not None and "model_type" not in options:
            raise ValueError('--decoder_config needs a "model_type", such as "gpt2" or "bert".')
        if self.tokenizer_source() is None:
            raise ValueError("--decoder_config needs the words of a --decoder_tokenizer.")
        self.decoder_lam_options()

    def decoder_options(self) -> dict[str, Any]:
        """The value of `--decoder_config`."""
        return json_object("--decoder_config", self.decoder_config)

    def decoder_lam_options(self) -> dict[str, Any] | None:
        """The value of `--decoder_lam`; None if it was not given."""
        return None if self.decoder_lam is None else json_object("--decoder_lam", self.decoder_lam)

    def tokenizer_source(self) -> str | None:
        """The place that the tokenizer of a new model's captions is loaded from."""
        return self.decoder_tokenizer or self.decoder_model or self.text_model


@dataclass(frozen=True)
class Decoder:
    """The parts of a new model that write captions.

    model: a causal language model with cross-attention.
    tokenizer: tokenizer of the captions.
    options: options of the whole model's configuration: the tokens that a caption begins and ends with.
    """

    model: Any
    tokenizer: Any
    options: dict[str, Any]


def load_decoder(arguments: CaptioningArguments) -> Decoder:
    """The decoder of a new model. What in it starts from random weights is the same under the same seed.

    Raises:
        ValueError: for a configuration of no decoder, a tokenizer that does not say where a text ends, or one with
            more words than the decoder.
    """
    tokenizer = load_pretrained(AutoTokenizer, str(arguments.tokenizer_source()), arguments, of_model=False)
    tokens = _token_ids(tokenizer)
    roles: dict[str, Any] = {"is_decoder": True, "add_cross_attention": True}
    # Whatever was drawn before: runs are compared whose encoders have mechanisms, or none.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(f"{torch.initial_seed()} decoder".encode()))
        if arguments.decoder_model is not None:
            name = arguments.decoder_model
            if arguments.from_scratch:
                config = load_pretrained(AutoConfig, name, arguments, of_model=False, **roles)
                model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            else:
                options = {**roles, "dtype": torch.float32}
                model = load_pretrained(AutoModelForCausalLM, name, arguments, of_model=False, **options)
        else:
            # Not the tokens that a configuration names unless it is told: they are words of another tokenizer.
            named = {
                "vocab_size": len(tokenizer),
                "bos_token_id": tokens["decoder_start_token_id"],
                **{name: tokens[name] for name in ("eos_token_id", "pad_token_id")},
            }
            config = _new_config({**named, **arguments.decoder_options(), **roles})
            model = AutoModelForCausalLM.from_config(config)
    words = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > words:
        raise ValueError(f"the tokenizer of captions has {len(tokenizer)} words, and the decoder {words}.")
    # A decoder that was trained to begin with another token goes on with that.
    known = arguments.decoder_options() if arguments.decoder_model is None else model.config.to_dict()
    start = known.get("decoder_start_token_id")
    return Decoder(model, tokenizer, tokens if start is None else {**tokens, "decoder_start_token_id": start})


def _new_config(options: dict[str, Any]) -> Any:
    try:
        config = AutoConfig.for_model(**options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"--decoder_config: {error}") from error
    unknown = sorted(
        set(options) - set(config.to_dict()) - set(config.attribute_map) - {field.name for field in fields(config)}
    )
    if unknown:
        raise ValueError(f"--decoder_config: {type(config).__name__} has no option {', '.join(unknown)}.")
    return config


def _token_ids(tokenizer: Any) -> dict[str, int]:
    found = token_ids_of(tokenizer)
    lacking = sorted({"decoder_start_token_id", "eos_token_id", "pad_token_id"} - set(found))
    if lacking:
        raise ValueError(
            f"the tokenizer of captions, a {type(tokenizer).__name__}, has no token for {', '.join(lacking)}: give it "
            "a bos_token and an eos_token, and save it."
        )
    return found


# --- VisionEncoderDecoderModel ---------------------------------------------------------------------------------------


def is_of_images(arguments: CaptioningArguments) -> bool:
    """Whether the model is a saved `VisionEncoderDecoderModel`, stock or with mechanisms.

    Raises:
        ValueError: for an option that only fusion models have.
    """
    if arguments.model_name_or_path is None:
        return False
    kind = load_config(arguments).model_type
    is_it = kind.replace("-", "_").endswith(_IMAGES)
    for option in ("features", "cache_features"):
        if is_it and getattr(arguments, option) is not None:
            raise ValueError(f"--{option} is for fusion models, and {arguments.model_name_or_path!r} is a {kind}.")
    return is_it


def load_image_captioner(arguments: CaptioningArguments, is_trained: bool) -> Any:
    """A saved `VisionEncoderDecoderModel`, with the mechanisms that were asked for in its encoder."""
    return load_model(arguments, AutoModelForImageTextToText, load_config(arguments), is_trained)


def load_image_caption_processor(arguments: CaptioningArguments, model: Any) -> Any:
    """The image processor and the tokenizer that lie beside it, as one processor.

    If the model does not say which tokens a caption begins and ends with, the tokenizer does.
    """
    name = str(arguments.processor_name_or_path or arguments.model_name_or_path)
    tokenizer = load_pretrained(AutoTokenizer, name, arguments)
    for option, token in _token_ids(tokenizer).items():
        if getattr(model.generation_config, option, None) is None:
            setattr(model.generation_config, option, token)
        if getattr(model.config, option, None) is None:
            setattr(model.config, option, getattr(model.generation_config, option))
    return TrOCRProcessor(load_image_processor(arguments, model.encoder.config), tokenizer)
