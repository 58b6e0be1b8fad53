"""What a text looks like, and which language it seems to be in."""

from __future__ import annotations

from collections import Counter

import pytest

from preftune.data.checks.language import guess_language
from preftune.data.checks.surface import FEATURES, surface


@pytest.mark.parametrize(
    ("text", "features"),
    [
        ("A plain sentence.", set()),
        ("", set()),
        ("```python\n# not a heading\n- 1\n```", {"code block"}),
        ("Do:\n- this\n- that", {"list"}),
        ("Do:\n1. this\n2) that", {"list"}),
        ("## Title\ntext", {"heading, or line with #"}),
        ("#hashtag and - no list", set()),
        ("| a | b |\n|---|---|", {"table"}),
        ("It is **bold**.", {"bold text"}),
        ("See https://a.b/c", {"link"}),
        ("Fine 🎉", {"emoji"}),
        ("“Quotes” — and dashes…", set()),
        ("Great!", {"exclamation mark"}),
        ("```\nassert a != b\n```\nDone.", {"code block"}),
        ("Is it? ", {"question at the end"}),
        ("One.\n\nTwo.", {"several paragraphs"}),
        ("I’m sorry, but I can’t help with that.", {"refusal", "apology"}),
        ("As an AI model, no.", {"refusal"}),
        ("word " * 90 + "I cannot", set()),
        ("Sure, here it is.", {'opening such as "Sure!"'}),
        ("Surely not.", set()),
        ("Here's the code.", {'opening such as "Sure!"'}),
        ("Here. Hope this helps", {"offer at the end"}),
    ],
)
def test_each_feature_is_seen_where_it_is(text: str, features: set[str]) -> None:
    assert {name for name, has in zip(FEATURES, surface(text), strict=True) if has} == features


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "How do I open a file and read all of its lines?"),
        ("en", "Write a function `camel(name)` that turns a snake case name such as `file_name` into `FileName`."),
        ("de", "Wie kann ich eine Datei öffnen und alle Zeilen lesen?"),
        ("fr", "Comment puis-je ouvrir un fichier et lire toutes les lignes avec Python ?"),
        ("es", "¿Cómo puedo abrir un archivo y leer todas las líneas?"),
        ("it", "Come posso aprire un file e leggere tutte le righe?"),
        ("pt", "Como posso abrir um arquivo e ler todas as linhas?"),
        ("nl", "Hoe kan ik een bestand openen en alle regels lezen?"),
        ("sv", "Hur kan jag öppna en fil och läsa alla rader?"),
        ("pl", "Jak mogę otworzyć plik? Nie wiem, co to jest."),
        ("ru", "Как я могу открыть файл и прочитать все строки?"),
        ("uk", "Як мені відкрити файл? Я не знаю, що це таке."),
        ("ja", "Pythonでファイルを開くにはどうすればよいですか"),
        ("zh", "如何在Python中打开文件？"),
        ("ko", "파이썬에서 파일을 여는 방법을 알려 주세요"),
        ("ar", "كيف يمكنني فتح ملف في بايثون؟"),
        ("fa", "چگونه می‌توانم یک فایل را باز کنم؟"),
        ("he", "איך אני פותח קובץ?"),
        ("el", "Πώς μπορώ να ανοίξω ένα αρχείο;"),
        ("hi", "मैं फ़ाइल कैसे खोलूँ?"),
        ("th", "ฉันจะเปิดไฟล์ได้อย่างไร"),
        ("code", "def f(x):\n    return x\n"),
        ("code", "```python\nx = 1\n```"),
        ("?", "sorted(items)"),
        ("?", ""),
        ("?", "Москва"[:0] + "12 34 56"),
        ("en", "What is the meaning of Москва in this text?"),
    ],
)
def test_a_language_is_guessed(language: str, text: str) -> None:
    assert guess_language(text) == language


def test_real_english_is_hardly_ever_taken_for_another_language(shared_data) -> None:
    import gzip
    import json

    with gzip.open(shared_data("hh_harmless_test.jsonl.gz"), "rt", encoding="utf-8") as file:
        answers = [json.loads(line)["chosen"].rpartition("Assistant:")[2].strip() for line in file]
    found = Counter(map(guess_language, answers))
    assert found["en"] > 0.6 * len(answers)
    assert len(answers) - found["en"] - found["?"] < 0.005 * len(answers)
