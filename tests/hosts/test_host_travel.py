"""Every family and every head carries its code: saved here, loaded in one process that cannot import hf_lam."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers.families import FAMILIES
from helpers.family_labels import labelled
from helpers.hosts import perturb_mechanisms
from helpers.outputs import outputs_of, without_padding
from helpers.processes import run_code
from hf_lam import LamConfig, convert

# Each family imports the code that came with it. Its heads, whose folders have the same, take turns in one place.
LOADER = """
import os
import shutil
import sys
import torch
import transformers

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
root = sys.argv[1]
for name, auto_class, inputs, expected, short in torch.load(f"{root}/cases.pt"):
    auto = getattr(transformers, auto_class)
    place = f"{root}/now/{os.path.dirname(name)}"
    shutil.rmtree(place, ignore_errors=True)
    os.renames(f"{root}/{name}", place)
    model, info = auto.from_pretrained(place, trust_remote_code=True, output_loading_info=True)
    assert type(model).__module__.startswith("transformers_modules."), (name, type(model))
    assert not any(info.values()), (name, info)
    with torch.no_grad():
        found = model(**inputs)
    for key, value in expected.items():
        got = found[key].clone()
        if short is not None and got.dim() >= 2 and got.shape[1] == short[0]:
            got[1, short[1]:] = 0
        assert (got - value).abs().max() <= 1e-5, (name, key)
    print("loaded", name)
assert not [name for name, module in sys.modules.items() if module and name.partition(".")[0] == "hf_lam"]
"""


@pytest.mark.slow
def test_every_family_loads_without_hf_lam(tmp_path: Path) -> None:
    cases = []
    for index, (name, family) in enumerate(FAMILIES.items()):
        mechanism = family.mechanisms[index % len(family.mechanisms)]
        for head in (None, *family.heads):
            configs = family.configs(mechanism) if head is None else (LamConfig(rank=3),)
            model = convert(family.make(head), *configs)
            perturb_mechanisms(model)
            inputs = family.inputs_for(mechanism) if head is None else labelled(family, head)
            expected = without_padding(family, outputs_of(model, inputs))
            auto_class = "AutoModel" if head is None else f"AutoModelFor{head}"
            case = f"{name}/{auto_class}"
            model.save_pretrained(tmp_path / case)
            short = None if family.short is None else (family.tokens, family.short)
            cases.append((case, auto_class, inputs, expected, short))
    torch.save(cases, tmp_path / "cases.pt")
    printed = run_code(LOADER, tmp_path, hf_lam=False, environment={"HF_MODULES_CACHE": str(tmp_path / "cache")})
    assert printed.count("loaded") == len(cases)
