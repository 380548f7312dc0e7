"""Serve a classifier over HTTP: a small server that puts requests together into batches.

    pip install "hf-lam[serve]"
    python examples/serve/serve.py --model bert-lam --port 8000

    curl localhost:8000/predict --json '{"inputs": ["A film to remember.", "Two hours I want back."], "top_k": 1}'
    curl localhost:8000/predict --data-binary @photo.jpg -H 'Content-Type: image/jpeg'

`/health` says whether it takes requests, `/metrics` has what Prometheus reads. README.md says what it does with too
much, too large and too slow.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import uvicorn
from batching import Batch, Batcher, ClosedError, FullError
from classifier import Classifier
from fastapi import FastAPI, HTTPException, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import ClientDisconnect
from transformers import HfArgumentParser

logger = logging.getLogger("serve")


@dataclass
class ServerArguments:
    model: str = field(metadata={"help": "A folder of a classifier of texts, images, videos or sounds."})
    host: str = field(default="127.0.0.1", metadata={"help": "The address to listen on."})
    port: int = field(default=8000, metadata={"help": "The port to listen on."})
    threads: int | None = field(default=None, metadata={"help": "Threads of the model. Default: all cores."})
    max_batch_size: int = field(default=32, metadata={"help": "Requests that run together, at most."})
    max_batch_tokens: int = field(default=8192, metadata={"help": "Tokens of a batch of texts, with padding."})
    max_waiting: int = field(default=1024, metadata={"help": "Inputs that wait; further ones are refused (503)."})
    max_inputs: int = field(default=64, metadata={"help": "Texts of one request (422 above)."})
    max_body_mb: float = field(default=10.0, metadata={"help": "How large a request may be (413 above)."})
    body_timeout: float = field(default=10.0, metadata={"help": "Seconds to send a request in (408 above)."})
    timeout: float = field(default=30.0, metadata={"help": "Seconds that an answer may take (504 above)."})
    max_tokens: int | None = field(default=None, metadata={"help": "Texts are cut to so many tokens."})
    max_seconds: float = field(default=30.0, metadata={"help": "Sounds are cut to so many seconds."})


class Texts(BaseModel):
    """The body of a request to a model of texts."""

    model_config = ConfigDict(extra="forbid")
    inputs: str | list[str]
    top_k: int | None = Field(default=None, ge=1)


class Metrics:
    """The counters of one server."""

    def __init__(self, batcher: Callable[[], Batcher]) -> None:
        self.registry = CollectorRegistry()
        options: dict[str, Any] = {"namespace": "serve", "registry": self.registry}
        self.requests = Counter("requests", "Requests by the status of their answer.", ["status"], **options)
        self.rows = Histogram("batch_rows", "Inputs that ran together.", buckets=[1, 2, 4, 8, 16, 32, 64], **options)
        self.waited = Histogram("waited_seconds", "How long inputs waited for the model.", **options)
        self.took = Histogram("batch_seconds", "How long a batch took.", **options)
        Gauge("waiting", "Inputs that wait.", **options).set_function(lambda: batcher().waiting)

    def record(self, batch: Batch) -> None:
        self.rows.observe(batch.rows)
        self.took.observe(batch.took_s)
        for seconds in batch.waited_s:
            self.waited.observe(seconds)


def make_app(classifier: Classifier, arguments: ServerArguments) -> FastAPI:
    """The application that serves a classifier."""
    metrics = Metrics(lambda: app.state.batcher)
    # Decoding and tokenizing is for one thread: a tokenizer keeps its options in itself.
    preparing = ThreadPoolExecutor(1, thread_name_prefix="prepare")

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with Batcher(
            classifier.run,
            max_batch_size=arguments.max_batch_size,
            max_batch_tokens=arguments.max_batch_tokens if classifier.kind == "text" else None,
            max_waiting=arguments.max_waiting,
            on_batch=metrics.record,
        ) as app.state.batcher:
            yield
        preparing.shutdown()

    app = FastAPI(title=f"hf_lam: {classifier.kind} classification", lifespan=lifespan)

    @app.middleware("http")
    async def count(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        status = 500
        try:
            response = await answer(request)
            status = response.status_code
        finally:
            if request.url.path == "/predict":
                metrics.requests.labels(str(status)).inc()
        return response

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "kind": classifier.kind, "waiting": app.state.batcher.waiting}

    @app.get("/metrics")
    async def show_metrics() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.post("/predict")
    async def predict(request: Request) -> dict[str, Any]:
        body = await read_body(request, arguments)
        inputs, top_k = read_inputs(request, body, classifier.kind, arguments.max_inputs)
        try:
            return {"predictions": await asyncio.wait_for(answer_all(inputs, top_k), arguments.timeout)}
        except asyncio.TimeoutError:
            raise HTTPException(504, f"no answer within {arguments.timeout:g} s; send less, or try later") from None
        except FullError:
            raise HTTPException(503, "too many requests wait; try later", {"Retry-After": "1"}) from None
        except ClosedError:
            raise HTTPException(503, "the server is about to end", {"Retry-After": "5"}) from None

    async def answer_all(inputs: list[Any], top_k: int | None) -> list[Any]:
        loop = asyncio.get_running_loop()
        try:
            samples = [await loop.run_in_executor(preparing, classifier.prepare, each) for each in inputs]
        except ValueError as error:
            raise HTTPException(422, " ".join(str(error).split())) from None
        answers = [asyncio.ensure_future(app.state.batcher(sample)) for sample in samples]
        try:
            logits = await asyncio.gather(*answers)
        finally:
            # Of what is given up, nothing runs.
            for answer in answers:
                answer.cancel()
        return [classifier.describe(each, top_k) for each in logits]

    return app


async def read_body(request: Request, arguments: ServerArguments) -> bytes:
    """The body of a request, if it comes in time and is not too large."""
    limit = int(arguments.max_body_mb * 2**20)
    too_large = HTTPException(413, f"a request may have {arguments.max_body_mb:g} MB")
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large

    async def read() -> bytes:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise too_large
        return bytes(body)

    try:
        return await asyncio.wait_for(read(), arguments.body_timeout)
    except asyncio.TimeoutError:
        raise HTTPException(408, f"the request did not come within {arguments.body_timeout:g} s") from None
    except ClientDisconnect:
        raise HTTPException(400, "the request was not sent to its end") from None


def read_inputs(request: Request, body: bytes, kind: str, max_inputs: int) -> tuple[list[Any], int | None]:
    """Read the inputs to classify, and the number of labels that are wanted for each."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "text":
        if content_type.startswith(("text/", "multipart/")) or content_type == "application/json":
            raise HTTPException(415, f"send the file itself as the body, with its type ({kind}/…), not {content_type}")
        if not body:
            raise HTTPException(422, "the body is empty")
        top_k = request.query_params.get("top_k")
        if top_k is not None and (not top_k.isdecimal() or int(top_k) < 1):
            raise HTTPException(422, f"top_k must be a whole number of at least 1, got {top_k!r}")
        return [body], None if top_k is None else int(top_k)
    if content_type != "application/json":
        raise HTTPException(415, f"send JSON (Content-Type: application/json), not {content_type or 'nothing'}")
    try:
        texts = Texts.model_validate_json(body)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, each['loc'])) or 'body'}: {each['msg']}" for each in error.errors()]
        raise HTTPException(422, "; ".join(problems[:5])) from None
    inputs = [texts.inputs] if isinstance(texts.inputs, str) else texts.inputs
    if not 1 <= len(inputs) <= max_inputs:
        raise HTTPException(422, f"inputs: from 1 to {max_inputs} texts, got {len(inputs)}")
    return inputs, texts.top_k


def main(arguments: list[str] | None = None) -> None:
    kinds: Any = (ServerArguments,)
    (wanted,) = HfArgumentParser(kinds, description=__doc__, allow_abbrev=False).parse_args_into_dataclasses(arguments)
    logging.basicConfig(level=logging.INFO)
    if wanted.threads is not None:
        torch.set_num_threads(wanted.threads)
    classifier = Classifier(wanted.model, max_tokens=wanted.max_tokens, max_seconds=wanted.max_seconds)
    # Ctrl-C: no new requests, answers to those that wait, the end.
    uvicorn.run(make_app(classifier, wanted), host=wanted.host, port=wanted.port, timeout_graceful_shutdown=30)


if __name__ == "__main__":
    main()
