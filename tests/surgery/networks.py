"""Networks that surgery is tried on: of torch, timm, torchvision and Hugging Face, no downloads."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import nn

from zoo import has


class Calls(nn.Module):
    """Drops in every way that is no layer, and in one that is."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.drop = nn.Dropout(0.5)
        self.rate = 0.25

    def forward(self, x):
        x = F.dropout(self.drop(self.fc(x)), self.rate, self.training)
        return torch.dropout(x, 0.5, self.training)


class Shared(nn.Module):
    """One layer under three names, a list, and an order that matters."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.drop = nn.Dropout(0.3)
        self.body = nn.Sequential(nn.Linear(8, 8), self.drop, nn.ReLU())
        self.heads = nn.ModuleList([self.drop, nn.Dropout(0.1)])
        self.last = nn.Linear(8, 8)

    def forward(self, x):
        x = self.body(self.drop(self.first(x)))
        return self.last(self.heads[1](self.heads[0](x)))


class Trunk(nn.Module):
    """Makes a call in its forward."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return F.dropout(self.fc(x), 0.5, self.training)


class Agent(nn.Module):
    """Calls its parts beside its forward too, as a training step does."""

    def __init__(self):
        super().__init__()
        self.trunk = Trunk()
        self.head = nn.Sequential(nn.Linear(8, 8), Trunk())

    def forward(self, x):
        return self.head(self.trunk(x))

    def act(self, x):
        return self.head(self.trunk(x))


def _shared():
    return Shared(), lambda: (torch.randn(3, 8),)


def _encoder():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 2)
    mask = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 0, 1, 1]]).bool()
    return model, lambda: {"src": torch.randn(2, 5, 16), "src_key_padding_mask": mask}


def _transformer():
    model = nn.Transformer(16, 2, 1, 1, 32, batch_first=True)
    return model, lambda: (torch.randn(2, 5, 16), torch.randn(2, 4, 16))


def _recurrent():
    model = nn.Sequential(nn.Dropout(0.2), nn.LSTM(4, 4, 2, dropout=0.1))
    return model, lambda: (torch.randn(3, 2, 4),)


def _timm(name, size=32, **options):
    def make():
        import timm

        model = timm.create_model(name, num_classes=3, **options)
        return model, lambda: (torch.randn(2, 3, size, size),)

    return make


def _vision(name, **options):
    def make():
        import torchvision

        model = getattr(torchvision.models, name)(num_classes=3, **options)
        return model, lambda: (torch.randn(2, 3, 32, 32),)

    return make


def _face(kind, inputs, **options):
    def make():
        import transformers

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = getattr(transformers, f"{kind}Config")(**options)
            model = getattr(transformers, f"{kind}Model")(config)
        return model, inputs

    return make


def _tokens():
    return {"input_ids": torch.randint(50, (2, 6))}


def _both_tokens():
    return {**_tokens(), "decoder_input_ids": torch.randint(50, (2, 5))}


def _pixels():
    return {"pixel_values": torch.randn(2, 3, 32, 32)}


_SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
_SMALL |= {"intermediate_size": 32, "vocab_size": 50}
_T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 50}
_W2V = {
    "conv_dim": (8, 8),
    "conv_kernel": (3, 3),
    "conv_stride": (2, 2),
    "apply_spec_augment": False,
}
_W2V |= {"num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4}
_W2V |= {"num_conv_pos_embedding_groups": 2}
_SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2]}
_SWIN |= {"window_size": 4}

MAKERS = {
    "Shared": _shared,
    "nn.TransformerEncoder": _encoder,
    "nn.Transformer": _transformer,
    "nn.LSTM": _recurrent,
}
if has("timm"):
    MAKERS |= {
        "timm ViT": _timm(
            "vit_tiny_patch16_224",
            img_size=32,
            drop_rate=0.1,
            drop_path_rate=0.1,
            proj_drop_rate=0.1,
            attn_drop_rate=0.1,
            patch_drop_rate=0.1,
        ),
        "timm ConvNeXt": _timm("convnext_atto", drop_path_rate=0.1, drop_rate=0.1),
        "timm Swin": _timm(
            "swin_tiny_patch4_window7_224", 56, img_size=56, drop_path_rate=0.1, drop_rate=0.1
        ),
        "timm EfficientNet": _timm("efficientnet_b0", drop_path_rate=0.1, drop_rate=0.1),
        "timm Mixer": _timm("mixer_s32_224", img_size=32, drop_rate=0.1, drop_path_rate=0.1),
    }
if has("torchvision"):
    MAKERS |= {
        "torchvision ConvNeXt": _vision("convnext_tiny"),
    }
if has("transformers"):
    MAKERS |= {
        "BERT": _face("Bert", _tokens, **_SMALL),
        "GPT-2": _face(
            "GPT2",
            _tokens,
            n_embd=16,
            n_layer=2,
            n_head=2,
            vocab_size=50,
            bos_token_id=1,
            eos_token_id=1,
        ),
        "T5": _face("T5", _both_tokens, **_T5),
        "Wav2Vec2": _face("Wav2Vec2", lambda: (torch.randn(2, 400),), **_SMALL, **_W2V),
        "HF ViT": _face("ViT", _pixels, **{**_SMALL, "image_size": 32, "patch_size": 8}),
        "HF Swin": _face("Swin", _pixels, **_SWIN),
    }


def make(name):
    """Return a model in evaluation mode, and a function that calls it on fixed inputs."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, inputs = MAKERS[name]()
    given = inputs()

    def call():
        with torch.no_grad(), warnings.catch_warnings():
            # The fast path of torch says that nested tensors are a prototype.
            warnings.simplefilter("ignore")
            out = model(**given) if isinstance(given, dict) else model(*given)
        return tensors(out)

    return model.eval(), call


def tensors(out):
    """Return the tensors of an output, however it is packed."""
    if isinstance(out, torch.Tensor):
        return [out]
    items = out.values() if isinstance(out, dict) else out if isinstance(out, (tuple, list)) else []
    return [tensor for item in items for tensor in tensors(item)]


def same(one, other):
    return len(one) == len(other) and all(map(torch.equal, one, other))


def tree(model):
    """Return all that surgery must give back: names, modules, tensors, hooks, rates, modes."""
    found = []
    for name, module in model.named_modules(remove_duplicate=False):
        own = {
            key: (list(value.items()) if isinstance(value, dict) else value)
            for key, value in vars(module).items()
        }
        found.append((name, module, own))
    return found


def same_tree(one, other):
    """Compare by identity, so that equal copies do not pass."""
    return len(one) == len(other) and all(
        a[0] == b[0] and a[1] is b[1] and a[2].keys() == b[2].keys() and _alike(a[2], b[2])
        for a, b in zip(one, other, strict=True)
    )


def _alike(mine, theirs):
    return all(_is_same(mine[key], theirs[key]) for key in mine)


def _is_same(a, b):
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(
            _is_same(x, y) if not isinstance(x, tuple) else x[0] == y[0] and x[1] is y[1]
            for x, y in zip(a, b, strict=True)
        )
    if isinstance(a, (int, float)):
        return type(a) is type(b) and a == b
    return a is b or (isinstance(a, (str, tuple, set, dict)) and a == b)
