"""``launch/doctor.py``: what a grid needs of this machine, of the cluster and of the services, tried before hours are
spent: a line per check, ``ok``, ``fail`` or ``skip``, with what to do. Nothing is downloaded and nothing is left behind.
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
from typing import Any

from offscript.console import say
from offscript.errors import UserError
from offscript.experiment.artifacts import in_order
from offscript.experiment.backends import slurm_site as site
from offscript.experiment.folder import Experiment
from offscript.settings import ClusterSettings, EndpointSettings, ModelSettings, Settings
from offscript.storage import hub, references
from offscript.storage.files import HOME
from offscript.tracking.account import viewer

ROOM_GB = 5.0
"""Free space below ``root`` under which a grid is not begun: rows are small, adapters and their checkpoints are not."""

TIMEOUT_S = 10.0
SMALL_BYTES = 2 * 2**30
"""Weights up to this size are tried on a CPU; a larger model would take minutes there, so the embedded one stands in."""

KINDS = ("rollout", "adapter", "classifier", "predictions", "evaluation")
COMMANDS = ("sbatch", "srun", "squeue", "sacct", "sinfo", "scancel", "scontrol")
SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD)$")

Check = tuple[str, Callable[[], str]]
"""What is checked, and how: the function returns what it found, and raises Skip, a UserError, or anything."""


class Skip(Exception):
    """There is nothing to check here; says why."""


def doctor(settings: Settings, experiment: Experiment) -> int:
    """``launch/doctor.py``. Exit code 0: nothing failed; 1: something did."""
    counts = {"ok": 0, "fail": 0, "skip": 0}
    for name, check in checks(settings, experiment):
        state, note = outcome(name, check)
        counts[state] += 1
        print(f"{state:5} {name}: {_without_secrets(note)}", flush=True)
    say(", ".join(f"{number} {state}" for state, number in counts.items()))
    return 1 if counts["fail"] else 0


def outcome(name: str, check: Callable[[], str]) -> tuple[str, str]:
    """The state of a check and its one line, which does not say again what ``name`` says."""
    try:
        return "ok", check()
    except Skip as reason:
        return "skip", str(reason)
    except UserError as error:
        return "fail", str(error).removeprefix(f"{error.where}: " if name.endswith(error.where) else "")
    except Exception as error:
        return (
            "fail",
            f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no reason given'])[0]}",
        )


def checks(settings: Settings, experiment: Experiment) -> Iterator[Check]:
    """All checks, fast ones first."""
    cluster = settings.cluster
    yield "Python", python
    yield "packages", packages
    yield "grid", partial(grid, experiment)
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
    yield "rollout", partial(rollout, experiment)
    yield "training step", partial(training_step, experiment)


# ---------------------------------------------------------------- this machine


def python() -> str:
    needed = re.search(r'requires-python = ">=(\d+)\.(\d+)"', (HOME / "pyproject.toml").read_text())
    if needed and sys.version_info[:2] < (int(needed[1]), int(needed[2])):
        raise UserError("Python", platform.python_version(), f"{needed[1]}.{needed[2]} or newer")
    return f"{platform.python_version()} ({sys.executable})"


def packages() -> str:
    """The pinned packages, against what is installed."""
    pins = re.findall(r"^([\w.-]+)==(\S+)", (HOME / "requirements.txt").read_text(), flags=re.MULTILINE)
    wrong = []
    for name, wanted in pins:
        try:
            found = importlib.metadata.version(name).partition("+")[0]  # +cu128 names a build, not a version
        except importlib.metadata.PackageNotFoundError:
            found = "none"
        if found != wanted:
            wrong.append(f"{name} {found} (pinned: {wanted})")
    if wrong:
        raise UserError(
            "requirements.txt", "installed are " + ", ".join(wrong), "pip install -r requirements.txt"
        )
    return f"all {len(pins)} as pinned"


def grid(experiment: Experiment) -> str:
    cells, everything = experiment.planner.cells(), in_order([experiment.planner.evaluation()])
    return f"{len(cells)} cells, {len(everything)} artifacts"


def root(experiment: Experiment) -> str:
    """Whether the experiment's folder can be written, and how much room there is."""
    here = _writable(experiment.folder, "choose another root=")
    free = shutil.disk_usage(here).free / 1e9
    if free < ROOM_GB:
        raise UserError(
            str(here), f"{free:.1f} GB are free", f"make room for {ROOM_GB:g} GB, or choose another root="
        )
    return f"{experiment.folder}: can be written, {free:.0f} GB are free"


def hub_cache(experiment: Experiment) -> str:
    """Whether downloads can be written, and whether there is room for the models that are still to be fetched."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE).expanduser()
    here = _writable(cache, "set HF_HOME to a folder of yours")
    free, wanted = shutil.disk_usage(here).free / 1e9, 0.0
    for model in _models(experiment):
        ref = references.model_reference(model)
        if ref is not None and model.size is not None and hub.cached(ref) is None:
            wanted += model.size.parameters * 2 / 1e9  # the hub's weights are 16 bits wide
    if free < wanted:
        raise UserError(
            str(cache), f"{free:.0f} GB are free, models to fetch take about {wanted:.0f} GB",
            "make room there, or set HF_HOME to a larger disk",
        )  # fmt: skip
    return f"{cache}: can be written, {free:.0f} GB are free" + (
        f", {wanted:.0f} GB to fetch" if wanted else ""
    )


def _writable(folder: Path, todo: str) -> Path:
    """The nearest folder to ``folder`` that exists, after a file was written there.

    Raises:
        UserError: a file stands where a folder is needed, or nothing can be written.
    """
    here = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if not here.is_dir():
        raise UserError(str(here), "a file stands where a folder is needed", "move it away")
    try:
        with tempfile.TemporaryFile(dir=here) as file:
            file.write(b"written")
    except OSError as error:
        raise UserError(str(here), f"cannot be written ({error.strerror})", todo) from None
    return here


def gpu(settings: Settings) -> str:
    """What the driver sees, and whether torch can use it."""
    device = settings.engine.device
    if shutil.which("nvidia-smi") is None:
        if device.startswith("cuda"):
            raise UserError(
                f"engine.device={device}", "no NVIDIA driver here", "engine.device=auto, or a GPU node"
            )
        raise Skip("no NVIDIA driver here (a login node, or a machine without a GPU); work runs on the CPU")
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=60)
    cards = done.stdout.strip().splitlines()
    if done.returncode or not cards:
        said = (done.stdout + done.stderr).strip().splitlines() or ["no GPU"]
        raise UserError("nvidia-smi", said[-1], "ask for a GPU node, or reload the driver")
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda or "no CUDA"
        raise UserError(
            "torch", f"{torch.__version__} (built for {built}) cannot use {cards[0]}",
            "a newer driver, or the build of torch that fits this one",
        )  # fmt: skip
    return f"{len(cards)} x {cards[0]}" if len(set(cards)) == 1 else "; ".join(cards)


# ---------------------------------------------------------------- the cluster


def slurm_commands(cluster: ClusterSettings) -> str:
    _needs_slurm(cluster)
    if missing := [name for name in COMMANDS if shutil.which(name) is None]:
        raise UserError("PATH", f"no {', '.join(missing)}", "a login node of the cluster, or cluster=local")
    return ", ".join(COMMANDS)


def slurm_controller(cluster: ClusterSettings) -> str:
    _needs_slurm(cluster)
    jobs = site.ask("squeue", "--me", "-h", "-r", "-o", "%i", patience_s=TIMEOUT_S).split()
    return f"answers; {len(jobs)} jobs of yours have not ended"


def slurm_accounting(cluster: ClusterSettings) -> str:
    """Without accounting nobody learns how a killed job ended."""
    _needs_slurm(cluster)
    site.ask("sacct", "-X", "-n", "-S", "now", patience_s=TIMEOUT_S)
    return "answers"


def slurm_partition(cluster: ClusterSettings) -> str:
    _needs_slurm(cluster)
    site.check(cluster, KINDS)
    return f"{cluster.partition or 'the default one'} has what every kind of job asks for"


def _needs_slurm(cluster: ClusterSettings) -> None:
    if cluster.kind != "slurm":
        raise Skip(f"cluster={cluster.name} uses no SLURM")


# ---------------------------------------------------------------- services


def wandb(settings: Settings) -> str:
    if settings.tracking.name != "online":
        raise Skip(f"tracking={settings.tracking.name} asks no server")
    base, name = viewer()
    return f"{base} knows the key; runs go to {settings.tracking.entity or name}/{settings.tracking.project}"


def hub_checks(experiment: Experiment) -> Iterator[Check]:
    """One for each repository or file of the grid; the first that finds no way to the hub speaks for the others."""
    try:
        refs = experiment.planner.references()
    except Exception:  # the grid cannot be planned: its own line says why
        refs = {}
    if not refs:
        yield "hub", _nothing_of_the_hub
    cut_off: list[str] = []
    for ref, optional in refs.items():
        yield f"hub {ref}", partial(hub_reference, ref, optional, cut_off)


def _nothing_of_the_hub() -> str:
    raise Skip("nothing of the grid is known to lie on it")


def hub_reference(ref: hub.Reference, optional: bool, cut_off: list[str]) -> str:
    """Whether ``ref`` is whole in the cache, or may be fetched by who is logged in. ``cut_off`` holds why the hub cannot
    be asked at all, once that is known."""
    if hub.cached(ref) is not None:
        if faults := hub.verify(ref):
            raise UserError(str(ref), faults[0], hub.PREFETCH)
        return "in the cache, whole"
    try:
        if cut_off:
            raise UserError(
                str(ref), "not in the cache, and the hub cannot be asked (see above)", hub.PREFETCH
            )
        _ask_hub(ref, cut_off)
    except UserError as error:
        if optional:
            raise Skip(f"the grid goes on without it ({error.found})") from None
        raise
    return "may be fetched, not in the cache yet: python launch/prefetch.py"


def _ask_hub(ref: hub.Reference, cut_off: list[str]) -> None:
    """Asks for the head of one file, for which the hub checks name, revision, terms and token.

    Raises:
        UserError: the hub does not give it, or cannot be asked.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    files = (
        [ref.inside]
        if ref.file
        else [f"{ref.inside}/{n}".lstrip("/") for n in ("config.json", "adapter_config.json")]
    )
    for file in files:
        url = hf_hub_url(ref.repo, file, repo_type=ref.kind, revision=ref.revision)
        try:
            get_hf_file_metadata(url, timeout=TIMEOUT_S)
            return
        except EntryNotFoundError as error:
            last: Exception = error
        except Exception as error:
            told = hub.explain(error, str(ref))
            if told is None:
                raise
            if not isinstance(error, HfHubHTTPError):  # no answer: the next one would be waited for as long
                cut_off.append(told.found)
            raise told from None
    raise hub.explain(last, str(ref)) or last


def endpoint(name: str, node: EndpointSettings) -> str:
    """Whether the server that speaks for model ``name`` answers, and its key is there."""
    import requests

    key = os.environ.get(node.key_env) if node.key_env else None
    if node.key_env and not key:
        raise UserError(name, f"the environment has no {node.key_env}", f"export {node.key_env}=...")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = requests.get(f"{node.url.rstrip('/')}/models", headers=headers, timeout=TIMEOUT_S)
    except requests.RequestException as error:
        raise UserError(
            node.url, f"no answer ({type(error).__name__})", "start the server, or set model.endpoint.url"
        ) from None
    if not answer.ok:
        raise UserError(
            node.url, f"answers {answer.status_code}", "check the address, and the key that it wants"
        )
    return f"{node.url} answers"


# ---------------------------------------------------------------- models


def chat_template(model: ModelSettings) -> str:
    """Whether the chat template says all that every role of an episode says, with a system text and without."""
    if model.endpoint is not None:
        raise Skip("its server applies it")
    if not _at_hand(model):
        raise Skip(f"{model.path} is not fetched yet")
    from offscript.models.chat_templates import render
    from offscript.models.loading import load_tokenizer

    tokenizer = load_tokenizer(model)  # it refuses a template that leaves out what a role says
    plain = [
        {"role": "user", "content": "Send the minutes."},
        {"role": "assistant", "content": "I look them up."},
        {"role": "tool", "content": "minutes.txt"},
    ]
    prompted = [{"role": "system", "content": "I am terse."}, *plain]
    tokens = [len(render(tokenizer, said, model.template, prefix="Done")) for said in (plain, prompted)]
    return f"takes user, assistant, tool ({tokens[0]} tokens) and a system text ({tokens[1]})"


def rollout(experiment: Experiment) -> str:
    """One reply of eight tokens at most, drawn by the engine that the grid uses."""
    from offscript.rollouts.engines.base import Request, Sampling
    from offscript.rollouts.engines.transformers import TransformersEngine

    model, why = _practised(experiment)
    engine = TransformersEngine(model, {}, experiment.planner.settings.engine)
    sampling = Sampling(**model.sampling.model_dump(), max_tokens=8)
    engine.submit(Request(0, ({"role": "user", "content": "Hello. How are you?"},), None, 0, sampling))
    (reply,) = engine.step()
    engine.close()
    if reply.finish_reason == "error":
        raise UserError(f"model {model.name}", reply.text, "see its folder and engine.device")
    return f"{model.name} said {reply.tokens_out} tokens on {engine.device}{why}"


def training_step(experiment: Experiment) -> str:
    """One optimizer step of the first DPO stage on one pair, in a folder that is removed."""
    from offscript.training.methods import dpo
    from offscript.training.run import Run

    model, note = _practised(experiment)
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


def _practised(experiment: Experiment) -> tuple[ModelSettings, str]:
    """The first model of the grid that is at hand and can be tried here, else the embedded one; and why that one."""
    options, names = experiment.planner.options.model, experiment.planner.settings.grid.model
    why = ""
    for model in (options[name] for name in names):
        if _at_hand(model) and _fits(model, experiment.planner.settings.engine.device):
            return model, ""
        why = why or ("is not at hand" if not _at_hand(model) else "is too large for this machine")
    return options["pocket"], f" ({names[0]} {why})"


def _at_hand(model: ModelSettings) -> bool:
    """Whether the weights of ``model`` are on this machine."""
    if model.endpoint is not None:
        return False
    ref = references.model_reference(model)
    return ref is None or hub.cached(ref) is not None


def _fits(model: ModelSettings, device: str) -> bool:
    """Whether trying ``model`` takes seconds here: on a GPU that it fits on, or on the CPU if it is small."""
    import torch

    from offscript.models.loading import model_folder, pick_device, weight_bytes

    size, chosen = weight_bytes(model_folder(model), model.dtype), pick_device(device)
    if chosen == "cpu":
        return size <= SMALL_BYTES
    return size * 1.5 < torch.cuda.mem_get_info(chosen)[0]


def _models(experiment: Experiment) -> list[ModelSettings]:
    """Models of the grid, and those that speak for its recipe. One that is not configured is the grid check's to tell."""
    settings = experiment.planner.settings
    wanted = (*settings.grid.model, settings.recipe.teacher.model, settings.recipe.prompts.model)
    found = []
    for name in dict.fromkeys(name for name in wanted if name is not None):
        with contextlib.suppress(UserError):
            found.append(experiment.planner.options.model[name])
    return found


def _silent(*_: Any) -> None:
    pass


# ---------------------------------------------------------------- what is never printed


def _without_secrets(text: str) -> str:
    """``text`` without the values of keys and tokens of this environment, and without the login part of an address."""
    for value in _secrets():
        text = text.replace(value, "***")
    return re.sub(r"://[^/\s@]+@", "://***@", text)


def _secrets() -> list[str]:
    from huggingface_hub import get_token

    found = [value for name, value in os.environ.items() if SECRET.search(name)]
    return sorted((v for v in [*found, get_token() or ""] if len(v) >= 6), key=len, reverse=True)
