"""An MLflow server over its REST API (2.0), as far as a run's metrics, settings and tags go.  Blocking; with the standard library.

The client library is no dependency: of its file store MLflow itself refuses new runs, for SQLite it needs the whole package, and
what is left of it here are seven requests.  Who logs in says so as with that library: MLFLOW_TRACKING_TOKEN, or
MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; MLFLOW_TRACKING_SERVER_CERT_PATH names a certificate of one's own.
"""

from __future__ import annotations

import base64
import json
import math
import os
import re
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

# Of one request, without an answer in between.
TIMEOUT_S = 10.0
# What a server takes in one request, and of one setting (6,000 in newer ones).
MAX_METRICS, MAX_PARAMS, MAX_VALUE = 1000, 100, 500
_PAGE = 25_000
_ABSENT, _THERE = "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"


class UnreachableServerError(Exception):
    """No answer, or that it cannot answer now: it may later."""


class RefusedError(Exception):
    """An answer that will not change; `code` is MLflow's word for it."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, kw_only=True)
class Point:
    """One figure.  time_ms: since 1970."""

    key: str
    value: float
    step: int
    time_ms: int


@dataclass(frozen=True, kw_only=True)
class Server:
    """url: http(s)://HOST:PORT, with a path where it is behind one."""

    url: str

    def experiment(self, name: str) -> str:
        """The id of an experiment, which is made if absent."""
        try:
            return self._named(name)
        except RefusedError as error:
            if error.code != _ABSENT:
                raise
        try:
            return str(self._call("POST", "experiments/create", {"name": name})["experiment_id"])
        except RefusedError as error:
            if error.code != _THERE:  # made by another run in this moment
                raise
            return self._named(name)

    def _named(self, name: str) -> str:
        found = self._call("GET", "experiments/get-by-name", {"experiment_name": name})
        return str(found["experiment"]["experiment_id"])

    def create_run(self, experiment: str, name: str, start_ms: int, tags: Mapping[str, str]) -> str:
        body = {"experiment_id": experiment, "run_name": name, "start_time": start_ms, "tags": _pairs(tags)}
        return str(self._call("POST", "runs/create", body)["run"]["info"]["run_id"])

    def find_run(self, experiment: str, tag: str, value: str) -> str | None:
        """A run that has this tag, and was not deleted."""
        quoted = value.replace("'", "\\'")
        body = {"experiment_ids": [experiment], "filter": f"tags.`{tag}` = '{quoted}'", "max_results": 1}
        runs = self._call("POST", "runs/search", body).get("runs", [])
        return str(runs[0]["info"]["run_id"]) if runs else None

    def params(self, run: str) -> dict[str, str] | None:
        """The settings that a run has; None where there is no such run.  Raises RefusedError for one that was deleted."""
        try:
            found = self._call("GET", "runs/get", {"run_id": run})["run"]
        except RefusedError as error:
            if error.code == _ABSENT:
                return None
            raise
        if found["info"].get("lifecycle_stage") == "deleted":
            raise RefusedError(f"run {run} was deleted there")
        return {param["key"]: param["value"] for param in found["data"].get("params", [])}

    def update(self, run: str, status: str, end_ms: int | None = None) -> None:
        ended = {} if end_ms is None else {"end_time": end_ms}
        self._call("POST", "runs/update", {"run_id": run, "status": status, **ended})

    def log_params(self, run: str, params: Mapping[str, Any]) -> None:
        """Settings as text, a long one cut.  One that is there already must be the same."""
        pairs = [{"key": parameter_key(key), "value": str(value)[:MAX_VALUE]} for key, value in params.items()]
        for first in range(0, len(pairs), MAX_PARAMS):
            self._call("POST", "runs/log-batch", {"run_id": run, "params": pairs[first : first + MAX_PARAMS]})

    def log_points(self, run: str, points: Sequence[Point]) -> None:
        """At most MAX_METRICS.  Told twice they are there once."""
        metrics = [
            {"key": point.key, "value": _number(point.value), "step": point.step, "timestamp": point.time_ms}
            for point in points
        ]
        self._call("POST", "runs/log-batch", {"run_id": run, "metrics": metrics})

    def log_tags(self, run: str, tags: Mapping[str, str]) -> None:
        self._call("POST", "runs/log-batch", {"run_id": run, "tags": _pairs(tags)})

    def steps(self, run: str, key: str) -> Iterator[int]:
        """At which a figure was told."""
        token = ""
        while True:
            page = {"page_token": token} if token else {}
            query = {"run_id": run, "metric_key": key, "max_results": _PAGE, **page}
            found = self._call("GET", "metrics/get-history", query)
            yield from (int(metric.get("step", 0)) for metric in found.get("metrics", []))
            token = found.get("next_page_token", "")
            if not token:
                return

    def _call(self, verb: str, path: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        url, data = f"{self.url.rstrip('/')}/api/2.0/mlflow/{path}", None
        headers = {"Accept": "application/json", **_login(os.environ)}
        if verb == "GET":
            url += f"?{urllib.parse.urlencode(fields)}"
        else:
            data = json.dumps(fields, allow_nan=False).encode()
            headers["Content-Type"] = "application/json"
        request = urllib.request.Request(url, data=data, headers=headers, method=verb)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=_certificates(os.environ)) as answer:
                found = json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as error:
            with error:
                raise _failure(path, error) from error
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise UnreachableServerError(str(reason) or type(reason).__name__) from error
        except ValueError as error:
            raise RefusedError(f"{path}: the answer is no JSON; is it an MLflow server?") from error
        return found if isinstance(found, dict) else {}


def parameter_key(name: str) -> str:
    """The name of a setting in the letters that a server takes."""
    return re.sub(r"[^A-Za-z0-9_\-. /:]", "_", name)


def _failure(path: str, error: urllib.error.HTTPError) -> Exception:
    body = error.read()
    if error.code >= 500 or error.code == 429:
        return UnreachableServerError(f"HTTP {error.code}")
    try:
        told = json.loads(body)
        message = " ".join(str(told["message"]).split())
        return RefusedError(f"{path}: {message[:200]}", str(told["error_code"]))
    except (ValueError, KeyError, TypeError):
        return RefusedError(f"{path}: HTTP {error.code}")


def _login(environment: Mapping[str, str]) -> dict[str, str]:
    token, user = (environment.get(f"MLFLOW_TRACKING_{name}") for name in ("TOKEN", "USERNAME"))
    if user is not None:
        words = f"{user}:{environment.get('MLFLOW_TRACKING_PASSWORD', '')}".encode()
        return {"Authorization": f"Basic {base64.b64encode(words).decode()}"}
    return {"Authorization": f"Bearer {token}"} if token else {}


def _certificates(environment: Mapping[str, str]) -> ssl.SSLContext | None:
    own = environment.get("MLFLOW_TRACKING_SERVER_CERT_PATH")
    return ssl.create_default_context(cafile=own) if own else None


def _pairs(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in values.items()]


def _number(value: float) -> float | str:
    """JSON has no words for these; protobuf's JSON, which the API speaks, does."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
