"""A conversation whose answers come from elsewhere: whoever gives them passes them in as text."""

from collections.abc import Sequence
from typing import final

from duologue.core.config import SessionConfig
from duologue.core.policy import Policy
from duologue.core.prompt import Probe, Template
from duologue.core.session import Session
from duologue.core.transcript import ListenerModel
from duologue.text.text_template import TextTemplate
from duologue.types import Turn


@final
class Listener(Session):
    """Is told what the assistant says and how far that was heard, and what the user says; decides by the same rules.

    `Promoted` asks for the answer to a turn, in the context of `question`. Its text is passed to `say` as it comes, and
    `finish` or `fail` ends it. After `TakenBack`, `Withdrawn` and `Suspended`, an answer is not wanted any more;
    `Resumed` continues it, as the same answer or as another one. Its text so far is kept, and said again from where it
    was heard.
    """

    def __init__(
        self,
        template: Template,
        probe: Probe,
        *,
        max_length: int = 4096,
        policy: Policy | None = None,
        config: SessionConfig | None = None,
        history: Sequence[Turn] = (),
        system: str | None = None,
    ) -> None:
        """Listen with a model.

        Args:
            template: that of the model that listens.
            probe: that of the model that listens.
            max_length: tokens of its context. What is older is not considered in decisions.
            config: `max_length` limits the conversation; a token counts as about four characters.
            system: the system prompt of the speaker, for its length and as `template.system`.

        Raises:
            ContextOverflow: the system prompt, the history or the probe leaves too little room.
        """
        super().__init__(
            TextTemplate(system),
            probe,
            policy=policy,
            config=config,
            history=history,
            listener=ListenerModel(template, max_length),
        )
