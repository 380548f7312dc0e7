"""examples/serve: batches out of single requests, and a server that says what is wrong."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import threading
import time
import urllib.error
import urllib.request
import wave
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    Wav2Vec2FeatureExtractor,
)

from helpers.scripts import script_module
from helpers.small_classifiers import SMALL, WORDS, sound_host, text_host, text_tokenizer
from hf_lam import LamConfig, LocomtConfig, convert

pytest.importorskip("fastapi")
uvicorn = pytest.importorskip("uvicorn")


@pytest.fixture(scope="module")
def batching() -> Iterator[ModuleType]:
    with script_module("serve/batching") as module:
        yield module


# --- batches ---------------------------------------------------------------------------------------------------------


class Model:
    """Answers with the size of each sample, and remembers what ran together. It can be held up."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.free = threading.Event()
        self.free.set()

    def __call__(self, samples: list[Any]) -> list[int]:
        self.free.wait()
        self.batches.append([sample.size for sample in samples])
        if any(sample.inputs.get("bad") for sample in samples):
            raise RuntimeError("bad sample")
        return [sample.size for sample in samples]


async def _answers_behind_one(batching: ModuleType, model: Model, samples: list[Any], **options: Any) -> list[Any]:
    """The answers to samples that all wait while the model is busy with another one, of size 0."""
    model.free.clear()
    async with batching.Batcher(model, **options) as batcher:
        first = asyncio.ensure_future(batcher(batching.Sample({}, 0)))
        await asyncio.sleep(0.02)
        others = [asyncio.ensure_future(batcher(sample)) for sample in samples]
        await asyncio.sleep(0.02)
        model.free.set()
        await first
        return await asyncio.gather(*others, return_exceptions=True)


@pytest.mark.parametrize(
    ("options", "sizes", "batches"),
    [
        ({}, [5, 5, 5], [[5, 5, 5]]),
        ({"max_batch_size": 2}, [5, 5, 5], [[5, 5], [5]]),
        # The oldest first, beside those of about its length.
        ({}, [10, 90, 11, 88, 9], [[10, 11, 9], [90, 88]]),
        ({"max_padding": 0}, [4, 5, 4], [[4, 4], [5]]),
        ({"max_batch_tokens": 20}, [10, 10, 10], [[10, 10], [10]]),
        ({"max_batch_tokens": None}, [9000, 9000], [[9000, 9000]]),
        # Longer than a batch may be, and alone.
        ({"max_batch_tokens": 20}, [50, 50], [[50], [50]]),
    ],
)
def test_what_waits_runs_together(
    options: dict[str, Any], sizes: list[int], batches: list[list[int]], batching: ModuleType
) -> None:
    model = Model()
    samples = [batching.Sample({}, size) for size in sizes]
    assert asyncio.run(_answers_behind_one(batching, model, samples, **options)) == sizes
    assert model.batches == [[0], *batches]


def test_samples_of_other_shapes_run_apart(batching: ModuleType) -> None:
    model = Model()
    samples = [batching.Sample({}, 5, group) for group in ("a", "b", "a")]
    asyncio.run(_answers_behind_one(batching, model, samples))
    assert model.batches == [[0], [5, 5], [5]]


def test_a_sample_that_fails_takes_no_other_along(batching: ModuleType) -> None:
    samples = [batching.Sample({"bad": size == 6}, size) for size in (5, 6, 7)]
    first, failed, last = asyncio.run(_answers_behind_one(batching, Model(), samples, max_padding=0.5))
    assert (first, last) == (5, 7) and isinstance(failed, RuntimeError)


def test_what_is_given_up_is_not_run_and_what_is_too_much_is_refused(batching: ModuleType) -> None:
    async def run(model: Model) -> None:
        model.free.clear()
        async with batching.Batcher(model, max_waiting=2) as batcher:
            first = asyncio.ensure_future(batcher(batching.Sample({}, 1)))
            await asyncio.sleep(0.02)
            waiting = [asyncio.ensure_future(batcher(batching.Sample({}, size))) for size in (2, 3)]
            await asyncio.sleep(0)
            with pytest.raises(batching.FullError):
                await batcher(batching.Sample({}, 4))
            waiting[0].cancel()
            await asyncio.sleep(0)
            fifth = asyncio.ensure_future(batcher(batching.Sample({}, 5)))
            await asyncio.sleep(0)
            model.free.set()
            assert await asyncio.gather(first, waiting[1], fifth) == [1, 3, 5]
        with pytest.raises(batching.ClosedError):
            await batcher(batching.Sample({}, 6))

    model = Model()
    asyncio.run(run(model))
    assert sorted(size for batch in model.batches for size in batch) == [1, 3, 5]


def test_what_waits_at_the_end_is_answered(batching: ModuleType) -> None:
    async def run() -> list[int]:
        async with batching.Batcher(Model()) as batcher:
            waiting = [asyncio.ensure_future(batcher(batching.Sample({}, size))) for size in (1, 2)]
            await asyncio.sleep(0)
        return await asyncio.gather(*waiting)

    assert asyncio.run(run()) == [1, 2]


@pytest.mark.parametrize("option", [{"max_batch_size": 0}, {"max_waiting": 0}, {"max_padding": 1.0}])
def test_limits_that_are_none(option: dict[str, Any], batching: ModuleType) -> None:
    with pytest.raises(ValueError, match=next(iter(option))):
        batching.Batcher(Model(), **option)


# --- a server --------------------------------------------------------------------------------------------------------


@contextmanager
def serving(
    model: PreTrainedModel, processor: Any, folder: Path, free: threading.Event | None = None, **options: Any
) -> Iterator[str]:
    """The address of a server of a model, which runs nothing before it is free."""
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    with script_module("serve/serve") as serve:
        arguments = serve.ServerArguments(str(folder), **options)
        classifier = serve.Classifier(arguments.model)
        if free is not None:
            run = classifier.run
            classifier.run = lambda samples: free.wait() and run(samples)
        app = serve.make_app(classifier, arguments)
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        host, port = server.servers[0].sockets[0].getsockname()
        try:
            yield f"http://{host}:{port}"
        finally:
            server.should_exit = True
            thread.join(10)


def ask(url: str, body: bytes | dict[str, Any] | None, content_type: str = "application/json") -> tuple[int, Any]:
    """The status and the JSON of an answer."""
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    request = urllib.request.Request(url, data, {"Content-Type": content_type})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def _bert() -> tuple[PreTrainedModel, Any]:
    return convert(text_host(), LamConfig(rank=2)), text_tokenizer()


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, PreTrainedModel, Any]]:
    model, tokenizer = _bert()
    limits = {"max_inputs": 3, "max_body_mb": 0.01, "body_timeout": 0.5}
    with serving(model, tokenizer, tmp_path_factory.mktemp("served"), **limits) as url:
        yield url, model, tokenizer


def test_answers_are_those_of_the_model(texts: tuple[str, PreTrainedModel, Any]) -> None:
    url, model, tokenizer = texts
    sentences = ["a good film", "bad", "a long long bad film " * 9]
    status, answer = ask(f"{url}/predict", {"inputs": sentences})
    assert status == 200
    for sentence, found in zip(sentences, answer["predictions"], strict=True):
        with torch.no_grad():
            inputs = tokenizer(sentence, return_tensors="pt", truncation=True, max_length=24)
            scores = model(**inputs).logits[0].softmax(-1)
        assert [each["score"] for each in found] == pytest.approx(scores.sort(descending=True)[0].tolist(), abs=2e-6)
        assert found[0]["label"] == model.config.id2label[int(scores.argmax())]
    ((best,),) = ask(f"{url}/predict", {"inputs": "bad", "top_k": 1})[1]["predictions"]
    expected = answer["predictions"][1][0]
    assert best == {"label": expected["label"], "score": pytest.approx(expected["score"], abs=2e-6)}


def test_clients_at_the_same_time_get_their_own_answers(texts: tuple[str, PreTrainedModel, Any]) -> None:
    url, *_ = texts
    sentences = ["good", "a bad film", "long " * 12, "film film", "a"]
    alone = [ask(f"{url}/predict", {"inputs": sentence})[1]["predictions"][0] for sentence in sentences]
    with ThreadPoolExecutor(10) as threads:
        asked = [sentences[number % 5] for number in range(50)]
        answers = list(threads.map(lambda sentence: ask(f"{url}/predict", {"inputs": sentence}), asked))
    for number, (status, answer) in enumerate(answers):
        assert status == 200
        for one, other in zip(answer["predictions"][0], alone[number % 5], strict=True):
            assert one == {"label": other["label"], "score": pytest.approx(other["score"], abs=2e-6)}
    assert ask(f"{url}/health", None)[1] == {"status": "ok", "kind": "text", "waiting": 0}
    with urllib.request.urlopen(f"{url}/metrics") as response:
        lines = response.read().decode().splitlines()
    counts = {line.split()[0]: float(line.split()[1]) for line in lines if line and not line.startswith("#")}
    assert counts['serve_requests_total{status="200"}'] >= 55
    assert counts["serve_batch_rows_sum"] == counts["serve_waited_seconds_count"] >= 55


@pytest.mark.parametrize(
    ("body", "content_type", "status", "said"),
    [
        (b"a good film", "text/plain", 415, "application/json"),
        (b"{", "application/json", 422, "JSON"),
        ({"input": "a"}, "application/json", 422, "inputs"),
        ({"inputs": 7}, "application/json", 422, "inputs"),
        ({"inputs": []}, "application/json", 422, "1 to 3"),
        ({"inputs": ["a"] * 4}, "application/json", 422, "got 4"),
        ({"inputs": "a", "top_k": 0}, "application/json", 422, "top_k"),
        ({"inputs": "a " * 9000}, "application/json", 413, "0.01 MB"),
    ],
)
def test_requests_that_are_refused(
    body: Any, content_type: str, status: int, said: str, texts: tuple[str, PreTrainedModel, Any]
) -> None:
    found, answer = ask(f"{texts[0]}/predict", body, content_type)
    assert found == status and said in answer["detail"]


def test_slow_and_broken_clients_harm_no_other(texts: tuple[str, PreTrainedModel, Any]) -> None:
    url, *_ = texts
    host, port = url.removeprefix("http://").split(":")
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    slow = [socket.create_connection((host, int(port)), timeout=10) for _ in range(5)]
    gone = [socket.create_connection((host, int(port)), timeout=10) for _ in range(5)]
    for each in (*slow, *gone):
        each.sendall(head)
    for each in gone:
        each.close()
    assert ask(f"{url}/predict", {"inputs": "good"})[0] == 200
    for each in slow:
        assert b" 408 " in each.recv(4096).split(b"\r\n")[0] + b" "
        each.close()
    assert ask(f"{url}/predict", {"inputs": "good"})[0] == 200


def test_load_beside_bad_and_slow_clients_loses_no_request(texts: tuple[str, PreTrainedModel, Any]) -> None:
    """Every request of 16 clients gets its own answer while others send what is refused, stop half-way or hang up."""
    url, *_ = texts
    host, port = url.removeprefix("http://").split(":")
    sentences = ["good", "a bad film", "long " * 12, "film film", "a"]
    alone = [ask(f"{url}/predict", {"inputs": sentence})[1]["predictions"][0] for sentence in sentences]
    refused = ((b"{", 422), ({"inputs": 7}, 422), ({"inputs": ["a"] * 4}, 422), ({"inputs": "a " * 9000}, 413))
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"

    def send_good(number: int) -> tuple[int, Any]:
        return ask(f"{url}/predict", {"inputs": sentences[number % 5]})

    def send_bad(number: int) -> tuple[int, int]:
        body, status = refused[number % 4]
        return ask(f"{url}/predict", body)[0], status

    def send_half(number: int) -> bytes:
        """The first line of the answer; none where the client does not wait for it."""
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(head)
            return b"" if number % 2 else connection.recv(4096).split(b"\r\n")[0]

    with ThreadPoolExecutor(16) as clients, ThreadPoolExecutor(4) as bad, ThreadPoolExecutor(8) as slow:
        halves = [slow.submit(send_half, number) for number in range(16)]
        wrong = [bad.submit(send_bad, number) for number in range(40)]
        answers = list(clients.map(send_good, range(200)))
    for number, (status, answer) in enumerate(answers):
        assert status == 200
        for one, other in zip(answer["predictions"][0], alone[number % 5], strict=True):
            assert one == {"label": other["label"], "score": pytest.approx(other["score"], abs=2e-6)}
    assert all(found == status for found, status in (each.result() for each in wrong))
    assert [b" 408 " in half.result() for half in halves] == [True, False] * 8
    assert ask(f"{url}/health", None)[1]["waiting"] == 0


def test_what_takes_too_long_or_is_too_much(tmp_path: Path) -> None:
    free = threading.Event()
    model, tokenizer = _bert()
    with serving(model, tokenizer, tmp_path, free, timeout=1, max_waiting=2) as url:
        with ThreadPoolExecutor(8) as threads:
            first = threads.submit(ask, f"{url}/predict", {"inputs": "good"})
            time.sleep(0.2)
            others = [threads.submit(ask, f"{url}/predict", {"inputs": "good"}) for _ in range(7)]
            statuses = sorted(answer.result()[0] for answer in (first, *others))
        # One runs, two wait, until they are given up.
        assert statuses == [503] * 5 + [504] * 3
        free.set()
        assert ask(f"{url}/predict", {"inputs": "good"})[0] == 200


def test_pictures(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ViTConfig(**SMALL, image_size=8, patch_size=4, num_labels=3, initializer_range=0.5)
    model = convert(ViTForImageClassification(config), LocomtConfig(views="self"))
    processor = ViTImageProcessor(size={"height": 8, "width": 8})
    pictures = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 30, 3), np.uint8)) for i in range(3)]
    with serving(model, processor, tmp_path) as url:
        for picture in pictures:
            file = io.BytesIO()
            picture.save(file, "PNG")
            status, answer = ask(f"{url}/predict?top_k=2", file.getvalue(), "image/png")
            with torch.no_grad():
                scores = model(**processor(picture, return_tensors="pt")).logits[0].softmax(-1)
            assert status == 200
            found = [each["score"] for each in answer["predictions"][0]]
            assert found == pytest.approx(scores.topk(2).values.tolist(), abs=2e-6)
        assert ask(f"{url}/predict", b"no picture", "image/png")[0] == 422
        assert ask(f"{url}/predict", b"", "image/png")[0] == 422
        assert ask(f"{url}/predict?top_k=x", file.getvalue(), "image/png")[0] == 422
        assert ask(f"{url}/predict", {"inputs": "good"})[0] == 415


def test_sounds_whose_padding_would_be_heard_share_a_batch_with_their_equals(tmp_path: Path) -> None:
    for is_masked in (False, True):
        folder = tmp_path / str(is_masked)
        sound_host().save_pretrained(folder)
        Wav2Vec2FeatureExtractor(sampling_rate=100, return_attention_mask=is_masked).save_pretrained(folder)
        with script_module("serve/classifier") as module:
            classifier = module.Classifier(str(folder), max_seconds=1)
        sounds = [wav(np.random.default_rng(i).normal(0, 0.2, length)) for i, length in enumerate((50, 80, 300))]
        samples = [classifier.prepare(sound) for sound in sounds]
        assert [sample.size for sample in samples] == [50, 80, 100]
        assert len({sample.group for sample in samples}) == (1 if is_masked else 3)
        assert [len(each) for each in classifier.run(samples[:1])] == [3]


def wav(samples: np.ndarray) -> bytes:
    """A file of samples at 100 Hz."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(100)
        writer.writeframes((samples.clip(-1, 1) * 32767).astype("<i2").tobytes())
    return file.getvalue()


def test_a_regression_has_numbers_and_other_models_are_refused(tmp_path: Path) -> None:
    config = BertConfig(vocab_size=len(WORDS), **SMALL, num_labels=1)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "number")
    text_tokenizer().save_pretrained(tmp_path / "number")
    BertModel(config).save_pretrained(tmp_path / "model")
    with script_module("serve/classifier") as module:
        classifier = module.Classifier(str(tmp_path / "number"))
        assert classifier.describe(np.array([-2.5], np.float32)) == [{"label": "LABEL_0", "score": -2.5}]
        with pytest.raises(ValueError, match="BertModel"):
            module.Classifier(str(tmp_path / "model"))


@pytest.mark.slow
def test_a_load_test_says_what_it_takes(
    texts: tuple[str, PreTrainedModel, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, tokenizer = _bert()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("a good film\n\nbad\n")
    with script_module("serve/load_test") as module:
        rows = module.main(
            [
                *("--url", texts[0], "--texts", str(tmp_path / "texts.txt"), "--model", str(tmp_path / "model")),
                *("--clients", "1", "4", "--requests", "20", "--json", str(tmp_path / "figures.json")),
            ]
        )
    assert [row["failed"] for row in rows] == [0, 0, 0] and all(row["requests_per_s"] > 0 for row in rows)
    assert "4 clients" in capsys.readouterr().out
    assert json.loads((tmp_path / "figures.json").read_text()) == rows
