"""`hf-lam inspect` on tiny models."""

import io
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertForMaskedLM, BertForSequenceClassification, BertModel, BertTokenizer, ViTModel

import hf_lam
from helpers.command_line import error_line, run_main
from helpers.fusion_models import make_fusion
from helpers.fusion_vectors import make_vector_fusion
from helpers.hosts import make_host, make_model, mechanisms, set_mixing
from helpers.lam_models import make_lam
from hf_lam import LamConfig, LocomtConfig, SttConfig, cli, visualization
from hf_lam.flops import example_inputs

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat"]


@pytest.fixture(scope="module")
def models():
    return {
        "heads": make_lam(BertForSequenceClassification, "bert", LamConfig(per_head=True)),
        "all": make_lam(BertModel, "bert", (LamConfig(scope="shared"), *mechanisms("mixture_views", "bert"))),
        "spans": make_lam(BertModel, "bert", (LamConfig(), LocomtConfig(segments=[["a", 3], ["b", 5]], views="self"))),
        "vit": make_lam(ViTModel, "vit", (LamConfig(rank=2), LocomtConfig(views="half"))),
        "added": make_lam(ViTModel, "vit", (LamConfig(scope="shared", combine="add", depth=3, per_head=True),)),
        "dense": make_lam(ViTModel, "vit", (SttConfig("dense"),)),
        "fusion": make_fusion(["text", "image"], hf_lam="lam_half"),
        "vectors": make_vector_fusion(encoders=("text",), hf_lam=(LamConfig(rank=2),)),
        "stock": make_model(BertForMaskedLM, "bert"),
        "bare": hf_lam.remove(hf_lam.convert(make_host("bert"), LamConfig())),
    }


@pytest.fixture(scope="module")
def folders(models, tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    set_mixing(models["all"], 0.4)
    for name, model in models.items():
        model.save_pretrained(root / name)
    for name in ("heads", "spans", "fusion"):
        tokenizer().save_pretrained(root / name)
    return root


def tokenizer():
    return BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})


def inspected(*arguments):
    code, out, _ = run_main("inspect", *arguments, "--json")
    assert code == 0
    return json.loads(out)


def deviations(model, inputs):
    return [(mask - 1).abs().mean().item() for mask in visualization.learned_masks(model, inputs)]


def test_json_of_masks(models, folders):
    found = inspected(folders / "heads")
    model = models["heads"]
    assert found["model"] == str(folders / "heads")
    assert found["model_class"] == "HfLamBertForSequenceClassification"
    assert found["version"] == hf_lam.__version__
    assert found["mechanisms"] == {"lam": LamConfig(per_head=True).to_dict()}
    assert found["parameters"] == model.num_parameters()
    # Per layer: 32 × 8 + 8 of the hidden layer, and for each of 4 heads 8 × 40 + 40 of the output.
    assert found["mechanism_parameters"] == 3 * (264 + 4 * 360)
    assert [layer["mask_parameters"] for layer in found["layers"]] == [264 + 4 * 360] * 3
    assert found["inputs"] == "example"
    expected = deviations(model, example_inputs(model))
    assert [layer["mask_deviation"] for layer in found["layers"]] == pytest.approx(expected, rel=1e-5)
    assert all(len(layer["mask_deviation_by_head"]) == 4 for layer in found["layers"])
    assert {value for layer in found["layers"] for value in (layer["views"], layer["mixing"])} == {None}
    assert (found["shared_mask"], found["pictures"], found["notes"]) == (None, {}, [])


def test_a_text_goes_through_the_tokenizer(models, folders):
    found = inspected(folders / "heads", "--text", "the cat", "--text-pair", "sat")
    assert found["inputs"] == "text"
    inputs = {"input_ids": [[2, 5, 6, 3, 7, 3]], "token_type_ids": [[0, 0, 0, 0, 1, 1]]}
    expected = deviations(models["heads"], {name: torch.tensor(value) for name, value in inputs.items()})
    assert [layer["mask_deviation"] for layer in found["layers"]] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("text", ["the", "the cat sat the cat sat the cat sat"])
def test_a_text_gets_the_length_that_spans_of_views_need(models, folders, text):
    # The segments have 3 and 5 tokens; the mask is looked at by running the model.
    found = inspected(folders / "spans", "--text", text)
    inputs = tokenizer()(text, padding="max_length", truncation=True, max_length=8, return_tensors="pt")
    expected = deviations(models["spans"], inputs)
    assert [layer["mask_deviation"] for layer in found["layers"]] == pytest.approx(expected, rel=1e-5)
    assert found["layers"][0]["views"] == ["self"] * 4


def test_json_of_a_shared_mask_views_and_a_mixture(models, folders):
    found = inspected(folders / "all")
    (expected,) = deviations(models["all"], example_inputs(models["all"]))
    assert found["shared_mask"]["mask_deviation"] == pytest.approx(expected, rel=1e-5)
    assert found["shared_mask"]["mask_parameters"] == 264 + 360
    layers = found["layers"]
    assert [layer["mask_parameters"] for layer in layers] == [None] * 3
    assert [layer["views"] for layer in layers] == models["all"].config.hf_lam["locomt"]["views"]
    assert layers[2]["mixing"] == pytest.approx([0.4, 0.36, 0.4, 0.36])
    assert found["mechanisms"]["stt"]["synthesizer"] == "factorized_random"


def cells(line):
    return [cell.strip() for cell in line.strip("│┃ \n").replace("┃", "│").split("│")]


def rows(out):
    return [cells(line) for line in out.splitlines() if line.startswith(("┃", "│"))]


def test_the_table(folders):
    code, out, _ = run_main("inspect", folders / "all")
    assert code == 0
    header, *layers = rows(out)
    assert header == ["layer", "mask parameters", "views", "λ by head", "synthesised"]
    mixing = "0.4 0.36 0.4 0.36"
    views = "2 self, 2 cross:type_0-type_1"
    assert layers == [[str(index), "shared", views, mixing, "factorized_random"] for index in range(3)]
    assert f"HfLamBertModel, saved by hf_lam {hf_lam.__version__}" in out
    assert "lam: scope shared" in out
    assert "one mask for all layers: 624 parameters, mean |M − 1| " in out
    assert "|M − 1| is for an example" in out


def test_an_added_mask_is_as_far_from_nothing_as_it_is_large(models, folders):
    found = inspected(folders / "added")
    (mask,) = visualization.learned_masks(models["added"], example_inputs(models["added"]))
    assert found["shared_mask"]["mask_magnitude"] == pytest.approx(mask.abs().mean().item(), rel=1e-5)
    assert found["shared_mask"]["mask_deviation"] is None
    _, out, _ = run_main("inspect", folders / "added")
    assert "scope shared" in out and "combine add" in out and "depth 3" in out
    assert "parameters, mean |M| " in out and "mean |M| is for an example" in out
    _, out, _ = run_main("inspect", folders / "added", "--layer", "0")
    assert rows(out)[0] == ["head", "mean |M|"]


def test_one_layer_head_by_head(folders):
    _, out, _ = run_main("inspect", folders / "all", "--layer", "1")
    header, *heads = rows(out)
    assert header == ["head", "mean |M − 1|", "view", "λ"]
    assert [head[0] for head in heads] == ["0", "1", "2", "3"]
    assert len({head[1] for head in heads}) == 1 and float(heads[0][1]) > 0  # one mask for all heads
    assert [head[3] for head in heads] == ["0.4", "0.36", "0.4", "0.36"]
    found = inspected(folders / "heads", "--layer", "2")
    assert [layer["index"] for layer in found["layers"]] == [2]
    _, out, _ = run_main("inspect", folders / "heads", "--layer", "2")
    expected = [f"{value:.3g}" for value in found["layers"][0]["mask_deviation_by_head"]]
    assert [head[1] for head in rows(out)[1:]] == expected
    assert len(set(expected)) == 4


@pytest.mark.parametrize("name", ["vit", "dense", "fusion"])
def test_other_models_have_a_table(models, folders, name):
    code, out, _ = run_main("inspect", folders / name)
    assert code == 0
    assert len(rows(out)) == 1 + models[name].config.num_hidden_layers
    assert len({len(row) for row in rows(out)}) == 1


@pytest.mark.parametrize(("name", "model_class"), [("stock", "BertForMaskedLM"), ("bare", "HfLamBertModel")])
def test_a_model_without_mechanisms(models, folders, name, model_class):
    code, out, _ = run_main("inspect", folders / name)
    assert code == 0
    assert f"{model_class}\n{models[name].num_parameters():,} parameters\n" in out
    assert "no mechanisms of hf_lam" in out
    assert rows(out) == []
    found = inspected(folders / name)
    assert (found["mechanisms"], found["layers"], found["version"]) == ({}, [], None)


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["pipeline"]},
        {"architectures": ["ViTModel", "NoSuchModel"]},
        {"hf_lam": {"lam": {}}},  # which a stock BERT does not have
    ],
)
def test_a_stock_configuration_with_strange_values(folders, tmp_path, changes):
    config = json.loads((folders / "stock" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    found = inspected(tmp_path)
    assert (found["model_class"], found["mechanisms"]) == (
        "BertForMaskedLM" if "hf_lam" in changes else "BertModel",
        {},
    )


def test_an_image_goes_through_the_image_processor(models, folders, tmp_path):
    image = pytest.importorskip("PIL.Image")
    from transformers import AutoImageProcessor, ViTImageProcessor

    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folders / "vit")
    picture = image.new("RGB", (20, 30), (200, 30, 60))
    picture.save(tmp_path / "red.png")
    found = inspected(folders / "vit", "--image", tmp_path / "red.png")
    assert found["inputs"] == "image"
    inputs = AutoImageProcessor.from_pretrained(folders / "vit")(picture, return_tensors="pt")
    expected = deviations(models["vit"], inputs)
    assert [layer["mask_deviation"] for layer in found["layers"]] == pytest.approx(expected, rel=1e-5)
    (tmp_path / "text.png").write_text("not an image")
    code, _, err = run_main("inspect", folders / "vit", "--image", tmp_path / "text.png")
    assert code == cli.WRONG_USE
    assert "cannot be read as an image" in error_line(err)


def test_text_and_image_of_a_fusion_model(folders, tmp_path):
    image = pytest.importorskip("PIL.Image")
    from transformers import ViTImageProcessor

    pixels = ViTImageProcessor(size={"height": 16, "width": 16})
    hf_lam.HfLamFusionProcessor(image_processor=pixels, tokenizer=tokenizer()).save_pretrained(folders / "fusion")
    image.new("RGB", (20, 30), (200, 30, 60)).save(tmp_path / "red.png")
    example = inspected(folders / "fusion")
    found = inspected(folders / "fusion", "--text", "the cat", "--image", tmp_path / "red.png")
    assert found["inputs"] == "text and image"
    alone = inspected(folders / "fusion", "--text", "the cat", "--text-pair", "sat")
    assert alone["inputs"] == "text"
    values = [[layer["mask_deviation"] for layer in result["layers"]] for result in (example, found, alone)]
    assert values[0] != values[1] != values[2]


def vectors_of(name, tmp_path, shape=(5, 20)):
    array = np.random.default_rng(0).normal(size=shape)
    np.save(tmp_path / f"{name}.npy", array)
    return torch.from_numpy(array).float()[None]


def with_features(*pairs):
    return [argument for pair in pairs for argument in ("--features", pair)]


def test_vectors_of_a_fusion_model(folders, models, tmp_path):
    clips, words = vectors_of("clips", tmp_path), vectors_of("words", tmp_path, (3, 12))
    files = [f"{name}={tmp_path / name}.npy" for name in ("clips", "words")]
    found = inspected(folders / "vectors", *with_features(*files))
    assert found["inputs"] == "clips and words"
    assert found["modalities"] == {
        "text": "BertModel",
        "clips": "vectors of 20 numbers, at most 9",
        "words": "vectors of 12 numbers",
        "summary": "vectors of 32 numbers",
    }
    expected = deviations(models["vectors"], {"clips_features": clips, "words_features": words})
    assert [layer["mask_deviation"] for layer in found["layers"]] == pytest.approx(expected, rel=1e-5)
    # With a processor, which standardises some of them, and a text.
    folder = Path(shutil.copytree(folders / "vectors", tmp_path / "model"))
    options = {"clips": {"size": 20, "mean": 1.0, "std": 2.0}}
    hf_lam.HfLamFusionProcessor(tokenizer=tokenizer(), features=options).save_pretrained(folder)
    found = inspected(folder, *with_features(*files), "--text", "the cat")
    assert found["inputs"] == "text and clips and words"
    inputs = {"input_ids": torch.tensor([[2, 5, 6, 3]]), "clips_features": (clips - 1) / 2, "words_features": words}
    expected = deviations(models["vectors"], inputs)
    assert [layer["mask_deviation"] for layer in found["layers"]] == pytest.approx(expected, rel=1e-5)
    _, out, _ = run_main("inspect", folder)
    assert "clips: vectors of 20 numbers, at most 9\n" in out


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        ("clips", "--features 'clips' must be the name of a modality and a file that is there"),
        ("clips=nowhere.npy", "must be the name of a modality and a file that is there"),
        (
            "smell={folder}/right.npy",
            "--features smell: .* takes text and --features of clips, words, summary, no smell",
        ),
        ("text={folder}/right.npy", "--features text: .* takes text and --features of clips"),
        ("clips={folder}/wide.npy", r"must hold numbers of shape \(vectors, 20\), got float64 of \(5, 21\)"),
        ("clips={folder}/nan.npy", "holds NaN or infinity"),
        ("clips={folder}/objects.npy", "cannot be read as an array of NumPy"),
        ("clips={folder}/text.npy", "cannot be read as an array of NumPy"),
        ("clips={folder}/several.npz", "got several arrays"),
        ("clips={folder}/long.npy", "clips_features must have at most 9 vectors, got 10"),
    ],
)
def test_vectors_that_are_none(folders, tmp_path, pair, message):
    right = np.zeros((5, 20))
    arrays = {"right": right, "wide": np.zeros((5, 21)), "nan": right * np.nan, "long": np.zeros((10, 20))}
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "text.npy").write_text("not an array")
    np.savez(tmp_path / "several.npz", a=right, b=right)
    code, _, err = run_main("inspect", folders / "vectors", "--features", pair.format(folder=tmp_path))
    assert code == cli.WRONG_USE
    assert re.search(message, error_line(err)), err


def test_vectors_are_not_given_by_other_options(folders):
    code, _, err = run_main("inspect", folders / "vectors", "--image", __file__)
    assert code == cli.WRONG_USE and "takes text and --features of clips, words, summary, no image" in error_line(err)


def test_pictures(folders, tmp_path):
    pytest.importorskip("matplotlib")
    arguments = ["--text", "the cat sat", "--output", tmp_path / "pictures"]
    found = inspected(folders / "heads", *arguments)
    written = {str(path) for path in (tmp_path / "pictures").iterdir()}
    assert written == set(found["pictures"])
    assert str(tmp_path / "pictures" / "masks.png") in written
    assert all(found["pictures"].values())


def test_pictures_are_of_the_inputs_that_were_given(folders, tmp_path, monkeypatch):
    seen = []

    def save_pictures(model, inputs, folder, *, format, tokens):
        seen.append((inputs["input_ids"].tolist(), folder, format, tokens))
        return {"masks.svg": "What it shows."}

    monkeypatch.setattr(visualization, "save_pictures", save_pictures)
    arguments = ["--text", "the cat", "--output", tmp_path, "--format", "svg"]
    code, out, _ = run_main("inspect", folders / "heads", *arguments)
    assert code == 0
    assert seen == [([[2, 5, 6, 3]], tmp_path, "svg", ["[CLS]", "the", "cat", "[SEP]"])]
    assert f"{tmp_path / 'masks.svg'}: What it shows." in out.splitlines()


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("vit", ["--text", "a cat"], "takes image, no text"),
        ("heads", ["--image", __file__], "takes text, no image"),
        ("heads", ["--text-pair", "sat"], "--text"),
        ("all", ["--text", "the cat"], "has no tokenizer or processor"),
        ("heads", ["--layer", "3"], "3 layers"),
        ("heads", ["--output", __file__], "is a file"),
        ("heads", ["--output", f"{__file__}/x/y"], "is a file"),
        ("heads", ["--format", "gif"], "gif"),
        ("missing", [], "there is no folder"),
    ],
)
def test_wrong_use(folders, name, arguments, expected):
    code, out, err = run_main("inspect", folders / name, *arguments, "--json")
    assert (code, out) == (cli.WRONG_USE, "")
    assert expected in " ".join(err.split())
    assert "Traceback" not in err


@pytest.mark.parametrize("model_type", ["hf_lam_bert", "unheard_of"])
@pytest.mark.parametrize("command", ["inspect", "cost"])
def test_code_beside_a_model_is_never_run(folders, tmp_path, model_type, command):
    hf_lam.convert(make_host("bert"), LamConfig()).save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    targets = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    changed = {**config, "model_type": model_type, "auto_map": targets}
    (tmp_path / "model" / "config.json").write_text(json.dumps(changed))
    (tmp_path / "model" / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    code, _, err = run_main(command, tmp_path / "model")
    assert code == (0 if model_type == "hf_lam_bert" else cli.WRONG_USE)
    assert not (tmp_path / "ran").exists()
    assert "Traceback" not in err


def test_damaged_weights_are_a_failure(folders, tmp_path):
    hf_lam.convert(make_host("bert"), LamConfig()).save_pretrained(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-100])
    code, out, err = run_main("inspect", tmp_path, "--json")
    assert (code, out) == (cli.CHECK_FAILED, "")
    assert str(tmp_path / "model.safetensors") in error_line(err)
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 12\n")
    code, _, err = run_main("inspect", tmp_path)
    assert code == cli.CHECK_FAILED
    assert "model.safetensors" in error_line(err) and "git lfs pull" in error_line(err)


def test_weights_that_do_not_fit_the_config(folders, tmp_path):
    shutil.copytree(folders / "heads", tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "intermediate_size": 41}))
    code, _, err = run_main("inspect", tmp_path / "model")
    assert code == cli.CHECK_FAILED
    assert f"do not fit its config.json; `hf-lam verify {tmp_path / 'model'}` lists where" in error_line(err)


@pytest.mark.parametrize("changes", [{"model_type": ["a"]}, {"auto_map": 7}])
@pytest.mark.parametrize("command", ["inspect", "cost"])
def test_a_config_with_values_of_other_kinds(folders, tmp_path, changes, command):
    config = json.loads((folders / "heads" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    code, _, err = run_main(command, tmp_path)
    assert code == cli.WRONG_USE
    assert str(tmp_path) in error_line(err) and "model_type" in error_line(err)


def test_a_stream_that_takes_ascii_alone(folders, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr(sys, "argv", ["hf-lam", "inspect", str(folders / "all")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    sys.stdout.flush()
    assert b"? by head" in written.getvalue()
