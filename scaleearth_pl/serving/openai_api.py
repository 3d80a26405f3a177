"""OpenAI's chat request, as far as one image and questions about it go.

    {"model": "scaleearth", "messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "data:image/tiff;base64,..."}},
        {"type": "text", "text": "How wide is the road?"}]}],
     "gsd_m": 0.3, "gsd_policy": "fused"}

Ours besides (`extra_body` of the openai client), all optional:

    gsd_m            metres per pixel of the *file*, in place of what the file says
    gsd_sigma_log10  how sure, in decades (needs gsd_m; 0.01 without)
    gsd_policy       whose word counts: metadata, predicted, fused, spoof, open (`scale.py`)
    spoof_gsd_m      pretend this GSD, metres per pixel seen by the model (policy spoof)
    questions        several questions about the image in one pass; one choice each. The messages then hold the image only
    options          choices that go into the prompt, as in training

Unknown fields are refused and not ignored: `gsd` for `gsd_m` would otherwise be answered at the wrong scale without a
word. Fields of OpenAI's that greedy decoding of one answer cannot honour are refused too, unless they ask for what is
done anyway (`n` = 1, a penalty of 0, no `tools`, `store` false; `temperature` of any value is noted in the reply: decoding
stays greedy), or are null, which asks for nothing: clients send whole messages back with every field that they know.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from scaleearth_pl.serving import server_body
from scaleearth_pl.serving.query import Prompt
from scaleearth_pl.serving.scale import Policy
from scaleearth_pl.serving.server_body import Strict
from scaleearth_pl.serving.server_limits import RefusedError, ServerLimits


class TextPart(Strict):
    """A piece of text."""

    type: Literal["text"]
    text: str


class ImageUrl(Strict):
    """`detail` is OpenAI's; the resolution is the processor's business here."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(Strict):
    """An image as a data URL."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class Message(Strict):
    """One turn. There is no system role: the model was trained without one."""

    role: Literal["user", "assistant"]
    content: str | list[Part]
    name: str | None = None


class StreamOptions(Strict):
    """As OpenAI's."""

    include_usage: bool = False


class TextFormat(Strict):
    """The only format that answers have."""

    type: Literal["text"]


class ChatRequest(Strict):
    """Body of /v1/chat/completions; see the module's docstring."""

    model: str
    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int | None = Field(default=None, ge=1, le=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    frequency_penalty: float | None = Field(default=None, ge=0, le=0)
    presence_penalty: float | None = Field(default=None, ge=0, le=0)
    logprobs: Literal[False] | None = None
    response_format: TextFormat | None = None
    tools: list[Any] | None = Field(default=None, max_length=0)
    logit_bias: dict[str, Any] | None = Field(default=None, max_length=0)
    metadata: dict[str, Any] | None = Field(default=None, max_length=0)
    store: Literal[False] | None = None
    service_tier: Literal["auto"] | None = None
    seed: int | None = None
    user: str | None = None
    gsd_m: float | None = None
    gsd_sigma_log10: float | None = None
    gsd_policy: Policy | None = None
    spoof_gsd_m: float | None = None
    questions: list[str] | None = Field(default=None, min_length=1)
    options: list[str] | None = Field(default=None, min_length=1)

    @property
    def notes(self) -> list[str]:
        """What was accepted and has no effect."""
        sampling = bool(self.temperature) or self.top_p not in (None, 1.0)
        return ["decoding is greedy: temperature and top_p have no effect"] if sampling else []


def parse(body: bytes) -> ChatRequest:
    """The request, or `RefusedError` that names the first fields at fault."""
    return server_body.parse(ChatRequest, body)


def image_url(request: ChatRequest) -> str:
    """The one image's URL."""
    urls = [part.image_url.url for part in _parts(request, ImagePart)]
    if len(urls) != 1:
        raise RefusedError(422, f"exactly one image per request, found {len(urls)}", param="messages")
    return urls[0]


def prompts(request: ChatRequest, limits: ServerLimits) -> tuple[Prompt, ...]:
    """The questions, with earlier turns where the messages hold a conversation."""
    texts = [_text(message) for message in request.messages]
    options = None if request.options is None else tuple(request.options)
    if request.questions is not None:
        if len(texts) > 1 or texts[0]:
            raise RefusedError(422, "with `questions`, the messages hold the image and no text", param="questions")
        if len(request.questions) > limits.max_questions:
            raise RefusedError(422, f"at most {limits.max_questions} questions per request", param="questions")
        asked = tuple(Prompt(text=text, options=options) for text in request.questions)
    else:
        asked = (Prompt(text=texts[-1], options=options, turns=_turns(request, texts, limits)),)
    check_lengths(asked, limits)
    return asked


def _turns(request: ChatRequest, texts: list[str], limits: ServerLimits) -> tuple[tuple[str, str], ...] | None:
    roles = [message.role for message in request.messages]
    if roles != ["user", "assistant"] * (len(roles) // 2) + ["user"]:
        raise RefusedError(422, "roles must alternate, beginning and ending with 'user'", param="messages")
    if len(roles) // 2 > limits.max_turns:
        raise RefusedError(422, f"at most {limits.max_turns} earlier turns", param="messages")
    return tuple(zip(texts[:-1:2], texts[1::2], strict=True)) or None


def check_lengths(asked: Sequence[Prompt], limits: ServerLimits) -> None:
    """`RefusedError` for an empty or long text, or too many: options are tokenised once for each question."""
    n_chars = 0
    for prompt in asked:
        n_chars += sum(map(len, _texts(prompt)))
        if n_chars > limits.max_request_chars:
            raise RefusedError(422, f"more than {limits.max_request_chars} characters in all prompts", param="options")
    for text in {text for prompt in asked for text in _texts(prompt)}:
        if not text.strip():
            raise RefusedError(422, "a question, option or turn is empty", param="messages")
        if len(text) > limits.max_text_chars:
            raise RefusedError(422, f"a text of more than {limits.max_text_chars} characters", param="messages")


def _texts(prompt: Prompt) -> tuple[str, ...]:
    return prompt.text, *(prompt.options or ()), *(text for turn in prompt.turns or () for text in turn)


def _text(message: Message) -> str:
    if isinstance(message.content, str):
        return message.content
    return "\n".join(part.text for part in message.content if isinstance(part, TextPart))


def _parts(request: ChatRequest, kind: type[ImagePart]) -> list[ImagePart]:
    contents = [message.content for message in request.messages if not isinstance(message.content, str)]
    return [part for content in contents for part in content if isinstance(part, kind)]
