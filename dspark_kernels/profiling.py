"""Measuring the cost table of a target and its draft: `dspark profile`, or before the first use."""

import functools
import time
import warnings
from functools import partial
from itertools import accumulate

import torch
from rich import box
from rich.console import Group
from rich.table import Column, Table
from tqdm import tqdm

from .cost import CostTable, table_key, table_path
from .decode import max_depth, propose, verify
from .graph import Graphs, on_device, wait
from .ops import values_on_trust
from .sampling import Sampling
from .scheduler import SIZES
from .state import State
from .statistics import no_clock
from .tree import chain

NODES = SIZES[-1]  # of a draft, and of one request at most
TOKENS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 128)
CONTEXTS = (64, 1024)
BATCHES = (1, 4)
MANY = 8  # requests of one token each, beside one request of as many tokens
WARM_UP, LEAST_ROUNDS, MOST_ROUNDS = 2, 5, 20  # warm-up: to compile, and to capture
SETTLED = 0.005  # a round which makes the table less faster than by this share is the last


def cost_table(target, draft) -> CostTable:
    """The kept table for this target, draft and machine; measured now if there is none.

    Warns and measures again where the kept one was made with other versions or is damaged; warns
    too where it cannot be kept.
    """
    key = table_key(target, draft)
    path = table_path(key)
    try:
        if path.exists():
            return CostTable.load(path, key)
    except (ValueError, OSError) as error:
        warnings.warn(f"{error} (done now)", stacklevel=2)
    table = profile(target, draft)
    try:
        table.save()
    except OSError as error:
        warnings.warn(
            f"what steps cost here was measured and cannot be kept: {error}", stacklevel=2
        )
    return table


def view(table: CostTable) -> Group:
    """The table for people, in milliseconds."""
    passes = Table(
        "tokens", *(Column(f"{context} in context", justify="right") for context in table.contexts),
        title="a target pass, ms", box=box.SIMPLE_HEAD,
    )  # fmt: skip
    for tokens, *row in zip(table.tokens, *table.pass_seconds, strict=True):
        passes.add_row(str(tokens), *(f"{1e3 * seconds:.2f}" for seconds in row))
    passes.add_row("a further request", *(f"{1e3 * s:.2f}" for s in table.request_seconds))
    drafts = Table("requests", Column("ms", justify="right"), title="a draft", box=box.SIMPLE_HEAD)
    for batch, seconds in zip(table.batches, table.draft_seconds, strict=True):
        drafts.add_row(str(batch), f"{1e3 * seconds:.2f}")
    return Group(passes, drafts)


@torch.inference_mode()
@values_on_trust()
def profile(target, draft) -> CostTable:
    """Measure passes and drafts in turn; of each the fastest counts, free of others' load."""
    with on_device(target.device):
        return _profile(target, draft)


def _profile(target, draft) -> CostTable:
    held = functools.cache(partial(_state, target))  # by context and batch
    longest = target.max_length - NODES
    contexts = [context for context in CONTEXTS if context <= longest] or [max(longest, 1)]
    functions = {
        (context, tokens): _pass(
            target, draft, *held(context, -(-tokens // NODES)), min(tokens, NODES)
        )
        for context in contexts
        for tokens in TOKENS
    }
    functions |= {
        (context, "many"): _pass(target, draft, *held(context, MANY), 1) for context in contexts
    }
    functions |= {batch: _draft(draft, *held(contexts[0], batch)) for batch in BATCHES}
    fastest = dict.fromkeys(functions, float("inf"))
    rounds = range(-WARM_UP, MOST_ROUNDS)
    for round in tqdm(rounds, "measuring what a step costs", leave=False, unit="round"):
        before = sum(fastest.values())
        for case, function in functions.items():
            spent = _seconds(function, target.device)
            if round >= 0:
                fastest[case] = min(spent, fastest[case])
        if round + 1 >= LEAST_ROUNDS and sum(fastest.values()) > (1 - SETTLED) * before:
            break
    return CostTable(
        key=table_key(target, draft),
        contexts=contexts,
        tokens=list(TOKENS),
        pass_seconds=[
            _increasing(fastest[context, tokens] for tokens in TOKENS) for context in contexts
        ],
        batches=list(BATCHES),
        draft_seconds=_increasing(fastest[batch] for batch in BATCHES),
        request_seconds=[
            max(fastest[context, "many"] - fastest[context, MANY], 0.0) / (MANY - 1)
            for context in contexts
        ],
    )


def _seconds(function, device: torch.device) -> float:
    wait(device)
    start = time.perf_counter()
    function()
    wait(device)
    return time.perf_counter() - start


def _increasing(seconds) -> list[float]:
    """Less work is never dearer: whatever says so was disturbed."""
    return list(accumulate(reversed(list(seconds)), min))[::-1]


def _state(target, context: int, batch: int) -> tuple[State, Graphs]:
    """Requests of `context` random tokens, as if their cache were filled."""
    sampling = Sampling().tensors(batch, target.device)
    state = State.empty(target, batch, context + 2 * NODES, sampling, 1)
    tokens = torch.randint(target.lm_head.shape[0], (batch, context)).tolist()
    state.load(tokens, sampling, [0], NODES)
    state.hidden.normal_()
    return state, Graphs(target.device)


def _pass(target, draft, state: State, graphs: Graphs, nodes: int):
    """A function that runs the target over chains of so many nodes of each request."""
    context, batch = int(state.lengths[0]), len(state.lengths)
    tokens = torch.randint(target.lm_head.shape[0], (batch, nodes), device=target.device)
    tree, deepest = chain(tokens), max_depth(draft)

    def run():
        state.lengths.fill_(context)
        state.cache.seqlens.fill_(context - 1)
        return verify(target, state, tree, deepest, no_clock)

    return lambda: graphs(nodes, run)


def _draft(draft, state: State, graphs: Graphs):
    """A function that drafts trees for the requests."""
    return lambda: graphs("draft", lambda: propose(draft, state, NODES, 0.0))
