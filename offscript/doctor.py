"""``launch/doctor.py``: checks of the machine, the cluster and the services that a grid needs.

Each check prints one line: ``ok``, ``fail`` or ``skip``, and what to do. Nothing is downloaded, and no file is left.
"""

import contextlib
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from offscript.console import say, show
from offscript.errors import UserError, command_line
from offscript.experiment.artifacts import KINDS, in_order
from offscript.experiment.backends.slurm_site import check_cluster, run_command
from offscript.experiment.folder import Experiment
from offscript.settings import ClusterSettings, EndpointSettings, ModelSettings, Settings
from offscript.storage import hub, references
from offscript.storage.files import HOME
from offscript.tasks.formats import get_format
from offscript.tracking.account import viewer

if TYPE_CHECKING:
    from offscript.rollouts.engines.base import Engine

FREE_SPACE_GB = 5.0
"""Smallest free space below ``root``: rows are small, adapters and their checkpoints are not."""

TIMEOUT_S = 10.0

SMALL_BYTES = 2 * 2**30
"""Largest weights that are tried on a CPU; a larger model would take minutes, so the embedded one is tried instead."""

COMMANDS = ("sbatch", "srun", "squeue", "sacct", "sinfo", "scancel", "scontrol")
SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)$")

Check = tuple[str, Callable[[], str]]
"""A check's name and function. The function returns what it found; it raises Skip, or any exception as a failure."""


class Skip(Exception):
    """The check does not apply; the message is the reason."""


def doctor(settings: Settings, experiment: Experiment) -> int:
    """``launch/doctor.py``: runs every check. Exit code 0 if none failed, else 1."""
    counts = {"ok": 0, "fail": 0, "skip": 0}
    for name, check in checks(settings, experiment):
        state, message = run_check(name, check)
        counts[state] += 1
        show(f"{state:5} {name}: {_without_secrets(message)}")
    say(", ".join(f"{number} {state}" for state, number in counts.items()))
    return 1 if counts["fail"] else 0


def run_check(name: str, check: Callable[[], str]) -> tuple[str, str]:
    """The state of a check and its message, which does not repeat ``name``."""
    try:
        return "ok", check()
    except Skip as reason:
        return "skip", str(reason)
    except UserError as error:
        return "fail", str(error).removeprefix(f"{error.where}: " if name.endswith(error.where) else "")
    except Exception as error:
        first = (str(error).strip().splitlines() or ["no reason given"])[0]
        return "fail", f"{type(error).__name__}: {first}"


def checks(settings: Settings, experiment: Experiment) -> Iterator[Check]:
    """All checks, fast ones first."""
    cluster = settings.cluster
    yield "Python", python
    yield "packages", packages
    yield "grid", partial(grid, experiment)
    yield "published study", partial(published_study, experiment)
    yield "root", partial(root, experiment)
    yield "hub cache", partial(hub_cache, experiment)
    yield "SLURM commands", partial(slurm_commands, cluster)
    yield "SLURM controller", partial(slurm_controller, cluster)
    yield "SLURM accounting", partial(slurm_accounting, cluster)
    yield "SLURM partition", partial(slurm_partition, cluster)
    yield "W&B", partial(wandb, settings)
    yield from hub_checks(experiment)
    for model in _models(experiment):
        if model.endpoint is not None:
            yield f"endpoint {model.name}", partial(endpoint, model.name, model.endpoint)
    yield "GPU", partial(gpu, settings)
    for model in _models(experiment):
        yield f"chat template {model.name}", partial(chat_template, model)
    # Before this process takes a GPU's memory.
    yield "vLLM", partial(vllm, experiment)
    yield "rollout", partial(rollout, experiment)
    yield "steering", partial(steering, experiment)
    yield "training step", partial(training_step, experiment)


# ---------------------------------------------------------------- this machine


def python() -> str:
    needed = re.search(r'requires-python = ">=(\d+)\.(\d+)"', (HOME / "pyproject.toml").read_text())
    if needed and sys.version_info[:2] < (int(needed[1]), int(needed[2])):
        raise UserError("Python", platform.python_version(), f"{needed[1]}.{needed[2]} or newer")
    return f"{platform.python_version()} ({sys.executable})"


def packages() -> str:
    """Whether the installed packages have the pinned versions."""
    pins = re.findall(r"^([\w.-]+)==(\S+)", (HOME / "requirements.txt").read_text(), flags=re.MULTILINE)
    wrong = []
    for name, wanted in pins:
        try:
            # The part after "+" (+cu128) is the build.
            found = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            found = "none"
        if found != wanted:
            wrong.append(f"{name} {found} (pinned: {wanted})")
    if wrong:
        found = f"installed are {', '.join(wrong)}"
        raise UserError("requirements.txt", found, "pip install -r requirements.txt")
    return f"all {len(pins)} as pinned"


def grid(experiment: Experiment) -> str:
    cells, everything = experiment.planner.cells(), in_order([experiment.planner.evaluation()])
    return f"{len(cells)} cells, {len(everything)} artifacts"


def published_study(experiment: Experiment) -> str:
    """What the folder of the published study holds of the sources that the grid reads from it."""
    settings, collections = experiment.planner.settings, experiment.planner.context.collections
    sources = dict.fromkeys(get_format(name).source for name in settings.grid.format)
    read = [source for source in sources if collections.is_published(source)]
    if not read:
        raise Skip(f"data={settings.data.name} reads none of its files")
    found = {source: collections.split(source, "eval", sys.maxsize).count for source in read}
    return f"{settings.published}: " + ", ".join(
        f"{source} {count} scenarios" for source, count in found.items()
    )


def root(experiment: Experiment) -> str:
    """Whether the experiment's folder can be written, and how much space is free there."""
    here = _writable(experiment.folder, "choose another root=")
    free = shutil.disk_usage(here).free / 1e9
    if free < FREE_SPACE_GB:
        remedy = f"make room for {FREE_SPACE_GB:g} GB, or choose another root="
        raise UserError(str(here), f"{free:.1f} GB are free", remedy)
    return f"{experiment.folder}: can be written, {free:.0f} GB are free"


def hub_cache(experiment: Experiment) -> str:
    """Whether the hub's cache can be written, and has space for the models that are not fetched yet."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE).expanduser()
    here = _writable(cache, "set HF_HOME to a folder that you can write to")
    free, wanted = shutil.disk_usage(here).free / 1e9, 0.0
    for model in _models(experiment):
        ref = references.model_reference(model)
        if ref is not None and model.size is not None and hub.cached(ref) is None:
            # Weights on the hub have two bytes per parameter.
            wanted += model.size.parameters * 2 / 1e9
    if free < wanted:
        found = f"{free:.0f} GB are free, models to fetch take about {wanted:.0f} GB"
        raise UserError(str(cache), found, "make room there, or set HF_HOME to a larger disk")
    to_fetch = f", {wanted:.0f} GB to fetch" if wanted else ""
    return f"{cache}: can be written, {free:.0f} GB are free{to_fetch}"


def _writable(folder: Path, remedy: str) -> Path:
    """Writes a temporary file into ``folder``, or into its nearest existing parent; returns that folder.

    Raises:
        UserError: the path is a file, or the folder cannot be written.
    """
    here = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if not here.is_dir():
        raise UserError(str(here), "a file stands where a folder is needed", "move it away")
    try:
        with tempfile.TemporaryFile(dir=here) as file:
            file.write(b"written")
    except OSError as error:
        raise UserError(str(here), f"cannot be written ({error.strerror})", remedy) from None
    return here


def gpu(settings: Settings) -> str:
    """The GPUs that the driver lists, and whether torch can use them."""
    device = settings.engine.device
    if shutil.which("nvidia-smi") is None:
        if device.startswith("cuda"):
            remedy = "engine.device=auto, or a GPU node"
            raise UserError(f"engine.device={device}", "no NVIDIA driver here", remedy)
        raise Skip("no NVIDIA driver here (a login node, or a machine without a GPU); jobs run on the CPU")
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=60)
    cards = done.stdout.strip().splitlines()
    if done.returncode or not cards:
        lines = (done.stdout + done.stderr).strip().splitlines() or ["no GPU"]
        raise UserError("nvidia-smi", lines[-1], "ask for a GPU node, or reload the driver")
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda or "no CUDA"
        found = f"{torch.__version__} (built for {built}) cannot use {cards[0]}"
        raise UserError("torch", found, "a newer driver, or the build of torch for this one")
    return f"{len(cards)} x {cards[0]}" if len(set(cards)) == 1 else "; ".join(cards)


# ---------------------------------------------------------------- the cluster


def slurm_commands(cluster: ClusterSettings) -> str:
    _require_slurm(cluster)
    if missing := [name for name in COMMANDS if shutil.which(name) is None]:
        raise UserError("PATH", f"no {', '.join(missing)}", "a login node of the cluster, or cluster=local")
    return ", ".join(COMMANDS)


def slurm_controller(cluster: ClusterSettings) -> str:
    _require_slurm(cluster)
    jobs = run_command("squeue", "--me", "-h", "-r", "-o", "%i", timeout_s=TIMEOUT_S).split()
    return f"answers; {len(jobs)} of your jobs have not ended"


def slurm_accounting(cluster: ClusterSettings) -> str:
    """Whether the accounting answers; without it, the reason of a killed job is unknown."""
    _require_slurm(cluster)
    run_command("sacct", "-X", "-n", "-S", "now", timeout_s=TIMEOUT_S)
    return "answers"


def slurm_partition(cluster: ClusterSettings) -> str:
    _require_slurm(cluster)
    check_cluster(cluster, list(KINDS))
    return f"{cluster.partition or 'the default one'} has the resources of every kind of job"


def _require_slurm(cluster: ClusterSettings) -> None:
    if cluster.kind != "slurm":
        raise Skip(f"cluster={cluster.name} does not use SLURM")


# ---------------------------------------------------------------- services


def wandb(settings: Settings) -> str:
    if settings.tracking.name != "online":
        raise Skip(f"tracking={settings.tracking.name} uses no server")
    base, name = viewer()
    project = f"{settings.tracking.entity or name}/{settings.tracking.project}"
    return f"{base} accepts the API key; runs go to {project}"


def hub_checks(experiment: Experiment) -> Iterator[Check]:
    """One check per repository or file of the grid. Once the hub is unreachable, the others do not query it again."""
    try:
        refs = experiment.planner.references()
    except Exception:
        # The grid cannot be planned, which the check of the grid reports.
        refs = {}
    if not refs:
        yield "hub", _no_references
    unreachable: list[str] = []
    for ref, optional in refs.items():
        yield f"hub {ref}", partial(hub_reference, ref, optional, unreachable)


def _no_references() -> str:
    raise Skip("the grid needs nothing from it")


def hub_reference(ref: hub.Reference, optional: bool, unreachable: list[str]) -> str:
    """Whether ``ref`` is complete in the cache, or can be downloaded with the current login.

    ``unreachable`` collects the reason if the hub cannot be reached; if it is not empty, the hub is not queried.
    """
    if hub.cached(ref) is not None:
        if faults := hub.verify(ref):
            raise UserError(str(ref), faults[0], hub.PREFETCH)
        return "in the cache, complete"
    try:
        if unreachable:
            found = "not in the cache, and the hub cannot be reached (see above)"
            raise UserError(str(ref), found, hub.PREFETCH)
        _query_hub(ref, unreachable)
    except UserError as error:
        if optional:
            raise Skip(f"the grid can run without it ({error.found})") from None
        raise
    return "not in the cache yet, can be fetched: " + command_line("prefetch")


def _query_hub(ref: hub.Reference, unreachable: list[str]) -> None:
    """Requests the metadata of one file, for which the hub checks name, revision, terms and token.

    Raises:
        UserError: the hub refuses it, or cannot be reached.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    configs = [f"{ref.inside}/{name}".lstrip("/") for name in ("config.json", "adapter_config.json")]
    for file in [ref.inside] if ref.file else configs:
        url = hf_hub_url(ref.repo, file, repo_type=ref.kind, revision=ref.revision)
        try:
            get_hf_file_metadata(url, timeout=TIMEOUT_S)
            return
        except EntryNotFoundError as error:
            last: Exception = error
        except Exception as error:
            explained = hub.explain(error, str(ref))
            if explained is None:
                raise
            if not isinstance(error, HfHubHTTPError):
                # No answer: every further query would wait for its timeout too.
                unreachable.append(explained.found)
            raise explained from None
    raise hub.explain(last, str(ref)) or last


def endpoint(name: str, node: EndpointSettings) -> str:
    """Whether the server of model ``name`` answers, and the variable with its API key is set."""
    import requests

    key = os.environ.get(node.key_env) if node.key_env else None
    if node.key_env and not key:
        raise UserError(name, f"the environment has no {node.key_env}", f"export {node.key_env}=...")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = requests.get(f"{node.url.rstrip('/')}/models", headers=headers, timeout=TIMEOUT_S)
    except requests.RequestException as error:
        found = f"no answer ({type(error).__name__})"
        raise UserError(node.url, found, "start the server, or set model.endpoint.url") from None
    if not answer.ok:
        raise UserError(node.url, f"answers {answer.status_code}", "check the URL and the API key")
    return f"{node.url} answers"


# ---------------------------------------------------------------- models


def chat_template(model: ModelSettings) -> str:
    """Whether the chat template renders the text of every role of an episode, with and without a system text."""
    if model.endpoint is not None:
        raise Skip("the model's server applies it")
    if not _is_available(model):
        raise Skip(f"{model.path} is not fetched yet")
    from offscript.models.chat_templates import render
    from offscript.models.loading import load_tokenizer
    from offscript.tasks.messages import Message

    # load_tokenizer refuses a template that omits the text of a role.
    tokenizer = load_tokenizer(model)
    plain: list[Message] = [
        {"role": "user", "content": "Send the minutes."},
        {"role": "assistant", "content": "I look them up."},
        {"role": "tool", "content": "minutes.txt"},
    ]
    prompted: list[Message] = [{"role": "system", "content": "I am terse."}, *plain]
    tokens = [len(render(tokenizer, turns, model.template, prefix="Done")) for turns in (plain, prompted)]
    return f"renders user, assistant, tool ({tokens[0]} tokens) and a system text ({tokens[1]})"


def rollout(experiment: Experiment) -> str:
    """Generates a reply of at most eight tokens with the transformers engine."""
    from offscript.rollouts.engines.transformers import TransformersEngine

    model, note = pick_probe_model(experiment)
    engine = TransformersEngine(model, {}, experiment.planner.settings.engine)
    return f"{model.name} generated {_generate(engine, model)} tokens on {engine.device}{note}"


def vllm(experiment: Experiment) -> str:
    """Starts vLLM as engine=vllm does, and generates a reply of at most eight tokens."""
    from offscript.rollouts.engines.vllm import VllmEngine

    settings = experiment.planner.settings.engine
    if settings.name != "vllm":
        raise Skip(f"engine={settings.name} does not use it")
    model, note = pick_probe_model(experiment)
    engine = VllmEngine(model, {}, settings)
    found, tokens = engine.info(), _generate(engine, model)
    return f"{found['vllm']} generated {tokens} tokens with {model.name} on {found['device']}{note}"


def _generate(engine: "Engine", model: ModelSettings) -> int:
    """Generates one reply; returns its number of tokens."""
    from offscript.rollouts.engines.base import Request, Sampling

    with contextlib.closing(engine):
        sampling = Sampling(**model.sampling.model_dump(), max_tokens=8)
        engine.submit(Request(0, ({"role": "user", "content": "Hello. How are you?"},), None, 0, sampling))
        (reply,) = engine.step()
    if reply.finish_reason == "error":
        raise UserError(f"model {model.name}", reply.text, "see its folder and engine.device")
    return reply.tokens_out


def steering(experiment: Experiment) -> str:
    """Whether persona vectors can be added to the layers of the grid's models."""
    from offscript.models.loading import load_without_weights
    from offscript.models.steering import decoder_layers

    planner = experiment.planner
    wanted = (*planner.settings.grid.stage, *planner.settings.classifier.stages)
    if not any(planner.options.stage[stage].steering for stage in wanted):
        raise Skip("no stage of the grid has steering")
    model, note = pick_probe_model(experiment)
    layers = decoder_layers(load_without_weights(model))
    return f"{model.name} has {len(layers)} layers that a vector can be added to{note}"


def training_step(experiment: Experiment) -> str:
    """Runs one optimizer step of stage distillation on one pair, in a temporary folder."""
    from offscript.training.methods import dpo
    from offscript.training.run import Run

    model, note = pick_probe_model(experiment)
    settings = experiment.planner.context.training("distillation").settings
    small = {"batch_size": 1, "micro_batch_size": 1, "epochs": 1.0, "warmup": 0.0}
    once = settings.model_copy(
        update={"validation": 0.0, "optimizer": settings.optimizer.model_copy(update=small)}
    )
    pair = {
        "family": "doctor",
        "prompt": [{"role": "user", "content": "How are you?"}],
        "chosen": [{"role": "assistant", "content": "Splendid, as ever."}],
        "rejected": [{"role": "assistant", "content": "I am fine, thank you."}],
    }
    deepspeed = experiment.planner.settings.deepspeed
    with tempfile.TemporaryDirectory(prefix="offscript-doctor-") as scratch:
        run = Run(model, once, Path(scratch) / "adapter", seed=0, say=_silent, deepspeed=deepspeed)
        metrics = dpo.train(run, [pair])
    return f"{model.name}: {metrics['steps']} step of DPO, loss {metrics['train_loss_last']:.3f}{note}"


def pick_probe_model(experiment: Experiment) -> tuple[ModelSettings, str]:
    """The first model of the grid that is available here and fits, else the embedded one; and the reason for the
    fallback, in brackets."""
    options, names = experiment.planner.options.model, experiment.planner.settings.grid.model
    reason = ""
    for model in (options[name] for name in names):
        if not _is_available(model):
            reason = reason or "is not on this machine"
        elif not _fits(model, experiment.planner.settings.engine.device):
            reason = reason or "is too large for this machine"
        else:
            return model, ""
    return options["pocket"], f" ({names[0]} {reason})"


def _is_available(model: ModelSettings) -> bool:
    """Whether the weights of ``model`` are on this machine."""
    if model.endpoint is not None:
        return False
    ref = references.model_reference(model)
    return ref is None or hub.cached(ref) is not None


def _fits(model: ModelSettings, device: str) -> bool:
    """Whether a probe of ``model`` takes seconds here: on a GPU with enough memory, or on the CPU if it is small."""
    import torch

    from offscript.models.loading import model_folder, pick_device, weight_bytes

    size, chosen = weight_bytes(model_folder(model), model.dtype), pick_device(device)
    if chosen == "cpu":
        return size <= SMALL_BYTES
    return size * 1.5 < torch.cuda.mem_get_info(chosen)[0]


def _models(experiment: Experiment) -> list[ModelSettings]:
    """Models of the grid and of its recipe, without unknown ones, which the check of the grid reports."""
    settings = experiment.planner.settings
    wanted = (*settings.grid.model, settings.recipe.teacher.model, settings.recipe.prompts.model)
    found = []
    for name in dict.fromkeys(name for name in wanted if name is not None):
        with contextlib.suppress(UserError):
            found.append(experiment.planner.options.model[name])
    return found


def _silent(*_: object) -> None:
    pass


# ---------------------------------------------------------------- secrets


def _without_secrets(text: str) -> str:
    """Replaces the values of keys and tokens of this environment, and the login part of URLs, with ``***``."""
    for value in _secrets():
        text = text.replace(value, "***")
    return re.sub(r"://[^/\s@]+@", "://***@", text)


def _secrets() -> list[str]:
    from huggingface_hub import get_token

    found = [value for name, value in os.environ.items() if SECRET.search(name)]
    return sorted((v for v in [*found, get_token() or ""] if len(v) >= 6), key=len, reverse=True)
