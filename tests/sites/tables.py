"""What the probe has to find in the models of the zoo; written after reading their source code.

A row is (name, via, kind, p, shape, rate_at), then what differs from one call in a forward.
"""

from __future__ import annotations

from typing import NamedTuple

NEVER = -1  # as the number of calls: configured, but no code of the model runs it


class Row(NamedTuple):
    name: str
    via: str
    kind: str
    p: float | None
    shape: tuple[int, ...] | None
    rate_at: str | None
    calls: int = 1
    shared: tuple[int, ...] = ()

    @property
    def on(self):
        return self.p != 0.0 and self.calls != NEVER


def layer(name, p, shape, kind="dropout", at="p", calls=1, shared=()):
    return Row(name, "module", kind, p, shape, f"{name}.{at}", calls, shared)


def drop_path(name, p, shape, calls=1):
    """Return the row of a DropPath of timm: one bit for a sample."""
    inner = tuple(dim for dim in range(1, len(shape)) if shape[dim] > 1)
    return layer(name, p, shape, "drop_path", "drop_prob", calls, inner)


def call(name, p, shape, at, kind="dropout", shared=()):
    return Row(name, "call", kind, p, shape, at, 1, shared)


def attention(name, p, shape, at="dropout"):
    """Return the row of a call of scaled_dot_product_attention."""
    return call(name, p, shape, f"{name}.{at}", "attention")


def mha(name, p, shape):
    return Row(name, "attribute", "attention", p, shape, f"{name}.dropout")


def never(name, p, at="drop_prob", kind="drop_path"):
    return Row(name, "module", kind, p, None, f"{name}.{at}", NEVER)


# torch: modules/transformer.py, the methods _sa_block, _mha_block and _ff_block. The attention
# asks for no weights, so its scores are [B, H, L, S].


def torch_encoder(at="layers", layers=2):
    rows = []
    for i in range(layers):
        rows += [
            mha(f"{at}.{i}.self_attn", 0.1, (2, 2, 6, 6)),
            layer(f"{at}.{i}.dropout1", 0.1, (2, 6, 16)),
            layer(f"{at}.{i}.dropout", 0.1, (2, 6, 32)),
            layer(f"{at}.{i}.dropout2", 0.1, (2, 6, 16)),
        ]
    return rows


def torch_transformer():
    rows = torch_encoder("encoder.layers")
    for i in range(2):
        at = f"decoder.layers.{i}"
        rows += [
            mha(f"{at}.self_attn", 0.1, (2, 2, 5, 5)),
            layer(f"{at}.dropout1", 0.1, (2, 5, 16)),
            mha(f"{at}.multihead_attn", 0.1, (2, 2, 5, 6)),
            layer(f"{at}.dropout2", 0.1, (2, 5, 16)),
            layer(f"{at}.dropout", 0.1, (2, 5, 32)),
            layer(f"{at}.dropout3", 0.1, (2, 5, 16)),
        ]
    return rows


def torch_lstm():
    # Between the two layers, time first: batch_first transposes the input before.
    return [Row("", "attribute", "rnn", 0.3, (5, 4, 16), "dropout")]


# timm: linspace gives the rates of the drop paths.


def linear(rate, depth):
    return [rate * i / (depth - 1) for i in range(depth)]


def vit(p=0.0, pos=0.0, patch=0.0, proj=0.0, attn=0.0, path=0.0):
    rows, tokens = [layer("pos_drop", pos, (2, 5, 24))], 5  # 4 patches and the class token
    if patch:
        rows.append(layer("patch_drop", patch, (2, 5, 24), "subset", "prob"))
        tokens = 4
    for i, rate in enumerate(linear(path, 3)):
        at, shape = f"blocks.{i}", (2, tokens, 24)
        rows += [attention(f"{at}.attn", attn, (2, 2, tokens, tokens), "attn_drop.p")]
        rows += [layer(f"{at}.attn.proj_drop", proj, shape)]
        rows += [drop_path(f"{at}.drop_path1", rate, shape)] if rate else []
        rows += [layer(f"{at}.mlp.drop1", proj, (2, tokens, 96))]
        rows += [layer(f"{at}.mlp.drop2", proj, shape)]
        rows += [drop_path(f"{at}.drop_path2", rate, shape)] if rate else []
    return [*rows, layer("head_drop", p, (2, 24))]


def convnext(p=0.0, path=0.0):
    rows, rates = [], iter(linear(path, 5))
    for stage, (blocks, width, size) in enumerate([(1, 8, 8), (2, 8, 4), (1, 16, 2), (1, 16, 1)]):
        for i in range(blocks):
            at, shape, rate = f"stages.{stage}.blocks.{i}", (2, width, size, size), next(rates)
            rows += [layer(f"{at}.mlp.drop1", 0.0, (2, 4 * width, size, size))]
            rows += [layer(f"{at}.mlp.drop2", 0.0, shape)]
            rows += [drop_path(f"{at}.drop_path", rate, shape)] if rate else []
    return [*rows, layer("head.drop", p, (2, 16))]


def swin(p=0.0, proj=0.0, attn=0.0, path=0.1):
    # Windows of 4 x 4 over 8 x 8 tokens, then over 4 x 4: 4 and 1 for each sample.
    rows, rates = [], iter(linear(path, 4))
    for i, (windows, width, size) in enumerate([(8, 12, 8), (2, 24, 4)]):
        for j in range(2):
            at, heads, rate = f"layers.{i}.blocks.{j}", i + 1, next(rates)
            flat = (2, size * size, width)
            rows += [layer(f"{at}.attn.attn_drop", attn, (windows, heads, 16, 16))]
            rows += [layer(f"{at}.attn.proj_drop", proj, (windows, 16, width))]
            rows += [drop_path(f"{at}.drop_path1", rate, (2, size, size, width))] if rate else []
            rows += [layer(f"{at}.mlp.drop1", proj, (2, size * size, 4 * width))]
            rows += [layer(f"{at}.mlp.drop2", proj, flat)]
            rows += [drop_path(f"{at}.drop_path2", rate, flat)] if rate else []
    return [*rows, layer("head.drop", p, (2, 24))]


def efficientnet(p=0.0, path=0.0):
    # A block has a shortcut, and so a drop path that runs, unless it is the first of its stage.
    ran, silent, index = [], [], 0
    shapes = [(16, 16), (24, 8), (40, 4), (80, 2), (112, 2), (192, 1), (320, 1)]
    for stage, (repeats, (width, size)) in enumerate(
        zip([1, 2, 2, 3, 3, 4, 1], shapes, strict=True)
    ):
        for i in range(repeats):
            name, rate = f"blocks.{stage}.{i}.drop_path", path * index / 16
            if rate and i:
                ran.append(drop_path(name, rate, (2, width, size, size)))
            elif rate:
                silent.append(never(name, rate))
            index += 1
    head = [call("", p, (2, 1280), "drop_rate")] if p else []  # `if self.drop_rate > 0.`
    return ran + head + silent


def mixer(p=0.0, proj=0.0, path=0.0):
    rows = []
    for i in range(3):  # 4 tokens; hidden are half as many as channels, and four times as many
        at = f"blocks.{i}"
        rows += [layer(f"{at}.mlp_tokens.drop1", proj, (2, 24, 12))]
        rows += [layer(f"{at}.mlp_tokens.drop2", proj, (2, 24, 4))]
        rows += [drop_path(f"{at}.drop_path", path, (2, 4, 24), calls=2)] if path else []
        rows += [layer(f"{at}.mlp_channels.drop1", proj, (2, 4, 96))]
        rows += [layer(f"{at}.mlp_channels.drop2", proj, (2, 4, 24))]
    return [*rows, layer("head_drop", p, (2, 24))]


# transformers


def bert(eager=False):
    rows = [layer("embeddings.dropout", 0.1, (2, 8, 16))]
    for i in range(2):
        at = f"encoder.layer.{i}"
        name, shape = f"{at}.attention.self", (2, 2, 8, 8)
        rate = f"{name}.dropout.p"
        rows += [call(name, 0.1, shape, rate, "dropout" if eager else "attention")]
        rows += [layer(f"{at}.attention.output.dropout", 0.1, (2, 8, 16))]
        rows += [layer(f"{at}.output.dropout", 0.1, (2, 8, 16))]
    return rows


def gpt2():
    rows = [layer("transformer.drop", 0.1, (2, 8, 16))]
    for i in range(2):
        at = f"transformer.h.{i}"
        rows += [attention(f"{at}.attn", 0.1, (2, 2, 8, 8), "attn_dropout.p")]
        rows += [layer(f"{at}.attn.resid_dropout", 0.1, (2, 8, 16))]
        rows += [layer(f"{at}.mlp.dropout", 0.1, (2, 8, 16))]
    return rows


def llama(p=0.0):
    return [
        attention(f"model.layers.{i}.self_attn", p, (2, 2, 8, 8), "attention_dropout")
        for i in range(2)
    ]


def t5():
    rows = []
    for stack, length, feed in [("encoder", 8, 1), ("decoder", 5, 2)]:
        rows += [layer(f"{stack}.dropout", 0.1, (2, length, 16), calls=2)]  # before and after
        for i in range(2):
            at, shape = f"{stack}.block.{i}.layer", (2, length, 16)
            rows += [attention(f"{at}.0.SelfAttention", 0.1, (2, 2, length, length))]
            rows += [layer(f"{at}.0.dropout", 0.1, shape)]
            if stack == "decoder":
                rows += [attention(f"{at}.1.EncDecAttention", 0.1, (2, 2, 5, 8))]
                rows += [layer(f"{at}.1.dropout", 0.1, shape)]
            rows += [layer(f"{at}.{feed}.DenseReluDense.dropout", 0.1, (2, length, 32))]
            rows += [layer(f"{at}.{feed}.dropout", 0.1, shape)]
    return rows


def bart(attn=0.0, activation=0.0, drops=(0.0, 0.0)):
    rows = []
    for stack, length, drop in [("encoder", 8, drops[0]), ("decoder", 5, drops[1])]:
        shape = (2, length, 16)
        rows += [call(stack, 0.1, shape, f"{stack}.dropout")]
        if drop:
            rows += [Row(stack, "mask", "layer_drop", drop, None, f"{stack}.layerdrop", 2)]
        for i in range(2):
            at = f"{stack}.layers.{i}"
            rows += [attention(f"{at}.self_attn", attn, (2, 2, length, length))]
            rows += [call(at, 0.1, shape, f"{at}.dropout")]
            if stack == "decoder":
                rows += [attention(f"{at}.encoder_attn", attn, (2, 2, 5, 8))]
                rows += [call(at, 0.1, shape, f"{at}.dropout")]
            rows += [call(at, activation, (2, length, 32), f"{at}.activation_dropout")]
            rows += [call(at, 0.1, shape, f"{at}.dropout")]
    return rows


def wav2vec2(attn=0.1, activation=0.1, projection=0.0, drop=0.1, augment=False):
    # 400 samples make 39 frames: (400 - 10) // 5 + 1 = 79, then (79 - 3) // 2 + 1.
    rows = [layer("feature_projection.dropout", projection, (2, 39, 16))]
    rows += [layer("encoder.dropout", 0.1, (2, 39, 16))]
    rows += [Row("encoder", "mask", "layer_drop", drop, None, "encoder.config.layerdrop", 2)]
    for i in range(2):
        at = f"encoder.layers.{i}"
        rows += [attention(f"{at}.attention", attn, (2, 2, 39, 39))]
        rows += [layer(f"{at}.dropout", 0.1, (2, 39, 16))]
        rows += [layer(f"{at}.feed_forward.intermediate_dropout", activation, (2, 39, 32))]
        rows += [layer(f"{at}.feed_forward.output_dropout", 0.1, (2, 39, 16))]
    if augment:  # SpecAugment draws from numpy.random
        rows += [Row("", "mask", "outside", None, None, None)]
    return rows


def hf_vit(hidden=0.0, attn=0.0):
    rows = [layer("embeddings.dropout", hidden, (2, 17, 16))]
    for i in range(2):
        at = f"layers.{i}"
        rows += [attention(f"{at}.attention", attn, (2, 2, 17, 17), "attention_dropout")]
        rows += [layer(f"{at}.dropout", hidden, (2, 17, 16), calls=2)]
    return rows


# torch_geometric


def gat(edges):
    hidden = layer("dropout", 0.4, (12, 16))
    convs = [call(f"convs.{i}", 0.4, (edges, 2), f"convs.{i}.dropout") for i in range(2)]
    return [convs[0], hidden, convs[1]]  # after the last layer there is none


def gcn():
    return [layer("dropout", 0.4, (12, 16))]


def edge_dropper():
    # One bit for an edge, that is for both of its ends. Its rate is a literal.
    return [Row("", "mask", "subset", 0.25, (2, 40), None, 1, (0,))]


TABLES = {
    "torch-transformer": torch_transformer(),
    "torch-encoder": torch_encoder(),
    "torch-encoder-norm-first": torch_encoder(),
    "torch-lstm": torch_lstm(),
    "timm-vit": vit(),
    "timm-vit-drop": vit(p=0.3, pos=0.05, patch=0.25, proj=0.1, attn=0.2, path=0.2),
    "timm-convnext": convnext(),
    "timm-convnext-drop": convnext(p=0.3, path=0.2),
    "timm-swin": swin(),
    "timm-swin-drop": swin(p=0.3, proj=0.1, attn=0.2, path=0.3),
    "timm-efficientnet": efficientnet(),
    "timm-efficientnet-drop": efficientnet(p=0.3, path=0.2),
    "timm-mixer": mixer(),
    "timm-mixer-drop": mixer(p=0.3, proj=0.1, path=0.2),
    "hf-bert": bert(),
    "hf-bert-eager": bert(eager=True),
    "hf-gpt2": gpt2(),
    "hf-llama": llama(),
    "hf-llama-drop": llama(0.1),
    "hf-t5": t5(),
    "hf-bart": bart(attn=0.2, activation=0.3),
    "hf-bart-same": bart(activation=0.1),
    "hf-bart-layerdrop": bart(drops=(0.2, 0.3)),
    "hf-wav2vec2": wav2vec2(),
    "hf-wav2vec2-augment": wav2vec2(augment=True),
    "hf-wav2vec2-drop": wav2vec2(attn=0.15, activation=0.25, projection=0.05, drop=0.3),
    "hf-vit": hf_vit(),
    "hf-vit-drop": hf_vit(hidden=0.2, attn=0.1),
    "pyg-gat": gat(edges=50),
    "pyg-gcn": gcn(),
    "pyg-dropout-edge": edge_dropper(),
}
FAST = {
    "torch-transformer": [
        *(f"encoder.layers.{i}" for i in range(2)),
        *(f"decoder.layers.{i}.self_attn" for i in range(2)),
    ],
    "torch-encoder": ["layers.0", "layers.1"],
    "torch-encoder-norm-first": ["layers.0", "layers.1"],
}
"""The modules that take torch's fast path in evaluation."""
