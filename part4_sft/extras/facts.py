"""What a text states, of any data: numbers, amounts, dates, addresses, names.

A fact is a number of two digits or more, an amount of money or a percentage, a date or a time, an address (e-mail, web,
street), or a name: quoted, or capitalised within a sentence. Months and streets are read in English and German. Two
facts are the same by what they say, not by their spelling: "$1,299.00" is "1299 EUR", and "3rd of May" is in
"2024-05-03".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

KINDS = ("number", "amount", "date", "address", "name")
LONGEST_NAME = 6  # words in quotes; more are a quotation
CACHE_SIZE = 2**14  # texts; a context is read for every reply to it
BLANK = "\0"  # stands for what has been read
PLAIN_MARKS = {ord(mark): plain for plain, marks in {"'": "‘’", '"': "“”„«»", "-": "–—"}.items() for mark in marks}  # noqa: RUF001


class Fact(NamedTuple):
    """What a text says; another text says it too if that offers all words of one of the keys that are wanted."""

    kind: str
    text: str
    wanted: frozenset[str]
    offered: frozenset[str]


MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
GERMAN_MONTHS = {"mär": "mar", "mai": "may", "okt": "oct", "dez": "dec"}
MONTH = (
    r"(?P<month>jan(?:uary|uar)?|feb(?:ruary|ruar)?|mar(?:ch)?|märz|apr(?:il)?|may|mai|june?|juni|july?|juli"
    r"|aug(?:ust)?|sept?(?:ember)?|o[ck]t(?:ober)?|nov(?:ember)?|de[cz](?:ember)?)\b\.?"
)
DAY, YEAR = r"(?P<day>\d\d?)(?:st|nd|rd|th|\.(?=\s))?", r"(?P<year>\d{4})\b"
HALF = r"(?P<half>am|pm|a\.m\.|p\.m\.)(?!\w)"
PERCENT = r"%|per ?cent\b|prozent\b"
CURRENCY = r"(?:US\$|[$€£¥₹]|(?<![^\W\d_])(?:USD|EUR|GBP|CHF|dollars?|euros?|pounds?|francs?)\b)"
DECIMALS = r"(?:[.,]\d{1,2})?(?!\d)"
FIGURE = rf"((?:\d{{1,3}}(?:[.,' ]\d{{3}}){{1,4}}|\d+){DECIMALS})"
PATH = r"[^\s<>()\"'\0]"
WEB = (
    rf"(?<![\w.-])(?:(?:https?://|www\.){PATH}+"
    rf"|(?:[\w-]+\.)+(?:(?:com|org|net|info|shop|eu|io|de|at|ch|fr|uk|us)\b|[a-z]{{2,}}(?=/))(?:/{PATH}*)?)"
)
ROADS = {"street": "st", "road": "rd", "avenue": "ave", "lane": "ln", "drive": "dr", "square": "sq", "place": "pl"}
ROAD = "|".join([*ROADS, *ROADS.values(), "way", "court", "close"])
STREET = rf"\b\d{{1,5}}[a-z]? (?:[A-Z][\w'.-]{{0,30}} ){{1,3}}(?i:{ROAD})\b"
GERMAN_STREET = (
    r"\b[A-ZÄÖÜ][\w-]{0,30}(?:(?: S|s)(?:traße|trasse|tr\.)|weg|platz|allee|gasse|ring|damm|ufer) \d{1,4} ?[a-z]?\b"
)
QUOTED = r"\"([^\"\n]{2,60})\"|(?<!\w)'([^'\n]{2,60})'(?!\w)"
PLACEHOLDER = re.compile(r"\{\{[^{}\n]{1,60}\}\}|\[[A-Z][\w /]{0,60}\](?!\()|\b24[/-]7\b")  # and an idiom
LIST_NUMBER = re.compile(r"(?:^|(?<=\n)|(?<=[:;.!?] ))[ \t]*\d{1,2}[.)](?=\s)")
UNIT = re.compile(r"(\d+)(?:st|nd|rd|th|h|hrs?|min|s|x|k|mm|cm|m|km|mg|g|kg|ml|l|kb|mb|gb|tb|w|v|p)")
WORD = re.compile(r"[^\W\d_]+(?:[-'][^\W\d_]+)*")
SENTENCE_END = re.compile(r"(?:^|[.!?:;…\n•*|(\[>-])[\s\"'*_#)\]]*$")
ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|No|Nr|Hr|Fr)\.\s*$")
NO_NAMES = """monday tuesday wednesday thursday friday saturday sunday january february march april may june july august
september october november december mon tue wed thu fri sat sun mr mrs ms dr prof sir madam dear hi hello hey thanks
thank best kind regards sincerely yours ok faq pdf sms id pin vat usd eur gbp am pm kb mb gb tb"""
NOT_NAMED = frozenset(NO_NAMES.split())


def fold(text: str) -> str:
    """Return a text's words in lower case with blanks between them, so that neither case nor marks matter."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def value(figure: str) -> str:
    """Return "1299.5" for "1,299.50", "1.299,50" and "1299.5": what stands before three digits is no decimal mark."""
    whole, decimals = re.fullmatch(r"(.*?)(?:[.,](\d{1,2}))?", figure).groups()  # type: ignore[union-attr]
    digits = re.sub(r"\D", "", whole)
    return f"{digits}.{decimals}".rstrip("0").rstrip(".") if decimals else digits


def make_fact(kind: str, text: str, *keys: str, also: Iterable[str] = ()) -> Fact:
    """Make a fact that is wanted by its keys, and that offers others as well."""
    return Fact(kind, text.strip(), frozenset(keys), frozenset(keys) | frozenset(also))


def _address(match: re.Match[str]) -> list[Fact]:
    text = match[0].rstrip("/.,;:!?")
    key = re.sub(r"^(?:https?://)?(?:www\.)?", "", text.casefold())
    return [make_fact("address", text, key, also=[key.rpartition("@")[2].partition("/")[0]])]


def _street(match: re.Match[str]) -> list[Fact]:
    words = [ROADS.get(word, word) for word in match[0].casefold().replace("str.", "strasse").split()]
    return [make_fact("address", match[0], "".join(words))]


def _quoted(match: re.Match[str]) -> list[Fact] | None:
    words = fold(match[1] or match[2]).split()
    is_name = 0 < len(words) <= LONGEST_NAME and not any(map(str.isdigit, match[0]))
    return [make_fact("name", match[0], "_".join(words))] if is_name else None


def _day(text: str, *days: tuple[str, int, int]) -> list[Fact] | None:
    """Return a date that may be any of the days (year, month, day), whose year may be ""; None where no day is one."""
    wanted, offered = set[str](), set[str]()
    for year, month, day in days:
        if 1 <= month <= 12 and 1 <= day <= 31:
            short, any_year = f"{month:02}-{day:02}", f"?-{month:02}-{day:02}"
            full = f"{year[-2:]}-{short}"
            wanted |= {full, any_year} if year else {short}
            offered |= {full, short, f"{year[-2:]}/{month:02}"} if year else {short, any_year}
    return [Fact("date", text.strip(), frozenset(wanted), frozenset(offered))] if wanted else None


def _month(name: str) -> int:
    start = name.lower()[:3]
    return int(start) if start.isdigit() else MONTHS.index(GERMAN_MONTHS.get(start, start)) + 1


def _date(match: re.Match[str]) -> list[Fact] | None:
    """Read a date whose year comes first, or whose month has a name."""
    return _day(match[0], (match["year"] or "", _month(match["month"]), int(match["day"])))


def _numeric_date(match: re.Match[str]) -> list[Fact] | None:
    """Read 03.05.2024 as a day in May, and 3/5/2024 as either of the two days that it can be."""
    first, mark, second, year = int(match[1]), match[2], int(match[3]), match[4]
    return _day(match[0], (year, second, first), *([(year, first, second)] if mark != "." else []))


def _month_of_year(match: re.Match[str]) -> list[Fact]:
    return [make_fact("date", match[0], f"{match['year'][-2:]}/{_month(match['month']):02}")]


def _time(match: re.Match[str]) -> list[Fact] | None:
    hour, minute, half = int(match[1]), int(match[2] or 0), (match["half"] or "").lower()
    if hour > 24 or minute > 59:
        return None
    return [make_fact("date", match[0], f"{hour % 12 + 12 * (half > 'p') if half else hour:02}:{minute:02}")]


def _amount(match: re.Match[str]) -> list[Fact]:
    key = value(match[1] or match[2])
    if re.search(PERCENT, match[0], re.IGNORECASE):
        return [make_fact("amount", match[0], f"{key}%", also=[key])]
    return [make_fact("amount", match[0], key)]


def _number(text: str, key: str) -> list[Fact]:
    """Return a number, unless it has a single digit: too many contexts have that one too."""
    return [make_fact("number", text, key)] if sum(map(str.isdigit, key)) > 1 else []


def _plain_number(match: re.Match[str]) -> list[Fact]:
    return _number(match[0], value(match[0]))


def _joined_number(match: re.Match[str]) -> list[Fact] | None:
    """Read a phone or card number, whatever stands between its digits; None where they are too few."""
    digits = re.sub(r"\D", "", match[0])
    return _number(match[0], digits) if len(digits) > 6 else None


def _code(match: re.Match[str]) -> list[Fact]:
    """Read ORD-2024-17 as one number, and 30-day or 16GB as that of its digits alone."""
    parts = re.split(r"[-_/]", match[0])
    if all(part.isdigit() or (part.isalpha() and part.islower() and len(part) > 2) for part in parts):
        return [fact for part in parts if part.isdigit() for fact in _number(part, part)]
    code = "".join(parts).casefold()
    if unit := UNIT.fullmatch(code):
        return _number(unit[1], unit[1])
    return _number(match[0], code)


Reader = Callable[[re.Match[str]], list[Fact] | None]  # None: this is nothing of that kind
READERS: list[tuple[str, int, Reader]] = [  # in this order, each where none before it has read
    (rf"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+|{WEB}", re.IGNORECASE, _address),
    (QUOTED, 0, _quoted),
    (rf"{STREET}|{GERMAN_STREET}", 0, _street),
    (r"\b(?P<year>\d{4})[-/.](?P<month>\d\d?)[-/.](?P<day>\d\d?)\b", 0, _date),
    (r"\b(\d\d?)([./-])(\d\d?)\2(\d{4}|\d\d)\b", 0, _numeric_date),
    (rf"\b{DAY} (?:of )?{MONTH}(?:,? {YEAR})?", re.IGNORECASE, _date),
    (rf"\b{MONTH} {DAY}\b(?!:\d)(?:,? {YEAR})?", re.IGNORECASE, _date),
    (rf"\b{MONTH} {YEAR}", re.IGNORECASE, _month_of_year),
    (rf"\b(\d\d?):(\d\d)\b(?: ?{HALF})?", re.IGNORECASE, _time),
    (rf"\b(\d\d?)()(?: ?{HALF}| uhr\b)", re.IGNORECASE, _time),
    (rf"{CURRENCY} ?{FIGURE}|(?<![\w.,-]){FIGURE} ?(?:{CURRENCY}|{PERCENT})", re.IGNORECASE, _amount),
    (r"(?:\+\d|\(\d|\b0\d)\d*(?:[ /.()-]{1,3}\d+)+\b", 0, _joined_number),
    (r"(?<![\w/-])\d+(?:[-/]\d+)+\b|\b\d{4} \d{4} \d{4} \d{4}\b", 0, _joined_number),
    (rf"(?<![\w.,/-])(?:\d{{1,3}}(?:[.,']\d{{3}}){{1,4}}|\d+){DECIMALS}(?![\w/-]|[.,]\d)", 0, _plain_number),
    (r"(?<!\w)(?<!\w[-_/])(?:[^\W\d_]+[-_/])*\w*\d\w*(?:[-_/]\w+)*", 0, _code),
]
PATTERNS = [(re.compile(pattern, flags), read) for pattern, flags, read in READERS]


@lru_cache(CACHE_SIZE)
def read_facts(text: str) -> tuple[tuple[Fact, ...], str]:
    """Return all facts that a text states, but for capitalised names, and what of the text is left."""
    text = unicodedata.normalize("NFKC", text).translate(PLAIN_MARKS)
    text = LIST_NUMBER.sub("\n", PLACEHOLDER.sub(BLANK, text))
    facts: list[Fact] = []
    for pattern, read in PATTERNS if re.search(r"\d", text) else PATTERNS[:2]:  # those of addresses and quotes

        def take(match: re.Match[str], read: Reader = read) -> str:
            found = read(match)
            facts.extend(found or [])
            return match[0] if found is None else BLANK

        text = pattern.sub(take, text)
    return tuple(facts), text


def words_within(text: str) -> Iterator[re.Match[str]]:
    """Find the words that begin no sentence; of the others those with a second capital, such as DHL or PayPal."""
    for match in WORD.finditer(text):
        before = text[max(0, match.start() - 12) : match.start()]
        if not SENTENCE_END.search(before) or ABBREVIATION.search(before) or re.search("[A-Z]", match[0][1:]):
            yield match


@lru_cache(CACHE_SIZE)
def capitalised_words(text: str) -> tuple[tuple[str, ...], ...]:
    """Return the words that may be names by their capitals, those together that follow each other.

    The text is what `read_facts` has left. Who writes in capitals throughout names nothing by them.
    """
    words = WORD.findall(text)
    if sum(map(str.isupper, words)) > len(words) / 2:
        return ()
    runs, end = list[list[str]](), -2
    for match in words_within(text):
        word = re.sub("'s?$", "", match[0])
        is_other = word.lower() in NOT_NAMED or word.lower().removesuffix("s") in NOT_NAMED or word.startswith("I'")
        if word != word.lower() and len(word) > 1 and not is_other:
            if match.start() > end + 1:
                runs.append([])
            runs[-1].append(word)
            end = match.end()
    return tuple(map(tuple, runs))
