"""Checks the W&B API key."""

import os

from offscript.errors import UserError, command_line

TIMEOUT_S = 10


def viewer() -> tuple[str, str]:
    """Returns the URL of the W&B server and the default entity of the API key.

    Raises:
        UserError: there is no key, the server does not answer, or it rejects the key.
    """
    import requests

    base = _wandb_address()
    key = _wandb_key(base)
    if key is None:
        raise UserError(
            "W&B", f"no API key for {base}", "wandb login (or set WANDB_API_KEY), or tracking=offline"
        )
    query = {"query": "query Viewer { viewer { id entity username } }"}
    try:
        answer = requests.post(f"{base}/graphql", json=query, auth=("api", key), timeout=TIMEOUT_S)
    except requests.RequestException as error:
        raise UserError(
            base,
            f"no answer ({type(error).__name__})",
            f"check the network, or tracking=offline and {command_line('sync')}",
        ) from None
    found = (answer.json().get("data") or {}).get("viewer") if answer.ok else None
    if answer.status_code in (401, 403) or (answer.ok and found is None):
        raise UserError(base, "rejects the API key", "wandb login --relogin (or set WANDB_API_KEY anew)")
    if found is None:
        raise UserError(
            base,
            f"answers {answer.status_code}",
            f"try again later, or tracking=offline and {command_line('sync')}",
        )
    return base, found["entity"]


def _wandb_address() -> str:
    """Returns the URL that the client uses, from its settings files or WANDB_BASE_URL."""
    from wandb import Settings as WandbSettings

    found = WandbSettings()
    found.update_from_system_settings()
    found.update_from_env_vars(dict(os.environ))
    return str(found.base_url).rstrip("/")


def _wandb_key(base: str) -> str | None:
    from wandb.sdk.lib import wbauth

    return os.environ.get("WANDB_API_KEY") or wbauth.read_netrc_auth(host=base)
