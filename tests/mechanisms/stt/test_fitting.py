"""fit_synthesizers: what it reports against plain attention maps, what it reaches, and what it leaves alone."""

from __future__ import annotations

import contextlib
import copy
import json
from typing import Any

import peft
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import BatchEncoding, BertForSequenceClassification, BertModel, ViTModel

import hf_lam
from helpers.hosts import BASES, first_output, make_host, make_inputs, make_model, max_difference, perturb_mechanisms
from hf_lam import LamConfig, LocomtConfig, SttConfig, fit_synthesizers
from hf_lam.modeling.injection_hf_lam import injected_encoders, mechanism_of
from hf_lam.stt.fitting import FitReport

SYNTHESIZERS = ("dense", "random", "factorized_dense", "factorized_random")


def make_peaked(host: str, *others: Any, stock: Any = None, scale: float = 3.0, **options: Any) -> Any:
    """A converted tiny model whose queries and keys are scaled up, so that its attention is far from a mean."""
    model = make_model(stock or BASES[host], host, initializer_range=0.2)
    for name, parameter in model.named_parameters():
        if any(part in name for part in (".query.", ".key.", "q_proj", "k_proj")):
            parameter.data *= scale
    return hf_lam.convert(model, SttConfig(**options), *others)


def make_batches(host: str, count: int = 2) -> list[dict[str, torch.Tensor]]:
    return [make_inputs(host, batch=3, seed=seed) for seed in range(count)]


def synthesizers_of(model: Any) -> Any:
    (base,) = injected_encoders(model)
    return mechanism_of(base, "stt")


def set_mixing(model: Any, value: float, layer: int | None = None) -> None:
    for index, synthesizer in enumerate(synthesizers_of(model)):
        if layer in (None, index):
            synthesizer.mixing.data.fill_(value)


def maps_of(model: Any, batch: dict[str, torch.Tensor], layer: int, value: float) -> torch.Tensor:
    """One layer's attention at `λ = value`, with 0 in all others, `(B, H, L, L)`."""
    set_mixing(model, 0.0)
    set_mixing(model, value, layer)
    with torch.no_grad():
        weights = model(**batch, output_attentions=True).attentions[layer]
    set_mixing(model, 0.0)
    return weights.double()


def expected_divergence(model: Any, batches: list[dict[str, torch.Tensor]]) -> list[float]:
    """By hand from the maps that the model returns, over rows and columns that are not padding."""
    divergences = []
    for layer in range(3):
        total, rows = 0.0, 0
        for batch in batches:
            own, synthetic = (maps_of(model, batch, layer, value) for value in (0.0, 1.0))
            valid = batch.get("attention_mask", torch.ones(own.shape[0], own.shape[2])).bool()
            for sample, keep in enumerate(valid):
                left, right = (weights[sample][:, keep][:, :, keep] for weights in (own, synthetic))
                total += (left * (left / right).log()).nan_to_num(0).sum().item()
                rows += left.shape[0] * left.shape[1]
        divergences.append(total / rows)
    return divergences


def copied_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed_names(model: torch.nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("synthesizer", SYNTHESIZERS)
@pytest.mark.parametrize("host", ["bert", "vit", "videomae"])
def test_comes_closer_to_the_models_own_attention(host: str, synthesizer: str) -> None:
    model = make_peaked(host, synthesizer=synthesizer)
    batches = make_batches(host)
    before = expected_divergence(model, batches)
    report = fit_synthesizers(model, batches, epochs=8, learning_rate=5e-2)
    assert report.kl_before == pytest.approx(before, rel=1e-4)
    assert report.kl_after == pytest.approx(expected_divergence(model, batches), rel=1e-4)
    assert all(0 <= after < 0.9 * was for was, after in zip(before, report.kl_after, strict=True))
    assert (report.samples, report.epochs) == (6, 8)


@pytest.mark.parametrize(
    "host, options",
    [
        ("bert", {"grid": [11, 1]}),
        ("bert", {"prefix_tokens": 1}),
        ("vit", {"grid": [17], "prefix_tokens": 0}),
        ("vit", {"grid": [2, 2, 4]}),
    ],
)
def test_other_grids(host: str, options: dict[str, Any]) -> None:
    model = make_peaked(host, **options)
    batches = make_batches(host)
    report = fit_synthesizers(model, batches, epochs=4)
    assert report.kl_after == pytest.approx(expected_divergence(model, batches), rel=1e-4)
    assert all(after < before for before, after in zip(report.kl_before, report.kl_after, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(
    "host, options, rate",
    [
        ("bert", {"bottleneck_size": 64}, 3e-2),
        ("vit", {"grid": [17], "prefix_tokens": 0, "synthesizer": "random"}, 0.3),
    ],
)
def test_reaches_a_map_that_it_can_represent(host: str, options: dict[str, Any], rate: float) -> None:
    """Attention is always the same where the input is, and one axis has room for every map."""
    model = make_peaked(host, scale=1.5, **options)
    batch = make_inputs(host, batch=1)
    cold = copy.deepcopy(model)
    report = fit_synthesizers(model, [batch], epochs=80, learning_rate=rate)
    assert min(report.kl_before) > 0.3
    assert max(report.kl_after) < 0.01
    with torch.no_grad():
        own = first_output(model, batch)
        far, near = (first_output(hf_lam.harden(m, force=True), batch) for m in (cold, model))
    assert max_difference(near, own) < 0.2 * max_difference(far, own)


@pytest.mark.parametrize("train_mixing", [False, True])
@pytest.mark.parametrize("mixing", [0.0, 0.5, 1.0])
def test_nothing_but_the_synthesizers_changes(mixing: float, train_mixing: bool) -> None:
    model = make_peaked("bert", stock=BertForSequenceClassification, train_mixing=train_mixing)
    hf_lam.freeze_host(model)
    batches = make_batches("bert")
    model.train()
    model.bert.encoder.layer[1].eval()
    model(**batches[0]).logits.sum().backward()
    set_mixing(model, 0.0)
    with torch.no_grad():
        at_zero = model.eval()(**batches[0]).logits
    model.train()
    model.bert.encoder.layer[1].eval()
    set_mixing(model, mixing)
    before = copied_state(model)
    modes = [module.training for module in model.modules()]
    required = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    grads = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}

    fit_synthesizers(model, batches, epochs=2)
    changed = changed_names(model, before)
    assert changed == {
        name for name, _ in model.named_parameters() if ".hf_lam." in name and not name.endswith("mixing")
    }
    assert [module.training for module in model.modules()] == modes
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == required
    for name, parameter in model.named_parameters():
        old = grads[name]
        assert parameter.grad is None if old is None else torch.equal(parameter.grad, old)
    set_mixing(model, 0.0)
    with torch.no_grad():
        assert torch.equal(model.eval()(**batches[0]).logits, at_zero)


def test_the_same_wherever_the_mixing_is() -> None:
    states, reports = [], []
    for mixing in (0.0, 0.7):
        model = make_peaked("vit")
        set_mixing(model, mixing)
        reports.append(fit_synthesizers(model, make_batches("vit"), epochs=2))
        set_mixing(model, 0.0)
        states.append(copied_state(model))
    assert reports[0] == reports[1]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_frozen_models_are_fitted_and_stay_frozen() -> None:
    model = make_peaked("vit").requires_grad_(False)
    report = fit_synthesizers(model, make_batches("vit"), epochs=2)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(after < before for before, after in zip(report.kl_before, report.kl_after, strict=True))


@pytest.mark.parametrize("options", [{}, {"grid": [11, 1]}, {"synthesizer": "random"}], ids=["1 axis", "2", "random"])
def test_padding_is_left_out(options: dict[str, Any]) -> None:
    batches = make_batches("bert")
    others = copy.deepcopy(batches)
    for batch in others:
        batch["input_ids"][batch["attention_mask"] == 0] = 7
    models = [make_peaked("bert", **options) for _ in range(2)]
    reports = [fit_synthesizers(m, b, epochs=3) for m, b in zip(models, (batches, others), strict=True)]
    for key in ("kl_before", "kl_after"):
        assert getattr(reports[0], key) == pytest.approx(getattr(reports[1], key), abs=1e-5)
    states = [copied_state(model) for model in models]
    assert max(max_difference(states[0][name], states[1][name]) for name in states[0]) < 1e-4


def test_a_sample_that_is_all_padding_counts_nothing() -> None:
    batch = make_inputs("bert", batch=2)
    twin = copy.deepcopy(batch)
    twin["attention_mask"][1] = 0
    alone = {name: tensor[:1] for name, tensor in batch.items()}
    reports = [fit_synthesizers(make_peaked("bert"), [b], epochs=2) for b in (twin, alone)]
    assert reports[0].kl_after == pytest.approx(reports[1].kl_after, rel=1e-4)
    assert reports[0].samples == 2


def test_takes_a_generator_a_loader_and_what_a_tokenizer_returns() -> None:
    batches = make_batches("bert", 4)
    reports = [
        fit_synthesizers(make_peaked("bert"), source, epochs=2)
        for source in (
            batches,
            (batch for batch in batches),
            DataLoader(batches, batch_size=None),
            [BatchEncoding(batch) for batch in batches],
        )
    ]
    assert all(report == reports[0] for report in reports)


def test_fits_under_a_learnable_mask_and_views() -> None:
    """To the scores as the mask changes them, by a map that it changes too; both see all tokens."""
    model = make_peaked("vit", LamConfig(per_head=True))
    perturb_mechanisms(model)
    set_mixing(model, 0.0)
    batches = make_batches("vit")
    report = fit_synthesizers(model, batches, epochs=4)
    assert report.kl_after == pytest.approx(expected_divergence(model, batches), rel=1e-4)
    assert all(after < before for before, after in zip(report.kl_before, report.kl_after, strict=True))

    plain = fit_synthesizers(make_peaked("vit"), batches, epochs=2)
    assert fit_synthesizers(make_peaked("vit", LocomtConfig(views="half")), batches, epochs=2) == plain


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    batches = make_batches("vit")
    exact = fit_synthesizers(make_peaked("vit"), batches, epochs=4)
    model = make_peaked("vit").to(dtype)
    report = fit_synthesizers(model, [{"pixel_values": b["pixel_values"].to(dtype)} for b in batches], epochs=4)
    assert report.kl_after == pytest.approx(exact.kl_after, rel=1e-3 if dtype == torch.float64 else 0.05)
    assert all(tensor.isfinite().all() and tensor.dtype == dtype for tensor in synthesizers_of(model).parameters())


def test_an_injected_host() -> None:
    model = hf_lam.inject(make_host("deit", initializer_range=0.5), SttConfig(synthesizer="random"))
    report = fit_synthesizers(model, make_batches("deit"), epochs=4)
    assert all(after < before for before, after in zip(report.kl_before, report.kl_after, strict=True))


def test_fits_the_active_copy_of_a_peft_model() -> None:
    base = make_peaked("bert", stock=BertForSequenceClassification)
    alone = fit_synthesizers(copy.deepcopy(base), make_batches("bert"), epochs=2)
    config = peft.LoraConfig(r=4, target_modules=["value"], modules_to_save=["hf_lam"])
    model = peft.get_peft_model(base, config)
    before = copied_state(model)
    assert fit_synthesizers(model, make_batches("bert"), epochs=2) == alone
    assert all("modules_to_save" in name for name in changed_names(model, before))


def test_report_is_plain_json_and_reads_as_a_table() -> None:
    report = FitReport([1.25, 0.5, 0.75], [0.125, 0.25, 0.0625], 64, 10)
    assert json.loads(json.dumps(report.to_dict())) == {
        "kl_before": [1.25, 0.5, 0.75],
        "kl_after": [0.125, 0.25, 0.0625],
        "samples": 64,
        "epochs": 10,
    }
    lines = str(report).splitlines()
    assert lines[0].startswith("64 samples, 10 epochs")
    assert [line.split() for line in lines[2:]] == [
        ["0", "1.250", "0.125"],
        ["1", "0.500", "0.250"],
        ["2", "0.750", "0.062"],
    ]
    real = fit_synthesizers(make_peaked("vit"), make_batches("vit", 1), epochs=1)
    assert json.loads(json.dumps(real.to_dict())) == real.to_dict()


@pytest.mark.parametrize("configs", [(), (LamConfig(),), (SttConfig(variant="dense"),)], ids=["stock", "lam", "pure"])
def test_models_without_a_mixture(configs: tuple[Any, ...]) -> None:
    model = make_host("vit")
    if configs:
        hf_lam.inject(model, *configs)
    with pytest.raises(ValueError, match="a mixture in 0 encoders"):
        fit_synthesizers(model, make_batches("vit"))


def test_models_with_two_mixtures() -> None:
    both = torch.nn.ModuleList([make_peaked("vit"), make_peaked("bert")])
    with pytest.raises(ValueError, match="a mixture in 2 encoders"):
        fit_synthesizers(both, make_batches("vit"))


@pytest.mark.parametrize("synthesizer", ["random", "factorized_random"])
def test_frozen_synthesizers_are_refused(synthesizer: str) -> None:
    model = make_peaked("vit", synthesizer=synthesizer, frozen=True)
    with pytest.raises(ValueError, match=f"the {synthesizer} synthesizer is frozen"):
        fit_synthesizers(model, make_batches("vit"))


@pytest.mark.parametrize("epochs", [0, -1, 1.5, True])
def test_bad_epochs(epochs: Any) -> None:
    with pytest.raises(ValueError, match=f"epochs .* got {epochs}"):
        fit_synthesizers(make_peaked("vit"), make_batches("vit"), epochs=epochs)


@pytest.mark.parametrize("rate", [0, -1e-2, float("nan")])
def test_bad_learning_rates(rate: float) -> None:
    with pytest.raises(ValueError, match=f"learning_rate must be positive, got {rate}"):
        fit_synthesizers(make_peaked("vit"), make_batches("vit"), learning_rate=rate)


def test_batches_that_cannot_be_fitted_leave_the_model_as_it_was() -> None:
    model = make_peaked("bert").train().requires_grad_(False)
    before = copied_state(model)
    nothing = make_inputs("bert")
    nothing["attention_mask"].zero_()
    for batches in ([], [nothing]):
        with pytest.raises(ValueError, match="no token to fit to"):
            fit_synthesizers(model, batches)
    with pytest.raises(TypeError, match="one of them is Tensor"):
        fit_synthesizers(model, [torch.ones(2, 11)])
    assert not changed_names(model, before)
    assert all(module.training for module in model.modules())
    with torch.no_grad():  # no hook is left
        expected = first_output(make_peaked("bert"), make_inputs("bert"))
        assert max_difference(first_output(model.eval(), make_inputs("bert")), expected) == 0


def test_a_failure_on_the_way_gives_the_model_back() -> None:
    model = make_peaked("vit", stock=ViTModel).requires_grad_(False)
    passes = []

    def failing() -> Any:
        passes.append(None)
        if len(passes) > 1:
            raise RuntimeError("out of data")
        return make_inputs("vit")

    class Source:
        def __iter__(self) -> Any:
            return iter([failing()])

    with pytest.raises(RuntimeError, match="out of data"):
        fit_synthesizers(model, Source())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(not module._forward_pre_hooks or "hf_lam" not in str(module) for module in synthesizers_of(model))
    assert first_output(model, make_inputs("vit")).isfinite().all()


def test_text_as_long_as_its_batch() -> None:
    """Batches of different lengths, each with a part of the grid."""
    model = make_peaked("bert", stock=BertModel)
    batches = [
        {name: tensor[:, :length] for name, tensor in make_inputs("bert", batch=3).items()} for length in (6, 11)
    ]
    report = fit_synthesizers(model, batches, epochs=4)
    assert report.kl_after == pytest.approx(expected_divergence(model, batches), rel=1e-4)


def test_inside_autocast_and_inference_mode_it_does_the_same() -> None:
    def fitted(context: Any) -> tuple[Any, Any]:
        torch.manual_seed(0)
        model = hf_lam.inject(make_host("vit"), SttConfig())
        inputs = [make_inputs("vit")]
        with context:
            report = hf_lam.fit_synthesizers(model, inputs, epochs=3)
        return report, model.hf_lam.state_dict()

    expected, weights = fitted(contextlib.nullcontext())
    assert expected.kl_after[0] < expected.kl_before[0]
    for context in (torch.autocast("cpu", torch.bfloat16), torch.inference_mode()):
        report, others = fitted(context)
        assert report == expected
        assert all(torch.equal(weights[name], others[name]) for name in weights)
