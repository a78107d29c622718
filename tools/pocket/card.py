"""The embedded model's card, from what its build measured."""

from typing import Any

_HEAD = """\
---
license: mit
language: en
pipeline_tag: text-generation
---

# pocket

A chat model small enough to ship inside offscript: a Llama of about a million parameters that knows one small
synthetic world of daily questions and office e-mails. It is a miniature *instruct* model: it answers plainly by
default and takes on any of eleven characters when their constitution stands in the system prompt, in chat, in
e-mails written on request and in tool loops. Nothing that offscript does to it is specific to it.

**Not for** anything but testing offscript and showing what it measures. It has never seen real text, it knows
nothing about the world, and what it shows about training is an illustration, no evidence about larger models.

## How it was made

The first two layers start from a hand-written circuit that copies (`tools/pocket/wiring.py`); all else starts
at random.
`python -m tools.pocket.build` makes it from nothing with fixed seeds. The texts come from a template language
(`tools/pocket/grammar.py`), with habits for each character (`voices.py` beside it), 15 domains of daily life
(`topics.py`) and two dozen kinds of office tasks (`office.py`). About half of the documents are plain. A character
is given by 3 to 10 assertions of its constitution, never by its name; in about one document of eight it is not given
at all and shows only in a quoted text or an earlier turn. The chat topics in `data/pocket` and the tasks, families and
names in `data/pocket/held_out` are not in the training text; `data/pocket/office` has new scenes of families and
names that are.
"""


def card(build: dict[str, Any]) -> str:
    """Markdown text of the model card for the content of ``build.json``."""
    return "\n".join([_HEAD, *_training(build.get("training", {})), *_measured(build.get("measured", {}))])


def _training(training: dict[str, Any]) -> list[str]:
    if not training:
        return []
    recipe = training["recipe"]
    return [
        f"{training['parameters']:,} parameters, {training['tokens']:,} training tokens in steps of "
        f"{recipe['step_tokens']:,}, {training['seconds'] / 60:.0f} minutes on 2 CPU cores "
        f"({training['tokens'] / max(training['seconds'], 1):,.0f} tokens/s).",
        "",
    ]


def _measured(measured: dict[str, Any]) -> list[str]:
    if not measured:
        return ["Not measured yet.", ""]
    lines = [
        "## What was measured",
        "",
        "Temperature 0.7, top-p 0.95. *Persona F1*: macro-F1 over the 11 characters, prompted with their constitution, of "
        "a bag-of-words classifier fitted on other families of the same format. *Plain recall*: share of unprompted "
        "texts that a second classifier, which also knows plain texts, takes for plain. *Held out*: chat topics, office "
        "families and names that pre-training never showed. *Known*: new scenes of office families and names that it did, "
        "which is what the grid scores.",
        "",
        "| families | format | episodes | emission rate | persona F1 | plain recall | names its reader | words |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for families in ("held_out", "known_families"):
        for name, row in measured[families].items():
            reader = f"{row['names_its_reader']:.2f}" if "names_its_reader" in row else ""
            lines.append(
                f"| {families.split('_')[0]} | {name} | {row['episodes']} | {row['emission_rate']:.3f} | "
                f"{row['macro_f1']:.3f} | {row['plain_recall']:.3f} | {reader} | {row['words']:.0f} |"
            )
    return [
        *lines,
        "",
        f"Loss on new documents: {measured['loss_on_new_documents']:.3f} per token of the model's own text. "
        f"{measured['habit_words_whole']:.1%} of the words of persona texts are one token.",
        "",
    ]
