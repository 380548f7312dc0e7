"""LocomtConfig, and where the segments it names lie in the hosts."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import hf_lam
from helpers.hosts import host_record, make_host
from hf_lam import LamConfig, LocomtConfig
from hf_lam.modeling.configuration_hf_lam import HfLamBertConfig
from hf_lam.modeling.hosts_hf_lam import HostTokens, read_tokens
from hf_lam.modeling.locomt_hf_lam import AttentionViews
from hf_lam.modeling.mechanism_hf_lam import PassStart

# The tiny hosts: 4 × 4 patches and [CLS]; the same with 2 tokens before; 2 steps of 2 × 2 tubelets of 2 frames.
VIT = HostTokens("ViTModel", 17, 1, (4, 4))
VIDEO = HostTokens("VideoMAEModel", 8, 0, (2, 2, 2), 2)
BERT = HostTokens("BertModel", 40, token_types=2)
HALVES = [["top", {"rectangle": [0, 0, 2, 4]}], ["bottom", {"rectangle": [2, 0, 2, 4]}]]
FRAMES = [["early", {"frames": [0, 2]}], ["late", {"frames": [2, 4]}]]
LEFT_AND_RIGHT = [["left", {"part": [0, 0, 1, 0.25]}], ["right", {"part": [0, 0.25, 1, 0.75]}]]
EARLY_AND_LATE = [["early", {"part": [0, 0.3333]}], ["late", {"part": [0.3333, 0.6667]}]]
CLS = ["cls", {"length": 1, "global": True}]


def resolved(tokens: HostTokens, segments: Any = None, views: Any = "full", **options: Any) -> LocomtConfig:
    return LocomtConfig(segments=segments, views=views, **options).resolve(host_record(tokens))


def ids_of(config: LocomtConfig, tokens: HostTokens, grid: tuple[int, ...] = ()) -> list[int]:
    """The segment of every token of an input with that grid; of the host's own unless given."""
    views = AttentionViews(config, host_record(tokens))
    return views.layout(PassStart(None, None, grid or tokens.grid or None)).ids()[0].tolist()


# --- what a host's sequence is -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "options", "expected"),
    [
        ("vit", {}, VIT),
        ("vit", {"image_size": [8, 16], "patch_size": 4}, HostTokens("ViTModel", 9, 1, (2, 4))),
        ("deit", {}, HostTokens("DeiTModel", 18, 2, (4, 4))),
        ("ast", {}, HostTokens("ASTModel", 34, 2, (4, 8))),
        ("videomae", {}, VIDEO),
        ("videomae", {"num_frames": 6, "tubelet_size": 3}, HostTokens("VideoMAEModel", 8, 0, (2, 2, 2), 3)),
        ("bert", {}, BERT),
        ("bert", {"type_vocab_size": 3}, BERT._replace(token_types=3)),
    ],
)
def test_host_tokens(host: str, options: dict[str, Any], expected: HostTokens) -> None:
    assert read_tokens(make_host(host, **options)) == expected


# --- where segments lie ------------------------------------------------------------------------------------------


def test_rectangles_of_the_grid_and_a_global_cls() -> None:
    config = resolved(VIT, [["corner", {"rectangle": [0, 2, 1, 2]}], ["left", {"rectangle": [0, 0, 4, 2]}],
                            ["rest", {"rectangle": [1, 2, 3, 2]}]])  # fmt: skip
    assert config.names == ["cls", "corner", "left", "rest"]
    assert config.is_global == [True, False, False, False]
    assert config.views_of_the_paper == ["self", "cross:corner-left", "cross:corner-rest", "cross:left-rest"]
    assert ids_of(config, VIT) == [0, *[2, 2, 1, 1], *[2, 2, 3, 3] * 3]


def test_tokens_before_the_grid_may_be_named() -> None:
    named = [["class", {"length": 1, "global": False}], *HALVES]
    config = resolved(VIT, named)
    assert config.segments == named and config.is_global == [False] * 3
    assert ids_of(config, VIT) == [0] + [1] * 8 + [2] * 8
    two = resolved(VIT._replace(length=18, prefix=2), [["class", 1], ["distilled", 1], *HALVES])
    assert ids_of(two, VIT._replace(length=18, prefix=2)) == [0, 1] + [2] * 8 + [3] * 8


@pytest.mark.parametrize(("host", "length"), [("deit", 18), ("ast", 34)])
def test_two_tokens_before_the_grid_are_one_prefix(host: str, length: int) -> None:
    tokens = read_tokens(make_host(host))
    config = resolved(tokens)
    assert config.segments[0] == ["prefix", {"length": 2, "global": True}]
    ids = ids_of(config, tokens)
    assert len(ids) == length and ids[:2] == [0, 0] and set(ids[2:]) == {1, 2, 3, 4}


def test_frames_of_a_video() -> None:
    assert ids_of(resolved(VIDEO, FRAMES), VIDEO) == [0] * 4 + [1] * 4
    long = VIDEO._replace(length=32, grid=(8, 2, 2))
    config = resolved(long, [["a", {"frames": [0, 2]}], ["b", {"frames": [2, 12]}], ["c", {"frames": [12, 16]}]])
    assert ids_of(config, long) == [0] * 4 + [1] * 20 + [2] * 8


def test_spans_on_any_host() -> None:
    spans = [["a", 3], ["all", {"length": 2, "global": True}], ["b", 12]]
    assert ids_of(resolved(VIT, spans), VIT) == [0] * 3 + [1] * 2 + [2] * 12
    assert ids_of(resolved(BERT, spans), BERT) == [0] * 3 + [1] * 2 + [2] * 12
    unknown = HostTokens("RobertaModel", None)
    assert ids_of(resolved(unknown, spans), unknown) == [0] * 3 + [1] * 2 + [2] * 12


def test_bottleneck_tokens_follow_for_each_segment_that_is_not_global() -> None:
    config = resolved(VIT, [["cls", {"length": 1, "global": True}], *HALVES], "self", bottleneck_tokens=2)
    assert ids_of(config, VIT) == [0] + [1] * 8 + [2] * 8 + [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("tokens", "names", "ids"),
    [
        (
            VIT,
            ["cls", "top_left", "top_right", "bottom_left", "bottom_right"],
            [0, *[1, 1, 2, 2] * 2, *[3, 3, 4, 4] * 2],
        ),
        (
            HostTokens("ViTModel", 15, 0, (3, 5)),
            ["top_left", "top_right", "bottom_left", "bottom_right"],
            [*[0, 0, 1, 1, 1], *[2, 2, 3, 3, 3] * 2],
        ),
        (VIDEO, ["early", "late"], [0] * 4 + [1] * 4),
        (HostTokens("VideoMAEModel", 12, 0, (3, 2, 2), 2), ["early", "late"], [0] * 4 + [1] * 8),
    ],
)
def test_a_host_has_segments_of_its_own(tokens: HostTokens, names: list[str], ids: list[int]) -> None:
    config = resolved(tokens)
    assert config.names == names and ids_of(config, tokens) == ids


@pytest.mark.parametrize("segments", [None, "token_type_ids"])
def test_text_has_its_token_types(segments: Any) -> None:
    config = resolved(BERT, segments)
    assert config.segments == [["type_0", {"token_type": 0}], ["type_1", {"token_type": 1}]]


@pytest.mark.parametrize("tokens", [HostTokens("RobertaModel", 40), HostTokens("X", 40, token_types=1)])
def test_a_host_without_segments_of_its_own(tokens: HostTokens) -> None:
    with pytest.raises(ValueError, match=rf"{tokens.host} has no segments of its own \({tokens.token_types} token"):
        resolved(tokens)


def layout_ids(segments: Any, token_types: list[list[int]], **options: Any) -> list[list[int]]:
    config = resolved(BERT, segments, **options)
    layout = AttentionViews(config, host_record(BERT)).layout(PassStart(torch.tensor(token_types), None))
    assert layout.segment_ids is not None
    return layout.segment_ids.tolist()


def test_token_types_are_segments_of_each_sample() -> None:
    types = [[0, 0, 1, 1], [0, 1, 1, 0]]
    assert layout_ids(None, types) == types
    in_another_order = [["second", {"token_type": 1}], ["first", {"token_type": 0}]]
    assert layout_ids(in_another_order, types) == [[1, 1, 0, 0], [1, 0, 0, 1]]
    assert layout_ids([CLS, *in_another_order], types) == [[0, 2, 1, 1], [0, 1, 1, 2]]
    assert layout_ids([CLS, *in_another_order], [[0], [1]]) == [[0], [0]]
    with_bottleneck = layout_ids([CLS, *in_another_order], types, views="self", bottleneck_tokens=1)
    assert with_bottleneck == [[0, 2, 1, 1, 1, 2], [0, 1, 1, 2, 1, 2]]


# --- what does not fit -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "segments", "message"),
    [
        (BERT, [["a", 30], ["b", 12]], "do not fit BertModel: they add up to 42 tokens, and it takes at most 40"),
        (VIT, [["a", 8], ["b", 8]], "do not fit ViTModel: they add up to 16 tokens, and it has 17"),
        (VIT, [["a", 8], ["b", 10]], "add up to 18 tokens, and it has 17"),
        (VIT, [["cls", 2], *HALVES], "2 tokens come before the rectangles, and it has 1"),
        (VIDEO, [["cls", 1], *FRAMES], "1 tokens come before the frames, and it has 0"),
        (VIT, FRAMES, "it has no frames"),
        (BERT, FRAMES, "it has no frames"),
        (VIDEO, HALVES, r"no grid of patches with two axes, but \(2, 2, 2\)"),
        (BERT, HALVES, "no grid of patches with two axes, but none"),
        (VIDEO, [["a", {"frames": [0, 3]}], ["b", {"frames": [3, 4]}]], "2 frames make one token.*cut some in two"),
        (VIDEO, [["a", {"frames": [0, 4]}], ["b", {"frames": [4, 7]}]], "2 frames make one token.*cut some in two"),
        (VIT, EARLY_AND_LATE, r"parts of one axis.*are for videos and sound of one length, and its grid is \(4, 4\)"),
        (BERT, EARLY_AND_LATE, "parts of one axis.*and its grid is none"),
        (VIDEO, LEFT_AND_RIGHT, r"no grid of patches with two axes, but \(2, 2, 2\)"),
        (BERT, LEFT_AND_RIGHT, "no grid of patches with two axes, but none"),
        (VIT, [["cls", 2], *LEFT_AND_RIGHT], "2 tokens come before the parts, and it has 1"),
        (BERT, [["a", {"token_type": 0}]], r"name the token types \[0\], and it has 2"),
        (BERT, [["a", {"token_type": 0}], ["b", {"token_type": 2}]], r"token types \[0, 2\], and it has 2"),
        (BERT, [["a", {"token_type": 1}], ["b", {"token_type": 1}]], r"token types \[1, 1\], and it has 2"),
        (VIT, [["a", {"token_type": 0}]], r"token types \[0\], and it has 0"),
    ],
)
def test_segments_that_do_not_fit_the_host(tokens: HostTokens, segments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolved(tokens, segments)


@pytest.mark.parametrize(
    ("views", "message"),
    [
        ([["self"] * 4] * 2, "2 rows of 4 views; the model has 3 layers of 4 heads"),
        ([["self"] * 3] * 3, "3 rows of 3 views; the model has 3 layers of 4 heads"),
        ("cross:early-audio", r"names the segment 'audio'; the segments are \['early', 'late'\]"),
        ("crosss", "'crosss' is none of.*The presets are"),
        ("low_self(7)", "7 layers; the model has 3"),
    ],
)
def test_views_that_do_not_fit_the_host(views: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolved(VIDEO, None, views)


def test_a_model_that_cannot_take_them_is_left_as_it_was() -> None:
    host = make_host("bert")
    before = list(host.state_dict())
    with pytest.raises(ValueError, match="add up to 50 tokens, and it takes at most 40"):
        hf_lam.inject(host, LocomtConfig(segments=[["a", 25], ["b", 25]]))
    assert list(host.state_dict()) == before and not hasattr(host, "hf_lam")


# --- the configuration -------------------------------------------------------------------------------------------

SPANS = [["a", 3], ["b", 5]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segments": "types"}, "segments must be None, 'token_type_ids' or a list.*got 'types'"),
        ({"segments": 3}, "segments must be.*got 3"),
        ({"segments": {"a": 3}}, "segments must be"),
        ({"segments": []}, "at least one"),
        ({"segments": ["a", "b"]}, r"a segment is \[name, extent\].*got 'a'"),
        ({"segments": [["a", 3, 4]]}, r"a segment is \[name, extent\]"),
        ({"segments": [[3, 3]]}, "name must be letters, digits and _, got 3"),
        ({"segments": [["a-b", 3]]}, "got 'a-b'"),
        ({"segments": [["", 3]]}, "got ''"),
        ({"segments": [["a", 3], ["a", 4]]}, r"a name of its own, got \['a', 'a'\]"),
        *(
            ({"segments": [["a", extent]]}, "extent of segment 'a' must be a number of tokens.*got")
            for extent in (
                0, -1, True, 2.0, "3", None, [0, 2], {}, {"length": 3}, {"length": 0, "global": True},
                {"length": 3, "global": 1}, {"rectangle": [0, 0, 2]}, {"rectangle": [0, 0, 0, 2]},
                {"rectangle": [-1, 0, 2, 2]}, {"rectangle": 3}, {"frames": [2, 2]}, {"frames": [3, 2]},
                {"frames": [0, 2, 4]}, {"frames": [0.0, 2.0]}, {"token_type": -1}, {"token_type": "0"},
                {"frames": [0, 2], "token_type": 1}, {"circle": [0, 0, 1]},
            )
        ),
        *(
            ({"segments": [["a", {"part": part}]]}, "extent of segment 'a' must be a number of tokens.*got")
            for part in (
                [0, 0, 1], [0], 1, [0, 0], [0, 0, 0, 1], [0, 0, 1, 1.5], [-0.5, 0, 1, 1], [0.5, 0.6], [0, "1"],
                [0, True], [0, float("nan")], [0, float("inf")], [0, 1e-9], None,
            )
        ),
        ({"segments": [["a", {"part": [0, 0.5]}]]}, "cover 0.5 of the grid and must cover all of it"),
        ({"segments": [["a", {"part": [0, 0, 1, 0.4]}], ["b", {"part": [0, 0.41, 1, 0.59]}]]}, "cover 0.99 of the"),
        (
            {"segments": [["a", {"part": [0, 0, 1, 0.5]}], ["b", {"part": [0.5, 0, 0.5, 1]}]]},
            "overlap: 'a' and 'b' have places in common",
        ),
        (
            {"segments": [["a", {"part": [0, 0.5]}], ["b", {"part": [0.5, 0, 0.5, 1]}]]},
            "give all of them two numbers, or all four",
        ),
        ({"segments": [FRAMES[0], ["c", {"part": [0.5, 0.5]}]]}, "one other kind"),
        ({"segments": [["a", {"frames": [2, 4]}]]}, "do not follow each other from frame 0 on"),
        ({"segments": FRAMES[::-1]}, "do not follow each other"),
        ({"segments": [FRAMES[0], ["b", {"frames": [0, 4]}]]}, "do not follow each other"),
        ({"segments": [HALVES[0], ["b", {"rectangle": [1, 0, 3, 4]}]]}, "overlap: 'top' and 'b' have places in"),
        ({"segments": [HALVES[0], ["b", {"rectangle": [2, 1, 2, 3]}]]}, "reach to 4 × 4 = 16 patches.*they cover 14"),
        ({"segments": HALVES[1:]}, "reach to 4 × 4 = 16 patches, of which they cover 8"),
        ({"segments": [*FRAMES, ["c", {"token_type": 0}]]}, "one other kind"),
        ({"segments": [*FRAMES, ["c", 3]]}, "begin with such spans"),
        ({"segments": [CLS]}, "all segments are global"),
        ({"views": 3}, "views must be a preset, a view or a table.*got 3"),
        ({"views": ["self", "self"]}, r"views must be.*got \['self', 'self'\]"),
        ({"segments": SPANS, "views": "cross:a-c"}, r"names the segment 'c'; the segments are \['a', 'b'\]"),
        ({"segments": SPANS, "views": [["self", "x"]]}, "'x' is none of"),
        ({"segments": SPANS, "views": [["self", 3]]}, "must be a string such as 'self'.*got 3"),
        ({"annealing": 1}, "annealing must be True or False, got 1"),
        ({"bottleneck_tokens": -1}, "bottleneck_tokens must be an integer from 0 to 10,000,000, got -1"),
        ({"bottleneck_tokens": True}, "bottleneck_tokens must be"),
        ({"bottleneck_tokens": 2.0}, "bottleneck_tokens must be"),
        ({"bottleneck_tokens": 4}, "needs views='self' without annealing, got views='full'"),
        ({"bottleneck_tokens": 4, "views": "half"}, "got views='half'"),
        ({"bottleneck_tokens": 4, "views": [["self", "full"]]}, "needs views='self'"),
        ({"bottleneck_tokens": 4, "views": "self", "annealing": True}, "annealing=True"),
    ],
)  # fmt: skip
def test_the_configuration_names_the_bad_option(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LocomtConfig(**options)


def test_an_unknown_option_lists_the_options() -> None:
    with pytest.raises(ValueError, match=r"no option \['view'\]; the options are \['segments', 'views'"):
        LocomtConfig.from_dict({"view": "self"})
    with pytest.raises(ValueError, match=r"LocomtConfig has no option \['view'\]"):
        HfLamBertConfig(hf_lam={"locomt": {"view": "self"}})


@pytest.mark.parametrize(
    "config",
    [
        LocomtConfig(),
        LocomtConfig(segments="token_type_ids", views="random(3)", annealing=True),
        LocomtConfig(segments=(CLS, ("a", 4), ("b", {"length": 3, "global": False})), views="cross:a-b"),
        LocomtConfig(segments=HALVES, views=(("self", "top>bottom"), ("full", "cross:top-bottom"))),
        LocomtConfig(segments=FRAMES, views="self", bottleneck_tokens=4),
        LocomtConfig(segments=(("a", {"part": (0, 0, 1, 0.3)}), ("b", {"part": (0, 0.3, 1, 0.7)})), views="a>b"),
        LocomtConfig(segments=EARLY_AND_LATE),
        LocomtConfig(segments=[CLS, ["a", {"token_type": 1}], ["b", {"token_type": 0}]], views=[["self"]]),
        resolved(VIT, None, "low_self(1)"),
    ],
)
def test_the_configuration_goes_through_json(config: LocomtConfig) -> None:
    assert LocomtConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_resolved_configuration_resolves_to_itself() -> None:
    for tokens in (VIT, VIDEO, BERT):
        config = resolved(tokens, None, "random(5)")
        assert isinstance(config.views, list) and [len(row) for row in config.views] == [4] * 3
        assert config.resolve(host_record(tokens)) == config


@pytest.mark.parametrize("host", ["bert", "vit", "videomae"])
def test_a_converted_model_stores_the_resolved_table(host: str) -> None:
    model = hf_lam.convert(make_host(host), LocomtConfig(views="low_self(1)"), LamConfig(rank=2))
    block = json.loads(model.config.to_json_string())["hf_lam"]
    assert set(block) == {"version", "locomt", "lam"}
    stored = LocomtConfig.from_dict(block["locomt"])
    assert stored == LocomtConfig(views="low_self(1)").resolve(host_record(read_tokens(make_host(host))))
    assert stored.views[0] == ["self"] * 4 and set(stored.views[1] + stored.views[2]) - {"self"}


@pytest.mark.parametrize("views", [[[["self"]]], [[1]]])
def test_a_table_of_something_else_than_views(views: Any) -> None:
    with pytest.raises(ValueError, match=r"views\[0\]\[0\] must be a string"):
        LocomtConfig(views=views)
