"""Whether a folder's data and checkpoint belong to the training that is to continue with them."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch

from ..prompts import stop_tokens
from .config import TrainConfig
from .data import Prompt

MAY_CHANGE = (
    *("out", "device", "steps", "minutes", "checkpoint_every", "evaluation_prompts"),
    *("model", "prompts"),  # what they name is hashed
)


def settings(config: TrainConfig, model, prompts: list[Prompt]) -> dict:
    """The options, and hashes of what `model` and `prompts` name."""
    text = repr([vars(prompt) for prompt in prompts])
    hashes = {
        "model_hash": model_hash(model),
        "prompts_hash": hashlib.sha256(text.encode()).hexdigest(),
    }
    return json.loads(json.dumps(asdict(config))) | hashes


def model_hash(model) -> str:
    """SHA-256 of every weight's name, dtype, shape and first 4,096 numbers, and of what else
    decides how the model continues prompts."""
    digest = hashlib.sha256(
        repr((stop_tokens(model.generation_config), model.config.max_position_embeddings)).encode()
    )
    for name, weight in model.state_dict().items():
        digest.update(repr((name, weight.dtype, tuple(weight.shape))).encode())
        head = weight.detach().flatten()[:4096].cpu().contiguous()
        digest.update(head.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_same_settings(now: dict, work: Path) -> None:
    """Raise a ValueError if `work` holds the data and checkpoint of a training with others.

    More `steps` or `minutes` are welcome: training goes on, at the rate of the longer schedule.
    """
    path, out = work / "settings.json", now["out"]
    before = json.loads(path.read_text()) if path.exists() else now
    for name, value in now.items():
        if name in MAY_CHANGE or before.get(name) == value:
            continue
        with_what = f"with {name} {before.get(name)}, got {value}"
        if name == "model_hash":
            with_what = f"for another model than {now['model']} is now"
        elif name == "prompts_hash":
            with_what = f"on other prompts than {now['prompts']} holds now"
        raise ValueError(
            f"out: {out} holds a training {with_what}; use another folder, or the same settings "
            "to continue"
        )
    done = finished_steps(work / "checkpoint.pt")
    if now["steps"] < done:
        raise ValueError(
            f"steps must be at least the {done} which {out} has been trained for, got "
            f"{now['steps']}; use another folder for a shorter training"
        )


def finished_steps(checkpoint: Path) -> int:
    """Steps of a checkpoint of `Trainer.save`, 0 if there is none."""
    if not checkpoint.exists():
        return 0
    return torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)[2]
