"""`save_mechanism` and `load_mechanism` with mechanisms that are not hf_lam's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from helpers.door import DISTANCE, TEMPERATURE, open_door
from helpers.hosts import make_host, make_inputs, perturb_mechanisms
from hf_lam import LamConfig, inject, load_mechanism, save_mechanism
from hf_lam.modeling.injection_hf_lam import injected_encoders


def test_its_file_goes_along_and_has_to_be_imported(tmp_path: Path) -> None:
    folder, inputs = tmp_path / "mechanism", make_inputs("vit")
    with open_door() as load_file:
        configs = (load_file(TEMPERATURE).HeadTemperatureConfig(), load_file(DISTANCE).DistanceBiasConfig())
        model = inject(make_host("vit"), *configs, LamConfig())
        perturb_mechanisms(model)
        expected = model(**inputs).last_hidden_state
        save_mechanism(model, folder)
    written = {path.name for path in folder.iterdir()}
    assert written == {
        "mechanism_config.json",
        "mechanism_model.safetensors",
        "head_temperature.py",
        "distance_bias.py",
    }
    for file in (TEMPERATURE, DISTANCE):
        assert (folder / file.name).read_bytes() == file.read_bytes()

    host = make_host("vit")
    before = host(**inputs).last_hidden_state
    with pytest.raises(ValueError) as error:
        load_mechanism(host, folder)
    assert "'distance_bias' that is not hf_lam's own" in str(error.value)
    assert str(folder / "distance_bias.py") in str(error.value)
    assert not injected_encoders(host)
    torch.testing.assert_close(host(**inputs).last_hidden_state, before, rtol=0, atol=0)
    with open_door() as load_file:
        for name in ("distance_bias.py", "head_temperature.py"):
            load_file(folder / name)
        load_mechanism(host, folder)
        torch.testing.assert_close(host(**inputs).last_hidden_state, expected, rtol=0, atol=0)


def test_those_of_hf_lam_need_no_file(tmp_path: Path) -> None:
    save_mechanism(inject(make_host("vit"), LamConfig()), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"mechanism_config.json", "mechanism_model.safetensors"}
    contents = json.loads((tmp_path / "mechanism_config.json").read_text())
    assert set(contents) == {"hf_lam_version", "base_model_name_or_path", "host_model_type", "hf_lam"}
