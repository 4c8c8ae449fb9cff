"""Original checkpoints small enough for tests: the real layout and vocabulary, other widths, weights from a formula.

Needs numpy, torch, safetensors and tokenizers alone, so that the originals' environment can write the same files
(`make_goldens.py`).
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

IMAGE_SIZE, PATCH = 28, 14
VOCABULARY, ROWS = 32000, 32064
LLAMA = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
DINOV2 = {"embed_dim": 24, "depth": 4, "num_heads": 2, "mlp_ratio": 2}
SIGLIP = {"embed_dim": 32, "depth": 3, "num_heads": 4, "mlp_ratio": 3}
MEANS = {"dinov2": (0.484375, 0.455078125, 0.40625), "siglip": (0.5, 0.5, 0.5)}
STDS = {"dinov2": (0.228515625, 0.2236328125, 0.224609375), "siglip": (0.5, 0.5, 0.5)}
KINDS = {"dinosiglip-vit-so-224px": ("dinov2", "siglip"), "siglip-vit-so400m": ("siglip",), "dinov2-vit-l": ("dinov2",)}
INSTRUCTION = "Put the bowl on the plate"
PROMPT = "In : What action should the robot take to put the bowl on the plate ? Out :"
ACTION_DIM, PROPRIO_DIM = 7, 8


@dataclass(frozen=True)
class Case:
    """Which checkpoint, and which original code goes with it."""

    backbone: str
    oft: bool
    images: int = 1
    proprio: bool = False
    l1: bool = False


CASES = {
    "openvla_fused": Case("dinosiglip-vit-so-224px", oft=False),
    "openvla_siglip": Case("siglip-vit-so400m", oft=False),
    "openvla_dinov2": Case("dinov2-vit-l", oft=False),
    "oft_tokens": Case("dinosiglip-vit-so-224px", oft=True),
    "oft_tokens_proprio": Case("dinosiglip-vit-so-224px", oft=True, images=2, proprio=True),
    "oft_tokens_siglip": Case("siglip-vit-so400m", oft=True, proprio=True),
    "oft_l1": Case("dinosiglip-vit-so-224px", oft=True, images=2, proprio=True, l1=True),
    "oft_l1_one_image": Case("dinosiglip-vit-so-224px", oft=True, l1=True),
}


def values(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """The weights of a tensor: normal, seeded by its name, with a spread that lets every input matter."""
    draw = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    last = name.rsplit(".", 1)[-1]
    if last == "weight" and len(shape) == 1 or last == "scale_factor":
        draw = 1 + 0.2 * draw
    elif len(shape) == 2 and "embed" not in name:
        draw = draw * 1.5 / np.sqrt(shape[1])
        if "lm_head" in name:
            # Action tokens win over text, so that the originals, which choose among all, choose as we do.
            draw[VOCABULARY - 256 : VOCABULARY] *= 6
    else:
        draw = 0.3 * draw
    return torch.from_numpy(draw.astype(np.float32))


def tensors(case: Case) -> dict[str, torch.Tensor]:
    """Every tensor that the original code stores, under its name."""
    shapes: dict[str, tuple[int, ...]] = {}
    kinds = KINDS[case.backbone]
    for name, kind in zip(("featurizer", "fused_featurizer"), kinds):  # noqa: B905
        shapes |= {f"vision_backbone.{name}.{key}": shape for key, shape in _featurizer(kind).items()}
    vision, width = sum(_size(kind)["embed_dim"] for kind in kinds), LLAMA["hidden_size"]
    widths = [vision, 4 * vision, width, width] if len(kinds) == 2 else [vision, width, width]
    for i, (before, after) in enumerate(zip(widths[:-1], widths[1:])):  # noqa: B905
        shapes |= _linear(f"projector.fc{i + 1}", before, after)
    shapes["language_model.model.embed_tokens.weight"] = (ROWS, width)
    for i in range(LLAMA["num_hidden_layers"]):
        layer = f"language_model.model.layers.{i}."
        shapes |= {f"{layer}self_attn.{p}_proj.weight": (width, width) for p in "qkvo"}
        for p in ("gate", "up"):
            shapes[f"{layer}mlp.{p}_proj.weight"] = (LLAMA["intermediate_size"], width)
        shapes[f"{layer}mlp.down_proj.weight"] = (width, LLAMA["intermediate_size"])
        shapes |= {f"{layer}{p}_layernorm.weight": (width,) for p in ("input", "post_attention")}
    shapes |= {"language_model.model.norm.weight": (width,), "language_model.lm_head.weight": (ROWS, width)}
    return {name: values(name, shape) for name, shape in shapes.items()}


def _size(kind: str) -> dict[str, int]:
    return DINOV2 if kind == "dinov2" else SIGLIP


def _linear(name: str, before: int, after: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (after, before), f"{name}.bias": (after,)}


def _featurizer(kind: str) -> dict[str, tuple[int, ...]]:
    size = _size(kind)
    width, hidden = size["embed_dim"], size["embed_dim"] * size["mlp_ratio"]
    shapes: dict[str, tuple[int, ...]] = {"pos_embed": (1, (IMAGE_SIZE // PATCH) ** 2, width)}
    shapes |= {"patch_embed.proj.weight": (width, 3, PATCH, PATCH), "patch_embed.proj.bias": (width,)}
    norms = ["norm"]
    if kind == "dinov2":
        shapes |= {"cls_token": (1, 1, width), "reg_token": (1, 4, width)}
    else:
        shapes |= {"attn_pool.latent": (1, 1, width)} | _linear("attn_pool.q", width, width)
        shapes |= _linear("attn_pool.kv", width, 2 * width) | _linear("attn_pool.proj", width, width)
        shapes |= _linear("attn_pool.mlp.fc1", width, hidden) | _linear("attn_pool.mlp.fc2", hidden, width)
        norms.append("attn_pool.norm")
    for i in range(size["depth"]):
        block = f"blocks.{i}."
        shapes |= _linear(f"{block}attn.qkv", width, 3 * width) | _linear(f"{block}attn.proj", width, width)
        shapes |= _linear(f"{block}mlp.fc1", width, hidden) | _linear(f"{block}mlp.fc2", hidden, width)
        norms += [f"{block}norm1", f"{block}norm2"]
        if kind == "dinov2":
            shapes |= {f"{block}ls{n}.scale_factor": (width,) for n in (1, 2)}
    return shapes | {f"{norm}.{part}": (width,) for norm in norms for part in ("weight", "bias")}


def statistics() -> dict[str, dict[str, dict[str, list[float]]]]:
    draw = np.random.default_rng(0)

    def bounds(size: int) -> dict[str, list[float]]:
        low, high = -draw.uniform(0.2, 0.9, size), draw.uniform(0.2, 0.9, size)
        return {"q01": low.tolist(), "q99": high.tolist(), "min": (low * 1.1).tolist(), "max": (high * 1.1).tolist()}

    action, proprio = bounds(ACTION_DIM), bounds(PROPRIO_DIM)
    return {"libero_spatial_no_noops": {"action": {**action, "mask": [True] * 6 + [False]}, "proprio": proprio}}  # type: ignore[dict-item]


def config_record(case: Case) -> dict[str, object]:
    kinds = KINDS[case.backbone]
    return {
        "architectures": ["OpenVLAForActionPrediction"],
        "model_type": "openvla",
        "vision_backbone_id": case.backbone,
        "llm_backbone_id": "llama2-7b-pure",
        "arch_specifier": "no-align+fused-gelu-mlp" if len(kinds) == 2 else "no-align+gelu-mlp",
        "use_fused_vision_backbone": len(kinds) == 2,
        "image_resize_strategy": "resize-naive",
        "n_action_bins": 256,
        "pad_token_id": 32000,
        "pad_to_multiple_of": 64,
        "norm_stats": {"bridge_orig": statistics()["libero_spatial_no_noops"]},
        "text_config": {"model_type": "llama", "vocab_size": ROWS, "pad_token_id": 32000, **LLAMA},
        "torch_dtype": "float32",
    }


def write_checkpoint(folder: Path, case: Case) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors(case), str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config_record(case)))
    (folder / "dataset_statistics.json").write_text(json.dumps(statistics()))
    kinds = KINDS[case.backbone]
    preprocessor = {"means": [MEANS[k] for k in kinds], "stds": [STDS[k] for k in kinds]}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    tokenizer = Tokenizer(WordLevel(vocabulary(), unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    width = LLAMA["hidden_size"]
    if case.proprio:
        shapes = _linear("fc1", PROPRIO_DIM, width) | _linear("fc2", width, width)
        _write_pt(folder / "proprio_projector--500_checkpoint.pt", "proprio_projector", shapes)
    if case.l1:
        inner = ACTION_DIM * width
        shapes = _linear("model.fc1", inner, width) | _linear("model.fc2", width, ACTION_DIM)
        shapes |= {f"model.layer_norm1.{p}": (inner,) for p in ("weight", "bias")}
        shapes |= {f"model.layer_norm2.{p}": (width,) for p in ("weight", "bias")}
        for i in range(2):
            block = f"model.mlp_resnet_blocks.{i}.ffn."
            shapes |= {f"{block}0.{p}": (width,) for p in ("weight", "bias")} | _linear(f"{block}1", width, width)
        _write_pt(folder / "action_head--500_checkpoint.pt", "action_head", shapes)
    return folder


def _write_pt(path: Path, part: str, shapes: dict[str, tuple[int, ...]]) -> None:
    torch.save({f"module.{name}": values(f"{part}.{name}", shape) for name, shape in shapes.items()}, path)


def vocabulary() -> dict[str, int]:
    """Llama's special tokens at their places, a few words, and something for every other id."""
    named = {0: "<unk>", 1: "<s>", 2: "</s>", 29871: "\N{LOWER ONE EIGHTH BLOCK}", 32000: "<PAD>"}
    named |= {300 + i: word for i, word in enumerate(dict.fromkeys(PROMPT.split()))}
    return {named.get(i, f"<{i}>"): i for i in range(VOCABULARY + 1)}


def prompt_ids() -> list[int]:
    """<s> and the prompt of `INSTRUCTION`; the originals add token 29871 themselves."""
    return [1, *(vocabulary()[word] for word in PROMPT.split())]


def images(case: Case) -> np.ndarray:
    """uint8 [images, S, S, 3]."""
    return np.random.default_rng(7).integers(0, 256, (case.images, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)


def proprio() -> np.ndarray:
    """As a robot gives it; two entries lie outside the percentiles, which clips them."""
    return np.random.default_rng(8).uniform(-1, 1, PROPRIO_DIM).astype(np.float32)
