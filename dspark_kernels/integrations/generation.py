"""What a call of transformers' `generate` asks of a decoder: read from its objects, or refused."""

from collections.abc import Callable, Sequence

import torch
from transformers import (
    Cache,
    GenerationConfig,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
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

from ..checks import plain
from ..prompts import stop_tokens

PROCESSORS = {  # and their parameters, in the order in which the draw applies them
    RepetitionPenaltyLogitsProcessor: ("repetition_penalty", "penalty"),
    TemperatureLogitsWarper: ("temperature", "temperature"),
    TopKLogitsWarper: ("top_k", "top_k"),
    TopPLogitsWarper: ("top_p", "top_p"),
    MinPLogitsWarper: ("min_p", "min_p"),
}
USUAL = {"min_tokens_to_keep": 1, "filter_value": -float("inf")}
OUTPUTS = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


def _fail(name: str, expected: str, got) -> None:
    raise ValueError(f"custom_generate: {name} must {expected}, got {got}")


def check_call(own_model: bool, config: GenerationConfig, model_kwargs: dict) -> None:
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
    if model_kwargs.get("inputs_embeds") is not None:
        _fail("inputs_embeds", "be None: prompts are token ids", "a tensor")
    for name, given in model_kwargs.items():  # past_key_values, or cache from transformers 5.24
        if isinstance(given, Cache) and given.get_seq_length():
            _fail(name, "be empty", f"{given.get_seq_length()} tokens")


def unpadded(input_ids: torch.Tensor, attention_mask, position_ids) -> list[list[int]]:
    """The prompts of input_ids int64 [B, S]; attention_mask [B, S] is 0 for padding at the left.

    position_ids [1 or B, S] or None: must count the tokens of each prompt.
    """
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    if mask.shape != input_ids.shape:
        _fail("attention_mask", f"be of shape {list(input_ids.shape)}", list(mask.shape))
    mask = mask.bool()
    if (mask[:, :-1] & ~mask[:, 1:]).any():
        _fail("attention_mask", "pad prompts at the left alone", "zeros behind ones")
    if position_ids is not None:
        counted = position_ids.diff(dim=-1) == 1
        if position_ids.shape[-1] != mask.shape[1] or not (counted | ~mask[:, :-1]).all():
            _fail("position_ids", "count the tokens of each prompt", "others")
    return [ids[kept].tolist() for ids, kept in zip(input_ids, mask, strict=True)]


def sampling_options(
    logits_processor: Sequence, config: GenerationConfig, padding: Sequence[int]
) -> dict:
    """Options of the draw; seeds come from torch's global generator. padding: of each request."""
    names = [name for name, _ in PROCESSORS.values()]
    expected = f"hold {', '.join(names)} in this order, each once at most"
    options, left = {}, list(PROCESSORS)
    for processor in logits_processor:
        kind = type(processor)
        if kind not in left:
            _fail("logits_processor", expected, [type(each).__name__ for each in logits_processor])
        for name, usual in USUAL.items():
            given = getattr(processor, name, usual)
            if given != usual:
                _fail(f"{name} of {kind.__name__}", f"be {usual}", given)
        ignored = plain(getattr(processor, "prompt_ignore_length", None))
        if ignored is not None and ignored != padding:
            _fail(f"prompt_ignore_length of {kind.__name__}", f"be {padding}", ignored)
        left = left[left.index(kind) + 1 :]
        option, parameter = PROCESSORS[kind]
        options[option] = getattr(processor, parameter)
    if not config.do_sample:
        return {"repetition_penalty": options.get("repetition_penalty", 1.0)}
    seeds = torch.randint(2**63 - 1, (len(padding),)).tolist()
    return {"temperature": 1.0, "seed": seeds, **options}


def stop_options(
    stopping_criteria: Sequence, config: GenerationConfig, input_ids: torch.Tensor
) -> dict:
    """How requests end: at a length, at tokens, or where other criteria are met."""
    stop, lengths, others = [], [], []
    for criterion in stopping_criteria:
        if type(criterion) is EosTokenCriteria:
            stop += [token for token in criterion.eos_token_id.tolist() if token >= 0]
        elif type(criterion) is MaxLengthCriteria:
            lengths.append(criterion.max_length)
        else:
            others.append(criterion)
    rows, most = input_ids.tolist(), min(lengths, default=config.max_length)

    def stop_when(request: int, tokens: list[int]) -> bool:
        return _met(others, rows[request] + tokens, input_ids.device)

    return {
        "max_new_tokens": max(1, most - input_ids.shape[1]),
        "stop": stop,
        "stop_when": stop_when if others else None,
    }


def _met(criteria: Sequence, tokens: list[int], device) -> bool:
    """Whether one of transformers' criteria is met by a sequence."""

    def met(criterion) -> bool:
        if type(criterion) is StopStringCriteria:  # reads so many, and needs no GPU
            row = torch.tensor([tokens[-criterion.maximum_token_len :]])
        else:
            row = torch.tensor([tokens], device=device)
        return bool(torch.as_tensor(criterion(row, None)).all())

    return any(map(met, criteria))


def stop_at(
    criterion: StopStringCriteria, stop_when: Callable[[int, list[int]], bool] | None
) -> Callable[[int, list[int]], bool]:
    """`stop_when` which ends a request at strings in its continuation, too."""

    def met(request: int, tokens: list[int]) -> bool:
        if _met([criterion], tokens, "cpu"):
            return True
        return stop_when is not None and stop_when(request, tokens)

    return met


def padded(
    input_ids: torch.Tensor, tokens: list[list[int]], config: GenerationConfig, stop: Sequence[int]
):
    """What `generate` returns: input_ids and the new tokens of each row, padded at the right."""
    pads = config.pad_token_id, *stop_tokens(config), *stop, 0
    pad = next(token for token in pads if token is not None and token >= 0)
    new = input_ids.new_full((len(tokens), max(map(len, tokens))), pad, dtype=torch.int64)
    for row, ids in zip(new, tokens, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    sequences = torch.cat((input_ids.long(), new), dim=1)
    if config.return_dict_in_generate:
        return GenerateDecoderOnlyOutput(sequences=sequences)
    return sequences
