"""Results as people read them: tables in a terminal, tables in a notebook, and still the values that they are."""

from __future__ import annotations

import dataclasses
import json
import pickle
from typing import Any

import pytest
import torch
from transformers import BertForSequenceClassification, ViTForImageClassification

import hf_lam
from helpers.compared import draw_values, make_results, make_row, make_times
from helpers.fusion_models import make_fusion
from helpers.hosts import make_host, make_model
from hf_lam import LamConfig, LocomtConfig, SttConfig
from hf_lam.comparing.results import Comparison
from hf_lam.hub.verification import Finding, Verification
from hf_lam.inspecting import Inspection
from hf_lam.parameters import parameter_table
from hf_lam.result_tables import Column, Readable, ResultTable


def cells(text: str) -> list[list[str]]:
    """The rows of a table as text; cells are parted by two spaces or more."""
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines()]


# --- tables ----------------------------------------------------------------------------------------------------------


def test_columns_are_aligned_and_long_texts_broken() -> None:
    table = ResultTable(
        "a title",
        [Column("name", is_number=False), Column("number")],
        [["one", "1"], ["word " * 15, "1,000,000"]],
        [["all", "1,000,001"]],
        ["a note"],
    )
    title, heading, rule, one, long, more, again, total, note = table.to_text().splitlines()
    assert (title, note) == ("a title", "a note") and rule == again and len(rule) == len(heading)
    assert one.startswith("one ") and one.endswith("        1") and total.endswith("  1,000,001")
    assert long.endswith("1,000,000") and more.startswith("word word") and len(more) < len(long)
    assert ResultTable("alone", notes=["and a note"]).to_text() == "alone\nand a note"


def test_nothing_from_elsewhere_becomes_markup_or_gives_orders() -> None:
    table = ResultTable("<script>", [Column("a & b")], [["<img src=x onerror=y>"], ["\x1b[2J"]], notes=["<i>"])
    html = table.to_html()
    assert "<script>" not in html and "<img" not in html and "<i>" not in html and "&lt;img src=x" in html
    assert "a &amp; b" in html and html.count("<tr>") == 3
    assert "\x1b" not in html and "\x1b" not in table.to_text()


# --- results ---------------------------------------------------------------------------------------------------------


def with_mechanisms() -> Any:
    model = make_model(BertForSequenceClassification, "bert")
    return hf_lam.inject(model, LamConfig(per_head=True), LocomtConfig(views="half"), SttConfig("mixture"))


def verification() -> Verification:
    finding = Finding("code", "extra.py", "is <b>no</b> file of a released hf_lam")
    return Verification("./it", None, None, {"extra.py": "0"}, ("os",), (), ("config.json",), (), (finding,))


def comparison() -> Comparison:
    rows = [
        make_row(f"{name}, n={n}", draw_values(mean, 0.002, 6, n), group=name, point={"n": n})
        for n in (1, 2)
        for name, mean in (("full", 0.7), ("lam", 0.75))
    ]
    return Comparison(make_results(rows), make_times(rows))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (
            lambda: hf_lam.cost(with_mechanisms()),
            ("GFLOPs of the attention products", "own/full", "formula and count"),
        ),
        (lambda: hf_lam.inspect(with_mechanisms()), ("mask parameters", "2 self, 2 cross:type_0-type_1", "λ by head")),
        (lambda: hf_lam.inspect(make_host("vit")), ("ViTModel", "it has no mechanisms of hf_lam")),
        (verification, ("./it: NOT PASSED: 1 finding", "extra.py", "would read: config.json")),
        (comparison, ("A study: n = 1", "A study: n = 2", "difference from full", "* told apart from all other rows")),
    ],
    ids=["cost", "inspect", "inspect a plain model", "verify", "compare"],
)
def test_a_result_prints_and_shows_as_tables(make: Any, says: tuple[str, ...]) -> None:
    result = make()
    assert isinstance(result, Readable)
    text, html = str(result), result._repr_html_()
    assert all(said in text for said in says)
    assert html.startswith("<div>") and "<b>" not in html
    assert ("<table" in html) == any(table.columns for table in result.tables())
    for table in result.tables():
        assert all(len(row) == len(table.columns) for row in (*table.rows, *table.totals))
    # What `IPython.lib.pretty` asks a class for before its `repr`, in a terminal.
    assert type(result).__dict__["_repr_pretty_"] and repr(result) != text
    copy = pickle.loads(pickle.dumps(result))
    assert copy == result and str(copy) == text


def test_results_are_the_values_that_they_were() -> None:
    results = comparison()
    assert isinstance(results, dict) and json.loads(json.dumps(results)) == results and "times" not in results
    assert results.times["processor"] == "a processor"
    for result in (verification(), hf_lam.inspect(with_mechanisms())):
        assert dataclasses.is_dataclass(result) and repr(result).startswith(f"{type(result).__name__}(")
        assert json.dumps(dataclasses.asdict(result))


def test_findings_are_lines_that_are_not_broken() -> None:
    message = "a very long message " * 10
    found = dataclasses.replace(verification(), findings=(Finding("key", "config.json", message),))
    assert f"key:\n  config.json: {message}" in str(found)


def test_inspecting_a_model_says_what_the_inputs_make_of_it() -> None:
    model = with_mechanisms()
    hooks = [len(module._forward_pre_hooks) for module in model.modules()]
    found = hf_lam.inspect(model)
    assert isinstance(found, Inspection) and (found.model_class, found.inputs) == (type(model).__name__, "example")
    assert list(found.mechanisms) == ["lam", "locomt", "stt"] and found.version == hf_lam.__version__
    assert [layer["mask_deviation"] for layer in found.layers] == [0, 0, 0]
    given = hf_lam.inspect(model, {"input_ids": torch.tensor([[5, 6, 7]])})
    assert given.inputs == "given" and "is for the inputs given" in str(given)
    assert [len(module._forward_pre_hooks) for module in model.modules()] == hooks
    heads = found.heads_of(1)
    assert heads.title == "layer 1" and len(heads.rows) == 4
    with pytest.raises(ValueError, match="layer must be from 0 to 2, got 3"):
        found.heads_of(3)
    assert hf_lam.inspect(torch.nn.Sequential(torch.nn.Identity(), model)) == found
    both = torch.nn.ModuleList([with_mechanisms(), with_mechanisms()])
    with pytest.raises(ValueError, match="has them in 2"):
        hf_lam.inspect(both)


# --- parameters ------------------------------------------------------------------------------------------------------


def parameters_of(model: Any) -> dict[str, tuple[int, int]]:
    """How many of each part are trained, and how many there are."""
    table = parameter_table(model)
    rows = {row[0]: tuple(int(cell.replace(",", "")) for cell in row[1:3]) for row in (*table.rows, *table.totals)}
    assert rows["all"] == tuple(map(sum, zip(*(row for part, row in rows.items() if part != "all"), strict=True)))
    assert rows["all"][1] == sum(parameter.numel() for parameter in model.parameters())
    return rows  # type: ignore[return-value]


def count(parameters: Any) -> int:
    return sum(parameter.numel() for parameter in parameters)


def test_parts_of_a_model_and_what_of_them_is_trained(capsys: pytest.CaptureFixture[str]) -> None:
    model = with_mechanisms()
    lam, stt = count(model.bert.hf_lam.lam.parameters()), count(model.bert.hf_lam.stt.parameters())
    head = count(model.classifier.parameters()) + count(model.bert.pooler.parameters())
    host = count(model.parameters()) - lam - stt - head
    parts = {"host": host, "mechanism lam": lam, "mechanism stt": stt, "head": head}
    assert parameters_of(model) == {part: (n, n) for part, n in parts.items()} | {
        "all": (count(model.parameters()),) * 2
    }
    hf_lam.freeze_host(model, train_head=True)
    trained = parameters_of(model)
    assert trained["host"] == (0, host) and trained["head"] == (head, head) and trained["mechanism lam"] == (lam, lam)
    assert hf_lam.print_trainable_parameters(model) is None
    printed = cells(capsys.readouterr().out)
    assert printed[0] == [f"{type(model).__name__}: parameters"]
    assert ["host", "0", f"{host:,}", "0.00"] in printed and ["head", f"{head:,}", f"{head:,}", "100.00"] in printed


def test_parts_of_models_without_mechanisms_and_of_fusion_models() -> None:
    vit = make_model(ViTForImageClassification, "vit")
    assert parameters_of(vit)["head"][1] == count(vit.classifier.parameters())
    assert parameters_of(torch.nn.Linear(3, 4)) == {"host": (16, 16), "all": (16, 16)}
    assert set(parameters_of(make_fusion(hf_lam="lam_half"))) == {"host", "mechanism lam", "head", "all"}


def test_adapters_are_a_part_and_copies_of_modules_are_not() -> None:
    peft = pytest.importorskip("peft")
    model = hf_lam.convert(make_model(BertForSequenceClassification, "bert"), LamConfig())
    lam, classifier = count(model.bert.hf_lam.parameters()), count(model.classifier.parameters())
    options = peft.LoraConfig(r=2, target_modules=["query"], modules_to_save=["hf_lam", "classifier"])
    adapted = peft.get_peft_model(model, options)
    parts = parameters_of(adapted)
    lora = count(parameter for name, parameter in adapted.named_parameters() if ".lora_" in name)
    assert parts["adapters"] == (lora, lora) and parts["host"][0] == 0
    assert parts["mechanism lam"] == (lam, 2 * lam) and parts["head"][0] == classifier
    prompts = peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3)
    tuned = peft.get_peft_model(make_model(BertForSequenceClassification, "bert"), prompts)
    assert parameters_of(tuned)["adapters"] == (3 * 32, 3 * 32)
