"""`dspark train`: data, heads and GLM, calibration, evaluation; every part resumes by itself."""

import json
import math
import os
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from ..heads import DraftModel
from ..interrupt import interrupt_held_back
from ..prompts import stop_tokens
from .calibration import calibrate
from .card import write_card
from .config import TrainConfig, draft_config
from .data import generate_continuations, read_prompts, usable_prompts
from .objective import VocabularySample, draft_loss
from .replay import evaluate
from .resume import check_same_settings, settings
from .store import Continuation, Segments, choose, read_shards


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

    @property
    def learning_rate(self) -> float:
        """Of the next step: up in 50 steps, then down to 2 % along a cosine."""
        rate = self.config.learning_rate * min(1.0, (self.step + 1) / 50)
        return rate * (0.02 + 0.49 * (1 + math.cos(math.pi * self.progress)))

    def train_step(self) -> torch.Tensor:
        """One update; returns the GLM's loss by depth."""
        started, config = time.perf_counter(), self.config
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
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
    interruption, with the same result; with more steps or minutes it trains on. Writes
    model.safetensors, config.json, training.json (calibration errors, and tokens per step on the
    held-out topics) and README.md, a card made of it.

    Raises ValueError, before anything is written, for options or prompts which cannot be used and
    for an `out` that holds another training.
    """
    # the loop's integrations need transformers, which the rest of training does not
    from ..integrations.loading import load_model
    from ..integrations.transformers import TransformersTarget

    if Path(config.out).exists() and not Path(config.out).is_dir():
        raise ValueError(f"out must be a folder, got the file {config.out}")
    if model is None:
        model, tokenizer = load_model(config.model, torch.bfloat16, config.device)
    torch.manual_seed(config.seed)
    target = TransformersTarget(model)
    draft = DraftModel(draft_config(config, target))
    target.feature_layers = tuple(draft.config.feature_layers)
    prompts = read_prompts(config.prompts, tokenizer, config.sampled)
    used = usable_prompts(prompts, target, config.max_new_tokens)
    if len(used) < len(prompts):
        print(
            f"prompts: {len(prompts) - len(used)} of {len(prompts)} left out, too long for a "
            f"context of {target.max_length} tokens with max_new_tokens {config.max_new_tokens}",
            file=sys.stderr,
        )
    work, now = Path(config.out) / "work", settings(config, model, prompts)
    check_same_settings(now, work)
    work.mkdir(parents=True, exist_ok=True)
    (work / "settings.json").write_text(json.dumps(now))
    try:
        generate_continuations(
            target,
            used,
            work / "data",
            max_new_tokens=config.max_new_tokens,
            stop=stop_tokens(model.generation_config),
            batch_size=config.generation_batch,
            seed=config.seed,
        )
        data = read_shards(work / "data", draft.config.hidden_size, len(target.feature_layers))
        fitted, greedy, held_out = choose(data, config.held_out)
        trainer = Trainer(config, draft, fitted, target.embedding, target.lm_head)
        run(trainer, work / "checkpoint.pt")
    except KeyboardInterrupt:
        print(f"{config.out}: the same command continues from here", file=sys.stderr)
        raise

    draft.cpu()
    embedding, lm_head = target.embedding.float().cpu(), target.lm_head.float().cpu()
    errors = calibrate(draft, embedding, lm_head, greedy, config.max_new_tokens)
    evaluated = greedy[: config.evaluation_prompts]
    report = {
        "training": asdict(config)
        | {"steps": trainer.step, "seconds": round(trainer.seconds), "device": str(target.device)},
        "prompts": {"used": len(used), "too_long": len(prompts) - len(used)},
        "continuations": len(data),
        "tokens": sum(len(item.tokens) for item in data),
        "calibrated_on": {"continuations": len(greedy), "held_out": held_out},
        "calibration_error": errors,
        "evaluated_on": {"continuations": len(evaluated), "held_out": held_out},
        "held_out_tokens_per_step": evaluate(draft.bind(embedding, lm_head), evaluated),
    }
    out = Path(config.out)
    write_card(out / "README.md", draft, report)
    draft.save_pretrained(out)  # writes a card of its own where there is none
    shutil.copymode(out / "config.json", out / "model.safetensors")  # not for its owner alone
    (out / "training.json").write_text(json.dumps(report, indent=1))
    print(draft.summary())
    return draft


def run(trainer: Trainer, checkpoint: Path) -> None:
    """Train until the end, from the checkpoint if there is one; Ctrl-C ends it after a step."""
    if checkpoint.exists():
        trainer.restore(checkpoint)
    bar = tqdm(total=trainer.config.steps, initial=trainer.step, desc="training")
    with bar as progress, interrupt_held_back() as interrupted:
        while trainer.progress < 1 and not interrupted.is_set():
            loss = trainer.train_step()
            progress.update()
            progress.set_postfix_str("loss " + " ".join(f"{value:.2f}" for value in loss))
            if trainer.step % trainer.config.checkpoint_every == 0:
                trainer.save(checkpoint)
        trainer.save(checkpoint)
    if interrupted.is_set():
        raise KeyboardInterrupt
