"""What a call of transformers' `generate` asks of a decoder: read from its objects, or refused."""

from collections.abc import Callable, Sequence

import torch
from transformers import (
    GenerationConfig,
    MinPLogitsWarper,
    StopStringCriteria,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation import (
    EosTokenCriteria,
    GenerateDecoderOnlyOutput,
    GenerationMode,
    MaxLengthCriteria,
)

from ..checks import function, texts

WARPERS = {
    TemperatureLogitsWarper: "temperature",
    TopKLogitsWarper: "top_k",
    TopPLogitsWarper: "top_p",
    MinPLogitsWarper: "min_p",
}
OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


def _fail(name: str, expected: str, got) -> None:
    raise ValueError(f"custom_generate: {name} must {expected}, got {got}")


def check_call(own_model: bool, config: GenerationConfig, inputs_embeds, cache) -> None:
    """Raise a ValueError if `generate` was called for what this decoding cannot do."""
    if not own_model:
        _fail("model", "be the one which the decoder was made of", "another one")
    mode = config.get_generation_mode()
    if mode not in (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE):
        _fail("generation_config", "ask for greedy search or sampling", mode.value)
    if config.return_dict_in_generate:
        for name in OUTPUTS:
            if getattr(config, name):
                _fail(name, "be False", True)
    if inputs_embeds is not None:
        _fail("inputs_embeds", "be None: prompts are token ids", "a tensor")
    if cache is not None and cache.get_seq_length():
        _fail("past_key_values", "be empty", f"{cache.get_seq_length()} tokens")


def unpadded(input_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> list[list[int]]:
    """The prompts of input_ids int64 [B, S]; attention_mask [B, S] is 0 for padding at the left."""
    if attention_mask is None:
        return input_ids.tolist()
    mask = attention_mask.bool()
    if (mask[:, :-1] & ~mask[:, 1:]).any():
        _fail("attention_mask", "pad prompts at the left alone", "zeros behind ones")
    return [ids[kept].tolist() for ids, kept in zip(input_ids, mask, strict=True)]


def sampling_options(logits_processor: Sequence, config: GenerationConfig, requests: int) -> dict:
    """Options of the draw; seeds come from torch's global generator."""
    options = {}
    for processor in logits_processor:
        if type(processor) not in WARPERS:
            known = "temperature, top-k, top-p and min-p alone"
            _fail("logits_processor", f"hold {known}", type(processor).__name__)
        name = WARPERS[type(processor)]
        options[name] = getattr(processor, name)
    if not config.do_sample:
        return {}
    return {"temperature": 1.0, "seed": torch.randint(2**63 - 1, (requests,)).tolist(), **options}


def stop_options(
    stopping_criteria: Sequence, config: GenerationConfig, input_ids: torch.Tensor, prompts
) -> dict:
    """How requests end: at a length, at tokens, or where other criteria are met."""
    stop, most, others = [], config.max_length, []
    for criterion in stopping_criteria:
        if type(criterion) is EosTokenCriteria:
            stop += criterion.eos_token_id.tolist()
        elif type(criterion) is MaxLengthCriteria:
            most = criterion.max_length
        else:
            others.append(criterion)

    def stop_when(request: int, tokens: list[int]) -> bool:
        return _met(others, prompts[request] + tokens, input_ids.device)

    return {
        "max_new_tokens": most - input_ids.shape[1],
        "stop": stop,
        "stop_when": stop_when if others else None,
    }


def _met(criteria: Sequence, tokens: list[int], device) -> bool:
    """Whether one of transformers' criteria is met by a sequence."""
    row = torch.tensor([tokens], device=device)
    return any(bool(torch.as_tensor(criterion(row, None)).all()) for criterion in criteria)


def stop_at_strings(
    strings: str | Sequence[str] | None,
    tokenizer,
    stop_when: Callable[[int, list[int]], bool] | None,
) -> Callable[[int, list[int]], bool] | None:
    """`stop_when` which ends a request at these strings in its continuation, too."""
    if strings is None:
        return stop_when
    function("stop_when", stop_when)
    strings = texts("stop_strings", strings)
    if tokenizer is None:
        raise ValueError("generate: stop_strings must be None where there is no tokenizer")
    criterion = StopStringCriteria(tokenizer, strings)

    def met(request: int, tokens: list[int]) -> bool:
        if _met([criterion], tokens, "cpu"):
            return True
        return stop_when is not None and stop_when(request, tokens)

    return met


def padded(
    input_ids: torch.Tensor, tokens: list[list[int]], config: GenerationConfig, stop: Sequence[int]
):
    """What `generate` returns: input_ids and the new tokens of each row, padded at the right."""
    pad = config.pad_token_id
    if pad is None:
        pad = stop[0] if stop else 0
    new = input_ids.new_full((len(tokens), max(map(len, tokens))), pad)
    for row, ids in zip(new, tokens, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    sequences = torch.cat((input_ids, new), dim=1)
    if config.return_dict_in_generate:
        return GenerateDecoderOnlyOutput(sequences=sequences)
    return sequences
