"""The metadata of model cards, read and checked as the Hub does."""

from __future__ import annotations

import re
from typing import Any

import yaml

# fmt: off
LICENSES = {
    "apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m", "afl-3.0", "artistic-2.0",
    "bsd", "bsl-1.0", "bsd-2-clause", "bsd-3-clause", "cc", "cc0-1.0", "cc-by-2.0", "cc-by-3.0", "cc-by-4.0", "gpl",
    "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-4.0",
    "ecl-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "epl-1.0", "epl-2.0", "eupl-1.1", "agpl-3.0", "gpl-2.0",
    "gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "isc", "mpl-2.0", "ms-pl", "odbl", "osl-3.0", "postgresql", "unlicense",
    "wtfpl", "zlib", "llama2", "llama3", "gemma", "unknown", "other",
}
# fmt: on
RELATIONS = ("finetune", "adapter", "merge", "quantized")
# Those of the pipelines of this project's models, and what they are easily confused with.
PIPELINES = {
    *("text-classification", "token-classification", "question-answering", "fill-mask", "multiple-choice"),
    *("feature-extraction", "image-feature-extraction", "sentence-similarity", "image-classification"),
    *("video-classification", "audio-classification", "mask-generation", "zero-shot-classification", "any-to-any"),
}
NAME = r"[\w.-]+(/[\w.-]+)?"


def read_metadata(card: str) -> Any:
    """What stands between the first two `---` of a card; None if there is nothing."""
    found = re.match(r"\ufeff?\s*---[ ]*\r?\n(.*?)\r?\n---[ ]*(\r?\n|$)", card, re.DOTALL)
    return yaml.safe_load(found[1]) if found else None


def check_metadata(card: str) -> tuple[list[str], list[str]]:
    """The errors and warnings of a card's metadata, for the fields that the Hub checks and models of hf_lam have."""
    try:
        data = read_metadata(card)
    except yaml.YAMLError as error:
        return [f"cannot be read: {error}"], []
    if not data:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(data, dict):
        return ["metadata must be an object"], []
    errors, warnings = [], []
    for key in ("tags", "metrics", "datasets", "language", "base_model", "license"):
        values = data.get(key, [])
        values = values if isinstance(values, list) else [values]
        if not all(isinstance(value, str) and value for value in values):
            errors.append(f'"{key}" must be text or a list of texts')
        if key in ("base_model", "datasets"):
            errors += [f'"{key}" has no valid name: {value}' for value in values if not re.fullmatch(NAME, str(value))]
        if key == "license":
            errors += [
                f'"license" must be one of the known ones, not {value}' for value in values if value not in LICENSES
            ]
        if key == "tags" and len(set(map(str, values))) < len(values):
            errors.append('"tags" has duplicates')
    for key in ("library_name", "pipeline_tag", "license_name", "license_link"):
        if key in data and not isinstance(data[key], str):
            errors.append(f'"{key}" must be text')
    if data.get("pipeline_tag", "fill-mask") not in PIPELINES:
        warnings.append(f"the pipeline tag {data['pipeline_tag']} is not in the official list")
    if data.get("base_model_relation", "finetune") not in RELATIONS:
        errors.append(f'"base_model_relation" must be one of {RELATIONS}')
    return errors + _check_model_index(data.get("model-index", [])), warnings


def _check_model_index(index: Any) -> list[str]:
    errors = []
    try:
        for model in index:
            assert model["name"] and isinstance(model["name"], str), "name"
            for result in model["results"]:
                assert isinstance(result["task"]["type"], str), "task.type"
                assert {"type", "name"} <= {key for key, value in result["dataset"].items() if value}, "dataset"
                assert result["metrics"], "metrics"
                for metric in result["metrics"]:
                    assert metric["type"] and isinstance(metric["type"], str), "metric.type"
                    assert isinstance(metric["value"], (int, float, str)), "metric.value"
    except (AssertionError, KeyError, TypeError, AttributeError) as error:
        errors.append(f'"model-index" is not valid: {type(error).__name__} {error}')
    return errors
