"""What goes wrong for one client, as OpenAI's clients expect to read it.

In: a status, words, and what they are about. Out: the error object, for every status alike:
`{"error": {"message", "type", "param", "code"}}`. Knows no framework.
"""

from __future__ import annotations

import math
from typing import Any

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    408: "timeout_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """A request that is refused. Becomes the response, never a traceback.

    retry_after: seconds, told to the client in `Retry-After`.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """`Retry-After` in whole seconds, where there is one."""
        if self.retry_after is None:
            return {}
        return {"Retry-After": str(max(1, math.ceil(self.retry_after)))}

    @property
    def body(self) -> dict[str, Any]:
        """The error object."""
        kind = TYPES.get(
            self.status, "server_error" if self.status >= 500 else "invalid_request_error"
        )
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }


def invalid(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """Status 400."""
    return ApiError(400, message, code, param)


def busy(message: str, retry_after: float, code: str = "rate_limit_exceeded") -> ApiError:
    """Status 429, with the seconds after which it is worth another try."""
    return ApiError(429, message, code, retry_after=retry_after)


def unavailable(message: str, code: str = "engine_unavailable") -> ApiError:
    """Status 503: it is this side's fault, and passes."""
    return ApiError(503, message, code, retry_after=2)
