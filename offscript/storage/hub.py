"""Everything that is read from the Hugging Face hub: fetched into its cache, found there again without a network, and
checked. Where the cache lies, whether the network may be asked and who is asking is the hub library's own business
(``HF_HOME``, ``HF_HUB_OFFLINE``, ``HF_TOKEN`` or ``hf auth login``).
"""

import errno
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any, Literal

from offscript.errors import UserError

PREFETCH = "fetch it on a machine with a network: python launch/prefetch.py experiment=..."

NEEDED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.model.v*", "*.txt")
"""What a model, an adapter or a classifier is loaded from. Pickled weights (``.bin``, ``.pt``, ``.pth``) can run code
when they are loaded, and are never asked for."""

UNWANTED = ("consolidated*", "*.bin.index.json")
"""A second copy of the weights in another layout, and the index of weights that are not fetched."""

_HUB_ID = re.compile(r"[A-Za-z0-9_][\w.-]*/[A-Za-z0-9_][\w.-]*")


NO_NETWORK = "no connection to {hub} ({reason})"


class Unreachable(UserError):
    """The hub itself cannot be reached: nothing else can be had from it either."""


@dataclass(frozen=True)
class Reference:
    """A folder or file on the hub: of a model repository all of it or a ``subfolder``, of either kind one ``file``.

    ``revision`` is a branch, tag or commit hash; None is ``main``.
    """

    repo: str
    kind: Literal["model", "dataset"] = "model"
    revision: str | None = None
    subfolder: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        place = "/".join(part for part in (self.repo, self.inside) if part)
        return f"{place}@{self.revision or 'main'}"

    @property
    def inside(self) -> str:
        """Path below the repository's root; empty for all of it."""
        return "/".join(part.strip("/") for part in (self.subfolder, self.file) if part)


def offline() -> bool:
    """Whether the hub may not be asked (``HF_HUB_OFFLINE``)."""
    from huggingface_hub import constants

    return constants.is_offline_mode()


def is_hub_id(path: str) -> bool:
    """Whether ``path`` has the form of a repository's id, ``owner/name``. A local folder may have it too: look first."""
    return _HUB_ID.fullmatch(path) is not None and not any(part in path for part in ("--", "..", ".git"))


# ---------------------------------------------------------------- fetching and finding


def fetch(ref: Reference, refresh: bool = False) -> Path:
    """The local folder or file of ``ref``: from the cache if it is whole there, else what is missing is downloaded.

    The hub is not asked for what is in the cache, so that a branch that moves does not change a grid halfway;
    ``refresh`` asks it for the branch's newest commit, and downloads again what the cache holds damaged.

    Raises:
        UserError: the hub does not give it (see ``explain``), or the repository holds nothing of the kind.
    """
    if not refresh and (found := cached(ref)) is not None:
        return found
    try:
        snapshot = _download(ref)
        if refresh and _discard_damaged(ref):
            snapshot = _download(ref)
    except Exception as error:
        if (told := explain(error, str(ref))) is None:
            raise
        raise told from error
    if (found := cached(ref)) is None:
        raise _absent(ref, snapshot)
    return found


def cached(ref: Reference) -> Path | None:
    """The local folder or file of ``ref`` if all of it is in the cache, else None. Asks no network, imports no torch."""
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        place = _download(ref, local_files_only=True) / ref.inside
    except (LocalEntryNotFoundError, HFValidationError):
        return None
    if ref.file:
        return place if place.is_file() else None
    # A snapshot that another program began has no listing to be compared with: then the weights' own index tells.
    return place if any(place.glob("*.safetensors")) and not _missing_shards(place) else None


def commit(ref: Reference) -> str | None:
    """The commit hash (40 hex digits) of what ``cached`` finds: what a branch or tag stood for when it was fetched."""
    found = cached(ref)
    return (
        found.relative_to(_cache()).parts[2] if found else None
    )  # models--owner--name/snapshots/<commit>/...


def verify(ref: Reference) -> list[str]:
    """What is wrong with the cached copy, a line per file; empty if it is whole.

    Sizes are compared with the repository's listing where the cache has it, every safetensors header and JSON file is
    read, and the index of sharded weights is followed. Contents are not hashed.
    """
    if (found := cached(ref)) is None:
        return [f"{ref}: not, or not completely, in the cache ({_cache()})"]
    return [f"{path}: {fault}" for path, fault in _faults(ref, found).items()]


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser().resolve()


def _download(ref: Reference, local_files_only: bool = False) -> Path:
    """The snapshot's folder. One file is had this way too: it leaves a listing to be compared with later."""
    from huggingface_hub import snapshot_download

    if ref.file:
        patterns, others = [escape(ref.inside)], []
    else:
        folder = f"{escape(ref.inside)}/" if ref.inside else ""
        patterns = [folder + name for name in NEEDED]
        others = [f"{folder}*/*", *(folder + name for name in UNWANTED)]  # "*" matches slashes here
    folder_name = snapshot_download(
        ref.repo, repo_type=ref.kind, revision=ref.revision, allow_patterns=patterns, ignore_patterns=others,
        local_files_only=local_files_only, cache_dir=_cache(),
    )  # fmt: skip
    return Path(folder_name)


def _listing(ref: Reference) -> dict[str, int]:
    """Size in bytes of every file of the repository, as the cache remembers them; empty if it does not."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        files = get_cached_repo_tree(ref.repo, repo_type=ref.kind, revision=ref.revision, cache_dir=_cache())
    except CachedRepoTreeNotFoundError:
        return {}
    return {file.path: file.size for file in files}


def _absent(ref: Reference, snapshot: Path) -> UserError:
    """Why ``ref`` is not in ``snapshot`` although the hub did not refuse it."""
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


# ---------------------------------------------------------------- what can be wrong with a copy


def _faults(ref: Reference, found: Path) -> dict[Path, str]:
    """What is wrong, by file of ``found``."""
    root = found
    for _ in Path(ref.inside).parts:
        root = root.parent
    sizes = {root / path: size for path, size in _listing(ref).items()}
    faults = {}
    for path in [found] if ref.file else sorted(p for p in found.iterdir() if p.is_file()):
        size, due = path.stat().st_size, sizes.get(path)
        if due is not None and size != due:
            faults[path] = f"{size:,} bytes of {due:,}"
        elif problem := _READERS.get(path.suffix, lambda path: None)(path):
            faults[path] = problem
    return faults


def _missing_shards(folder: Path) -> list[str]:
    """Files that an index of sharded weights names and that are not in ``folder``. An unreadable index names none."""
    named: set[str] = set()
    for index in folder.glob("*.safetensors.index.json"):
        try:
            named |= set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return sorted(name for name in named if not (folder / name).is_file())


def _read_json(path: Path) -> str | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        return f"unreadable JSON ({error})"
    if path.name.endswith(".safetensors.index.json") and not (
        isinstance(value, dict) and isinstance(value.get("weight_map"), dict)
    ):
        return "an index of weights without a weight_map"
    return None


def _read_lines(path: Path) -> str | None:
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            try:
                json.loads(line)
            except ValueError as error:
                return f"line {number} is no JSON ({error})"
    return None


def _read_safetensors(path: Path) -> str | None:
    """The header alone; the library compares what it announces with the file's length."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return None if file.keys() else "safetensors without a tensor"
    except (SafetensorError, OSError) as error:
        return f"unreadable safetensors ({error})"


_READERS: dict[str, Callable[[Path], str | None]] = {
    ".json": _read_json,
    ".jsonl": _read_lines,
    ".safetensors": _read_safetensors,
}


def _discard_damaged(ref: Reference) -> bool:
    """Takes damaged files out of the cache, blob and all: the library takes what is there for whole."""
    found = cached(ref)
    faults: Mapping[Path, str] = _faults(ref, found) if found else {}
    for path in faults:
        blob = path.resolve()
        path.unlink()
        blob.unlink(missing_ok=True)
    return bool(faults)


# ---------------------------------------------------------------- what the hub's errors mean


def explain(error: Exception, where: str) -> UserError | None:
    """One line on an error of the hub, at ``where`` (a key or a repository): what happened, and what to do.

    transformers wraps the hub's errors in an OSError, chained or by their text alone; both are read.

    Returns:
        None if ``error`` is nothing of the hub's.
    """
    if isinstance(error, UserError):
        return None
    chain = list(_chain(error))[
        ::-1
    ]  # the first error knows the repository's name, what wraps it only says it
    for applies, found, todo in _meanings():
        for link in chain:
            if applies(link):
                kind = Unreachable if found is NO_NETWORK else UserError
                return kind(where, found.format(**_details(link)), todo.format(**_details(link)))
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """``error`` and what it was raised from, or while handling."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _details(link: BaseException) -> dict[str, str]:
    """What the lines below may name."""
    from huggingface_hub import constants

    repo, kind = getattr(link, "repo_id", None), getattr(link, "repo_type", None)
    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repo}" if repo else "its page"
    reason = (str(link).strip() or type(link).__name__).splitlines()[0]
    return {
        "repo": repo or "the repository", "page": page, "hub": constants.ENDPOINT, "cache": str(_cache()),
        "reason": f"{type(link).__name__}: {reason}", "prefetch": PREFETCH,
    }  # fmt: skip


def _meanings() -> list[tuple[Callable[[BaseException], bool], str, str]]:
    """Which error, what it means, what to do; the most telling first."""
    from huggingface_hub import errors

    login = "log in with a token that is valid: hf auth login (or set HF_TOKEN)"
    not_asked = "the hub may not be asked (HF_HUB_OFFLINE is set), and the cache does not hold all of it"
    broken = ("ReadError", "ReadTimeout", "WriteError", "RemoteProtocolError")
    no_network = ("ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError")
    return [
        (_is(errors.GatedRepoError, "access a gated repo", "in the authorized list"),
         "{repo} is gated: its authors want their terms accepted",
         "accept them on {page}, then log in with that account: hf auth login"),
        (_is(errors.DisabledRepoError), "{repo} was disabled on the hub", "take another source"),
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
        (lambda e: isinstance(e, errors.RemoteEntryNotFoundError) or _lacks_file(e),
         "a file is missing in {repo}", "check the name, subfolder and revision on {page}"),
        (_cannot_write(errno.ENOSPC, errno.EDQUOT),
         "the disk is full: downloads go to {cache}", "make room there, or set HF_HOME to a larger disk"),
        (_cannot_write(errno.EACCES, errno.EROFS),
         "downloads go to {cache}, which cannot be written", "set HF_HOME to a folder of yours"),
        (_is(errors.OfflineModeIsEnabled), not_asked, "{prefetch}"),
        (_of_network(broken, "Consistency check failed"),
         "the connection broke in the middle ({reason})", "run it again: finished files are kept"),
        (_of_network(no_network), NO_NETWORK, "check the network, or {prefetch}"),
        (lambda e: (_status(e) or 0) >= 500, "the hub has a problem ({reason})", "try again later"),
        (_is(errors.LocalEntryNotFoundError, "We couldn't connect to"),
         not_asked if offline() else "not in the cache, and the hub could not be reached", "{prefetch}"),
        (_is(errors.HfHubHTTPError), "the hub did not give it ({reason})", "check it on {page}"),
    ]  # fmt: skip


def _is(kind: type[BaseException], *texts: str) -> Callable[[BaseException], bool]:
    return lambda e: isinstance(e, kind) or (isinstance(e, OSError) and any(text in str(e) for text in texts))


def _of_network(names: tuple[str, ...], *texts: str) -> Callable[[BaseException], bool]:
    """By name: two generations of one HTTP library are in use, and either may be what raised."""
    return lambda e: (
        (type(e).__name__ in names and type(e).__module__.partition(".")[0].startswith(("httpx", "httpcore")))
        or (isinstance(e, OSError) and any(text in str(e) for text in texts))
    )


def _cannot_write(*numbers: int) -> Callable[[BaseException], bool]:
    """Numbers of OSError, of a file in the cache or of one that the error does not name."""

    def applies(error: BaseException) -> bool:
        if not isinstance(error, OSError) or error.errno not in numbers:
            return False
        return error.filename is None or Path(str(error.filename)).is_relative_to(_cache())

    return applies


def _lacks_file(error: BaseException) -> bool:
    """transformers says the same of a local folder, which is nothing of the hub's."""
    name, _, rest = str(error).partition(" ")
    return isinstance(error, OSError) and is_hub_id(name) and rest.startswith("does not appear to have")


def _status(error: BaseException) -> int | None:
    """HTTP status of an answer of the hub."""
    response: Any = getattr(error, "response", None)
    return getattr(response, "status_code", None)
