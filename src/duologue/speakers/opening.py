"""From options to a speaker elsewhere."""

import os
from typing import TYPE_CHECKING

from duologue.errors import MissingDependency, require
from duologue.speakers.endpoint import KEY_VARIABLE, Endpoint

if TYPE_CHECKING:
    from duologue.speakers.remote import RemoteSpeaker


def remote_speaker(
    url: str | None, model: str | None, *, continues: bool, early_tokens: int, system: str | None = None
) -> "RemoteSpeaker | None":
    """The speaker at `url`, with the key from the environment; None without a URL.

    Raises:
        UsageError: see `Endpoint`; or there is a model and no URL.
        MissingDependency: a package is missing.
    """
    require(bool(url) or not model, "a speaker's model needs the speaker's URL, too")
    if not url:
        return None
    endpoint = Endpoint(url, model or "", os.environ.get(KEY_VARIABLE, "").strip(), continues=continues)
    try:
        from duologue.speakers.remote import RemoteSpeaker
    except ImportError as error:
        raise MissingDependency('a speaker elsewhere needs httpx: pip install "duologue[speaker]"') from error
    return RemoteSpeaker(endpoint, early_tokens=early_tokens, system=system)
