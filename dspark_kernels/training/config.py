"""What a training is told: options, their ranges, and the shapes of the draft they give."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from ..heads import DraftConfig
from ..ops.glm_tree import MAX_CANDIDATES, MAX_HEADS, MAX_RANK

WHOLE_NUMBERS = {
    "steps": (1, math.inf),
    "seed": (0, 2**62),
    "max_new_tokens": (2, math.inf),
    "generation_batch": (1, math.inf),
    "num_heads": (1, MAX_HEADS),
    "num_candidates": (1, MAX_CANDIDATES),
    "feature_size": (1, math.inf),
    "rank": (1, MAX_RANK),
    "draft_vocab_size": (1, math.inf),
    "segments": (1, math.inf),
    "segment_length": (1, math.inf),
    "frequent": (1, math.inf),
    "negatives": (0, math.inf),
    "checkpoint_every": (1, math.inf),
    "evaluation_prompts": (1, math.inf),
}
NUMBERS = {
    "minutes": (0, math.inf),
    "sampled": (0, 1),
    "held_out": (0, 1),
    "learning_rate": (1e-9, math.inf),
    "rollout_from": (0, 1),
    "rollout_weight": (0, math.inf),
}


@dataclass
class TrainConfig:
    """What to train on, how long, and the shapes of the draft; ValueError for unusable numbers."""

    model: str  # folder, .gguf file, hub id or the embedded model's name
    prompts: str  # JSONL file, see `data.read_prompts`
    out: str  # folder of the draft; data and checkpoints go into its subfolder `work`
    steps: int = 3400
    minutes: float = 0.0  # ends training early (the schedule anneals to it); 0: no limit
    seed: int = 0
    device: str = "cpu"
    # data
    max_new_tokens: int = 192
    generation_batch: int = 64
    sampled: float = 0.25  # share of prompts continued at temperature 0.8
    held_out: float = 0.03  # share of topics kept for calibration and evaluation
    # draft
    num_heads: int = DraftConfig.num_heads
    num_candidates: int = DraftConfig.num_candidates
    feature_layers: tuple[int, ...] | None = None  # None: one at two thirds of the depth
    feature_size: int = DraftConfig.feature_size
    hidden_feature: bool = DraftConfig.hidden_feature
    rank: int = DraftConfig.rank
    draft_vocab_size: int = 12288  # at most the target's vocabulary
    # optimisation
    learning_rate: float = 2e-3
    segments: int = 128  # per batch
    segment_length: int = 8
    frequent: int = 4096  # tokens in every softmax
    negatives: int = 768  # sampled from the rest of the draft vocabulary
    checkpoint_every: int = 200
    rollout_from: float = 1.0  # progress from which the GLM also learns from its own choices
    rollout_weight: float = 0.5
    evaluation_prompts: int = 64
    loss: dict = field(default_factory=dict)  # options of `draft_loss`

    def __post_init__(self):
        for ranges, kind, types in (
            (WHOLE_NUMBERS, "a whole number", int),
            (NUMBERS, "a number", (int, float)),
        ):
            for name, (low, high) in ranges.items():
                value = getattr(self, name)
                usable = isinstance(value, types) and math.isfinite(value)
                if not usable or not low <= value <= high:
                    bounds = f"from {low} to {high}" if high < math.inf else f"of at least {low}"
                    raise ValueError(f"{name} must be {kind} {bounds}, got {value!r}")


def draft_config(config: TrainConfig, target) -> DraftConfig:
    """Shapes of the draft for a target; ValueError where the target is too small for them."""
    vocab_size, hidden_size = target.lm_head.shape
    layers = config.feature_layers
    if layers is None:
        layers = (2 * target.num_layers // 3,)
    for layer in layers:
        if not 0 <= layer <= target.num_layers:
            raise ValueError(
                f"feature_layers must be from 0 to the model's {target.num_layers}, got {layer}"
            )
    vocab = min(config.draft_vocab_size, vocab_size)
    if config.num_candidates > vocab:
        raise ValueError(
            f"num_candidates must be at most the {vocab} tokens of the draft's vocabulary, got "
            f"{config.num_candidates}"
        )
    return DraftConfig(
        hidden_size=hidden_size,
        vocab_size=vocab_size,
        num_layers=target.num_layers,
        target_name=Path(target.name).name,
        target_parameters=target.num_parameters,
        num_heads=config.num_heads,
        num_candidates=config.num_candidates,
        feature_layers=list(layers),
        feature_size=config.feature_size,
        hidden_feature=config.hidden_feature,
        rank=config.rank,
        draft_vocab_size=vocab if vocab < vocab_size else 0,
    )
