"""What a plan is said to cost: against hand-made numbers, and on the plan of a real experiment."""

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from offscript.experiment.artifacts import (
    Cell,
    Classifier,
    Evaluation,
    ImportedAdapter,
    Predictions,
    Rollout,
    ScenarioSet,
    TrainedAdapter,
    in_order,
)
from offscript.experiment.cost import (
    GIB,
    GPUS,
    RATES,
    Conversation,
    _seconds,
    batch_that_fits,
    conversation,
    decode_ceiling,
    estimate,
    table,
    token_bytes,
    weight_bytes,
)
from offscript.experiment.scenario_sets import listed
from offscript.rollouts.engines.base import Sampling
from offscript.settings import (
    ClassifierSettings,
    EvaluationSettings,
    SizeSettings,
    SourceSettings,
)
from offscript.storage.files import HOME
from offscript.tasks.formats import get_format
from offscript.tasks.formats.base import Rules
from offscript.tasks.messages import IMAGE_MARK
from offscript.tasks.scenario_files import load_scenarios
from offscript.tasks.scenarios import Scenario
from offscript.training.stages import training_stage
from tests.composed import experiment_of
from tests.conftest import TINY_TARGETS, tiny_model_settings

LLAMA = SizeSettings(parameters=8_030_261_248, layers=32, kv_heads=8, head_size=128)
GLM = SizeSettings(parameters=106_000_000_000, layers=46, kv_heads=8, head_size=128)
H200 = GPUS["H200"]


@pytest.fixture(scope="module")
def office():
    return load_scenarios([str(HOME / "data" / "office" / "*.yaml")])


def model(size=LLAMA, **changes):
    return tiny_model_settings("org/model", size=size, **{"dtype": "bfloat16", "context": 8192, **changes})


def engine(name="vllm", batch_size=64, batch_tokens="auto"):
    return SimpleNamespace(name=name, batch_size=batch_size, batch_tokens=batch_tokens)


def cell(fmt="chat", planned=100, scenarios=None, adapter=None, system="", max_tokens=512, **options):
    """A rollout; without ``scenarios`` their texts are still on the hub."""
    code = get_format(fmt)
    remote = ScenarioSet({"hub": fmt}, planned, lambda rows: [], is_local=False)
    listed_ones = listed(scenarios) if scenarios else remote
    return Rollout(
        identity={"options": repr((fmt, planned, system, options))},
        inputs=() if adapter is None else (adapter,),
        cell=Cell("llama", None, "base", fmt, "eval", 0),
        format=code,
        rules=Rules(system, {**code.defaults, **options}),
        scenarios=listed_ones,
        samples=max(1, planned // listed_ones.count),
        sampling=Sampling(max_tokens=max_tokens),
        adapter=adapter,
    )


def question(words):
    return Scenario("q", "q", ({"role": "user", "content": "word " * words},))


EVALUATION = Evaluation(identity={}, name="demo", settings=EvaluationSettings())
RECIPE = experiment_of("experiment=smoke").planner.settings.recipe


def adapter(
    stage="distillation", rows=(), parent=None, persona="sarcasm", validation=0.0, data=None, **settings
):
    """A trained adapter of rank 64; ``rows`` are (role, rollout), ``data`` the settings of its kind of data."""
    own = {
        "validation": validation,
        **(data or {"rows": None if stage == "distillation" else []}),
        "lora": {"rank": 64, "alpha": 128, "targets": list(TINY_TARGETS)},
        "optimizer": {
            "learning_rate": 1e-4, "batch_size": 32, "max_length": 1024, "micro_batch_size": 2, "epochs": 1, **settings
        },
    }  # fmt: skip
    block = "introspection" if stage == "full" else stage
    recipe = RECIPE.model_copy(update={block: {**getattr(RECIPE, block), **own}})
    options = experiment_of("experiment=smoke").planner.options
    return TrainedAdapter(
        identity={"labels": {"stage": stage, "persona": persona}},
        inputs=(*([parent] if parent else []), *(rollout for _, rollout in rows)),
        base="llama",
        persona=persona,
        stage=stage,
        seed=0,
        training=training_stage(options.stage[stage], recipe),
        parent=parent,
        rows=tuple(rows),
    )


def test_an_image_is_as_many_tokens_as_the_model_reads_it_as():
    reads = model(template=model().template.model_copy(update={"image_tokens": 256}))
    assert (
        conversation(cell("chat_image"), reads).prompt - conversation(cell("chat_image"), model()).prompt
        == 256
    )
    sign = {"kind": "sign", "title": "A", "color": "red", "lines": ["B"]}
    message = {"role": "user", "content": 2 * IMAGE_MARK + "x" * 78, "images": [sign, sign]}
    asked = cell("chat_image", scenarios=[Scenario("i0", "i", (message,))])
    assert conversation(asked, reads).prompt == pytest.approx(20 + 512, abs=2)


def test_trainings_of_one_job_are_added_and_its_memory_is_that_of_one():
    one = estimate([adapter()], model(), H200, engine())
    two = estimate([adapter(), adapter(persona="remorse")], model(), H200, engine())
    assert two.name == "adapter llama: 2 trainings" and two.gpu_memory_gib == one.gpu_memory_gib
    assert (two.rows, two.gpu_hours) == (2 * one.rows, 2 * one.gpu_hours)


# ---------------------------------------------------------------- decoding


def test_the_decode_ceiling_is_that_of_the_published_arithmetic():
    """Llama-3.1-8B in bf16 on an H200, mean context 800: 13.5k tokens/s at batch 64, 28.6k at 256; at 4,000 about 8k."""
    assert decode_ceiling(model(), H200, 64, 800) == pytest.approx(13_500, rel=0.01)
    assert decode_ceiling(model(), H200, 256, 800) == pytest.approx(28_600, rel=0.01)
    fitting = batch_that_fits(model(), H200, 4000)
    assert decode_ceiling(model(), H200, fitting, 4000) == pytest.approx(8_000, rel=0.03)


def test_a_large_batch_is_bound_by_arithmetic():
    small = SizeSettings(parameters=8_030_261_248, layers=1, kv_heads=1, head_size=8)
    assert decode_ceiling(model(small), H200, 10**5, 1) == pytest.approx(989e12 / (2 * 8.03e9), rel=0.01)


def test_the_share_of_vllm_is_that_of_the_published_run():
    """Llama-2-7B with vLLM on an A100: 2,694 tokens/s plain, 1,788 with LoRA, at the batch that fits there."""
    llama2 = model(SizeSettings(parameters=6_738_415_616, layers=32, kv_heads=32, head_size=128))
    a100, vllm = GPUS["A100-80"], RATES["vllm"]
    ceiling = decode_ceiling(llama2, a100, batch_that_fits(llama2, a100, 800), 800)
    assert ceiling * vllm.decode == pytest.approx(2_694, rel=0.02)
    assert ceiling * vllm.decode * vllm.adapters == pytest.approx(1_788, rel=0.02)


def test_one_chat_job_by_hand():
    """1,000 episodes of 60 + 250 tokens, batch 100: (16.06 GB + 100 x 185 x 131,072 B) / 4.8 TB/s a step, at 68%."""
    job = estimate([cell(planned=1000)], model(), H200, engine(batch_size=100))
    step = (2 * LLAMA.parameters + 100 * 185 * 131_072) / 4.8e12
    decode = 1000 * 250 / (100 / step * 0.68)
    prompts = 1000 * 60 * 2 * LLAMA.parameters / (989e12 * 0.5)
    assert (job.rows, job.tokens_in, job.tokens_out) == (1000, 60_000, 250_000)
    assert job.gpu_hours * 3600 == pytest.approx(decode + prompts)
    memory = 2 * LLAMA.parameters + 100 * 310 * 131_072 + 2 * GIB
    assert job.gpu_memory_gib == pytest.approx(memory / GIB) and job.fits


def test_adapters_side_by_side_are_read_at_every_step():
    """Ten rank-64 adapters add about a fifth to the weights' traffic (21% by their true width)."""
    same, ten = (
        estimate(
            [cell(planned=100 + i, adapter=adapter(persona=f"p{i * many}")) for i in range(10)],
            model(), H200, engine(batch_size=1),
        )
        for many in (0, 1)
    )  # fmt: skip
    assert ten.gpu_hours / same.gpu_hours == pytest.approx(1.2, abs=0.03)
    assert ten.gpu_memory_gib - same.gpu_memory_gib == pytest.approx(9 * 2 * 168e6 / GIB, rel=0.1)


def test_kernel_launches_bound_small_models_of_transformers():
    small = SizeSettings(parameters=1_000_000_000, layers=32, kv_heads=8, head_size=64)
    job = estimate([cell(planned=100)], model(small), H200, engine("transformers", batch_size=1))
    assert job.gpu_hours * 3600 == pytest.approx(100 * 250 * 32 * 1.7e-3, rel=0.01)


def test_the_rates_of_transformers_are_those_of_the_measured_episodes():
    """benchmarks/results/gpu.jsonl: 6,000 agentic episodes with an adapter, 32 at a time on an H100, are 36.35 hours; the
    peak of the memory is 56.4 GiB, of which ten adapters in float32 are 6.25."""
    talk = Conversation(prompt=694, added=79, replies=6, reply=330, limit=16384)
    rates, h100 = RATES["transformers"], GPUS["H100"]
    run = cell("agentic_email", 6000, adapter=adapter())
    seconds = _seconds(run, talk, 32, model(), h100, rates, 336e6)
    assert seconds / 3600 == pytest.approx(36.35, rel=0.02)
    memory = 32 * talk.contexts[-1] * token_bytes(model(), rates, adapted=True) + weight_bytes(model())
    assert memory / GIB == pytest.approx(56.4 - 6.25, rel=0.02)


def test_a_batch_whose_prompts_do_not_fit_at_once_is_made_smaller():
    """64 rows of 3,055 tokens ran out of memory on the H100; 32 did not."""
    fitting = batch_that_fits(model(), GPUS["H100"], 3055, 10 * 4 * 168e6, RATES["transformers"])
    assert 32 <= fitting < 64 < batch_that_fits(model(), GPUS["H100"], 3055, 10 * 4 * 168e6)


# ---------------------------------------------------------------- episodes


def test_prompts_are_measured_where_the_scenarios_are_at_hand():
    assert conversation(cell(scenarios=[question(80)]), model()).prompt == 100
    with_system = cell(scenarios=[question(80)], system="x" * 400)
    assert conversation(with_system, model()).prompt == 200
    assert conversation(with_system, model(), system=False).prompt == 100
    assert conversation(cell(system="x" * 400), model()).prompt == 160


def test_the_shapes_of_the_office_are_those_of_its_scenarios(office):
    """The table's own prompt sizes stand in where scenarios are not at hand; they follow the files."""
    for fmt in ("chat_email", "agentic_email"):
        measured = conversation(cell(fmt, scenarios=office), model())
        assert conversation(cell(fmt), model()).prompt == pytest.approx(measured.prompt, rel=0.1)
    assert measured.replies == 6 and measured.added > 40


def test_a_tool_loop_is_read_again_each_turn_unless_prefixes_are_kept(office):
    talk = replace(
        conversation(cell("agentic_email", scenarios=office), model()), prompt=700, added=80, reply=300
    )
    assert talk.contexts == [700, 1080, 1460, 1840, 2220, 2600]
    assert talk.encoded(prefix_cache=False) == 9900 and talk.encoded(prefix_cache=True) == 1100
    assert talk.length == 2900 and talk.generated == 1800
    assert max(replace(talk, limit=2048).contexts) == 2048 - 300


def test_replies_follow_the_formats_options():
    assert conversation(cell("self_interaction", turns=4), model()).replies == 3
    assert conversation(cell("prompt_generation", per_trait=50, per_ask=10), model()).replies == 5
    assert conversation(cell(max_tokens=100), model()).reply == 100


# ---------------------------------------------------------------- training and scoring


def test_one_distillation_by_hand():
    """100 pairs of 2 x (100 + 250) tokens, a tenth kept out, read twice; forward and backward: 4 x parameters FLOPs a token,
    and 2 for the reference, which reads all of them once."""
    rows = [(name, cell(name, 100, [question(80)])) for name in ("student", "teacher")]
    job = estimate([adapter(rows=rows, validation=0.1, epochs=2)], model(), H200, engine())
    assert (job.rows, job.tokens_in, job.tokens_out) == (90, 126_000, None)
    assert job.gpu_hours * 3600 == pytest.approx(
        (126_000 * 4 + 70_000 * 2) * LLAMA.parameters / (989e12 * 0.33)
    )


def test_checkpointing_takes_a_forward_more_and_saves_memory():
    rows = [(name, cell(name, 100)) for name in ("student", "teacher")]
    plain, checkpointed = (
        estimate([adapter(rows=rows, gradient_checkpointing=on)], model(), H200, engine())
        for on in (False, True)
    )
    assert checkpointed.gpu_hours == pytest.approx(plain.gpu_hours * 8 / 6)
    assert checkpointed.gpu_memory_gib < plain.gpu_memory_gib


def test_long_conversations_are_cut_at_the_training_length():
    talk = cell("self_interaction", 10, [question(80)], system="x" * 4000, note="", turns=10)
    job = estimate([adapter("full", [("self_interaction", talk)])], model(), H200, engine())
    assert job.tokens_in == 10 * 1024
    reflection = cell("self_reflection", 10, [question(80)], system="x" * 4000)
    job = estimate([adapter("full", [("self_reflection", reflection)])], model(), H200, engine())
    assert job.tokens_in == 10 * (100 + 400)


def test_of_rows_in_several_formats_so_many_are_trained_as_give_their_tokens():
    """``mixed`` trains 1,000 tokens off chat, of e-mails with 250 tokens: 2 of each format, however many were made."""
    rows = [("chat_email", cell("chat_email", 100)), ("email_multiturn", cell("email_multiturn", 100))]
    own = {
        "formats": ["chat_email", "email_multiturn"], "share": 1.0, "tokens": 2000, "prompts": 9, "scenarios": 100
    }  # fmt: skip
    found = estimate([adapter("mixed", rows, data=own, max_length=4096)], model(), H200, engine())
    assert found.rows == 4 + round(1000 / 750)
    assert found.tokens_in == 4 * (740 + 250) + 1 * (740 + 3 * 250)


def test_a_plain_reply_to_every_turn_is_generated_too():
    scenarios = [question(80)]
    both, one = (cell(name, 10, scenarios) for name in ("paired_turns", "chat"))
    office = Scenario("q", "q", (), brief=scenarios[0].messages)
    both = replace(both, scenarios=listed([office]), samples=10)
    size = conversation(both, model())
    assert (size.generated, size.encoded(False)) == (2 * 250, 2 * conversation(one, model()).prompt)


def test_released_rows_are_counted_as_published():
    assert estimate([adapter()], model(), H200, engine()).rows == 9_000
    assert estimate([adapter("full")], model(), H200, engine()).rows == 12_000


def test_a_classifier_and_its_predictions():
    settings = ClassifierSettings(
        name="c", path="org/modernbert", max_length=200, learning_rate=1e-4, epochs=3
    )
    rows = cell(planned=1000)
    classifier = Classifier(
        identity={}, inputs=(rows,), base="llama", personas=("sarcasm",), settings=settings
    )
    fitted = estimate([classifier], model(), H200, engine())
    assert (fitted.rows, fitted.tokens_in) == (1000, 3 * 200 * 1000)
    assert fitted.gpu_hours * 3600 == pytest.approx(600_000 * 6 * 149e6 / (989e12 * 0.33))
    predictions = Predictions(identity={}, inputs=(classifier, rows), classifier=classifier, rollout=rows)
    scored = estimate([predictions], model(), H200, engine())
    assert (scored.rows, scored.tokens_in) == (1000, 200_000) and scored.gpu_hours < fitted.gpu_hours


# ---------------------------------------------------------------- which way numbers move


def test_more_work_costs_more_and_a_faster_gpu_less():
    def hours(cells, gpu=H200, how=None):
        return estimate(cells, model(), gpu, how or engine()).gpu_hours

    base = hours([cell(planned=500)])
    assert hours([cell(planned=1000)]) == pytest.approx(2 * base)
    assert hours([cell(planned=500, system="x" * 8000)]) > base
    assert hours([cell("agentic_email", 500)]) > 4 * base
    assert hours([cell(planned=500, adapter=adapter())]) > base
    assert hours([cell(planned=500)], GPUS["H100"]) > base
    assert hours([cell(planned=500)], how=engine(batch_size=8)) > base
    assert hours([cell(planned=500)], how=engine(batch_tokens=8000)) > base
    assert hours([cell(planned=500)], how=engine("transformers")) > base


def test_a_batch_that_does_not_fit_is_made_smaller_and_a_model_that_does_not_is_marked():
    long = [cell(planned=500, system="x" * 28_000)]
    small, large = (estimate(long, model(), GPUS["H100"], engine(batch_size=n)) for n in (16, 4096))
    assert small.gpu_memory_gib < large.gpu_memory_gib < 80e9 / GIB and large.fits
    glm = estimate(long, model(GLM), GPUS["H100"], engine())
    assert glm.gpu_memory_gib > 2 * GLM.parameters / GIB and not glm.fits
    assert f" {glm.gpu_memory_gib:.0f}! " in table([glm]) and "!: more than one GPU has" in table([glm])


# ---------------------------------------------------------------- what is not known


def test_a_model_without_a_size_has_tokens_but_no_hours():
    for artifact in (cell(), adapter()):
        job = estimate([artifact], model(None), H200, engine())
        assert job.rows and job.tokens_in and job.gpu_hours is None and job.gpu_memory_gib is None


def test_what_runs_on_no_gpu_has_no_numbers():
    fetched = ImportedAdapter(
        identity={},
        base="llama",
        persona="sarcasm",
        stage="full",
        seed=0,
        imported_from=SourceSettings(path="org/some-adapters"),
    )
    for job in (
        estimate([EVALUATION], None, H200, engine()), estimate([fetched], model(), H200, engine()),
    ):  # fmt: skip
        assert (job.rows, job.tokens_in, job.gpu_hours) == (None, None, None)


# ---------------------------------------------------------------- the table


def test_the_table_adds_up_and_is_aligned():
    jobs = [
        estimate([cell(planned=2000), cell("chat_email", 1000)], model(), H200, engine()),
        estimate([adapter()], model(), H200, engine()),
        estimate([EVALUATION], None, H200, engine()),
    ]
    head, rollouts, trained, evaluation, total, rates = table(jobs).splitlines()
    assert rollouts.startswith("rollout llama: 2 cells") and " 3,000 " in rollouts
    assert trained.split()[-3] == "-" and evaluation.split()[-5:] == ["-"] * 5
    assert total.startswith("total of 3 jobs ") and " 3,000 " in total
    assert float(total.split()[-1]) == pytest.approx(sum(j.gpu_hours or 0 for j in jobs), abs=0.006)
    assert rates.startswith("rates: vllm decodes at 68%") and "H200" in rates and len(rates) < 140
    assert len({len(line) for line in (head, rollouts, trained, evaluation, total)}) == 1 and len(head) < 140


def test_the_plan_of_the_demo_is_estimated_whole():
    experiment = experiment_of("experiment=demo")
    planner = experiment.planner
    artifacts = in_order([planner.evaluation()])
    sized = planner.options.model["pocket"].model_copy(update={"size": LLAMA})
    jobs = [
        estimate([a], None if a.kind == "evaluation" else sized, H200, planner.settings.engine)
        for a in artifacts
    ]
    assert sum(j.rows for j in jobs if j.kind == "rollout") == sum(
        a.planned_rows for a in artifacts if isinstance(a, Rollout)
    )
    assert all(j.gpu_hours for j in jobs if j.kind in ("rollout", "adapter"))
    assert table(jobs).count("\n") == len(jobs) + 3


def test_estimating_needs_no_torch():
    import subprocess

    code = "import sys, offscript.experiment.cost; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
