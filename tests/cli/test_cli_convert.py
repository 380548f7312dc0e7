"""`hf-lam convert` on tiny stock checkpoints."""

import json
import shutil

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertTokenizer,
    MPNetConfig,
    MPNetModel,
    ViTForImageClassification,
)

import hf_lam
from helpers.command_line import error_line, run_main
from helpers.hosts import SIZES, make_host, make_inputs, make_model, max_difference
from hf_lam import cli, conversion
from hf_lam.hub import cards
from hf_lam.modeling.version_hf_lam import TRAVELLING_FILES

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat"]


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    root = tmp_path_factory.mktemp("stock")
    make_model(BertForSequenceClassification, "bert", num_labels=3).save_pretrained(root / "classifier")
    BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(root / "classifier")
    make_model(BertForMaskedLM, "bert").save_pretrained(root / "mlm")
    make_model(BertForMaskedLM, "bert").half().save_pretrained(root / "half")
    make_model(ViTForImageClassification, "vit").save_pretrained(root / "vit")
    config = MPNetConfig(**SIZES, vocab_size=99, max_position_embeddings=40)
    MPNetModel(config).save_pretrained(root / "mpnet")
    return root


def test_a_checkpoint_with_its_head_and_tokenizer(stock, tmp_path):
    output = tmp_path / "new" / "out"
    code, out, err = run_main("convert", stock / "classifier", output, "--mechanism", "lam", "--json")
    assert code == 0
    done = json.loads(out)
    assert done["model"] == str(stock / "classifier") and done["output"] == str(output)
    assert done["model_class"] == "HfLamBertForSequenceClassification"
    assert done["version"] == hf_lam.__version__
    assert done["mechanisms"] == {"lam": hf_lam.LamConfig().to_dict()}
    original = AutoModelForSequenceClassification.from_pretrained(stock / "classifier")
    assert done["parameters_before"] == original.num_parameters()
    # Per layer: 32 × 8 + 8 of the hidden layer and 8 × 40 + 40 of the output.
    assert done["mechanism_parameters"] == 3 * (32 * 8 + 8 + 8 * 40 + 40)
    assert done["parameters"] == done["parameters_before"] + done["mechanism_parameters"]
    assert done["changes"] == done["notes"] == []
    assert done["compared"] == "outputs" and 0 <= done["largest_difference"] <= 1e-5
    assert done["processor"] == "BertTokenizer"
    written = {path.name for path in output.iterdir()}
    assert written == set(done["files"])
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json", *TRAVELLING_FILES} <= written
    assert AutoTokenizer.from_pretrained(output)("the cat")["input_ids"] == [2, 5, 6, 3]
    converted = AutoModelForSequenceClassification.from_pretrained(output)
    inputs = make_inputs("bert")
    with torch.no_grad():
        assert max_difference(converted(**inputs).logits, original(**inputs).logits) <= 1e-5
    assert [path.name for path in output.parent.iterdir()] == ["out"]
    assert err.splitlines()[0] == f"Loading {stock / 'classifier'} …"


def test_what_people_see(stock, tmp_path):
    arguments = ["--mechanism", "locomt", "--mechanism-config", '{"views": "half"}']
    code, out, _ = run_main("convert", stock / "vit", tmp_path / "out", *arguments)
    assert code == 0
    lines = out.splitlines()
    assert lines[0].endswith(f"out: HfLamViTForImageClassification with locomt (hf_lam {hf_lam.__version__})")
    assert "0 of them of hf_lam" in lines[1]
    assert lines[2].startswith("largest difference of the outputs from the original: ")
    assert float(lines[2].split()[-1]) > 1e-4
    assert "heads of HfLamViTForImageClassification get a view that is not full: its outputs change" in lines[3]
    assert lines[4] == "note: the original has no tokenizer or processor beside it, so none was saved"
    assert "nothing changes" not in out


def test_options_by_name_from_a_file(stock, tmp_path):
    options = {"lam": {"rank": 2}, "stt": {"synthesizer": "random"}}
    (tmp_path / "options.json").write_text(json.dumps(options))
    arguments = ["--mechanism", "stt", "--mechanism", "lam", "--mechanism-config", tmp_path / "options.json"]
    code, out, _ = run_main("convert", stock / "vit", tmp_path / "out", *arguments, "--no-check", "--json")
    done = json.loads(out)
    assert (code, done["largest_difference"], done["compared"]) == (0, None, None)
    assert (done["mechanisms"]["lam"]["rank"], done["mechanisms"]["stt"]["synthesizer"]) == (2, "random")
    assert set(json.loads((tmp_path / "out" / "config.json").read_text())["hf_lam"]) == {"version", "lam", "stt"}


def test_another_head_is_new_and_the_encoder_is_compared(stock, tmp_path):
    arguments = ["--mechanism", "lam", "--auto-class", "AutoModelForSequenceClassification", "--num-labels", "5"]
    code, out, _ = run_main("convert", stock / "mlm", tmp_path / "out", *arguments, "--json")
    done = json.loads(out)
    assert (code, done["compared"]) == (0, "encoder")
    assert done["largest_difference"] <= 1e-5
    saved = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert saved.classifier.weight.shape == (5, 32)
    assert done["parameters"] == saved.num_parameters()
    assert done["parameters_before"] + done["mechanism_parameters"] == done["parameters"]


def test_a_head_without_an_hf_lam_class_is_left_out_with_a_note(stock, tmp_path):
    folder = tmp_path / "causal"
    make_model(BertForMaskedLM, "bert").save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["BertLMHeadModel"]}))
    code, out, _ = run_main("convert", folder, tmp_path / "out", "--mechanism", "lam", "--json")
    done = json.loads(out)
    assert (code, done["model_class"]) == (0, "HfLamBertModel")
    assert any("BertLMHeadModel" in note and "--auto-class" in note for note in done["notes"])


@pytest.mark.parametrize(("arguments", "dtype"), [([], "float16"), (["--dtype", "float32"], "float32")])
def test_the_type_of_the_weights(stock, tmp_path, arguments, dtype):
    code, out, _ = run_main("convert", stock / "half", tmp_path / "out", "--mechanism", "lam", *arguments, "--json")
    assert code == 0
    assert json.loads(out)["largest_difference"] < 0.01
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype


def test_an_empty_folder_is_taken(stock, tmp_path):
    (tmp_path / "out").mkdir()
    code, _, _ = run_main("convert", stock / "vit", tmp_path / "out", "--mechanism", "lam", "--no-check")
    assert code == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("model", "arguments", "expected"),
    [
        ("vit", [], "--mechanism"),
        ("vit", ["--mechanism", "mask"], "choose from lam, locomt, stt"),
        ("vit", ["--mechanism", "lam", "--mechanism", "lam"], "one of each"),
        ("vit", ["--mechanism", "lam", "--mechanism-config", "{"], "--mechanism-config is not valid JSON"),
        ("vit", ["--mechanism", "lam", "--mechanism-config", "missing.json"], "missing.json"),
        ("vit", ["--mechanism", "lam", "--mechanism-config", '{"ranks": 1}'], "['ranks']"),
        ("vit", ["--mechanism", "lam", "--mechanism-config", '{"stt": {}}'], "options for ['stt']"),
        ("vit", ["--mechanism", "lam", "--mechanism", "stt", "--mechanism-config", '{"rank": 1}'], "need one"),
        ("vit", ["--mechanism", "lam", "--dtype", "int8"], "--dtype must be one of"),
        ("vit", ["--mechanism", "lam", "--auto-class", "AutoModelForCausalLM"], "AutoModelForImageClassification"),
        ("vit", ["--mechanism", "lam", "--auto-class", "AutoModel", "--num-labels", "2"], "--num-labels"),
        ("classifier", ["--mechanism", "lam", "--num-labels", "5"], "--num-labels 5"),
        ("mpnet", ["--mechanism", "lam"], "MPNetSelfAttention"),
        ("missing", ["--mechanism", "lam"], "there is no folder"),
    ],
)
def test_wrong_use_does_nothing(stock, tmp_path, model, arguments, expected):
    code, out, err = run_main("convert", stock / model, tmp_path / "new" / "out", *arguments, "--json")
    assert (code, out) == (cli.WRONG_USE, "")
    assert expected in " ".join(err.split())
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("is_file", [True, False])
def test_nothing_is_overwritten(stock, tmp_path, is_file):
    output = tmp_path / "out"
    if not is_file:
        output.mkdir()
    kept = output if is_file else output / "thesis.txt"
    kept.write_text("mine")
    code, _, err = run_main("convert", stock / "vit", output, "--mechanism", "lam")
    assert code == cli.WRONG_USE
    assert str(output) in error_line(err)
    assert kept.read_text() == "mine" and len(list(tmp_path.rglob("*"))) == (1 if is_file else 2)


def test_a_save_that_fails_leaves_nothing(stock, tmp_path, monkeypatch):
    def fail(model, folder, **options):
        assert (folder / "model.safetensors").is_file()
        raise OSError("disk full")

    monkeypatch.setattr(cards, "write_card", fail)
    code, out, err = run_main("convert", stock / "vit", tmp_path / "out", "--mechanism", "lam", "--json")
    assert (code, out, error_line(err)) == (cli.CHECK_FAILED, "", "error: disk full")
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_should_not_have_changed_are_a_failed_check(stock, tmp_path, monkeypatch):
    convert = conversion.convert_silently

    def damaged(*arguments, **options):
        model = convert(*arguments, **options)
        model.classifier.bias.data += 2e-4
        return model

    monkeypatch.setattr(conversion, "convert_silently", damaged)
    arguments = ["convert", stock / "vit", tmp_path / "out", "--mechanism", "lam"]
    code, out, err = run_main(*arguments)
    assert (code, out) == (cli.CHECK_FAILED, "")
    assert "0.0002" in error_line(err) and "--no-check" in error_line(err)
    assert list(tmp_path.iterdir()) == []
    assert run_main(*arguments, "--no-check")[0] == 0
    assert (tmp_path / "out").is_dir()


def test_outputs_that_are_no_numbers_are_a_failed_check(stock, tmp_path):
    model = make_host("bert")
    model.pooler.dense.bias.data[0] = torch.nan  # the second output alone
    model.save_pretrained(tmp_path / "source")
    code, _, err = run_main("convert", tmp_path / "source", tmp_path / "out", "--mechanism", "lam")
    assert code == cli.CHECK_FAILED
    assert "NaN" in error_line(err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", {"pre_tokenizer": {"type": "Unheard"}}),
        ("tokenizer.json", {"version": "9"}),
        ("chat_template.jinja", b"\xff\xfe"),
    ],
)
def test_a_tokenizer_that_cannot_be_loaded(stock, tmp_path, file, content):
    source = shutil.copytree(stock / "classifier", tmp_path / "source")
    if isinstance(content, dict):
        content = json.dumps(json.loads((source / file).read_text()) | content).encode()
    (source / file).write_bytes(content)
    code, _, err = run_main("convert", source, tmp_path / "out", "--mechanism", "lam")
    assert code == cli.WRONG_USE
    assert f"{str(source)!r} cannot be loaded" in error_line(err)
    assert not (tmp_path / "out").exists()
