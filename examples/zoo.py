"""Models from packages, with random weights, as `torchpace compare --model zoo:NAME` takes them.

    .venv/bin/pip install torchvision==0.26 transformers    # the torchvision of torch 2.11
    cd examples && torchpace compare --model zoo:resnet18 --runtimes all

What a factory may return: docs/your-own-model.md.
"""

import torch
import torchvision
import transformers
from torch.nn.functional import cross_entropy


def resnet18():
    """12 million parameters; four images of 224 x 224."""
    return _images(torchvision.models.resnet18(weights=None), batch=4)


def vit():
    """ViT-B/16: 86 million parameters; one image of 224 x 224."""
    module = torchvision.models.vit_b_16(weights=None)
    # torchvision's head starts at zero: every output would be 0, and parity would see no error.
    torch.nn.init.normal_(module.heads.head.weight, std=0.02)
    return _images(module, batch=1)


def gpt2():
    """GPT-2 small: 124 million parameters; two rows of 64 tokens."""
    # Without dropout, so that all runtimes train on the same numbers; a cache is for generation.
    config = transformers.GPT2Config(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, use_cache=False)
    return _tokens(transformers.GPT2LMHeadModel(config), config.vocab_size)


def llama():
    """A Llama of 32 million parameters: RMSNorm, rotary positions, SwiGLU, grouped queries; two
    rows of 64 tokens.
    """
    config = transformers.LlamaConfig(
        vocab_size=8192,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        use_cache=False,
    )
    return _tokens(transformers.LlamaForCausalLM(config), config.vocab_size)


def _images(module, batch):
    return {
        "module": module,
        "inputs": torch.randn(batch, 3, 224, 224),
        "target": torch.randint(1000, (batch,)),
        "loss": cross_entropy,
    }


def _tokens(module, vocabulary, batch=2, length=64):
    tokens = torch.randint(vocabulary, (batch, length))
    return {
        "module": module,
        "inputs": tokens,
        "target": tokens.roll(-1, 1),
        # a loss gets all that the module returned
        "loss": lambda output, y: cross_entropy(output.logits.flatten(0, 1), y.flatten()),
    }
