"""The Depformer by itself: against the reference's own stack, and what one step may see."""

import pytest
import torch

from tests.model.language import LATE_16, SHAPES, lm_pair, small_lm


@pytest.mark.parametrize("name", list(SHAPES))
@torch.no_grad()
def test_unrolled_positions_equal_the_references_streaming_stack(name: str) -> None:
    reference, ours = lm_pair(SHAPES[name])
    dep_q, dim = SHAPES[name]["dep_q"], SHAPES[name]["depformer_dim"]
    x = torch.randn(3, dep_q, dim, generator=torch.Generator().manual_seed(1))
    depformer = ours.depformer
    assert depformer is not None
    past = depformer.begin(x)
    with reference.depformer.streaming(3):
        for index in range(dep_q):
            here = x[:, index : index + 1]
            got = depformer.step(here, past, index)
            torch.testing.assert_close(got, reference.depformer(here), atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_step_of_the_depformer_remembers_nothing_of_the_step_before() -> None:
    depformer = small_lm(LATE_16).depformer
    assert depformer is not None
    x = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(1))
    runs = []
    for _ in range(2):
        past = depformer.begin(x)
        runs.append([depformer.step(x[:, index : index + 1], past, index) for index in range(16)])
    assert all(torch.equal(*both) for both in zip(*runs, strict=True))
