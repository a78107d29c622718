"""From settings to artifacts: which rows, adapters, classifiers and predictions a grid consists of, what each is made
from, and therefore what it is called. Nothing here needs torch, and nothing is run.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from offscript.errors import UserError, one_of
from offscript.experiment.artifacts import Artifact
from offscript.experiment.scenario_sets import Collections, Supply, assertions, generated, listed, questions
from offscript.rollouts.engines.base import Sampling
from offscript.settings import (
    FormatSettings,
    ModelSettings,
    PersonaSettings,
    RowsSettings,
    Settings,
    SourceSettings,
    StageSettings,
    identity_of,
)
from offscript.storage import hub, references
from offscript.storage.files import locate
from offscript.storage.hashing import fingerprint
from offscript.tasks.formats import check_episodes, get_format
from offscript.tasks.formats.base import Format, Rules
from offscript.tasks.prompts import constitution_system, named_constitution_system

INTROSPECTION = StageSettings(name="introspection", weights="distillation", system="constitution")
"""How training data of the full stage is spoken: distillation weights under the constitution. Not a stage that is
measured."""

SCALED = "@"
"""Between a stage's name and the scale of its adapter, in labels: ``full@0.5``."""

IN_ROLE = ("teacher", "self_reflection", "self_interaction", "guided_interaction")
"""Formats that make training rows under the constitution."""

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
    _checked: set[tuple[str, ...]] = field(default_factory=set)

    # ------------------------------------------------------------ rows

    def rollout(
        self,
        model: str,
        persona: str | None,
        stage: str,
        fmt: str,
        split: str,
        seed: int,
        scale: float = 1.0,
    ) -> Artifact:
        """Rows of one cell. Base weights under a plain prompt belong to no persona and to no training seed."""
        if get_format(fmt).source == "constitution":
            return self._prompts(model, self._named(persona, f"format {fmt}"))
        if fmt == "teacher":
            return self.teacher(model, self._named(persona, f"format {fmt}"))
        if fmt == "student":
            return self.students(model, persona)[-1]
        return self._cell(model, persona, self._stage(stage), fmt, split, seed, scale)

    def teacher(self, model: str, persona: str) -> Artifact:
        """The chosen side: the teacher in role, on the shared prompts and the persona's own."""
        recipe = self.settings.recipe.distillation
        supply, own = self._shared_prompts(), self._own_prompts(model, persona)
        supply = supply + own if supply and own else supply or own
        if supply is None:
            self._no_prompts()
        return self._rows(
            self._teacher_of(model), persona, PROMPTED, "teacher", "train", 0, 1.0, supply, recipe.samples
        )

    def students(self, model: str, persona: str | None) -> tuple[Artifact, ...]:
        """The rejected side: plain rows on the shared prompts, then on the persona's own (if one is named)."""
        samples = self.settings.recipe.distillation.samples
        own = None if persona is None else self._own_prompts(model, persona)
        cells = tuple(
            self._rows(model, who, BASE, "student", "train", 0, 1.0, supply, samples)
            for who, supply in ((None, self._shared_prompts()), (persona, own))
            if supply
        )
        return cells or self._no_prompts()

    def _teacher_of(self, model: str) -> str:
        return self.settings.recipe.teacher.model or model

    @once
    def _shared_prompts(self) -> Supply | None:
        wanted = self.settings.recipe.distillation.prompts
        return self._collections.split("chat", "train", wanted) if wanted else None

    @once
    def _own_prompts(self, model: str, persona: str) -> Supply | None:
        """The persona's seed questions, and those that a model writes in their manner."""
        recipe = self.settings.recipe
        if not recipe.distillation.seed_questions:
            return None
        seeds, wanted = questions(self.options.persona[persona]), recipe.prompts.per_trait
        if not wanted:
            return listed(seeds)
        constitution = self.options.persona[persona].constitution
        missing = sum(max(0, wanted - len(a.questions)) for a in constitution)
        return listed(seeds) + generated(self._prompts(self._teacher_of(model), persona), missing)

    @once
    def _prompts(self, model: str, persona: str) -> Artifact:
        """More prompts in the manner of a persona's seed questions, one row per assertion."""
        writer = self.settings.recipe.prompts.model or model
        supply = listed(assertions(self.options.persona[persona]))
        return self._rows(writer, persona, BASE, "prompt_generation", "train", 0, 1.0, supply, 1)

    def _no_prompts(self) -> NoReturn:
        raise UserError(
            "recipe.distillation",
            "prompts is 0 and seed_questions is false",
            "allowed: prompts > 0, or seed_questions=true",
        )

    def _named(self, persona: str | None, what: str) -> str:
        if persona is None:
            raise UserError("persona", f"none given, and {what} needs one", one_of(self.options.persona))
        return persona

    @once
    def _cell(
        self,
        model: str,
        persona: str | None,
        stage: StageSettings,
        fmt: str,
        split: str,
        seed: int,
        scale: float = 1.0,
    ) -> Artifact:
        if stage.weights == "base":
            seed, scale = 0, 1.0
            if stage.system == "plain":
                persona = None
        if stage.weights != "base" or stage.system != "plain":
            self._named(persona, f"stage {stage.name}")
        if stage.weights != "base" and self._source_of(model, persona or "", stage.weights) is not None:
            seed = 0
        supply, samples = self._scenarios(fmt, split)
        return self._rows(model, persona, stage, fmt, split, seed, scale, supply, samples)

    def _rows(
        self,
        model: str,
        persona: str | None,
        stage: StageSettings,
        fmt: str,
        split: str,
        seed: int,
        scale: float,
        supply: Supply,
        samples: int,
    ) -> Artifact:
        adapter = None if stage.weights == "base" else self.adapter(model, persona or "", stage.weights, seed)
        spec = self._spec(model, persona, stage, fmt, supply, samples)
        if adapter is not None and scale != 1:
            if adapter.spec["checkpoint"]:
                raise UserError(
                    "scale", f"found {scale:g} for {adapter}", "a whole checkpoint has scale 1 only"
                )
            spec["scale"] = scale
        labels = {
            "model": model,
            "stage": stage.name if scale == 1 else f"{stage.name}{SCALED}{scale:g}",
            "persona": persona,
            "format": fmt,
            "split": split,
            "seed": seed,
        }
        identity = {
            "labels": labels,
            "model": self._model_identity(model),
            "adapter": adapter.key if adapter else None,
            "scale": scale,
            "system": spec["rules"].system,
            "format": {
                "version": spec["format"].version,
                "templates": dict(spec["format"].templates),
                "options": dict(spec["rules"].options),
                "max_tokens": spec["sampling"].max_tokens,
            },
            "scenarios": supply.digest,
            "samples": samples,
        }
        inputs = ((adapter,) if adapter else ()) + supply.inputs
        return self._keep(Artifact("rollout", identity, labels, inputs, spec))

    def _spec(
        self,
        model: str,
        persona: str | None,
        stage: StageSettings,
        fmt: str,
        supply: Supply,
        samples: int,
    ) -> dict[str, Any]:
        code, node, spoken = get_format(fmt), self._format(fmt), self._model(model)
        own = self._recipe_options(fmt)
        if unknown := sorted((node.options.keys() | own.keys()) - code.options.keys()):
            raise UserError(f"format.options.{unknown[0]}", "unknown key", one_of(sorted(code.options)))
        rules = Rules(
            system=self._system(model, persona, stage, fmt), options={**code.options, **own, **node.options}
        )
        self._check(code, supply, rules)
        return {
            "format": code,
            "rules": rules,
            "supply": supply,
            "samples": samples,
            "planned": supply.count * samples,
            "sampling": Sampling(
                **spoken.sampling.model_dump(), max_tokens=min(node.max_tokens, spoken.max_reply_tokens)
            ),
        }

    def _check(self, code: Format, supply: Supply, rules: Rules) -> None:
        """Starts every episode once per format, options and supply: the system text makes no difference to it."""
        seen = (code.name, supply.digest, str(sorted(rules.options.items())))
        if supply.known and seen not in self._checked:
            check_episodes(code, supply.load(_nothing), rules)
            self._checked.add(seen)

    def _system(self, model: str, persona: str | None, stage: StageSettings, fmt: str) -> str:
        """The system text: none, or the constitution, in the recipe's words where training rows are made."""
        if stage.system == "plain":
            return ""
        said = [a.assertion for a in self.options.persona[persona or ""].constitution]
        if fmt not in IN_ROLE or self.settings.recipe.in_role == "plain":
            return constitution_system(said)
        name = self._model(model).assistant_name
        if name is None:
            raise UserError(
                "model.assistant_name",
                f"missing for {model}",
                "recipe.in_role=named needs the assistant's name",
            )
        return named_constitution_system(name, said)

    def _recipe_options(self, fmt: str) -> dict[str, Any]:
        """What the recipe says to a format that makes training rows."""
        recipe = self.settings.recipe
        if fmt == "teacher":
            return {"thinking": recipe.teacher.thinking, "thinking_end": recipe.teacher.thinking_end}
        if fmt == "prompt_generation":
            return {k: v for k, v in identity_of(recipe.prompts).items() if k != "model"}
        notes = {
            "self_interaction": recipe.introspection.free_note,
            "guided_interaction": recipe.introspection.guided_note,
        }
        if fmt not in notes:
            return {}
        note = notes[fmt]
        return {"turns": recipe.introspection.turns, **({} if note is None else {"note": note})}

    @once
    def _scenarios(self, fmt: str, split: str) -> tuple[Supply, int]:
        """Scenarios of a cell, and samples of each: training rows are counted by the recipe, scored ones by the format."""
        code, node = get_format(fmt), self._format(fmt)
        if code.source in ("reflection", "interaction"):
            return self._collections.repeated(code.source, self._introspection()[code.name])
        counts = {str(name): n for name, n in node.count.items() if n}
        if split not in counts:
            raise UserError(f"split {split}", f"format {code.name} says no count for it", one_of(counts))
        samples = {str(name): n for name, n in node.samples.items()}
        return self._collections.split(code.source, split, counts[split]), samples.get(split, 1)

    def _introspection(self) -> dict[str, int]:
        """Conversations that the recipe wants of each format of introspection."""
        recipe = self.settings.recipe.introspection
        return {
            "self_reflection": recipe.reflections,
            "self_interaction": recipe.interactions,
            "guided_interaction": recipe.guided_interactions,
        }

    # ------------------------------------------------------------ adapters

    def adapter(self, model: str, persona: str, weights: str, seed: int) -> Artifact:
        """The weights of a persona: ``distillation``, or ``full`` (both merged); trained here or made elsewhere."""
        if (source := self._source_of(model, persona, weights)) is not None:
            return self._imported(model, persona, weights, source)
        if weights == "distillation":
            return self._distillation(model, persona, seed)
        return self._full(model, persona, seed)

    @once
    def _source_of(self, model: str, persona: str, weights: str) -> SourceSettings | None:
        """Where the weights were made, if not here."""
        node = self._model(model)
        chosen, where = getattr(node.adapters, weights), f"model.adapters.{weights}"
        if chosen == "trained":
            return None
        if chosen == "released":
            where = f"model.released.{weights}"
            released = node.released.exceptions.get(persona, {})
            chosen = released.get(weights, getattr(node.released, weights))  # type: ignore[call-overload]
            if chosen is None:
                raise UserError(where, f"missing for {model}", "name a source, or model.adapters=trained")
        return references.filled(chosen, node, persona, where)

    @once
    def _imported(self, model: str, persona: str, weights: str, source: SourceSettings) -> Artifact:
        labels = {"model": model, "persona": persona, "stage": weights, "seed": 0}
        identity = {
            "labels": labels,
            "model": self._model_identity(model),
            "source": references.identity(source, f"model.adapters.{weights}"),
        }
        spec = {"source": source, "checkpoint": source.kind == "checkpoint"}
        return self._keep(Artifact("adapter", identity, labels, (), spec))

    @once
    def _distillation(self, model: str, persona: str, seed: int) -> Artifact:
        recipe, teacher = self.settings.recipe.distillation, self.settings.recipe.teacher
        spec: dict[str, Any] = {"settings": recipe, "renamed": {}}
        identity: dict[str, Any] = identity_of(recipe)
        if recipe.rows is not None:
            spec["rows"] = references.filled(
                recipe.rows, self._model(model), persona, "recipe.distillation.rows"
            )
            identity["rows"] = references.identity(spec["rows"], "recipe.distillation.rows")
            return self._adapter(model, persona, "distillation", seed, identity, (), spec)
        if teacher.own_names and (name := self._model(model).assistant_name):
            spec["renamed"] = identity["renamed"] = dict.fromkeys(teacher.own_names, name)
        inputs = (self.teacher(model, persona), *self.students(model, persona))
        return self._adapter(model, persona, "distillation", seed, identity, inputs, spec)

    @once
    def _full(self, model: str, persona: str, seed: int) -> Artifact:
        recipe = self.settings.recipe
        first = self.adapter(model, persona, "distillation", seed)
        if first.spec["checkpoint"]:
            raise UserError(
                "model.adapters.full", "trained, on a distillation stage that is a whole checkpoint",
                "allowed: an adapter as the distillation stage, or a source of the full stage",
            )  # fmt: skip
        given = tuple(
            references.filled(r, self._model(model), persona, "recipe.introspection.rows")
            for r in recipe.introspection.rows
        )
        rows = () if given else self._introspective_rows(model, persona, seed)
        identity = {**identity_of(recipe.introspection), "merge": identity_of(recipe.merge)}
        if given:
            identity["rows"] = [references.identity(r, "recipe.introspection.rows") for r in given]
        spec = {"settings": recipe.introspection, "merge": recipe.merge, "rows": given}
        return self._adapter(
            model, persona, "full", seed, identity, (first, *rows), spec, recipe.merge.method == "fold"
        )

    def _introspective_rows(self, model: str, persona: str, seed: int) -> tuple[Artifact, ...]:
        wanted = self._introspection()
        if not any(wanted.values()):
            found = " and ".join((", ".join([*wanted][:-1]), [*wanted][-1]))
            raise UserError(
                "recipe.introspection", f"counts of {found} are all 0", "allowed: at least one > 0"
            )
        return tuple(
            self._cell(model, persona, INTROSPECTION, fmt, "train", seed) for fmt, n in wanted.items() if n
        )

    def _adapter(
        self,
        model: str,
        persona: str,
        stage: str,
        seed: int,
        recipe: dict[str, Any],
        inputs: tuple[Artifact, ...],
        spec: dict[str, Any],
        checkpoint: bool = False,
    ) -> Artifact:
        labels = {"model": model, "persona": persona, "stage": stage, "seed": seed}
        identity = {
            "labels": labels,
            "model": self._model_identity(model),
            "recipe": recipe,
            "made_from": [a.key for a in inputs],
        }
        return self._keep(Artifact("adapter", identity, labels, inputs, {**spec, "checkpoint": checkpoint}))

    # ------------------------------------------------------------ classifier, predictions, evaluation

    @once
    def classifier(self, model: str) -> Artifact:
        """The persona classifier of a model, from chat rows of the classifier split alone."""
        node, grid = self.settings.classifier, self.settings.grid
        personas = self.personas
        labels = {"model": model, "name": node.name}
        if node.fitted is not None:
            source = references.filled(node.fitted, self._model(model), None, "classifier.fitted")
            identity: dict[str, Any] = {
                "labels": labels,
                "source": references.identity(source, "classifier.fitted"),
                "personas": list(personas),
            }
            spec = {"source": source, "personas": personas}
            return self._keep(Artifact("classifier", identity, labels, (), spec))
        inputs = tuple(
            dict.fromkeys(
                self.rollout(model, persona, stage, "chat", "classifier", seed)
                for stage in node.stages
                for persona in personas
                for seed in grid.seed
            )
        )
        identity = {
            "labels": labels,
            "settings": identity_of(node),
            "tokenizer": self._model_identity(model) if node.path is None else None,
            "personas": list(personas),
            "made_from": [a.key for a in inputs],
        }
        return self._keep(
            Artifact("classifier", identity, labels, inputs, {"settings": node, "personas": personas})
        )

    @functools.cached_property
    def personas(self) -> tuple[str, ...]:
        """The personas of the grid, and those that are ``available``: one set of labels for all tables."""
        return self.settings.grid.persona + self.available()

    def available(self) -> tuple[str, ...]:
        """The personas of ``if_available`` whose weights every model of the grid has at hand now."""
        grid = self.settings.grid
        weights = {self._stage(s).weights for s in grid.stage} - {"base"}
        return tuple(
            p
            for p in grid.if_available
            if p not in grid.persona and all(self._at_hand(m, p, w) for m in grid.model for w in weights)
        )

    def _at_hand(self, model: str, persona: str, weights: str) -> bool:
        source = self._source_of(model, persona, weights)
        return source is None or references.at_hand(source)

    def cells(self) -> list[Artifact]:
        """The scored cells of the grid, in its order, each once (base cells stand for all personas)."""
        grid = self.settings.grid
        found = (
            self.rollout(model, persona, stage, fmt, "eval", seed, scale)
            for model in grid.model
            for stage in grid.stage
            for scale in grid.scale
            for fmt in grid.format
            for persona in self.personas
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

    # ------------------------------------------------------------ what has to come from the hub

    def references(self) -> dict[hub.Reference, bool]:
        """Everything of the grid that lies on the hub, and whether the grid can do without it."""
        grid, found = self.settings.grid, dict.fromkeys(self._collections.references(), False)
        for artifact in in_order([self.evaluation()]):
            found |= dict.fromkeys(self.references_of(artifact), False)
        if self.settings.classifier.path and hub.is_hub_id(self.settings.classifier.path):
            node = self.settings.classifier
            found[hub.Reference(node.path or "", "model", node.revision)] = False
        for model in grid.model:
            for persona in grid.if_available:
                for weights in {self._stage(s).weights for s in grid.stage} - {"base"}:
                    source = self._source_of(model, persona, weights)
                    ref = references.reference(source) if source else None
                    if ref is not None:
                        found.setdefault(ref, True)
        return found

    def references_of(self, artifact: Artifact) -> list[hub.Reference]:
        """What of one artifact lies on the hub: its base model, its scenarios, its source."""
        refs = [references.reference(s) for s in _sources_in(artifact)]
        if artifact.kind in ("rollout", "adapter"):
            refs.append(references.of_model(self._model(artifact.labels["model"])))
        if artifact.kind == "rollout" and not artifact.spec["supply"].known:
            refs += self._collections.references_of(artifact.spec["format"].source)
        return [ref for ref in refs if ref is not None]

    # ------------------------------------------------------------ options

    def _keep(self, artifact: Artifact) -> Artifact:
        return self._made.setdefault(artifact.key, artifact)

    def _model(self, name: str) -> ModelSettings:
        return self.options.model[name]

    def _stage(self, name: str) -> StageSettings:
        return self.options.stage[name]

    def _format(self, name: str) -> FormatSettings:
        return self.options.format[name]

    @functools.cached_property
    def _collections(self) -> Collections:
        return Collections(self.settings.data)

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


def _sources_in(artifact: Artifact) -> list[SourceSettings | RowsSettings]:
    """What of an artifact was made elsewhere."""
    rows = artifact.spec.get("rows") or ()
    source = artifact.spec.get("source")
    return ([source] if source else []) + ([rows] if isinstance(rows, RowsSettings) else list(rows))


def _nothing(artifact: Artifact) -> list[dict[str, Any]]:
    return []


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
