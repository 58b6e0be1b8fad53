"""A guess at the language of a text, by its script and by its most common words; light, and no more than a guess.

It looks at the first 240 characters and answers with an ISO 639-1 code, "code" for program text, or "?" where too little speaks for any:
short texts, names, mixed ones, and languages that are not listed. It is meant to find answers in another language than the question, and
which languages a set has; not to sort texts.
"""

from __future__ import annotations

import re

LOOKED_AT_CHARACTERS = 240
UNKNOWN, CODE = "?", "code"
LEAST_WORDS = 2  # so many of a language's common words must be there,
CLEARLY = 1.5  # and so many times as many as of any other

# The commonest short words of each language; those that several share count for each of them.
_COMMON = {
    "en": (
        "the of and to in is you that it for was on are as with they be this have from or what how can my your do not we i a an at by he "
        "she his her him me us our so no if but all any there their them who when where why which will would could should did does don has "
        "had were been am im one out up about more some like get just then than too also into over very"
    ),
    "de": "der die das und ist ich nicht ein eine zu den von mit sich auf für es wie dem im auch wir was sie kann mein ihr bei",
    "fr": "le la les de des et est un une je que qui dans pour pas vous sur avec ce il elle nous comment mon votre sont au du",
    "es": "el la los las de y es un una que en no se por con para como mi su qué cómo puedo del al lo más está son",
    "it": "il lo la gli le di e è un una che in non per con come mi si sono della del questo posso cosa ho nel alla",
    "pt": "o a os as de e é um uma que em não se por com para como meu minha do da no na são mais você está ao",
    "nl": "de het een en van is ik niet dat die in op te zijn met voor hoe wat mijn je kan naar er ook maar aan",
    "sv": "och att det är en ett jag inte som på för av med den har hur vad kan du till min om vi de",
    "da": "og at det er en et jeg ikke som på for af med den har hvordan hvad kan du til min om vi de",
    "pl": "i w nie na się jest to że z do jak co mam jestem czy dla mój moja po od za ale są tak",
    "cs": "a je se na že to v s do jak co jsem není pro můj moje po od za ale jsou tak by ve",
    "tr": "ve bir bu için ne nasıl ben mi da de ile çok var benim olan gibi daha değil en o",
    "id": "dan yang di untuk dengan ini itu saya tidak apa bagaimana dari ke pada adalah bisa anda akan dalam ada",
    "vi": "và là của có không tôi cho một được những này trong với người như các để thế nào gì",
    "ru": "и в не на что я с как это по но из у за то все так он мне для от мой мы вы",
    "uk": "і в не на що я з як це по але та у за то все так він мені для від мій ми ви є",
}
_OF_WORD: dict[str, tuple[str, ...]] = {}
for _language, _words in _COMMON.items():
    for _word in _words.split():
        _OF_WORD[_word] = (*_OF_WORD.get(_word, ()), _language)

_SCRIPTS = {
    "ja": re.compile("[\u3040-\u30ff]"),
    "ko": re.compile("[\uac00-\ud7af]"),
    "zh": re.compile("[\u4e00-\u9fff]"),
    "ar": re.compile("[\u0600-\u06ff]"),
    "he": re.compile("[\u0590-\u05ff]"),
    "hi": re.compile("[\u0900-\u097f]"),
    "th": re.compile("[\u0e00-\u0e7f]"),
    "el": re.compile("[\u0370-\u03ff]"),
}
_ANY_SCRIPT = re.compile("[\u0370-\u03ff\u0590-\u06ff\u0900-\u097f\u0e00-\u0e7f\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]")
_PERSIAN = re.compile("[پچژگ]")
_WORD, _ASCII_WORD = re.compile(r"[^\W\d_]+"), re.compile("[a-z]+")
_CODE_LINE = re.compile(
    r"^\s*(?:def |class |import |from \w+ import |return\b|const |let |var |function |#include|public |[\w.]+\(.*\)[;:]?$)", re.M
)


def guess_language(text: str) -> str:
    """Return the likely language of a text: an ISO 639-1 code, "code", or "?"."""
    part = text[:LOOKED_AT_CHARACTERS]
    if not part.isascii() and _ANY_SCRIPT.search(part):
        found = _by_script(part)
        if found:
            return found
    if part.startswith("```") or ("\n" in part and len(_CODE_LINE.findall(part)) >= 2):
        return CODE
    words = (_ASCII_WORD if part.isascii() else _WORD).findall(part.lower())
    hits: dict[str, int] = {}
    for languages in filter(None, map(_OF_WORD.get, words)):
        for language in languages:
            hits[language] = hits.get(language, 0) + 1
    if not hits:
        return UNKNOWN
    best = max(hits, key=hits.__getitem__)
    most = hits.pop(best)
    # Short words of one language are words of another, too, so the best must stand out.
    if most < max(LEAST_WORDS, len(words) / 10) or most < CLEARLY * max(hits.values(), default=0):
        return UNKNOWN
    return best


def _by_script(part: str) -> str:
    counts = {language: len(script.findall(part)) for language, script in _SCRIPTS.items()}
    letters = sum(map(len, _WORD.findall(part)))
    if sum(counts.values()) * 3 < letters:  # a foreign name or a formula in other text
        return ""
    if counts["ja"] * 10 >= counts["zh"] and counts["ja"]:
        return "ja"  # kana among Chinese characters
    language = max(counts, key=counts.__getitem__)
    return "fa" if language == "ar" and _PERSIAN.search(part) else language
