"""Ways to serve a model, with a mechanism and without: the time of each, and how far its answers are from the model's.

`texts` serves two classifiers of sentences that `save_pretrained` wrote, one stock and one with a mechanism; `images`
serves a ViT with random weights, stock, with STT and with LoCoMT. Times include the tokenizer, and all ways of all
models take turns in every round. Run `python benchmarks/serving.py --help`.
"""

import argparse
import copy
import json
import logging
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from attention import environment, interleaved, table
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    pipeline,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout needs no installation

from hf_lam import LocomtConfig, SttConfig, export, inject

MAX_TOKENS = 64  # of a sentence
VIT: dict[str, Any] = {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536, "num_labels": 10}
BASELINE = "PyTorch"
EMBEDDINGS, BY_HAND = "sentence-transformers", "embeddings in PyTorch"
# Takes the inputs of a batch, and gives the numbers that answer them, one row a sample.
Way = Callable[[Any], np.ndarray]
Prepare = Callable[[Any], dict[str, Tensor]]


def run(model: Callable[..., Any], prepare: Prepare, batch: Any) -> np.ndarray:
    """The logits of a model, or of a compiled one."""
    with torch.inference_mode():
        return model(**prepare(batch)).logits.float().numpy()


def in_half(model: PreTrainedModel, prepare: Prepare) -> Way:
    half = copy.deepcopy(model).bfloat16()

    def prepare_half(batch: Any) -> dict[str, Tensor]:
        return {name: x.bfloat16() if x.is_floating_point() else x for name, x in prepare(batch).items()}

    return partial(run, half, prepare_half)


def compiled(model: nn.Module, prepare: Prepare) -> Way:
    return partial(run, torch.compile(model, dynamic=True), prepare)


def in_int8(model: PreTrainedModel, prepare: Prepare, config: str) -> Way:
    """The linear layers of the host in int8, by torchao; compiled, without which it would be slower than float32."""
    from torchao import quantization

    quantized = copy.deepcopy(model)
    quantization.quantize_(quantized, getattr(quantization, config)())
    return compiled(quantized, prepare)


def in_onnxruntime(path: Path, prepare: Prepare, threads: int) -> Way:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Its threads would otherwise keep the cores after a call, while another contender has its turn.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def answer(batch: Any) -> np.ndarray:
        inputs = prepare(batch)
        return session.run(["logits"], {name: inputs[name].numpy() for name in names})[0]

    return answer


def quantize_onnx(folder: Path, *, mechanism: bool) -> Path:
    """The program of a folder with weights in int8, except for the mechanism unless it says so; made if not there."""
    target = folder / f"int8{'' if mechanism else '-host'}.onnx"
    if target.exists():
        return target
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    nodes = onnx.load(folder / "model.onnx").graph.node
    scopes = {node.name: {each.key: each.value for each in node.metadata_props} for node in nodes}
    own = [name for name, scope in scopes.items() if ".hf_lam" in scope.get("pkg.torch.onnx.name_scopes", "")]
    quantize_dynamic(
        folder / "model.onnx",
        target,
        op_types_to_quantize=["MatMul", "Gemm"],
        weight_type=QuantType.QInt8,
        nodes_to_exclude=[] if mechanism else own,
    )
    return target


def ways_of(model: PreTrainedModel, prepare: Prepare, folder: Path, threads: int) -> dict[str, Callable[[], Way]]:
    """What makes each of the ways that serve any model. ONNX programs are kept in the folder, and used again."""

    def in_ort(make: Callable[[Path], Path]) -> Way:
        if not folder.exists():
            export(model, folder)
        return in_onnxruntime(make(folder), prepare, threads)

    return {
        BASELINE: lambda: partial(run, model, prepare),
        "bf16": lambda: in_half(model, prepare),
        "torch.compile": lambda: compiled(copy.deepcopy(model), prepare),
        "int8 weights, torchao": lambda: in_int8(model, prepare, "Int8WeightOnlyConfig"),
        "int8, torchao": lambda: in_int8(model, prepare, "Int8DynamicActivationInt8WeightConfig"),
        "onnxruntime": lambda: in_ort(lambda exported: exported / "model.onnx"),
        "int8, onnxruntime": lambda: in_ort(partial(quantize_onnx, mechanism=True)),
        "int8, onnxruntime, mechanism in fp32": lambda: in_ort(partial(quantize_onnx, mechanism=False)),
    }


def text_ways(place: Path, folder: Path, threads: int) -> dict[str, Callable[[], Way]]:
    """What makes each of the ways to serve a classifier of sentences."""
    model = AutoModelForSequenceClassification.from_pretrained(place).eval()
    tokenizer = AutoTokenizer.from_pretrained(place)

    def prepare(texts: list[str]) -> dict[str, Tensor]:
        return dict(tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"))

    return ways_of(model, prepare, folder, threads) | {
        "pipeline": lambda: partial(in_pipeline, pipeline("text-classification", model=model, tokenizer=tokenizer)),
        BY_HAND: lambda: embed_by_hand(place, prepare),
        EMBEDDINGS: lambda: embed(place),
    }


def in_pipeline(classify: Any, texts: list[str]) -> np.ndarray:
    options = {"batch_size": len(texts), "top_k": None, "function_to_apply": "none", "truncation": True}
    found = classify(texts, max_length=MAX_TOKENS, **options)
    labels = list(classify.model.config.id2label.values())
    return np.array([[each["score"] for each in sorted(row, key=lambda x: labels.index(x["label"]))] for row in found])


def embed_by_hand(place: Path, prepare: Prepare) -> Way:
    """Embeddings of the encoder of a classifier: the mean of its tokens."""
    encoder = AutoModel.from_pretrained(place).eval()

    @torch.inference_mode()
    def answer(texts: list[str]) -> np.ndarray:
        inputs = prepare(texts)
        mask = inputs["attention_mask"].unsqueeze(-1)
        return ((encoder(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1)).numpy()

    return answer


def embed(place: Path) -> Way:
    """The same embeddings, by sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(place), device="cpu")
    model.max_seq_length = MAX_TOKENS
    return partial(model.encode, convert_to_numpy=True, show_progress_bar=False)


def make_vit(args: argparse.Namespace, *mechanisms: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model = ViTForImageClassification(ViTConfig(**VIT, num_hidden_layers=args.layers)).eval()
    if mechanisms:
        inject(model, *mechanisms)
    return model


def choose(makers: dict[str, Callable[[], Way]], wanted: list[str] | None) -> dict[str, Way]:
    """The ways that are wanted, beside those that they are compared with; all that can be made unless given."""
    names = [name for name in makers if wanted is None or name in wanted or name in (BASELINE, BY_HAND)]
    if wanted is None and not find_spec("torchao"):
        names = [name for name in names if "torchao" not in name]
    return {name: makers[name]() for name in names}


def batches_of(args: argparse.Namespace) -> Iterator[Any]:
    """The batches whose answers are compared, of which the first ones are timed."""
    if args.kind == "texts":
        texts = pd.read_parquet(args.data_dir / "validation.parquet")["sentence"].tolist()[: args.samples]
        yield from (texts[start : start + args.batch] for start in range(0, len(texts), args.batch))
    else:
        generator = torch.Generator().manual_seed(1)
        for _ in range(0, args.samples, args.batch):
            yield torch.randn(args.batch, 3, 224, 224, generator=generator)


def agreement(answers: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    """The largest difference, as a share of the largest number, and how many rows have their largest elsewhere."""
    return {
        "difference": float(np.abs(answers - expected).max() / np.abs(expected).max()),
        "changed": int((answers.argmax(-1) != expected.argmax(-1)).sum()),
    }


def measure(models: dict[str, dict[str, Way]], args: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds of a batch and the agreement, by way and model."""
    batches = list(batches_of(args))
    found: dict[str, Any] = {way: {} for ways in models.values() for way in ways}
    for name, ways in models.items():
        answers = {way: np.concatenate([answer(batch) for batch in batches]) for way, answer in ways.items()}
        for way in ways:
            expected = answers[BY_HAND if way in (EMBEDDINGS, BY_HAND) else BASELINE]
            found[way][name] = agreement(answers[way], expected)
    timed = batches[: args.timed]

    def step(answer: Way) -> None:
        for batch in timed:
            answer(batch)

    steps: dict[str, Callable[[], None]] = {}
    for way in found:
        steps |= {f"{name}/{way}": partial(step, ways[way]) for name, ways in models.items()}
    medians = interleaved(steps, args)
    for way, figures in found.items():
        for name, figure in figures.items():
            figure["ms"] = medians[f"{name}/{way}"] / len(timed)
    return found


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["texts", "images"])
    parser.add_argument("--stock", type=Path, help="texts: the folder of the stock classifier")
    parser.add_argument("--lam", type=Path, help="texts: the folder of the classifier with LAM")
    parser.add_argument("--data_dir", type=Path, help="texts: the folder of validation.parquet, with `sentence`")
    parser.add_argument("--layers", type=int, default=6, help="images: layers of the ViT")
    parser.add_argument("--work", type=Path, required=True, help="a folder for the ONNX programs; kept and used again")
    parser.add_argument("--ways", nargs="+", metavar="WAY", help="those to measure beside PyTorch, by their names")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--samples", type=int, default=400, help="whose answers are compared")
    parser.add_argument("--timed", type=int, default=4, help="batches that are timed")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the results here")
    args = parser.parse_args(arguments)
    if args.kind == "texts" and None in (args.stock, args.lam, args.data_dir):
        parser.error("texts needs --stock, --lam and --data_dir")
    args.device, args.dtype = "cpu", "float32"
    return args


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    logging.getLogger("hf_lam").setLevel(logging.ERROR)  # that views change the outputs is no news here
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    makers: dict[str, dict[str, Callable[[], Way]]] = {}
    if args.kind == "texts":
        for name in ("stock", "lam"):
            makers[name] = text_ways(getattr(args, name), args.work / name, args.threads)
    else:
        for name, own in (("stock", ()), ("stt", (SttConfig("dense"),)), ("locomt", (LocomtConfig(views="half"),))):
            vit = make_vit(args, *own)
            makers[name] = ways_of(vit, lambda pixels: {"pixel_values": pixels}, args.work / name, args.threads)
    models = {name: choose(of_model, args.ways) for name, of_model in makers.items()}
    found = measure(models, args)
    others = [name for name in models if name != "stock"]
    head = [*(f"{name} ms" for name in models), *(f"{name}/stock" for name in others)]
    head += [title for name in models for title in (f"{name} difference", "changed")]
    rows = [[f"a batch of {args.batch}", *head]]
    for way, figures in found.items():
        cells = [f"{figures[name]['ms']:.1f}" for name in models]
        cells += [f"{figures[name]['ms'] / figures['stock']['ms']:.2f}" for name in others]
        for name in models:
            cells += [f"{figures[name]['difference']:.1g}", str(figures[name]["changed"])]
        rows.append([way, *cells])
    facts = environment(args, ("batch", "samples", "timed", "rounds", "warmup"))
    print("  ".join(f"{key}={value}" for key, value in facts.items()) + "\n")
    print(table(rows))
    print(f"\ndifference: as a share of the largest logit; changed: of {args.samples} answers")
    if args.json:
        args.json.write_text(json.dumps({"environment": facts, "ways": found}, indent=2) + "\n")
    return found


if __name__ == "__main__":
    main()
