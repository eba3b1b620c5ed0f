"""Ratings of replies: what each annotator's journal has come to, its way into the file, and how well two agree."""

from __future__ import annotations

from collections.abc import Collection
from itertools import combinations
from pathlib import Path
from statistics import fmean
from textwrap import shorten

from nltk.metrics.agreement import AnnotationTask

from part3_pretrain.retail.rubric import HIGH_QUALITY
from part3_pretrain.runtime.cli import UserError
from part3_pretrain.runtime.locks import locked
from part3_pretrain.runtime.printable import printable
from part4_sft.data_files.layouts import Columns
from part4_sft.dataset import Pair
from part4_sft.formats import load_pairs, relabel
from part4_sft.terminal.interview import Item, interview, replay
from part4_sft.terminal.journals import journal_of, journals

CHOICES = {"1": "wrong", "2": "poor", "3": "usable", "4": "good", "5": "ideal"}
DISPUTED = 2  # points between two people's ratings of a pair
MAX_DISAGREEMENTS_SHOWN, MAX_CHARACTERS_SHOWN = 10, 300  # in a report; the characters are those of one text
Ratings = dict[str, int]  # one annotator's, by `Item.id`


def load_items(path: Path, columns: Columns) -> list[Item]:
    """Read what is to be rated in a file of pairs, once what is there twice. Raises UserError where it is not one."""
    return list(dict.fromkeys(item_of(pair, number) for number, pair in enumerate(load_pairs(path, columns), start=1)))


def item_of(pair: Pair, number: int = 0) -> Item:
    return Item((("Customer", pair.context), ("Reply", pair.response)), f"pair {number}")


def load_ratings(path: Path, items: list[Item]) -> dict[str, Ratings]:
    """Read what the keys in each annotator's journal have come to, by annotator, but of those who rated nothing."""
    given_by = {name: replay(items, journal, CHOICES).given for name, journal in journals(path).items()}
    return {name: {id: int(key) for id, key in given.items()} for name, given in given_by.items() if given}


def label(path: Path, annotator: str, columns: Columns = (), number: int | None = None, disputed: bool = False) -> None:
    """Ask for ratings until the person quits, put them into the file, and print what they have come to.

    Args:
        number: the pair of the file to begin with, from 1, rated or not; by default the first that is not.
        disputed: whether to ask only about pairs on which two people differ widely, and about these in any case.

    Raises:
        UserError: a file cannot be read or written, there is no such pair, or no terminal.
    """
    items = load_items(path, columns)
    asked, again = items, [] if number is None else [id_of_pair(path, columns, number)]
    if disputed:
        asked = disputed_items(items, load_ratings(path, items))
        again = [item.id for item in asked]
        if not asked:
            print(f"on no pair of {path} do two people differ by {DISPUTED} or more")
            return
    title = f"{path.name}, rated by {annotator}"

    def tell(given: dict[str, str]) -> str:
        return progress(given.values(), len(asked))

    try:
        interview(asked, journal_of(path, annotator), CHOICES, title, tell, again=again)
    except KeyboardInterrupt:  # but not where there is no terminal, and so nothing new
        write_labels(path, load_ratings(path, items), columns)
        raise
    ratings_by_annotator = load_ratings(path, items)
    write_labels(path, ratings_by_annotator, columns)
    # The others' ratings are not shown: nobody should see them before their own are done.
    print(summary(path, items, {annotator: ratings_by_annotator.get(annotator, {})}))


def id_of_pair(path: Path, columns: Columns, number: int) -> str:
    """Return the item that the pair with this number is. Raises UserError where the file has none."""
    pairs = load_pairs(path, columns)
    if not 1 <= number <= len(pairs):
        raise UserError(f"{path} has no pair {number}", f"it has pairs 1 to {len(pairs)}")
    return item_of(pairs[number - 1]).id


def disputed_items(items: list[Item], ratings_by_annotator: dict[str, Ratings]) -> list[Item]:
    """Return the items that two people have rated widely apart."""
    given = {item.id: [of[item.id] for of in ratings_by_annotator.values() if item.id in of] for item in items}
    return [item for item in items if given[item.id] and max(given[item.id]) - min(given[item.id]) >= DISPUTED]


def report(path: Path, columns: Columns = ()) -> None:
    """Print what has been rated, by whom, and how well annotators agree. Raises UserError as `label` does."""
    items = load_items(path, columns)
    print(summary(path, items, load_ratings(path, items)))


def write_labels(path: Path, ratings_by_annotator: dict[str, Ratings], columns: Columns) -> None:
    """Set "high_quality" in the file by the mean rating of each pair, if any is rated, and print how many train now."""
    if not ratings_by_annotator:
        return

    def new_label(pair: Pair) -> int | None:
        id = item_of(pair).id
        ratings = [ratings[id] for ratings in ratings_by_annotator.values() if id in ratings]
        return int(fmean(ratings) >= HIGH_QUALITY) if ratings else None

    with locked(path.resolve().parent):  # of the file, where the path is a link to it
        labels = relabel(path, new_label, columns)
    good = sum(labels)
    print(f"written: {path}; pairs that train (high_quality 1): {good:,}; that do not (0): {len(labels) - good:,}")


def weighted_kappa(first: Ratings, second: Ratings) -> float | None:
    """Return the agreement of two annotators beyond chance on what both rated, at most 1 (Cohen 1968).

    A difference weighs by its square. None where kappa is not defined: both gave everything one and the same rating.
    """
    both = first.keys() & second.keys()
    triples = [(name, id, ratings[id]) for name, ratings in (("a", first), ("b", second)) for id in both]
    try:
        return AnnotationTask(triples, distance=lambda a, b: (a - b) ** 2).weighted_kappa()
    except ZeroDivisionError:
        return None


def progress(ratings: Collection[int | str], count: int) -> str:
    """Say how many of `count` items are rated (by numbers or their keys), and how many of them high."""
    good = sum(int(rating) >= HIGH_QUALITY for rating in ratings)
    return f"{len(ratings):,} of {count:,} rated, {good:,} of them 4 or 5"


def summary(path: Path, items: list[Item], ratings_by_annotator: dict[str, Ratings]) -> str:
    """Tell what each annotator has rated, how well each two of them agree, and on which items they differ most."""
    if not any(ratings_by_annotator.values()):
        return f"no pair of {path} is rated yet"
    lines = [f"{name}: {progress(of.values(), len(items))}" for name, of in ratings_by_annotator.items()]
    item_by_id = {item.id: item for item in items}
    for (name, ratings), (other_name, others) in combinations(ratings_by_annotator.items(), 2):
        difference = {id: abs(ratings[id] - others[id]) for id in ratings if id in others}
        differ = sorted((id for id in difference if difference[id]), key=difference.__getitem__, reverse=True)
        kappa = weighted_kappa(ratings, others)
        agreement = "" if kappa is None else f"; weighted kappa {kappa:.2f} (1: as one, 0: as by chance)"
        both, alike = f"{len(difference):,}", f"{len(difference) - len(differ):,}"
        lines.append(f"\n{name} and {other_name} have both rated {both}, {alike} alike{agreement}")
        if differ:
            most = "; most on these" if len(differ) > MAX_DISAGREEMENTS_SHOWN else ""
            lines.append(f"they differ on {len(differ):,}{most}:")
        for id in differ[:MAX_DISAGREEMENTS_SHOWN]:
            lines.append(f"\n  {item_by_id[id].place}: {name} {ratings[id]}, {other_name} {others[id]}")
            for heading, text in item_by_id[id].parts:
                lines.append(f"  {heading}: {printable(shorten(text, MAX_CHARACTERS_SHOWN))}")
    if count := len(disputed_items(items, ratings_by_annotator)):
        lines.append(f"\n{count:,} are rated {DISPUTED} or more apart; label FILE --disputed asks about them again")
    return "\n".join(lines)
