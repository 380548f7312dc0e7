from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.overrides import TorchFunctionMode
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedConfig,
    RobertaModel,
    ViTForImageClassification,
    ViTModel,
)

import hf_lam
from helpers.checkpointing import checkpoint_activations, is_checkpointing
from helpers.hosts import (
    BASES,
    CONVERTIBLE,
    LAM_CONFIGS,
    STT_CASES,
    VIEW_CASES,
    first_output,
    make_inputs,
    make_model,
    max_difference,
    mechanisms,
    perturb_mechanisms,
)
from hf_lam import (
    HfLamBertConfig,
    HfLamBertForSequenceClassification,
    HfLamBertModel,
    HfLamViTForImageClassification,
    HfLamViTForMaskedImageModeling,
    HfLamViTModel,
    LamConfig,
    LocomtConfig,
    convert,
    inject,
    load_mechanism,
    mechanism_parameters,
    remove,
    save_mechanism,
    set_views,
)

BLOCK = {"lam": {}}
FULL_VIEWS = {"locomt": {"annealing": True}}
MIXTURE = {"stt": {}}
RANDOM_MIXTURE = {"stt": {"synthesizer": "random", "frozen": True}, "lam": {}}
BLOCKS = pytest.mark.parametrize(
    "block",
    [BLOCK, FULL_VIEWS, MIXTURE, RANDOM_MIXTURE],
    ids=["lam", "full_views", "mixture", "frozen_random_mixture"],
)


@pytest.fixture(params=list(CONVERTIBLE), ids=lambda stock: stock.__name__)
def stock(request: pytest.FixtureRequest) -> type:
    return request.param


def hf_lam_class(stock: type) -> type:
    return getattr(hf_lam, f"HfLam{stock.__name__}")


@pytest.mark.parametrize("views", [(), (LocomtConfig(),)], ids=["lam", "lam_and_full_views"])
def test_convert_keeps_outputs_and_shares_the_weights(stock: type, views: tuple[Any, ...]) -> None:
    model, inputs = make_model(stock, CONVERTIBLE[stock]), make_inputs(CONVERTIBLE[stock], token_types=True)
    original = first_output(model, inputs)
    converted = convert(model, LamConfig(), *views)
    assert type(converted) is hf_lam_class(stock)
    assert isinstance(converted, stock)
    assert not converted.training
    assert max_difference(first_output(converted, inputs), original) < 1e-5
    assert torch.equal(first_output(model, inputs), original)
    theirs, ours = dict(model.named_parameters()), dict(converted.named_parameters())
    assert all(ours[name] is parameter for name, parameter in theirs.items())
    perturb_mechanisms(converted, scale=2.0)
    assert max_difference(first_output(converted, inputs), original) > 1e-6


@pytest.mark.parametrize(
    ("stock", "name"),
    [
        *((stock, name) for stock in CONVERTIBLE for name in ("per_layer", "shared_rank_per_head", "half")),
        *((stock, name) for stock in CONVERTIBLE for name in ("dense", "mixture_all")),
        *((BASES[host], name) for host, name in STT_CASES if BASES[host] in CONVERTIBLE),
        *((BASES[host], name) for host, name in VIEW_CASES if BASES[host] in CONVERTIBLE and name != "half"),
    ],
)
def test_saved_and_loaded_is_the_same(stock: type, name: str, tmp_path: Path, poisoned_empty: None) -> None:
    model = convert(make_model(stock, CONVERTIBLE[stock]), *mechanisms(name, CONVERTIBLE[stock]))
    perturb_mechanisms(model)
    inputs = make_inputs(CONVERTIBLE[stock], token_types=True)
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert loaded.config.hf_lam == model.config.hf_lam
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key
    assert max_difference(first_output(loaded, inputs), first_output(model, inputs)) < 1e-6
    assert not list(tmp_path.glob("*.bin"))


def test_the_configuration_stores_the_segments_and_the_table_of_views(tmp_path: Path) -> None:
    model = convert(make_model(ViTForImageClassification, "vit"), LocomtConfig(views="low_self(2)"))
    of_host = set(make_model(ViTForImageClassification, "vit").state_dict())
    assert set(model.state_dict()) - of_host == {"vit.hf_lam.locomt.mark"}
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())["hf_lam"]["locomt"]
    corners = [[0, 0, 0.5, 0.5], [0, 0.5, 0.5, 0.5], [0.5, 0, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]]
    assert stored["segments"][0] == ["cls", {"length": 1, "global": True}]
    assert [extent["part"] for _, extent in stored["segments"][1:]] == corners
    assert stored["views"][:2] == [["self"] * 4] * 2
    pairs = {f"cross:{a}-{b}" for a, b in combinations([name for name, _ in stored["segments"][1:]], 2)}
    assert len(stored["views"]) == 3 and len(stored["views"][2]) == 4
    assert set(stored["views"][2]) <= {"self", *pairs}


def test_new_views_are_saved(tmp_path: Path) -> None:
    model, inputs = convert(make_model(BertModel, "bert"), LocomtConfig()), make_inputs("bert", token_types=True)
    expected = first_output(set_views(model, LocomtConfig(views="half")), inputs)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["hf_lam"]["locomt"]["views"][0][0] == "self"
    assert torch.equal(first_output(HfLamBertModel.from_pretrained(tmp_path), inputs), expected)


@BLOCKS
def test_a_stock_checkpoint_loads_straight(stock: type, block: dict, tmp_path: Path, poisoned_empty: None) -> None:
    model, inputs = make_model(stock, CONVERTIBLE[stock]), make_inputs(CONVERTIBLE[stock], token_types=True)
    model.save_pretrained(tmp_path)
    loaded, info = hf_lam_class(stock).from_pretrained(tmp_path, hf_lam=block, output_loading_info=True)
    assert not info["missing_keys"]
    assert max_difference(first_output(loaded, inputs), first_output(model, inputs)) < 1e-5
    assert all(parameter.isfinite().all() for parameter in loaded.parameters())


@pytest.mark.slow
def test_a_base_checkpoint_loads_into_a_head_and_back(tmp_path: Path, poisoned_empty: None) -> None:
    for base, head, host in (
        (BertModel, HfLamBertForSequenceClassification, "bert"),
        (ViTModel, HfLamViTForImageClassification, "vit"),
        (ViTForImageClassification, HfLamViTModel, "vit"),
        (ViTForImageClassification, HfLamViTForMaskedImageModeling, "vit"),
        (BertForSequenceClassification, HfLamBertModel, "bert"),
    ):
        model, inputs = make_model(base, host), make_inputs(host, token_types=True)
        model.save_pretrained(tmp_path / base.__name__)
        expected = model(**inputs, output_hidden_states=True).hidden_states[-1]
        for block in (BLOCK, FULL_VIEWS, MIXTURE, RANDOM_MIXTURE):
            loaded = head.from_pretrained(tmp_path / base.__name__, hf_lam=block)
            assert max_difference(loaded(**inputs, output_hidden_states=True).hidden_states[-1], expected) < 1e-5
            assert all(parameter.isfinite().all() for parameter in loaded.parameters())


@pytest.mark.parametrize(("host", "name"), [("bert", "bottleneck"), ("vit", "half"), ("videomae", "shared_lam")])
def test_loading_a_stock_checkpoint_with_views_is_like_converting_it(
    host: str, name: str, tmp_path: Path, poisoned_empty: None
) -> None:
    model, inputs = make_model(BASES[host], host), make_inputs(host, token_types=True)
    model.save_pretrained(tmp_path)
    loaded = hf_lam_class(BASES[host]).from_pretrained(tmp_path, hf_lam=list(mechanisms(name, host)))
    assert all(parameter.isfinite().all() for parameter in loaded.parameters())
    converted = convert(model, *mechanisms(name, host))
    for twin in (loaded, converted):  # the bottleneck starts random
        for parameter in mechanism_parameters(twin):
            parameter.data.fill_(0.1)
    assert max_difference(first_output(loaded, inputs), first_output(converted, inputs)) < 1e-6
    assert loaded.config.hf_lam == converted.config.hf_lam


def test_a_checkpoint_of_an_older_transformers_loads(tmp_path: Path) -> None:
    # What save_pretrained writes are the names that published ViT checkpoints have.
    model = make_model(ViTModel, "vit")
    model.save_pretrained(tmp_path)
    assert "encoder.layer.0.attention.attention.query.weight" in load_file(tmp_path / "model.safetensors")
    loaded = HfLamViTModel.from_pretrained(tmp_path, hf_lam=BLOCK)
    assert torch.equal(loaded.layers[0].attention.q_proj.weight, model.layers[0].attention.q_proj.weight)


def test_load_state_dict_restores_every_tensor_of_a_saved_file(stock: type, tmp_path: Path) -> None:
    model = convert(make_model(stock, CONVERTIBLE[stock]), LamConfig())
    perturb_mechanisms(model)
    inputs = make_inputs(CONVERTIBLE[stock])
    expected = first_output(model, inputs)
    model.save_pretrained(tmp_path)
    for parameter in model.parameters():
        parameter.data.zero_()
    found = model.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=False)
    tied = set(model.all_tied_weights_keys)
    assert set(found.missing_keys) <= tied
    assert not found.unexpected_keys
    assert torch.equal(first_output(model, inputs), expected)


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_attn_implementation_at_load(attn_implementation: str, tmp_path: Path) -> None:
    model = convert(make_model(BertModel, "bert"), LamConfig())
    perturb_mechanisms(model)
    model.save_pretrained(tmp_path)
    loaded = HfLamBertModel.from_pretrained(tmp_path, attn_implementation=attn_implementation)
    inputs = make_inputs("bert")
    assert loaded.config._attn_implementation == attn_implementation
    assert max_difference(first_output(loaded, inputs), first_output(model, inputs)) < 1e-5


def test_auto_classes_need_no_remote_code(stock: type, tmp_path: Path) -> None:
    model = convert(make_model(stock, CONVERTIBLE[stock]), LamConfig())
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is type(model.config)
    assert type(AutoModel.from_pretrained(tmp_path)).__name__ == type(model.config).auto_classes["AutoModel"]
    assert type(AutoModel.from_config(model.config)).__module__.startswith("hf_lam.")


@pytest.mark.parametrize("kind", ["folder", "head"])
def test_convert_from_a_folder(kind: str, tmp_path: Path) -> None:
    model = make_model(ViTForImageClassification, "vit")
    model.save_pretrained(tmp_path)
    auto_class = None if kind == "folder" else AutoModelForImageClassification
    converted = convert(tmp_path, LamConfig(rank=2), auto_class=auto_class, attn_implementation="eager")
    assert type(converted) is (HfLamViTModel if kind == "folder" else HfLamViTForImageClassification)
    assert converted.config.hf_lam["lam"]["rank"] == 2
    assert converted.config._attn_implementation == "eager"


class CountedInitialisations(TorchFunctionMode):
    """How many tensors without values are to be initialised."""

    count = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensor = (kwargs or {}).get("tensor")
        if getattr(function, "__module__", None) == "torch.nn.init" and tensor is not None and tensor.is_meta:
            self.count += 1
        return function(*args, **(kwargs or {}))


def test_convert_from_a_folder_does_nothing_twice_or_in_vain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_model(BertModel, "bert").save_pretrained(tmp_path)
    made = []
    from_dict = PreTrainedConfig.from_dict.__func__

    def counted(cls: Any, *args: Any, **kwargs: Any) -> Any:
        made.append(cls)
        return from_dict(cls, *args, **kwargs)

    monkeypatch.setattr(PreTrainedConfig, "from_dict", classmethod(counted))
    with CountedInitialisations() as initialisations:
        convert(tmp_path, LamConfig(rank=2))
    assert made == [HfLamBertConfig]
    assert initialisations.count == 0
    with CountedInitialisations() as initialisations:
        BertModel.from_pretrained(tmp_path)
    assert initialisations.count > 0


def test_convert_keeps_a_missing_pooler_and_a_mask_token() -> None:
    torch.manual_seed(0)
    config = make_model(ViTModel, "vit").config
    model = ViTModel(config, add_pooling_layer=False, use_mask_token=True).train()
    converted = convert(model, LamConfig())
    assert converted.training
    assert converted.pooler is None
    assert converted.embeddings.mask_token is model.embeddings.mask_token


def test_convert_keeps_gradient_checkpointing_and_frozen_parameters() -> None:
    model = make_model(ViTModel, "vit")
    checkpoint_activations(model, True)
    model.embeddings.requires_grad_(False)
    converted = convert(model, LamConfig(scope="shared"))
    assert is_checkpointing(converted)
    assert not any(parameter.requires_grad for parameter in converted.embeddings.parameters())
    converted.train()(**make_inputs("vit")).last_hidden_state.sum().backward()
    assert all(parameter.grad is not None for parameter in mechanism_parameters(converted))


def test_convert_refuses() -> None:
    with pytest.raises(TypeError, match="Linear"):
        convert(torch.nn.Linear(2, 2), LamConfig())
    with pytest.raises(ValueError, match="no mechanism configuration"):
        convert(make_model(BertModel, "bert"))
    with pytest.raises(ValueError, match="already"):
        convert(convert(make_model(BertModel, "bert"), LamConfig()), LamConfig())
    with pytest.raises(ValueError, match="hf_lam"):
        convert("a/b", LamConfig(), hf_lam={"lam": {}})
    with pytest.raises(ValueError, match="giving none"):
        convert(inject(make_model(BertModel, "bert"), LamConfig()), LamConfig())
    with pytest.raises(ValueError, match="auto_class"):
        convert(make_model(BertModel, "bert"), LamConfig(), auto_class="AutoModel")


def test_convert_refuses_a_head_that_does_not_exist(tmp_path: Path) -> None:
    make_model(ViTModel, "vit").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"AutoModelForMaskedLM.*AutoModelForImageClassification"):
        convert(tmp_path, LamConfig(), auto_class="AutoModelForMaskedLM")


def test_another_kind_of_checkpoint_is_refused(tmp_path: Path) -> None:
    make_model(RobertaModel, "roberta").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"'roberta'.*hf_lam\.convert"):
        HfLamBertModel.from_pretrained(tmp_path, hf_lam=BLOCK)
    with pytest.raises(TypeError, match=r"HfLamBertConfig.*BertConfig"):
        HfLamBertModel(BertConfig())


def edit_weights(folder: Path, edit) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    "lost", ["bert.encoder.layer.1.attention.self.query.weight", "bert.hf_lam.lam.1.in_weight"], ids=["host", "mask"]
)
def test_a_lost_weight_is_an_error(lost: str, tmp_path: Path) -> None:
    convert(make_model(BertForSequenceClassification, "bert"), LamConfig()).save_pretrained(tmp_path)
    edit_weights(tmp_path, lambda tensors: tensors.pop(lost))
    with pytest.raises(RuntimeError, match=lost):
        HfLamBertForSequenceClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["bert.encoder.layer.1.output.dense.weight", "bert.hf_lam.lam.1.out_bias"])
def test_a_weight_of_another_shape_is_an_error(name: str, tmp_path: Path) -> None:
    convert(make_model(BertForSequenceClassification, "bert"), LamConfig()).save_pretrained(tmp_path)
    edit_weights(tmp_path, lambda tensors: tensors.update({name: torch.zeros(3, 3)}))
    with pytest.raises(RuntimeError):
        HfLamBertForSequenceClassification.from_pretrained(tmp_path)


def test_a_truncated_file_is_an_error(tmp_path: Path) -> None:
    convert(make_model(BertModel, "bert"), LamConfig()).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(Exception, match=r"(?i)safetensors|header|incomplete"):
        HfLamBertModel.from_pretrained(tmp_path)


def test_remove_gives_the_host_back_and_saves_without_mechanism(tmp_path: Path) -> None:
    model = make_model(BertModel, "bert")
    inputs = make_inputs("bert")
    expected = first_output(model, inputs)
    converted = convert(model, LamConfig())
    perturb_mechanisms(converted)
    remove(converted)
    assert converted.config.hf_lam is None
    assert torch.equal(first_output(converted, inputs), expected)
    converted.save_pretrained(tmp_path)
    assert torch.equal(first_output(HfLamBertModel.from_pretrained(tmp_path), inputs), expected)


@pytest.mark.parametrize("change", ["injected_anew", "edited_configuration"])
def test_what_is_saved_is_what_the_model_has(change: str, tmp_path: Path) -> None:
    model = convert(make_model(BertModel, "bert"), LamConfig())
    if change == "injected_anew":
        inject(remove(model), LamConfig(source="embeddings"))
    else:
        model.config.hf_lam = LamConfig(source="embeddings")
    perturb_mechanisms(model)
    inputs = make_inputs("bert")
    expected = first_output(model, inputs)
    model.save_pretrained(tmp_path)
    assert max_difference(first_output(HfLamBertModel.from_pretrained(tmp_path), inputs), expected) < 1e-6


def test_a_lost_bottleneck_is_an_error_and_a_trained_one_is_never_dropped(tmp_path: Path) -> None:
    configs = mechanisms("bottleneck", "bert")
    convert(make_model(BertForSequenceClassification, "bert"), *configs).save_pretrained(tmp_path)
    for block in (None, [LocomtConfig(views="self")], [LocomtConfig(views="self", bottleneck_tokens=3)]):
        with pytest.raises(RuntimeError, match=r"hf_lam\.locomt\.bottleneck|size mismatch|mismatch"):
            HfLamBertForSequenceClassification.from_pretrained(tmp_path, hf_lam=block)
    assert HfLamBertForSequenceClassification.from_pretrained(tmp_path).bert.hf_lam.locomt.bottleneck.shape == (2, 32)


@pytest.mark.parametrize("block", [{"lam": {"rank": 2}}, {"lam": {"scope": "shared"}}, {"locomt": {}}, None])
def test_trained_masks_are_never_dropped_on_loading(block: dict | None, tmp_path: Path) -> None:
    convert(make_model(BertModel, "bert"), LamConfig()).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=r"hf_lam\.lam\."):
        HfLamBertModel.from_pretrained(tmp_path, hf_lam=block)


def test_trained_masks_are_never_resized(tmp_path: Path) -> None:
    convert(make_model(ViTForImageClassification, "vit"), LamConfig()).save_pretrained(tmp_path)
    loaded = HfLamViTForImageClassification.from_pretrained(tmp_path, num_labels=7, ignore_mismatched_sizes=True)
    assert loaded.classifier.out_features == 7
    with pytest.raises(RuntimeError, match=r"saved with mechanisms \(lam\)"):
        HfLamViTForImageClassification.from_pretrained(tmp_path, image_size=32, ignore_mismatched_sizes=True)


def test_a_stock_model_made_from_a_converted_configuration_runs() -> None:
    config = HfLamBertConfig(**make_model(BertModel, "bert").config.to_diff_dict(), hf_lam=BLOCK)
    assert BertModel(config).eval()(**make_inputs("bert")).last_hidden_state.isfinite().all()


def test_bias_parameters_are_not_decayed() -> None:
    names = [name for name, _ in convert(make_model(BertModel, "bert"), LamConfig()).hf_lam.named_parameters()]
    assert {name.rpartition(".")[2] for name in names} == {"in_weight", "in_bias", "out_weight", "out_bias"}


# --- The mechanism alone ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*LAM_CONFIGS, *(name for host, name in VIEW_CASES if host == "vit")])
def test_a_mechanism_is_saved_and_loaded_without_its_host(name: str, tmp_path: Path) -> None:
    inputs = make_inputs("vit")
    trained = convert(make_model(ViTForImageClassification, "vit"), *mechanisms(name, "vit"))
    perturb_mechanisms(trained)
    save_mechanism(trained, tmp_path / "masks")
    assert sorted(file.name for file in (tmp_path / "masks").iterdir()) == [
        "mechanism_config.json",
        "mechanism_model.safetensors",
    ]
    size = sum(p.numel() for p in mechanism_parameters(trained)) + len(list(trained.vit.hf_lam.buffers()))
    assert sum(t.numel() for t in load_file(tmp_path / "masks" / "mechanism_model.safetensors").values()) == size
    host = make_model(ViTForImageClassification, "vit")
    assert load_mechanism(host, tmp_path / "masks") is host
    assert torch.equal(first_output(host, inputs), first_output(trained, inputs))


def test_save_mechanism_replaces_an_earlier_one(tmp_path: Path) -> None:
    for scale in (0.1, 0.2):
        model = convert(make_model(BertModel, "bert"), LamConfig())
        perturb_mechanisms(model, scale=scale)
        save_mechanism(model, tmp_path)
    host = load_mechanism(make_model(BertModel, "bert"), tmp_path)
    assert torch.equal(first_output(host, make_inputs("bert")), first_output(model, make_inputs("bert")))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_mechanism_that_does_not_fit_leaves_the_host_unchanged(tmp_path: Path) -> None:
    save_mechanism(convert(make_model(BertModel, "bert"), LamConfig()), tmp_path)
    host = make_model(BertModel, "bert", num_hidden_layers=2)
    with pytest.raises(ValueError, match=r"do not fit BertModel.*lam\.2"):
        load_mechanism(host, tmp_path)
    assert not any("hf_lam" in key for key in host.state_dict())
    with pytest.raises(ValueError, match=r"'bert'.*'roberta'"):
        load_mechanism(make_model(RobertaModel, "roberta"), tmp_path)
    with pytest.raises(ValueError, match="already has"):
        load_mechanism(convert(make_model(BertModel, "bert"), LamConfig()), tmp_path)


def test_damaged_mechanism_folders(tmp_path: Path) -> None:
    host = make_model(BertModel, "bert")
    with pytest.raises(FileNotFoundError, match=r"mechanism_config\.json"):
        load_mechanism(host, tmp_path)
    save_mechanism(convert(make_model(BertModel, "bert"), LamConfig()), tmp_path)
    weights, config = tmp_path / "mechanism_model.safetensors", tmp_path / "mechanism_config.json"
    intact = weights.read_bytes()
    weights.write_bytes(intact[:-100])
    with pytest.raises(ValueError, match="damaged"):
        load_mechanism(host, tmp_path)
    weights.write_bytes(intact)
    stored = json.loads(config.read_text())
    config.write_text(json.dumps({**stored, "hf_lam": {"lam": {"rank": "many"}}}))
    with pytest.raises(ValueError, match="rank"):
        load_mechanism(host, tmp_path)
    config.write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_mechanism(host, tmp_path)
    config.write_text(json.dumps({**stored, "hf_lam": None}))
    with pytest.raises(ValueError, match="nothing to attach"):
        load_mechanism(host, tmp_path)
    with pytest.raises(ValueError, match="one encoder"):
        save_mechanism(host, tmp_path / "none")
    assert not (tmp_path / "none").exists()
