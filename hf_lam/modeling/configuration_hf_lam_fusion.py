# Copyright 2026 The hf_lam authors. Licensed under the Apache License, Version 2.0.
"""The configuration of a model that fuses encoders of text, images, videos and audio, and vectors.

This file travels with saved models; see `configuration_hf_lam.py`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from types import NoneType
from typing import Any, ClassVar, NamedTuple

from transformers import AutoConfig, PreTrainedConfig

from .configuration_hf_lam import HfLamConfigMixin
from .cross_lam_hf_lam import check_cross_lam
from .decoder_options_hf_lam import decoder_config_of, read_token_ids
from .fusion_features_hf_lam import FeatureOptions, read_features
from .injection_hf_lam import check_grid
from .locomt_hf_lam import baseline_block, find_baseline
from .mechanism_registry_hf_lam import configs_in, mechanism_block
from .moment_options_hf_lam import read_moment_options
from .option_checks_hf_lam import as_config, check_host_options, is_count


class ModalityArguments(NamedTuple):
    """The arguments of a fusion model's `forward` that are about one modality.

    values: name of the argument with the modality's values.
    mask: name of the argument that says which tokens (for sound, which samples) of the values count; None if there is
        none.
    others: names of further arguments that go with the values, by the name that the encoder has for them.
    """

    values: str
    mask: str | None
    others: Mapping[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        """All of them."""
        return (self.values, *filter(None, [self.mask]), *self.others)


# Of every modality that has an encoder.
ENCODER_ARGUMENTS = {
    "text": ModalityArguments("input_ids", "attention_mask", {"token_type_ids": "token_type_ids"}),
    "image": ModalityArguments("pixel_values", "image_mask", {"spatial_shapes": "spatial_shapes"}),
    "video": ModalityArguments("video_values", None, {}),
    "audio": ModalityArguments("audio_values", "audio_mask", {}),
}
# What processors of one modality call what has another name here.
OTHER_NAMES = {
    "input_values": "audio_values",
    "input_features": "audio_values",
    "pixel_values_videos": "video_values",
    "pixel_attention_mask": "image_mask",
}
INPUT_NAMES = {name: arguments.values for name, arguments in ENCODER_ARGUMENTS.items()}
MODALITIES = tuple(ENCODER_ARGUMENTS)
# The end of the names of arguments of a modality of vectors.
FEATURES, FEATURE_MASK, FEATURE_POSITIONS = "_features", "_mask", "_positions"
BASELINES = ("full", "self", "bottleneck", "late")

# The values that plain fields can have. (Those of stock configurations are checked by transformers.)
_NUMBER = ((int, float), "a number")
_FIELDS: dict[str, tuple[tuple[Any, ...], str]] = {
    **dict.fromkeys(("hidden_size", "num_attention_heads", "intermediate_size"), ((int, NoneType), "an integer")),
    "num_hidden_layers": ((int,), "an integer"),
    "hidden_act": ((str,), "the name of an activation"),
    "norm_first": ((bool,), "True or False"),
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), _NUMBER),
    **dict.fromkeys(("layer_norm_eps", "initializer_range"), _NUMBER),
    "classifier_dropout": ((int, float, NoneType), "a number, or None for hidden_dropout_prob"),
    "projection_dim": ((int,), "an integer"),
    "logit_scale_init_value": _NUMBER,
}


class HfLamFusionConfig(HfLamConfigMixin, PreTrainedConfig):
    """Several encoders, one for each modality, and a transformer encoder over the tokens of all of them.

    Every modality runs through its own encoder, or is given as vectors that were computed before. It is projected to
    `hidden_size` where it has another width, and takes its place in one sequence, in the order of `modalities`. The
    fusion layers run on that sequence, with the mechanisms of `hf_lam`: attention views by the names of the modalities
    (LoCoMT), a learnable mask (LAM), or both.

    Args:
        text_config: configuration of the text encoder, BERT or one of its family, or its dictionary with `model_type`;
            `None` for no text. Likewise the next three. An encoder's `num_hidden_layers` is how many layers a modality
            has of its own before fusion: fewer than the checkpoint's is mid fusion, as in MBT.
        image_config: configuration of the image encoder, such as ViT or DeiT.
        video_config: configuration of the video encoder, such as VideoMAE.
        audio_config: configuration of the audio encoder, such as the Audio Spectrogram Transformer.
        features: modalities without an encoder, which are given as vectors: the options of each by its name, such as
            `{"clips": {"size": 512}}`; see `FeatureOptions`. A number alone is its size. They may have the names of
            the four above, where these have no encoder.
        modalities: their order in the sequence; `None` is text, image, video, audio, as far as there are, and then
            features.
        hidden_size: width `d` of the fusion layers; `None` is that of the first modality that has an encoder.
        num_hidden_layers: fusion layers; 0 is late fusion, where the modalities meet in the pooled output only.
        num_attention_heads: heads of the fusion layers; `None` is as many as the same encoder has.
        intermediate_size: width of their feed-forward layers; `None` is four times `hidden_size`.
        hidden_act: their activation.
        norm_first: normalise before attention and feed-forward layers, as ViT does, and once at the end; or after
            each, as BERT does. Before pre-norm fusion layers, the encoders leave out their own last norm.
        hidden_dropout_prob: dropout of the fusion layers, in training.
        attention_probs_dropout_prob: dropout of their attention weights.
        layer_norm_eps: epsilon of their norms.
        initializer_range: standard deviation of random weights.
        pooling: what a modality gives to the pooled output, by its name or for all: `"cls"`, its first token (for the
            Audio Spectrogram Transformer the mean of its two, as that model does itself), or `"mean"` over its tokens.
            `None` is `"cls"` for encoders and features that have such a token, and `"mean"` for the others.
        combine: `"mean"` over the modalities that a sample has, or `"concat"`, with zeros for those it does not have.
        classifier_dropout: dropout before the classifier; `None` is `hidden_dropout_prob`.
        label_modalities: modalities whose tokens a token classifier labels. They lie in step: the tokens at one place
            of each belong together, such as what was said and what was seen in one utterance. `None` is all features,
            or the text where there are none.
        contrast: the two sides that the loss of an embedding model compares, each a list of modalities. `None` is the
            first modality, and all others.
        projection_dim: size of an embedding.
        logit_scale_init_value: logarithm of the factor on similarities before training, as in CLIP.
        moments: options of a model that finds moments in a video, such as `{"num_queries": 10}`; see `MomentOptions`.
            Its `label_modalities` are the clips.
        decoder: configuration of the decoder of a model that writes text, one of transformers' causal language models
            that has cross-attention, such as GPT-2 or BERT, or its dictionary with `model_type`.
        decoder_lam: learnable masks on the decoder's cross-attention: options of `LamConfig`, such as `{"rank": 8}`.
            A dense mask (without `rank`) has a column for each token of the fusion model.
        decoder_start_token_id: token that a text begins with; `None` is that of the decoder's configuration, or its
            `bos_token_id`. Likewise the next three.
        bos_token_id: the decoder's token for the beginning of a text.
        eos_token_id: token that ends a text, or a list of such tokens.
        pad_token_id: token that fills the places after the end; `None` is the first `eos_token_id` where the decoder
            has none, either.
        hf_lam: the mechanisms of the fusion layers, for example `{"locomt": {"views": "half"}}`.
        baseline: one of the papers' baselines in place of `hf_lam`; see the property of that name. It is written down
            as what it means, in `hf_lam` and `num_hidden_layers`.

    Raises:
        ValueError: for a value outside the above; the message names it.
    """

    model_type = "hf_lam_fusion"
    host_model_type: ClassVar[None] = None
    code_suffix: ClassVar[str] = "_fusion"
    sub_configs: ClassVar[dict[str, Any]] = {
        **{f"{name}_config": AutoConfig for name in MODALITIES},
        "decoder": AutoConfig,
    }
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoModel": "HfLamFusionModel",
        "AutoModelForSequenceClassification": "HfLamFusionForSequenceClassification",
        "AutoModelForTokenClassification": "HfLamFusionForTokenClassification",
        "AutoModelForSeq2SeqLM": "HfLamFusionForConditionalGeneration",
    }
    alternatives: ClassVar[dict[str, list[str]]] = {
        "AutoModel": ["HfLamFusionForEmbedding", "HfLamFusionForMomentRetrieval"]
    }
    # For transformers before 5.19: it must not try to make one without arguments.
    has_no_defaults_at_init: ClassVar[bool] = True
    # What `Trainer` does not gather in evaluation.
    keys_to_ignore_at_inference = [
        *("hidden_states", "attentions", "token_mask", "modality_ids", "modality_states"),
        *("logits_per_first", "logits_per_second", "first_model_output", "second_model_output", "loss_dict"),
        *("cache", "past_key_values", "decoder_hidden_states", "decoder_attentions", "cross_attentions"),
        *("encoder_last_hidden_state", "encoder_hidden_states", "encoder_attentions"),
    ]

    text_config: Any = None
    image_config: Any = None
    video_config: Any = None
    audio_config: Any = None
    features: Any = None
    modalities: Any = None
    hidden_size: Any = None
    num_hidden_layers: int = 4
    num_attention_heads: Any = None
    intermediate_size: Any = None
    hidden_act: str = "gelu"
    norm_first: bool = True
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pooling: Any = None
    combine: str = "mean"
    classifier_dropout: Any = None
    label_modalities: Any = None
    contrast: Any = None
    projection_dim: int = 512
    logit_scale_init_value: float = 2.6592
    moments: Any = None
    decoder: Any = None
    decoder_lam: Any = None
    decoder_start_token_id: Any = None
    bos_token_id: Any = None
    eos_token_id: Any = None
    pad_token_id: Any = None
    hf_lam: Any = None

    def __post_init__(self, **kwargs: Any) -> None:
        baseline = kwargs.pop("baseline", None)
        strange = sorted(key for key, value in kwargs.items() if key.endswith("_config") and _is_of_model(value))
        if strange:
            raise ValueError(
                f"HfLamFusionConfig has no {', '.join(strange)}; its modalities are {', '.join(MODALITIES)}."
            )
        for name in MODALITIES:
            setattr(self, f"{name}_config", encoder_config_of(name, getattr(self, f"{name}_config")))
        given = [name for name in MODALITIES if getattr(self, f"{name}_config") is not None]
        self.features = None if self.features is None else read_features(self.features) or None
        taken = {argument for name in given for argument in ENCODER_ARGUMENTS[name].names}
        both = [name for name in self.features or () if name in given or taken & {*feature_arguments(name).names}]
        if both:
            raise ValueError(
                f"HfLamFusionConfig: features cannot be called {', '.join(both)} beside encoders of {given}, which "
                "have that name, or an argument that would have the same; give features another name."
            )
        given += self.features or ()
        if not given:
            raise ValueError(
                "HfLamFusionConfig needs at least one modality: give text_config, image_config, video_config, "
                "audio_config or features."
            )
        if self.modalities is None:
            self.modalities = given
        if not isinstance(self.modalities, (list, tuple)) or sorted(map(str, self.modalities)) != sorted(given):
            raise ValueError(
                f"HfLamFusionConfig: modalities must list {given} in the order of the sequence, each once, got "
                f"{self.modalities!r}."
            )
        self.modalities = list(self.modalities)
        self._resolve_sizes()
        self._check_pooling()
        self._check_heads()
        self.moments = None if self.moments is None else read_moment_options(self.moments)
        self._read_decoder()
        if baseline is not None:
            if self.hf_lam is not None:
                raise ValueError(
                    f"HfLamFusionConfig: baseline={baseline!r} stands for mechanisms of its own; leave out hf_lam, "
                    f"which has {sorted(set(self.hf_lam) - {'version'})}."
                )
            self.baseline = baseline
        if self.hf_lam is not None and self.num_hidden_layers == 0:
            raise ValueError(
                "HfLamFusionConfig: hf_lam has no meaning with num_hidden_layers=0, late fusion, which has no fusion "
                "layers that could have mechanisms."
            )
        if self.architectures is None:
            # `AutoModel.from_config` looks into it where it has several classes to choose from.
            self.architectures = []
        super().__post_init__(**kwargs)

    def _resolve_sizes(self) -> None:
        first = next((name for name in self.modalities if name not in (self.features or ())), None)
        for name in ("hidden_size", "num_attention_heads"):
            if getattr(self, name) is None:
                if first is None:
                    raise ValueError(f"HfLamFusionConfig: {name} must be given where no modality has an encoder.")
                setattr(self, name, getattr(self.modality_config(first), name))
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        for name, least in (
            ("hidden_size", 1),
            ("num_attention_heads", 1),
            ("intermediate_size", 1),
            ("num_hidden_layers", 0),
        ):
            value = getattr(self, name)
            if not is_count(value, least):
                raise ValueError(f"HfLamFusionConfig: {name} must be an integer of at least {least}, got {value!r}.")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"HfLamFusionConfig: hidden_size={self.hidden_size} must be a multiple of "
                f"num_attention_heads={self.num_attention_heads}."
            )
        for name, options in (self.features or {}).items():
            if not options["project"] and options["size"] != self.hidden_size:
                raise ValueError(
                    f"HfLamFusionConfig: features[{name!r}] of size {options['size']} cannot have project=False: the "
                    f"fusion layers are {self.hidden_size} wide."
                )

    def _check_pooling(self) -> None:
        pooling = self.pooling
        by_name = dict.fromkeys(self.modalities, pooling) if isinstance(pooling, str) or pooling is None else pooling
        if not isinstance(by_name, Mapping) or not set(by_name) <= set(self.modalities):
            raise ValueError(
                "HfLamFusionConfig: pooling must be 'cls', 'mean' or one of them for each of "
                f"{self.modalities}, got {pooling!r}."
            )
        for name, value in by_name.items():
            if value not in ("cls", "mean", None):
                raise ValueError(f"HfLamFusionConfig: pooling of {name} must be 'cls' or 'mean', got {value!r}.")
        if not isinstance(pooling, (str, type(None))):
            self.pooling = dict(by_name)
        if self.combine not in ("mean", "concat"):
            raise ValueError(f"HfLamFusionConfig: combine must be 'mean' or 'concat', got {self.combine!r}.")

    def _check_heads(self) -> None:
        if self.label_modalities is not None:
            self.label_modalities = self._read_names("label_modalities", self.label_modalities)
        if self.contrast is not None:
            sides = self.contrast
            if not isinstance(sides, (list, tuple)) or len(sides) != 2:
                raise ValueError(
                    f"HfLamFusionConfig: contrast must be two lists of modalities of {self.modalities}, got {sides!r}."
                )
            self.contrast = [self._read_names("contrast", side) for side in sides]
            both = sorted(set(self.contrast[0]) & set(self.contrast[1]))
            if both:
                raise ValueError(f"HfLamFusionConfig: contrast has {', '.join(both)} on both sides.")
        if not is_count(self.projection_dim, 1):
            raise ValueError(
                f"HfLamFusionConfig: projection_dim must be an integer of at least 1, got {self.projection_dim!r}."
            )
        if not math.isfinite(self.logit_scale_init_value):
            raise ValueError(
                f"HfLamFusionConfig: logit_scale_init_value must be finite, got {self.logit_scale_init_value!r}."
            )

    def _read_decoder(self) -> None:
        self.decoder = decoder_config_of(self.decoder)
        # What transformers asks where it generates.
        self.is_encoder_decoder = self.decoder is not None
        if self.decoder_lam is not None and self.decoder is None:
            raise ValueError("HfLamFusionConfig: decoder_lam has no meaning without a decoder.")
        self.decoder_lam = None if self.decoder_lam is None else check_cross_lam(self.decoder_lam)
        for name, ids in read_token_ids(self).items():
            setattr(self, name, ids)

    def _read_names(self, option: str, names: Any) -> list[str]:
        is_list = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
        if not is_list or not names or not set(names) <= set(self.modalities) or len(set(names)) < len(names):
            raise ValueError(
                f"HfLamFusionConfig: {option} must list modalities of {self.modalities}, each once, got {names!r}."
            )
        return list(names)

    @property
    def labelled_modalities(self) -> list[str]:
        """Whose tokens a token classifier labels: `label_modalities`, or what it stands for where it is None.

        Raises:
            ValueError: for None, where there are neither features nor a text.
        """
        if self.label_modalities is not None:
            return list(self.label_modalities)
        features = [name for name in self.modalities if name in (self.features or ())]
        if not features and self.text_config is None:
            raise ValueError(
                "HfLamFusionConfig: label_modalities must say whose tokens are labelled, where there are neither "
                f"features nor a text; the modalities are {self.modalities}."
            )
        return features or ["text"]

    @property
    def contrasted_modalities(self) -> tuple[list[str], list[str]]:
        """The two sides of an embedding model: `contrast`, or what it stands for where it is None.

        The second side of a model with one modality is empty.
        """
        first, second = self.contrast or (self.modalities[:1], self.modalities[1:])
        return list(first), list(second)

    @property
    def baseline(self) -> str | None:
        """The name of the papers' baseline that this is; None for none of them. Setting it drops the mechanisms.

        `"full"` is attention over all tokens; `"self"`, every modality by itself; `"bottleneck"`, the same with a few
        learned tokens between them (MBT, arXiv 2107.00135); `"late"`, no fusion layers.
        """
        if self.num_hidden_layers == 0:
            return "late"
        if self.hf_lam is None:
            return "full"
        return find_baseline(self.hf_lam)

    @baseline.setter
    def baseline(self, baseline: str) -> None:
        if baseline not in BASELINES:
            raise ValueError(f"HfLamFusionConfig: baseline must be one of {', '.join(BASELINES)}, got {baseline!r}.")
        if baseline != "late" and self.num_hidden_layers == 0:
            raise ValueError(
                f"HfLamFusionConfig: baseline={baseline!r} needs fusion layers, but num_hidden_layers=0: late fusion."
            )
        self.hf_lam = None
        if baseline == "late":
            self.num_hidden_layers = 0
        elif baseline != "full":
            self.hf_lam = baseline_block(baseline)

    def as_baseline(self, baseline: str) -> HfLamFusionConfig:
        """The same model without its mechanisms, as one of the baselines that the papers compare with.

        Args:
            baseline: `"full"`, `"self"`, `"bottleneck"` or `"late"`; see the property of that name.

        Returns:
            A new configuration.

        Raises:
            ValueError: for another baseline, or one with fusion layers where there are none.
        """
        other = copy.deepcopy(self)
        other.baseline = baseline
        return other

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> Any:
        """The configuration of the text, as in transformers: the decoder's, or that of the text encoder."""
        if self.decoder is None:
            return super().get_text_config(decoder=decoder, encoder=encoder)
        if encoder and not decoder:
            return self if self.text_config is None else self.text_config
        return self.decoder

    def modality_config(self, name: str) -> Any:
        """The configuration of one modality's encoder, or its `FeatureOptions` if it has none."""
        if name in (self.features or ()):
            return FeatureOptions(**self.features[name])
        return getattr(self, f"{name}_config")

    def modality_arguments(self, name: str) -> ModalityArguments:
        """The arguments of the model's `forward` that are about one modality, without `has_…`."""
        if name in (self.features or ()):
            return feature_arguments(name)
        return ENCODER_ARGUMENTS[name]

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "hf_lam":
            check_grid(type(self).__name__, configs_in(mechanism_block(value)))
        kinds, wanted = _FIELDS.get(name, ((object,), ""))
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds and object not in kinds):
            raise ValueError(f"{type(self).__name__}: {name} must be {wanted}, got {value!r}.")
        super().__setattr__(name, value)


def feature_arguments(name: str) -> ModalityArguments:
    """The arguments of a modality of vectors."""
    return ModalityArguments(f"{name}{FEATURES}", f"{name}{FEATURE_MASK}", {f"{name}{FEATURE_POSITIONS}": "positions"})


def _is_of_model(config: Any) -> bool:
    """Unlike that of a quantiser, for example."""
    return isinstance(config, PreTrainedConfig) or (isinstance(config, Mapping) and "model_type" in config)


def encoder_config_of(modality: str, config: Any) -> Any:
    """A modality's configuration as an object; a `ValueError` that names the modality if it is none."""
    if config is None:
        return None
    config = as_config(f"{modality}_config", config, "an encoder such as BERT, ViT, VideoMAE or AST")
    if config.model_type.startswith("hf_lam_"):
        raise ValueError(
            f"{modality}_config is of type {config.model_type!r}; a fusion model has its mechanisms in the fusion "
            "layers, and takes stock encoders."
        )
    lacking = [
        name for name in ("hidden_size", "num_hidden_layers", "num_attention_heads") if not hasattr(config, name)
    ]
    if lacking:
        raise ValueError(
            f"{modality}_config is a {type(config).__name__} without {', '.join(lacking)}, so it is not one of an "
            "encoder that gives a sequence of tokens. Of a model with several, such as CLIP, give one: its "
            "CLIPVisionModel."
        )
    check_host_options(f"{modality}_config", config)
    config = copy.deepcopy(config)
    if getattr(config, "use_cache", False):
        # There is none. Where it is on, transformers warns under checkpointing, which stops `torch.compile`.
        config.use_cache = False
    return config
