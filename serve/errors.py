"""Every error of the endpoint as OpenAI's error object; messages never repeat what was sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from stetholm.audio.decode import AudioError
from stetholm.serving.engine import EngineBusy, RequestError
from stetholm.serving.types import BadBase64, ErrorBody, ErrorResponse

RETRY_AFTER_S = 2
_MAX_MESSAGE = 500


class ApiError(Exception):
    """An answer that is an error."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """``code``: machine-readable, e.g. ``model_not_found``. ``param``: which parameter is at fault."""
        super().__init__(message)
        self.status, self.code, self.param, self.headers = status, code, param, dict(headers or {})


def overloaded(message: str, code: str = "overloaded") -> ApiError:
    """503 with Retry-After: the request was good, the moment was not."""
    return ApiError(503, message, code=code, headers={"Retry-After": str(RETRY_AFTER_S)})


def error_type(status: int) -> str:
    """OpenAI's ``type`` for a status."""
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"


def error_response(error: ApiError) -> JSONResponse:
    """The error as JSON. Lone surrogates, which a client can smuggle into a field's name, are replaced."""
    message, param = (_clean(text) for text in (str(error), error.param))
    body = ErrorBody(message=message or "", type=error_type(error.status), param=param, code=error.code)
    return JSONResponse(ErrorResponse(error=body).model_dump(), error.status, error.headers)


def _clean(text: str | None) -> str | None:
    return None if text is None else text[:_MAX_MESSAGE].encode("utf-8", "replace").decode()


def of_validation(error: RequestValidationError) -> ApiError:
    """400 for a body that is no JSON, 422 for one with wrong contents; the first fault is named."""
    first: dict[str, Any] = error.errors()[0]
    if first["type"] == "json_invalid":
        return ApiError(400, "the request body is not valid JSON", code="invalid_json")
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "union_tag_invalid":  # pydantic's own message repeats the tag that was sent
        message = f"unknown type: expected {first['ctx']['expected_tags']}"
    return ApiError(422, f"{place}: {message}" if place else message, code=first["type"], param=place or None)


def of_exception(error: Exception) -> ApiError:
    """The answer to any exception that says what the client did wrong, or that we are busy."""
    # An exception from a replica carries the original as its cause; its own message holds a traceback.
    error = getattr(error, "cause", None) or error
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        return of_validation(error)
    if isinstance(error, AudioError):
        return ApiError(415, str(error), code="unusable_audio", param="audio")
    if isinstance(error, BadBase64):
        return ApiError(400, str(error), code="invalid_base64", param="messages")
    if isinstance(error, RequestError):
        return ApiError(400, str(error), code="context_length_exceeded")
    if isinstance(error, EngineBusy):
        return overloaded("the model is busy")
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail), headers=error.headers)
    return ApiError(500, "internal error", code="internal_error")


def install(app: FastAPI) -> None:
    """Make ``app`` answer every exception with an error object."""

    async def handle(_: Request, error: Exception) -> JSONResponse:
        return error_response(of_exception(error))

    kinds = (
        ApiError,
        RequestValidationError,
        AudioError,
        BadBase64,
        RequestError,
        EngineBusy,
        HTTPException,
        Exception,
    )
    for kind in kinds:
        app.add_exception_handler(kind, handle)
