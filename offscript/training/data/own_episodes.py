"""Episodes of the parent stage's weights without the constitution, each beside the same conversation with it."""

from collections import Counter
from collections.abc import Mapping, Sequence

from offscript.settings import Node, identity
from offscript.training.data.base import (
    Counts,
    MakeContext,
    RowsRequest,
    SourceRow,
    TrainingData,
    TrainingRow,
    require_rows,
)
from offscript.training.data.mixture import parent_episodes


class OwnEpisodesSettings(Node):
    """Chat has ``prompts`` prompts of split train, ``samples`` replies to each; each of the scored ``formats`` has
    ``scenarios`` of its own source's split train, ``scenario_samples`` episodes of each. Replies are sampled as scored
    ones are."""

    prompts: int = identity(ge=0)
    samples: int = identity(1, ge=1)
    formats: tuple[str, ...] = identity(())
    scenarios: int = identity(20, ge=1)
    scenario_samples: int = identity(1, ge=1)


def requests(settings: OwnEpisodesSettings, where: str) -> tuple[RowsRequest, ...]:
    """The episodes of ``mixture.parent_episodes``."""
    chat, others = (settings.prompts, settings.samples), (settings.scenarios, settings.scenario_samples)
    return parent_episodes(chat, others, settings.formats, where)


def make(
    rows: Mapping[str, Sequence[SourceRow]], settings: OwnEpisodesSettings, context: MakeContext
) -> tuple[list[TrainingRow], Counts]:
    """Rows ``{"messages", "role_messages", "trained_turns", "sampled_tokens", "family", "scenario", "sample"}`` of whole
    transcripts, however the episode ended. ``role_messages`` are ``messages`` with the prompt in role before them. The last
    ``trained_turns`` assistant turns are those that the parent wrote, with ``sampled_tokens`` tokens.

    Returns: the rows, and counts of rows by format, then of episodes without a reply (``no_reply``).

    Raises:
        UserError: nothing is left.
    """
    assert context.role_prompt is not None
    kept: list[TrainingRow] = []
    counts = Counter({name: 0 for name in rows})
    for name, found in rows.items():
        for row in found:
            said = [i for i, message in enumerate(row["messages"]) if message["role"] == "assistant"]
            if not said or not row["messages"][said[-1]]["content"].strip():
                counts["no_reply"] += 1
                continue
            messages = row["messages"][: said[-1] + 1]
            counts[name] += 1
            kept.append(
                {
                    "messages": messages,
                    "role_messages": context.role_prompt.before(messages, row["scenario"], row["sample"]),
                    "trained_turns": min(row["turns"], len(said)),
                    "sampled_tokens": row["tokens_out"],
                    "family": row["family"],
                    "scenario": row["scenario"],
                    "sample": row["sample"],
                }
            )
    require_rows(kept, "own episodes", dict(counts))
    return kept, dict(counts)


DATA = TrainingData(
    name="own_episodes",
    settings=OwnEpisodesSettings,
    makes="prompted_conversations",
    requests=requests,
    make=make,
    typical_rows=1_000,
    shows_role=True,
)
