"""What mechanisms cost besides the attention products: formula against count, of those of hf_lam and of a stranger."""

import importlib.util
import json
import sys
from dataclasses import replace

import pytest

import hf_lam
from helpers.command_line import run_main
from helpers.fusion_models import make_fusion, make_fusion_inputs
from helpers.hosts import LAM_CONFIGS, STT_CASES, STT_CONFIGS, VIEW_CASES, make_host, make_inputs, mechanisms
from hf_lam import LamConfig, LocomtConfig, SttConfig
from hf_lam.cli import CHECK_FAILED
from hf_lam.flops import FLOPS_PER_PAIR, cost
from hf_lam.modeling import mechanism_registry_hf_lam as registry

LAM_CASES = [(host, name) for host in ("bert", "vit", "videomae") for name in LAM_CONFIGS]


def assert_added(report, names):
    """Formula and count, mechanism by mechanism and layer by layer."""
    for layer in report.layers:
        assert list(layer.added) == names
        assert layer.added == layer.added_formula
    assert report.added == report.added_formula
    assert report.agrees


@pytest.mark.parametrize(("host", "name"), [*LAM_CASES, *VIEW_CASES, *STT_CASES])
def test_formula_and_count_agree(host, name):
    configs, inputs = mechanisms(name, host), make_inputs(host, batch=3, token_types=host == "bert")
    if name == "explicit" and host == "bert":
        inputs = None  # of the length that its spans add up to
    stock = cost(make_host(host), inputs)
    report = cost(hf_lam.inject(make_host(host), *configs), inputs)
    names = {LamConfig: "lam", SttConfig: "stt"}
    assert_added(report, sorted((names[type(c)] for c in configs if type(c) in names), reverse=True))
    assert report.synthesis == report.added.get("stt", 0)
    if not any(isinstance(c, LocomtConfig) for c in configs) and "own" not in report.attention:
        assert report.flops == stock.flops + sum(report.added.values())


def test_masks_worked_out_by_hand():
    """Of 17 tokens with 32 features, by way of 8."""
    hidden = 17 * 32 * 8

    def added(**options):
        return [layer.added for layer in cost(hf_lam.inject(make_host("vit"), LamConfig(**options))).layers]

    assert added() == [{"lam": 2 * (hidden + 17 * 8 * 17)}] * 3
    assert added(per_head=True, source="embeddings") == [{"lam": 2 * (hidden + 4 * 17 * 8 * 17)}] * 3
    assert added(rank=3) == [{"lam": 2 * (hidden + 2 * 17 * 8 * 3 + 17 * 3 * 17)}] * 3
    assert added(per_head=True, rank=3) == [{"lam": 2 * (hidden + 4 * (2 * 17 * 8 * 3 + 17 * 3 * 17))}] * 3
    # Two more layers from 8 to 8 features; adding costs what multiplying costs, and softplus is no product.
    deeper = 2 * (hidden + 2 * 17 * 8 * 8 + 17 * 8 * 17)
    assert (
        added(depth=4) == added(depth=4, combine="add") == added(depth=4, non_negative=True) == [{"lam": deeper}] * 3
    )
    # One mask for all layers, which is made for the first.
    assert added(scope="shared") == [{"lam": 2 * (hidden + 17 * 8 * 17)}, {"lam": 0}, {"lam": 0}]


@pytest.mark.parametrize("kind", ["lam", "lam_half"])
@pytest.mark.parametrize("modalities", [("text", "image", "video", "audio"), ("text", "audio")])
def test_masks_of_several_modalities(kind, modalities):
    inputs = make_fusion_inputs(modalities)
    report = cost(make_fusion(hf_lam=kind), inputs)
    assert_added(report, ["lam"])
    assert report.added["lam"] > 0


@pytest.mark.parametrize(
    "options", [{"grid": [2, 5], "prefix_tokens": 1}, {"grid": [20]}, {"prefix_tokens": 2}, {"grid": [11]}]
)
@pytest.mark.parametrize("variant", ["dense", "random", "factorized_dense", "factorized_random"])
def test_maps_of_padded_texts_with_and_without_prefix(options, variant):
    for config in (SttConfig(variant=variant, **options), SttConfig(synthesizer=variant, **options)):
        assert_added(cost(hf_lam.inject(make_host("bert"), config), make_inputs("bert")), ["stt"])


def test_every_name_has_its_own():
    report = cost(hf_lam.inject(make_host("vit"), *STT_CONFIGS["mixture_lam"], LocomtConfig(views="half")))
    assert_added(report, ["stt", "lam"])
    lam = cost(hf_lam.inject(make_host("vit"), LamConfig(per_head=True)))
    assert report.added["lam"] == lam.added["lam"]
    assert report.added["stt"] == report.synthesis > 0
    assert cost(make_host("vit")).added == {}
    assert cost(hf_lam.inject(make_host("vit"), LocomtConfig(views="half"))).added == {}


def test_as_json():
    report = cost(hf_lam.inject(make_host("vit"), LamConfig()))
    written = json.loads(json.dumps(report.to_dict()))
    assert written["added"] == written["added_formula"] == report.added
    assert written["layers"][1]["added"] == written["layers"][1]["added_formula"] == report.layers[1].added
    assert written["synthesis"] == written["layers"][0]["synthesis"] == 0


def test_a_formula_that_differs_is_seen():
    report = cost(hf_lam.inject(make_host("vit"), LamConfig()))
    first, *rest = report.layers
    assert not replace(report, layers=(replace(first, added_formula={"lam": 1}), *rest)).agrees


# --- a mechanism of somebody else ------------------------------------------------------------------------------------

FOREIGN = '''
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import initialization as init

from hf_lam import Mechanism, MechanismConfig, ScoreChange, register_mechanism
from hf_lam.modeling.mechanism_hf_lam import SegmentSize


@dataclass(frozen=True)
class ReachConfig(MechanismConfig):
    """Every token says how far its scores reach."""

    flops: int = 2  # for a multiply-add


class Reach(Mechanism):
    def __init__(self, config, host):
        super().__init__(config, host)
        self.weight = nn.Parameter(torch.empty(1, host.hidden_size))
        self.reset_parameters()

    def reset_parameters(self):
        init.zeros_(self.weight)

    def change_scores(self, given):
        return ScoreChange(factor=1 + nn.functional.linear(given.hidden_states, self.weight)[:, None])

    def count_flops(self, layer, batch, length):
        return self.config.flops * batch * length * self.weight.numel()


@dataclass(frozen=True)
class HalvesConfig(MechanismConfig):
    """Two halves of the sequence see themselves."""

    change = "pattern"

    def explain_change(self, model):
        return "halves"


class Halves(NamedTuple):
    def attend(self, attention, change):
        halves = (x.tensor_split(2, 2) for x in (attention.query, attention.key, attention.value))
        return torch.cat([scaled_dot_product_attention(*part) for part in zip(*halves)], 2), None

    def count_pairs(self, layer, past):
        return (8 * 8 + 9 * 9,) * 4


class HalvesPattern(Mechanism):
    def begin(self, start):
        return Halves()

    def list_segments(self, pattern):
        return SegmentSize("first", 9), SegmentSize("second", 8)


@dataclass(frozen=True)
class MeanConfig(MechanismConfig):
    """Every token gets the mean of the values."""

    change = "replacement"

    def explain_change(self, model):
        return "the mean"


class Mean(NamedTuple):
    weights: torch.Tensor

    def attend(self, attention):
        return (self.weights @ attention.value).expand_as(attention.value), None

    def count_flops(self, attention):
        batch, heads, length, size = attention.value.shape
        return (2 * batch * length * size,) * heads


class MeanReplacement(Mechanism):
    def replace_scores(self, given):
        length = given.hidden_states.shape[1]
        return Mean(given.hidden_states.new_full((1, 1, 1, length), 1 / length))


register_mechanism("reach", ReachConfig, Reach)
register_mechanism("halves", HalvesConfig, HalvesPattern)
register_mechanism("mean", MeanConfig, MeanReplacement)
'''


@pytest.fixture
def foreign_file(tmp_path, monkeypatch):
    """A file that registers three mechanisms, which are forgotten afterwards."""
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    file = tmp_path / "foreign_mechanisms.py"
    file.write_text(FOREIGN)
    yield file
    sys.modules.pop(file.stem, None)


@pytest.fixture
def foreign(foreign_file):
    spec = importlib.util.spec_from_file_location(foreign_file.stem, foreign_file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_a_foreign_change_of_scores_is_counted_by_its_name(foreign):
    stock = cost(make_host("vit"))
    report = cost(hf_lam.inject(make_host("vit"), foreign.ReachConfig()))
    assert_added(report, ["reach"])
    assert [layer.added["reach"] for layer in report.layers] == [2 * 17 * 32] * 3
    assert report.flops == stock.flops + 3 * 2 * 17 * 32
    assert (report.forward_kind, report.synthesis, report.synthesizer) == ("full", 0, None)
    assert report.attention == stock.attention
    report = cost(hf_lam.inject(make_host("vit"), foreign.ReachConfig(), LamConfig(), LocomtConfig(views="half")))
    assert_added(report, ["lam", "reach"])


def test_a_foreign_pattern_and_replacement_have_products_of_their_own(foreign):
    report = cost(hf_lam.inject(make_host("vit"), foreign.HalvesConfig()))
    assert_added(report, [])
    assert (report.forward_kind, report.segments) == ("own", {"first": 9, "second": 8})
    pairs = 8 * 8 + 9 * 9
    scale = FLOPS_PER_PAIR * 8
    assert report.layers[0].formula == {
        "full": (scale * 17 * 17,) * 4,
        "self": (scale * pairs,) * 4,
        "bottleneck": (scale * (12 * 12 + 13 * 13),) * 4,
        "own": (scale * pairs,) * 4,
    }
    assert report.layers[0].formula == report.layers[0].counted
    assert report.layers[0].views is None

    report = cost(hf_lam.inject(make_host("vit"), foreign.MeanConfig()))
    assert_added(report, ["mean"])
    assert (report.forward_kind, report.segments, report.added) == ("own", None, {"mean": 0})
    assert report.layers[0].formula == {"full": (scale * 17 * 17,) * 4, "own": (2 * 17 * 8,) * 4}
    assert report.layers[0].formula == report.layers[0].counted


@pytest.mark.parametrize(("flops", "said"), [(2, "as by formula"), (3, "4.896e-06 by formula")])
def test_the_command_says_what_a_mechanism_adds(foreign_file, foreign, tmp_path, flops, said):
    model = hf_lam.convert(make_host("vit"), foreign.ReachConfig(flops=flops), LamConfig())
    model.save_pretrained(tmp_path / "model")
    code, out, _ = run_main("cost", tmp_path / "model", "--mechanism", foreign_file)
    assert code == (0 if flops == 2 else CHECK_FAILED)
    assert f"reach: 3.264e-06 GFLOPs of its own, {said}\n" in out
    lam = 3 * 2 * (17 * 32 * 8 + 17 * 8 * 17)
    assert f"lam: {lam / 1e9:.4g} GFLOPs of its own, as by formula\n" in out
