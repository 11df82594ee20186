"""Models of installed packages, small and with random weights; and what their imports need."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

_OPS = ("torchvision::nms", "torchvision::qnms")

Built = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


def has(package: str) -> bool:
    """Return whether a package is installed, without importing it."""
    return importlib.util.find_spec(package) is not None


def define_torchvision_ops() -> None:
    """Define the two operators that torchvision's import asks for; the CPU build lacks them."""
    for name in _OPS:
        namespace, op = name.split("::")
        if not hasattr(getattr(torch.ops, namespace), op):
            torch.library.define(
                name, "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )


if has("torchvision"):
    define_torchvision_ops()


def package(name: str) -> str:
    """Return the package that a model of :data:`MODELS` is from: ``timm`` for ``timm-vit``."""
    return {"hf": "transformers", "pyg": "torch_geometric"}.get(first := name.split("-")[0], first)


def build(name: str, *, large: bool = False) -> Built:
    """Return a model of :data:`MODELS` or :data:`LARGE` with its inputs, the same at each call."""
    state = torch.get_rng_state()
    torch.manual_seed(5)
    try:
        return (LARGE if large else MODELS)[name]()
    finally:
        torch.set_rng_state(state)


# torch


def _transformer() -> Built:
    model = nn.Transformer(16, 2, 2, 2, 32, dropout=0.1, batch_first=True)
    return model, (torch.randn(2, 6, 16), torch.randn(2, 5, 16)), {}


def _encoder(**more: Any) -> Built:
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True, **more)
    return nn.TransformerEncoder(layer, 2), (torch.randn(2, 6, 16),), {}


def _encoder_slow() -> Built:
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), (torch.randn(2, 6, 16),), {}


def _lstm() -> Built:
    return nn.LSTM(8, 16, num_layers=2, dropout=0.3, batch_first=True), (torch.randn(4, 5, 8),), {}


# timm


def _timm(name: str, size: int, **options: Any) -> Callable[[], Built]:
    def make() -> Built:
        import timm

        model = timm.create_model(name, num_classes=3, **options)
        return model, (torch.randn(2, 3, size, size),), {}

    return make


_VIT: dict[str, Any] = {"img_size": 32, "embed_dim": 24, "num_heads": 2, "depth": 3}
_CONVNEXT: dict[str, Any] = {"depths": (1, 2, 1, 1), "dims": (8, 8, 16, 16)}
_SWIN: dict[str, Any] = {
    **{"img_size": 32, "window_size": 4, "embed_dim": 12, "depths": (2, 2)},
    "num_heads": (1, 2),
}


def _mixer(**more: Any) -> Built:
    from timm.models.mlp_mixer import MlpMixer

    model = MlpMixer(3, img_size=32, patch_size=16, num_blocks=3, embed_dim=24, **more)
    nn.init.normal_(model.get_parameter("head.weight"))  # timm starts with zeros there
    return model, (torch.randn(2, 3, 32, 32),), {}


# transformers


def _ids(length: int = 8) -> Tensor:
    return torch.randint(3, 40, (2, length))


def _bert(**more: Any) -> Built:
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        **more,
    )
    return BertModel(config), (), {"input_ids": _ids()}


def _gpt2() -> Built:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=40,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_positions=16,
        bos_token_id=1,
        eos_token_id=2,
    )
    return GPT2LMHeadModel(config), (), {"input_ids": _ids()}


def _llama(**more: Any) -> Built:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=32,
        max_position_embeddings=16,
        **more,
    )
    return LlamaForCausalLM(config), (), {"input_ids": _ids()}


def _t5() -> Built:
    from transformers import T5Config, T5Model

    config = T5Config(
        vocab_size=40,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=0,
    )
    return T5Model(config), (), {"input_ids": _ids(), "decoder_input_ids": _ids(5)}


def _bart(**more: Any) -> Built:
    from transformers import BartConfig, BartModel

    config = BartConfig(
        vocab_size=40,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_position_embeddings=16,
        **more,
    )
    return BartModel(config), (), {"input_ids": _ids(), "decoder_input_ids": _ids(5)}


def _wav2vec2(**more: Any) -> Built:
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    config = Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8, 8),
        conv_stride=(5, 2),
        conv_kernel=(10, 3),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        **{"apply_spec_augment": False, **more},
    )
    return Wav2Vec2Model(config), (torch.randn(2, 400),), {}


def _hf_vit(**more: Any) -> Built:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=4,
        **more,
    )
    return ViTModel(config), (torch.randn(2, 3, 16, 16),), {}


# torch_geometric


def _edges() -> Tensor:
    return torch.randint(0, 12, (2, 40))


def _gnn(name: str, **more: Any) -> Built:
    from torch_geometric.nn import models

    return getattr(models, name)(8, 16, num_layers=2, **more), (torch.randn(12, 8), _edges()), {}


class EdgeDropper(nn.Module):
    """A graph network that drops edges by torch_geometric's function."""

    def __init__(self) -> None:
        from torch_geometric.nn import GCNConv

        super().__init__()
        self.conv = GCNConv(8, 8)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        from torch_geometric.utils import dropout_edge

        edges, _ = dropout_edge(edges, p=0.25, training=self.training)
        return self.conv(x, edges)


def _edge_dropper() -> Built:
    return EdgeDropper(), (torch.randn(12, 8), _edges()), {}


MODELS: dict[str, Callable[[], Built]] = {
    "torch-transformer": _transformer,
    "torch-encoder": _encoder,
    "torch-encoder-norm-first": _encoder_slow,
    "torch-lstm": _lstm,
    "timm-vit": _timm("vit_tiny_patch16_224", 32, **_VIT),
    "timm-vit-drop": _timm(
        "vit_tiny_patch16_224",
        32,
        **_VIT,
        drop_rate=0.3,
        pos_drop_rate=0.05,
        patch_drop_rate=0.25,
        proj_drop_rate=0.1,
        attn_drop_rate=0.2,
        drop_path_rate=0.2,
    ),
    "timm-convnext": _timm("convnext_atto", 32, **_CONVNEXT),
    "timm-convnext-drop": _timm(
        "convnext_atto", 32, **_CONVNEXT, drop_rate=0.3, drop_path_rate=0.2
    ),
    "timm-swin": _timm("swin_tiny_patch4_window7_224", 32, **_SWIN),
    "timm-swin-drop": _timm(
        "swin_tiny_patch4_window7_224",
        32,
        **_SWIN,
        drop_rate=0.3,
        proj_drop_rate=0.1,
        attn_drop_rate=0.2,
        drop_path_rate=0.3,
    ),
    "timm-efficientnet": _timm("efficientnet_b0", 32),
    "timm-efficientnet-drop": _timm("efficientnet_b0", 32, drop_rate=0.3, drop_path_rate=0.2),
    "timm-mixer": _mixer,
    "timm-mixer-drop": lambda: _mixer(drop_rate=0.3, proj_drop_rate=0.1, drop_path_rate=0.2),
    "hf-bert": _bert,
    "hf-bert-eager": lambda: _bert(attn_implementation="eager"),
    "hf-gpt2": _gpt2,
    "hf-llama": _llama,
    "hf-llama-drop": lambda: _llama(attention_dropout=0.1),
    "hf-t5": _t5,
    "hf-bart": lambda: _bart(attention_dropout=0.2, activation_dropout=0.3),
    "hf-bart-same": lambda: _bart(activation_dropout=0.1),
    "hf-bart-layerdrop": lambda: _bart(encoder_layerdrop=0.2, decoder_layerdrop=0.3),
    "hf-wav2vec2": _wav2vec2,
    "hf-wav2vec2-augment": lambda: _wav2vec2(apply_spec_augment=True, mask_time_prob=0.3),
    "hf-wav2vec2-drop": lambda: _wav2vec2(
        attention_dropout=0.15, activation_dropout=0.25, feat_proj_dropout=0.05, layerdrop=0.3
    ),
    "hf-vit": _hf_vit,
    "hf-vit-drop": lambda: _hf_vit(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.1),
    "pyg-gat": lambda: _gnn("GAT", heads=2, dropout=0.4),
    "pyg-gcn": lambda: _gnn("GCN", dropout=0.4),
    "pyg-dropout-edge": _edge_dropper,
}
"""By name, a function that makes a model, its inputs and its keywords; :func:`build` calls it."""


# Of the sizes that people train, though not of many layers: for what depends on time.


def _words(vocabulary: int = 1000, length: int = 128) -> Tensor:
    return torch.randint(3, vocabulary, (2, length))


def _large_text(name: str, model: str, **options: Any) -> Callable[[], Built]:
    def make() -> Built:
        import transformers

        made = getattr(transformers, f"{name}Config")(vocab_size=1000, **options)
        inputs = {"input_ids": _words()}
        if name in ("T5", "Bart"):
            inputs["decoder_input_ids"] = _words(length=64)
        return getattr(transformers, model)(made), (), inputs

    return make


def _large_wav2vec2() -> Built:
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    config = Wav2Vec2Config(
        hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024
    )
    return Wav2Vec2Model(config), (torch.randn(2, 16_000),), {}


def _large_vit() -> Built:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=192, num_hidden_layers=12, num_attention_heads=3, intermediate_size=768
    )
    return ViTModel(config), (torch.randn(2, 3, 224, 224),), {}


def _large_gat() -> Built:
    from torch_geometric.nn.models import GAT

    nodes, edges = torch.randn(2000, 128), torch.randint(0, 2000, (2, 16_000))
    return GAT(128, 128, num_layers=3, heads=4, dropout=0.5), (nodes, edges), {}


def _large_transformer() -> Built:
    model = nn.Transformer(256, 4, 4, 4, 1024, dropout=0.1, batch_first=True)
    return model, (torch.randn(2, 128, 256), torch.randn(2, 64, 256)), {}


def _large_encoder() -> Built:
    layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.1, batch_first=True)
    return nn.TransformerEncoder(layer, 4), (torch.randn(2, 128, 256),), {}


def _large_lstm() -> Built:
    return nn.LSTM(128, 256, num_layers=2, dropout=0.3), (torch.randn(64, 8, 128),), {}


_ENDS = {"bos_token_id": 1, "eos_token_id": 2}
_BERT = {
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
}
LARGE: dict[str, Callable[[], Built]] = {
    "torch-transformer": _large_transformer,
    "torch-encoder": _large_encoder,
    "torch-lstm": _large_lstm,
    "timm-vit": _timm("vit_tiny_patch16_224", 224, drop_path_rate=0.1),
    "timm-convnext": _timm("convnext_atto", 224, drop_path_rate=0.1),
    "timm-swin": _timm("swin_tiny_patch4_window7_224", 224),
    "timm-efficientnet": _timm("efficientnet_b0", 224, drop_rate=0.2, drop_path_rate=0.2),
    "timm-mixer": _timm("mixer_s32_224", 224, proj_drop_rate=0.1),
    "hf-bert": _large_text("Bert", "BertModel", **_BERT),
    "hf-gpt2": _large_text("GPT2", "GPT2LMHeadModel", n_embd=256, n_layer=4, n_head=4, **_ENDS),
    "hf-llama": _large_text("Llama", "LlamaForCausalLM", attention_dropout=0.1, **_BERT),
    "hf-t5": _large_text(
        "T5", "T5Model", d_model=256, d_kv=64, d_ff=1024, num_layers=4, num_heads=4
    ),
    "hf-bart": _large_text("Bart", "BartModel", d_model=256, encoder_layers=4, decoder_layers=4),
    "hf-wav2vec2": _large_wav2vec2,
    "hf-vit": _large_vit,
    "pyg-gat": _large_gat,
}
"""Larger ones, as :data:`MODELS`."""
