"""Models from packages, with random weights, as `torchpace compare --model zoo:NAME` takes them.

    .venv/bin/pip install torchvision==0.26 transformers timm    # the torchvision of torch 2.11
    cd examples && torchpace compare --model zoo:resnet18 --runtimes all

What a factory may return: docs/guides/your-own-model.md. What ran where: examples/zoo_table.py.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy

# The most used families of timm, each by a small member.
TIMM = (
    *("resnet18", "efficientnet_b0", "vit_tiny_patch16_224", "convnext_atto", "regnety_002"),
    *("swin_tiny_patch4_window7_224", "mobilenetv3_small_100", "densenet121", "mixer_s32_224"),
    "deit_tiny_patch16_224",
)


def resnet18():
    """12 million parameters; four images of 224 x 224."""
    import torchvision

    return _images(torchvision.models.resnet18(weights=None), batch=4)


def vit():
    """ViT-B/16: 86 million parameters; one image of 224 x 224."""
    import torchvision

    module = torchvision.models.vit_b_16(weights=None)
    # torchvision's head starts at zero: every output would be 0, and parity would see no error.
    torch.nn.init.normal_(module.heads.head.weight, std=0.02)
    return _images(module, batch=1)


def gpt2():
    """GPT-2 small: 124 million parameters; two rows of 64 tokens."""
    import transformers

    # Without dropout, so that all runtimes train on the same numbers; a cache is for generation.
    config = transformers.GPT2Config(resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, use_cache=False)
    return _tokens(transformers.GPT2LMHeadModel(config), config.vocab_size)


def llama():
    """A Llama of 32 million parameters: RMSNorm, rotary positions, SwiGLU, grouped queries; two
    rows of 64 tokens.
    """
    import transformers

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


class EncoderDecoder(nn.Module):
    """An encoder-decoder of transformers called by position; returns its ModelOutput."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, tokens, decoder_tokens):
        return self.module(input_ids=tokens, decoder_input_ids=decoder_tokens, use_cache=False)


def t5():
    """T5-small: 60 million parameters; two rows of 32 tokens into the encoder, 16 into the decoder.

    Its output is a ModelOutput with the logits and the encoder's last hidden state.
    """
    import transformers

    module = transformers.T5ForConditionalGeneration(transformers.T5Config(use_cache=False))
    tokens = [torch.randint(32128, (2, length)) for length in (32, 16)]
    return {"module": EncoderDecoder(module), "inputs": tokens}


class Detector(nn.Module):
    """A detector of torchvision, which wants a list of images, called with one batch of them.

    Returns all that it finds: a list of dictionaries with boxes, labels and scores.
    """

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, images):
        return self.module(list(images.unbind(0)))


def faster_rcnn():
    """Faster R-CNN on MobileNetV3-Large, 19 million parameters; one image of 320 x 320."""
    from torchvision.models import detection

    # Random weights are sure of nothing: the 20 best boxes, however bad.
    module = detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None, weights_backbone=None, box_score_thresh=0.0, box_detections_per_img=20
    )
    return {"module": Detector(module), "inputs": torch.rand(1, 3, 320, 320)}


def ssdlite():
    """SSDlite on MobileNetV3-Large, 5 million parameters; one image of 320 x 320."""
    from torchvision.models import detection

    module = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None)
    return {"module": Detector(module), "inputs": torch.rand(1, 3, 320, 320)}


class GraphNetwork(nn.Module):
    """Three rounds of messages along the edges of B graphs, added up at their ends.

    nodes: [B, N, C]; edges: [B, E, 2], from and to. Returns [B, N, C].
    """

    def __init__(self, width=64, rounds=3):
        super().__init__()
        self.messages = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(rounds))
        self.updates = nn.ModuleList(nn.GRUCell(width, width) for _ in range(rounds))

    def forward(self, nodes, edges):
        batch, count, width = nodes.shape
        first = torch.arange(batch, device=nodes.device).view(-1, 1) * count  # [B, 1]
        start, end = ((edges[..., i] + first).flatten() for i in range(2))  # [B E]
        h = nodes.flatten(0, 1)  # [B N, C]
        for message, update in zip(self.messages, self.updates, strict=True):
            sent = torch.relu(message(torch.cat([h[start], h[end]], 1)))  # [B E, C]
            h = update(torch.zeros_like(h).index_add(0, end, sent), h)
        return h.view(batch, count, width)


def graph():
    """A graph network by hand, as torch_geometric has them; four graphs of 50 nodes, 200 edges."""
    inputs = torch.randn(4, 50, 64), torch.randint(50, (4, 200, 2))
    return {"module": GraphNetwork(), "inputs": inputs}


def __getattr__(name):
    """`timm_NAME`: a model of timm, two images of 224 x 224."""
    if name.removeprefix("timm_") not in TIMM:
        raise AttributeError(f"module 'zoo' has no attribute '{name}'")

    def make():
        import timm

        module = timm.create_model(name.removeprefix("timm_"), pretrained=False)
        head = module.get_classifier()
        nn.init.normal_(head.weight, std=0.02)  # that of a mixer starts at zero, as torchvision's
        return _images(module, batch=2)

    return make


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
