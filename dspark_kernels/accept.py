"""`dspark bench accept`: how many tokens a step yields, by category, tree and number of nodes.

The target continues the prompts greedily, once; then several drafters are replayed on these
continuations (see `training.replay`), which takes no further pass of the target.
"""

import copy
import heapq
import tempfile
import zlib
from pathlib import Path

import torch
from rich import box
from rich.console import Group
from rich.table import Column, Table
from tqdm import tqdm

from .heads import BoundDraft
from .ops import linear_topk
from .prompts import encode
from .training.calibration import fit_log_probs
from .training.replay import Replay, future_tokens, replay, tokens_per_step
from .training.store import Continuation, read_shards, write_shard

FULL, HEADS_GLM = "lookup, heads, GLM", "heads, GLM"
MIN_SCORES = (0.002, 0.004, 0.01, 0.02)


@torch.inference_mode()
def continuations(
    decoder, prompts: list[dict], max_new_tokens: int, batch_size: int, folder: str | None = None
) -> list[Continuation]:
    """The target's greedy continuations of the prompts, with the states which drew them.

    prompts: records of a prompt file with `category`. folder: keeps them for the next call with the
    same model, feature layers, prompts and max_new_tokens.
    """
    target = decoder.target
    vocab_size = target.lm_head.shape[0]
    records = [(encode(prompt, decoder.tokenizer, vocab_size), prompt) for prompt in prompts]
    records.sort(key=lambda record: len(record[0]))
    settings = (target.name, target.dtype, target.feature_layers, max_new_tokens, batch_size)
    key = zlib.crc32(repr((settings, [ids for ids, _ in records])).encode())
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(folder or scratch) / f"{key:08x}"
        path.mkdir(parents=True, exist_ok=True)
        batches = range(0, len(records), batch_size)
        for start in tqdm(batches, "continuing prompts", leave=False):
            shard = path / f"batch-{start:05d}"
            if not shard.with_suffix(".json").exists():
                batch = records[start : start + batch_size]
                ids = [ids for ids, _ in batch]
                tokens = decoder.generate(ids, max_new_tokens=max_new_tokens).tokens
                states = [_states(target, *pair) for pair in zip(ids, tokens, strict=True)]
                kept = [_record(*pair) for pair in zip(batch, tokens, strict=True)]
                write_shard(shard, kept, states)
        return read_shards(path, target.lm_head.shape[1], len(target.feature_layers))


def _record(prompt, tokens) -> dict:
    ids, record = prompt
    return {
        "id": str(record.get("id", "")), "topic": "", "category": record["category"],
        "temperature": 0.0, "prompt": ids, "tokens": tokens,
    }  # fmt: skip


def _states(target, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    """The states which drew `tokens`, by one pass: [len(tokens), 1 + len(feature_layers), D]."""
    ids = torch.tensor([prompt + tokens[:-1]], device=target.device)
    positions = torch.arange(ids.shape[1], device=target.device)[None]
    hidden, features = target.forward(ids, positions, target.new_cache(1, ids.shape[1]))
    states = hidden[:, None]
    if features is not None:
        states = torch.cat((states, features.unflatten(-1, (-1, hidden.shape[-1]))), dim=1)
    return states[len(prompt) - 1 :].bfloat16().cpu()


def without_glm(draft: BoundDraft, items: list[Continuation]) -> BoundDraft:
    """The heads alone: dynamic Medusa trees. Calibrated on `items`."""
    heads = copy.copy(draft)
    heads.table_out = torch.zeros_like(draft.table_out)
    heads.calibration = fit_log_probs(heads, items)[0]
    return heads


@torch.no_grad()
def true_ranks(draft: BoundDraft, item: Continuation) -> torch.Tensor:
    """Rank of the true token among each head's candidates: int64 [positions, H], C if absent."""
    positions = torch.arange(len(item.tokens) - 1)
    states = item.states[positions].to(draft.vocab_weight.dtype)
    layers = states[:, 1:].flatten(1) if states.shape[1] > 1 else None
    head_states = draft.head_states(states[:, 0], layers, torch.tensor(item.tokens)[positions])
    count, heads, _ = head_states.shape
    _, ids, _ = linear_topk(
        head_states.flatten(0, 1), draft.vocab_weight, draft.num_candidates, id_map=draft.id_map
    )
    found = ids.view(count, heads, -1) == future_tokens(item, positions, heads)[..., None]
    return torch.where(found.any(-1), found.int().argmax(-1), draft.num_candidates)


def medusa_choices(accuracy: torch.Tensor, num_nodes: int) -> list[tuple[int, ...]]:
    """The static tree of Medusa (Cai et al. 2024): the likeliest paths of ranks, best first.

    accuracy [H, C]: how often the candidate of a rank is the true token, whatever its parent.
    """
    table = accuracy.tolist()
    chosen, frontier = [], [(-probability, (rank,)) for rank, probability in enumerate(table[0])]
    heapq.heapify(frontier)
    while frontier and len(chosen) < num_nodes - 1:
        score, path = heapq.heappop(frontier)
        chosen.append(path)
        for rank, probability in enumerate(table[len(path)] if len(path) < len(table) else ()):
            heapq.heappush(frontier, (score * probability, (*path, rank)))
    return chosen


def static_replays(items, ranks: list[torch.Tensor], candidates: int, budgets) -> list[Replay]:
    """Replays of static Medusa trees fitted on these very items; "any" accepts every candidate."""
    counts = torch.stack([(torch.cat(ranks) == rank).sum(0) for rank in range(candidates)], 1)
    choices = medusa_choices(counts / sum(map(len, ranks)), max(budgets))
    trees = {"chain": {(0,) * depth for depth in range(1, counts.shape[0] + 1)}}
    trees |= {str(budget): set(choices[: budget - 1]) for budget in budgets}

    def depth_in(tree, row):
        depth = 0
        while depth < len(row) and tuple(row[: depth + 1]) in tree:
            depth += 1
        return depth

    replays = []
    for item, rank in zip(items, ranks, strict=True):
        rows = rank.tolist()
        accepted = {}
        for name, tree in trees.items():
            accepted[name] = torch.tensor([depth_in(tree, row) for row in rows])
        accepted["any"] = (rank < candidates).int().cumprod(1).sum(1)
        replays.append(Replay(item.category, accepted, {}))
    return replays


def loops(tokens: list[int], window: int = 24) -> bool:
    """Whether a continuation ends in a repetition, by which the context lookup profits."""
    periods = range(1, len(tokens) - window)
    end = tokens[-window:]
    return any(end == tokens[-window - period : -period] for period in periods)


def accept(draft: BoundDraft, items: list[Continuation], num_nodes: int = 64) -> dict:
    """Tokens per step of the draft and of what it is compared with, on greedy continuations.

    The comparisons without the GLM are fitted on these very items, in their favour. Returns
    {"prompts", "tokens", "looping": counts, "drafters": {name: {"total", "not looping": {budget:
    tokens per step}, "categories": {name: {budget: ...}}, "by_depth": share of steps that reach
    depth 1, 2, ... at the largest budget}}, "min_score": {bound: {"nodes", "tokens_per_step"}},
    "any_candidate": tokens per step if trees held every candidate of every head}.
    """
    items = [item for item in items if len(item.tokens) > 1]
    if not items:
        raise ValueError("prompts must be continued by two tokens or more, got none that is")
    budgets = [nodes for nodes in (8, 16, 32, 64, 128) if nodes < num_nodes] + [num_nodes]
    heads = without_glm(draft, items)
    ways = {HEADS_GLM: (draft, False), "heads, dynamic tree": (heads, False)}
    if draft.lookup is not None:
        ways = {FULL: (draft, True), "lookup, heads": (heads, True)} | ways
    replays = {
        name: [
            replay(drafter, item, budgets, lookup, MIN_SCORES)
            for item in tqdm(items, name, leave=False)
        ]
        for name, (drafter, lookup) in ways.items()
    }
    ranks = [true_ranks(draft, item) for item in items]
    static = static_replays(items, ranks, draft.num_candidates, budgets)
    replays["heads, static tree"] = static
    straight = [not loops(item.tokens) for item in items]
    first = next(iter(replays.values()))
    return {
        "prompts": len(items),
        "tokens": sum(len(item.tokens) for item in items),
        "looping": straight.count(False),
        "drafters": {
            name: _summary(runs, straight, ["chain", *map(str, budgets)])
            for name, runs in replays.items()
        },
        "min_score": {
            name: {"nodes": _nodes(first, name), "tokens_per_step": rate}
            for name, rate in tokens_per_step(first)["total"].items()
            if name != "chain"
        },
        "any_candidate": tokens_per_step(static)["total"]["any"],
    }


def _summary(runs: list[Replay], straight: list[bool], budgets: list[str]) -> dict:
    rates = tokens_per_step(runs)
    chosen = [run for run, kept in zip(runs, straight, strict=True) if kept]
    rates = {name: {budget: row[budget] for budget in budgets} for name, row in rates.items()}
    not_looping = tokens_per_step(chosen).get("total", {})
    accepted = torch.cat([run.accepted[budgets[-1]][run.steps(budgets[-1])] for run in runs])
    return {
        "total": rates.pop("total"),
        "not looping": {budget: not_looping[budget] for budget in budgets if not_looping},
        "categories": dict(sorted(rates.items())),
        "by_depth": [
            float((accepted >= depth).float().mean()) for depth in range(1, int(accepted.max()) + 1)
        ],
    }


def _nodes(runs: list[Replay], budget: str) -> float:
    """Nodes verified per step."""
    return float(torch.cat([run.nodes[budget][run.steps(budget)] for run in runs]).float().mean())


def tables(result: dict) -> Group:
    """The result for people."""
    drafters = result["drafters"]
    budgets = list(next(iter(drafters.values()))["total"])
    largest = budgets[-1]
    rates = _table("tokens per step, by nodes", budgets)
    for name, row in drafters.items():
        rates.add_row(name, *(f"{row['total'][budget]:.2f}" for budget in budgets))
        if row["not looping"] and result["looping"]:
            values = (f"{row['not looping'][budget]:.2f}" for budget in budgets)
            rates.add_row("  not looping", *values)
    categories = _table(f"by category, {largest} nodes", list(drafters))
    depths = _table("steps that reach depth", list(map(str, range(1, 9))))
    for name in next(iter(drafters.values()))["categories"]:
        values = (row["categories"][name][largest] for row in drafters.values())
        categories.add_row(name, *(f"{value:.2f}" for value in values))
    for name, row in drafters.items():
        depths.add_row(name, *(f"{share:.2f}" for share in row["by_depth"][:8]))
    nodes = _table("nodes", ["per step", "tokens per step"])
    for name, row in result["min_score"].items():
        nodes.add_row(name, f"{row['nodes']:.1f}", f"{row['tokens_per_step']:.2f}")
    counts = "{prompts} prompts, {tokens} tokens, {looping} continuations end in a loop"
    bound = f"trees with every candidate of every head: {result['any_candidate']:.2f}"
    return Group(counts.format(**result), rates, categories, depths, nodes, bound)


def _table(first: str, columns: list[str]) -> Table:
    headers = (Column(name, justify="right") for name in columns)
    return Table(Column(first, no_wrap=True), *headers, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))


def check_plot(path: str) -> None:
    """Raise ImportError without matplotlib, ValueError if no picture can be kept in this file."""
    from matplotlib.figure import Figure

    try:
        with tempfile.TemporaryDirectory(dir=Path(path).parent) as scratch:
            Figure().savefig(Path(scratch, Path(path).name))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"plot must be a picture file to be written, got {path}: {error}"
        ) from error


def plot(result: dict, path: str) -> None:
    """Tokens per step over nodes verified, one line per drafter, as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, row in result["drafters"].items():
        budgets = [budget for budget in row["total"] if budget != "chain"]
        rates = [row["total"][budget] for budget in budgets]
        axes.plot([int(budget) for budget in budgets], rates, marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks([int(budget) for budget in budgets], budgets)
    axes.set(xlabel="nodes verified per step, root included", ylabel="tokens per step")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
