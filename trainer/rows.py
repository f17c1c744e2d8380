"""What a row says, whatever file it came from: its canonical text, and the examples that are learned from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from loradock.registry.records import canonical_json


@dataclass(frozen=True, slots=True)
class Message:
    """One turn."""

    role: str
    content: str

    def plain(self) -> dict[str, str]:
        """The form that chat templates and TRL take."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class ChatExample:
    """What one assistant turn is learned from: all before it, and the turn, which alone carries loss."""

    prompt: tuple[Message, ...]
    completion: Message

    def plain(self) -> dict[str, Any]:
        """A row of TRL's conversational prompt/completion form."""
        return {"prompt": [message.plain() for message in self.prompt], "completion": [self.completion.plain()]}


@dataclass(frozen=True, slots=True)
class TextExample:
    """A text to read and the one that follows, which carries loss; no chat template is put around them."""

    prompt: str
    """Empty when all of the text is learned."""
    completion: str

    def plain(self) -> dict[str, Any]:
        """A row of TRL's prompt/completion form."""
        return {"prompt": self.prompt, "completion": self.completion}


Example = ChatExample | TextExample


@dataclass(frozen=True, slots=True, kw_only=True)
class _Placed:
    """What every row has beside its content."""

    place: str = field(default="", compare=False)
    """`FILE:LINE`, or `FILE: row N`."""


@dataclass(frozen=True, slots=True)
class Chat(_Placed):
    """One conversation."""

    format: ClassVar[str] = "chat"
    messages: tuple[Message, ...]

    def canonical(self) -> str:
        """The text that stands for this row wherever its bytes matter."""
        return canonical_json([message.plain() for message in self.messages])

    def examples(self) -> tuple[Example, ...]:
        """One example for each assistant turn."""
        return tuple(
            ChatExample(self.messages[:index], message)
            for index, message in enumerate(self.messages)
            if message.role == "assistant"
        )


@dataclass(frozen=True, slots=True)
class Instruction(_Placed):
    """One instruction with its answer, and the template that it is written in.

    The template is Alpaca's headers (https://github.com/tatsu-lab/stanford_alpaca) or the base's chat template.
    """

    format: ClassVar[str] = "alpaca"
    instruction: str
    output: str
    input: str = ""
    system: str = ""
    template: Literal["alpaca", "chat"] = "alpaca"

    def canonical(self) -> str:
        """The text that stands for this row; the template is not part of it, so that it moves no row."""
        fields = {
            "instruction": self.instruction,
            "input": self.input,
            "output": self.output,
            "system": self.system,
        }
        return canonical_json({name: value for name, value in fields.items() if value})

    def examples(self) -> tuple[Example, ...]:
        """The one example."""
        if self.template == "chat":
            system = (Message("system", self.system),) if self.system else ()
            asked = f"{self.instruction}\n{self.input}" if self.input else self.instruction
            return (ChatExample((*system, Message("user", asked)), Message("assistant", self.output)),)
        prompt = f"{self.system}\n" if self.system else ""
        prompt += f"### Instruction:\n{self.instruction}\n"
        prompt += f"### Input:\n{self.input}\n" if self.input else ""
        return (TextExample(f"{prompt}### Response:\n", self.output),)


@dataclass(frozen=True, slots=True)
class Pair(_Placed):
    """A prompt and its completion, as two texts or as messages."""

    format: ClassVar[str] = "prompt_completion"
    example: Example

    def canonical(self) -> str:
        """The text that stands for this row."""
        return canonical_json(self.example.plain())

    def examples(self) -> tuple[Example, ...]:
        """The one example: turns of the assistant in the prompt are read, not learned."""
        return (self.example,)


@dataclass(frozen=True, slots=True)
class Text(_Placed):
    """A text without a prompt, all of which is learned."""

    format: ClassVar[str] = "text"
    text: str

    def canonical(self) -> str:
        """The text that stands for this row."""
        return canonical_json({"text": self.text})

    def examples(self) -> tuple[Example, ...]:
        """The one example."""
        return (TextExample("", self.text),)


Row = Chat | Instruction | Pair | Text
