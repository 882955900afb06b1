"""`dspark train`: data, heads and GLM, calibration, evaluation; every part resumes by itself."""

import json
import math
import os
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from ..heads import DraftConfig, DraftModel
from .calibration import calibrate
from .data import generate_continuations, read_prompts
from .objective import VocabularySample, draft_loss
from .replay import evaluate
from .store import Continuation, Segments, read_shards, split_by_topic


@dataclass
class TrainConfig:
    """What to train on, how long, and the shapes of the draft."""

    model: str  # folder, .gguf file, hub id or the embedded model's name
    prompts: str  # JSONL file, see `data.read_prompts`
    out: str  # folder of the draft; data and checkpoints go into its subfolder `work`
    steps: int = 3400
    minutes: float = 0.0  # ends training early (the schedule anneals to it); 0: no limit
    seed: int = 0
    device: str = "cpu"
    # data
    max_new_tokens: int = 160
    generation_batch: int = 64
    sampled: float = 0.25  # share of prompts continued at temperature 0.8
    held_out: float = 0.03  # share of topics kept for calibration and evaluation
    # draft
    num_heads: int = 5
    num_candidates: int = 48
    feature_layers: tuple[int, ...] | None = None  # None: one at two thirds of the depth
    feature_size: int = 128
    hidden_feature: bool = True
    rank: int = 128
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


class Trainer:
    """Model, optimiser and generator of random numbers, saved and restored as one."""

    def __init__(self, config: TrainConfig, model: DraftModel, data, embedding, lm_head):
        """data: the continuations; embedding, lm_head: the target's weights [V, D]."""
        self.device = lm_head.device
        self.config, self.model = config, model.to(self.device)
        self.segments = Segments(data, config.segment_length, config.num_heads)
        self.embedding, self.lm_head = embedding.bfloat16(), lm_head.bfloat16()
        self.generator = torch.Generator().manual_seed(config.seed)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.01
        )
        self.step, self.seconds = 0, 0.0
        order = token_counts(data, len(lm_head)).argsort(descending=True, stable=True)
        vocab = order[: model.config.draft_vocab_size or len(lm_head)]
        if model.config.draft_vocab_size:
            model.draft_vocab.copy_(vocab.sort().values)
        self.always = torch.zeros(len(lm_head), dtype=torch.bool)
        self.always[vocab[: config.frequent]] = True
        self.others = vocab[config.frequent :]

    @property
    def progress(self) -> float:
        """Share of the training that is done."""
        by_time = self.seconds / (60 * self.config.minutes) if self.config.minutes else 0.0
        return min(max(self.step / self.config.steps, by_time), 1.0)

    def train_step(self) -> torch.Tensor:
        """One update; returns the GLM's loss by depth."""
        started, config = time.perf_counter(), self.config
        rate = config.learning_rate * min(1.0, (self.step + 1) / 50)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * (0.02 + 0.49 * (1 + math.cos(math.pi * self.progress)))
        batch = self.segments.draw(config.segments, self.generator)
        targets = batch.tokens[batch.tokens >= 0]
        vocabulary = VocabularySample.draw(
            self.always, self.others, config.negatives, targets, self.generator
        )
        rollout = config.rollout_weight if self.progress >= config.rollout_from else 0.0
        batch, vocabulary = batch.to(self.device), vocabulary.to(self.device)
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            losses = draft_loss(
                self.model, batch, self.embedding, self.lm_head, vocabulary,
                rollout_weight=rollout, **config.loss,
            )  # fmt: skip
        self.optimizer.zero_grad()
        losses.total.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        self.seconds += time.perf_counter() - started
        return losses.glm

    def save(self, path: Path) -> None:
        """Write a checkpoint; an interruption leaves the previous one."""
        parts = (self.model.state_dict(), self.optimizer.state_dict())
        noise = (self.generator.get_state(), torch.get_rng_state())
        torch.save((parts, noise, self.step, self.seconds), path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)

    def restore(self, path: Path) -> None:
        """Continue where a checkpoint was written."""
        parts, noise, self.step, self.seconds = torch.load(
            path, map_location=self.device, weights_only=True
        )
        self.model.load_state_dict(parts[0])
        self.optimizer.load_state_dict(parts[1])
        self.generator.set_state(noise[0].cpu())
        torch.set_rng_state(noise[1].cpu())


def token_counts(data: list[Continuation], vocab_size: int) -> torch.Tensor:
    """How often each token occurs in the continuations: int64 [V]."""
    tokens = torch.cat([torch.tensor(item.tokens) for item in data])
    return torch.bincount(tokens, minlength=vocab_size)


def train(config: TrainConfig, model=None, tokenizer=None) -> DraftModel:
    """Train a draft for a causal language model of transformers, and save it to `config.out`.

    model, tokenizer: used instead of loading `config.model`. Running it again continues after an
    interruption, with the same result. Writes model.safetensors, config.json and training.json
    (calibration errors, and tokens per step on the held-out topics).
    """
    # the loop's integrations need transformers, which the rest of training does not
    from ..integrations.loading import load_model
    from ..integrations.transformers import TransformersTarget

    if model is None:
        model, tokenizer = load_model(config.model, torch.bfloat16, config.device)
    torch.manual_seed(config.seed)
    target = TransformersTarget(model)
    draft = DraftModel(draft_config(config, target))
    target.feature_layers = tuple(draft.config.feature_layers)
    prompts = read_prompts(config.prompts, tokenizer, config.sampled)
    work = Path(config.out) / "work"
    check_same_settings(config, work)
    generate_continuations(
        target,
        prompts,
        work / "data",
        max_new_tokens=config.max_new_tokens,
        stop=stop_tokens(model),
        batch_size=config.generation_batch,
        seed=config.seed,
    )
    data = read_shards(work / "data", draft.config.hidden_size, len(target.feature_layers))
    fitted, held_out = split_by_topic(data, config.held_out)
    trainer = Trainer(config, draft, fitted or data, target.embedding, target.lm_head)
    run(trainer, work / "checkpoint.pt")

    greedy = [item for item in held_out or data if not item.temperature]
    draft.cpu()
    embedding, lm_head = target.embedding.float().cpu(), target.lm_head.float().cpu()
    errors = calibrate(draft, embedding, lm_head, greedy, config.max_new_tokens)
    report = {
        "training": asdict(config) | {"steps": trainer.step, "seconds": round(trainer.seconds)},
        "continuations": len(data),
        "tokens": sum(len(item.tokens) for item in data),
        "calibration_error": errors,
        "held_out_tokens_per_step": evaluate(
            draft.bind(embedding, lm_head), greedy[: config.evaluation_prompts]
        ),
    }
    draft.save_pretrained(config.out)
    (Path(config.out) / "training.json").write_text(json.dumps(report, indent=1))
    print(draft.summary())
    return draft


def check_same_settings(config: TrainConfig, work: Path) -> None:
    """Raise a ValueError if `work` holds the data and checkpoint of a training with others."""
    path = work / "settings.json"
    now = asdict(config)
    if path.exists():
        before = json.loads(path.read_text())
        for name, value in json.loads(json.dumps(now)).items():
            old = before.get(name)
            if name not in ("out", "device", "minutes") and old != value:
                raise ValueError(
                    f"out: {config.out} holds a training with {name} {old}, got {value}; use "
                    "another folder, or the same settings to continue"
                )
    work.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(now))


def run(trainer: Trainer, checkpoint: Path) -> None:
    """Train until the end, from the checkpoint if there is one."""
    if checkpoint.exists():
        trainer.restore(checkpoint)
    with tqdm(total=trainer.config.steps, initial=trainer.step, desc="training") as progress:
        while trainer.progress < 1:
            loss = trainer.train_step()
            progress.update()
            progress.set_postfix_str("loss " + " ".join(f"{value:.2f}" for value in loss))
            if trainer.step % trainer.config.checkpoint_every == 0:
                trainer.save(checkpoint)
    trainer.save(checkpoint)


def draft_config(config: TrainConfig, target) -> DraftConfig:
    """Shapes of the draft for a target."""
    vocab_size, hidden_size = target.lm_head.shape
    layers = config.feature_layers
    if layers is None:
        layers = (2 * target.num_layers // 3,)
    vocab = config.draft_vocab_size
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


def stop_tokens(model) -> list[int]:
    """Tokens which end a continuation."""
    stop = model.generation_config.eos_token_id
    return [] if stop is None else [stop] if isinstance(stop, int) else list(stop)
