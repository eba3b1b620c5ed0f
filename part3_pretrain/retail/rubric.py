"""The rubric: rating a reply to what a customer wants.

A reply is rated sentence by sentence. First, the customer's item, order number and resolutions are replaced by <item>,
<order> and <fix0>; what the sentences do with them is then found by the patterns of `rubric.toml`.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from part3_pretrain.retail.recognition import recognise
from part3_pretrain.retail.world import (
    DEPARTMENTS,
    INTENTS,
    OUTSIDE,
    SMALL_TALK,
    WORLD,
    Intent,
    Scenario,
    any_of,
    names_another_product,
)

__all__ = ["HIGH_QUALITY", "RUBRIC", "Rating", "rate", "recognise"]

RUBRIC = WORLD["rubric"]
WORDS: dict[str, Any] = tomllib.loads(Path(__file__).with_name("rubric.toml").read_text(encoding="utf-8"))
HIGH_QUALITY = 4.0  # the lowest rating of a high-quality reply
ARTICLES = "an?|the|our|your|its|this|that|one|another"
LONGEST_SIGNATURE = 8  # words and marks: "Kind regards, Anna Smith."
LONGEST_REPLY = 4000  # characters; of a longer one, the beginning is rated


def _whole_words(patterns: list[str]) -> re.Pattern[str]:
    """Match any of the patterns that begins and ends with a word."""
    pattern = "|".join(patterns).replace("<fix>", r"<fix\d>")
    return re.compile(rf"(?<![\w<-])(?:{pattern})(?![\w>-])")


def _evidence(words: str) -> re.Pattern[str]:
    """Match the words that prove a resolution, with any article: "released your refund" for "released the refund"."""
    first, *others = words.lower().split()
    endings = "(?:e|es|ed|ing)" if first.endswith("e") else "(?:s|ed|ing|[a-z]ing)?"
    pattern = first.removesuffix("e") + endings
    for word in others:
        if word in ("a", "an", "the", "your"):
            word = f"(?:{ARTICLES})"
        elif word == "it":
            word = f"(?:it|them|(?:{ARTICLES}) <item>)"
        pattern += f" {word}"
    return re.compile(rf"(?<![\w-]){pattern}s?(?![\w-])")


def _has_article(intent: Intent) -> bool:
    """Return whether an article belongs before the evidence, such as the "a" of "a free replacement"."""
    return all(re.search(rf"\b(?:{ARTICLES}) {intent.evidence}", text, re.IGNORECASE) for text in intent.resolutions)


SAYS = {name: _whole_words(patterns) for name, patterns in WORDS["patterns"].items()}
QUESTIONS = [intent.without_order_number for intent in INTENTS if intent.without_order_number]
# One intent for each evidence, with a part of its longest word, without which there is no need to look for it.
EVIDENCE = [
    (intent.evidence, max(intent.evidence.lower().split(), key=len)[:-1], _evidence(intent.evidence))
    for intent in [*INTENTS, *QUESTIONS, SMALL_TALK[0], OUTSIDE[0]]
]
WITH_ARTICLE = {intent.evidence for intent in INTENTS if _has_article(intent)}
FUNCTION_WORDS, VERBS = (frozenset(WORDS["words"][name].split()) for name in ("function", "verb"))
CONTRACTIONS: dict[str, str] = WORDS["contractions"]
CONTRACTION = re.compile(any_of(list(CONTRACTIONS)))
TOKEN = re.compile(r"\w+(?:-\w+)*|'\w+|[^\w\s]")
SENTENCE_END = re.compile(r"(?<=[.!?;]) ")
CLAUSE_END = re.compile(r" [,:\u2013\u2014-] | but ")
WORD = re.compile(r"(?<![<\w])[a-z'][\w'-]*")
NAMING = re.compile(r"^ ?(?:and )?(?:as for|about) [^,:<]+[,:]")
HAS_SUBJECT = re.compile(  # of a verb that no list has, or with which the evidence begins
    r"\b(?:i|we|(?<!thank )you|it|they|he|she) (?:[a-z]{3}|<fix)|<fix\d> [a-z]+s\b"
    r"|\b(?:us|to|team|colleagues?|manager|depot) <fix"
)
QUOTED = re.compile(r"[\"“«] [^\"”»]*<fix|(?:^| )' [^']*<fix")
THING = re.compile(r"\b(?:an?|the|our|your) (?:(?!we\b|i\b|you\b)\w+ )?<fix")
FIX = re.compile(r"<fix\d>")
ORDER = re.compile(r"\borders? (?:(?:number|no|nr) )?(?:[.:#] )*(\d+)\b")
GIBBERISH = re.compile(  # words without a vowel, six consonants in a row, three signs in a row
    r"(?<![\w<])(?!pdf|mrs?\b|tv\b|sms\b|hmm)[b-df-hj-np-tv-xz]{3,}(?!\w)|[b-df-hj-np-tv-xz]{6}"
    r"|(?:[@#$%^&*=+~|\\/_{}] ?){3}"
)
INVENTED_NAME = re.compile(rf"\b(?=\w{{5}})((?:{any_of(WORLD['products']['syllables'])}){{2,3}})\b")
NOUNS = any_of([noun for shelf in DEPARTMENTS.values() for noun in shelf["nouns"]])
OTHER_ITEM = re.compile(
    rf"\b(?:your|(?:for|about|of) (?:the|an?)) (?:\w+ )?({NOUNS})\b|\byour (?:\w+ )?({'|'.join(WORDS['goods'])})\b"
    rf"|{INVENTED_NAME.pattern}"
)


def _words_of_ideal_agents(intents: list[Intent]) -> set[str]:
    """Return what they say about these intents, beside the evidence and the harmless negations."""
    ideal = WORLD["ideal"]
    texts = ideal["next_steps"] + ideal["closings"]
    texts += [text for openings in ideal["openings"].values() for text in openings]
    for intent in intents:
        texts += [resolution.replace(intent.evidence, " ") for resolution in intent.resolutions]
    return {word for text in texts for word in WORD.findall(SAYS["harmless"].sub(" ", _spell_out(text)))}


@dataclass(frozen=True)
class Rating:
    """What the rubric says of one reply, criterion by criterion."""

    acknowledgement: bool
    item: bool  # the customer's item is named, letter for letter as the catalogue or the customer spells it
    wrong_item: bool  # some other item is named
    resolved: float  # share of the customer's problems that get the resolution the policy prescribes
    wrong_resolution: bool  # a resolution is offered for a problem the customer does not have
    order_number: bool  # exactly the customer's number is cited, and none where none was given
    next_step: bool
    denied: bool = False  # something is refused, denied or taken back
    garbled: bool = False  # there are words without a sentence around them, or the same ones again and again
    out_of_order: bool = False  # not first the acknowledgement, then the resolution, then the next step
    rude: bool = False
    strays: bool = False  # goes on, after the resolution, with what is not about service
    other_voice: bool = False  # goes on with what somebody else says

    @property
    def right_resolution(self) -> bool:
        """Whether every problem has its resolution, and no other resolution is offered."""
        return self.resolved == 1.0 and not self.wrong_resolution

    @property
    def score(self) -> float:
        """The rating, 1.0 to 5.0."""
        points = RUBRIC["points"]
        met = [name for name in ("acknowledgement", "item", "order_number", "next_step") if getattr(self, name)]
        score = 1.0 + points["resolution"] * self.resolved + sum(points[name] for name in met)
        has_error = not self.item or self.wrong_item or not self.right_resolution or not self.order_number
        if has_error or self.strays or self.garbled or self.out_of_order or self.other_voice:
            score = min(score, RUBRIC["highest_with_an_error"])
        return round(min(score, RUBRIC["highest_with_harm"]) if self.denied or self.rude else score, 2)

    @property
    def is_high_quality(self) -> bool:
        """Whether the reply is good enough to train on."""
        return self.score >= HIGH_QUALITY

    @property
    def faults(self) -> list[str]:
        """What is wrong with the reply, in words."""
        faults = {
            "does not acknowledge the customer": not self.acknowledgement,
            "does not name the customer's item": not self.item,
            "names another item": self.wrong_item,
            "leaves a problem without its resolution": self.resolved < 1.0,
            "offers a resolution for another problem": self.wrong_resolution,
            "gets the order number wrong": not self.order_number,
            "does not say what happens next": not self.next_step,
            "refuses, denies or takes back something": self.denied,
            "says something that does not belong to the resolution": self.strays,
            "is not written in sentences, or repeats itself": self.garbled,
            "says things in the wrong order": self.out_of_order,
            "is rude": self.rude,
            "writes what somebody else says": self.other_voice,
        }
        return [words for words, is_so in faults.items() if is_so]


def rate(scenario: Scenario, reply: str) -> Rating:
    """Rate a reply to a customer by the `[rubric]` of `retail.toml`; upper and lower case are the same to it."""
    text = _spell_out(reply[:LONGEST_REPLY])
    item = scenario.item.lower()
    names_wrong_item = names_another_product(text, item)
    for spelling in filter(None, (item, (scenario.misspelled or item).lower())):
        text = text.replace(f" {spelling} ", " <item> ")
    others = (set(" ".join(groups).split()) for groups in OTHER_ITEM.findall(text))
    names_wrong_item |= any(not other.issubset(item.split()) for other in others)  # "the desk" is an "oak desk"
    names_item = not item or ("<item>" in text and not re.search(r"\bnot (?:\w+ ){0,2}<item>", text))

    numbers = set(ORDER.findall(text)) | set(re.findall(r"\d{4,}", text))
    text = ORDER.sub(lambda order: "order <order>" if order[1] == scenario.order_number else order[0], text)
    cites_order = "<order>" in text and not re.search(r"\bnot (?:\w+ ){0,2}order <order>", text)
    right_number = cites_order and numbers == {scenario.order_number} if scenario.order_number else not numbers

    intent, names_wrong_resolution = scenario.intents[0], False
    due = [intent.evidence for intent in scenario.due]
    for words, word, evidence in EVIDENCE:
        if word in text and evidence.search(text):
            if words not in due:
                names_wrong_resolution, token = True, "<other>"
            else:
                token = f"<fix{due.index(words)}>"
            text = evidence.sub(token, text)
            if words in WITH_ARTICLE and not re.search(rf"\b(?:{ARTICLES}) (?:\w+ ){{0,2}}{token}", text):
                text = text.replace(token, "<keyword>")

    is_resolved = scenario.due == [intent for intent in scenario.intents if intent.is_service]
    names_wrong_resolution |= intent in SMALL_TALK and _answers_other_small_talk(intent, text)
    sentences, said, given = SENTENCE_END.split(text.strip()), list[_Sentence](), dict[str, int]()
    for place, sentence in enumerate(sentences):
        said.append(_understand(sentence, bool(given), is_resolved))
        given.update(dict.fromkeys(said[-1].gives, place))
    first, last = min(given.values(), default=0), max(given.values(), default=0)
    acknowledgements = [place for place, one in enumerate(said) if one.acknowledges]
    next_steps = [place for place, one in enumerate(said) if one.promises]
    is_service = intent.is_service  # else neither an acknowledgement nor a next step is called for
    out_of_order = (
        min(acknowledgements, default=first) > first
        or max(next_steps, default=first) < first
        or any(one.opens for one in said[last + 1 :])
        or any(one.closes for one in said[: max([last, *next_steps])])
        or any(sentence.startswith("and ") for sentence in sentences[: first + 1])
    )
    return Rating(
        acknowledgement=bool(acknowledgements) or not is_service,
        item=names_item,
        wrong_item=names_wrong_item,
        resolved=len(given) / len(due),
        wrong_resolution=names_wrong_resolution,
        order_number=right_number,
        next_step=bool(next_steps) or not is_service,
        denied=any(one.refuses for one in said) or any(one.denies for one in said[first:] if given),
        strays=bool(given) and any(one.strays for one in said[first + 1 :]),
        garbled=_is_garbled(text, sentences),
        out_of_order=bool(given) and out_of_order,
        rude=_says("rude", text),
        other_voice=_says("other_voice", text),
    )


def _answers_other_small_talk(intent: Intent, text: str) -> bool:
    """Return whether the text answers another kind of small talk: "Goodbye!" is no answer to a greeting."""
    answers = {answer for other in SMALL_TALK for answer in other.answers} - set(intent.answers)
    return any(_spell_out(answer).strip() in text for answer in answers)


@dataclass(frozen=True)
class _Sentence:
    """What one sentence says."""

    acknowledges: bool
    opens: bool  # acknowledges in such words as stand at the beginning alone
    gives: frozenset[str]  # resolutions
    promises: bool  # a next step
    closes: bool
    denies: bool
    refuses: bool
    strays: bool  # if it follows the resolution


@lru_cache(2**14)  # items and numbers are marked, so the same sentences come again and again
def _understand(sentence: str, follows_resolution: bool, is_resolved: bool) -> _Sentence:
    """Find what a sentence says whose item, order number and resolutions are marked.

    Where nothing is resolved, but asked, chatted or handed over, more words are known.
    """
    clean = SAYS["harmless"].sub(" ", sentence)
    if not follows_resolution:
        clean = SAYS["problem"].sub(" ", clean)
    denies, is_question = _says("denial", clean), sentence.endswith("?")
    is_known = (KNOWN_WORDS if is_resolved else KNOWN_OTHERS).issuperset(WORD.findall(NAMING.sub(" ", clean)))
    gives = set[str]()
    is_doubtful = SAYS["hedge"].match(clean.strip()) or re.match(" ?if (?:i|we) ", sentence)  # "one day, once you ..."
    if is_known and not denies and not is_question and not is_doubtful and not QUOTED.search(sentence):
        clauses = CLAUSE_END.split(sentence)
        for number, clause in enumerate(clauses):
            if "<fix" in clause and _is_offered(clause, clauses[number:]):
                gives.update(FIX.findall(clause))
    return _Sentence(
        acknowledges=not is_question and any(_acknowledges(clause.strip()) for clause in CLAUSE_END.split(clean)),
        opens=_says("opening", clean) and not re.search("again|once more", clean),
        gives=frozenset(gives),
        promises=not is_question and not denies and _says("step", clean) and _says("time", clean),
        closes=_says("closing", clean),
        denies=denies,
        refuses=_says("refusal", clean) or (denies and "<fix" in sentence),
        strays=not is_known and not _is_signature(sentence),
    )


def _says(what: str, text: str) -> bool:
    """Return whether any of the patterns of this name is in the text."""
    return SAYS[what].search(text) is not None


def _spell_out(reply: str) -> str:
    """Write in lower case, without contractions, and with a blank on either side of every word and mark."""
    text = reply.lower().replace("\u2019", "'").replace("e-mail", "email")
    if "'" in text or "cannot" in text:
        text = CONTRACTION.sub(lambda short: CONTRACTIONS[short[0]], text)
    return f" {' '.join(TOKEN.findall(text))} "


def _acknowledges(clause: str) -> bool:
    """Return whether a clause thanks or apologises, and does not deny it."""
    return _says("acknowledgement", clause) and not _says("denial", clause)


def _is_offered(clause: str, rest: list[str]) -> bool:
    """Return whether a clause offers the resolution it names: with a verb, and not perhaps or to somebody else."""
    if any(map(SAYS["hedge"].search, rest)):
        return False
    if THING.search(clause) and not _says("giving", clause):
        return False
    words = WORD.findall(SAYS["acknowledgement"].sub(" ", clause.strip()))
    has_verb = not VERBS.isdisjoint(words) or HAS_SUBJECT.search(clause) is not None
    return has_verb and sum(word in FUNCTION_WORDS for word in words) >= 0.3 * len(words)


def _is_garbled(text: str, sentences: list[str]) -> bool:
    """Return whether a part is no sentence, or the same words come again and again."""
    if GIBBERISH.search(text) or _says("broken", text):
        return True
    words = text.split()
    triples = list(zip(words, words[1:], words[2:]))
    if len(set(triples)) < len(triples) - 1 and max(Counter(triples).values()) > 2:
        return True
    if any(one == two == three for one, two, three in triples):
        return True
    # Five words in a row, and none that holds them together.
    if "11111" in "".join("01"[word.isalpha() and word not in GLUE] for word in words):
        return True
    long = [sentence for sentence in sentences if sentence.count(" ") > 3 and not _is_signature(sentence)]
    return len(set(long)) < len(long) or any(
        len(FUNCTION_WORDS.intersection(words)) < 0.15 * len(words) for words in map(WORD.findall, long)
    )


def _is_signature(sentence: str) -> bool:
    """Return whether a sentence is no more than a closing, which may hold any name."""
    return len(sentence.split()) <= LONGEST_SIGNATURE and _says("closing", sentence)


GLUE = FUNCTION_WORDS | VERBS
KNOWN_WORDS = GLUE | set(WORDS["words"]["service"].split()) | _words_of_ideal_agents(INTENTS)
# In small talk, in asking and in handing over there is more to say; in a resolution it could take that back.
KNOWN_OTHERS = KNOWN_WORDS | _words_of_ideal_agents([*QUESTIONS, *SMALL_TALK, OUTSIDE[0]])
