"""A linear whose product is packed is the linear that it was."""

import copy

import torch
from torch import Tensor
from torch.nn import functional as F

from serve_app.model.linear import Linear

WIDTH = 1_024  # two rows of it are worth packing


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_a_packed_product_is_the_product() -> None:
    linear, x = Linear(WIDTH, WIDTH), random(2, 1, WIDTH)
    torch.testing.assert_close(linear(x), F.linear(x, linear.weight, linear.bias))


@torch.no_grad()
def test_a_weight_that_changes_after_its_first_use_counts() -> None:
    linear, x = Linear(WIDTH, WIDTH, bias=False), random(2, WIDTH)
    linear(x)
    linear.weight.copy_(torch.eye(WIDTH))
    torch.testing.assert_close(linear(x), x)


@torch.no_grad()
def test_a_weight_that_is_replaced_counts() -> None:
    linear, x = Linear(WIDTH, WIDTH, bias=False), random(2, WIDTH)
    linear(x)
    linear.weight = torch.nn.Parameter(2 * torch.eye(WIDTH))
    torch.testing.assert_close(linear(x), 2 * x)


@torch.no_grad()
def test_a_linear_that_was_used_can_be_copied_and_moved() -> None:
    linear, x = Linear(WIDTH, WIDTH), random(2, WIDTH)
    said = linear(x)
    copied = copy.deepcopy(linear)
    assert torch.equal(copied(x), said)
    torch.testing.assert_close(copied.to(torch.float64)(x.double()).float(), said)


def test_a_linear_that_was_used_still_has_gradients() -> None:
    linear, x = Linear(WIDTH, WIDTH), random(2, WIDTH)
    with torch.no_grad():
        linear(x)
    linear(x).sum().backward()
    assert linear.weight.grad is not None
