"""Files of four models, for `torchpace compare --model FILE`, with random weights.

    python examples/files.py FOLDER
    cd FOLDER && torchpace compare --model resnet18-scripted.pt --input 1x3x224x224

It needs what examples/zoo.py needs. The results: docs/results/2026-11-27-files-epyc-zen3.md.
"""

import sys
import warnings
from pathlib import Path

import torch
import zoo
from torch import nn


class Logits(nn.Module):
    """Of all that a language model returns, the part that a file can hold."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, tokens):
        return self.model(tokens).logits


class Classifier(nn.Module):
    """A bidirectional LSTM over the tokens of a text, and its class from the last states."""

    def __init__(self, vocabulary=5000, width=128, classes=10):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        _, (hidden, _) = self.lstm(self.embedding(tokens))
        return self.head(torch.cat([hidden[-2], hidden[-1]], 1))


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    resnet = zoo.resnet18()["module"].eval()
    torch.jit.script(resnet).save(folder / "resnet18-scripted.pt")
    torch.jit.trace(resnet, torch.randn(1, 3, 224, 224)).save(folder / "resnet18-traced.pt")
    llama = Logits(zoo.llama()["module"]).eval()
    tokens = torch.randint(2, (1, 64))
    torch.jit.trace(llama, tokens, check_trace=False).save(folder / "llama.pt")
    torch.jit.script(Classifier().eval()).save(folder / "lstm.pt")
    program = torch.export.export(resnet, (torch.randn(1, 3, 224, 224),))
    torch.export.save(program, folder / "resnet18-exported.pt2")


if __name__ == "__main__":
    main()
