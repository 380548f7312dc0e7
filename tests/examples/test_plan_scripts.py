"""What the scripts of the plans do by themselves: merged tokens, agreement, pairs, disturbances, tokens kept."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from torch.nn.functional import normalize
from transformers import AutoModel, Dinov2Config, Dinov2Model

from helpers.scripts import script_module

TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 56, "patch_size": 14}


@pytest.fixture(scope="module")
def agreement() -> Iterator[Any]:
    with script_module("plans/long_sequences/agreement") as module:
        yield module


@pytest.fixture(scope="module")
def tome() -> Iterator[Any]:
    with script_module("plans/long_sequences/tome") as module:
        yield module


@pytest.fixture(scope="module")
def digits() -> Iterator[Any]:
    with script_module("plans/digits/digits") as module:
        yield module


@pytest.fixture(scope="module")
def images() -> Iterator[Any]:
    with script_module("plans/disturbed_images/images") as module:
        yield module


# --- token merging ---------------------------------------------------------------------------------------------------


def merged_by_hand(
    hidden: torch.Tensor, size: torch.Tensor, keys: torch.Tensor, count: int
) -> list[tuple[Any, Any, set]]:
    """Of one sample, token by token: vector, size and the tokens that are in it, in order."""
    keys = normalize(keys, dim=-1)
    length = len(keys)
    edges = []
    for a in range(2, length, 2):  # the first is [CLS]
        similarity, b = max((float(keys[a] @ keys[b]), b) for b in range(1, length, 2))
        edges.append((similarity, a, b))
    groups = {token: {token} for token in range(length)}
    for _, a, b in sorted(edges, reverse=True)[:count]:
        groups[b] |= groups.pop(a)
    merged = []
    for token in sorted(groups):
        members = sorted(groups[token])
        weight = size[members]
        merged.append(((hidden[members] * weight[:, None]).sum(0) / weight.sum(), weight.sum(), groups[token]))
    return merged


@pytest.mark.parametrize(("length", "count"), [(17, 5), (12, 1), (9, 4)])
def test_tokens_merge_as_the_paper_says(tome: Any, length: int, count: int) -> None:
    torch.manual_seed(0)
    hidden, keys, size = torch.randn(3, length, 8), torch.randn(3, length, 4), torch.randint(1, 5, (3, length)).float()
    target = tome.match_tokens(keys, count)
    merged, sizes = tome.merge_tokens(hidden, size, target)
    assert merged.shape == (3, length - count, 8)
    for sample in range(3):
        expected = merged_by_hand(hidden[sample], size[sample], keys[sample], count)
        for place, (vector, weight, members) in enumerate(expected):
            assert {i for i in range(length) if target[sample, i] == place} == members
            torch.testing.assert_close(merged[sample, place], vector)
            assert sizes[sample, place] == weight
    assert (target[:, 0] == 0).all(), "[CLS] stays, and first"
    assert (sizes.sum(1) == size.sum(1)).all()


def test_no_more_than_every_second_token_merges_and_none_where_there_is_nothing(tome: Any) -> None:
    assert int(tome.match_tokens(torch.randn(1, 9, 4), 100).max()) == 9 - 4 - 1
    assert tome.match_tokens(torch.randn(2, 1, 4), 3).tolist() == [[0], [0]]


def test_attention_weighs_a_token_by_its_size(tome: Any) -> None:
    """A token of size 2 is what two equal tokens are."""
    attention = Dinov2Model(Dinov2Config(**TINY)).eval().encoder.layer[0].attention
    hidden = torch.randn(1, 5, 32)
    twice = torch.cat([hidden, hidden[:, -1:]], dim=1)
    once, keys = tome.attend(attention, hidden, torch.tensor([[1.0, 1, 1, 1, 2]]))
    torch.testing.assert_close(once, attention(twice)[0][:, :5])
    assert keys.shape == (1, 5, 8)


def test_a_merging_model_is_its_host_without_merging_and_loads_from_its_folder(tome: Any, tmp_path: Path) -> None:
    host = Dinov2Model(Dinov2Config(**TINY, initializer_range=0.3)).eval()
    model = tome.MergingDinov2Model(tome.MergingDinov2Config(**host.config.to_dict() | {"model_type": "x"})).eval()
    model.load_state_dict(host.state_dict())
    pixels = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels).last_hidden_state, host(pixels).last_hidden_state)
        model.config.merged_tokens = 3
        merged = model(pixels, output_hidden_states=True)
    assert merged.last_hidden_state.shape == (2, 17, 32)
    assert len(merged.hidden_states) == 4
    # 17 tokens, three less in each of three layers.
    assert all(len(state.unique(dim=0)) == 8 for state in merged.last_hidden_state)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        loaded = AutoModel.from_pretrained(tmp_path, trust_remote_code=True).eval()
        torch.testing.assert_close(loaded(pixels).last_hidden_state, merged.last_hidden_state)


# --- agreement -------------------------------------------------------------------------------------------------------


def test_agreement_is_one_with_itself_and_counts_neighbours(agreement: Any) -> None:
    torch.manual_seed(0)
    features = torch.randn(12, 5, 16)
    assert agreement.agreement(features, 3 * features) == pytest.approx(dict.fromkeys(agreement.METRICS, 1.0))
    classes = torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1], [0.1, 0.9]])
    assert agreement.nearest(classes, 1).tolist() == [[1], [0], [3], [2]]
    others = classes[[0, 2, 1, 3]]
    found = agreement.agreement(others.unsqueeze(1).repeat(1, 2, 1), classes.unsqueeze(1).repeat(1, 2, 1))
    assert found["neighbours"] == 0
    # Of four pictures, the nearest three are all the others.
    assert found["neighbours_of_5"] == 1


# --- pairs of digits -------------------------------------------------------------------------------------------------


def test_half_of_the_pairs_match_and_the_labels_say_which(digits: Any) -> None:
    numbers = torch.arange(10).repeat(7)
    images, sounds, labels = digits.matching_pairs(numbers, seed=3, rounds=4)
    assert len(images) == len(sounds) == len(labels) == 4 * len(numbers)
    assert (labels == (numbers[images] == numbers[sounds])).all()
    for part in labels.split(len(numbers)):
        assert part.sum() == len(numbers) // 2
    assert (sounds.view(4, -1) == torch.arange(len(numbers))).all(), "every sound once a round"
    first = labels[: len(numbers)].bool()
    assert (images[: len(numbers)][first] == sounds[: len(numbers)][first]).all(), (
        "what is kept is the data's own pair"
    )
    again = digits.matching_pairs(numbers, seed=3, rounds=4)
    assert all((a == b).all() for a, b in zip((images, sounds, labels), again, strict=True))
    assert (images != digits.matching_pairs(numbers, seed=4, rounds=4)[0]).any()


def test_neither_modality_alone_says_anything_about_matching_pairs(digits: Any) -> None:
    numbers = torch.arange(10).repeat(50)
    images, sounds, labels = digits.matching_pairs(numbers, seed=0, rounds=4)
    for digit in range(10):
        for of_pair in (numbers[images], numbers[sounds]):
            assert labels[of_pair == digit].float().mean() == pytest.approx(0.5, abs=0.12)


# --- disturbed images ------------------------------------------------------------------------------------------------


def test_blur_is_a_mean_and_leaves_a_plain_image_alone(images: Any) -> None:
    pixels = torch.rand(2, 1, 9, 9)
    assert torch.allclose(images.blurred(torch.full_like(pixels, 0.3), 1.5), torch.full_like(pixels, 0.3))
    point = torch.zeros(1, 1, 21, 21)
    point[..., 10, 10] = 1
    blurred = images.blurred(point, 1.5)
    assert blurred.sum() == pytest.approx(1, abs=1e-5)
    assert torch.allclose(blurred, blurred.transpose(2, 3))
    assert 0 < blurred[0, 0, 10, 12] < blurred[0, 0, 10, 10] < 0.2


def test_occlusion_blackens_one_square_of_each_image(images: Any) -> None:
    pixels = torch.ones(5, 1, 8, 8)
    occluded = images.occluded(pixels, 3, torch.Generator().manual_seed(0))
    assert (occluded == 0).sum((1, 2, 3)).tolist() == [9] * 5
    assert (pixels == 1).all(), "the images themselves stay as they are"
    for image in occluded[:, 0]:
        rows, columns = (image == 0).nonzero().T
        assert rows.max() - rows.min() == columns.max() - columns.min() == 2


def test_disturbances_are_the_same_for_every_run_and_in_range(images: Any) -> None:
    clean = images.Images(torch.rand(4, 1, 8, 8), torch.arange(4))
    for condition in images.CONDITIONS:
        once, again = (images.disturbed(clean, condition).pixel_values for _ in range(2))
        assert torch.equal(once, again)
        assert torch.equal(once, clean.pixel_values) == (condition == "accuracy")
        assert once.min() >= 0 and once.max() <= 1


def test_the_parts_of_digits_have_no_image_in_common(images: Any) -> None:
    parts = images.load_images(images.ImageArguments(checkpoints_dir="unused"))
    assert [len(parts[name]) for name in images.SPLITS] == [1257, 270, 270]
    every = torch.cat([parts[name].pixel_values.flatten(1) for name in images.SPLITS])
    assert len(every.unique(dim=0)) == 1797


# --- tokens of questions ---------------------------------------------------------------------------------------------


def test_every_question_has_the_tokens_of_its_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with script_module("plans/easy_vqa/questions") as questions:
        # Encoders whose tokens say what they are of: the brightness of a picture, the words of a question.
        monkeypatch.setattr(
            questions, "_image_encoder", lambda _: lambda xs: [torch.full((2, 3), float(np.mean(x))) for x in xs]
        )
        monkeypatch.setattr(
            questions, "_text_encoder", lambda _: lambda xs: [torch.full((len(x.split()), 3), 1.0) for x in xs]
        )
        for name, shades in (("images_train", (10, 20, 30)), ("images_test", (40,))):
            rows = [{"image_id": n, "image": {"bytes": _png(x), "path": None}} for n, x in enumerate(shades)]
            Dataset.from_list(rows).to_parquet(str(tmp_path / f"{name}.parquet"))
        asked = {
            "train": [(0, "is it red?", "yes"), (2, "what shape is it?", "circle")],
            "validation": [(1, "is it red?", "no")],
            "test": [(0, "which colour?", "red")],
        }
        for split, of_split in asked.items():
            rows = [{"image_id": n, "question": q, "answer": a} for n, q, a in of_split]
            Dataset.from_list(rows).to_parquet(str(tmp_path / f"{split}.parquet"))
        wanted = questions.QuestionArguments(str(tmp_path), "dino", "bert", str(tmp_path / "tokens"))
        folder = questions.prepare(wanted)
        shades = {"train": [10, 30], "validation": [20], "test": [40]}
        for split, of_split in asked.items():
            made = Dataset.from_parquet(str(folder / f"{split}.parquet"))
            assert made["answer"] == [answer for _, _, answer in of_split]
            for row, shade, (_, text, _) in zip(made, shades[split], of_split, strict=True):
                assert (np.load(folder / row["image_tokens"]) == shade).all()
                assert len(np.load(folder / row["question_tokens"])) == len(text.split())
        closed = Dataset.from_parquet(str(folder.parent / "yes_no" / "train.parquet"))
        assert list(closed["answer"]) == ["yes"]
        # Made once; made anew for other data.
        monkeypatch.setattr(questions, "_write", lambda *_: pytest.fail("made again"))
        assert questions.prepare(wanted) == folder
        (tmp_path / "test.parquet").write_bytes((tmp_path / "validation.parquet").read_bytes())
        with pytest.raises(pytest.fail.Exception, match="made again"):
            questions.prepare(wanted)


def _png(shade: int) -> bytes:
    with io.BytesIO() as file:
        Image.new("RGB", (4, 4), (shade, shade, shade)).save(file, format="PNG")
        return file.getvalue()
