"""What can become of a request, by what should be done about it.

`kind` goes into the quarantine file. A `ServerError` says nothing about the item: it is asked again by the next run.
The others are the item's own fault or fate, and asking again would only cost money.
"""

from typing import ClassVar

from scaleearth_pl.core.errors import ScaleEarthError


class ChatError(ScaleEarthError):
    """One request that gave no usable reply."""

    kind: ClassVar[str] = "chat"


class ServerError(ChatError):
    """No answer after all attempts: time-out, refused or broken connection, 408, 409, 425, 429 or 5xx."""

    kind = "server"


class ReplyError(ChatError):
    """The server answered, but not with what was asked for: prose, broken or cut JSON, missing fields."""

    kind = "reply"


class DeclinedError(ChatError):
    """The model declined to answer."""

    kind = "refused"


class RejectedError(ChatError):
    """The server says that this one request is bad (400, 413, 422), for example an image that it cannot read."""

    kind = "rejected"
