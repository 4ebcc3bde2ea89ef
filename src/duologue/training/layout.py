"""A sample in tokens, exactly as a session feeds it: what is committed, then the user's opener and words.

The probe that follows is not part of it. `Template.lay_out` decides where ids go, for sessions and training alike.
"""

from dataclasses import dataclass

from duologue.data.samples import Sample
from duologue.text.template import Template
from duologue.text.tokenizer import well_formed
from duologue.types import Role, Token


@dataclass(frozen=True, slots=True)
class Layout:
    """A sample in tokens. Samples with the same `context` share its KV."""

    context: tuple[Token, ...]  # everything committed, up to the opener of the user's turn
    text: tuple[Token, ...]  # opener and words

    @property
    def length(self) -> int:
        """Tokens before the probe."""
        return len(self.context) + len(self.text)


class Layouts:
    """Lays samples out with one template, and its variants for other system prompts."""

    def __init__(self, template: Template) -> None:
        self._templates: dict[str | None, Template] = {None: template}

    def of(self, sample: Sample) -> Layout:
        """`sample` in tokens; a running answer is closed where the user has heard it to, as a fork closes it."""
        template = self._template(sample.system)
        last = sample.context[-1].role if sample.context else None
        words = well_formed(sample.text).strip()
        context = (*template.begin, *template.lay_out(sample.context), *template.joint(last, Role.USER))
        return Layout(context, template.user(words, first=last is None))

    def _template(self, system: str | None) -> Template:
        if system not in self._templates:
            self._templates[system] = self._templates[None].with_system(system)
        return self._templates[system]
