"""The private names of transformers that we rely on are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import transformers

import hf_lam
from helpers.private_names import exists
from hf_lam.modeling.hosts_facts_hf_lam import PRIVATE_NAMES, PrivateName

PACKAGE = Path(hf_lam.__file__).parent


@pytest.mark.parametrize("private", PRIVATE_NAMES, ids=lambda private: private.name)
def test_a_private_name_of_transformers_is_there(private: PrivateName) -> None:
    assert exists(private), (
        f"{private.where} of transformers {transformers.__version__} has no {private.name}, which {private.why}"
    )


def test_a_name_that_is_not_there_is_noticed() -> None:
    assert not exists(PrivateName("transformers.modeling_utils:PreTrainedModel", "_no_such_name", ""))
    assert not exists(PrivateName("transformers.modeling_layers", "_no_such_name", ""))


def test_every_name_of_the_table_is_used() -> None:
    code = "".join(file.read_text() for file in PACKAGE.rglob("*.py") if file.name != "hosts_facts_hf_lam.py")
    unused = [name for _, name, _ in PRIVATE_NAMES if not re.search(rf"\b{name}\b", code)]
    assert unused == []
