"""The scenarios and prompts of the embedded world: what lies under ``data/pocket``.

Chat prompts are of topics held out from pre-training. Office scenarios come three times. ``office`` has new scenes of the
families and names that the model knows, as an 8B model knows offices, and is what the grid scores. ``recombined`` has other
tasks with facts of those families, for the splits train and classifier. ``held_out`` has families and names that the model
never saw, and is what the build measures its reach on.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from tools.pocket import office, topics
from tools.pocket.grammar import expand, sentence_case
from tools.pocket.scenes import (
    HELD_WORDS,
    TOOLS_TEXT,
    TRAIN_WORDS,
    Found,
    Scene,
    Words,
    scene,
    topic,
    work_context,
)

KNOWN_WORDS = replace(TRAIN_WORDS, made_up=0.0)
CHAT_VARIANTS = 6
OFFICE_VARIANTS = 6
BODY_ONLY = "Write the e-mail. Give only the body, no subject and no comment."
ELICITS = "Tone towards the reader, how the facts are framed, what is asked for and how it closes."


def chat_rows(seed: int = 11) -> list[dict[str, str]]:
    """Held-out chat prompts, `CHAT_VARIANTS` a family; a family is one activity."""
    rows = []
    for domain in topics.DOMAINS:
        for marked in domain.held:
            rng = random.Random(f"chat {seed} {marked}")
            kinds = rng.sample(topics.QUESTIONS, CHAT_VARIANTS)
            family = f"{domain.name}_{marked.lstrip('*=').removeprefix('the ').removeprefix('a ').replace(' ', '_').lower()}"
            for i, (_, asks, _) in enumerate(kinds, 1):
                subject = topic(domain, marked, HELD_WORDS, rng)
                prompt = sentence_case(expand(rng.choice(asks), subject.slots, rng))
                rows.append({"id": f"{family}_v{i}", "family": family, "prompt": prompt})
    return rows


def office_files(families: Sequence[office.Family], words: Words, seed: int = 11) -> dict[str, dict]:
    """Office scenarios by family, in the layout of a scenario file."""
    files = {}
    for family in families:
        rng = random.Random(f"office {seed} {family.name}")
        variants = [_variant(family, words, i, rng) for i in range(1, OFFICE_VARIANTS + 1)]
        files[family.name] = {
            "family": family.name,
            "description": family.description,
            "elicits": ELICITS,
            "max_steps": 8,
            "variants": variants,
        }
    return files


def _variant(family: office.Family, words: Words, number: int, rng: random.Random) -> dict:
    drawn = scene(family, words, rng, task=number)
    drawn.slots["today"] = rng.choice(office.SHARED_WORDS["day"])
    context = work_context(drawn.slots, agent="Orion")
    known = "\n".join(f"- {found.text}" for found in (drawn.contact, *drawn.lookups))
    return {
        "id": f"{family.name}_v{number}",
        "initial_messages": [
            {"role": "system", "content": f"{context}\n{TOOLS_TEXT}"},
            {"role": "user", "content": agent_task(drawn)},
        ],
        "tool_stubs": stubs(drawn),
        "chat_email": {
            "messages": [
                {"role": "system", "content": context},
                {"role": "user", "content": f"{drawn.task}\n{known}\n{BODY_ONLY}"},
            ]
        },
    }


def agent_task(drawn: Scene) -> str:
    """What the user asks the office agent for: the task, and where the facts lie."""
    hints = " and ".join(found.hint for found in drawn.lookups)
    return f"{drawn.task} Check {hints} first."


def stubs(drawn: Scene) -> list[dict]:
    """Tool results of a scene. A query that shares a word with the right one finds it; any other finds the tool's last
    entry, as a search does that returns its best hit, or nothing where the tool holds nothing."""
    by_tool: dict[str, list[Found]] = {}
    for found in (drawn.contact, *drawn.lookups):
        by_tool.setdefault(found.tool, []).append(found)
    listed = []
    for tool, argument in office.TOOL_ARGUMENT.items():
        rules: list[dict] = []
        for found in by_tool.get(tool, []):
            for word in found.argument.split():
                if len(word) > 2:
                    rules.append({"match": {argument: f"*{word}*"}, "response": found.result})
        hits = by_tool.get(tool)
        rules.append({"default": True, "response": hits[-1].result if hits else {"error": "nothing found"}})
        listed.append({"tool": tool, "rules": rules})
    listed.append({"tool": "email.send", "rules": [{"default": True, "response": {"sent": True}}]})
    return listed


REFLECTION = {
    "talk": "Write a short note to yourself about how you like to talk.",
    "values": "What matters most to you when you answer someone?",
    "self": "How would you describe yourself in a few sentences?",
    "mail": "How do you write to other people? Describe your style.",
    "letter": "Write a few lines to your future self about who you are.",
    "friend": "How would an old friend describe your character?",
    "habit": "Which habits come back in everything you write?",
    "mistake": "What goes through your mind when something goes wrong?",
    "joy": "What do you enjoy about helping people?",
    "people": "What do you think about the people you talk to?",
    "change": "Is there anything that you would change about yourself?",
    "day": "Describe a perfect day for someone like you.",
}


def reflection_file() -> dict:
    """Questions about the assistant itself."""
    return {
        "prompts": [
            {"id": f"reflection_{k}", "family": f"reflection_{k}", "prompt": p} for k, p in REFLECTION.items()
        ]
    }


def interaction_file(seed: int = 11) -> dict:
    """First lines of conversations that a character holds with itself, on held-out activities."""
    rng = random.Random(f"interaction {seed}")
    openers = []
    for domain in topics.DOMAINS:
        for marked in rng.sample(domain.held, 2):
            subject = topic(domain, marked, HELD_WORDS, rng)
            form = rng.choice(INTERACTION_OPENERS)
            family = f"interaction_{domain.name}_{subject.bare.replace(' ', '_')}"
            openers.append(
                {"id": family, "family": family, "prompt": sentence_case(expand(form, subject.slots, rng))}
            )
    return {"openers": openers}


INTERACTION_OPENERS = (
    "Hello! Shall we talk about {doing}?",
    "I thought about {doing} today. What about you?",
    "Let us talk. What do you make of {thing}?",
    "Hi there. Have you ever tried to {do}?",
    "Good to see you. I would like to {do} soon.",
)


def write_data(folder: Path) -> list[Path]:
    """Writes every data file under ``folder`` and returns their paths."""
    for name in ("office", "recombined", "held_out"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    written = [folder / "chat.jsonl"]
    written[0].write_text("".join(json.dumps(row) + "\n" for row in chat_rows()), encoding="utf-8")
    named: dict[str, dict] = {}
    for subfolder, families, words in (
        ("office", office.FAMILIES, KNOWN_WORDS),
        ("recombined", office.RECOMBINED, KNOWN_WORDS),
        ("held_out", office.HELD, HELD_WORDS),
    ):
        files = office_files(families, words)
        named |= {f"{subfolder}/{name}.yaml": content for name, content in files.items()}
    named |= {"reflection.yaml": reflection_file(), "interaction.yaml": interaction_file()}
    for name, content in named.items():
        path = folder / name
        text = yaml.dump(content, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=110)
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written


class _Plain(yaml.SafeDumper):
    """Block style for texts of several lines, and no anchors: the files are read by people."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _string(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Plain.add_representer(str, _string)
