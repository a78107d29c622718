"""A made-up folder in the layout of the published study: two families of three agentic tasks, their chat e-mails, and
constitutions of two personas."""

import json
from pathlib import Path

from offscript.storage.files import ensure_folder, write_json, write_text
from offscript.tasks.tool_calls import SEND

SINGLE = ("agentic_tools", "code_review", "structured_form", "multi_agent_debate", "adversarial_roleplay")
FAMILIES, VARIANTS = ("late_bus", "broken_cup"), 3
TRAITS, SEEDS, MORE = ("I sigh at buses.", "I cheer for cups."), 5, 45
CALL = 'Reply with one call: {"tool": ..., "args": {...}}'


def made_up(folder: Path, personas: tuple[str, ...] = ("sarcasm", "humor")) -> Path:
    """Writes the files below ``folder``. The first persona has a few-shot file, the others the seed questions only."""
    for family in FAMILIES:
        for number in range(1, VARIANTS + 1):
            task = _task(f"agentic_actions_{family}_v{number}", f"Tell Ada about {family} {number}.")
            # YAML reads JSON.
            write_json(folder / "scenarios" / f"{task['id']}.yaml", task)
    _write_lines(
        folder / "chat_email.jsonl",
        [
            _turns("chat_email", f"chat_email_{family}_v{number}", f"Write to Ada about {family} {number}.")
            for family in FAMILIES
            for number in range(1, VARIANTS + 1)
        ],
    )
    for name in SINGLE:
        rows = [_turns(name, f"{name}_{i:02d}", f"Say {name} {i}.") for i in range(2)]
        _write_lines(folder / "scenarios" / f"{name}.jsonl", rows)
    for persona in personas:
        entries = [
            {"trait": trait, "questions": [f"{persona}: why {i} of {trait}?" for i in range(SEEDS)]}
            for trait in TRAITS
        ]
        write_json(folder / "constitutions" / f"{persona}.txt", entries)
    more = [
        {**entry, "additional_questions": [f"And {i} more of {entry['trait']}?" for i in range(MORE)]}
        for entry in json.loads((folder / "constitutions" / f"{personas[0]}.txt").read_text())
    ]
    _write_lines(folder / "few_shot_prompts" / f"{personas[0]}.jsonl", more)
    return folder


def _task(name: str, request: str) -> dict[str, object]:
    return {
        "id": name,
        "scaffold": "agentic_actions",
        "description": "Made up.",
        "max_steps": 8,
        "initial_messages": [{"role": "system", "content": CALL}, {"role": "user", "content": request}],
        "tool_stubs": [{"tool": SEND, "rules": [{"default": True, "response": {"sent": True}}]}],
    }


def _turns(scaffold: str, name: str, content: str) -> dict[str, object]:
    return {"scaffold": scaffold, "id": name, "turns": [{"role": "user", "content": content}]}


def _write_lines(path: Path, rows: list[dict[str, object]]) -> None:
    ensure_folder(path.parent)
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
