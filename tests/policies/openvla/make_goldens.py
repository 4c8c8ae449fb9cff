"""Run the original OpenVLA or OpenVLA-OFT code on tiny checkpoints and keep what it answers.

    python make_goldens.py --original SOURCE [--oft] --write goldens_openvla.npz
    python make_goldens.py --original SOURCE [--oft] --compare goldens_openvla.npz --folders FOLDER

SOURCE is a checkout of openvla/openvla, or of moojink/openvla-oft with moojink/transformers-openvla-oft on the path.
FOLDER holds one checkpoint a case, such as our `save` writes. docs/openvla.md has the whole recipe. Nothing here belongs to
the tests that run every day: those compare our answers with the files that this script wrote.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
import tiny_checkpoints as tiny

EVERY = 8
"""Of the 256 action tokens, the logits of every eighth are kept."""


def import_original(source: Path) -> tuple[Any, Any]:
    """The modeling and the processing module, without running packages' __init__, which import the training stack."""
    for name in ("prismatic", "prismatic.extern", "prismatic.models", "prismatic.training", "prismatic.vla"):
        package = types.ModuleType(name)
        package.__path__ = [str(source / name.replace(".", "/"))]
        sys.modules[name] = package
    create = timm.create_model

    def create_tiny(model_id: str, **settings: Any) -> Any:
        size = tiny.DINOV2 if "dinov2" in model_id else tiny.SIGLIP
        return create(model_id, **{**settings, **size, "img_size": tiny.IMAGE_SIZE})

    timm.create_model = create_tiny
    from prismatic.extern.hf import configuration_prismatic, modeling_prismatic, processing_prismatic

    for sizes in configuration_prismatic.VISION_BACKBONE_TO_RESOLUTION.values():
        sizes[:] = [tiny.IMAGE_SIZE] * len(sizes)
    return modeling_prismatic, processing_prismatic


def pixels(processing: Any, case: tiny.Case) -> torch.Tensor:
    kinds = tiny.KINDS[case.backbone]
    processor = processing.PrismaticImageProcessor(
        use_fused_vision_backbone=len(kinds) == 2,
        image_resize_strategy="resize-naive",
        input_sizes=[(3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE)] * len(kinds),
        interpolations=["bicubic"] * len(kinds),
        means=[tiny.MEANS[kind] for kind in kinds],
        stds=[tiny.STDS[kind] for kind in kinds],
    )
    prepared = [processor(Image.fromarray(image), return_tensors="pt")["pixel_values"] for image in tiny.images(case)]
    return torch.cat(prepared, dim=1)


@torch.no_grad()
def answer(modeling: Any, processing: Any, folder: Path, case: tiny.Case) -> dict[str, np.ndarray]:
    model = modeling.OpenVLAForActionPrediction.from_pretrained(folder, torch_dtype=torch.float32).eval()
    model.norm_stats = json.loads((folder / "dataset_statistics.json").read_text())
    ids = torch.tensor([tiny.prompt_ids()])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels(processing, case)}
    seen: list[torch.Tensor] = []
    head = model.language_model.lm_head
    head.register_forward_hook(lambda module, arguments, output: seen.append(output))
    if case.oft:
        model.vision_backbone.set_num_images_in_input(case.images)
        actions, _ = model.predict_action(**inputs, unnorm_key="libero_spatial_no_noops", **oft_parts(model, folder, case))
        start = case.images * model.vision_backbone.get_num_patches() + case.proprio + ids.shape[1]
        logits = seen[-1][0, start : start + actions.size]
    else:
        actions = model.predict_action(**inputs, unnorm_key="libero_spatial_no_noops", do_sample=False)
        logits = torch.stack([output[0, -1] for output in seen])
    first = tiny.VOCABULARY - 256
    logits = logits[:, first : tiny.VOCABULARY : EVERY].float().numpy()
    return {"actions": np.asarray(actions, np.float64), **({} if case.l1 else {"logits": logits})}


def oft_parts(model: Any, folder: Path, case: tiny.Case) -> dict[str, Any]:
    from prismatic.models.projectors import ProprioProjector

    def fill(module: torch.nn.Module, part: str) -> torch.nn.Module:
        state = torch.load(next(folder.glob(f"{part}--*_checkpoint.pt")), weights_only=True)
        module.load_state_dict({name.removeprefix("module."): tensor for name, tensor in state.items()})
        return module.eval()

    width, parts = tiny.LLAMA["hidden_size"], {}
    if case.proprio:
        bounds = model.norm_stats["libero_spatial_no_noops"]["proprio"]
        low, high = np.array(bounds["q01"]), np.array(bounds["q99"])
        parts["proprio"] = np.clip(2 * (tiny.proprio() - low) / (high - low + 1e-8) - 1, -1, 1)
        parts["proprio_projector"] = fill(ProprioProjector(width, tiny.PROPRIO_DIM), "proprio_projector")
    if case.l1:
        # Only the diffusion head, which shares the file, needs diffusers.
        scheduler = types.ModuleType("diffusers.schedulers.scheduling_ddim")
        scheduler.DDIMScheduler = None  # type: ignore[attr-defined]
        sys.modules.setdefault(scheduler.__name__, scheduler)
        for name in ("diffusers", "diffusers.schedulers"):
            sys.modules.setdefault(name, types.ModuleType(name))
        from prismatic.models.action_heads import L1RegressionActionHead

        parts["action_head"] = fill(L1RegressionActionHead(width, width, tiny.ACTION_DIM), "action_head")
    return parts


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--original", type=Path, required=True)
    arguments.add_argument("--oft", action="store_true")
    arguments.add_argument("--write", type=Path)
    arguments.add_argument("--compare", type=Path)
    arguments.add_argument("--folders", type=Path)
    chosen = arguments.parse_args()
    modeling, processing = import_original(chosen.original)
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name, case in tiny.CASES.items():
            if case.oft == chosen.oft:
                folder = chosen.folders / name if chosen.folders else tiny.write_checkpoint(Path(scratch) / name, case)
                found |= {f"{name}/{key}": value for key, value in answer(modeling, processing, folder, case).items()}
    if chosen.write:
        np.savez_compressed(chosen.write, **{k: v.astype(np.float32) for k, v in found.items()})
    if chosen.compare:
        goldens = np.load(chosen.compare)
        for name, value in found.items():
            print(f"{name:28} largest difference {np.abs(value - goldens[name]).max():.1e}")


if __name__ == "__main__":
    main()
