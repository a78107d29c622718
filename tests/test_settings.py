import pytest

from offscript import settings as schema
from offscript.cli import options_of
from offscript.errors import UserError
from offscript.storage.files import HOME
from tests.composed import experiment_of, settings_of

NODES = [
    node
    for node in vars(schema).values()
    if isinstance(node, type) and issubclass(node, schema.Node) and node not in (schema.Node, schema.Named)
]


@pytest.mark.parametrize("node", NODES, ids=lambda n: n.__name__)
def test_every_setting_is_classified_as_identity_or_run_time(node):
    for name, field in node.model_fields.items():
        mark = (field.json_schema_extra or {}).get("offscript")
        assert mark in ("identity", "runtime"), f"{node.__name__}.{name} is not classified"


@pytest.mark.parametrize("group", sorted(p.name for p in (HOME / "conf").iterdir() if p.is_dir()))
def test_every_option_composes_and_fits_the_schema(group):
    for option in options_of(group):
        settings = settings_of(f"{group}={option}")
        if group in schema.GROUPS:
            assert getattr(settings, group).name == option
        elif group == "experiment":
            assert settings.name == option
        elif group == "fidelity":
            assert settings.name == "main"
        else:
            assert getattr(settings, group).name == option


@pytest.mark.parametrize("entry", ["train", "rollout", "classify", "evaluate", "launch"])
def test_every_entry_composes(entry):
    assert settings_of(config=entry).name == "main"


def test_an_experiment_reaches_every_option_of_its_grid():
    experiment = experiment_of("experiment=demo", "format.max_tokens=99")
    assert {
        experiment.planner.options.format[f].max_tokens for f in ("chat", "teacher", "agentic_email")
    } == {99}
    assert experiment.planner.options.format["agentic_email"].count["eval"] == 50


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (
            ["model.sampling.temperature=hot"],
            "model.sampling.temperature: found 'hot'; input should be a valid number",
        ),
        (
            ["+model.fish=1"],
            "model.fish: unknown key; allowed: adapters, aliases, assistant_name, context, dtype",
        ),
        (["name=../x"], "name: '../x' cannot be a file name; allowed: letters, digits"),
        (
            ["grid.stage=[full,full]"],
            "grid.stage: ['full', 'full'] names something twice; allowed: each name once",
        ),
        (
            ["data.fractions.train=0.9"],
            "data.fractions: fractions of the splits add up to 1.5; allowed: exactly 1",
        ),
        (
            ["~model.dtype", "model.context=12"],
            "model.context: found 12; input should be greater than or equal to 64",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(overrides, line):
    with pytest.raises(UserError) as caught:
        settings_of(*overrides)
    assert line in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("seed=-1", "seed: found -1; input should be greater than or equal to 0"),
        ("seed=4294967296", "seed: found 4294967296; input should be less than 4294967296"),
        ("grid.seed=[0,-1]", "grid.seed.1: found -1; input should be greater than or equal to 0"),
        ("grid.seed=[4294967296]", "grid.seed.0: found 4294967296; input should be less than"),
        ("classifier.seed=5000000000", "classifier.seed: found 5000000000; input should be less than"),
        ("evaluation.seed=5000000000", "evaluation.seed: found 5000000000; input should be less than"),
        ("evaluation.resamples=0", "evaluation.resamples: found 0; input should be greater than or equal to 100"),
        ("evaluation.resample=word", "evaluation.resample: found 'word'; input should be 'family', 'scenario' or 'rows'"),
        ("grid.scale=[1,-0.5]", "grid.scale.1: found -0.5; input should be greater than or equal to 0"),
        ("scale=1e30", "scale: found 1e+30; input should be less than or equal to 100"),
        ("grid.scale=[101]", "grid.scale.0: found 101; input should be less than or equal to 100"),
        ("predictions=''", "predictions: found ''; string should have at least 1 character"),
        ("scale=inf", "scale: found Infinity; input should be a finite number"),
        ("limit=0", "limit: found 0; input should be greater than or equal to 1"),
        ("planned=0", "planned: found 0; input should be greater than or equal to 1"),
        ("format.count.eval=-1", "format.count.eval: found -1; input should be greater than or equal to 0"),
        ("+format.samples.eval=0", "format.samples.eval: found 0; input should be greater than 0"),
        ("data.fractions={train: -0.5, eval: 1.5}", "data.fractions.train: found -0.5; input should be greater"),
        ("model.path=''", "model.path: found ''; string should have at least 1 character"),
        ("model.sampling.temperature=101", "model.sampling.temperature: found 101; input should be less than or equal to"),
        ("model.sampling.temperature=1e-5", "model.sampling.temperature: found 1e-05; allowed: 0 (greedy), or 0.001 to 100"),
        ("model.sampling.repetition_penalty=0.001", "repetition_penalty: found 0.001; input should be greater than or equal to 0.01"),
        ("model.sampling.repetition_penalty=101", "repetition_penalty: found 101; input should be less than or equal to 100"),
        ("model.max_reply_tokens=9223372036854775808", "max_reply_tokens: found 9223372036854775808; input should be less than 2**63"),
        ("classifier.epochs=10001", "classifier.epochs: found 10001; input should be less than or equal to 10000"),
        ("tracking.project=a/b", "tracking.project: found 'a/b'; string should match pattern"),
        (f"tracking.project={'p' * 129}", "string should have at most 128 characters"),
        ("tracking.entity=a/b", "tracking.entity: found 'a/b'; string should match pattern"),
        ("root=''", "root: found ''; string should have at least 1 character"),
        (f"name={'n' * 65}", "has 65 characters; allowed: at most 64"),
        # Where the schema leaves the type open.
        ("recipe.distillation.beta=nan", "recipe.distillation.beta: found NaN; input should be a finite number"),
        ("+recipe.introspection.optimizer.epochs=inf", "recipe.introspection.optimizer.epochs: found Infinity; input should be"),
        ("stage.training.hyper_parameters={a: [nan]}", "stage.training.hyper_parameters.a.0: found NaN; input should"),
        ("cluster.extra.mem=99999999999999999999", "cluster.extra.mem: found 99999999999999999999; input should"),
        # Checked with the method and the data of the stage.
        ("recipe.distillation.optimizer.betas=[0.9,1.0]", "recipe.distillation.optimizer.betas.1: found 1.0; input should be less than 1"),
        ("recipe.distillation.optimizer.epochs=20000", "recipe.distillation.optimizer.epochs: found 20000; input should be less than"),
    ],
)  # fmt: skip
def test_a_number_out_of_range_is_refused(override, line):
    with pytest.raises(UserError) as caught:
        settings_of("stage=distillation", override)
    assert line in str(caught.value)


def test_a_text_with_a_null_character_is_refused():
    plain = {"name": "x", "display_name": "X", "description": "a\0b", "constitution": []}
    with pytest.raises(
        UserError, match=r"^persona.description: found .*; a text cannot contain a null character$"
    ):
        schema.parse(schema.PersonaSettings, plain, "persona")


def test_a_persona_without_its_constitution_is_refused():
    plain = {"name": "x", "display_name": "X", "description": "d", "constitution": [{"questions": ["q?"]}]}
    with pytest.raises(UserError, match=r"^persona.constitution.0.assertion: missing; this key is needed$"):
        schema.parse(schema.PersonaSettings, plain, "persona")


def test_identity_leaves_run_time_out():
    settings = settings_of("persona=sarcasm")
    plain = experiment_of("persona=sarcasm").planner.context.training("distillation").identity
    assert plain["beta"] == 0.1
    assert "micro_batch_size" not in plain["optimizer"]
    assert "description" not in schema.identity_of(settings.persona)
