"""The draft model: heads which propose the next tokens, and the gate (GLM) which scores the tree.

Both read the frozen target: heads its hidden states (the last as in Medusa, Cai et al. 2024, and
earlier ones as in EAGLE-3, Li et al. 2025) and the drawn root (Hydra, Ankner et al. 2024), the GLM
its embeddings, by tied low-rank tables (without its gates: the Markov head of DSpark, 2607.05147).
"""

import contextlib
import copy
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from safetensors.torch import save_file
from torch import Tensor, nn

from ._library import backend_of, ops
from .ops import draft_blocks


@dataclass
class DraftConfig:
    """Shapes of a draft, and the identity of the target it was trained for."""

    hidden_size: int
    vocab_size: int
    num_layers: int
    target_name: str = ""
    target_parameters: int = 0
    num_heads: int = 5
    num_candidates: int = 64
    feature_layers: list[int] = field(default_factory=list)  # indices into `hidden_states`
    feature_size: int = 128  # hidden units which see hidden, feature layers and root together
    hidden_feature: bool = True  # whether heads also read the hidden state itself
    rank: int = 128  # R of the GLM
    draft_vocab_size: int = 0  # tokens the heads may propose; 0: all
    lookup_paths: int = 4  # 0: no context lookup
    lookup_length: int = 64
    lookup_min_ngram: int = 1
    lookup_max_ngram: int = 16


def rms_norm(x: Tensor) -> Tensor:
    """Root-mean-square normalisation without a weight."""
    return F.rms_norm(x, x.shape[-1:], eps=1e-6)


class DraftHeads(nn.Module):
    """H residual heads over shared features: residual_scale_i ⊙ hidden + SiLU(W_i f + b_i)."""

    def __init__(self, config: DraftConfig):
        super().__init__()
        dim, heads = config.hidden_size, config.num_heads
        sources = 2 + len(config.feature_layers)  # hidden, feature layers, root embedding
        self.hidden_feature = config.hidden_feature
        size = dim * config.hidden_feature + config.feature_size
        self.project = nn.Linear(sources * dim, config.feature_size)
        self.weight = nn.Parameter(torch.randn(heads, dim, size) * 0.1 * size**-0.5)
        self.bias = nn.Parameter(torch.zeros(heads, dim))
        self.residual_scale = nn.Parameter(torch.full((heads, dim), 0.5))

    def features(self, hidden: Tensor, layers: Tensor | None, root_embedding: Tensor) -> Tensor:
        """f [B, F]: the normalised hidden state if it is a feature, and K units which see all.

        hidden [B, D]; layers [B, len(feature_layers)·D]; root_embedding [B, D].
        """
        sources = [hidden, root_embedding] if layers is None else [hidden, root_embedding, layers]
        dim = hidden.shape[-1]
        normed = rms_norm(torch.cat(sources, -1).unflatten(-1, (-1, dim))).flatten(-2)
        units = F.silu(self.project(normed))
        return torch.cat((normed[..., :dim], units), -1) if self.hidden_feature else units

    def forward(self, hidden: Tensor, layers: Tensor | None, root_embedding: Tensor) -> Tensor:
        """Head states [B, H, D]: `draft_blocks` as one differentiable product."""
        features = self.features(hidden, layers, root_embedding)
        update = F.linear(features, self.weight.flatten(0, 1), self.bias.flatten())
        return self.residual_scale * hidden[:, None] + F.silu(update.unflatten(-1, self.bias.shape))


class GatedLinearModel(nn.Module):
    """Parameters of the gated linear recurrence which `glm_tree` runs down the tree."""

    def __init__(self, config: DraftConfig):
        super().__init__()
        dim, heads, rank = config.hidden_size, config.num_heads, config.rank
        self.gate = nn.Linear(dim, 2 * rank, bias=False)  # G, shared by the depths
        forget_and_take = torch.tensor([-1.0, 1.0]).repeat_interleave(rank)
        self.gate_bias = nn.Parameter(forget_and_take.repeat(heads, 1))  # c
        self.mix = nn.Parameter(torch.randn(2 * rank, rank) * 0.1 * rank**-0.5)
        self.depth_scale = nn.Parameter(torch.ones(heads, rank))
        self.project_in = nn.Parameter(torch.randn(rank, dim) * dim**-0.5)
        self.project_out = nn.Parameter(torch.randn(rank, dim) * 0.1 * dim**-0.5)

    def gates(self, head_states: Tensor) -> Tensor:
        """gate_d = G·h_d + c_d, [B, H, 2R] in the dtype of c_d, which is float32 (see `bind`)."""
        return self.gate(head_states) + self.gate_bias

    def rows_in(self, embedding: Tensor) -> Tensor:
        """Rows of table_in for rows of the target's embedding: [..., D] -> [..., R]."""
        return rms_norm(embedding) @ self.project_in.T

    def rows_out(self, lm_head: Tensor) -> Tensor:
        """Rows of table_out for rows of the target's LM head: [..., D] -> [..., R]."""
        return lm_head @ self.project_out.T


class ContextLookup(nn.Module):
    """How likely the paths of `context_lookup` are to survive, by rank, match length and depth."""

    def __init__(self, config: DraftConfig):
        super().__init__()
        shape = (config.lookup_paths, config.lookup_max_ngram + 1, config.lookup_length)
        self.register_buffer("table", torch.zeros(shape))
        rank = torch.arange(config.lookup_paths)
        self.register_buffer("rank", rank, persistent=False)
        self.window = {
            "max_ngram": config.lookup_max_ngram,
            "min_ngram": config.lookup_min_ngram,
            "num_paths": config.lookup_paths,
            "path_length": config.lookup_length,
        }

    def scores(self, match_length: Tensor) -> Tensor:
        """path_scores float32 [B, P, Q] for match_length int32 [B, P]; 0 where nothing matched."""
        return self.table[self.rank, match_length]


class DraftModel(nn.Module, PyTorchModelHubMixin):
    """Heads and GLM for one frozen target; `bind` makes the drafter which the loop calls."""

    def __init__(self, config: DraftConfig):
        super().__init__()
        self.config = config
        self.heads = DraftHeads(config)
        self.glm = GatedLinearModel(config)
        self.lookup = ContextLookup(config) if config.lookup_paths else None
        slope_and_shift = torch.tensor([[1.0, 0.0]]).repeat(config.num_heads, 1)
        self.register_buffer("calibration", slope_and_shift)  # of each depth's log q
        vocab = torch.arange(config.draft_vocab_size, dtype=torch.int32)
        self.register_buffer("draft_vocab", vocab)  # increasing token ids; empty: all

    @property
    def num_parameters(self) -> int:
        """Trained parameters."""
        return sum(parameter.numel() for parameter in self.parameters())

    def summary(self) -> str:
        """One line: shapes, trained parameters and their share of the target's."""
        config, total = self.config, self.config.target_parameters
        share = f" ({self.num_parameters / total:.2%} of the target's)" if total else ""
        vocab = config.draft_vocab_size or config.vocab_size
        return (
            f"draft for {config.target_name or 'a target'}: {config.num_heads} heads, GLM rank "
            f"{config.rank}, {config.num_candidates} candidates of {vocab} tokens, "
            f"{self.num_parameters / 1e6:.2f} M trained parameters{share}"
        )

    def extra_repr(self) -> str:
        return self.summary()

    def check_target(self, hidden_size: int, vocab_size: int, num_layers: int | None = None):
        """Raise a ValueError unless the target has the shape this draft was trained for."""
        config = self.config
        for name, expected, actual in (
            ("hidden size", config.hidden_size, hidden_size),
            ("vocabulary size", config.vocab_size, vocab_size),
            ("number of layers", config.num_layers, num_layers),
        ):
            if actual is not None and actual != expected:
                raise ValueError(
                    f"draft: it was trained for {config.target_name or 'a target'} with {name} "
                    f"{expected}, got a target with {name} {actual}"
                )

    def bind(
        self, embedding: Tensor, lm_head: Tensor, num_layers: int | None = None
    ) -> "BoundDraft":
        """The drafter for a target, on its device and in its dtype.

        embedding, lm_head: the target's weights [V, D]; num_layers: checked if given. Raises
        ValueError where the target is not the one the draft was trained for.
        """
        self.check_target(lm_head.shape[1], lm_head.shape[0], num_layers)
        return BoundDraft(self, embedding, lm_head)

    @classmethod
    def _from_pretrained(cls, **options):
        with contextlib.redirect_stdout(sys.stderr):  # the mixin announces local folders
            return super()._from_pretrained(**options)

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write model.safetensors: matrices in bfloat16, everything small in float32."""
        tensors = {name: tensor.detach().contiguous() for name, tensor in self.state_dict().items()}
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and tensor.numel() > 2**14:
                tensors[name] = tensor.bfloat16()
        save_file(tensors, Path(save_directory) / "model.safetensors")


class FewRows(nn.Module):
    """A linear layer in one `fused_linear`: on few rows torch's own takes a CPU longer to start."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weights = [linear.weight.detach()]
        self.biases = [] if linear.bias is None else [linear.bias.detach()]

    def forward(self, x: Tensor) -> Tensor:
        (out,) = ops.fused_linear.default(
            x.flatten(0, -2), self.weights, self.biases, False, None, None, 0.0
        )
        return out.unflatten(0, x.shape[:-1])


class BoundDraft:
    """A draft with the tables made from its target's weights: what `glm_tree` and the loop read.

    Attributes: vocab_weight [V', D] and id_map [V'] (None: all tokens) for `linear_topk`; table_in,
    table_out [V, R], mix [2R, R], depth_scale [H, R] and calibration [H, 2] for `glm_tree`; lookup,
    a `ContextLookup` or None; depths int64 [H], those of the heads; num_candidates, feature_layers,
    max_depth.
    """

    @torch.no_grad()
    def __init__(self, model: DraftModel, embedding: Tensor, lm_head: Tensor):
        config = model.config
        model = copy.deepcopy(model).to(lm_head.device)
        self.num_candidates = config.num_candidates
        self.feature_layers = tuple(config.feature_layers)
        self.lookup = model.lookup
        self.depths = torch.arange(1, config.num_heads + 1, device=lm_head.device)
        self.max_depth = max(config.num_heads, config.lookup_length if config.lookup_paths else 0)
        self.calibration = model.calibration
        self.table_in = model.glm.rows_in(embedding.float()).to(lm_head.dtype)
        self.table_out = model.glm.rows_out(lm_head.float()).to(lm_head.dtype)
        self.depth_scale = model.glm.depth_scale.detach().clone()
        self.embedding = embedding.detach()
        self.heads, self.glm = model.heads.to(lm_head.dtype), model.glm.to(lm_head.dtype)
        self.glm.gate_bias.data = self.glm.gate_bias.float()
        self.mix = self.glm.mix.detach()
        if lm_head.device.type == "cpu" and backend_of("fused_linear", "cpu")[0] == "native":
            self.heads.project, self.glm.gate = FewRows(self.heads.project), FewRows(self.glm.gate)
        self.id_map, self.vocab_weight = None, lm_head.detach()
        if config.draft_vocab_size:
            self.id_map = model.draft_vocab.long()
            self.vocab_weight = self.vocab_weight[self.id_map].contiguous()

    @torch.no_grad()
    def head_states(self, hidden: Tensor, layers: Tensor | None, root: Tensor) -> Tensor:
        """States [B, H, D] of the heads.

        hidden [B, D]: the target's state after the final norm which drew `root` int64 [B]; layers
        [B, len(feature_layers)·D]: its states of the feature layers at the same position.
        """
        heads = self.heads
        features = heads.features(hidden, layers, self.embedding[root])
        return draft_blocks(
            hidden, heads.weight, heads.bias, features=features, residual_scale=heads.residual_scale
        )

    @torch.no_grad()
    def gates(self, head_states: Tensor) -> Tensor:
        """Gates float32 [B, H, 2R] of `glm_tree`."""
        return self.glm.gates(head_states)
