"""What a push leaves on the Hub of the tests, and a repository that was there before."""

from __future__ import annotations

from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.repocard_data import model_index_to_eval_results

from helpers.card_metadata import read_metadata
from helpers.hub_server import TOKEN, HubServer

PICTURE = "masks.png"


def metadata_of(hub: HubServer, repo_id: str = "user/one", revision: str = "main") -> dict[str, Any]:
    return read_metadata(hub.repos[repo_id].files(revision)["README.md"].decode())


def results_of(metadata: dict[str, Any]) -> dict[str, float]:
    return {
        result.metric_type: result.metric_value for result in model_index_to_eval_results(metadata["model-index"])[1]
    }


def repository(hub: HubServer) -> Any:
    """One with something in it: code of another version, a file of its owner's, and a card that was written."""
    HfApi(token=TOKEN).create_repo("user/before")
    repo = hub.repos.pop("user/before")
    card = b"---\nlicense: mit\n---\n# My model\n\n## My own words\n\nOnly I can say this.\n"
    foreign = {"notes/mine.txt": b"mine", "demo.py": b"print()", "README.md": card}
    repo.commit("main", {**repo.files(), **foreign, "stale_hf_lam.py": b"import os"}, "by hand")
    return repo
