"""What `mine` may be told."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from preftune.config import Config


class MiningSettings(Config):
    """Which commits and functions are taken."""

    revision: str = Field("HEAD", description="The branch, tag or commit whose history is read.")
    since: str | None = Field(None, description="Leave out commits before this date, such as 2024-01-31.")
    all_commits: bool = Field(False, description="Take every commit, not only those that speak of a review, a fix-up or style.")
    keep_format: bool = Field(False, description="Keep changes of layout and comments alone, as kind mined:format.")
    exclude_authors: tuple[str, ...] = Field((), description='Authors to leave out: a name, an address, or "@" and a domain.')
    opt_out: Path | None = Field(None, description="A file of addresses, or their sha256, besides .preftune-optout in the repository.")
    min_lines: int = Field(3, ge=1, description="Shortest function, in lines.")
    max_lines: int = Field(80, ge=1, description="Longest function, in lines.")
    max_tokens: int = Field(1024, ge=16, description="Longest function, in tokens, estimated at 3.5 characters each.")
    run_tests: str | None = Field(None, description="A command that runs the tests, before and after. It runs code of the repository.")
    test_seconds: float = Field(600.0, gt=0, description="Longest time of one run of the tests.")
