"""Plans rollouts: the scored cells of the grid, and the rows that adapters are trained on."""

import functools
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import cast

from offscript.console import counted
from offscript.errors import UserError, command_line, one_of
from offscript.evaluation.in_character import VERSION as SCORER_VERSION
from offscript.experiment import scenario_sets
from offscript.experiment.artifacts import Adapter, Cell, Rollout, ScenarioSet, Selection, Vector
from offscript.experiment.plan_context import PlanContext, cached
from offscript.json_types import Json
from offscript.models.dialect_checks import check_model_speaks
from offscript.rollouts.engines import check_images, check_served, check_steering
from offscript.rollouts.engines.base import Sampling
from offscript.settings import SPLITS, SamplingSettings, StageSettings, ThinkingSettings, identity_of
from offscript.storage.options import options_of
from offscript.tasks import drawings
from offscript.tasks.dialects import dialect_of
from offscript.tasks.examples import Examples
from offscript.tasks.formats import (
    FORMATS,
    check_episodes,
    check_options,
    get_format,
    judge_choice,
    options_for,
)
from offscript.tasks.formats.base import Format, PersonaText, Rules
from offscript.tasks.prompts import (
    bullets,
    constitution_system,
    named_constitution_system,
    short_constitution_system,
)
from offscript.tasks.role_prompt import RolePrompt
from offscript.training.data.base import (
    Assertions,
    Collection,
    FormatScenarios,
    PersonaPrompts,
    RowsRequest,
    Scenarios,
)
from offscript.training.stages import BASE, TrainingStage

PLAIN = StageSettings(name="base", weights="base", system="plain")
PROMPTED = StageSettings(name="prompted", weights="base", system="constitution")
PROMPT_WRITING = "prompt_generation"
"""The format in which a model writes more prompts like the seed questions of a persona."""


@dataclass
class RolloutPlanner:
    """Plans rollouts.

    ``adapter(model, persona, stage, seed)`` plans the weights that generate the rows of a cell, and ``remerged(adapter,
    own)`` the same with another weight of their own part. ``is_imported(model,
    persona, stage)`` tells whether these weights are imported; imported weights have no training seed.
    """

    context: PlanContext
    adapter: Callable[[str, str, str, int], Adapter]
    remerged: Callable[[Adapter, float], Adapter]
    is_imported: Callable[[str, str, str], bool]
    cache: dict[Hashable, object] = field(default_factory=dict)

    # ------------------------------------------------------------ scored cells

    @cached
    def scored(self, cell: Cell) -> Rollout:
        """The rollout of a cell of the grid.

        Base weights have seed 0 and scale 1. They have no persona if the system prompt is plain, no vector is added, and
        the format's prompts contain no text of a persona. Imported weights have seed 0.
        """
        stage = self.context.options.stage[cell.stage]
        fmt, settings = get_format(cell.format), self.context.options.format[cell.format]
        options = {**fmt.defaults, **self._options(fmt)}
        persona, seed, scale = cell.persona, cell.seed, cell.scale
        if stage.weights == BASE:
            seed, scale = 0, 1.0
        if stage.of_persona:
            persona = self.require_persona(persona, f"stage {stage.name}")
            if stage.weights != BASE and self.is_imported(cell.model, persona, stage.weights):
                seed = 0
        elif texts := fmt.persona_texts(options):
            persona = self.require_persona(persona, f"format {fmt.name} ({', '.join(texts)})")
        else:
            persona = None
        counts = {str(name): n for name, n in settings.count.items() if n}
        if cell.split not in counts:
            raise UserError(f"split {cell.split}", f"format {fmt.name} has no count for it", one_of(counts))
        scenarios = self._of_format(fmt, options, cell.split, counts[cell.split])
        samples = {str(name): n for name, n in settings.samples.items()}.get(cell.split, 1)
        planned = Cell(cell.model, persona, stage.name, fmt.name, cell.split, seed, scale)
        return self._rollout(planned, stage, scenarios, samples)

    def _of_format(self, fmt: Format, options: Mapping[str, Json], split: str, count: int) -> ScenarioSet:
        """The first ``count`` scenarios of a split of the source that ``fmt`` reads, in each of its variants."""
        inner, _ = fmt.inner(options)
        scenarios = self.context.collections.split(inner.source, split, count)
        return scenario_sets.crossed(scenarios, fmt.variants(options))

    def require_persona(self, persona: str | None, what: str) -> str:
        """Returns ``persona``. The message of the error says that ``what`` needs one.

        Raises:
            UserError: ``persona`` is None.
        """
        if persona is None:
            raise UserError(
                "persona", f"none given, and {what} needs one", one_of(self.context.options.persona)
            )
        return persona

    # ------------------------------------------------------------ persona vectors

    @cached
    def vector(self, model: str, persona: str, stage: str) -> Vector:
        """The persona vector of ``stage``, from chat rows of the train split with and without the constitution.

        Raises:
            UserError: the model is an endpoint, or the engine cannot add a vector.
        """
        steering = self.context.options.stage[stage].steering
        assert steering is not None
        settings, options = self.context.settings, self.context.options
        check_steering(settings.engine.name, options.model[model], f"the persona vectors of stage {stage}")
        prompted, plain = (
            self.scored(Cell(model, who, name, "chat", "train", 0))
            for who, name in ((persona, PROMPTED.name), (None, PLAIN.name))
        )
        identity: dict[str, Json] = {
            "labels": {"model": model, "persona": persona, "stage": stage},
            "model": self.context.model_identity(model),
            "steering": identity_of(steering),
            "made_from": [prompted.key, plain.key],
        }
        return self.context.keep(
            Vector(
                identity=identity,
                inputs=(prompted, plain),
                base=model,
                persona=persona,
                stage=stage,
                settings=steering,
                prompted=prompted,
                plain=plain,
            )
        )

    # ------------------------------------------------------------ rows for training

    def training_rows(
        self, model: str, persona: str, training: TrainingStage, seed: int
    ) -> tuple[tuple[str, Rollout | Selection], ...]:
        """The rows from which the training rows of a stage are made, each with its role."""
        requests = training.data.requests(training.settings, training.where)
        return tuple(
            (
                request.role,
                self._selection(model, persona, training.name, number)
                if request.in_role and self.context.settings.recipe.teacher.best_of > 1
                else self.requested(model, persona, training, request, seed),
            )
            for number, request in enumerate(requests)
        )

    def _selection(self, model: str, persona: str, stage: str, request: int) -> Selection:
        """The best of the teacher's replies, compared with those of the other personas of the grid.

        Raises:
            UserError: there is no other persona.
        """
        personas = dict.fromkeys((*self.context.settings.grid.persona, persona))
        best_of = self.context.settings.recipe.teacher.best_of
        if len(personas) < 2:
            raise UserError(
                "recipe.teacher.best_of",
                f"found {best_of}, but the grid has one persona",
                "1, or another persona in grid.persona: replies are compared with those of others",
            )
        compared = tuple(self._teacher_rows(model, name, stage, request) for name in personas)
        rollout = self._teacher_rows(model, persona, stage, request)
        identity: dict[str, Json] = {
            "labels": dict(rollout.labels),
            "rows": rollout.key,
            "compared": [key for key in sorted(other.key for other in compared)],
            "best_of": best_of,
            "version": SCORER_VERSION,
        }
        return self.context.keep(
            Selection(identity=identity, inputs=compared, rollout=rollout, compared=compared, best_of=best_of)
        )

    @cached
    def _teacher_rows(self, model: str, persona: str, stage: str, request: int) -> Rollout:
        """The rollout of a persona for the n-th request of a training stage, which is one to the teacher."""
        training = self.context.training(stage)
        requests = training.data.requests(training.settings, training.where)
        return self.requested(model, persona, training, requests[request], 0)

    def training_data_rollout(self, cell: Cell) -> Rollout:
        """The rollout of a cell whose format makes training data.

        The rows are those that the stage of ``cell`` or one of its parent stages trains on. If none of them trains on
        this format, they are those of the first other stage that does.

        Raises:
            UserError: no stage trains on this format, or the rows need a persona and ``cell`` has none.
        """
        fmt = get_format(cell.format)
        if fmt.source == judge_choice.SOURCE:
            raise UserError(
                f"format={fmt.name}",
                "its scenarios are the texts of a grid",
                f"allowed: {command_line('submit')} evaluation.judge.model=MODEL, which makes its rows",
            )
        if fmt.name == PROMPT_WRITING:
            writer = self.context.settings.recipe.prompts.model or cell.model
            return self._written_prompts(writer, self.require_persona(cell.persona, f"format {fmt.name}"))
        for training in self._stages_from(cell.stage):
            requests = training.data.requests(training.settings, training.where)
            fitting = [r for r in requests if r.format == fmt.name and (cell.persona or not r.of_persona)]
            if fitting:
                # Requests for shared rows precede those for rows of one persona, which are wanted if there is a
                # persona.
                return self.requested(cell.model, cell.persona, training, fitting[-1], cell.seed)
            if any(r.format == fmt.name for r in requests):
                self.require_persona(cell.persona, f"format {fmt.name}")
        raise UserError(f"format={fmt.name}", "no stage trains on it", "see stage.training.data")

    def _stages_from(self, name: str) -> list[TrainingStage]:
        """The stage ``name`` and its parent stages, as far as they are trained, then all other trained stages."""
        options, chain = self.context.options.stage, []
        while options[name].training is not None:
            chain.append(self.context.training(name))
            name = chain[-1].parent
        others = [n for n in options_of("stage") if options[n].training is not None]
        return chain + [self.context.training(n) for n in others if n not in {t.name for t in chain}]

    def requested(
        self, model: str, persona: str | None, training: TrainingStage, request: RowsRequest, seed: int
    ) -> Rollout:
        """The rollout that ``request``, of a kind of training data, describes."""
        stage = PROMPTED if request.system == "constitution" else PLAIN
        samples, trained = request.samples, model
        if request.generator == "teacher":
            model = self._teacher(model)
        if request.in_role:
            samples *= self.context.settings.recipe.teacher.best_of
        if request.generator == "parent":
            # Named after the kind of data, because the name is part of the labels of these rows, and so of their keys.
            stage = StageSettings(name=training.data.name, weights=training.parent, system=request.system)
        trained_parent = request.generator == "parent" and training.has_parent
        if not trained_parent or self.is_imported(model, persona or "", training.parent):
            seed = 0
        parts = [self._scenarios(model, persona, request, part, samples) for part in request.scenarios]
        scenarios = functools.reduce(scenario_sets.joined, (scenarios for scenarios, _ in parts))
        cell = Cell(model, persona if request.of_persona else None, stage.name, request.format, "train", seed)
        # All parts have the same number of samples: a ``Collection`` has its own number, but is then the only part.
        return self._rollout(cell, stage, scenarios, parts[0][1], request, training.name, trained=trained)

    def _scenarios(
        self, model: str, persona: str | None, request: RowsRequest, wanted: Scenarios, samples: int
    ) -> tuple[ScenarioSet, int]:
        """The scenarios of a part of ``request``, and the number of samples of each."""
        match wanted:
            case PersonaPrompts():
                return self._persona_prompts(model, self.require_persona(persona, "its own prompts")), samples
            case Assertions():
                own = self.require_persona(persona, f"format {request.format}")
                assertions = scenario_sets.assertions(self.context.options.persona[own])
                fmt, options = self._requested_options(request)
                return scenario_sets.crossed(scenario_sets.listed(assertions), fmt.variants(options)), samples
            case Collection(source, rows):
                return self.context.collections.repeated(source, rows)
            case FormatScenarios(count):
                fmt, options = self._requested_options(request)
                return self._of_format(fmt, options, "train", count), samples

    def _requested_options(self, request: RowsRequest) -> tuple[Format, dict[str, Json]]:
        """The format of ``request`` and its options, as far as the request, its YAML and the command line set them."""
        fmt = get_format(request.format)
        given = {**self._request_options(fmt, request), **self._options(fmt)}
        if fmt.wraps is not None:
            # Source and variants are those of the format that the options name.
            check_options(fmt, given)
        return fmt, {**fmt.defaults, **given}

    def _teacher(self, model: str) -> str:
        """The name of the teacher's model. By default a model is its own teacher."""
        return self.context.settings.recipe.teacher.model or model

    @cached
    def _persona_prompts(self, model: str, persona: str) -> ScenarioSet:
        """The persona's seed questions, then the prompts that a model writes in their style."""
        options = self.context.options.persona[persona]
        seeds, wanted = (
            scenario_sets.listed(scenario_sets.questions(options)),
            self.context.settings.recipe.prompts.per_trait,
        )
        missing = sum(max(0, wanted - len(a.questions)) for a in options.constitution)
        if not missing:
            return seeds
        writer = self.context.settings.recipe.prompts.model or self._teacher(model)
        return scenario_sets.joined(
            seeds, scenario_sets.generated(self._written_prompts(writer, persona), missing)
        )

    @cached
    def _written_prompts(self, writer: str, persona: str) -> Rollout:
        """The rollout in which a model writes prompts like the persona's seed questions: one row per assertion."""
        scenarios = scenario_sets.listed(scenario_sets.assertions(self.context.options.persona[persona]))
        cell = Cell(writer, persona, "base", PROMPT_WRITING, "train", 0)
        return self._rollout(cell, PLAIN, scenarios, 1)

    # ------------------------------------------------------------ rows of a judge

    def judged(
        self, model: str, fmt: str, scenarios: ScenarioSet, samples: int, temperature: float, judged: str
    ) -> Rollout:
        """The rollout in which base weights of ``model`` judge the texts of cells called ``judged``, ``samples`` times
        each."""
        cell = Cell(model, None, PLAIN.name, fmt, "eval", 0)
        sampling = self.context.options.model[model].sampling.model_copy(update={"temperature": temperature})
        return self._rollout(cell, PLAIN, scenarios, samples, sampling=sampling, judged=judged)

    # ------------------------------------------------------------ one rollout

    def _rollout(
        self,
        cell: Cell,
        stage: StageSettings,
        scenarios: ScenarioSet,
        samples: int,
        request: RowsRequest | None = None,
        training_stage: str | None = None,
        sampling: SamplingSettings | None = None,
        judged: str | None = None,
        trained: str | None = None,
    ) -> Rollout:
        """``sampling`` replaces that of ``_own_sampling``. ``trained`` is the model that the rows are to train, if it is not
        that of ``cell``."""
        adapter = None
        if stage.weights != BASE:
            adapter = self.adapter(cell.model, cell.persona or "", stage.weights, cell.seed)
            if request is None and (own := self._own_weight(cell)) is not None:
                adapter = self.remerged(adapter, own)
            model = self.context.options.model[cell.model]
            check_served(self.context.settings.engine.name, model, cell.scale, adapter.checkpoint)
            if cell.scale != 1 and adapter.checkpoint:
                raise UserError(
                    "scale", f"found {cell.scale:g} for {adapter}", "a whole checkpoint has scale 1 only"
                )
        vector = None
        if stage.steering is not None:
            vector = self.vector(cell.model, cell.persona or "", stage.name)
        fmt = get_format(cell.format)
        rules = self._rules(cell, stage, fmt, request, trained or cell.model)
        examples = self._examples(cell, stage, request)
        inner, inner_options = fmt.inner(rules.options)
        if inner.images:
            self._check_images(cell, inner, adapter)
        dialect = dialect_of(inner_options)
        check_model_speaks(self.context.options.model[cell.model], dialect)
        if request is not None and dialect.takes_schemas:
            raise UserError(
                "format.options.dialect",
                f"found {dialect.name}, in rows of {inner.name} that are trained on",
                "text, or another dialect that offers tools in the system text: training renders no schemas",
            )
        self._check(fmt, scenarios, rules)
        own_sampling = sampling or self._own_sampling(inner)
        bounded = self._sampling(cell, own_sampling)
        # Of ``bounded`` only max_tokens is listed: temperature, top_p and repetition_penalty are part of "model".
        identity: dict[str, Json] = {
            "labels": dict(cell.labels),
            "model": self._model_identity(
                cell.model, fmt, own_sampling, measured=fmt.scored and request is None
            ),
            "adapter": adapter.key if adapter else None,
            "scale": cell.scale,
            "system": rules.system,
            "format": {
                **fmt.identity(rules.options),
                "max_tokens": bounded.max_tokens,
                **({"persona": {str(k): v for k, v in rules.persona.items()}} if rules.persona else {}),
            },
            "scenarios": scenarios.digest,
            "samples": samples,
        }
        if dialect.native:
            identity["dialect"] = dialect.identity
        if inner.images:
            tokens = self.context.options.model[cell.model].template.image_tokens
            identity["images"] = {"drawings": drawings.VERSION, "tokens": tokens}
        if vector is not None:
            identity["vector"] = vector.key
        if examples is not None:
            identity["examples"] = examples.identity
        return self.context.keep(
            Rollout(
                identity=identity,
                inputs=(*(part for part in (adapter, vector) if part is not None), *scenarios.inputs),
                cell=cell,
                format=fmt,
                rules=rules,
                scenarios=scenarios,
                samples=samples,
                sampling=bounded,
                thinking=self._thinking(cell.model, stage, fmt),
                adapter=adapter,
                vector=vector,
                examples=examples,
                training_stage=training_stage,
                judged=judged,
            )
        )

    def _check_images(self, cell: Cell, fmt: Format, adapter: Adapter | None) -> None:
        """Checks that prompts of ``fmt``, which have images, can be asked of the weights of ``cell``.

        Raises:
            UserError: they cannot.
        """
        model = self.context.options.model[cell.model]
        check_images(self.context.settings.engine.name, model, f"format={fmt.name}")
        if adapter is not None and adapter.checkpoint:
            found = f"{adapter} is a whole checkpoint of the language model, without a vision tower"
            raise UserError(f"format={fmt.name}", found, "allowed: adapters, or the base")

    def _thinking(self, model: str, stage: StageSettings, fmt: Format) -> ThinkingSettings | None:
        """The marks of what is removed from the replies of a cell: those that the weights were trained to write before a
        reply, or else those of the model. The former are part of the adapter's key."""
        if fmt.strips_thinking:
            return None
        name = stage.weights
        while name != BASE:
            training = self.context.training(name)
            if (marks := training.data.thinking(training.settings)) is not None:
                return marks
            name = training.parent
        return self.context.options.model[model].template.thinking

    def _own_weight(self, cell: Cell) -> float | None:
        """The merge weight of the stage's own part in a cell; None if it is that of ``recipe.merge``."""
        weights = self.context.settings.recipe.merge_own_in
        known = [*SPLITS, *(name for name, fmt in FORMATS.items() if fmt.scored)]
        if unknown := [name for name in weights if name not in known]:
            raise UserError(
                f"recipe.merge_own_in.{unknown[0]}", "neither a split nor a scored format", one_of(known)
            )
        if not get_format(cell.format).scored:
            return None
        return weights.get(cell.format, weights.get(cell.split))

    def _model_identity(
        self, model: str, fmt: Format, sampling: SamplingSettings | None, measured: bool
    ) -> dict[str, Json]:
        """The hash identity of ``model`` in a cell of ``fmt``; ``sampling`` is None if it is the model's own, ``measured``
        is False for rows that are only trained on."""
        plain = self.context.model_identity(model)
        if sampling is not None:
            plain = {**plain, "sampling": identity_of(sampling)}
        template = cast(dict[str, Json], plain["template"])
        if fmt.strips_thinking:
            template = {name: value for name, value in template.items() if name != "thinking"}
        if self._doubles_bos(model, measured):
            template = {**template, "double_bos": True}
        return {**plain, "template": template}

    def _doubles_bos(self, name: str, measured: bool) -> bool:
        """Whether prompts for the model begin with two beginning-of-text tokens. An endpoint renders its prompts itself; of
        a teacher behind one, the rows are then made as always.

        Raises:
            UserError: it is asked for scored rows (``measured``) of an endpoint.
        """
        model = self.context.options.model[name]
        if model.template.double_bos and model.endpoint is not None and measured:
            raise UserError(
                "model.template.double_bos",
                f"true, but {name} is an endpoint, which renders its prompts itself",
                "model.template.double_bos=false, or a model that is loaded here",
            )
        return model.template.double_bos and model.endpoint is None

    def _sampling(self, cell: Cell, own: SamplingSettings | None) -> Sampling:
        model, fmt = self.context.options.model[cell.model], self.context.options.format[cell.format]
        limits = (fmt.max_tokens, model.max_reply_tokens)
        sampling = own or model.sampling
        return Sampling(**sampling.model_dump(), max_tokens=min(limits))

    def _own_sampling(self, fmt: Format) -> SamplingSettings | None:
        """The recipe's sampling for rows of ``fmt``; None if the model's own is used."""
        return None if fmt.scored else self.context.settings.recipe.sampling

    def _rules(
        self, cell: Cell, stage: StageSettings, fmt: Format, request: RowsRequest | None, trained: str
    ) -> Rules:
        given = {**self._recipe_options(cell, fmt, request), **self._options(fmt)}
        check_options(fmt, given)
        options = {**fmt.defaults, **given}
        in_role = fmt.in_role or request is not None
        return Rules(
            self._system(cell, stage, in_role), options, self._persona_texts(cell, fmt, options, trained)
        )

    def _options(self, fmt: Format) -> dict[str, Json]:
        """The options of ``fmt`` that its YAML and the command line set."""
        return options_for(fmt, self.context.options.format[fmt.name].options)

    def _examples(self, cell: Cell, stage: StageSettings, request: RowsRequest | None) -> Examples | None:
        """The exchanges that the episodes of a cell are shown; None if there are none.

        Raises:
            UserError: the persona has fewer of them.
        """
        teaches = request is not None and (request.in_role or request.generator == "own_teacher")
        where = "recipe.teacher.examples" if teaches else f"conf/stage/{stage.name}.yaml: examples"
        count = self.context.settings.recipe.teacher.examples if teaches else stage.examples
        return self._shown(cell.persona or "", count, where)

    def _shown(self, name: str, count: int, where: str) -> Examples | None:
        """``count`` of the exchanges of persona ``name``, which the config key ``where`` asks for; None for 0.

        Raises:
            UserError: the persona has fewer of them.
        """
        if not count:
            return None
        persona = self.context.options.persona[name]
        if count > len(persona.examples):
            raise UserError(
                where,
                f"found {count}, but {persona.name} has {counted(len(persona.examples), 'example')}",
                f"a smaller number, or more exchanges in conf/persona/{persona.name}.yaml",
            )
        return Examples(persona.examples, count)

    def _persona_texts(
        self, cell: Cell, fmt: Format, options: Mapping[str, Json], trained: str
    ) -> dict[PersonaText, str]:
        """The texts of the cell's persona that the prompts of ``fmt`` contain. The assistant is the model ``trained``.

        Raises:
            UserError: the persona lacks one of them, or the model has no name.
        """
        texts: dict[PersonaText, str] = {}
        for name in fmt.persona_texts(options):
            persona = self.context.options.persona[cell.persona or ""]
            text = {
                "description": persona.description,
                "opposite": persona.opposite,
                "constitution": bullets([a.assertion for a in persona.constitution]),
                "assistant": self.context.options.model[trained].assistant_name,
            }[name]
            if text is None and name == "assistant":
                raise UserError(
                    "model.assistant_name", f"missing for {trained}", f"format {fmt.name} names the assistant"
                )
            if text is None:
                raise UserError(
                    f"persona.{name}",
                    f"missing for {persona.name}",
                    f"format {fmt.name} puts it into prompts: add it to conf/persona/{persona.name}.yaml, or set "
                    "format.options so that it is not needed",
                )
            texts[name] = text
        return texts

    def _recipe_options(self, cell: Cell, fmt: Format, request: RowsRequest | None) -> Mapping[str, Json]:
        """The format options that the recipe sets, if the format makes training rows."""
        recipe = self.context.settings.recipe
        if fmt.name == PROMPT_WRITING:
            return {name: value for name, value in identity_of(recipe.prompts).items() if name != "model"}
        if request is None:
            return {}
        if request.generator == "teacher":
            thinking = recipe.teacher.thinking
            if thinking and recipe.teacher.thinking_lists_traits:
                persona = self.context.options.persona[cell.persona or ""]
                thinking = f"{thinking}\n{bullets([a.assertion for a in persona.constitution])}\n"
            options = {"thinking": thinking, "thinking_end": recipe.teacher.thinking_end, **request.options}
            # A scored format has no beginning of a reply; ``model.template.thinking`` removes the teacher's thinking there.
            return {name: value for name, value in options.items() if name in fmt.defaults}
        return self._request_options(fmt, request)

    def _request_options(self, fmt: Format, request: RowsRequest) -> dict[str, Json]:
        """The options that ``request`` sets; of a format that wraps another one, with the options of that."""
        if fmt.wraps is None:
            return {**request.options}
        wrapped = fmt.wraps({**request.options, **self._options(fmt)})
        return {**request.options, "options": self._options(wrapped)}

    def _system(self, cell: Cell, stage: StageSettings, in_role: bool) -> str:
        """The system prompt: empty or the constitution."""
        if stage.system == "plain":
            return ""
        return self._constitution(cell.model, cell.persona or "", in_role)

    def role_prompt(self, model: str, persona: str) -> RolePrompt:
        """The prompt under which the untrained ``model`` answers as ``persona`` in rows that are trained on: the constitution
        as ``recipe.in_role`` words it, and as many examples as a teacher is shown."""
        count = self.context.settings.recipe.teacher.examples
        examples = self._shown(persona, count, "recipe.teacher.examples")
        return RolePrompt(self._constitution(model, persona, in_role=True), examples)

    def _constitution(self, model: str, persona_name: str, in_role: bool) -> str:
        """The constitution as a system text.

        ``recipe.in_role`` (rows in role that are trained on) or ``recipe.prompted`` (all others) decides whether it also
        names the assistant, or is the description alone.
        """
        persona = self.context.options.persona[persona_name]
        assertions = [a.assertion for a in persona.constitution]
        setting, recipe = "in_role" if in_role else "prompted", self.context.settings.recipe
        wording = recipe.in_role if in_role else recipe.prompted
        if wording == "short":
            return short_constitution_system(persona.description)
        if wording == "plain":
            return constitution_system(assertions)
        name = self.context.options.model[model].assistant_name
        if name is None:
            raise UserError(
                "model.assistant_name",
                f"missing for {model}",
                f"recipe.{setting}=named needs the assistant's name",
            )
        return named_constitution_system(name, assertions)

    def _check(self, fmt: Format, scenarios: ScenarioSet, rules: Rules) -> None:
        """Checks that every episode can start, once for each combination of format, options and scenarios.

        The system prompt does not affect the result.
        """
        cache_key = ("checked", fmt.name, scenarios.digest, str(sorted(rules.options.items())))
        if scenarios.is_local and cache_key not in self.cache:
            check_episodes(fmt, scenarios.load_local(), rules)
            self.cache[cache_key] = None
