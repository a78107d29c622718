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
