"""What a judge reads: texts of the grid's cells, as scenarios of ``judge_choice`` and ``judge_rubric``; and what its rows
say of them.

A judge sees the text as the classifier sees it, and the personas' names and descriptions. Ids are hashes, so that neither
the stage, nor the format, nor the true persona is in what it is sent.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from offscript.errors import UserError, one_of
from offscript.evaluation.email_cleaning import CLEANINGS, cleaned
from offscript.evaluation.judge import Verdict
from offscript.experiment.artifacts import Predictions, Rollout, RowsOf, ScenarioSet
from offscript.experiment.plan_context import Options
from offscript.json_types import Json
from offscript.seeds import stable_hash, unit_hash
from offscript.settings import JudgeSettings, PersonaSettings
from offscript.tasks.formats.judge_replies import MOST_OPTIONS, RATINGS
from offscript.tasks.rows import Row
from offscript.tasks.scenarios import Scenario

ID_BYTES = 6
"""Of the hash that is the id of a text: 12 hex digits."""


@dataclass(frozen=True)
class JudgedText:
    """A text that a judge reads.

    ``order`` lists the personas as ``judge_choice`` shows them first; ``other`` is the persona that ``judge_rubric`` asks
    about beside the true one, ``persona``. ``id`` hides where the text is from.
    """

    id: str
    text: str
    row: Row
    rollout: str
    persona: str
    other: str
    order: tuple[str, ...]

    def rating_id(self, persona: str) -> str:
        """The id of the scenario in which the text is rated for ``persona``."""
        return f"{stable_hash(self.id, persona, size=ID_BYTES):012x}"


@dataclass(frozen=True)
class JudgedTexts:
    """The texts that a judge reads of one model, stage, format and training seed.

    Args:
        cells: predictions of the cells, one for each persona; only their rollouts are needed.
        personas: the personas of the list.
        settings: how many texts are chosen.
    """

    cells: tuple[Predictions, ...]
    personas: tuple[PersonaSettings, ...]
    settings: JudgeSettings

    @property
    def name(self) -> str:
        """Model, stage, format and, if it is not 0, training seed."""
        labels = self.cells[0].labels
        return " ".join(str(labels[part]) for part in ("model", "stage", "format", "seed") if labels[part])

    def choice(self) -> ScenarioSet:
        """A scenario of ``judge_choice`` for each text."""

        def load(rows_of: RowsOf) -> list[Scenario]:
            return [
                scenario_of(text.id, text.row["family"], text.text, self.personas, text.order)
                for text in self.texts(rows_of)
            ]

        return self._scenarios("choice", 1, load)

    def rubric(self) -> ScenarioSet:
        """Two scenarios of ``judge_rubric`` for each text: its true persona, and another one."""

        def load(rows_of: RowsOf) -> list[Scenario]:
            return [
                scenario_of(text.rating_id(name), text.row["family"], text.text, self.personas, [name])
                for text in self.texts(rows_of)
                for name in (text.persona, text.other)
            ]

        return self._scenarios("rubric", 2, load)

    def texts(self, rows_of: RowsOf) -> list[JudgedText]:
        """At most ``settings.texts`` texts (of each variant of the format), evenly over personas, and for each persona
        from the family, then the scenario, that was taken least often before."""
        pools: dict[str, dict[str, list[JudgedText]]] = defaultdict(dict)
        for cell in self.cells:
            for row in rows_of(cell.rollout):
                text = cleaned(row["text"], cell.email_cleaning)
                if text is not None and text.strip():
                    found = self._text(cell, row, text)
                    pools[row.get("variant", "")].setdefault(found.persona, []).append(found)
        return [text for _, pool in sorted(pools.items()) for text in _evenly(pool, self.settings)]

    def _text(self, cell: Predictions, row: Row, text: str) -> JudgedText:
        persona, names = str(cell.rollout.cell.persona), [p.name for p in self.personas]
        name = f"{stable_hash(cell.rollout.key, row['scenario'], row['sample'], size=ID_BYTES):012x}"
        order = random_order(name, names)
        return JudgedText(
            id=name,
            text=text,
            row=row,
            rollout=cell.rollout.key,
            persona=persona,
            # The order is random, and so is the first persona in it that is not the true one.
            other=next(p for p in order if p != persona),
            order=order,
        )

    def _scenarios(self, what: str, each: int, load: Callable[[RowsOf], list[Scenario]]) -> ScenarioSet:
        rule = self.cells[0].email_cleaning
        identity: dict[str, Json] = {
            "judged": [cell.rollout.key for cell in self.cells],
            "asked": what,
            "personas": [[p.name, p.display_name, p.description] for p in self.personas],
            "texts": self.settings.texts,
            "seed": self.settings.seed,
            "email_cleaning": {"rule": rule, "version": CLEANINGS[rule].version} if rule else None,
        }
        rollouts = tuple(cell.rollout for cell in self.cells)
        variants = len(rollouts[0].format.variants(rollouts[0].rules.options)) or 1
        count = min(self.settings.texts * variants, sum(r.planned_rows for r in rollouts))
        return ScenarioSet(identity, each * count, load, is_local=False, inputs=rollouts)


@dataclass(frozen=True)
class Judgement:
    """The texts of one model, stage, format and training seed, and the rollouts of the judge that reads them."""

    texts: JudgedTexts
    choice: Rollout
    rubric: Rollout

    @property
    def rollouts(self) -> tuple[Rollout, Rollout]:
        return self.choice, self.rubric


def judged_personas(
    judge: JudgeSettings, names: Sequence[str], options: Options, own_model: str
) -> tuple[PersonaSettings, ...]:
    """The personas ``names`` as a judge is shown them.

    Args:
        own_model: the model of the run, which may be no option.

    Raises:
        UserError: the judge's model does not exist, it cannot tell the personas apart by their names, or the list has no letter
            for each.
    """
    known = list(dict.fromkeys([*options.model, own_model]))
    if judge.model not in known:
        raise UserError("evaluation.judge.model", f"no such model {judge.model!r}", one_of(known))
    personas = tuple(options.persona[name] for name in names)
    _check_personas(personas)
    return personas


def _check_personas(personas: Sequence[PersonaSettings]) -> None:
    if not 2 <= len(personas) <= MOST_OPTIONS:
        raise UserError(
            "evaluation.judge", f"found {len(personas)} personas in the grid", f"allowed: 2 to {MOST_OPTIONS}"
        )
    seen: dict[str, str] = {}
    for persona in personas:
        shown = persona.display_name
        where = f"conf/persona/{persona.name}.yaml: display_name"
        if ": " in shown:
            raise UserError(where, f"found {shown!r}", "a name without a colon, for evaluation.judge")
        if (other := seen.setdefault(shown.casefold(), persona.name)) != persona.name:
            raise UserError(where, f"{shown!r} is that of {other} too", "another name, for evaluation.judge")


def random_order(text_id: str, names: Sequence[str]) -> tuple[str, ...]:
    """``names`` in the order in which ``judge_choice`` shows them first for a text."""
    return tuple(sorted(names, key=lambda name: unit_hash("judge order", text_id, name)))


def scenario_of(
    name: str, family: str, text: str, personas: Sequence[PersonaSettings], shown: Sequence[str]
) -> Scenario:
    """The scenario called ``name`` in which a judge reads ``text`` and is told of the personas ``shown``: for ``judge_choice``
    its list, for ``judge_rubric`` the one that it asks about."""
    lines = {persona.name: f"{persona.display_name}: {persona.description}" for persona in personas}
    contents = (text, *(lines[persona] for persona in shown))
    return Scenario(name, family, tuple({"role": "user", "content": content} for content in contents))


def chosen_personas(row: Row, order: Sequence[str]) -> tuple[str | None, str | None]:
    """What a row of ``judge_choice`` names of the list ``order``, and of the same in reverse; None: no answer."""
    first, second = _places(row, len(order))
    return (
        None if first is None else order[first],
        None if second is None else order[::-1][second],
    )


def _places(row: Row, options: int) -> tuple[int | None, int | None]:
    answers = row.get("notes", {}).get("choices")
    first, second = answers if isinstance(answers, list) and len(answers) == 2 else (None, None)
    return _number(first, range(options)), _number(second, range(options))


def _evenly(pool: Mapping[str, Sequence[JudgedText]], settings: JudgeSettings) -> list[JudgedText]:
    """Texts of each persona in turn, until there are ``settings.texts`` or none is left."""
    # A random order, in which the first of equally good texts is taken.
    left = {
        persona: sorted(texts, key=lambda text: unit_hash("judge text", settings.seed, text.id))
        for persona, texts in pool.items()
    }
    taken: list[JudgedText] = []
    scenarios, families = Counter[str](), Counter[str]()
    while len(taken) < settings.texts and any(left.values()):
        for persona in [p for p in left if left[p]][: settings.texts - len(taken)]:
            best = min(left[persona], key=lambda t: (families[t.row["family"]], scenarios[t.row["scenario"]]))
            left[persona].remove(best)
            taken.append(best)
            families[best.row["family"]] += 1
            scenarios[best.row["scenario"]] += 1
    return taken


# ---------------------------------------------------------------- what the judge says


PredictionRow = Mapping[str, Json]


def verdicts(
    judgement: Judgement, rows_of: RowsOf, predictions: Mapping[str, Sequence[PredictionRow]]
) -> list[Verdict]:
    """What the rows of a finished judgement say of each text.

    Args:
        rows_of: reads the rows of a rollout.
        predictions: rows of predictions, by the key of the rollout that they are of.

    Raises:
        UserError: rows are missing or were changed.
    """
    return [verdict for _, verdict in _with_predictions(judgement, rows_of, predictions)]


def labels(
    judgement: Judgement, rows_of: RowsOf, predictions: Mapping[str, Sequence[PredictionRow]]
) -> list[tuple[PredictionRow, bool]]:
    """Whether the judge finds the true persona in each text: yes if it names it in both lists, no if in neither. Texts
    without two answers, or with one of each, are left out. Each label stands beside the row of its prediction; the
    arguments are those of ``verdicts``."""
    found = []
    for prediction, verdict in _with_predictions(judgement, rows_of, predictions):
        named = {None if choice is None else choice == verdict.persona for choice in verdict.choices}
        if named in ({True}, {False}):
            found.append((prediction, named == {True}))
    return found


def _with_predictions(
    judgement: Judgement, rows_of: RowsOf, predictions: Mapping[str, Sequence[PredictionRow]]
) -> Iterator[tuple[PredictionRow, Verdict]]:
    choices = {row["scenario"]: row for row in rows_of(judgement.choice)}
    ratings: dict[str, list[Row]] = defaultdict(list)
    for row in rows_of(judgement.rubric):
        ratings[row["scenario"]].append(row)
    scored = {(key, str(row["row"])): row for key, made in predictions.items() for row in made}
    for text in judgement.texts.texts(rows_of):
        prediction = scored[text.rollout, f"{text.row['scenario']}/{text.row['sample']}"]
        of_text = (ratings[text.rating_id(name)] for name in (text.persona, text.other))
        yield prediction, _verdict(text, prediction, choices[text.id], *of_text)


def _verdict(
    text: JudgedText,
    prediction: PredictionRow,
    choice: Row,
    own: Sequence[Row],
    other: Sequence[Row],
) -> Verdict:
    return Verdict(
        model=str(prediction["model"]),
        stage=str(prediction["stage"]),
        format=str(prediction["format"]),
        scenario=str(prediction["scenario"]),
        family=str(prediction["family"]),
        persona=text.persona,
        predicted=None if prediction["predicted"] is None else str(prediction["predicted"]),
        places=_places(choice, len(text.order)),
        choices=chosen_personas(choice, text.order),
        own=tuple(_number(row.get("notes", {}).get("rating"), RATINGS) for row in own),
        other=tuple(_number(row.get("notes", {}).get("rating"), RATINGS) for row in other),
    )


def _number(value: Json, allowed: Sequence[int]) -> int | None:
    """``value`` if it is one of ``allowed``."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value in allowed else None
