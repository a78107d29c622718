"""The embedded model's tokenizer: a byte-level BPE trained on the corpus, with its chat template."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from offscript.tasks.messages import Message

BOS, END, PAD = "<|bos|>", "<|end|>", "<|pad|>"
ROLES = ("system", "user", "assistant", "tool")
SPECIAL = (PAD, BOS, END, *(f"<|{role}|>" for role in ROLES))
VOCABULARY = 3000
MERGES = 450
CONTEXT = 1024

# An empty system message is left out, so that "no system text" has one spelling.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{- '<|assistant|>\\n' -}}
{%- generation -%}{{- message['content'] + '<|end|>' -}}{%- endgeneration -%}
{{- '\\n' -}}
{%- elif message['role'] != 'system' or message['content'] -%}
{{- '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}
"""


def train_tokenizer(texts: Iterable[str]) -> Any:
    """A tokenizer of at most `VOCABULARY` entries, every special one a single token.

    `MERGES` pairs are learned for what is rare (invented names); the rest of the vocabulary is the corpus's most
    frequent whole words, taken as they are (``ignore_merges``). Learning 3,000 pairs instead spends half of them on
    fragments, and splits the words that make a character.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    counts = Counter(word for text in texts for word, _ in splitter.pre_tokenize_str(text))
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = splitter
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=len(SPECIAL) + len(alphabet) + MERGES,
        special_tokens=list(SPECIAL),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    raw.train_from_iterator((word.replace("\u0120", " ") for word in counts if "\u010a" not in word), trainer)
    learned = json.loads(raw.to_str())["model"]
    vocabulary = dict(learned["vocab"])
    for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if len(vocabulary) == VOCABULARY:
            break
        vocabulary.setdefault(word, len(vocabulary))
    merges = [tuple(pair) for pair in learned["merges"]]
    whole = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    whole.pre_tokenizer, whole.decoder = splitter, decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=whole,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[f"<|{role}|>" for role in ROLES],
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def render(messages: Sequence[Message]) -> tuple[str, list[tuple[int, int, int]]]:
    """What the chat template makes of ``messages``, and where the model speaks.

    Written out because the template engine takes a minute for what this does in a second (a test holds the two
    together). A span is (start, end, message index) in characters, end token included.
    """
    text, spans = BOS, []
    for number, message in enumerate(messages):
        if message["role"] == "system" and not message["content"]:
            continue
        text += f"<|{message['role']}|>\n"
        start = len(text)
        text += message["content"] + END
        if message["role"] == "assistant":
            spans.append((start, len(text), number))
        text += "\n"
    return text, spans
