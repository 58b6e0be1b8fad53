"""Endpoints: models behind an OpenAI-style URL, as the owner of a project names them in preftune.yaml.

label:
  endpoints:
    - {name: local, url: "http://127.0.0.1:8080/v1", model: qwen, allow_private: true}
    - {name: hosted, url: "https://api.example.com/v1", model: large, api_key_env: EXAMPLE_KEY}
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import httpx2
import yaml
from pydantic import Field, field_validator

from preftune.config import Config, check_config
from preftune.errors import ConfigError


class Endpoint(Config):
    """A model that is served at an OpenAI-style URL."""

    name: str = Field(min_length=1, max_length=100, description="what you call it")
    url: str = Field(max_length=2000, description="the API's base, such as http://127.0.0.1:8080/v1; /chat/completions is added")
    model: str = Field(min_length=1, max_length=200, description="the model's name at that server")
    api_key_env: str | None = Field(None, description="the environment variable that holds the key; the key itself stands in no file")
    allow_private: bool = Field(False, description="whether the address may be on this machine or in a private network")
    timeout_seconds: float = Field(120.0, gt=0, le=3600, description="longest silence of the server")
    concurrency: int = Field(4, ge=1, le=64, description="requests under way at once")
    limit_key: Literal["max_tokens", "max_completion_tokens"] = Field(
        "max_tokens", description="how the server calls the limit on an answer's tokens"
    )

    @field_validator("url")
    @classmethod
    def _plain_http(cls, url: str) -> str:
        return plain_http(url)

    @property
    def where(self) -> str:
        """How errors name it."""
        return f'endpoint "{self.name}"'

    def key(self) -> str | None:
        """Return the key from the environment, or None where it needs none. Raises ConfigError, without the key, where it is no good."""
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ConfigError(f"the environment variable {self.api_key_env} holds no key", self.where, "Set it, then try again.")
        if not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError(
                f"the key in {self.api_key_env} holds a character that no key has", self.where, "Copy it again, without quotes."
            )
        return key

    def without_key(self, text: str) -> str:
        """Return a text in which the key, should a server repeat it, is hidden."""
        key = os.environ.get(self.api_key_env, "").strip() if self.api_key_env else ""
        return text.replace(key, "[key]") if key else text


def plain_http(url: str) -> str:
    """Return the URL of an API as it is. Raises ValueError, or ConfigError where it holds a password, for what is none."""
    if any(letter.isspace() or not letter.isprintable() for letter in url):
        raise ValueError("a URL holds no white space and no control characters")
    try:
        parts = urlsplit(url)
        _ = parts.port
        httpx2.URL(url)
    except (ValueError, httpx2.InvalidURL) as error:
        raise ValueError(f"this is no URL ({error})") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("write a URL that begins with http:// or https://")
    if parts.username is not None or parts.password is not None:
        # Not a ValueError, since pydantic's error would show the URL.
        fix = "Put the key into an environment variable and name that in api_key_env."
        raise ConfigError(f"the URL of {parts.hostname} holds a name or a password", "an endpoint", fix)
    if parts.fragment:
        raise ValueError("a URL of an API has no #fragment")
    return url


def read_endpoints(path: Path) -> list[Endpoint]:
    """Return the endpoints of a project file: the list `endpoints` below `label`, or at the top. None where there is no such list."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"this is not YAML ({' '.join(str(error).split())})", str(path), "Mend the line named.") from error
    content = content if isinstance(content, dict) else {}
    label = content.get("label")
    listed = content.get("endpoints") or (label.get("endpoints") if isinstance(label, dict) else None) or []
    if not isinstance(listed, list) or not all(isinstance(values, dict) for values in listed):
        raise ConfigError('key "endpoints" is no list of endpoints', str(path), "Write for each: name, url, model, api_key_env.")
    return [check_config(Endpoint, values, where=f"{path}, endpoint {number}") for number, values in enumerate(listed, start=1)]
