"""Writes weight files of Vision Transformers in other projects' formats, from timm's state dicts.

Each writer has a counterpart that reads the file with timm, which proves that the file has the
project's format.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

Arrays = dict[str, np.ndarray]


def arrays(module: Any) -> Arrays:
    """A state dict as NumPy arrays."""
    return {n: t.detach().numpy() for n, t in module.state_dict().items()}


def hub(module: Any, folder: Path) -> Path:
    """Writes a model with transformers, as on the hub."""
    module.save_pretrained(folder)
    return folder / "model.safetensors"


def from_hub(*dropped: str):
    """Loads a file with transformers; tensors with one of the words in the name are optional."""

    def restore(module: Any, path: Path) -> None:
        folder = path.parent / "restored"
        module.config.save_pretrained(folder)
        save_file(load_file(path), folder / "model.safetensors", {"format": "pt"})
        loaded, info = type(module).from_pretrained(folder, output_loading_info=True)
        missing = set(info["missing_keys"])
        assert not info["unexpected_keys"] and not info["mismatched_keys"], info
        assert all(any(word in name for word in dropped) for name in missing), missing
        before = module.state_dict()
        fresh = {n: before[n] for n in missing}
        module.load_state_dict({**loaded.state_dict(), **fresh}, strict=True)

    return restore


def openai(module: Any, folder: Path) -> Path:
    """OpenAI's CLIP with only some tensors of its text tower."""
    tensors = {}
    for name, tensor in module.state_dict().items():
        name = name.replace("patch_embed.proj", "conv1").replace("cls_token", "class_embedding")
        name = name.replace("pos_embed", "positional_embedding").replace("norm_pre", "ln_pre")
        name = name.replace("attn.qkv.", "attn.in_proj_").replace("attn.proj", "attn.out_proj")
        name = name.replace("fc1", "c_fc").replace("fc2", "c_proj")
        if name.startswith("blocks."):
            name = name.replace("norm", "ln_").replace("blocks.", "transformer.resblocks.")
        name = name.replace("norm.", "ln_post.")
        if name == "class_embedding":
            tensor = tensor[0, 0]
        elif name == "positional_embedding":
            tensor = tensor[0]
        elif name == "head.weight":
            name, tensor = "proj", tensor.T
        elif name == "head.bias":
            assert not tensor.any()
            continue
        tensors[f"visual.{name}"] = tensor.contiguous().clone()
    tensors["logit_scale"], tensors["text_projection"] = torch.ones(()), torch.ones(3, 5)
    tensors["positional_embedding"], tensors["ln_final.weight"] = torch.ones(4, 3), torch.ones(3)
    tensors["token_embedding.weight"] = torch.ones(9, 3)
    tensors["transformer.resblocks.0.ln_1.weight"] = torch.ones(3)
    path = folder / "clip.safetensors"
    save_file(tensors, path)
    from_openai(module, path)
    return path


def from_openai(module: Any, path: Path) -> None:
    from timm.models.vision_transformer import _convert_openai_clip

    module.load_state_dict(_convert_openai_clip(load_file(path), module), strict=True)


def facebook(module: Any, folder: Path) -> Path:
    """facebookresearch/dinov2; with registers, `module.folded` is the class token's position."""
    state = {n: t.clone() for n, t in module.state_dict().items()}
    state["mask_token"] = torch.ones(1, state["cls_token"].shape[-1])
    if "reg_token" in state:
        state["register_tokens"] = state.pop("reg_token")
        token, position = module.folded
        state["cls_token"] = token.clone()
        state["pos_embed"] = torch.cat([position, state["pos_embed"]], 1)
    for name in [n for n in state if ".mlp." in n and module.giant]:
        state[name.replace("fc1", "w12").replace("fc2", "w3")] = state.pop(name)
    path = folder / "dinov2.safetensors"
    save_file({n: t.contiguous() for n, t in state.items()}, path)
    from_facebook(module, path)
    return path


def from_facebook(module: Any, path: Path) -> None:
    from timm.models.vision_transformer import _convert_dinov2

    module.load_state_dict(_convert_dinov2(load_file(path), module), strict=True)


def _attention(source: Mapping[str, np.ndarray], heads: int) -> Arrays:
    """MultiHeadDotProductAttention of ``{query, key, value, out}`` weights and biases of torch."""
    written = {}
    for name in ("query", "key", "value"):
        weight = source[f"{name}.weight"]
        written[f"{name}/kernel"] = weight.T.reshape(weight.shape[1], heads, -1)
        written[f"{name}/bias"] = source[f"{name}.bias"].reshape(heads, -1)
    out = source["out.weight"].T
    written["out/kernel"] = out.reshape(heads, -1, out.shape[1])
    written["out/bias"] = source["out.bias"]
    return written


def _jax_vit(module: Any, prefix: str, big_vision: bool) -> Arrays:
    """google-research/vision_transformer's names, or big_vision's."""
    state = arrays(module)
    heads = module.blocks[0].attn.num_heads
    written: Arrays = {}

    def layer(theirs: str, name: str) -> None:
        weight = state[f"{name}.weight"]
        axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[weight.ndim]
        leaf = "scale" if weight.ndim == 1 else "kernel"
        written[f"{prefix}{theirs}/{leaf}"] = weight.transpose(axes)
        written[f"{prefix}{theirs}/bias"] = state[f"{name}.bias"]

    def attention(theirs: str, source: Mapping[str, np.ndarray]) -> None:
        for name, array in _attention(source, heads).items():
            written[f"{prefix}{theirs}/{name}"] = array

    def mlp(theirs: str, name: str) -> None:
        layer(f"{theirs}/Dense_0", f"{name}.fc1")
        layer(f"{theirs}/Dense_1", f"{name}.fc2")

    layer("embedding", "patch_embed.proj")
    layer("Transformer/encoder_norm", "norm")
    if "head.weight" in state:
        layer("head", "head")
    if "cls_token" in state:
        written[f"{prefix}cls"] = state["cls_token"]
    where = "pos_embedding" if big_vision else "Transformer/posembed_input/pos_embedding"
    written[f"{prefix}{where}"] = state["pos_embed"]
    numbers = (0, 1, 0) if big_vision else (1, 2, 3)
    for i in range(len(module.blocks)):
        block, theirs = f"blocks.{i}", f"Transformer/encoderblock_{i}"
        layer(f"{theirs}/LayerNorm_0", f"{block}.norm1")
        layer(f"{theirs}/LayerNorm_{numbers[1]}", f"{block}.norm2")
        parts = {
            f"{name}.{kind}": part
            for kind in ("weight", "bias")
            for name, part in zip(
                ("query", "key", "value"),
                np.split(state[f"{block}.attn.qkv.{kind}"], 3),
                strict=True,
            )
        }
        parts |= {f"out.{kind}": state[f"{block}.attn.proj.{kind}"] for kind in ("weight", "bias")}
        attention(f"{theirs}/MultiHeadDotProductAttention_{numbers[0]}", parts)
        mlp(f"{theirs}/MlpBlock_{numbers[2]}", f"{block}.mlp")
    if "attn_pool.latent" in state:
        written[f"{prefix}MAPHead_0/probe"] = state["attn_pool.latent"]
        parts = {}
        for kind in ("weight", "bias"):
            parts[f"query.{kind}"] = state[f"attn_pool.q.{kind}"]
            both = np.split(state[f"attn_pool.kv.{kind}"], 2)
            parts[f"key.{kind}"], parts[f"value.{kind}"] = both
            parts[f"out.{kind}"] = state[f"attn_pool.proj.{kind}"]
        attention("MAPHead_0/MultiHeadDotProductAttention_0", parts)
        layer("MAPHead_0/LayerNorm_0", "attn_pool.norm")
        mlp("MAPHead_0/MlpBlock_0", "attn_pool.mlp")
    return written


def _scanned(written: Arrays) -> Arrays:
    """Stacks all layers in one tensor, as `nn.scan` does."""
    stacks: dict[str, dict[int, np.ndarray]] = {}
    for name in [n for n in written if "/encoderblock_" in n]:
        before, after = name.split("/encoderblock_")
        number, rest = after.split("/", 1)
        stacks.setdefault(f"{before}/encoderblock/{rest}", {})[int(number)] = written.pop(name)
    return written | {n: np.stack([s[i] for i in range(len(s))]) for n, s in stacks.items()}


def npz(prefix: str = "", big_vision: bool = False, scanned: bool = False, **beside: np.ndarray):
    """A writer of one kind of npz; `beside` are arrays of another tower."""

    def save(module: Any, folder: Path) -> Path:
        path = folder / "weights.npz"
        others = {name.replace("__", "/"): array for name, array in beside.items()}
        written = _jax_vit(module, prefix, big_vision)
        np.savez(path, **(_scanned(written) if scanned else written), **others)
        before = {n: t.clone() for n, t in module.state_dict().items()}
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.zero_()
        module.load_pretrained(str(path))
        for name, tensor in module.state_dict().items():
            assert torch.equal(before[name], tensor), name
        return path

    return save


def from_npz(module: Any, path: Path) -> None:
    """Reads the tensors of our export with timm's reader of npz files."""
    written = path.with_suffix(".npz")
    np.savez(written, **{n: t.numpy() for n, t in load_file(path).items()})
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    module.load_pretrained(str(written))
