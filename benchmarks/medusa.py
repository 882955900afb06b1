"""Medusa-style decoding (Cai et al. 2024, arXiv 2401.10774): independent heads, a static tree.

The heads are those of our draft, without its gate and without lookup; the tree has a fixed shape:
the nodes which the heads' observed accuracies make the likeliest, as Medusa chooses its own.
"""

import torch

from dspark_kernels import DraftTree, chain, linear_topk, static_tree
from dspark_kernels.accept import medusa_choices
from dspark_kernels.bench import DEFAULT_PROMPTS, Decoded, read_prompts
from dspark_kernels.prompts import encode

from . import loop

RANKS = 10  # candidates of a head that the tree may hold
PROMPTS, TOKENS = 2, 48  # per category, and tokens of each, on which accuracies are observed


class Medusa:
    """The method, with a tree of `num_nodes` nodes chosen from the default prompts."""

    max_batch = None

    def __init__(self, decoder, num_nodes: int = 16):
        if decoder.draft is None:
            raise ValueError("medusa: the model needs a draft, whose heads it uses")
        self.decoder = decoder
        choices = medusa_choices(_accuracies(decoder), num_nodes)
        self.tree = template(choices)
        self.max_nodes, self.max_depth = num_nodes, int(self.tree.depths.max())
        self.note = (
            f"the draft's heads without gate and lookup, a static tree of {num_nodes} nodes, "
            "on our pass"
        )

    def __call__(self, ids, max_new_tokens: int) -> Decoded:
        """Decode the prompts as one batch."""
        return Decoded.of(loop.generate(self.decoder, self, ids, max_new_tokens))

    def start(self, texts) -> "Drafter":
        """The drafter of a batch."""
        return Drafter(self.decoder.draft, self.tree, len(texts))


def template(choices) -> DraftTree:
    """The static tree of `choices`; its tokens say which of all heads' candidates a node takes."""
    heads = max(map(len, choices))
    places = torch.arange(heads * RANKS).view(1, heads, RANKS)
    return static_tree(choices, places, torch.zeros(1, dtype=torch.int64))


def candidates(draft, state) -> torch.Tensor:
    """The heads' best tokens, int64 [B, H, RANKS]."""
    states = draft.head_states(state.hidden, state.features, state.root)
    _, ids, _ = linear_topk(states.flatten(0, 1), draft.vocab_weight, RANKS, id_map=draft.id_map)
    return ids.view(*states.shape[:2], RANKS)


class Drafter:
    """Fills the static tree; see `loop.Drafter`."""

    def __init__(self, draft, tree: DraftTree, batch: int):
        device = draft.vocab_weight.device
        self.draft, self.places = draft, tree.tokens[0, 1:].to(device)
        self.tree = DraftTree(
            *(part.expand(batch, *part.shape[1:]).contiguous().to(device) for part in tree)
        )

    def propose(self, state) -> DraftTree:
        """The tree of the heads' candidates."""
        picked = candidates(self.draft, state).flatten(1)[:, self.places]
        return self.tree._replace(tokens=torch.cat((state.root[:, None], picked), 1))

    def observe(self, emitted, drawn) -> None:
        """Nothing is learnt."""

    def select(self, requests) -> None:
        """Go on with as many; the tree is the same for all."""
        self.tree = DraftTree(*(part[: len(requests)] for part in self.tree))


class Observer:
    """Decodes plainly and keeps what the heads would have proposed."""

    max_nodes, max_depth = 1, 0

    def __init__(self, draft):
        self.draft, self.proposed = draft, []

    def start(self, texts) -> "Observer":
        """The observer itself."""
        return self

    def propose(self, state) -> DraftTree:
        """The root alone."""
        self.proposed.append(candidates(self.draft, state)[0])
        return chain(state.root[:, None])

    def observe(self, emitted, drawn) -> None:
        """Nothing is learnt."""


def _accuracies(decoder) -> torch.Tensor:
    """[H, RANKS]: how often each rank of each head is the token that comes."""
    hits, steps = 0, 0
    for record in read_prompts(DEFAULT_PROMPTS, PROMPTS):
        observer, prompt = Observer(decoder.draft), encode(record, decoder.tokenizer)
        tokens = torch.tensor(loop.generate(decoder, observer, [prompt], TOKENS).tokens[0])
        heads = observer.proposed[0].shape[0]
        proposed = torch.stack(observer.proposed).cpu()[: len(tokens) - heads]
        if not len(proposed):
            continue
        came = tokens.unfold(0, heads, 1)[1 : len(proposed) + 1]  # behind each root
        hits = hits + (proposed == came[..., None]).sum(0)
        steps += len(proposed)
    return hits / steps
