"""What fusion models cost, pictures of them, and the benchmark of their layers."""

import importlib.util
import json
import sys

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from helpers.command_line import cells
from helpers.fusion_encoders import ENCODERS
from helpers.fusion_heads import START, decoder_config
from helpers.fusion_models import LENGTHS, MODALITIES, fusion_config, make_fusion, make_fusion_inputs
from helpers.fusion_vectors import COUNTS, make_text, make_vector_fusion, make_vectors
from helpers.hosts import make_host, perturb_mechanisms
from helpers.processes import ROOT
from hf_lam import (
    HfLamFusionConfig,
    HfLamFusionForConditionalGeneration,
    HfLamFusionForEmbedding,
    HfLamFusionForMomentRetrieval,
    HfLamFusionForSequenceClassification,
    HfLamFusionForTokenClassification,
    LocomtConfig,
    cli,
)
from hf_lam.flops import cost, example_inputs
from hf_lam.visualization import learned_masks, plot_masks, plot_view_blocks, plot_views

SCALE = 4 * 8  # of tiny models, whose heads have 8 features
SUBSETS = [MODALITIES, ("audio",), ("text", "audio"), ("image", "video", "audio")]


def subset(modalities, batch=2):
    return make_fusion_inputs(modalities, batch)


def counted_by_torch(model, inputs):
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**inputs)
    return counter.get_total_flops()


def squares(lengths):
    return sum(n * n for n in lengths)


@pytest.mark.parametrize("modalities", SUBSETS)
@pytest.mark.parametrize(
    ("mechanisms", "forward_kind"),
    [
        (None, "full"),
        ("half", "own"),
        ("directed", "own"),
        ("bottleneck", "own"),
        ("lam", "full"),
        ("lam_half", "own"),
        ("annealing", "full"),
    ],
)
def test_formula_and_count_agree_for_any_modalities(mechanisms, forward_kind, modalities):
    report = cost(make_fusion(hf_lam=mechanisms), subset(modalities), bottleneck_tokens=3)
    lengths = {name: LENGTHS[name] if name in modalities else 0 for name in MODALITIES}
    assert report.segments == lengths
    assert (report.batch_size, report.tokens, report.head_size) == (2, sum(lengths.values()), 8)
    assert (report.forward_kind, len(report.layers)) == (forward_kind, 2)
    for layer in report.layers:
        assert layer.formula == layer.counted
        assert layer.forward == sum(layer.formula[forward_kind])
        assert layer.formula["full"] == (2 * SCALE * sum(lengths.values()) ** 2,) * 4
        assert layer.formula["self"] == (2 * SCALE * squares(lengths.values()),) * 4
        assert layer.formula["bottleneck"] == (2 * SCALE * squares(n + 3 for n in lengths.values()),) * 4
        assert ("own" in layer.formula) == (mechanisms not in (None, "lam"))


def test_own_views_worked_out_by_hand():
    text, image, video, audio = LENGTHS.values()
    own = cost(make_fusion(hf_lam="directed"), subset(MODALITIES, 1)).layers[0].formula["own"]
    of_itself = squares(LENGTHS.values())
    assert own == tuple(SCALE * n for n in (text * image, of_itself, 70**2, audio**2 + video * text))
    own = cost(make_fusion(hf_lam="bottleneck"), subset(("text", "video"), 1)).layers[1].formula["own"]
    assert own == (SCALE * squares((text + 2, 2, video + 2, 2)),) * 4


@pytest.mark.parametrize("modalities", [MODALITIES, ("text", "audio")])
def test_all_flops_are_those_of_the_encoders_too_and_of_no_absent_one(modalities):
    model, inputs = make_fusion(), subset(modalities)
    whole = cost(model, inputs).flops
    assert whole == counted_by_torch(model, inputs)
    encoders = 0
    for name in modalities:
        encoder = model.fusion.modality_model(name)
        values = next(iter(subset((name,)).values()))
        encoders += counted_by_torch(encoder, {encoder.main_input_name: values})
    tokens = 2 * sum(LENGTHS[name] for name in modalities)
    layers = 2 * 2 * tokens * (4 * 32 * 32 + 2 * 32 * 37) + cost(model, inputs).forward_attention
    projection = 2 * 2 * LENGTHS["video"] * 24 * 32 if "video" in modalities else 0
    assert whole == encoders + layers + projection + 2 * 2 * 32 * 3


def test_late_fusion_has_no_attention_but_a_report():
    model = make_fusion(num_hidden_layers=0)
    report = cost(model, subset(("text", "audio")))
    assert (report.layers, report.forward_kind, report.agrees) == ((), "none", True)
    assert report.attention == {"full": 0, "self": 0, "bottleneck": 0}
    assert (report.forward_attention, report.batch_size, report.tokens, report.head_size) == (0, 2, 45, 8)
    assert report.segments == {"text": 11, "image": 0, "video": 0, "audio": 34}
    assert report.flops == counted_by_torch(model, subset(("text", "audio"))) > 0
    json.dumps(report.to_dict())


def test_the_example_has_all_modalities_as_long_as_they_get():
    model = make_fusion(hf_lam="lam")
    inputs = example_inputs(model, 3)
    assert {name: tuple(x.shape) for name, x in inputs.items()} == {
        "input_ids": (3, 40),
        "token_type_ids": (3, 40),
        "pixel_values": (3, 3, 16, 16),
        "video_values": (3, 4, 3, 16, 16),
        "audio_values": (3, 32, 16),
    }
    report = cost(model)
    assert (report.batch_size, report.segments) == (1, {**LENGTHS, "text": 40})
    assert set(example_inputs(make_fusion(("audio", "image")).half())) == {"audio_values", "pixel_values"}
    assert example_inputs(make_fusion(("image",)).half())["pixel_values"].dtype == torch.float16


def test_cost_leaves_the_model_as_it_was():
    model = make_fusion(hf_lam="lam_half").train()
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    cost(model)
    with pytest.raises(ValueError, match="no modality"):
        cost(model, {})
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks
    assert model.training


@pytest.mark.parametrize(
    ("mechanisms", "layers", "expected"),
    [
        ("half", 2, ["2 self, 1 cross:text-image, 1 cross:text-video", "own/full", "formula and count are equal"]),
        (None, 2, ["bottleneck: 4 tokens for each segment", "which computes full attention"]),
        (None, 0, ["late fusion: no fusion layers"]),
    ],
)
def test_the_command_on_a_saved_folder(tmp_path, mechanisms, layers, expected):
    model = make_fusion(head=False, hf_lam=mechanisms, num_hidden_layers=layers)
    model.save_pretrained(tmp_path)
    result = CliRunner().invoke(cli.app, ["cost", str(tmp_path)])
    out = result.stdout
    assert result.exit_code == 0
    assert all(text in out for text in [*expected, "segments text 40, image 17, video 8, audio 34"])
    table = [cells(line) for line in out.splitlines() if line.startswith(("┃", "│"))]
    assert len(table) == layers + 2
    assert len({len(row) for row in table}) == 1
    result = CliRunner().invoke(cli.app, ["cost", str(tmp_path), "--json"])
    assert json.loads(result.stdout) == json.loads(json.dumps(cost(model).to_dict()))


def test_the_command_takes_lengths_by_the_names_of_modalities(tmp_path):
    make_vector_fusion(encoders=("text",), hf_lam="half").save_pretrained(tmp_path)
    options = ["--length", "text=7", "--length", "words=50", "--json"]
    result = CliRunner().invoke(cli.app, ["cost", str(tmp_path), *options])
    assert json.loads(result.stdout)["segments"] == {"text": 7, "clips": 9, "words": 50, "summary": 32}
    for wrong in ("text", "text=", "=7", "text=-7", "text=x", "text=7.5"):
        result = CliRunner().invoke(cli.app, ["cost", str(tmp_path), "--length", wrong])
        assert f"--length '{wrong}' must be the name of a modality and a number" in str(result.exception)


@pytest.mark.parametrize("mechanisms", [None, "half"])
def test_a_model_without_values_costs_the_same(mechanisms):
    """Cards count on the meta device, where a forward pass must not read anything: it would take its time."""
    model = make_vector_fusion(encoders=("text", "image", "audio"), hf_lam=mechanisms)
    with torch.device("meta"):
        without = cost(type(model)(model.config))
    assert without.to_dict() == cost(model).to_dict()


# --- vectors, heads, encoders ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mechanisms", [None, "half", "bottleneck", "lam_shared_rank"])
@pytest.mark.parametrize("encoders", [(), ("text",)])
def test_vectors_cost_their_projections_and_their_attention(encoders, mechanisms):
    model = make_vector_fusion(encoders=encoders, hf_lam=mechanisms)
    inputs = make_vectors() | (make_text() if encoders else {})
    report = cost(model, inputs)
    lengths = dict.fromkeys(encoders, 11) | {name: longest for name, (longest, _) in COUNTS.items()}
    assert (report.segments, report.tokens, report.batch_size) == (lengths, sum(lengths.values()), 2)
    assert report.agrees
    assert report.layers[0].formula["self"] == (2 * SCALE * squares(lengths.values()),) * 4
    if not encoders and mechanisms is None:
        tokens = 2 * sum(lengths.values())
        layers = 2 * 2 * tokens * (4 * 32 * 32 + 2 * 32 * 37) + report.forward_attention
        projections = 2 * 2 * (6 * 20 + 5 * 12) * 32
        assert report.flops == layers + projections + 2 * 2 * 32 * 3 == counted_by_torch(model, inputs)


def test_the_example_has_vectors_and_other_lengths_where_asked():
    model = make_vector_fusion(encoders=("text", "image"), hf_lam="half")

    def lengths_of(**lengths):
        inputs = example_inputs(model, 2, lengths=lengths)
        cost(model, inputs)
        return {name: tuple(x.shape[1:]) for name, x in inputs.items() if name != "token_type_ids"}

    example = {"input_ids": (40,), "pixel_values": (3, 16, 16), "clips_features": (9, 20)}
    example |= {"words_features": (32, 12), "summary_features": (32, 32)}
    assert lengths_of() == example
    given = {"input_ids": (5,), "clips_features": (7, 20), "words_features": (100, 12)}
    assert lengths_of(text=5, clips=7, words=100) == example | given
    assert example_inputs(make_host("bert"), lengths={"text": 3})["input_ids"].shape == (1, 3)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ({"clips": 10}, "clips must be an integer from 1 to 9, got 10"),
        ({"text": 41}, "text must be an integer from 1 to 40, got 41"),
        ({"words": 0}, "words must be an integer from 1, got 0"),
        ({"words": True}, "got True"),
        ({"words": 2.0}, r"got 2\.0"),
        ({"image": 4}, "has no 'image' of different lengths; it has text, clips, words, summary"),
        ({"smell": 4}, "has no 'smell'"),
    ],
)
def test_lengths_that_are_none(lengths, message):
    with pytest.raises(ValueError, match=message):
        example_inputs(make_vector_fusion(encoders=("text", "image")), lengths=lengths)
    with pytest.raises(ValueError, match="has no 'text' of different lengths"):
        example_inputs(make_host("vit"), lengths={"text": 4})


@pytest.mark.parametrize("mechanisms", [None, "half", "bottleneck"])
def test_both_sides_of_an_embedding_model_count(mechanisms):
    config = fusion_config(hf_lam=mechanisms, projection_dim=8, contrast=[["text", "audio"], ["image", "video"]])
    model, inputs = HfLamFusionForEmbedding(config).eval(), subset(MODALITIES)
    report = cost(model, inputs)
    assert report.flops == counted_by_torch(model, inputs)
    assert (report.segments, report.tokens, len(report.layers)) == (LENGTHS, 70, 4)
    assert report.agrees
    first, second = (subset(side) for side in config.contrast)
    of_sides = [cost(model.fusion, inputs).attention for inputs in (first, second)]
    assert report.attention == {kind: sum(side[kind] for side in of_sides) for kind in report.attention}
    # A batch of one side alone.
    alone = cost(model, first)
    assert (alone.segments, len(alone.layers)) == ({**LENGTHS, "image": 0, "video": 0}, 2)


def test_the_decoder_of_a_model_that_finds_moments_counts():
    model = make_vector_fusion(HfLamFusionForMomentRetrieval, hf_lam="half", label_modalities=["clips"])
    model.requires_grad_(False)  # torch's counter stumbles over a parameter that is given to a layer
    inputs = make_vectors()
    report = cost(model, inputs)
    assert report.agrees
    assert report.flops == counted_by_torch(model, inputs)
    assert report.flops > cost(model.fusion, inputs).flops
    assert report.attention == cost(model.fusion, inputs).attention


def test_the_decoder_of_a_model_that_writes_counts():
    options = {"decoder": decoder_config()}
    model = make_vector_fusion(HfLamFusionForConditionalGeneration, hf_lam="half", **options)
    inputs = example_inputs(model, 2)
    assert inputs["decoder_input_ids"].tolist() == [[START], [START]]
    report = cost(model, inputs)
    assert report.agrees
    assert report.flops == counted_by_torch(model, inputs)
    assert report.flops > cost(model.fusion, example_inputs(model.fusion, 2)).flops
    longer = {**inputs, "decoder_input_ids": torch.full((2, 5), START)}
    assert cost(model, longer).flops > report.flops
    assert report.parameters == sum(parameter.numel() for parameter in model.parameters())
    masked = make_vector_fusion(HfLamFusionForConditionalGeneration, hf_lam="half", decoder_lam={"rank": 2}, **options)
    assert cost(masked, inputs).flops > report.flops
    assert cost(masked, inputs).mechanism_parameters > report.mechanism_parameters


@pytest.mark.parametrize("labelled", [["clips", "words"], ["clips", "text"], ["summary", "words"]])
def test_an_example_has_as_many_places_of_all_that_is_labelled(labelled):
    model = make_vector_fusion(HfLamFusionForTokenClassification, ("text",), label_modalities=labelled)
    assert cost(model).agrees
    logits = model(**example_inputs(model)).logits
    assert logits.shape[1] == (9 if "clips" in labelled else 31)


# One of each kind of input: patches with a grid, plain sound, a window of sound, frames of sound. And one whose
# positions torch's own counter fails on.
KINDS = ["siglip2_vision", "wav2vec2", "whisper", "vjepa2", "dinov3_vit", "wav2vec2_bert", "deberta_v2"]


@pytest.mark.parametrize("name", KINDS)
def test_examples_and_costs_of_encoders_of_any_kind(name):
    row = ENCODERS[name]
    encoder = {f"{row.modality}_config": row.make_config()}
    options = {"features": {"clips": 6}, "num_attention_heads": 4, "hidden_size": 32, "num_hidden_layers": 1}
    model = HfLamFusionForSequenceClassification(HfLamFusionConfig(**encoder, **options)).eval()
    report = cost(model, lengths_of_sound(model, row))
    assert report.agrees and report.segments["clips"] == 32 and report.segments[row.modality] > 0
    inputs = row.rename(row.inputs())
    if name != "deberta_v2":
        assert cost(model, inputs).flops == counted_by_torch(model, inputs)


def lengths_of_sound(model, row):
    """A second of plain sound would take its time."""
    return example_inputs(model, lengths={"audio": 500} if row.row in ("samples", "frames, numbers") else {})


# --- pictures --------------------------------------------------------------------------------------------------------


def labels(ticks):
    return [tick.get_text() for tick in ticks]


@pytest.mark.parametrize("mechanisms", ["half", "bottleneck"])
def test_pictures_of_views(mechanisms):
    pytest.importorskip("matplotlib")
    model = make_fusion(hf_lam=mechanisms)
    table = np.asarray(plot_views(model).axes[0].images[0].get_array())
    assert table.tolist() == ([[0, 0, 1, 2]] * 2 if mechanisms == "half" else [[0] * 4] * 2)
    panels = plot_view_blocks(model, [3, 2, 0, 4]).axes
    assert panels[0].get_title() == f"A  self\n{4 if mechanisms == 'half' else 8} heads"
    assert labels(panels[0].get_yticklabels()) == ["text (3)", "image (2)", "video (0)", "audio (4)"]
    pattern = np.asarray(panels[0].images[0].get_array())
    assert pattern.tolist() == torch.block_diag(*(torch.ones(n, n) for n in (3, 2, 4))).tolist()


@pytest.mark.parametrize("as_config", [False, True])
def test_lengths_of_modalities_have_to_be_given(as_config):
    pytest.importorskip("matplotlib")
    model = make_fusion(hf_lam="half")
    views = LocomtConfig.from_dict(model.config.hf_lam["locomt"]) if as_config else model
    with pytest.raises(ValueError, match=r"\['text', .*'audio'\] have is not known here; give lengths"):
        plot_view_blocks(views)


def test_pictures_of_masks_leave_out_padding_and_absent_modalities():
    pytest.importorskip("matplotlib")
    model = make_fusion(hf_lam="lam")
    perturb_mechanisms(model)
    inputs = make_fusion_inputs(("text", "image", "audio"))
    inputs["has_image"] = torch.tensor([True, False])
    masks = learned_masks(model, inputs)
    for sample, kept in ((0, [*range(62)]), (1, [*range(7), *range(28, 62)])):
        panels = plot_masks(model, inputs, sample=sample).axes[:2]
        for mask, panel in zip(masks, panels, strict=True):
            assert np.array_equal(panel.images[0].get_array(), mask[sample, 0][kept][:, kept].numpy())
        expected = ["text (11)", "image (17)", "audio (34)"] if sample == 0 else ["text (7)", "audio (34)"]
        assert labels(panels[0].get_xticklabels()) == expected
    names = plot_masks(model, inputs, sample=1, tokens=[str(i) for i in range(62)]).axes[0]
    shown = [int(label) for label in labels(names.get_xticklabels())]
    assert set(shown) < set(kept) and [kept[int(place)] for place in names.get_xticks()] == shown


def test_pictures_leave_out_what_any_mask_leaves_out():
    pytest.importorskip("matplotlib")
    model, inputs = make_vector_fusion(hf_lam="lam_shared_rank"), make_vectors()
    (panel, *_) = plot_masks(model, inputs, sample=1).axes
    assert labels(panel.get_xticklabels()) == ["clips (4)", "words (3)", "summary (2)"]
    assert panel.images[0].get_array().shape == (9, 9)
    # Sound is cut to tokens of its own, in which its mask has another length.
    row = ENCODERS["wav2vec2"]
    config = HfLamFusionConfig(audio_config=row.make_config(), features={"clips": 6}, hf_lam={"lam": {"rank": 2}})
    inputs = row.rename(row.inputs()) | {"clips_features": torch.randn(2, 3, 6)}
    model = HfLamFusionForSequenceClassification(config).eval()
    perturb_mechanisms(model)
    (panel, *_) = plot_masks(model, inputs, sample=1).axes
    assert labels(panel.get_yticklabels()) == [f"audio ({row.tokens[1]})", "clips (3)"]


def test_pictures_of_an_embedding_model_are_of_one_of_its_sides():
    pytest.importorskip("matplotlib")
    config = fusion_config(("text", "image"), hf_lam="lam", projection_dim=8)
    model = HfLamFusionForEmbedding(config).eval()
    perturb_mechanisms(model)
    (panel, *_) = plot_masks(model, subset(("text", "image"))).axes
    assert labels(panel.get_xticklabels()) == ["image (17)"]


# --- the benchmark ---------------------------------------------------------------------------------------------------

TINY = ["--tokens", "5", "4", "12", "3", "--size", "4", "--heads", "8", "--device", "cpu", "--threads", "1"]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    # By its path: `fusion` is also the folder of these tests.
    spec = importlib.util.spec_from_file_location("fusion_benchmark", ROOT / "benchmarks" / "fusion.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_the_rows_of_the_benchmark_are_what_they_say(benchmark):
    args = benchmark.parse(TINY)
    rows = benchmark.make_rows(args)
    assert list(rows) == ["full", "bottleneck", "self", "locomt", "per-head mask"]
    hidden_states = torch.randn(1, 24, 32)
    for row in rows.values():
        row.model.eval()
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            row.run(hidden_states)
        assert counter.get_total_flops() == benchmark.layer_flops(row, args)
    with torch.no_grad():
        out = {name: row.run(hidden_states) for name, row in rows.items()}
    assert (out["locomt"] - out["per-head mask"]).abs().max() < 1e-5
    assert all((out["locomt"] - out[name]).abs().max() > 1e-3 for name in ("full", "bottleneck", "self"))
    assert rows["locomt"].attention < rows["self"].attention < rows["bottleneck"].attention < rows["full"].attention


def test_the_benchmark_writes_its_results(benchmark, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    benchmark.main([*TINY, "--layers", "1", "--rounds", "1", "--json", str(tmp_path / "results.json")])
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["tokens"] == {"text": 5, "image": 4, "video": 12, "audio": 3}
    assert [case["direction"] for case in results["times"]] == ["forward", "training"]
    for case in results["times"]:
        for name, ms in case["ms"].items():
            assert ms > 0
            assert case["over_full"][name] == ms / case["ms"]["full"]
            assert case["over_bottleneck"][name] == ms / case["ms"]["bottleneck"]
    # Half of the heads see themselves; of the others, four take the first pairs.
    own = 4 * (25 + 16 + 144 + 9) + 2 * (5 * 4 + 5 * 12 + 5 * 3 + 4 * 12)
    assert results["attention_flops"]["locomt"] == 4 * 4 * own
    assert results["attention_flops"]["full"] == 4 * 4 * 8 * 24**2
    out = capsys.readouterr().out
    assert all(f"\n{name.rjust(13)}  " in out for name in results["attention_flops"])
