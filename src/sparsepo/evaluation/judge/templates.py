"""Prompts for a judge: YAML files of the published forms, or the user's own; filled in jinja's sandbox."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .verdicts import FIRST, SECOND, TIE, VerdictForm

FOLDER = Path(__file__).parent / "templates"
VARIABLES = ("prompt", "answer_a", "answer_b")
_FIELDS = ("about", "source", "system", "user", "verdict", "answer_tokens")
_REQUIRED = ("about", "source", "user", "verdict")
_KINDS = ("line", "whole", "marker")


@dataclass(frozen=True)
class Template:
    """A judge's prompt.

    Args:
        name: of the file.
        about: what is asked, in a line.
        source: where the form comes from.
        system, user: jinja texts over ``prompt``, ``answer_a`` (shown first) and ``answer_b``; no system message where "".
        form: how the verdict is to be written.
        answer_tokens: what an answer usually takes, for estimates only.
    """

    name: str
    about: str
    source: str
    system: str
    user: str
    form: VerdictForm
    answer_tokens: int = 60

    def messages(self, prompt: str, answer_a: str, answer_b: str) -> list[dict[str, str]]:
        """Chat messages with the texts filled in; nothing in the texts is run as a template."""
        values = {"prompt": prompt.strip(), "answer_a": answer_a.strip(), "answer_b": answer_b.strip()}
        found = [{"role": "user", "content": _filled(self.user, values)}]
        if self.system:
            found.insert(0, {"role": "system", "content": _filled(self.system, values)})
        return found

    def to_json(self) -> dict[str, Any]:
        """Name, source and everything that the judge is asked with."""
        form = {"kind": self.form.kind, "label": self.form.label, "choices": dict(self.form.choices)}
        own = {"name": self.name, "about": self.about, "source": self.source, "system": self.system, "user": self.user}
        return {**own, "verdict": form, "sha256": hashlib.sha256(json.dumps([own, form]).encode()).hexdigest()}


def template_names() -> list[str]:
    """The templates that come with the library."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_template(name: str) -> Template:
    """A template by name, or a file of one's own.

    Args:
        name: one of :func:`template_names`, or the path of a YAML file of the same form (docs/judge.md).

    Raises:
        ValueError: there is none; the file is not of the form. Says what to change.
    """
    if name in template_names():
        path = FOLDER / f"{name}.yaml"
    else:
        path = Path(name).expanduser()
        if not path.is_file():
            raise ValueError(f"template {name!r} is neither a file nor one of {', '.join(template_names())}.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"template {name}: not readable as YAML ({' '.join(str(error).split())}).") from error
    return _template(path.stem, content, f"template {name}")


def _template(name: str, content: Any, where: str) -> Template:
    if not isinstance(content, dict):
        raise ValueError(f"{where}: must be a mapping of {', '.join(_FIELDS)}.")
    if unknown := [str(own) for own in content if own not in _FIELDS]:
        raise ValueError(f"{where}: unknown {', '.join(unknown)}; known are {', '.join(_FIELDS)}.")
    if missing := [own for own in _REQUIRED if not content.get(own)]:
        raise ValueError(f"{where}: {', '.join(missing)} is missing.")
    texts = {own: content.get(own) or "" for own in ("about", "source", "system", "user")}
    for own, text in texts.items():
        if not isinstance(text, str):
            raise ValueError(f"{where}: {own} must be a text, not {text!r:.60}.")
    _check_variables(texts["system"], texts["user"], where)
    tokens = content.get("answer_tokens", 60)
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
        raise ValueError(f"{where}: answer_tokens must be a whole number above zero, not {tokens!r}.")
    return Template(name, **texts, form=_form(content["verdict"], where), answer_tokens=tokens)


def _form(content: Any, where: str) -> VerdictForm:
    if not isinstance(content, dict) or content.get("kind") not in _KINDS:
        raise ValueError(f"{where}: verdict needs kind ({', '.join(_KINDS)}) and choices.")
    if unknown := [str(own) for own in content if own not in ("kind", "label", "choices")]:
        raise ValueError(f"{where}: verdict: unknown {', '.join(unknown)}; known are kind, label and choices.")
    label = content.get("label", "")
    if (content["kind"] == "line") != bool(label) or not isinstance(label, str):
        raise ValueError(f"{where}: verdict: a label is needed with kind: line, and only there.")
    choices = content.get("choices")
    if not isinstance(choices, dict) or not {FIRST, SECOND} <= set(choices) <= {FIRST, SECOND, TIE}:
        raise ValueError(f"{where}: verdict: choices must say what stands for first, second and, if allowed, tie.")
    if not all(isinstance(own, str) and own.strip() for own in choices.values()):
        raise ValueError(
            f"{where}: verdict: choices must be texts (put them in quotes: YAML reads a bare no as false)."
        )
    if len(set(choices.values())) < len(choices):
        raise ValueError(f"{where}: verdict: two choices are written alike.")
    return VerdictForm(content["kind"], {written: meaning for meaning, written in choices.items()}, label)


def _check_variables(system: str, user: str, where: str) -> None:
    import jinja2
    from jinja2 import meta

    try:
        used = [meta.find_undeclared_variables(_environment().parse(text)) for text in (system, user)]
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"{where}: not a jinja template ({error}).") from error
    if unknown := sorted(set.union(*used) - set(VARIABLES)):
        raise ValueError(f"{where}: unknown variable {', '.join(unknown)}; known are {', '.join(VARIABLES)}.")
    if missing := [own for own in VARIABLES if own not in set.union(*used)]:
        raise ValueError(f"{where}: {', '.join(missing)} is used nowhere: the judge would not see it.")
    try:
        for text in (system, user):
            _filled(text, dict.fromkeys(VARIABLES, "text"))
    except jinja2.TemplateError as error:
        raise ValueError(f"{where}: cannot be filled ({error}).") from error


def _environment() -> Any:
    from jinja2 import StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False, trim_blocks=True)


def _filled(text: str, values: Mapping[str, str]) -> str:
    filled: str = _environment().from_string(text).render(**values)
    return filled.strip().encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair cannot be sent
