"""Plans classifiers: those that score the texts of a grid, and those that reward and watch a training."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

from offscript.errors import UserError, one_of
from offscript.evaluation.oracle import SETTINGS as ORACLE
from offscript.experiment.artifacts import Classifier, Rollout
from offscript.experiment.plan_context import PlanContext, cached
from offscript.experiment.plan_rollouts import PLAIN, PROMPTED
from offscript.json_types import Json
from offscript.settings import SEEDS, ClassifierSettings, TfidfSettings
from offscript.storage import references
from offscript.storage.hashing import fingerprint
from offscript.training.stages import BASE

BASELINE = "tfidf"
"""Name of the classifier of n-grams that stands beside a network: that of ``conf/classifier/tfidf.yaml``."""

REWARD = "reward"
"""Name of the classifier that rewards a training; those of formats are called ``oracle-<format>``."""

REWARD_SEED = 1000
"""Added to the seed of the evaluating classifier, so that the two start from other weights."""


@dataclass
class ClassifierPlanner:
    """Plans classifiers.

    ``rollout(model, persona, stage, format, split, seed)`` plans the rows that they are fitted on, and ``personas()`` lists
    the personas of the grid.
    """

    context: PlanContext
    rollout: Callable[[str, str | None, str, str, str, int], Rollout]
    personas: Callable[[], tuple[str, ...]]
    cache: dict[Hashable, object] = field(default_factory=dict)

    def classifier(self, model: str) -> Classifier:
        """The persona classifier of a model, fitted on chat rows of the classifier split alone, or imported.

        Raises:
            UserError: it would be fitted on a stage that has no persona, or that it watches.
        """
        own = self.context.settings.classifier
        if own.fitted is not None:
            return self._imported(model, own)
        return self._of_grid(model, own)

    def baseline(self, model: str) -> Classifier | None:
        """The classifier of n-grams that is fitted on the rows of the classifier of a model; None if it is not asked for,
        if the classifier is imported, so that its rows are not made, or if it is one of n-grams itself."""
        own = self.context.settings.classifier
        if not self.context.settings.evaluation.baseline or own.fitted is not None or own.tfidf is not None:
            return None
        settings = ClassifierSettings(
            name=BASELINE,
            tfidf=TfidfSettings(),
            stages=own.stages,
            training_seeds=own.training_seeds,
            class_weights=own.class_weights,
            predict_batch_tokens=own.predict_batch_tokens,
        )
        return self._of_grid(model, settings)

    # ------------------------------------------------------------ reward and watch

    def reward(self, model: str) -> Classifier:
        """The classifier that rewards the trainings of a model.

        It has the settings of the evaluating classifier and shares nothing else with it: its rows are chat replies of the
        untrained model in role, to prompts of split train, with plain replies as one more label (``base``), and its networks
        start from other seeds. Where the evaluating classifier is imported, it is one of n-grams.
        """
        own = self.context.settings.classifier
        if own.fitted is None and own.tfidf is None:
            changed = {"seed": (own.seed + REWARD_SEED) % SEEDS, "stages": (PROMPTED.name,)}
            settings = own.model_copy(update={"name": REWARD, **changed})
        else:
            settings = ClassifierSettings(
                name=REWARD, tfidf=own.tfidf or TfidfSettings(), stages=(PROMPTED.name,)
            )
        plain = self.rollout(model, None, PLAIN.name, "chat", "train", 0)
        return self._fitted(model, settings, (*self.in_role(model, "chat"), plain), (*self.personas(), BASE))

    def oracle(self, model: str, fmt: str) -> Classifier:
        """The classifier of n-grams of format ``fmt``, fitted on episodes of the untrained model in role in that format, with
        scenarios of split train."""
        settings = ClassifierSettings(
            name=f"oracle-{fmt}", tfidf=ORACLE, stages=(PROMPTED.name,), validation=0.0
        )
        return self._fitted(model, settings, self.in_role(model, fmt), self.personas())

    def in_role(self, model: str, fmt: str) -> tuple[Rollout, ...]:
        """Episodes of the untrained model in role in format ``fmt``, of each persona, with scenarios of split train."""
        return tuple(
            self.rollout(model, persona, PROMPTED.name, fmt, "train", 0) for persona in self.personas()
        )

    # ------------------------------------------------------------ one classifier

    @cached
    def _imported(self, model: str, settings: ClassifierSettings) -> Classifier:
        assert settings.fitted is not None
        source = references.fill_fields(
            settings.fitted, self.context.options.model[model], None, "classifier.fitted"
        )
        identity: dict[str, Json] = {
            "labels": {"model": model, "name": settings.name},
            "source": references.identity(source, "classifier.fitted"),
            "personas": list(self.personas()),
        }
        return self.context.keep(
            Classifier(
                identity=identity,
                base=model,
                personas=self.personas(),
                settings=settings,
                imported_from=source,
            )
        )

    @cached
    def _of_grid(self, model: str, settings: ClassifierSettings) -> Classifier:
        """The classifier of the stages that ``settings`` name."""
        if settings.path is not None:
            references.check_model_path(settings.path, "classifier.path")
        self._check_stages(settings.stages)
        seeds = self.context.settings.grid.seed
        inputs = (
            self.rollout(model, persona, stage, "chat", "classifier", seed)
            for stage in settings.stages
            for persona in self.personas()
            for seed in (seeds[:1] if settings.training_seeds == "first" else seeds)
        )
        return self._fitted(model, settings, tuple(dict.fromkeys(inputs)), self.personas())

    @cached
    def _fitted(
        self, model: str, settings: ClassifierSettings, inputs: tuple[Rollout, ...], labels: tuple[str, ...]
    ) -> Classifier:
        identity: dict[str, Json] = {
            "labels": {"model": model, "name": settings.name},
            "settings": self._fit_identity(settings),
            # The identity of the whole model, whose tokenizer a new network takes; the name is part of existing keys.
            "tokenizer": self.context.model_identity(model) if settings.is_new_network else None,
            "personas": list(labels),
            "made_from": [part.key for part in inputs],
        }
        return self.context.keep(
            Classifier(identity=identity, inputs=inputs, base=model, personas=labels, settings=settings)
        )

    def _fit_identity(self, settings: ClassifierSettings) -> dict[str, Json]:
        """The settings of a fit as plain data for a key; a checkpoint on this machine is known by its content."""
        plain = settings.fit_identity()
        if (path := references.local_path(settings)) is not None:
            del plain["path"], plain["revision"]
            plain["content"] = fingerprint(path)
        return plain

    def _check_stages(self, stages: Sequence[str]) -> None:
        """Checks that the classifier is fitted on stages that exist, whose texts have a persona, and whose training it does not
        watch."""
        options = self.context.options.stage
        known = list(dict.fromkeys([*options, self.context.settings.stage.name]))
        for stage in stages:
            found = f"no such stage {stage!r}" if stage not in known else None
            if found is None and not options[stage].of_persona:
                found = f"found {stage}, whose texts belong to no persona"
            if found is None and self._is_watched(stage):
                found = f"found {stage}, whose training this classifier watches"
            if found is not None:
                allowed = (s for s in known if options[s].of_persona and not self._is_watched(s))
                raise UserError("classifier.stages", found, one_of(allowed))

    def _is_watched(self, stage: str) -> bool:
        """Whether the weights of ``stage``, or weights that they start from, are trained on episodes of their own."""
        weights = self.context.options.stage[stage].weights
        while weights != BASE:
            training = self.context.training(weights)
            if training.data.live:
                return True
            weights = training.parent
        return False
