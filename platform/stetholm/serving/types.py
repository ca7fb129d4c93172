"""OpenAI's chat-completion requests and responses, as far as this model can honour them.

Every field is bounded. A parameter that would change the answer and is not honoured is refused, not ignored;
parameters that cannot change it (``user``, ``metadata`` …) are accepted.
Reference: https://platform.openai.com/docs/api-reference/chat
"""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

NOTICE = "For research use only. Not a medical device; not for diagnosis or treatment."
"""Stands on every answer."""

MAX_TEXT_CHARS = 4_000
MAX_MESSAGES = 32
MAX_PARTS = 16
MAX_RECORDINGS = 4
MAX_N = 8
MAX_STOPS = 4
MAX_STOP_CHARS = 64
MAX_AUDIO_CHARS = 90 * 2**20
"""Base64 of the largest recording that audio.max_bytes allows by default; the body limit comes first."""

AudioFormat = Literal["wav", "flac", "mp3", "ogg"]
Text = Annotated[str, Field(max_length=MAX_TEXT_CHARS)]


class BadBase64(ValueError):
    """``input_audio.data`` is not base64."""


class _Strict(BaseModel):
    """Request side: no coercion, no unknown parameters, no NaN."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class InputAudio(_Strict):
    """One recording, inline."""

    data: str = Field(min_length=1, max_length=MAX_AUDIO_CHARS)
    format: AudioFormat

    def to_bytes(self) -> bytes:
        """The recording's bytes.

        Raises:
            BadBase64: ``data`` holds anything but base64 (RFC 4648, padded).
        """
        try:
            return base64.b64decode(self.data, validate=True)
        except (binascii.Error, ValueError) as error:
            raise BadBase64("input_audio.data is not valid base64") from error


class TextPart(_Strict):
    """Text in a message."""

    type: Literal["text"]
    text: Text


class AudioPart(_Strict):
    """A recording in a message."""

    type: Literal["input_audio"]
    input_audio: InputAudio


Part = Annotated[TextPart | AudioPart, Field(discriminator="type")]
Parts = Annotated[list[Part], Field(max_length=MAX_PARTS)]
Content = Annotated[
    Annotated[Text, Tag("text")] | Annotated[Parts, Tag("parts")],
    # Chosen by hand, so that an error names the part at fault and not both readings.
    Discriminator(lambda value: "text" if isinstance(value, str) else "parts"),
]


class Message(_Strict):
    """One turn. Recordings are numbered (Audio 1, Audio 2 …) in the order in which they come."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    name: Annotated[str, Field(max_length=256)] | None = None

    @property
    def text(self) -> str:
        """The text parts, a line each."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def recordings(self) -> list[InputAudio]:
        """The recordings, in order."""
        if isinstance(self.content, str):
            return []
        return [part.input_audio for part in self.content if isinstance(part, AudioPart)]


class StreamOptions(_Strict):
    """What a stream tells besides text."""

    include_usage: bool = False
    include_obfuscation: bool = False


class TextFormat(_Strict):
    """The only response format."""

    type: Literal["text"]


class ChatRequest(_Strict):
    """Body of ``POST /v1/chat/completions``. ``temperature`` is 0 unless given: the model's best answer."""

    model: str = Field(min_length=1, max_length=512)
    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    n: int | None = Field(None, ge=1, le=MAX_N)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    # Accepted where they ask for what is done anyway.
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logprobs: Literal[False] | None = None
    response_format: TextFormat | None = None
    modalities: list[Literal["text"]] | None = None
    # Accepted because they cannot change the answer.
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None

    @field_validator("stop")
    @classmethod
    def _bound_stop(cls, stop: str | list[str] | None) -> str | list[str] | None:
        stops = [stop] if isinstance(stop, str) else stop or []
        if len(stops) > MAX_STOPS or any(not 0 < len(one) <= MAX_STOP_CHARS for one in stops):
            raise ValueError(f"at most {MAX_STOPS} stop strings of 1 to {MAX_STOP_CHARS} characters")
        return stop

    @model_validator(mode="after")
    def _check_conversation(self) -> ChatRequest:
        last = self.messages[-1]
        if last.role != "user" or not last.text.strip():
            raise ValueError("the last message must be the user's and hold some text")
        if sum(len(message.recordings) for message in self.messages) > MAX_RECORDINGS:
            raise ValueError(f"at most {MAX_RECORDINGS} recordings in a conversation")
        if sum(len(message.text) for message in self.messages) > MAX_TEXT_CHARS:
            raise ValueError(f"at most {MAX_TEXT_CHARS} characters of text in a conversation")
        return self

    @property
    def recordings(self) -> list[InputAudio]:
        """All recordings of the conversation, in order."""
        return [recording for message in self.messages for recording in message.recordings]

    @property
    def instruction(self) -> str:
        """The question as the model reads it.

        The model is trained on single questions: of a single user message this is exactly its text. Earlier turns
        go before it, a line each, those of user and assistant with their names.
        """
        lines = [_line(message) for message in self.messages[:-1] if message.text.strip()]
        return "\n".join([*lines, self.messages[-1].text])

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def budget(self) -> int | None:
        """New tokens asked for; ``max_completion_tokens`` is the newer name and wins."""
        return self.max_completion_tokens or self.max_tokens


def _line(message: Message) -> str:
    names = {"user": "User: ", "assistant": "Assistant: "}
    return names.get(message.role, "") + message.text


# --- responses ---


class Usage(BaseModel):
    """Tokens read and written, over all answers."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, prompt: int, completion: int) -> Usage:
        """With the total."""
        return cls(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


class AnswerMessage(BaseModel):
    """The assistant's message."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    """One of n answers."""

    index: int
    message: AnswerMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class ChatCompletion(BaseModel):
    """Answer of ``POST /v1/chat/completions``."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    notice: str = NOTICE


class ChunkDelta(BaseModel):
    """What a chunk adds."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    """A chunk's part of one answer."""

    index: int
    delta: ChunkDelta
    finish_reason: Literal["stop", "length"] | None = None
    logprobs: None = None


class ChatChunk(BaseModel):
    """One server-sent event of a streamed answer."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
    notice: str = NOTICE


class Model(BaseModel):
    """One entry of ``GET /v1/models``."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "stetholm"
    checkpoint: str
    lineage: dict[str, Any]
    notice: str = NOTICE


class ModelList(BaseModel):
    """Answer of ``GET /v1/models``."""

    object: Literal["list"] = "list"
    data: list[Model]


class ErrorBody(BaseModel):
    """What went wrong, as OpenAI says it."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    """Body of every error."""

    error: ErrorBody
