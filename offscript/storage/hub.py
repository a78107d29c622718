"""Downloads from the Hugging Face hub: into its cache, found there again without a network, and verified.

The location of the cache, offline mode and the user's token are settings of the hub's library (``HF_HOME``,
``HF_HUB_OFFLINE``, ``HF_TOKEN`` or ``hf auth login``).
"""

import errno
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Literal

from offscript.errors import UserError, command_line

PREFETCH = "fetch it on a machine with a network: " + command_line("prefetch", "experiment=...")

NEEDED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.model.v*", "*.txt")
"""Files from which a model, an adapter or a classifier is loaded. Pickled weights (``.bin``, ``.pt``, ``.pth``) can run
code when they are loaded, and are never downloaded."""

UNWANTED = ("consolidated*", "*.bin.index.json")
"""A second copy of the weights in another layout, and the index of weights that are not downloaded."""

_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*")

NO_NETWORK = "no connection to {hub} ({reason})"


class Unreachable(UserError):
    """The hub cannot be reached, so that further downloads would fail too."""


@dataclass(frozen=True)
class Reference:
    """A folder or file on the hub: a whole model repository, a ``subfolder`` of one, or one ``file`` of a model or data set.

    ``revision`` is a branch, tag or commit hash; None is ``main``.
    """

    repo: str
    kind: Literal["model", "dataset"] = "model"
    revision: str | None = None
    subfolder: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        path = "/".join(part for part in (self.repo, self.inside) if part)
        return f"{path}@{self.revision or 'main'}"

    @property
    def inside(self) -> str:
        """Path relative to the repository's root; empty for the whole repository."""
        return "/".join(part.strip("/") for part in (self.subfolder, self.file) if part)


def offline() -> bool:
    """Whether network access is disabled (``HF_HUB_OFFLINE``)."""
    from huggingface_hub import constants

    return bool(constants.is_offline_mode())


def is_hub_id(path: str) -> bool:
    """Whether ``path`` has the form of a repository id, ``owner/name``. A local path may have it too: check that first."""
    return _HUB_ID.fullmatch(path) is not None and not any(part in path for part in ("--", "..", ".git"))


# ---------------------------------------------------------------- download and cache


def fetch(ref: Reference, refresh: bool = False) -> Path:
    """The local folder or file of ``ref``. Files that the cache lacks are downloaded.

    A complete copy in the cache is used without a request, so that a branch that moves does not change a grid halfway.
    ``refresh`` asks the hub for the branch's newest commit, and downloads damaged files again.

    Raises:
        UserError: the hub refuses it (see ``explain``), or the repository holds no such file or weights.
    """
    if not refresh and (found := cached(ref)) is not None:
        return found
    try:
        snapshot = _download(ref)
        if refresh and _discard_damaged(ref):
            snapshot = _download(ref)
    except Exception as error:
        if (explained := explain(error, str(ref))) is None:
            raise
        raise explained from error
    if (found := cached(ref)) is None:
        raise _absent(ref, snapshot)
    return found


def cached(ref: Reference) -> Path | None:
    """The local folder or file of ``ref`` if the cache holds all of it, else None. Makes no request, imports no torch."""
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        path = _download(ref, local_files_only=True) / ref.inside
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    if ref.file:
        return path if path.is_file() else None
    # Without a file list (another program began the download) the weights' own index shows what is missing.
    return path if any(path.glob("*.safetensors")) and not _missing_shards(path) else None


def commit(ref: Reference) -> str | None:
    """The commit hash (40 hex digits) of the cached copy, or None: of a branch or tag, the commit when it was downloaded."""
    found = cached(ref)
    # The path is models--owner--name/snapshots/<commit>/...
    return found.relative_to(_cache()).parts[2] if found else None


def verify(ref: Reference) -> list[str]:
    """The faults of the cached copy, one line per file; empty if it is complete.

    File sizes are compared with the repository's file list if the cache has it; every safetensors header and JSON file
    is parsed; every shard that an index names must exist. Contents are not hashed.
    """
    if (found := cached(ref)) is None:
        return [f"{ref}: not, or not completely, in the cache ({_cache()})"]
    return [f"{path}: {fault}" for path, fault in _faults(ref, found).items()]


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser().resolve()


def _download(ref: Reference, local_files_only: bool = False) -> Path:
    """The snapshot's folder. A single file is downloaded as a snapshot too, which also caches the file list."""
    from huggingface_hub import snapshot_download

    if ref.file:
        allowed, ignored = [escape(ref.inside)], []
    else:
        folder = f"{escape(ref.inside)}/" if ref.inside else ""
        allowed = [folder + name for name in NEEDED]
        # In these patterns "*" matches slashes too.
        ignored = [f"{folder}*/*", *(folder + name for name in UNWANTED)]
    snapshot = snapshot_download(
        ref.repo,
        repo_type=ref.kind,
        revision=ref.revision,
        allow_patterns=allowed,
        ignore_patterns=ignored,
        local_files_only=local_files_only,
        cache_dir=_cache(),
    )
    return Path(snapshot)


def _listing(ref: Reference) -> dict[str, int]:
    """Size in bytes of every file of the repository, from the cached file list; empty if there is none."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        files = get_cached_repo_tree(ref.repo, repo_type=ref.kind, revision=ref.revision, cache_dir=_cache())
    except CachedRepoTreeNotFoundError:
        return {}
    return {file.path: file.size for file in files}


def _absent(ref: Reference, snapshot: Path) -> UserError:
    """The reason why ``ref`` is not in ``snapshot`` although the download succeeded."""
    listing = _listing(ref)
    if not listing:
        return UserError(str(ref), f"the copy in {snapshot} is incomplete", PREFETCH)
    here = [path for path in listing if path == ref.inside or path.startswith(f"{ref.inside}/".lstrip("/"))]
    if here:
        kinds = ", ".join(sorted({Path(path).suffix or path for path in here}))
        return UserError(
            str(ref), f"holds no safetensors weights (but {kinds})", "other weights are not loaded"
        )
    if ref.file:
        near = sorted(p for p in listing if Path(p).suffix == Path(ref.file).suffix)
    else:
        near = sorted({path.partition("/")[0] for path in listing if "/" in path})
    shown = ", ".join(near[:12]) + (f", ... ({len(near)} in all)" if len(near) > 12 else "")
    return UserError(str(ref), "is not in the repository", f"it has: {shown or 'nothing of the kind'}")


# ---------------------------------------------------------------- verification


def _faults(ref: Reference, found: Path) -> dict[Path, str]:
    """The fault of each damaged file of ``found``."""
    root = found
    for _ in Path(ref.inside).parts:
        root = root.parent
    sizes = {root / path: size for path, size in _listing(ref).items()}
    faults = {}
    for path in [found] if ref.file else sorted(p for p in found.iterdir() if p.is_file()):
        size, expected = path.stat().st_size, sizes.get(path)
        check = _CHECKS.get(path.suffix)
        if expected is not None and size != expected:
            faults[path] = f"{size:,} bytes of {expected:,}"
        elif check is not None and (fault := check(path)):
            faults[path] = fault
    return faults


def _missing_shards(folder: Path) -> list[str]:
    """Files that the index of sharded weights names and that ``folder`` lacks; none for an unreadable index."""
    named: set[str] = set()
    for index in folder.glob("*.safetensors.index.json"):
        try:
            named |= set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return sorted(name for name in named if not (folder / name).is_file())


def _check_json(path: Path) -> str | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        return f"unreadable JSON ({error})"
    if path.name.endswith(".safetensors.index.json") and not (
        isinstance(value, dict) and isinstance(value.get("weight_map"), dict)
    ):
        return "an index of weights without a weight_map"
    return None


def _check_lines(path: Path) -> str | None:
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                json.loads(line)
            except (ValueError, RecursionError) as error:
                return f"line {number} is not JSON ({error})"
    return None


def _check_safetensors(path: Path) -> str | None:
    """Parses the header only; the library compares it with the file's length."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return None if file.keys() else "safetensors without a tensor"
    except (SafetensorError, OSError) as error:
        return f"unreadable safetensors ({error})"


_CHECKS: dict[str, Callable[[Path], str | None]] = {
    ".json": _check_json,
    ".jsonl": _check_lines,
    ".safetensors": _check_safetensors,
}


def _discard_damaged(ref: Reference) -> bool:
    """Deletes damaged files and their blobs from the cache; the library would not download existing files again."""
    found = cached(ref)
    faults: Mapping[Path, str] = _faults(ref, found) if found else {}
    for path in faults:
        blob = path.resolve()
        path.unlink()
        blob.unlink(missing_ok=True)
    return bool(faults)


# ---------------------------------------------------------------- errors of the hub


def explain(error: Exception, where: str) -> UserError | None:
    """An error of the hub as one line for the user: what happened and what to do; None for any other error.

    ``where`` is the setting or repository that the line names. Errors that transformers wraps in an OSError are
    recognized by their cause or, if it wraps the text alone, by that.
    """
    if isinstance(error, UserError):
        return None
    # The original error has the repository's name as an attribute; those that wrap it do not.
    causes = list(_causes(error))[::-1]
    for applies, found, remedy in _explanations():
        for cause in causes:
            if applies(cause):
                kind = Unreachable if found is NO_NETWORK else UserError
                return kind(where, found.format(**_details(cause)), remedy.format(**_details(cause)))
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """``error``, its cause or context, that error's cause, and so on."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def _details(error: BaseException) -> dict[str, str]:
    """Values of the fields of ``_explanations``."""
    from huggingface_hub import constants

    repo, kind = getattr(error, "repo_id", None), getattr(error, "repo_type", None)
    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repo}" if repo else "its page"
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return {
        "repo": repo or "the repository",
        "page": page,
        "hub": constants.ENDPOINT,
        "cache": str(_cache()),
        "reason": f"{type(error).__name__}: {reason}",
        "prefetch": PREFETCH,
    }


def _explanations() -> list[tuple[Callable[[BaseException], bool], str, str]]:
    """Which errors, what happened, what to do. The first entry that applies is used."""
    from huggingface_hub import errors

    login = "log in with a token that is valid: hf auth login (or set HF_TOKEN)"
    offline_mode = "the hub may not be asked (HF_HUB_OFFLINE is set), and the cache does not hold all of it"
    broken = ("ReadError", "ReadTimeout", "WriteError", "RemoteProtocolError")
    no_network = ("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError")
    return [
        (_is(errors.GatedRepoError, "access a gated repo", "in the authorized list"),
         "{repo} is gated: its authors want their terms accepted",
         "accept them on {page}, then log in with that account: hf auth login"),
        (_is(errors.DisabledRepoError), "{repo} was disabled on the hub", "use another source"),
        (_is(errors.RevisionNotFoundError, "is not a valid git identifier"),
         "{repo} has no such revision", "check the name of the branch, tag or commit on {page}"),
        (lambda e: _status(e) == 401 and "credentials" in str(e).lower(), "the hub refuses the token", login),
        (_is(errors.LocalTokenNotFoundError), "not logged in to the hub", login),
        (_is(errors.RepositoryNotFoundError, "is not a valid model identifier"),
         "there is no repository {repo} on the hub, or it is private",
         "check the name; if it is private, log in: hf auth login"),
        (_is(errors.HFValidationError), "no id of a hub repository ({reason})", "an id is owner/name"),
        (lambda e: _status(e) in (401, 403), "the hub refuses access ({reason})", login),
        (lambda e: _status(e) == 429, "the hub answers no more requests for now (rate limit)",
         "wait some minutes; with a login the limit is higher: hf auth login"),
        (lambda e: isinstance(e, errors.RemoteEntryNotFoundError) or _names_missing_file(e),
         "a file is missing in {repo}", "check the name, subfolder and revision on {page}"),
        (_cannot_write(errno.ENOSPC, errno.EDQUOT),
         "the disk is full: downloads go to {cache}", "make room there, or set HF_HOME to a larger disk"),
        (_cannot_write(errno.EACCES, errno.EROFS),
         "downloads go to {cache}, which cannot be written", "set HF_HOME to a folder of yours"),
        (_is(errors.OfflineModeIsEnabled), offline_mode, "{prefetch}"),
        (_is_network_error(broken, "Consistency check failed"),
         "the connection broke in the middle ({reason})", "run it again: finished files are kept"),
        (_is_network_error(no_network), NO_NETWORK, "check the network, or {prefetch}"),
        (lambda e: (_status(e) or 0) >= 500, "the hub has a problem ({reason})", "try again later"),
        (_is(errors.LocalEntryNotFoundError, "We couldn't connect to"),
         offline_mode if offline() else "not in the cache, and the hub could not be reached", "{prefetch}"),
        (_is(errors.HfHubHTTPError), "the hub did not give it ({reason})", "check it on {page}"),
    ]  # fmt: skip


def _is(kind: type[BaseException], *texts: str) -> Callable[[BaseException], bool]:
    return lambda e: isinstance(e, kind) or (isinstance(e, OSError) and any(text in str(e) for text in texts))


def _is_network_error(names: tuple[str, ...], *texts: str) -> Callable[[BaseException], bool]:
    """Compares class names: two versions of the HTTP library (httpx, httpx2) are in use, and either may raise."""
    return lambda e: (
        (type(e).__name__ in names and type(e).__module__.partition(".")[0].startswith(("httpx", "httpcore")))
        or (isinstance(e, OSError) and any(text in str(e) for text in texts))
    )


def _cannot_write(*numbers: int) -> Callable[[BaseException], bool]:
    """OSErrors with one of these numbers, about a file in the cache or without a file name."""

    def applies(error: BaseException) -> bool:
        if not isinstance(error, OSError) or error.errno not in numbers:
            return False
        return error.filename is None or Path(str(error.filename)).is_relative_to(_cache())

    return applies


def _names_missing_file(error: BaseException) -> bool:
    """Whether transformers reports a missing file of a repository (not of a local folder, for which it says the same)."""
    name, _, rest = str(error).partition(" ")
    return isinstance(error, OSError) and is_hub_id(name) and rest.startswith("does not appear to have")


def _status(error: BaseException) -> int | None:
    """HTTP status of the response that ``error`` holds."""
    return getattr(getattr(error, "response", None), "status_code", None)
