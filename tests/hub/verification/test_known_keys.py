"""`verify`: every key of every file that loading reads is one that is known to be harmless, at whatever depth."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers import BertConfig, GenerationConfig, ViTConfig

from helpers.verification import Files, edit, told
from hf_lam import HfLamBertConfig, HfLamFusionConfig
from hf_lam.hub import known_keys
from hf_lam.hub.buildable import config_class_of
from hf_lam.hub.file_checks import check_references
from hf_lam.hub.key_checks import check_keys
from hf_lam.hub.repository_files import Finding, LocalFiles
from hf_lam.hub.sentence_modules import copy_modules, modules_in
from hf_lam.hub.verification import verify

ST = "sentence_transformers"
TANH = "torch.nn.modules.activation.Tanh"
TOKEN = {"content": "[X]", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}

# A repository of sentence-transformers with whatever it can have, as several of its releases wrote it.
SENTENCE_FILES: dict[str, Any] = {
    "modules.json": [
        {"idx": 0, "name": "0", "path": "", "type": f"{ST}.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{ST}.sentence_transformer.modules.pooling.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Dense", "type": f"{ST}.models.Dense", "kwargs": ["task"]},
        {"idx": 3, "name": "3", "path": "3_Router", "type": f"{ST}.base.modules.router.Router"},
        {"idx": 4, "name": "4", "path": "4_Asym", "type": f"{ST}.models.Asym"},
        {"idx": 5, "name": "5", "path": "5_Normalize", "type": f"{ST}.models.Normalize"},
        {"idx": 6, "name": "6", "path": "6_SpladePooling", "type": f"{ST}.sparse_encoder.models.SpladePooling"},
    ],
    "config_sentence_transformers.json": {
        "__version__": {"sentence_transformers": "5.4.0", "transformers": "5.0.0", "pytorch": "2.9.0"},
        "model_type": "SentenceTransformer",
        "prompts": {"query": "query: ", "document": ""},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
        "activation_fn": "torch.nn.modules.linear.Identity",
    },
    "sentence_bert_config.json": {
        "max_seq_length": 256,
        "do_lower_case": False,
        "transformer_task": "feature-extraction",
        "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        "module_output_name": "token_embeddings",
        "model_args": {"attn_implementation": "sdpa", "torch_dtype": "float32"},
        "tokenizer_args": {"model_max_length": 256, "padding_side": "right"},
        "config_args": {"num_labels": 1},
        "processing_kwargs": {"text": {"padding": True}, "chat_template": {"add_generation_prompt": True}},
    },
    "1_Pooling/config.json": {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True},
    "2_Dense/config.json": {"in_features": 32, "out_features": 8, "bias": True, "activation_function": TANH},
    "3_Router/router_config.json": {
        "types": {"query_0_Dense": f"{ST}.base.modules.dense.Dense"},
        "structure": {"query": ["query_0_Dense"]},
        "parameters": {"default_route": "query", "allow_empty_key": True, "route_mappings": {"('a', 'b')": "query"}},
    },
    "3_Router/query_0_Dense/config.json": {"in_features": 8, "out_features": 8, "activation_function": TANH},
    "4_Asym/config.json": {"types": {}, "structure": {}, "parameters": {"allow_empty_key": True}},
    "6_SpladePooling/config.json": {"pooling_strategy": "max", "activation_function": "relu"},
}
OTHER_FILES: dict[str, Any] = {
    "tokenizer_config.json": {
        "tokenizer_class": "BertTokenizer",
        "added_tokens_decoder": {"0": TOKEN},
        "cls_token": "[CLS]",
        "extra_special_tokens": {"image_token": "<i>"},
        "sp_model_kwargs": {"nbest_size": 1},
        "model_max_length": 10**30,
        "chat_template": "{{ messages }}",
    },
    "special_tokens_map.json": {"mask_token": TOKEN, "additional_special_tokens": ["a", TOKEN]},
    "preprocessor_config.json": {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 16, "width": 16},
        "image_mean": [0.5, 0.5, 0.5],
        "do_resize": True,
        "resample": 3,
    },
    "processor_config.json": {
        "processor_class": "HfLamFusionProcessor",
        "image_processor": {"size": {"shortest_edge": 16}, "image_processor_type": "ViTImageProcessor"},
        "feature_extractor": {"sampling_rate": 16000},
        "video_processor": None,
        "tokenizer": None,
        "text_kwargs": {"padding": True},
    },
    "generation_config.json": {"max_length": 20, "watermarking_config": {"bias": 2.0}, "stop_strings": ["a"]},
    "chat_template.json": {"chat_template": "{{ messages }}"},
    "added_tokens.json": {"[X]": 9},
}
CONFIGS = {
    "bert": HfLamBertConfig(hf_lam={"lam": {}}).to_dict()
    | {"sentence_transformers": {"version": "5.0", "activation_fn": TANH}},
    "fusion": HfLamFusionConfig(text_config=BertConfig(), image_config=ViTConfig()).to_dict(),
}
FILES = {**SENTENCE_FILES, **OTHER_FILES}
# Objects whose keys are names that somebody gave: of prompts, labels, tokens and packages.
FREE = {
    ("config_sentence_transformers.json", "prompts"),
    ("config_sentence_transformers.json", "__version__"),
    ("3_Router/router_config.json", "structure"),
    ("3_Router/router_config.json", "route_mappings"),
    ("tokenizer_config.json", "added_tokens_decoder"),
    ("tokenizer_config.json", "extra_special_tokens"),
    ("special_tokens_map.json", ""),
    ("special_tokens_map.json", "mask_token"),  # which may be several, by their names
    ("config.json", "id2label"),
    ("config.json", "label2id"),
}


# What reaches out under some name, or might in a coming release.
STRANGE = {"code_revision": "main", "quantizer": {"quant_method": "x"}, "pipelines": [{"a": "b"}]}


def findings_of(configs: dict[str, Any]) -> list[Finding]:
    contents = {name: json.dumps(content).encode() for name, content in configs.items()}
    configs = {name: json.loads(content) for name, content in contents.items()}
    return check_keys(configs, modules_in(Files(contents)), config_class_of, True)


def objects_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of the dictionaries in nested dictionaries and lists."""
    if isinstance(value, dict):
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from objects_in(item, (*path, key))


def copied(files: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(files))


def at(content: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        content = content[key]
    return content


def test_usual_files_have_no_strange_keys() -> None:
    assert findings_of(FILES) == []
    for config in CONFIGS.values():
        assert findings_of({"config.json": config}) == []


@pytest.mark.parametrize("name", [*FILES, *CONFIGS])
def test_what_is_in_no_table_is_found_at_every_depth(name: str) -> None:
    files = FILES if name in FILES else {"config.json": CONFIGS[name]}
    file = name if name in FILES else "config.json"
    seen = 0
    for place in objects_in(files[file]):
        for key, value in STRANGE.items():
            is_free = (file, place[-1] if place else "") in FREE and not isinstance(value, list)
            # What a mechanism has is compared with its own options.
            if is_free or "hf_lam" in place:
                continue
            changed = copied(files)
            at(changed[file], place)[key] = value
            found = findings_of(changed)
            assert [finding.file for finding in found] == [file], (place, key)
            assert key in found[0].message
            seen += 1
    assert seen


EVIL = ["evil/repo--m.Evil", "antigravity.X", "code.interact", "os.system", "torch.hub.load", "", 3, None, ["a"]]


@pytest.mark.parametrize("value", EVIL)
@pytest.mark.parametrize(
    ("file", "place", "key"),
    [
        ("modules.json", (0,), "type"),
        ("modules.json", (1,), "type"),
        ("3_Router/router_config.json", ("types",), "query_0_Dense"),
        ("2_Dense/config.json", (), "activation_function"),
        ("3_Router/query_0_Dense/config.json", (), "activation_function"),
        ("6_SpladePooling/config.json", (), "activation_function"),
        ("config_sentence_transformers.json", (), "activation_fn"),
        ("sentence_bert_config.json", (), "tokenizer_name_or_path"),
        ("sentence_bert_config.json", ("modality_config", "text"), "method"),
    ],
)
def test_what_sentence_transformers_would_import_or_fetch(
    file: str, place: tuple[Any, ...], key: str, value: Any
) -> None:
    changed = copied(FILES)
    at(changed[file], place)[key] = value
    is_default = value is None and key in ("activation_fn", "tokenizer_name_or_path")
    found = findings_of(changed)
    # A module of another class has no table for its configuration any more, which is then that of no model.
    assert (file in {finding.file for finding in found}) is not is_default


@pytest.mark.parametrize(
    "kind",
    [
        "sentence_transformers.util.misc.import_from_string",
        "sentence_transformers.models.WordEmbeddings",
        "sentence_transformers.models.Pooling.Pooling.load",
        "sentence_transformersx.models.Pooling",
        "xsentence_transformers.models.Pooling",
        "sentence_transformers.models.Pooling\n",
        "pylate.models.Dense.Dense",
        "modeling_hf_lam.HfLamBertModel",
    ],
)
def test_modules_that_were_not_looked_through(kind: str) -> None:
    changed = copied(SENTENCE_FILES)
    changed["modules.json"][5]["type"] = kind
    assert [finding.file for finding in findings_of(changed)] == ["modules.json"]


@pytest.mark.parametrize("path", ["../x", "/tmp/x", "a/../../b", "C:\\x", "\\x", "~/x", "https://evil/x"])
def test_folders_of_modules_outside(path: str) -> None:
    for file, change in (
        ("modules.json", lambda content: content[5].update(path=path)),
        ("3_Router/router_config.json", lambda content: content["types"].update({path: f"{ST}.models.Normalize"})),
    ):
        changed = copied(SENTENCE_FILES)
        change(changed[file])
        assert [finding.file for finding in findings_of(changed)] == [file]


def test_a_folder_with_two_modules_is_judged_as_the_first() -> None:
    """It cannot hide what the second would read."""
    entries = [
        {**SENTENCE_FILES["modules.json"][0], "type": f"{ST}.models.{kind}"} for kind in ("Transformer", "Dense")
    ]
    changed = {"modules.json": entries, "config.json": dict(CONFIGS["bert"])}
    assert findings_of(changed) == []
    changed["config.json"]["activation_function"] = "os.system"
    assert [finding.file for finding in findings_of(changed)] == ["config.json"]


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "unet/scheduler_config.json",
        "Modular_Model_Index.json",
        "0_Words/wordembedding_config.json",
    ],
)
def test_files_that_no_repository_of_hf_lam_needs(name: str) -> None:
    (finding,) = findings_of({name: {"_class_name": "StableDiffusionPipeline", "unet": ["evil", "X"]}})
    assert (finding.kind, finding.file) == ("repository", name)


@pytest.mark.parametrize("depth", [50, 400, 900])
def test_what_is_nested_deep_is_found_too(folder: Path, depth: int) -> None:
    """Neither a check nor what it says of a value may end in an error."""
    (folder / "preprocessor_config.json").write_text('{"a":' + "[" * depth + "]" * depth + "}")
    (folder / "modules.json").write_text('[{"type":' * depth + "1" + "}]" * depth)
    assert {file for _, file in told(verify(folder))} == {"preprocessor_config.json", "modules.json"}
    nested = '{"model_type": "hf_lam_fusion", "text_config": ' * depth + "{}" + "}" * depth
    (folder / "config.json").write_text(nested)
    assert "config.json" in {file for _, file in told(verify(folder))}


@pytest.mark.parametrize("content", [{"model_type": "llava"}, {"_class_name": "UNet2DModel"}, {}, [], "x"])
def test_a_configuration_in_a_folder_is_that_of_a_known_model(content: Any) -> None:
    (finding,) = findings_of({"unet/config.json": content})
    assert (finding.kind, finding.file) == ("key", "unet/config.json")


def test_code_of_an_encoder_from_where_it_once_came() -> None:
    code = {"AutoModel": "modeling_hf_lam.HfLamBertModel"}
    for changes in ({"_name_or_path": "evil/repo"}, {"auto_map": code}):
        changed = copied({"config.json": CONFIGS["fusion"]})
        changed["config.json"]["text_config"] |= changes
        assert findings_of(changed) == []
    changed["config.json"]["text_config"] |= {"_name_or_path": "evil/repo"}
    assert "looked for in 'evil/repo'" in findings_of(changed)[0].message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0.5", {"a": "b"}, [[0.5, "x"]]])
def test_numbers_are_numbers(value: Any) -> None:
    for key in ("image_std", "rescale_factor", "resample"):
        (finding,) = findings_of({"preprocessor_config.json": {key: value}})
        assert finding.message.startswith(key)
    assert findings_of({"config.json": CONFIGS["bert"] | {"my_note": value}})


def test_what_releases_of_transformers_wrote_is_known() -> None:
    old = {
        **{"directionality": "bidi", "pooler_type": "first_token_transform", "pooler_fc_size": 768},
        **{"position_embedding_type": "absolute", "gradient_checkpointing": False, "finetuning_task": "sst2"},
        **{"task_specific_params": {"summarization": {"max_length": 8, "prefix": "x"}}, "pruned_heads": {"1": [0]}},
        **{"output_past": True, "_name_or_path": "bert-base-uncased", "problem_type": None, "torch_dtype": "float32"},
    }
    assert findings_of({"config.json": CONFIGS["bert"] | old}) == []
    assert findings_of({"generation_config.json": GenerationConfig(max_length=3).to_dict()}) == []
    tokenizer = {
        **{"full_tokenizer_file": None, "tokenizer_type": "bert", "return_token_type_ids": True, "dtype": "float32"},
        **{"special_tokens_map": {"cls_token": "[CLS]"}, "fix_mistral_regex": True, "do_basic_tokenize": True},
        **{"tokenizer_class": "HerbertTokenizerFast"},
    }
    assert findings_of({"tokenizer_config.json": tokenizer}) == []
    assert check_references({"tokenizer_config.json": tokenizer}) == []
    for name in ("ViT", "CLIP", "Beit", "ConvNext", "DeiT", "VideoMAE"):
        processor = getattr(transformers, f"{name}ImageProcessor")()
        assert findings_of({"preprocessor_config.json": json.loads(processor.to_json_string())}) == []


# --- Whole folders ---------------------------------------------------------------------------------------------------


@pytest.fixture
def embedder(saved: Callable[[str], Path], tmp_path: Path) -> Path:
    """A model with the files of sentence-transformers beside it."""
    target = Path(shutil.copytree(saved("bert_base"), tmp_path / "embedder"))
    for name, content in SENTENCE_FILES.items():
        (target / name).parent.mkdir(exist_ok=True, parents=True)
        (target / name).write_text(json.dumps(content))
    for folder, size in (("2_Dense", (8, 32)), ("3_Router/query_0_Dense", (8, 8))):
        save_file({"linear.weight": torch.ones(size)}, target / folder / "model.safetensors")
    return target


def test_a_model_of_sentence_transformers_passes(embedder: Path) -> None:
    result = verify(embedder, weights=True)
    assert result.findings == ()
    assert {"modules.json", "1_Pooling/config.json", "2_Dense/model.safetensors"} <= set(result.reads)


def test_its_model_may_be_in_a_folder(embedder: Path) -> None:
    """As sentence-transformers saved it once: nothing but the list of modules is in the root."""
    (embedder / "0_Transformer").mkdir()
    for file in [*embedder.glob("*.py"), *embedder.glob("LICENSE*"), embedder / "config.json"]:
        file.rename(embedder / "0_Transformer" / file.name)
    (embedder / "model.safetensors").rename(embedder / "0_Transformer" / "model.safetensors")
    entries = json.loads((embedder / "modules.json").read_text())
    entries[0]["path"] = "0_Transformer"
    (embedder / "modules.json").write_text(json.dumps(entries))
    result = verify(embedder)
    assert result.findings == ()
    assert result.version is not None
    shutil.rmtree(embedder / "0_Transformer")
    assert ("code", "") in told(verify(embedder))


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("1_Pooling/config.json", "config"),
        ("2_Dense/config.json", "config"),
        ("2_Dense/model.safetensors", "weights"),
        ("3_Router/query_0_Dense/model.safetensors", "weights"),
    ],
)
def test_what_its_modules_lack(embedder: Path, file: str, kind: str) -> None:
    (embedder / file).unlink()
    assert (kind, file) in told(verify(embedder))


@pytest.mark.parametrize("options", [{"out_features": 10**12}, {"in_features": 8}, {"out_features": "8"}])
def test_weights_of_another_dense_layer(embedder: Path, options: dict[str, Any]) -> None:
    edit(embedder / "2_Dense" / "config.json", **options)
    assert ("weights", "2_Dense/model.safetensors") in told(verify(embedder))


@pytest.mark.parametrize(
    ("file", "content", "kind"),
    [
        ("2_Dense/model.safetensors", b"", "weights"),
        ("1_Pooling/more.safetensors", b"x", "weights"),
        ("2_Dense/pytorch_model.bin", b"", "pickle"),
        ("2_Dense/modeling.py", b"x = 1", "code"),
        ("2_Dense/config.json", b"{", "config"),
        ("2_Dense/config.json", b"[]", "key"),
        ("artifact.metadata", b"{}", "file"),
    ],
)
def test_what_is_wrong_with_its_modules(embedder: Path, file: str, content: bytes, kind: str) -> None:
    (embedder / file).write_bytes(content)
    assert (kind, file) in told(verify(embedder))


@pytest.mark.parametrize(
    "changes",
    [
        {"base_model_name_or_path": "evil/repo"},
        {"sentence_transformers": {"activation_fn": "code.interact"}},
        {"sbert_ce_default_activation_function": "code.interact"},
        {"peft_config": {}},
        {"code_revision": "evil"},
        {"_commit_hash": "0" * 40},
        {"custom_pipelines": {"x": {"impl": "modeling_hf_lam.HfLamBertModel"}}},
    ],
)
def test_what_reaches_out_in_the_configuration_of_a_model(folder: Path, changes: dict[str, Any]) -> None:
    edit(folder / "config.json", **changes)
    assert told(verify(folder)) == [("key", "config.json")]


def test_modules_are_copied_and_pickles_are_not(embedder: Path, tmp_path: Path) -> None:
    (embedder / "2_Dense" / "pytorch_model.bin").write_bytes(b"")
    (embedder / "notes").mkdir()
    (embedder / "notes" / "mine.txt").write_text("mine")
    (tmp_path / "copy").mkdir()
    (note,) = copy_modules(embedder, tmp_path / "copy")
    assert note.startswith("2_Dense/pytorch_model.bin was left out")
    copied = {path.relative_to(tmp_path / "copy").as_posix() for path in (tmp_path / "copy").rglob("*.*")}
    weights = {"2_Dense/model.safetensors", "3_Router/query_0_Dense/model.safetensors"}
    assert copied == {*SENTENCE_FILES, *weights}
    assert copy_modules(tmp_path / "notes", tmp_path / "copy") == []


@pytest.mark.parametrize("place", [(), ("text_config",), ("image_config",)])
def test_weights_that_are_quantized(saved: Callable[[str], Path], tmp_path: Path, place: tuple[str, ...]) -> None:
    target = Path(shutil.copytree(saved("plain_fusion"), tmp_path / "model"))
    config = json.loads((target / "config.json").read_text())
    at(config, place)["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (target / "config.json").write_text(json.dumps(config))
    (finding,) = verify(target).findings
    assert "quantized" in finding.message


@pytest.mark.slow
def test_tables_are_those_of_sentence_transformers() -> None:
    """Every option that the installed release saves is in its table; what it has no longer stays for old folders."""
    modules = {}
    for package in ("base", "sentence_transformer", "sparse_encoder", "cross_encoder", "multi_vector_encoder"):
        modules |= vars(pytest.importorskip(f"sentence_transformers.{package}.modules"))
    for name, wanted in known_keys.MODULES.items():
        if name in known_keys.MODELS | known_keys.ROUTERS or name not in modules:
            continue
        table = known_keys.FILES.get(modules[name].config_file_name, wanted)
        strange = set(modules[name].config_keys) - set(table) - set(known_keys.FILES["cnn_config.json"])
        assert not strange, name
    assert set(modules["Transformer"].config_keys) <= set(known_keys.FILES["sentence_*_config.json"])
    assert set(modules["Router"].config_keys) <= set(known_keys.FILES["router_config.json"]["parameters"])
    assert modules_in(LocalFiles(Path(__file__).parent)) == {}


@pytest.mark.slow
def test_what_sentence_transformers_saves_passes(saved: Callable[[str], Path], tmp_path: Path) -> None:
    """Modules of every kind beside a model, saved by the installed release and loaded again."""
    library = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    base = pytest.importorskip("sentence_transformers.base.modules")
    model = Path(shutil.copytree(saved("bert_base"), tmp_path / "model"))
    words = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hi", "good"])}
    transformers.BertTokenizer(vocab=words).save_pretrained(model)
    first = library.SentenceTransformer(str(model), trust_remote_code=True)[0]
    pooling = modules.Pooling(32, "mean")
    routes = {
        "query": [modules.Dense(32, 32)],
        "document": [modules.Dense(32, 32, activation_function=torch.nn.GELU())],
    }
    for index, parts in enumerate(
        [
            [first, pooling, modules.Dense(32, 8, use_residual=True), modules.LayerNorm(8), base.Normalize()],
            [first, modules.CNN(32, 8, [1, 3]), modules.Pooling(16, ("cls", "max")), modules.Dropout(0.1)],
            [first, pooling, base.Router(routes, allow_empty_key=True)],
        ]
    ):
        embedder = library.SentenceTransformer(modules=parts, prompts={"query": "query: "})
        embedder.save(str(tmp_path / str(index)))
        result = verify(tmp_path / str(index), weights=True)
        assert result.findings == ()
        again = library.SentenceTransformer(str(tmp_path / str(index)), trust_remote_code=True)
        task = {"task": "query"} if index == 2 else {}
        assert torch.allclose(*(torch.tensor(x.encode(["hi good"], **task)) for x in (embedder, again)), atol=1e-5)


@pytest.mark.slow
def test_what_a_cross_encoder_saves_passes(saved: Callable[[str], Path], tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    model = Path(shutil.copytree(saved("bert"), tmp_path / "model"))
    words = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hi", "good"])}
    transformers.BertTokenizer(vocab=words).save_pretrained(model)
    encoder = library.CrossEncoder(str(model), trust_remote_code=True, activation_fn=torch.nn.Sigmoid())
    encoder.save_pretrained(str(tmp_path / "saved"))
    assert verify(tmp_path / "saved").findings == ()
