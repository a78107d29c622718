"""From settings to artifacts: which rows, adapters, classifiers and predictions a grid consists of, what each is made
from, and therefore what it is called. Nothing here needs torch, and nothing is run.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from offscript.cell import Artifact, fingerprint
from offscript.engines.base import Sampling
from offscript.errors import UserError, one_of
from offscript.formats import check_episodes, get_format
from offscript.formats.base import Format, Rules
from offscript.prompts import constitution_system
from offscript.scenarios import Scenario, digest, load_scenarios, select
from offscript.settings import (
    FormatSettings,
    ModelSettings,
    PersonaSettings,
    Settings,
    StageSettings,
    identity_of,
)
from offscript.store import locate

INTROSPECTION = StageSettings(name="introspection", weights="distillation", system="constitution")
"""How training data of the full stage is spoken: distillation weights under the constitution. Not a stage that is
measured."""

BASE = StageSettings(name="base", weights="base", system="plain")
PROMPTED = StageSettings(name="prompted", weights="base", system="constitution")


@dataclass(frozen=True)
class Options:
    """Every option of the groups that a grid runs over, each composed once: name -> settings."""

    model: Mapping[str, ModelSettings]
    persona: Mapping[str, PersonaSettings]
    stage: Mapping[str, StageSettings]
    format: Mapping[str, FormatSettings]


def once(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method whose answer is kept: planning asks the same question of every cell."""

    @functools.wraps(method)
    def kept(self: "Planner", *args: Any) -> Any:
        question = (method.__name__, *args)
        if question not in self._answers:
            self._answers[question] = method(self, *args)
        return self._answers[question]

    return kept


@dataclass
class Planner:
    """Plans the artifacts of one experiment. The same question gives the same object."""

    settings: Settings
    options: Options
    _answers: dict[tuple[Any, ...], Any] = field(default_factory=dict)
    _made: dict[str, Artifact] = field(default_factory=dict)

    # ------------------------------------------------------------ rows

    def rollout(
        self, model: str, persona: str | None, stage: str, fmt: str, split: str, seed: int
    ) -> Artifact:
        """Rows of one cell. Base weights under a plain prompt belong to no persona and to no training seed."""
        return self._cell(model, persona, self._stage(stage), fmt, split, seed)

    def teacher(self, model: str, persona: str) -> Artifact:
        return self._cell(model, persona, PROMPTED, "teacher", "train", 0)

    def students(self, model: str, persona: str) -> tuple[Artifact, ...]:
        """Plain rows on the shared prompts, and (if asked for) on the persona's own questions."""
        shared = self._cell(model, None, BASE, "student", "train", 0)
        if not self.settings.recipe.distillation.seed_questions:
            return (shared,)
        return shared, self._rows(model, persona, BASE, "student", "train", 0, True)

    def _cell(
        self, model: str, persona: str | None, stage: StageSettings, fmt: str, split: str, seed: int
    ) -> Artifact:
        if stage.weights == "base":
            seed = 0
            if stage.system == "plain":
                return self._rows(model, None, stage, fmt, split, seed, False)
        if persona is None:
            raise UserError(f"stage {stage.name}", "no persona given", one_of(self.options.persona))
        return self._rows(model, persona, stage, fmt, split, seed, False)

    @once
    def _rows(
        self,
        model: str,
        persona: str | None,
        stage: StageSettings,
        fmt: str,
        split: str,
        seed: int,
        own_questions: bool,
    ) -> Artifact:
        adapter = None if stage.weights == "base" else self.adapter(model, persona or "", stage.weights, seed)
        spec = self._spec(model, persona, stage, fmt, split, own_questions)
        labels = {
            "model": model,
            "stage": stage.name,
            "persona": persona,
            "format": fmt,
            "split": split,
            "seed": seed,
        }
        digests = self._digests(spec["format"].source)
        identity = {
            "labels": labels,
            "model": self._model_identity(model),
            "adapter": adapter.key if adapter else None,
            "system": spec["rules"].system,
            "format": {
                "version": spec["format"].version,
                "templates": dict(spec["format"].templates),
                "options": dict(spec["rules"].options),
                "max_tokens": spec["sampling"].max_tokens,
            },
            "scenarios": {s.id: digests.get(s.id) or digest(s) for s in spec["scenarios"]},
            "samples": spec["samples"],
        }
        return self._keep(Artifact("rollout", identity, labels, (adapter,) if adapter else (), spec))

    def _spec(
        self, model: str, persona: str | None, stage: StageSettings, fmt: str, split: str, own_questions: bool
    ) -> dict[str, Any]:
        code, node = get_format(fmt), self._format(fmt)
        if unknown := sorted(node.options.keys() - code.options.keys()):
            raise UserError(f"format.options.{unknown[0]}", "unknown key", one_of(sorted(code.options)))
        spoken = self._model(model)
        system = "" if stage.system == "plain" else constitution_system(self._assertions(persona))
        scenarios, samples = self._scenarios(persona, code, node, split, own_questions)
        rules = Rules(system=system, options={**code.options, **node.options})
        check_episodes(code, scenarios, rules)
        return {
            "format": code,
            "rules": rules,
            "scenarios": scenarios,
            "samples": samples,
            "sampling": Sampling(
                **spoken.sampling.model_dump(), max_tokens=min(node.max_tokens, spoken.max_reply_tokens)
            ),
        }

    def _scenarios(
        self, persona: str | None, code: Format, node: FormatSettings, split: str, own_questions: bool
    ) -> tuple[list[Scenario], int]:
        """Scenarios of a cell, and samples of each: training rows are counted by the recipe, scored ones by the format."""
        recipe = self.settings.recipe
        if code.name in ("teacher", "student"):
            questions = self._questions(persona) if persona and recipe.distillation.seed_questions else []
            if own_questions:
                return questions, 1
            shared = self._selected(code.source, "train", recipe.distillation.prompts)
            return shared + (questions if code.name == "teacher" else []), 1
        if code.source in ("reflection", "interaction"):
            source, introspection = self._source(code.source), recipe.introspection
            rows = introspection.reflections if code.source == "reflection" else introspection.interactions
            return source[:rows], max(1, math.ceil(rows / len(source)))
        if split not in node.count:
            raise UserError(f"split {split}", f"format {code.name} says no count for it", one_of(node.count))
        return self._selected(code.source, split, node.count[split]), node.samples.get(split, 1)

    # ------------------------------------------------------------ adapters

    def adapter(self, model: str, persona: str, weights: str, seed: int) -> Artifact:
        """The adapter of a persona: ``distillation``, or ``full`` (both merged)."""
        return (
            self._distillation(model, persona, seed)
            if weights == "distillation"
            else self._full(model, persona, seed)
        )

    @once
    def _distillation(self, model: str, persona: str, seed: int) -> Artifact:
        inputs = (self.teacher(model, persona), *self.students(model, persona))
        recipe = self.settings.recipe.distillation
        return self._adapter(
            model, persona, "distillation", seed, identity_of(recipe), inputs, {"settings": recipe}
        )

    @once
    def _full(self, model: str, persona: str, seed: int) -> Artifact:
        recipe = self.settings.recipe
        first = self._distillation(model, persona, seed)
        rows = tuple(
            self._cell(model, persona, INTROSPECTION, fmt, "train", seed)
            for fmt, wanted in (
                ("self_reflection", recipe.introspection.reflections),
                ("self_interaction", recipe.introspection.interactions),
            )
            if wanted
        )
        if not rows:
            raise UserError(
                "recipe.introspection", "reflections and interactions are both 0", "allowed: at least one > 0"
            )
        identity = {**identity_of(recipe.introspection), "merge": identity_of(recipe.merge)}
        spec = {"settings": recipe.introspection, "merge": recipe.merge}
        return self._adapter(model, persona, "full", seed, identity, (first, *rows), spec)

    def _adapter(
        self,
        model: str,
        persona: str,
        stage: str,
        seed: int,
        recipe: dict[str, Any],
        inputs: tuple[Artifact, ...],
        spec: dict[str, Any],
    ) -> Artifact:
        labels = {"model": model, "persona": persona, "stage": stage, "seed": seed}
        identity = {
            "labels": labels,
            "model": self._model_identity(model),
            "recipe": recipe,
            "made_from": [a.key for a in inputs],
        }
        return self._keep(Artifact("adapter", identity, labels, inputs, spec))

    # ------------------------------------------------------------ classifier, predictions, evaluation

    @once
    def classifier(self, model: str) -> Artifact:
        """The persona classifier of a model, from chat rows of the classifier split alone."""
        node, grid = self.settings.classifier, self.settings.grid
        inputs = tuple(
            dict.fromkeys(
                self.rollout(model, persona, stage, "chat", "classifier", seed)
                for stage in node.stages
                for persona in grid.persona
                for seed in grid.seed
            )
        )
        labels = {"model": model, "name": node.name}
        identity = {
            "labels": labels,
            "settings": identity_of(node),
            "tokenizer": self._model_identity(model) if node.path is None else None,
            "personas": list(grid.persona),
            "made_from": [a.key for a in inputs],
        }
        return self._keep(
            Artifact("classifier", identity, labels, inputs, {"settings": node, "personas": grid.persona})
        )

    def cells(self) -> list[Artifact]:
        """The scored cells of the grid, in its order, each once (base cells stand for all personas)."""
        grid = self.settings.grid
        found = (
            self.rollout(model, persona, stage, fmt, "eval", seed)
            for model in grid.model
            for stage in grid.stage
            for fmt in grid.format
            for persona in grid.persona
            for seed in grid.seed
        )
        return list(dict.fromkeys(found))

    def predictions(self, cell: Artifact) -> Artifact:
        classifier = self.classifier(cell.labels["model"])
        identity = {"labels": dict(cell.labels), "classifier": classifier.key, "rows": cell.key}
        return self._keep(Artifact("predictions", identity, cell.labels, (classifier, cell)))

    def evaluation(self) -> Artifact:
        inputs = tuple(self.predictions(cell) for cell in self.cells())
        node = self.settings.evaluation
        identity = {"settings": identity_of(node), "made_from": sorted(a.key for a in inputs)}
        return self._keep(
            Artifact("evaluation", identity, {"name": self.settings.name}, inputs, {"settings": node})
        )

    # ------------------------------------------------------------ options

    def _keep(self, artifact: Artifact) -> Artifact:
        return self._made.setdefault(artifact.key, artifact)

    def _model(self, name: str) -> ModelSettings:
        return self.options.model[name]

    def _stage(self, name: str) -> StageSettings:
        return self.options.stage[name]

    def _format(self, name: str) -> FormatSettings:
        return self.options.format[name]

    def _assertions(self, persona: str | None) -> list[str]:
        return [a.assertion for a in self.options.persona[persona or ""].constitution]

    def _questions(self, persona: str) -> list[Scenario]:
        """The persona's own questions as scenarios; a family per assertion."""
        return [
            Scenario(f"{persona}_{i}_{j}", f"{persona}_{i}", ({"role": "user", "content": question},))
            for i, assertion in enumerate(self.options.persona[persona].constitution)
            for j, question in enumerate(assertion.questions)
        ]

    @once
    def _selected(self, source: str, split: str, count: int) -> list[Scenario]:
        """Scenarios of a split. Office families are never trained on, so all of them can be scored."""
        data = self.settings.data
        fractions = {"eval": 1.0} if source == "office" else {str(k): v for k, v in data.fractions.items()}
        return select(self._source(source), split, fractions, data.salt, count)

    @once
    def _digests(self, source: str) -> dict[str, str]:
        return {s.id: digest(s) for s in self._source(source)}

    @once
    def _source(self, source: str) -> list[Scenario]:
        patterns = {str(k): v for k, v in self.settings.data.sources.items()}.get(source)
        if not patterns:
            raise UserError(
                f"data.sources.{source}", "missing", f"data {self.settings.data.name} has no such scenarios"
            )
        return load_scenarios([str(locate(p)) if not _is_glob(p) else _located_glob(p) for p in patterns])

    @once
    def _model_identity(self, name: str) -> dict[str, Any]:
        """A model by its content: a local folder by fingerprint, a hub model by id and revision."""
        node = self._model(name)
        plain = identity_of(node)
        if not locate(node.path).is_dir() and node.path.startswith((".", "/", "~")):
            raise UserError("model.path", f"no folder at {node.path}", "allowed: a model folder, or a hub id")
        if locate(node.path).is_dir():
            del plain["path"], plain["revision"]
            plain["content"] = fingerprint(locate(node.path))
        return plain


def _is_glob(pattern: str) -> bool:
    return any(c in pattern for c in "*?[")


def _located_glob(pattern: str) -> str:
    head, _, _ = pattern.partition("*")
    folder = head.rpartition("/")[0]
    return str(locate(folder) / pattern[len(folder) + 1 :]) if folder else pattern


def in_order(wanted: Iterable[Artifact]) -> list[Artifact]:
    """``wanted`` and everything they are made from, inputs first, each once."""
    seen: dict[str, Artifact] = {}

    def visit(artifact: Artifact) -> None:
        if artifact.key not in seen:
            for needed in artifact.inputs:
                visit(needed)
            seen[artifact.key] = artifact

    for artifact in wanted:
        visit(artifact)
    return list(seen.values())


def layers(artifacts: list[Artifact]) -> Iterator[list[Artifact]]:
    """``artifacts`` (inputs first) in groups of which none needs another of its own group."""
    depth: dict[str, int] = {}
    for artifact in artifacts:
        depth[artifact.key] = 1 + max((depth[i.key] for i in artifact.inputs if i.key in depth), default=-1)
    for level in range(1 + max(depth.values(), default=-1)):
        yield [a for a in artifacts if depth[a.key] == level]
