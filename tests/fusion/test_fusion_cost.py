"""What fusion models cost, pictures of them, and the benchmark of their layers."""

import importlib
import json

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from helpers.command_line import cells
from helpers.fusion_models import LENGTHS, MODALITIES, make_fusion, make_fusion_inputs
from helpers.processes import ROOT
from hf_lam import LocomtConfig, cli
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
    assert panels[0].get_title() == f"self\n{4 if mechanisms == 'half' else 8} heads"
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
    assert labels(names.get_xticklabels()) == [str(i) for i in kept]


# --- the benchmark ---------------------------------------------------------------------------------------------------

TINY = ["--tokens", "5", "4", "12", "3", "--size", "4", "--heads", "8", "--device", "cpu", "--threads", "1"]


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("fusion")


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
