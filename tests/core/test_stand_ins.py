"""What is handed from a layer to its attention, past modules that take no keyword arguments."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from datasets.fingerprint import Hasher
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    InternVLVisionConfig,
    InternVLVisionModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    VideoMAEConfig,
    VideoMAEModel,
    VJEPA2Config,
    VJEPA2Model,
    WhisperConfig,
)
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from helpers.checkpointing import checkpoint_activations
from helpers.hosts import SIZES, first_output, max_difference, perturb_mechanisms
from helpers.injection import assert_no_trace
from hf_lam import LamConfig, LocomtConfig, inject, mechanism_parameters, remove
from hf_lam.modeling import stand_ins_hf_lam
from hf_lam.modeling.injection_hf_lam import injection_of
from hf_lam.modeling.stand_ins_hf_lam import (
    PASS,
    explain_no_stand_in,
    hand_again,
    handed_to,
    put_stand_in,
    take_off_stand_in,
)

SMALL = {key: SIZES[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")}
PICTURES = {**SMALL, "image_size": 16, "patch_size": 4}


def _siglip() -> Any:
    return SiglipVisionModel(SiglipVisionConfig(**PICTURES)), {"pixel_values": torch.randn(2, 3, 16, 16)}


def _vjepa2() -> Any:
    options = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 48, "mlp_ratio": 2}
    predictor = {"pred_hidden_size": 48, "pred_num_attention_heads": 4, "pred_num_hidden_layers": 1}
    video = {"crop_size": 16, "patch_size": 8, "frames_per_clip": 4, "tubelet_size": 2}
    inputs = {"pixel_values_videos": torch.randn(2, 4, 3, 16, 16), "skip_predictor": True}
    return VJEPA2Model(VJEPA2Config(**options, **predictor, **video)), inputs


def _whisper() -> Any:
    options = {f"{part}_{name}": 4 for part in ("encoder", "decoder") for name in ("attention_heads", "ffn_dim")}
    config = WhisperConfig(
        d_model=32,
        encoder_layers=2,
        decoder_layers=1,
        num_mel_bins=8,
        max_source_positions=10,
        vocab_size=99,
        **options,
    )
    return WhisperEncoder(config), {"input_features": torch.randn(2, 8, 20)}


def _videomae() -> Any:
    config = VideoMAEConfig(**{**PICTURES, "patch_size": 8}, num_frames=4)
    return VideoMAEModel(config), {"pixel_values": torch.randn(2, 4, 3, 16, 16)}


def _internvl() -> Any:
    config = InternVLVisionConfig(**{**PICTURES, "image_size": [16, 16], "patch_size": [4, 4]})
    return InternVLVisionModel(config), {"pixel_values": torch.randn(2, 3, 16, 16)}


# An attention that drops keyword arguments; one that takes none, and so does its layer; one in between that takes
# some; arguments by their names; and a stack of layers that takes none.
HOSTS = {"siglip": _siglip, "vjepa2": _vjepa2, "whisper": _whisper, "videomae": _videomae, "internvl": _internvl}


def make(host: str) -> tuple[Any, dict[str, Any]]:
    torch.manual_seed(0)
    model, inputs = HOSTS[host]()
    for parameter in model.parameters():
        parameter.data += 0.08 * torch.randn_like(parameter)
    return model.eval(), inputs


def make_injected(host: str, *configs: Any) -> tuple[Any, dict[str, Any]]:
    model, inputs = make(host)
    perturb_mechanisms(inject(model, *configs or (LamConfig(rank=2),)))
    return model, inputs


def gradients(model: Any, inputs: dict[str, Any]) -> dict[str, Tensor]:
    model.zero_grad()
    torch.manual_seed(3)
    first_output(model, inputs).square().sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


# --- toys ------------------------------------------------------------------------------------------------------------


class Inner(nn.Module):
    scale = 3.0

    def forward(self, x: Tensor) -> Any:
        return handed_to(self), x * self.scale


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()
        self.inners = nn.ModuleList([self.inner])
        self.calls = 0

    def forward(self, x: Tensor) -> Any:
        self.calls += 1
        assert self.inner.scale == 3.0
        return self.run(x)

    def run(self, x: Tensor) -> Any:
        return self.inner(x)


class Listing(Outer):
    def forward(self, x: Tensor) -> Any:
        assert len(self.inners) == 1
        found = [inner(x)[0] for inner in self.inners] + [self.inners[0](x)[0], self.inners[:1][0](x)[0]]
        return found, x


class Calling(Outer):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x)


def put_stand_ins(outer: Outer, child: str = "inner") -> Outer:
    put_stand_in(outer, child)
    put_stand_in(outer.inner, None)
    return outer


def test_a_stand_in_reads_and_writes_through_and_hands_on() -> None:
    outer = put_stand_ins(Outer())
    handed, product = outer(torch.ones(1), **{PASS: "what is handed"})
    assert handed == "what is handed"
    assert product.item() == 3.0
    assert outer.calls == 1
    assert not isinstance(outer, list) and handed_to(outer) is None
    assert outer(torch.ones(1))[0] is None  # called from elsewhere


def test_a_list_of_modules_hands_on_to_each() -> None:
    assert put_stand_ins(Listing(), "inners")(torch.ones(1), **{PASS: "it"})[0] == ["it"] * 3


def test_another_thing_to_hand_on() -> None:
    class Asking(Outer):
        def forward(self, x: Tensor) -> Any:
            return hand_again(self, "other").inner(x)

    assert put_stand_ins(Asking())(torch.ones(1), **{PASS: "it"})[0] == "other"


def test_taking_it_off() -> None:
    outer = put_stand_ins(Outer())
    put_stand_in(outer, "inner")  # once is enough
    take_off_stand_in(outer)
    assert "forward" not in outer.__dict__
    take_off_stand_in(outer)


@pytest.mark.parametrize("is_first", [True, False], ids=["hook_first", "hook_later"])
@pytest.mark.parametrize("hook_stays", [True, False])
def test_accelerate_puts_hooks_where_forward_is(is_first: bool, hook_stays: bool) -> None:
    outer = Outer()
    if is_first:
        add_hook_to_module(outer, ModelHook())
    put_stand_ins(outer)
    if not is_first:
        add_hook_to_module(outer, ModelHook())
    assert outer(torch.ones(1), **{PASS: "it"})[0] == "it"
    if not hook_stays:
        remove_hook_from_module(outer)
        assert outer(torch.ones(1), **{PASS: "it"})[0] == "it"
    take_off_stand_in(outer)
    take_off_stand_in(outer.inner)
    assert hasattr(outer, "_hf_hook") == hook_stays
    assert outer(torch.ones(1))[1].item() == 3.0
    if hook_stays:
        remove_hook_from_module(outer)
        assert outer(torch.ones(1))[1].item() == 3.0


def test_what_cannot_be_stood_in_for() -> None:
    outer = Outer()
    assert explain_no_stand_in(outer) is None
    outer.forward = lambda x: x
    assert "something has replaced the forward of Outer" in str(explain_no_stand_in(outer))
    assert "Calling.forward calls super()" in str(explain_no_stand_in(Calling()))


def test_a_replaced_forward_is_refused_before_anything_changes() -> None:
    model, inputs = make("siglip")
    before = first_output(model, inputs)
    attention = model.encoder.layers[1].self_attn
    attention.forward = torch.no_grad()(attention.forward)
    with pytest.raises(ValueError, match="something has replaced the forward of SiglipAttention"):
        inject(model, LamConfig(rank=2))
    assert torch.equal(first_output(model, inputs), before)
    del attention.forward
    assert_no_trace(model)


# --- hosts -----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=list(HOSTS))
def host(request: pytest.FixtureRequest) -> str:
    return request.param


def test_identity_effect_and_removal(host: str) -> None:
    model, inputs = make(host)
    original, before = first_output(model, inputs), gradients(model, inputs)
    inject(model, LamConfig(rank=2))
    assert max_difference(first_output(model, inputs), original) < 1e-5
    after = gradients(model, inputs)
    assert all(torch.allclose(after[name], before[name], rtol=1e-3, atol=1e-3) for name in before)
    perturb_mechanisms(model)
    assert max_difference(first_output(model, inputs), original) > 1e-3
    gradients(model, inputs)
    assert all(parameter.grad.abs().sum() > 0 for parameter in mechanism_parameters(model))
    remove(model)
    assert torch.equal(first_output(model, inputs), original)
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert_no_trace(model)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize(
    "configs", [(LamConfig(rank=2),), (LamConfig(rank=2, scope="shared"),)], ids=["own", "shared"]
)
def test_checkpointing(host: str, configs: Any, use_reentrant: bool) -> None:
    model, inputs = make_injected(host, *configs)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.train()
    if use_reentrant:  # which follows gradients of what is put in alone
        next(iter(model.children())).register_forward_hook(lambda module, args, output: _require_grad(output))
    expected = gradients(model, inputs)
    checkpoint_activations(model, use_reentrant)
    found = gradients(model, inputs)
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], expected[name], rtol=1e-4, atol=1e-5) for name in expected)


def _require_grad(output: Any) -> Any:
    tensor = output[0] if isinstance(output, tuple) else output
    if isinstance(tensor, Tensor) and not tensor.requires_grad:
        tensor.requires_grad_()
    return output


def test_copies_go_their_own_way(host: str) -> None:
    model, inputs = make_injected(host)
    expected = first_output(model, inputs)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(first_output(twin, inputs), expected)
        perturb_mechanisms(twin, seed=7)
        assert max_difference(first_output(twin, inputs), expected) > 1e-4
        remove(twin)
        assert not any("forward" in module.__dict__ for module in twin.modules())
    assert torch.equal(first_output(model, inputs), expected)


def test_copied_layers(host: str) -> None:
    model, inputs = make_injected(host)
    stack = injection_of(model).stack
    path = injection_of(model).layers_path
    layers = list(stack.get_submodule(path))
    expected = first_output(model, inputs)
    order = [*layers, copy.deepcopy(layers[0])]
    stack.set_submodule(path, nn.ModuleList(order))
    model.config.num_hidden_layers = len(order)
    assert max_difference(first_output(model, inputs), expected) > 1e-5
    assert len(model.state_dict()) and injection_of(model).host.num_layers == len(order)
    remove(model)
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_threads_do_not_meet(host: str) -> None:
    model, inputs = make_injected(host, LamConfig(rank=2, scope="shared"))
    batches = [{k: v * (i + 1) if isinstance(v, Tensor) else v for k, v in inputs.items()} for i in range(4)]
    expected = [first_output(model, batch) for batch in batches]
    found: dict[int, Tensor] = {}

    def run(number: int) -> None:
        found[number] = first_output(model, batches[number])

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[number], expected[number]) for number in range(4))


def test_whoever_registers_hf_lam_later_gets_none_of_our_calls(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = make_injected(host)
    expected = first_output(model, inputs)

    def taken(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("an older copy of the code was asked")

    monkeypatch.setitem(AttentionInterface._global_mapping, "hf_lam", taken)
    assert torch.equal(first_output(model, inputs), expected)


def test_lora_inside_of_an_attention() -> None:
    model, inputs = make_injected("siglip")
    expected = first_output(model, inputs)
    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj", "v_proj"], modules_to_save=["hf_lam"]))
    assert max_difference(first_output(adapted, inputs), expected) < 1e-6
    adapted.train()
    found = gradients(adapted, inputs)
    assert any("lora_B" in name for name in found)
    assert any("modules_to_save" in name for name in found)


@pytest.mark.parametrize("is_first", [True, False], ids=["hooks_first", "hooks_later"])
def test_hooks_of_accelerate_on_every_module(host: str, is_first: bool) -> None:
    model, inputs = make(host)
    if is_first:
        for module in model.modules():
            add_hook_to_module(module, ModelHook())
    perturb_mechanisms(inject(model, LamConfig(rank=2)))
    expected = first_output(make_injected(host)[0], inputs)
    for module in model.modules() if not is_first else ():
        add_hook_to_module(module, ModelHook())
    assert torch.equal(first_output(model, inputs), expected)
    remove(model)
    assert torch.equal(first_output(model, inputs), first_output(make(host)[0], inputs))
    for module in model.modules():
        remove_hook_from_module(module)
    assert torch.equal(first_output(model, inputs), first_output(make(host)[0], inputs))


def test_two_models_have_one_hash(host: str) -> None:
    first, second = (make_injected(host)[0] for _ in range(2))
    assert Hasher.hash(first) == Hasher.hash(second)


@pytest.mark.slow
def test_compiled_right_after_loading(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = make_injected(host)
    expected, pickled = first_output(model, inputs), pickle.dumps(model)
    monkeypatch.setattr(stand_ins_hf_lam, "_KINDS", {})  # as in a new process
    torch._dynamo.reset()
    compiled = torch.compile(pickle.loads(pickled), fullgraph=True, backend="aot_eager")
    assert max_difference(first_output(compiled, inputs), expected) < 1e-5


@pytest.mark.slow
def test_compiled_and_exported(host: str) -> None:
    model, inputs = make_injected(host, LamConfig(rank=2), LocomtConfig(segments=[["a", 3], ["b", _rest(host)]]))
    expected = first_output(model, inputs)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert max_difference(first_output(compiled, inputs), expected) < 1e-5
    program = torch.export.export(model, (), inputs, strict=False)
    assert max_difference(program.module()(**inputs)[0], expected) < 1e-5


def _rest(host: str) -> int:
    return {"siglip": 13, "vjepa2": 5, "whisper": 7, "videomae": 5, "internvl": 14}[host]
