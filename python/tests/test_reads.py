"""What a step of a model must read of its parameters."""

import pytest
import torch
from torch import nn

from torchpace.reads import ParameterReads, minimum_parameter_bytes


class Mixed(nn.Module):
    """A table that is looked up, a layer that is used, one that is not, one of six experts."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(1000, 8)
        self.used = nn.Linear(8, 4)
        self.unused = nn.Linear(8, 100)
        self.experts = nn.Parameter(torch.randn(6, 4, 4))

    def forward(self, index):
        return self.used(self.table(index)) @ self.experts[2]


def reads_of(module, *inputs, grad=False):
    with torch.set_grad_enabled(grad), ParameterReads(module.parameters()) as reads:
        return module(*inputs), reads


def test_inference_reads_what_products_read_and_no_more():
    module = Mixed()
    _, reads = reads_of(module, torch.tensor([1, 2]))
    used = 8 * 4 + 4 + 4 * 4
    assert minimum_parameter_bytes(module, reads, 4, training=False) == 4 * used
    assert minimum_parameter_bytes(module, reads, 2, training=False) == 2 * used


def test_training_moves_all_with_a_gradient_and_reads_the_frozen():
    module = Mixed()
    module.used.requires_grad_(False)
    output, reads = reads_of(module, torch.tensor([1, 2]), grad=True)
    output.sum().backward()
    trained = 1000 * 8 + 6 * 4 * 4
    frozen = 8 * 4 + 4
    expected = 4 * (6 * trained + frozen)
    assert minimum_parameter_bytes(module, reads, 4, training=True) == expected
    sparse = nn.Embedding(1000, 8, sparse=True)
    output, reads = reads_of(sparse, torch.tensor([1]), grad=True)
    output.sum().backward()
    assert minimum_parameter_bytes(sparse, reads, 4, training=True) == 0


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.LSTM(8, 8, num_layers=2), (3, 2, 8)),
        (nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval(), (3, 2, 16)),
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval(), (1, 3, 9, 9)),
        (nn.Bilinear(4, 5, 6), None),
    ],
)
def test_layers_are_read_whole(module, shape):
    inputs = (torch.randn(shape),) if shape else (torch.randn(2, 4), torch.randn(2, 5))
    _, reads = reads_of(module, *inputs)
    whole = 4 * sum(p.numel() for p in module.parameters())
    assert minimum_parameter_bytes(module, reads, 4, training=False) == whole


def test_tied_weights_are_read_by_the_one_that_multiplies():
    table, head = nn.Embedding(50, 8), nn.Linear(8, 50, bias=False)
    head.weight = table.weight
    module = nn.Sequential(table, head)
    _, reads = reads_of(module, torch.tensor([1, 2]))
    assert minimum_parameter_bytes(module, reads, 4, training=False) == 4 * 50 * 8
