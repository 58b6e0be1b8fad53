"""A project whose store is PostgreSQL is served: many users speak at once, change their words, and the commands read them."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import pytest
from tests.serving_site import listening

from preftune._cli_serve import _desk
from preftune.cli import main
from preftune.data.feedback import expire, rows_since
from preftune.data.store import Store
from preftune.models.load import load_causal_lm, load_renderer
from preftune.release.serving.app import Service
from preftune.release.serving.arms import Arm, Split


@pytest.fixture
def project(tmp_path, monkeypatch, fresh_postgres):
    address = fresh_postgres()
    (tmp_path / "preftune.yaml").write_text(f"store: {address}\n")
    Store.create(address).close()
    monkeypatch.chdir(tmp_path)
    return address


def test_what_users_say_lands_in_the_projects_postgresql_store(project, tiny_model_folder, capsys):
    model, renderer = load_causal_lm(tiny_model_folder).requires_grad_(False).eval(), load_renderer(tiny_model_folder)
    desk = _desk(None, 30, None)
    assert desk is not None
    service = Service([Arm(model, renderer, name) for name in ("new", "old")], split=Split(("new", "old"), 0.5), desk=desk)
    with listening(service) as port, httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
        consent = http.get("/v1/feedback").json()["consent"]["id"]

        def user(number: int) -> list[bool]:
            asked = {"messages": [{"role": "user", "content": f"Sort list {number % 3}."}], "max_tokens": 16, "user": f"u{number}"}
            reply = {"choices": [{"message": {"content": ""}}]}
            while not reply["choices"][0]["message"]["content"].strip():  # an empty answer is not one to judge; the next draw is another
                reply = http.post("/v1/chat/completions", json=asked).json()
            word = {"answers": [{"id": reply["id"]}], "consent": consent, "user": f"u{number}"}
            said = [http.post("/v1/feedback", json={**word, "thumb": thumb}) for thumb in ("up", "up", "down")]
            assert [one.status_code for one in said] == [200] * 3, said[-1].text
            return [bool(one.json()["new"]) for one in said]

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(user, range(16))) == [[True, False, True]] * 16
        results = http.get("/v1/ab").json()
    desk.store.close()
    with Store.open(project) as store:
        rows = rows_since(store)
        assert (len(rows), {row.kind for row in rows}, len({row.rater for row in rows})) == (16, {"thumb"}, 16)
        assert not Path("store.db").exists()
    with pytest.raises(SystemExit) as end:
        main(["feedback", "--json"])
    assert end.value.code == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["words"], told["raters"], told["expired"]) == ({"thumb": 16}, 16, 0)
    (split,) = told["splits"]
    assert (split["a"]["users"] + split["b"]["users"], split["a"]["down"] + split["b"]["down"]) == (16, 16)
    assert [results["split"][side]["users"] for side in ("a", "b")] == [split[side]["users"] for side in ("a", "b")]
    with Store.open(project) as store:
        gone = expire(store, datetime.now(UTC) + timedelta(days=31))
        assert (gone.words, gone.changed) == (16, 16)  # each said two things
        assert store.counts() == {"prompts": 0, "candidates": 0, "judgements": 0, "demonstrations": 0}
