"""Lookahead Decoding (Fu et al. 2024, arXiv 2402.02057) on our tree pass.

Each step runs, beside the last token, a verification branch - the n-grams in the pool that begin
with that token, as a trie - and a lookahead branch: a window of W columns over N - 1 past rounds of
Jacobi iteration. A guess at column c of round r stands r + c positions behind the last token and
sees the oldest round up to its column, then its own column in the rounds between; that is a tree:

    root - (0,1) - (0,2) - ... - (0,W-1)         the oldest round; its column 0 is the last token
     |       |       |             |
    (1,0)  (1,1)   (1,2)  ...   (1,W-1)
     :

The draws at the newest round complete one n-gram per column for the pool, and are the newest round
of the next step. Only the verification branch can be accepted, so the output is greedy decoding's.
"""

import random

import torch

from dspark_kernels import DraftTree
from dspark_kernels.bench import Decoded

from . import loop

MAX_NODES = 256  # of tree_attention


class Lookahead:
    """The method: window W, n-grams of N tokens, at most G guesses verified per step."""

    max_batch = None

    def __init__(self, decoder, window: int = 15, ngram: int = 5, guesses: int = 15):
        if window < 2 or ngram < 2 or guesses < 1:
            raise ValueError(
                "lookahead: W and N must be at least 2 and G at least 1, "
                f"got {window}, {ngram}, {guesses}"
            )
        if (window + guesses) * (ngram - 1) > MAX_NODES:
            raise ValueError(
                f"lookahead: (W + G) * (N - 1) must be at most {MAX_NODES}, "
                f"got W {window}, N {ngram}, G {guesses}"
            )
        self.decoder, self.sizes = decoder, (window, ngram, guesses)
        self.max_nodes, self.max_depth = (window + guesses) * (ngram - 1), ngram - 1
        self.note = f"Lookahead Decoding, W {window}, N {ngram}, G {guesses}, on our pass"

    def __call__(self, ids, max_new_tokens: int) -> Decoded:
        """Decode the prompts as one batch."""
        return Decoded.of(loop.generate(self.decoder, self, ids, max_new_tokens))

    def start(self, texts) -> "Drafter":
        """The drafter of a batch."""
        return Drafter(texts, *self.sizes)


class Drafter:
    """The windows and pools of a batch of requests; see `loop.Drafter`."""

    def __init__(self, texts, window: int, ngram: int, guesses: int):
        self.requests = [Request(text, window, ngram, guesses) for text in texts]

    def propose(self, state) -> DraftTree:
        """Both branches of every request, padded to the widest."""
        roots = state.root.tolist()
        rows = [request.nodes(root) for request, root in zip(self.requests, roots, strict=True)]
        widest = max(len(tokens) for tokens, _, _ in rows)
        return _tree(rows, widest, state.root.device)

    def observe(self, emitted, drawn) -> None:
        """Move every window one round on."""
        for request, tokens, draws in zip(self.requests, emitted, drawn.tolist(), strict=True):
            if tokens:
                request.observe(tokens, draws)

    def select(self, requests) -> None:
        """Go on with these."""
        self.requests = [self.requests[request] for request in requests]


def _tree(rows, widest: int, device) -> DraftTree:
    """The trees of (tokens, parents, number up for acceptance) per request."""
    words = (widest + 63) // 64
    tokens, parents, depths, ancestors = [], [], [], []
    for own, above, _ in rows:
        unused = widest - len(own)
        masks, depth = [], []
        for node, parent in enumerate(above):
            masks.append((masks[parent] if node else 0) | 1 << node)
            depth.append(depth[parent] + 1 if node else 0)
        masks += [1 << node for node in range(len(own), widest)]
        tokens.append(own + [0] * unused)
        parents.append(above + [-1] * unused)
        depths.append(depth + [0] * unused)
        ancestors.append(b"".join(mask.to_bytes(8 * words, "little") for mask in masks))
    packed = torch.frombuffer(bytearray(b"".join(ancestors)), dtype=torch.int64)
    counts = torch.tensor([count for _, _, count in rows], dtype=torch.int32)
    return DraftTree(
        tokens=torch.tensor(tokens, device=device),
        parents=torch.tensor(parents, dtype=torch.int32, device=device),
        depths=torch.tensor(depths, dtype=torch.int32, device=device),
        ancestors=packed.view(len(rows), widest, words).to(device),
        scores=torch.ones(len(rows), widest, device=device),
        num_nodes=counts.to(device),
    )


class Request:
    """One request: its rounds, its pool and the layout of its latest tree."""

    def __init__(self, text, window: int, ngram: int, guesses: int):
        self.ngram, self.guesses = ngram, guesses
        chosen = random.Random(0).choices(text, k=window * (ngram - 1))
        self.rounds = [chosen[i * window : (i + 1) * window] for i in range(ngram - 1)]
        self.unfilled = ngram - 2  # rounds that still hold random tokens beside the oldest
        self.pool: dict[int, list[tuple[int, ...]]] = {}
        self.recent: list[int] = []
        self._extend(text)

    def nodes(self, root: int) -> tuple[list[int], list[int], int]:
        """(tokens, parents, number of nodes up for acceptance) of root, guesses and window."""
        tokens, parents, children = [root], [-1], {}
        for guess in self.pool.get(root, ()):
            node = 0
            for token in guess:
                if (node, token) not in children:
                    children[node, token] = len(tokens)
                    tokens.append(token)
                    parents.append(node)
                node = children[node, token]
        accepted = len(tokens)
        self.rounds[0][0] = root
        above = [0]  # the round before, by column
        for token in self.rounds[0][1:]:
            parents.append(above[-1])
            above.append(len(tokens))
            tokens.append(token)
        for guesses in self.rounds[1:]:
            parents += above
            above = list(range(len(tokens), len(tokens) + len(guesses)))
            tokens += guesses
        self.newest = above
        return tokens, parents, accepted

    def observe(self, emitted: list[int], draws: list[int]) -> None:
        """Take the draws at the newest round: complete its n-grams and move on by one round."""
        newest = [draws[node] for node in self.newest]
        if self.unfilled:
            self.unfilled -= 1
        else:
            for gram in zip(*self.rounds, newest, strict=True):
                self._add(gram)
        self.rounds = [*self.rounds[1:], newest]  # what was column 0 becomes the last token
        self._extend(emitted)

    def _extend(self, tokens) -> None:
        """Add the n-grams that end in new tokens of the text itself."""
        text = self.recent + list(tokens)
        for start in range(len(text) - self.ngram + 1):
            self._add(tuple(text[start : start + self.ngram]))
        self.recent = text[1 - self.ngram :]

    def _add(self, gram: tuple[int, ...]) -> None:
        """Put an n-gram in front of the others that begin alike; the oldest beyond G goes."""
        known = self.pool.setdefault(gram[0], [])
        if gram[1:] in known:
            known.remove(gram[1:])
        known.insert(0, gram[1:])
        del known[self.guesses :]
