"""Fused operations against what they stand for, and a model that was laid out against one that was not."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from serve_app.model import fused
from serve_app.model.linear import Linear, Together
from serve_app.model.lm import LM
from serve_app.model.norm import LayerNormF32, Residual, RmsNorm, make_norm
from serve_app.model.ring import KvRing, Window
from serve_app.model.rope import Rotation
from serve_app.model.state import Rows, all_rows
from serve_app.spec import GREEDY, Sampling
from tests.model.language import CPU, LATE_16, MOSHIKO, SHAPES, SHARED_DEPTH, small_lm

HOT = Sampling(text_temperature=0.9, text_top_k=25, audio_temperature=0.9, audio_top_k=20, text_seed=3, audio_seed=4)


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _operations(name: str) -> Any:
    """The operation behind a fused function: what runs away from the CPU."""
    return getattr(fused, f"_{name}_op")


@pytest.mark.parametrize("name", ["rms_norm_f32", "layer_norm", "layer_norm_f32", "rms_norm"])
@pytest.mark.parametrize("scaled", [False, True])
@torch.no_grad()
def test_the_sum_and_its_norm_equal_the_two_apart(name: Any, scaled: bool) -> None:
    norm = make_norm(name, 16)
    for parameter in norm.parameters():
        parameter.copy_(_random(*parameter.shape, seed=3))
    x, update = _random(2, 1, 16), _random(2, 1, 16, seed=1)
    scale = _random(16, seed=2) if scaled else None
    stream, normed = Residual(x).add(update, scale).normed(norm)
    want = x + (update if scale is None else scale * update)
    assert torch.equal(stream.total(), want)
    assert torch.equal(normed, norm(want))


@torch.no_grad()
def test_half_precision_norms_are_computed_in_single() -> None:
    norm = RmsNorm(64, 1e-8, torch.float32).to(torch.bfloat16)
    x = _random(3, 1, 64).to(torch.bfloat16)
    assert torch.equal(Residual(x).normed(norm)[1], norm(x))
    assert isinstance(make_norm("layer_norm_f32", 4), LayerNormF32)


@pytest.mark.parametrize("interleaved", [True, False])
@torch.no_grad()
def test_splitting_rotates_queries_and_keys_and_leaves_values(interleaved: bool) -> None:
    heads, kv_heads, dim, steps = 4, 2, 8, 3
    qkv = _random(2, steps, (heads + 2 * kv_heads) * dim)
    rotation = Rotation.at(torch.tensor([0, 7]), steps, dim, 10_000.0, interleaved)
    query, keys, values = rotation.split(qkv, heads, kv_heads)
    plain = qkv.view(2, steps, heads + 2 * kv_heads, dim).transpose(1, 2)
    torch.testing.assert_close(query, rotation.turn(plain[:, :heads]))
    torch.testing.assert_close(keys, rotation.turn(plain[:, heads : heads + kv_heads]))
    assert torch.equal(values, plain[:, heads + kv_heads :])


@torch.no_grad()
def test_turning_keeps_lengths_and_depends_on_the_distance_alone() -> None:
    x, y = _random(1, 1, 1, 8), _random(1, 1, 1, 8, seed=1)

    def product(first: int, second: int) -> Tensor:
        turned = [
            Rotation.at(torch.tensor([at]), 1, 8, 100.0, True).turn(part) for at, part in ((first, x), (second, y))
        ]
        return (turned[0] * turned[1]).sum()

    torch.testing.assert_close(product(3, 1), product(12, 10))
    torch.testing.assert_close(product(5, 5), (x * y).sum())


@torch.no_grad()
def test_a_tick_of_one_kernel_each_equals_the_rings_own_step() -> None:
    slots, capacity, heads, kv_heads, dim = 3, 5, 4, 2, 8
    rows = Rows.of(torch.tensor([2, 0]), torch.tensor([True, False]), slots)
    rings = [KvRing.empty(slots, capacity, kv_heads, dim, CPU, torch.float32) for _ in range(2)]
    for ring in rings:
        ring.keys.copy_(_random(*ring.keys.shape, seed=8))
        ring.values.copy_(_random(*ring.values.shape, seed=9))
    for offset in (torch.tensor([0, 2]), torch.tensor([4, 4]), torch.tensor([11, 2])):
        qkv = _random(2, 1, (heads + 2 * kv_heads) * dim, seed=int(offset[0]))
        rotation = Rotation.at(offset, 1, dim, 10_000.0, True)
        window = Window.at(offset, 1, capacity, rows)
        want = rings[0].step(*rotation.split(qkv, heads, kv_heads), rows, window)[:, :, 0]
        first = rings[1]
        args = (first.keys, first.values, window.write, window.index, heads, kv_heads, True)
        query = fused.rope_append(qkv, rotation.cos, rotation.sin, *args)
        table = rows.slots[:, None]
        got = fused.decode_attention(query[:, :, 0], first.keys, first.values, table, offset + 1, capacity)
        torch.testing.assert_close(got[:1], want[:1])  # the second row does not execute
        assert torch.equal(first.keys, rings[0].keys)
        assert torch.equal(first.values, rings[0].values)


@torch.no_grad()
def test_pages_hold_what_one_ring_holds() -> None:
    capacity, page, heads, dim = 6, 4, 2, 8
    ring = [_random(1, 8, heads, dim, seed=seed) for seed in (1, 2)]  # the last two places lie beyond the capacity
    query = _random(1, heads, dim)
    length = torch.tensor([9])
    keys, values = (part[:, :capacity] for part in ring)
    want = fused.decode_attention(query, keys, values, torch.tensor([[0]]), length, capacity)
    pages = [part.view(2, page, heads, dim).flip(0) for part in ring]
    got = fused.decode_attention(query, pages[0], pages[1], torch.tensor([[1, 0]]), length, capacity)
    torch.testing.assert_close(got, want)


@torch.no_grad()
def test_scales_multiply_keys_and_values() -> None:
    query, keys, values = _random(1, 2, 8), _random(1, 4, 2, 8), _random(1, 4, 2, 8, seed=1)
    scale = [_random(1, 4, 2, seed=seed).abs() for seed in (2, 3)]
    args = (torch.tensor([[0]]), torch.tensor([3]), 4)
    want = fused.decode_attention(query, keys * scale[0][..., None], values * scale[1][..., None], *args)
    torch.testing.assert_close(fused.decode_attention(query, keys, values, *args, *scale), want)


@torch.no_grad()
def test_depth_attention_sees_all_positions_so_far() -> None:
    rows, heads, room, dim = 2, 2, 4, 8
    keys, values = torch.full((2, rows, heads, room, dim), torch.nan).unbind()
    qkv = _random(rows, room, 3 * heads * dim)
    whole = fused.rope_split(qkv, None, None, heads, heads, True)
    want = F.scaled_dot_product_attention(*whole, is_causal=True).transpose(1, 2).flatten(-2)
    for index in range(room):
        got = fused.depth_attention(qkv[:, index : index + 1], keys, values, index, heads)
        torch.testing.assert_close(got, want[:, index : index + 1])


@pytest.mark.parametrize("name", ["silu", "gelu", "relu", "sigmoid", "tanh", "identity", "none"])
def test_the_first_half_of_a_gate_is_activated(name: str) -> None:
    x = _random(2, 1, 8)
    want = fused.activate(x[..., :4], name) * x[..., 4:]
    assert torch.equal(fused.gate(x, name), want)


def test_streams_are_summed_in_order_and_zero_tokens_add_nothing() -> None:
    tables = [_random(5, 8, seed=seed) for seed in range(3)]
    tokens = torch.tensor([[[4], [-1], [0]], [[-2], [2], [3]]])
    got = fused.embed_sum(tokens, torch.cat(tables), torch.tensor([0, 5, 10]))
    want = torch.stack([tables[0][4] + 0 + tables[2][0], tables[0][0] + tables[1][2] + tables[2][3]])[:, None]
    assert torch.equal(got, want)


def _operation_arguments() -> dict[str, tuple[Any, ...]]:
    pair = (_random(3, 2, 4, 8), _random(3, 2, 4, 8, seed=1))
    store = (_random(4, 5, 2, 8), _random(4, 5, 2, 8, seed=1))
    at = (torch.tensor([[1], [3]]), torch.tensor([[0], [4]]))
    hot, whole = torch.tensor([0.7, 0.0]), torch.tensor([3, 0])
    return {
        "norm": (_random(2, 1, 8), _random(8), 1e-8, None),
        "add_norm": (_random(2, 1, 8), _random(2, 1, 8), _random(8), 1e-5, _random(8), _random(8)),
        "rope_table": (torch.tensor([1, 5]), 2, 8, 10_000.0),
        "rope_append": (_random(2, 1, 48), None, None, *store, *at, 2, 2, True, None, None),
        "decode_attention": (_random(2, 2, 8), *store, torch.tensor([[1], [2]]), torch.tensor([3, 9]), 5, None, None),
        "depth_attention": (_random(3, 1, 48), *pair, 1, 2),
        "gate": (_random(2, 1, 8), "silu"),
        "embed_sum": (torch.tensor([[[1], [-1]]]), _random(8, 4), torch.tensor([0, 4])),
        "add_embedding": (_random(2, 1, 4), torch.tensor([-1, 2]), _random(8, 4)),
        "noise_keys": (torch.tensor([1, 2, 8]), torch.tensor([3, 4, 9]), torch.tensor([2, 0]), 1, 3),
        "sample": (_random(2, 16), hot, whole, torch.tensor([5, 6]), torch.tensor([-2, 7]), 3, hot),
    }


@pytest.mark.parametrize("name", list(_operation_arguments()))
@torch.no_grad()
def test_an_operation_does_what_its_function_does_and_tells_its_shape(name: str) -> None:
    arguments = _operation_arguments()[name]
    torch.library.opcheck(_operations(name), copy.deepcopy(arguments), test_utils=("test_schema", "test_faketensor"))
    plain, whole = copy.deepcopy(arguments), copy.deepcopy(arguments)
    if name == "sample":
        *head, token, by = plain
        made = fused.sample(*head, whole=False, raised=(token, by))
    else:
        made = getattr(fused, name)(*plain)
    torch.testing.assert_close(_operations(name)(*whole), made, rtol=0, atol=0)
    for left, right in zip(whole, plain, strict=True):  # what is written in place
        assert torch.equal(left, right) if isinstance(left, Tensor) else left == right


@torch.no_grad()
def test_a_given_token_stands_in_for_a_drawn_one() -> None:
    logits = torch.eye(4)[:2]
    nothing, given = torch.zeros(2, dtype=torch.int64), torch.tensor([-2, 3])
    for temperature in (torch.zeros(2), torch.full((2,), 1e-3)):
        drawn = fused.sample(logits, temperature, nothing, nothing, given, whole=False)
        assert drawn.tolist() == [0, 3]


@torch.no_grad()
def test_weights_laid_together_keep_their_values_and_follow_changes() -> None:
    modules = [Linear(4, rows) for rows in (3, 5)]
    parts = [module.weight for module in modules]
    before = [part.clone() for part in parts]
    together = Together(modules)
    assert all(torch.equal(part, old) for part, old in zip(parts, before, strict=True))
    assert together.first.tolist() == [0, 3]
    parts[1][0] = 7.0
    assert together.weight[3].tolist() == [7.0] * 4
    assert together.current
    parts[0].data = parts[0].data.clone()
    assert not together.current


def _said(lm: LM, sampling: Sampling, steps: int = 14) -> Tensor:
    rows = all_rows(2)
    state = lm.init_state(2, CPU, torch.float32)
    for slot in range(2):
        state.sampling.set(slot, sampling)
    generator = torch.Generator().manual_seed(1)
    said = []
    for _ in range(steps):
        user = torch.randint(0, lm.config.card, (2, lm.config.user_q), generator=generator)
        said.append(lm.step(user, state, rows).codes)
    return torch.stack(said)


@pytest.mark.parametrize("name", list(SHAPES))
@pytest.mark.parametrize("sampling", [GREEDY, HOT], ids=["greedy", "sampled"])
@torch.no_grad()
def test_a_model_that_was_laid_out_says_the_same(name: str, sampling: Sampling) -> None:
    lm = small_lm(SHAPES[name])
    names = {key: value.shape for key, value in lm.state_dict().items()}
    want = _said(lm, sampling)
    lm.lay_out()
    assert torch.equal(_said(lm, sampling), want)
    assert {key: value.shape for key, value in lm.state_dict().items()} == names


@pytest.mark.parametrize("name", list(SHAPES))
@torch.no_grad()
def test_operations_say_what_the_cpus_own_way_says(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = small_lm(SHAPES[name])
    lm.lay_out()
    for sampling in (GREEDY, HOT):
        want = _said(lm, sampling)
        with monkeypatch.context() as patch:
            patch.setattr(fused, "direct", lambda _: False)
            assert torch.equal(_said(lm, sampling), want)


@torch.no_grad()
def test_laying_out_twice_or_moving_afterwards_changes_nothing() -> None:
    lm = small_lm(MOSHIKO)
    want = _said(lm, GREEDY)
    lm.lay_out()
    lm.lay_out()
    assert torch.equal(_said(lm, GREEDY), want)
    assert torch.equal(_said(lm.double().float(), GREEDY), want)


@pytest.mark.parametrize("config", [MOSHIKO, LATE_16, SHARED_DEPTH], ids=["moshiko", "late-16", "shared-depth"])
@torch.no_grad()
def test_rows_do_not_change_each_other_when_laid_out(config: dict[str, Any]) -> None:
    lm = small_lm(config)
    lm.lay_out()
    generator = torch.Generator().manual_seed(1)
    user = torch.randint(0, lm.config.card, (6, 2, lm.config.user_q), generator=generator)
    runs: list[list[Tensor]] = []
    for neighbour in (user[:, 1], user[:, 1].flip(0)):
        state = lm.init_state(2, CPU, torch.float32)
        runs.append([])
        for step in range(6):
            both = torch.stack([user[step, 0], neighbour[step]])
            runs[-1].append(lm.step(both, state, all_rows(2)).codes[0])
    assert all(torch.equal(*both) for both in zip(*runs, strict=True))
