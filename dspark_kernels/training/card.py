"""The model card of a trained draft: what its training.json says, for people."""

from pathlib import Path

from ..heads import DraftModel

FRONT = """---
library_name: dspark_kernels
tags: [speculative-decoding]
---
"""


def write_card(path: Path, draft: DraftModel, report: dict) -> None:
    """Write the card, unless there is a text which is not an earlier card."""
    if not path.exists() or path.read_text(encoding="utf-8").startswith(FRONT):
        path.write_text(card(draft, report), encoding="utf-8")


def card(draft: DraftModel, report: dict) -> str:
    """README.md of a draft with its `report`, the content of training.json."""
    config, training = draft.config, report["training"]
    calibrated, evaluated = report["calibrated_on"], report["evaluated_on"]
    errors, too_long = report["calibration_error"], report["prompts"]["too_long"]
    depths = list(map(str, range(1, config.num_heads + 1)))
    vocabulary = (
        f"the {config.draft_vocab_size:,} most frequent tokens of the training data"
        if config.draft_vocab_size
        else f"all {config.vocab_size:,} tokens"
    )
    layers = ", ".join(f"h_{layer}" for layer in config.feature_layers)
    reads = f" and those of earlier layers ({layers})" if layers else ""
    return f"""{FRONT}
# Draft for {config.target_name}

{config.num_heads} residual heads and a gated linear model (rank {config.rank}) which propose and
score the token tree of `dspark_kernels`. {draft.num_parameters:,} trained parameters,
{draft.num_parameters / config.target_parameters:.2%} of the target's {config.target_parameters:,}.
The output does not depend on them: every emitted token is the target's own draw.

The heads read the target's last hidden state{reads}, and propose
{config.num_candidates} candidates each out of {vocabulary}.

## Training

{report["tokens"]:,} tokens in {report["continuations"]:,} continuations of the target itself, of at
most {training["max_new_tokens"]} new tokens. Prompts: `{Path(training["prompts"]).name}`, less
{too_long:,} which were too long. {training["steps"]:,} steps of
{training["segments"] * training["segment_length"]:,} positions, at a rate of at most
{training["learning_rate"]:g}, took {training["seconds"]:,} seconds; device `{training["device"]}`.
All options are in training.json.

## Calibration

The scores are calibrated at the end, log q ← slope · log q + shift at every depth, on
{calibrated["continuations"]:,} greedy continuations{_held_out(calibrated)}.
Expected calibration error of the best child by depth, in percent:

{_table(["", *depths], [[name, *(f"{100 * e:.1f}" for e in errors[name])] for name in errors])}

## Tokens per step

Replayed on {evaluated["continuations"]:,} of these continuations, by nodes verified per step, root
included; "chain" follows the best child only:

{_rates(report["held_out_tokens_per_step"])}

## Use

    dspark generate "Write a haiku about rain." --model {training["model"]} --draft THIS_FOLDER
"""


def _held_out(entry: dict) -> str:
    if entry["held_out"]:
        return " of held-out topics"
    return ", which the draft was trained on as well: no held-out topic had a greedy one"


def _rates(measured: dict) -> str:
    """Tokens per step with and without lookup, and by category where there are several."""
    rows = []
    for name, rates in measured.items():
        shown = rates if len(rates) > 2 else {"total": rates["total"]}
        for category, row in shown.items():
            kind = "" if category == "total" else f": {category}"
            values = (f"{value:.2f}" for value in row.values())
            rows.append([name.replace("_", " ") + kind, *values])
    return _table(["", *measured["with_lookup"]["total"]], rows)


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines).replace("|  |", "| |")
