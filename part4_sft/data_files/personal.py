"""What stands in texts and should not be learnt: placeholders, addresses, numbers of telephones and cards, signatures.

All by patterns. Each is bounded in length, so that no text, however long or hostile, takes more than linear time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# What is to be put in, as placeholders have it: `[Order Number]`, `<your name>`, `%CUSTOMER_ID%`.
_SLOT = re.compile(
    r"(?:^|[\W_])(?:your|my|insert|enter|placeholder|customer|client|agent|user|person|recipient|sender|company|business"
    r"|organi[sz]ation|brand|store|shop|order|invoice|ticket|tracking|account|product|item|model|service|amount|price"
    r"|total|currency|link|url|website|city|state|country|street|zip|location|department|team|id|time|hours|reason"
    r"|kunden?|firma|bestellung|produkt|betrag"
    r"|\w{0,20}(?:name|number|nummer|date|datum|address|adresse|mail|phone|code))s?(?:$|[\W_\d])",
    re.IGNORECASE,
)
_PLACEHOLDER = re.compile(
    r"(?P<double>\{\{[^{}\n]{2,60}\}\})"
    r"|(?<![\w\\{}^])\{(?P<brace>[^\W\d][\w .-]{1,40})\}(?!\})"
    r"|(?<![\w\]!\\])\[(?P<square>[^\W\d][\w './#-]{1,60})\](?![\[(:\w])"
    r"|(?<!\w)<(?P<angle>[^\W\d][\w '.-]{1,60})>"
    r"|(?<!\w)%(?P<percent>[^\W\d]\w{1,40})%(?!\w)"
    r"|(?<![\w$])\$(?P<dollar>[^\W\d]\w{2,40})(?!\w)"
    r"|(?P<certain>(?<![^\W\d_])(?:X{3,}|x{4,}|TB[ACD]|TODO|[Ll]orem ipsum)(?![^\W\d_])"
    r"|(?<![\w%])%(?:\(\w{1,40}\))?[ds](?!\w)|(?<!\w)__[A-Z][A-Z_]{1,40}__(?!\w)|(?<=[^\W_][ ,:])_{3,}(?!\w)"
    r"|(?<!\w)#[A-Z][A-Z_]{2,40}#|<<[^\W\d][\w ]{1,40}>>|(?<![\w{])\{\d\}(?![\w}]))"
)
_MAY_BE_PLACEHOLDER = re.compile(
    r"[{\[<%$#]|X{3}|x{4}|TB[ACD]|TODO|orem ipsum|__"
)  # far faster where there is none, as in most texts
_CAPITALS = re.compile(r"[A-Z][A-Z0-9_ -]{2,}")
_NO_PLACEHOLDERS = {  # in square brackets and capitals
    *("EDIT", "UPDATE", "UPDATED", "NOTE", "INFO", "WARN", "WARNING", "ERROR", "DEBUG", "SOLVED", "SPOILER", "NEW"),
    *(
        "PDF",
        "HTML",
        "JSON",
        "XML",
        "CSV",
        "ASCII",
        "USA",
        "SIC",
        "INST",
        "TODO",
        "FREE",
        "VIDEO",
        "SEP",
        "CLS",
        "MASK",
    ),
}
_HTML = {"address", "time", "link", "title", "code", "data", "input", "label", "button", "summary", "details"}

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[\w-]{1,63}\.){1,5}(?!png|jpe?g|gif|svg|webp)[^\W\d_]{2,24}(?!\w)")
_SPELT_EMAIL = re.compile(  # anna (at) example.com, anna [at] example [dot] com
    r"(?<![\w.+-])[\w.+-]{1,64} ?[(\[]at[)\]] ?[\w-]{1,63}(?: ?(?:\.|[(\[]dot[)\]]) ?[\w-]{1,63}){1,5}", re.IGNORECASE
)

_MAY_BE_NUMBER = re.compile(r"\d[\d .\-/()\xa0]{6}")
_INTERNATIONAL = re.compile(r"(?<![\w+])\+\d(?:[ .\-/()\xa0]{0,3}\d){7,14}(?![\w-])")
_AMERICAN = re.compile(
    r"(?<![\w.+/-])(?:1[-. ])?(?:\(\d{3}\) ?\d{3}[-. ]\d{4}|\d{3}([-.])\d{3}\1\d{4}|(?<=1 )\d{3} \d{3} \d{4})"
    r"(?![\w-]|\.\d)"
)
_WITH_ZERO = re.compile(
    r"(?<![\w.,+/-])(?<!\d )(?!\d\d?[-/. ]\d\d?[-/. ]\d{2,4}\b(?! \d\d)|\d{5}-\d{4}\b)"  # no date, no American postcode
    r"\(?0\d{1,4}\)?[ /-]{1,3}\d{2,8}(?:[ -]\d{2,5}){0,4}(?![\w:/-])"
)
_CALLED = re.compile(
    r"\b(?:call|phone|tel|telephone|telefon|mobile|cell|fax|whatsapp|sms|dial|hotline|handy|reach|contact"
    r"|(?:my|our) number)\.?"
    r"(?:[ :]{1,2}(?:us|me|him|her|them|at|on|is|no|nr|number|nummer|line|our|my|your|to|under|via|the|support)\b\.?)"
    r"{0,4}[ :#]{1,3}(?P<number>\(?\+?\d(?:[ .\-/()]{0,2}\d){6,14})(?![\w-])",
    re.IGNORECASE,
)
_OTHER_NUMBER = re.compile(  # that of an order, behind these words
    r"(?:order|purchase|invoice|ticket|tracking|reference|ref|case|account|serial|booking|confirmation|sku|isbn|item"
    r"|bestellung|rechnung)s?\W{0,3}(?:number|no|nr|id|code|#)?\W{0,3}(?:is|:)?\W{0,3}$",
    re.IGNORECASE,
)

_CARD = re.compile(r"(?<![\w.-])(?:\d{4}([ .\xa0-]?)\d{4}\1\d{4}\1\d{1,7}|3\d{3}([ .\xa0-]?)\d{6}\2\d{4,5})(?![\w-])")
_ISSUED = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|62\d{14,17}|(?:5[1-5]|2[2-7]|6\d)\d{14}|3[47]\d{13}|3[068]\d{12}"
)  # by anybody

_WORD = r"[^\W\d_a-z][\w.'\u2019&-]{0,30}"  # of a name: it begins with a capital letter
_SMALL = "of|the|from|at|and|team|crew|staff|support|service|department|desk"  # words in names of teams
_NAME = rf"(?:{_WORD}|[\[{{<][^\n]{{1,40}}[\]}}>])(?:[ ,|\n]{{1,3}}(?:{_WORD}|{_SMALL})){{0,7}}"
_BEGINNING = r"(?:\A|[\n.!?])\s{0,5}"  # of a sentence
_CLOSING = (
    r"(?i:(?:with )?(?:best|kind|kindest|warm|warmest|many) (?:regards|wishes)|regards|sincerely(?: yours)?|cordially"
    r"|yours (?:sincerely|faithfully|truly)|respectfully(?: yours)?|mit freundlichen grüßen|cordialement"
    r"|(?:viele|liebe|beste|freundliche|herzliche) grüße|saludos cordiales|atentamente|cordiali saluti)"
)
_SIGNATURE = re.compile(
    rf"(?:{_BEGINNING}{_CLOSING}[ ,.!\u2013-]{{0,3}}\s{{0,5}}(?:from |the |your )?(?:{_NAME}|{_SMALL})?"
    rf"|{_BEGINNING}(?i:(?:all the )?best|cheers|yours|warmly|br|kr|rgds|mfg|lg|vg),\s{{1,5}}(?:the )?{_NAME}"
    rf"|{_BEGINNING}(?i:(?:many )?thanks|thank you)(?i: so much| again)?[,.!]?\s{{0,3}}\n\s{{0,3}}{_NAME}"
    rf"|(?:\n\s{{0,3}}|[.!?]\s{{1,3}})(?:--|[\u2013\u2014])\s{{0,3}}{_NAME}"
    r"|\n\s{0,3}(?i:the|your) [^\n]{2,40} (?i:team))\W{0,5}\Z"
)
_LONGEST_SIGNATURE = 250  # characters, the closing formula included

Span = tuple[int, int]


def placeholders(text: str) -> Iterator[Span]:
    """Yield where placeholders stand that nobody has filled in."""
    for found in _PLACEHOLDER.finditer(text) if _MAY_BE_PLACEHOLDER.search(text) else ():
        kind, inner = str(found.lastgroup), str(found[str(found.lastgroup)])
        if kind in ("double", "certain"):
            yield found.span()
        elif kind == "square" and _CAPITALS.fullmatch(inner):
            if inner not in _NO_PLACEHOLDERS:
                yield found.span()
        elif kind == "angle" and (inner.lower() in _HTML or f"</{inner}" in text[found.end() : found.end() + 1000]):
            continue
        elif _SLOT.search(inner) and len(inner.split()) <= 5:
            yield found.span()


def email_addresses(text: str) -> Iterator[Span]:
    """Yield where e-mail addresses stand."""
    for sign, pattern in (("@", _EMAIL), ("at)", _SPELT_EMAIL), ("at]", _SPELT_EMAIL)):
        if sign in text:
            yield from (found.span() for found in pattern.finditer(text))


def phone_numbers(text: str) -> Iterator[Span]:
    """Yield where numbers of telephones stand: they are written as such, or words before them say so."""
    if not _MAY_BE_NUMBER.search(text):
        return
    yield from (found.span() for found in _INTERNATIONAL.finditer(text))
    yield from (found.span("number") for found in _CALLED.finditer(text))
    for pattern in (_AMERICAN, _WITH_ZERO):
        for found in pattern.finditer(text):
            is_long = sum(map(str.isdigit, found[0])) >= 9
            if is_long and not _OTHER_NUMBER.search(text[max(0, found.start() - 40) : found.start()]):
                yield found.span()


def card_numbers(text: str) -> Iterator[Span]:
    """Yield where numbers of payment cards stand: of a length that some issuer has, and right by their check digit."""
    for found in _CARD.finditer(text) if _MAY_BE_NUMBER.search(text) else ():
        digits = re.sub(r"\D", "", found[0])
        if _ISSUED.fullmatch(digits) and is_luhn(digits):
            yield found.span()


def is_luhn(digits: str) -> bool:
    """Return whether the last digit checks the others (Luhn 1960, ISO/IEC 7812)."""
    doubled = [int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits))]
    return sum(value - 9 * (value > 9) for value in doubled) % 10 == 0


def signatures(text: str) -> Iterator[Span]:
    """Yield where a closing formula, with a name or without, ends the text."""
    start = max(0, len(text) - _LONGEST_SIGNATURE)
    if found := _SIGNATURE.search(text[start:]):
        yield start + found.start(), start + found.end()
