"""Self-distillation data: the target continues the prompts, and its states are kept on disk."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from ..decode import step
from ..prefill import prefill
from ..prompts import encode, read_records
from ..sampling import Sampling
from ..statistics import Clock, until_stop
from .store import write_shard


@dataclass
class Prompt:
    """A prompt as tokens; `temperature` says how the target continues it."""

    id: str
    topic: str  # prompts of one topic are held out together
    category: str
    tokens: list[int]
    temperature: float


def read_prompts(path: str | Path, tokenizer, sampled: float = 0.25) -> list[Prompt]:
    """The prompts of a file, see `prompts.read_records`.

    Optional fields: `id`, `category`, `topic`, `temperature`; without the last, a share `sampled`
    of the prompts is continued at temperature 0.8, the others greedily.
    """
    prompts = []
    for number, record in enumerate(read_records(path)):
        name = str(record.get("id", number))
        temperature = record.get("temperature", 0.8 if _fraction(name) < sampled else 0.0)
        prompts.append(
            Prompt(
                id=name,
                topic=str(record.get("topic", name)),
                category=str(record.get("category", "")),
                tokens=encode(record, tokenizer),
                temperature=temperature,
            )
        )
    return prompts


def usable_prompts(prompts: list[Prompt], target, max_new_tokens: int) -> list[Prompt]:
    """The prompts which leave room for their continuations in the target's context.

    Raises ValueError if there is none, if none of them is continued greedily, as calibration
    needs, or if one holds anything else than tokens of the target.
    """
    context, vocab_size = target.max_length, len(target.lm_head)
    for prompt in prompts:
        ids = prompt.tokens
        if not ids or not all(isinstance(id, int) and 0 <= id < vocab_size for id in ids):
            raise ValueError(
                f"prompts: prompt {prompt.id!r} must be token ids from 0 to {vocab_size - 1}, got "
                f"{str(ids)[:60]}"
            )
    used = [prompt for prompt in prompts if len(prompt.tokens) + max_new_tokens < context]
    if not used:
        shortest = min(len(prompt.tokens) for prompt in prompts)
        raise ValueError(
            f"prompts: one must be shorter than {context - max_new_tokens} tokens, the model's "
            f"context of {context} less max_new_tokens={max_new_tokens}; the shortest has "
            f"{shortest}"
        )
    if all(prompt.temperature for prompt in used):
        raise ValueError(
            f"prompts: one must be continued greedily, for calibration; all {len(used)} that are "
            'short enough have a temperature, their own or from sampled; give some "temperature": 0'
        )
    return used


def _fraction(name: str) -> float:
    """A number in [0, 1) which depends on the name alone."""
    return zlib.crc32(name.encode()) / 2**32


def continue_prompts(
    target, prompts: list[Prompt], max_new_tokens: int, stop, seed: int = 0
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """(tokens, states) of each prompt, in order: see `store` for what the states are."""
    seeds = [seed + zlib.crc32(prompt.id.encode()) for prompt in prompts]
    sampling = Sampling([prompt.temperature for prompt in prompts], seeds)
    tokens, clock = [prompt.tokens for prompt in prompts], Clock(target.device)
    state, _ = prefill(target, tokens, sampling, stop, max_new_tokens, room=2)
    drawn, states = [state.root.clone()], [_states(state)]
    while len(drawn) < max_new_tokens and not (len(drawn) % 8 == 0 and bool(state.done.all())):
        step(target, None, state, 1, 0.0, clock)
        drawn.append(state.root.clone())
        states.append(_states(state))
    ends = set(stop)
    for ids, kept in zip(torch.stack(drawn, 1).tolist(), torch.stack(states, 1), strict=True):
        emitted = until_stop(ids, ends)
        yield emitted, kept[: len(emitted)].cpu()


def _states(state) -> torch.Tensor:
    """The states which drew the roots: [B, 1 + len(feature_layers), D] in bfloat16."""
    hidden = state.hidden[:, None]
    if state.features is not None:
        layers = state.features.unflatten(-1, (-1, hidden.shape[-1]))
        hidden = torch.cat((hidden, layers), dim=1)
    return hidden.to(torch.bfloat16, copy=True)  # the next step overwrites the state's


@torch.inference_mode()
def generate_continuations(
    target, prompts: list[Prompt], folder: Path, *, max_new_tokens, stop, batch_size, seed
) -> None:
    """Continue all prompts, one shard per batch of similar length; finished shards are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    prompts = sorted(prompts, key=lambda prompt: len(prompt.tokens))
    batches = [prompts[at : at + batch_size] for at in range(0, len(prompts), batch_size)]
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(seed)).tolist()
    progress = tqdm(total=len(prompts), desc="continuing prompts", unit="prompt")
    for index in order:
        batch, path = batches[index], folder / f"shard-{index:05d}"
        if not path.with_suffix(".json").exists():
            results = list(continue_prompts(target, batch, max_new_tokens, stop, seed))
            records = [
                vars(prompt) | {"prompt": prompt.tokens, "tokens": tokens}
                for prompt, (tokens, _) in zip(batch, results, strict=True)
            ]
            write_shard(path, records, [states for _, states in results])
        progress.update(len(batch))
    progress.close()
