"""Save every model class with one environment, load it with another. Run by `.ci/versions.py`.

    python make_and_check.py save FOLDER        with hf_lam: make stock and converted models, save them all
    python make_and_check.py load FOLDER        without hf_lam: load each by its Auto class from the code in its folder
    python make_and_check.py load-stock FOLDER  with hf_lam: load the stock checkpoints into the HfLam classes

The commands are separate processes, and may run under different versions of transformers; `save` also looks for the
private names of transformers that hf_lam relies on. One mechanism is not hf_lam's own, so that its file has to travel;
where models are loaded, its original cannot be imported either. What FOLDER holds:

    models/CASE/                 a converted model with mechanisms that are not the identity, as a user would push it
    references/CASE.safetensors  its inputs and outputs
    stock/CLASS/                 a checkpoint of the stock class, saved by the same version of transformers
    references/CLASS.safetensors its inputs and outputs
"""

import argparse
import importlib.abc
import json
import os
import sys
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
# What must not be imported where models are loaded without hf_lam.
ORIGINALS = {"hf_lam", "helpers"}

# Same machine, same torch, same kernels: only the order of a few operations may differ between versions.
LOAD_TOLERANCE = 2e-6
# A converted model takes other kernels than its stock original; a family may compute its positions in another order.
STOCK_TOLERANCE = 1e-5
# A case whose mechanisms change the outputs by less would pass with them lost.
LEAST_EFFECT = 1e-3


@dataclass(frozen=True)
class Case:
    stock_class: str
    auto_class: str
    lam: dict | None = field(default_factory=dict)
    locomt: dict | None = None
    stt: dict | None = None
    # The mechanism from elsewhere.
    head_factor: dict | None = None

    @property
    def hf_lam_class(self):
        return "HfLam" + self.stock_class

    @property
    def name(self):
        options = {key: value for key, value in (self.lam or {}).items()}
        if self.locomt is not None:
            options = {"lam": "too", **options} if self.lam is not None else options
            options |= {key: "given" if isinstance(value, list) else value for key, value in self.locomt.items()}
        if self.stt is not None:
            options |= {"stt": self.stt.get("variant", "mixture"), **self.stt}
            options.pop("variant", None)
        if self.head_factor is not None:
            options = {"lam": "too", **options} if self.lam is not None else options
            options |= {"head_factor": "given", **self.head_factor}
        return "-".join([self.hf_lam_class, *(f"{key}_{value}" for key, value in options.items())])

    @property
    def block(self):
        given = {"lam": self.lam, "locomt": self.locomt, "stt": self.stt, "head_factor": self.head_factor}
        return {key: dict(options) for key, options in given.items() if options is not None}

    @property
    def starts_as_the_original(self):
        locomt = self.locomt or {}
        return not self.is_pure_stt and (locomt.get("views", "full") == "full" or locomt.get("annealing", False))

    @property
    def is_pure_stt(self):
        return self.stt is not None and self.stt.get("variant", "mixture") != "mixture"

    @property
    def host(self):
        return next(host for host in HOST_OPTIONS if self.stock_class.startswith(host))


CLASSES = {
    "BertModel": "AutoModel",
    "BertForSequenceClassification": "AutoModelForSequenceClassification",
    "BertForTokenClassification": "AutoModelForTokenClassification",
    "BertForQuestionAnswering": "AutoModelForQuestionAnswering",
    "BertForMaskedLM": "AutoModelForMaskedLM",
    "BertForMultipleChoice": "AutoModelForMultipleChoice",
    "ViTModel": "AutoModel",
    "ViTForImageClassification": "AutoModelForImageClassification",
    "ViTForMaskedImageModeling": "AutoModelForMaskedImageModeling",
    "VideoMAEModel": "AutoModel",
    "VideoMAEForVideoClassification": "AutoModelForVideoClassification",
}
OPTIONS = (
    {"scope": "shared"},
    {"source": "embeddings"},
    {"per_head": True},
    {"rank": 3},
    {"scope": "shared", "per_head": True, "rank": 2},
)
HEADS = ("BertForSequenceClassification", "ViTForImageClassification", "VideoMAEForVideoClassification")
# Every class with the default mask; every option on one head of each backbone, which is loaded as a base too.
CASES = [Case(stock, auto) for stock, auto in CLASSES.items()] + [
    Case(stock, CLASSES[stock], lam) for lam in OPTIONS for stock in HEADS
]
# Attention views on one head of each backbone. BERT's segments are its token types unless given.
VIEW_OPTIONS = {
    "BertForSequenceClassification": [
        {"segments": [["cls", {"length": 1, "global": True}], ["question", 4], ["answer", 7]], "views": "cross"}
    ],
    "ViTForImageClassification": [
        {
            "segments": [["left", {"rectangle": [0, 0, 4, 1]}], ["right", {"rectangle": [0, 1, 4, 3]}]],
            "views": "round_robin",
        }
    ],
    "VideoMAEForVideoClassification": [{"segments": [["a", 3], ["b", 5]], "views": "low_self(1)"}],
}
CASES += [
    Case(stock, CLASSES[stock], lam, locomt)
    for stock in HEADS
    for lam, locomt in [
        (None, {"views": "half"}),
        ({"per_head": True}, {"views": "half", "annealing": True}),
        (None, {"views": "self", "bottleneck_tokens": 2}),
        *((None, options) for options in VIEW_OPTIONS[stock]),
    ]
]
# Synthesised attention: every pure variant, and mixtures alone and with the others.
CASES += [
    Case(stock, CLASSES[stock], lam, locomt, stt)
    for stock in HEADS
    for lam, locomt, stt in [
        (None, None, {"variant": "dense"}),
        (None, None, {"variant": "random"}),
        (None, None, {"variant": "random", "frozen": True}),
        (None, None, {"variant": "factorized_dense"}),
        (None, None, {"variant": "factorized_random", "rank": 2}),
        (None, None, {}),
        (None, None, {"synthesizer": "random", "train_mixing": True}),
        ({"per_head": True}, {"views": "half", "annealing": True}, {"synthesizer": "factorized_dense"}),
    ]
]
# A mechanism from elsewhere, alone and with the others.
CASES += [
    Case(stock, CLASSES[stock], lam, locomt, head_factor=options)
    for stock in HEADS
    for lam, locomt, options in [(None, None, {}), ({}, {"views": "half"}, {"most": 1.5})]
]


@dataclass(frozen=True)
class FusionCase:
    """A fusion model of four encoders."""

    label: str
    auto_class: str = "AutoModelForSequenceClassification"
    block: dict = field(default_factory=dict)
    options: dict = field(default_factory=lambda: {"num_hidden_layers": 2})

    host = "Fusion"

    @property
    def stock_class(self):
        return "Fusion" + self.auto_class.removeprefix("Auto").replace("ModelFor", "For")

    @property
    def hf_lam_class(self):
        return "HfLam" + self.stock_class

    @property
    def name(self):
        return f"{self.hf_lam_class}-{self.label}"


# The encoder of each modality, and the argument of the fusion model that holds its input.
ENCODERS = {
    "text": ("BertModel", "input_ids"),
    "image": ("ViTModel", "pixel_values"),
    "video": ("VideoMAEModel", "video_values"),
    "audio": ("ASTModel", "audio_values"),
}
FUSION_CASES = [
    FusionCase("half", block={"locomt": {"views": "half"}}),
    FusionCase("lam_and_views", block={"lam": {"per_head": True}, "locomt": {"views": "round_robin"}}),
    FusionCase(
        "bottleneck",
        block={"locomt": {"views": "self", "bottleneck_tokens": 2}},
        options={"num_hidden_layers": 2, "norm_first": False, "hidden_size": 24, "combine": "concat"},
    ),
    FusionCase("late", auto_class="AutoModel", options={"num_hidden_layers": 0}),
]


@dataclass(frozen=True)
class FamilyCase:
    """A family of `helpers/families.py`, which has the model and its inputs, with one of the mechanisms there."""

    family: str
    stock_class: str
    mechanism: str
    auto_class: str = "AutoModel"

    @property
    def hf_lam_class(self):
        return "HfLam" + self.stock_class

    @property
    def name(self):
        return f"{self.hf_lam_class}-{self.mechanism}"

    @property
    def head(self):
        return self.auto_class.removeprefix("AutoModelFor") if self.auto_class != "AutoModel" else None


# Of each kind some: other names for the parts, rotary, windows, towers that are nested in another way in one of the
# versions, sound, a predictor beside the encoder.
FAMILY_CASES = [
    FamilyCase("roberta", "RobertaModel", "lam+views"),
    FamilyCase("roberta", "RobertaForMaskedLM", "lam_rank", "AutoModelForMaskedLM"),
    FamilyCase("distilbert", "DistilBertModel", "stt_mixture"),
    FamilyCase("modernbert", "ModernBertModel", "lam"),
    FamilyCase("modernbert", "ModernBertForSequenceClassification", "lam_rank", "AutoModelForSequenceClassification"),
    FamilyCase("dinov2", "Dinov2ForImageClassification", "views", "AutoModelForImageClassification"),
    FamilyCase("dinov3_vit", "DINOv3ViTModel", "lam+views"),
    FamilyCase("clip_vision", "CLIPVisionModel", "lam+views"),
    FamilyCase("clip_vision", "CLIPVisionModel", "stt_dense"),
    FamilyCase("clip_vision", "CLIPForImageClassification", "lam_rank", "AutoModelForImageClassification"),
    FamilyCase("clip_text", "CLIPTextModel", "lam"),
    FamilyCase("siglip_vision", "SiglipForImageClassification", "lam", "AutoModelForImageClassification"),
    FamilyCase("siglip2_vision", "Siglip2VisionModel", "lam_rank"),
    FamilyCase("vjepa2", "VJEPA2Model", "lam+views"),
    FamilyCase("wav2vec2", "Wav2Vec2ForCTC", "lam_rank", "AutoModelForCTC"),
    FamilyCase("whisper", "WhisperEncoder", "views"),
    FamilyCase("whisper", "WhisperForAudioClassification", "lam_rank", "AutoModelForAudioClassification"),
]


@dataclass(frozen=True)
class ComposedCase:
    """A model that is made of an encoder of `helpers/families.py` and a decoder, with masks on both or on one."""

    stock_class: str
    auto_class: str
    family: str
    decoder: str
    mechanism: str
    decoder_lam: dict | None = None

    @property
    def hf_lam_class(self):
        return "HfLam" + self.stock_class

    @property
    def name(self):
        masked = "" if self.decoder_lam is None else "-decoder_lam"
        return f"{self.hf_lam_class}-{self.family}-{self.decoder}-{self.mechanism}{masked}"


COMPOSED_CASES = [
    ComposedCase("VisionEncoderDecoderModel", "AutoModelForImageTextToText", "vit", "gpt2", "stt_dense"),
    ComposedCase("VisionEncoderDecoderModel", "AutoModelForMultimodalLM", "dinov3_vit", "bert", "lam", {"rank": 2}),
    ComposedCase("VisionEncoderDecoderModel", "AutoModel", "vit", "gpt2", "lam_rank", {}),
    ComposedCase("SpeechEncoderDecoderModel", "AutoModelForSpeechSeq2Seq", "ast", "gpt2", "views"),
    ComposedCase("EncoderDecoderModel", "AutoModelForSeq2SeqLM", "roberta", "bert", "lam_rank"),
]


@dataclass(frozen=True)
class VectorsCase:
    """A fusion model of vectors (`helpers/fusion_vectors.py`), beside an encoder of `helpers/fusion_encoders.py`."""

    hf_lam_class: str
    auto_class: str
    mechanisms: str
    encoder: str | None = None
    options: dict = field(default_factory=dict)

    @property
    def name(self):
        return "-".join([self.hf_lam_class, self.encoder or "vectors", self.mechanisms])


DECODER_SIZES = {"vocab_size": 40, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
# Each with its own names for the sizes, its own cross-attention, and its own way to tie its embeddings.
DECODERS = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32},
    "bert": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24},
    "bart": {"d_model": 16, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 24},
}


def writing_case(mechanisms, decoder, decoder_lam):
    """A model that writes, with masks on the cross-attention of its decoder."""
    config = {"model_type": decoder, **DECODER_SIZES, **DECODERS[decoder]}
    options = {"decoder": config, "decoder_lam": decoder_lam, "decoder_start_token_id": 1}
    return VectorsCase("HfLamFusionForConditionalGeneration", "AutoModelForSeq2SeqLM", mechanisms, options=options)


# Of each head one, and of encoders those whose input is not that of `ENCODERS`.
VECTORS_CASES = [
    VectorsCase(
        "HfLamFusionForTokenClassification",
        "AutoModelForTokenClassification",
        "half",
        options={"label_modalities": ["clips"]},
    ),
    VectorsCase("HfLamFusionForEmbedding", "AutoModel", "lam_shared_rank", options={"projection_dim": 8}),
    VectorsCase(
        "HfLamFusionForMomentRetrieval", "AutoModel", "lam_shared_rank", options={"label_modalities": ["clips"]}
    ),
    writing_case("lam_shared_rank", "gpt2", {"rank": 2}),
    writing_case("half", "bert", {"rank": 2, "scope": "shared"}),
    writing_case("bottleneck", "bart", {"rank": 2, "per_head": True, "source": "embeddings"}),
    *(
        VectorsCase("HfLamFusionForSequenceClassification", "AutoModelForSequenceClassification", "half", encoder)
        for encoder in ("whisper", "wav2vec2", "siglip2_vision", "vjepa2", "dinov3_vit")
    ),
]

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
HOST_OPTIONS = {
    "Bert": {"vocab_size": 64, "max_position_embeddings": 24},
    "ViT": {"image_size": 16, "patch_size": 4, "num_channels": 3, "encoder_stride": 4, "num_labels": 3},
    "VideoMAE": {"image_size": 16, "patch_size": 8, "num_frames": 4, "tubelet_size": 2, "num_labels": 3},
    "AST": {"num_mel_bins": 16, "max_length": 32, "patch_size": 4, "frequency_stride": 4, "time_stride": 4},
}


def make_inputs(case):
    import torch

    generator = torch.Generator().manual_seed(1)
    if case.host == "Bert":
        shape = (2, 3, 12) if "MultipleChoice" in case.stock_class else (3, 12)
        attention_mask = torch.ones(shape, dtype=torch.long)
        attention_mask[0, ..., 7:] = 0
        token_type_ids = torch.zeros(shape, dtype=torch.long)
        token_type_ids[..., 4:] = 1
        input_ids = torch.randint(0, 64, shape, generator=generator)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
    if case.host == "ViT":
        inputs = {"pixel_values": torch.randn(3, 3, 16, 16, generator=generator)}
        if "MaskedImageModeling" in case.stock_class:
            inputs["bool_masked_pos"] = torch.rand(3, 16, generator=generator) < 0.4
        return inputs
    if case.host == "AST":
        return {"input_values": torch.randn(3, 32, 16, generator=generator)}
    return {"pixel_values": torch.randn(3, 4, 3, 16, 16, generator=generator)}


def outputs_of(model, inputs):
    import torch

    with torch.no_grad():
        outputs = model(**inputs)
    return {key: value.contiguous() for key, value in outputs.items() if isinstance(value, torch.Tensor)}


def add_noise(parameters, seed, scale=0.2):
    """Every parameter off its initial value: a bias that is dropped on the way must show."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))


def difference(outputs, expected):
    if outputs.keys() != expected.keys():
        raise AssertionError(f"outputs {sorted(outputs)}, expected {sorted(expected)}")
    for key, value in outputs.items():
        if value.shape != expected[key].shape:
            raise AssertionError(f"{key} has shape {tuple(value.shape)}, expected {tuple(expected[key].shape)}")
        if not value.isfinite().all():
            raise AssertionError(f"{key} is not finite")
    return max(float((value.double() - expected[key].double()).abs().max()) for key, value in outputs.items())


def write_reference(path, inputs, **outputs):
    from safetensors.torch import save_file

    groups = {"inputs": inputs, **outputs}
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"{group}.{key}": value for group, values in groups.items() for key, value in values.items()}
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)


def read_reference(path):
    from safetensors.torch import load_file

    groups = {}
    for name, value in load_file(path).items():
        group, key = name.split(".", 1)
        groups.setdefault(group, {})[key] = value
    return groups


def import_foreign():
    """Register the mechanism from elsewhere, whose file is beside this folder."""
    sys.path.insert(0, str(TESTS))
    from helpers import foreign_mechanism

    sys.path.remove(str(TESTS))
    return foreign_mechanism


def check_private_names():
    import transformers

    from hf_lam.modeling.hosts_facts_hf_lam import PRIVATE_NAMES

    sys.path.insert(0, str(TESTS))
    from helpers.private_names import exists

    sys.path.remove(str(TESTS))
    gone = [f"{private.where} {private.name}" for private in PRIVATE_NAMES if not exists(private)]
    if gone:
        raise AssertionError(f"transformers {transformers.__version__} lacks {', '.join(gone)}")
    print(f"all {len(PRIVATE_NAMES)} private names are there, transformers {transformers.__version__}")


def save(folder):
    import torch
    import transformers

    import hf_lam

    check_private_names()
    import_foreign()
    stock_models = {}
    for seed, stock_class in enumerate([*CLASSES, "ASTModel"]):
        case = Case(stock_class, CLASSES.get(stock_class, "AutoModel"))
        config = getattr(transformers, f"{case.host}Config")(**SIZES, **HOST_OPTIONS[case.host])
        torch.manual_seed(seed)
        model = getattr(transformers, stock_class)(config).eval()
        add_noise(model.parameters(), seed=100 + seed, scale=0.1)
        model.save_pretrained(folder / "stock" / stock_class)
        inputs = make_inputs(case)
        stock_models[stock_class] = model
        write_reference(
            folder / "references" / f"{stock_class}.safetensors", inputs, outputs=outputs_of(model, inputs)
        )

    for seed, case in enumerate(CASES):
        reference = read_reference(folder / "references" / f"{case.stock_class}.safetensors")
        inputs = reference["inputs"]
        stock = getattr(transformers, case.stock_class).from_pretrained(folder / "stock" / case.stock_class)
        model = hf_lam.convert(stock, *configs_of(case)).eval()
        if type(model).__name__ != case.hf_lam_class:
            raise AssertionError(f"convert made a {type(model).__name__}, expected {case.hf_lam_class}")
        error = difference(outputs_of(model, inputs), reference["outputs"])
        if case.starts_as_the_original and error > STOCK_TOLERANCE:
            raise AssertionError(f"{case.name}: {error:.1e} from the stock model right after convert()")

        add_noise(hf_lam.mechanism_parameters(model), seed=200 + seed)
        for layer, synthesizer in enumerate(getattr(model.base_model.hf_lam, "stt", ())):
            if not case.is_pure_stt:
                synthesizer.mixing.data.copy_(torch.linspace(0.2, 0.6, 4) + 0.2 * layer)
        outputs = outputs_of(model, inputs)
        effect = difference(outputs, reference["outputs"])
        if effect < LEAST_EFFECT:
            raise AssertionError(f"{case.name}: the mechanisms move the outputs by {effect:.1e} only")
        model.save_pretrained(folder / "models" / case.name)
        hidden = model.base_model(**base_inputs(case, inputs)).last_hidden_state.detach().contiguous()
        write_reference(
            folder / "references" / f"{case.name}.safetensors", inputs, outputs=outputs, base={"hidden": hidden}
        )
    for seed, case in enumerate(FUSION_CASES):
        save_fusion(folder, case, seed=300 + seed)
    for seed, case in enumerate(FAMILY_CASES):
        save_family(folder, case, seed=400 + seed)
    for seed, case in enumerate(VECTORS_CASES):
        save_vectors(folder, case, seed=500 + seed)
    for seed, case in enumerate(COMPOSED_CASES):
        save_composed(folder, case, seed=600 + seed)
    print(
        f"saved {len(stock_models)} stock, {len(CASES)} converted and {len(FUSION_CASES) + len(VECTORS_CASES)} fusion "
        f"models, {len(FAMILY_CASES)} of further families and {len(COMPOSED_CASES)} with a decoder, transformers "
        f"{transformers.__version__}"
    )


def configs_of(case):
    from hf_lam.modeling.mechanism_registry_hf_lam import config_class_of

    return [config_class_of(name)(**options) for name, options in case.block.items()]


def make_fusion(folder, case):
    """A fusion model of the stock checkpoints in a folder, whichever version saved them."""
    import hf_lam

    encoders = {name: folder / "stock" / stock_class for name, (stock_class, _) in ENCODERS.items()}
    options = {"hf_lam": case.block or None, "num_labels": 3, **case.options}
    return getattr(hf_lam, case.hf_lam_class).from_modality_pretrained(**encoders, **options)


def save_fusion(folder, case, seed):
    import copy

    import torch

    import hf_lam

    model = make_fusion(folder, case)
    add_noise(model.parameters(), seed, scale=0.1)
    inputs = {"has_audio": torch.tensor([True, False, True]), "has_image": torch.tensor([True, True, False])}
    for stock_class, argument in ENCODERS.values():
        values = read_reference(folder / "references" / f"{stock_class}.safetensors")["inputs"]
        inputs |= values if argument == "input_ids" else {argument: next(iter(values.values()))}
    outputs = outputs_of(model, inputs)
    if case.block:
        effect = difference(outputs_of(hf_lam.remove(copy.deepcopy(model)), inputs), outputs)
        if effect < LEAST_EFFECT:
            raise AssertionError(f"{case.name}: the mechanisms move the outputs by {effect:.1e} only")
    model.save_pretrained(folder / "models" / case.name)
    hidden = outputs_of(model.base_model, inputs)["last_hidden_state"]
    write_reference(
        folder / "references" / f"{case.name}.safetensors", inputs, outputs=outputs, base={"hidden": hidden}
    )


def save_family(folder, case, seed):
    import torch

    import hf_lam
    from helpers.families import FAMILIES
    from helpers.outputs import outputs_of as floats_of
    from helpers.outputs import without_padding

    family = FAMILIES[case.family]
    inputs = family.inputs()
    stock = family.make(case.head)
    if type(stock).__name__ != case.stock_class:
        raise AssertionError(f"{case.name}: {case.family} made a {type(stock).__name__}")
    stock.save_pretrained(folder / "stock" / case.name)
    expected = without_padding(family, floats_of(stock, inputs))
    model = hf_lam.convert(stock, *family.configs(case.mechanism))
    own = [parameter for name, parameter in model.named_parameters() if ".hf_lam." in f".{name}"]
    add_noise(own, seed=seed, scale=0.3)  # views have none, and are there at once
    for name, buffer in model.named_buffers():
        if ".hf_lam." in f".{name}" and name.endswith("mixing"):
            buffer.fill_(0.4)
    outputs = without_padding(family, floats_of(model, inputs))
    effect = difference(outputs, expected)
    if effect < LEAST_EFFECT:
        raise AssertionError(f"{case.name}: the mechanisms move the outputs by {effect:.1e} only")
    model.save_pretrained(folder / "models" / case.name)
    real = {"tokens": torch.tensor([family.tokens, family.short or family.tokens])}
    reference = folder / "references" / f"{case.name}.safetensors"
    write_reference(reference, inputs, outputs=outputs, stock=expected, real=real)


def save_composed(folder, case, seed):
    import torch
    import transformers

    import hf_lam
    from helpers.families import FAMILIES

    family = FAMILIES[case.family]
    sizes = {"vocab_size": 18, "add_cross_attention": True}
    torch.manual_seed(seed)
    if case.decoder == "bert":
        config = transformers.BertConfig(**{**SIZES, **sizes, "max_position_embeddings": 16, "is_decoder": True})
        decoder = transformers.BertLMHeadModel(config)
    else:
        config = transformers.GPT2Config(**sizes, n_embd=24, n_layer=2, n_head=4, n_positions=16)
        decoder = transformers.GPT2LMHeadModel(config)
    stock = getattr(transformers, case.stock_class)(encoder=family.make(), decoder=decoder).eval()
    add_noise(stock.parameters(), seed, scale=0.05)
    stock.save_pretrained(folder / "stock" / case.name)
    inputs = family.inputs()
    batch = len(next(iter(inputs.values())))
    inputs["decoder_input_ids"] = torch.tensor([[1, 7, 9, 3]]).expand(batch, 4).clone()
    expected = outputs_of(stock, inputs)
    model = hf_lam.convert(stock, *family.configs(case.mechanism))
    if case.decoder_lam is not None:
        model.add_decoder_lam(case.decoder_lam)
    add_noise([p for name, p in model.named_parameters() if ".hf_lam." in f".{name}"], seed=seed, scale=0.5)
    outputs = outputs_of(model, inputs)
    effect = difference({"logits": outputs["logits"]}, {"logits": expected["logits"]})
    if effect < LEAST_EFFECT:
        raise AssertionError(f"{case.name}: the mechanisms move the logits by {effect:.1e} only")
    model.save_pretrained(folder / "models" / case.name)
    write_reference(folder / "references" / f"{case.name}.safetensors", inputs, outputs=outputs, stock=expected)


def save_vectors(folder, case, seed):
    import copy

    import torch

    import hf_lam
    from helpers.fusion_encoders import ENCODERS as ROWS
    from helpers.fusion_vectors import make_vector_fusion, make_vectors

    inputs, encoder = make_vectors(), {}
    if case.encoder is not None:
        row = ROWS[case.encoder]
        inputs |= row.rename(row.inputs())
        encoder = {f"{row.modality}_config": row.make_config()}
    if "decoder" in case.options:
        inputs["decoder_input_ids"] = torch.tensor([[1, 7, 9, 30], [1, 12, 3, 5]])
    model_class = getattr(hf_lam, case.hf_lam_class)
    model = make_vector_fusion(model_class, hf_lam=case.mechanisms, **encoder, **case.options)
    add_noise(model.parameters(), seed, scale=0.1)
    outputs = outputs_of(model, inputs)
    effect = difference(outputs_of(hf_lam.remove(copy.deepcopy(model)), inputs), outputs)
    if effect < LEAST_EFFECT:
        raise AssertionError(f"{case.name}: the mechanisms move the outputs by {effect:.1e} only")
    model.save_pretrained(folder / "models" / case.name)
    write_reference(folder / "references" / f"{case.name}.safetensors", inputs, outputs=outputs)


def real_outputs(model, reference):
    """What a model returns for the inputs of a reference, with zeros where the second sample has padding."""
    tokens, short = reference["real"]["tokens"].tolist()
    outputs = {key: value.clone() for key, value in outputs_of(model, reference["inputs"]).items()}
    for value in outputs.values():
        if value.dim() >= 2 and value.shape[:2] == (2, tokens):
            value[1, short:] = 0
    return {key: value for key, value in outputs.items() if key in reference["outputs"]}


def base_inputs(case, inputs):
    """The inputs of a head as its base takes them: one choice a row, and no image masking (a base made alone has no
    mask token)."""
    inputs = {key: value for key, value in inputs.items() if key != "bool_masked_pos"}
    if "MultipleChoice" in case.stock_class:
        return {key: value.flatten(0, 1) for key, value in inputs.items()}
    return inputs


class BlockOriginals(importlib.abc.MetaPathFinder):
    """Neither hf_lam nor the file of the mechanism from elsewhere is there."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] in ORIGINALS:
            raise ModuleNotFoundError(f"{fullname} is blocked here: a pushed model must not need it", name=fullname)
        return None


def clean(info):
    """The loading report says that the file and the model have the same tensors."""
    left = {key: sorted(map(str, value)) for key, value in info.items() if value}
    if left:
        raise AssertionError(f"the loading report is not empty: {left}")


def load(folder):
    sys.meta_path.insert(0, BlockOriginals())
    import transformers

    def check(case):
        path = folder / "models" / case.name
        reference = read_reference(folder / "references" / f"{case.name}.safetensors")
        written = json.loads((path / "config.json").read_text())
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=True)
        found, expected = config.to_dict()["hf_lam"], written["hf_lam"]
        if found != expected or set(expected or {"version"}) != {"version", *case.block}:
            raise AssertionError(f"hf_lam is {found} in the loaded config, {expected} in the file")

        auto_class = getattr(transformers, case.auto_class)
        model, info = auto_class.from_pretrained(path, trust_remote_code=True, output_loading_info=True)
        if type(model).__name__ != case.hf_lam_class or not type(model).__module__.startswith("transformers_modules."):
            raise AssertionError(f"{case.auto_class} made {type(model).__module__}.{type(model).__name__}")
        clean(info)
        errors = [difference(outputs_of(model.eval(), reference["inputs"]), reference["outputs"])]

        if case.auto_class != "AutoModel":
            # The folder of a head serves AutoModel too; not every head keeps a pooler.
            options = {"add_pooling_layer": False} if case.host in ("Bert", "ViT") else {}
            base = transformers.AutoModel.from_pretrained(path, trust_remote_code=True, **options).eval()
            hidden = outputs_of(base, base_inputs(case, reference["inputs"]))["last_hidden_state"]
            errors.append(difference({"hidden": hidden}, reference["base"]))
        if "head_factor" in case.block:
            with tempfile.TemporaryDirectory() as again:
                model.save_pretrained(again)
                model = auto_class.from_pretrained(again, trust_remote_code=True)
            errors.append(difference(outputs_of(model.eval(), reference["inputs"]), reference["outputs"]))
        return max(errors)

    def load_case(case):
        auto_class = getattr(transformers, case.auto_class)
        path = folder / "models" / case.name
        model, info = auto_class.from_pretrained(path, trust_remote_code=True, output_loading_info=True)
        if type(model).__name__ != case.hf_lam_class or not type(model).__module__.startswith("transformers_modules."):
            raise AssertionError(f"{case.auto_class} made {type(model).__module__}.{type(model).__name__}")
        clean(info)
        return model.eval(), read_reference(folder / "references" / f"{case.name}.safetensors")

    def check_outputs(case):
        model, reference = load_case(case)
        return difference(outputs_of(model, reference["inputs"]), reference["outputs"])

    def check_family(case):
        model, reference = load_case(case)
        return difference(real_outputs(model, reference), reference["outputs"])

    report("loaded without hf_lam", [*CASES, *FUSION_CASES], check, LOAD_TOLERANCE)
    report("fusion models of vectors loaded without hf_lam", VECTORS_CASES, check_outputs, STOCK_TOLERANCE)
    report("further families loaded without hf_lam", FAMILY_CASES, check_family, STOCK_TOLERANCE)
    report("encoders with a decoder loaded without hf_lam", COMPOSED_CASES, check_outputs, STOCK_TOLERANCE)
    imported = ORIGINALS & {name.partition(".")[0] for name in sys.modules}
    if imported:
        raise AssertionError(f"{', '.join(imported)} was imported")


def load_stock(folder):
    import hf_lam

    import_foreign()

    def check(case):
        reference = read_reference(folder / "references" / f"{case.stock_class}.safetensors")
        hf_lam_class = getattr(hf_lam, case.hf_lam_class)
        block = case.block
        path = folder / "stock" / case.stock_class
        if case.is_pure_stt:
            return difference_from_a_mixture(hf_lam, hf_lam_class, path, case, reference["inputs"])
        if not case.starts_as_the_original:
            block["locomt"] = {**block["locomt"], "views": "full", "bottleneck_tokens": 0}
        model = hf_lam_class.from_pretrained(path, hf_lam=block)
        return difference(outputs_of(model.eval(), reference["inputs"]), reference["outputs"])

    report("stock checkpoints into HfLam classes", CASES, check, STOCK_TOLERANCE)

    def check_family(case):
        reference = read_reference(folder / "references" / f"{case.name}.safetensors")
        hf_lam_class = getattr(hf_lam, case.hf_lam_class)
        model, info = hf_lam_class.from_pretrained(
            folder / "stock" / case.name, hf_lam={"lam": {"rank": 2}}, output_loading_info=True
        )
        clean(info)
        return difference(real_outputs(model.eval(), reference), reference["stock"])

    report("stock checkpoints of further families into HfLam classes", FAMILY_CASES, check_family, STOCK_TOLERANCE)

    def check_composed(case):
        reference = read_reference(folder / "references" / f"{case.name}.safetensors")
        hf_lam_class = getattr(hf_lam, case.hf_lam_class)
        block, masks = {"lam": {"rank": 2}}, {"rank": 2}
        model, info = hf_lam_class.from_pretrained(
            folder / "stock" / case.name, hf_lam=block, decoder_lam=masks, output_loading_info=True
        )
        clean(info)
        return difference(outputs_of(model.eval(), reference["inputs"]), reference["stock"])

    report("stock checkpoints with a decoder into HfLam classes", COMPOSED_CASES, check_composed, STOCK_TOLERANCE)

    def check_encoders(case):
        # Before fusion layers that normalise first, an encoder has lost its own last norm.
        model = make_fusion(folder, replace(case, options={**case.options, "norm_first": False}))
        errors = []
        for name, (stock_class, _) in ENCODERS.items():
            reference = read_reference(folder / "references" / f"{stock_class}.safetensors")
            encoder = model.base_model.modality_model(name)
            expected = {"last_hidden_state": reference["outputs"]["last_hidden_state"]}
            found = outputs_of(encoder, reference["inputs"])
            errors.append(difference({"last_hidden_state": found["last_hidden_state"]}, expected))
        return max(errors)

    report("stock checkpoints into fusion models", FUSION_CASES, check_encoders, STOCK_TOLERANCE)


def difference_from_a_mixture(hf_lam, hf_lam_class, path, case, inputs):
    """A pure variant has other outputs than its stock checkpoint: those of a mixture with the same synthesizers."""
    import torch

    pure, info = hf_lam_class.from_pretrained(path, hf_lam={"stt": case.stt}, output_loading_info=True)
    clean(info)
    options = {"synthesizer" if key == "variant" else key: value for key, value in case.stt.items()}
    mixture = hf_lam_class.from_pretrained(path, hf_lam={"stt": options})
    with torch.no_grad():
        for layer, synthesizer in enumerate(mixture.base_model.hf_lam.stt):
            synthesizer.load_state_dict(pure.base_model.hf_lam.stt[layer].state_dict(), strict=False)
            synthesizer.mixing.fill_(1.0)
    return difference(outputs_of(pure.eval(), inputs), outputs_of(mixture.eval(), inputs))


def report(title, cases, check, tolerance):
    """Run `check` on every case, print one line each, and fail at the end if any failed."""
    import transformers

    print(f"{title}, transformers {transformers.__version__}, at most {tolerance:.0e}")
    failed = []
    for case in cases:
        try:
            error = check(case)
            passed, words = error <= tolerance, f"{error:.1e}"
        except Exception as exception:
            passed, words = False, f"{type(exception).__name__}: {exception}"
        print(f"  {'ok  ' if passed else 'FAIL'} {case.name:60} {words}")
        if not passed:
            failed.append(case.name)
    if failed:
        sys.exit(f"{len(failed)} of {len(cases)} failed: {', '.join(failed)}")
    print(f"  all {len(cases)} ok")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = {"save": save, "load": load, "load-stock": load_stock}
    parser.add_argument("command", choices=commands)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()

    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as modules:
        # transformers reads this once, at its import: no copy of the code from an earlier process serves here.
        os.environ["HF_MODULES_CACHE"] = modules
        # One bar and one loading report a model would hide ours; what a report would say is checked.
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        os.environ["TRANSFORMERS_VERBOSITY"] = "error"
        commands[arguments.command](arguments.folder)


if __name__ == "__main__":
    main()
