"""Tokenizers with chat templates: loaded from a checkpoint, or trained on a task's own texts.

``transformers`` would do, and takes seconds to import; its tokenizer files are read here with ``tokenizers`` and the
template rendered by Jinja's sandbox, to equal ids.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from lightningrun.errors import UsageError
from lightningrun.models.local.template import CHAT_TEMPLATE

PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"
_MARKS = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
_WORDS = {
    "llama": r" ?[A-Za-z_]+(?:\d+[A-Za-z_]+)*|\d| ?[^A-Za-z_\d\s]+|\s",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}
"""How text is cut before it is encoded. Digits are single, so that a small model can copy numbers. transformers takes
Qwen2's own way for every checkpoint of that family, whatever its tokenizer.json says."""
_UNFINISHED = "\ufffd"

Message = Mapping[str, Any]


def train_tokenizer(
    texts: Iterable[str], *, vocab_size: int = 640, whole_words: Sequence[str] = (), family: str = "llama"
) -> ChatTokenizer:
    """A byte-level BPE of ``vocab_size`` tokens learned from ``texts``, with each of ``whole_words`` a token beside.

    Whole words (table and column names, the values of a database) let a small model copy them. Equal inputs, equal ids.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS[family]), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    if family == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [PAD, START, END]
    least = len(alphabet) + len(special)
    if vocab_size < least:
        raise UsageError(f"a vocabulary of {vocab_size} is too small", hint=f"{least} is the least: every byte")
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=sorted(alphabet), show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    # A word that was learned is added too: only then is it one and the same token wherever it stands.
    words = dict.fromkeys(word for word in (*_MARKS, *whole_words) if word)
    backend.add_tokens([AddedToken(word, normalized=False) for word in words])
    return ChatTokenizer(backend, {"eos_token": END, "pad_token": PAD}, CHAT_TEMPLATE)


class ChatTokenizer:
    """Text to ids and back, and chats to ids by the checkpoint's own template."""

    def __init__(self, backend: Tokenizer, special: Mapping[str, str], template: str, where: str = "") -> None:
        self.backend = backend
        self.template = template
        self.where = where
        self._special = dict(special)
        self.size: int = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        self.bos_id = self._id_of("bos_token")
        self.eos_id = self._id_of("eos_token")
        self.pad_id = self._id_of("pad_token")
        backend.no_padding()
        backend.no_truncation()

    def _id_of(self, name: str) -> int | None:
        return self.backend.token_to_id(self._special[name]) if name in self._special else None

    @classmethod
    def load(cls, folder: Path) -> ChatTokenizer:
        """The tokenizer of a checkpoint. Raises UsageError if its files are missing or damaged."""
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UsageError("the checkpoint has no tokenizer.json", where=str(folder))
        try:
            backend = Tokenizer.from_file(str(path))
            config = _read_json(folder / "tokenizer_config.json")
            special = _special_tokens(config, _read_json(folder / "special_tokens_map.json"))
            jinja = folder / "chat_template.jinja"
            template = jinja.read_text("utf-8") if jinja.is_file() else _template(config.get("chat_template"))
        except Exception as error:  # tokenizers raises bare Exception
            raise UsageError(f"the tokenizer cannot be read: {error}", where=str(folder)) from error
        return cls(backend, special, template, str(folder))

    def save(self, folder: Path) -> None:
        """Write the files that ``load`` and ``transformers.AutoTokenizer`` read."""
        self.backend.save(str(folder / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **self._special}
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")
        if self.template:
            (folder / "chat_template.jinja").write_text(self.template, "utf-8")

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``, special tokens recognised, none added."""
        ids: list[int] = self.backend.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        text: str = self.backend.decode(list(ids), skip_special_tokens=skip_special)
        return text

    def render(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None, *, generate: bool = True
    ) -> str:
        """The text of a chat. ``generate`` ends it where the assistant begins. Raises UsageError if it cannot be."""
        if not self.template:
            raise UsageError("the model has no chat template", where=self.where, hint="a base model cannot chat")
        try:
            text: str = _compiled(self.template).render(
                messages=list(messages), tools=tools, documents=None, add_generation_prompt=generate, **self._special
            )
            return text
        except (TemplateError, TypeError, ValueError, KeyError) as error:
            raise UsageError(f"the chat template refuses this chat: {error}", where=self.where) from error

    def encode_chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Ids of a chat, as ``transformers``' ``apply_chat_template`` gives them."""
        return self.encode(self.render(messages, tools, generate=add_generation_prompt))

    def encode_assistant_masked(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> tuple[list[int], list[bool]]:
        """Ids of a whole chat, and for each whether the assistant says it: its words and its end of turn.

        Each turn is encoded by itself after the text before it, as it is when the model writes it.
        """
        ids: list[int] = []
        learned: list[bool] = []
        done = ""

        def add(text: str, learn: bool) -> None:
            piece = self.encode(text)
            ids.extend(piece)
            said = len(piece)
            if learn and self.eos_id in piece:  # what the template writes after the end of a turn is not the model's
                said -= piece[::-1].index(self.eos_id)
            learned.extend(learn and place < said for place in range(len(piece)))

        for index, message in enumerate(messages):
            if message.get("role") != "assistant":
                continue
            before = self.render(messages[:index], tools)
            after = self.render(messages[: index + 1], tools, generate=False)
            if not before.startswith(done) or not after.startswith(before):
                raise UsageError("the chat template rewrites earlier turns: it cannot be trained on", where=self.where)
            add(before[len(done) :], False)
            add(after[len(before) :], True)
            done = after
        whole = self.render(messages, tools, generate=False)
        if not whole.startswith(done):
            raise UsageError("the chat template rewrites earlier turns: it cannot be trained on", where=self.where)
        add(whole[len(done) :], False)
        return ids, learned


class TextStream:
    """Text of ids that come one by one; a character is held back until its last byte is there."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = 0
        """Where the ids begin that are decoded anew each time: one whole character earlier than needed."""
        self._shown = 0

    def add(self, token: int) -> str:
        """The text that ``token`` completes."""
        self._ids.append(token)
        return self._next(final=False)

    def finish(self) -> str:
        """What was held back, with replacement characters for bytes that never became a character."""
        return self._next(final=True)

    def _next(self, final: bool) -> str:
        before = self._tokenizer.decode(self._ids[self._start : self._shown])
        now = self._tokenizer.decode(self._ids[self._start :])
        if not final and now.endswith(_UNFINISHED):
            return ""
        self._start, self._shown = self._shown, len(self._ids)
        return now[len(before) :]


@lru_cache(maxsize=16)
def _compiled(template: str) -> Any:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment.from_string(template)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}


def _special_tokens(*sources: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for source in sources:
        for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
            value = source.get(key)
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                found.setdefault(key, value)
    return found


def _template(value: Any) -> str:
    """A file may hold several templates by name."""
    if isinstance(value, list):
        value = {entry["name"]: entry["template"] for entry in value}.get("default", "")
    return value if isinstance(value, str) else ""
