"""Ratings of replies: what each annotator's journal has come to, its way into the file, and how well two agree."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from statistics import fmean
from textwrap import shorten

from nltk.metrics.agreement import AnnotationTask

from part3_pretrain.retail.rubric import HIGH_QUALITY
from part3_pretrain.runtime.files import locked
from part4_sft.dataset import Pair
from part4_sft.formats import load_pairs, relabel
from part4_sft.terminal.interview import Item, interview, journal_of, journals, replay

CHOICES = {"1": "wrong", "2": "poor", "3": "usable", "4": "good", "5": "ideal"}
MAX_DISAGREEMENTS_SHOWN, MAX_CHARACTERS_SHOWN = 10, 300  # in a report; the characters are those of one text
Ratings = dict[str, int]  # one annotator's, by `Item.id`


def load_items(path: Path) -> list[Item]:
    """Read what is to be rated in a file of pairs. Raises UserError where it is not one."""
    return list(dict.fromkeys(item_of(pair) for pair in load_pairs(path)))


def item_of(pair: Pair) -> Item:
    return Item((("Customer", pair.context), ("Reply", pair.response)))


def label(path: Path, annotator: str) -> None:
    """Ask for ratings until the person quits, put them into the file, and print what they have come to.

    Raises:
        UserError: a file cannot be read or written, or there is no terminal.
    """
    items = load_items(path)
    title = f"{path.name}, rated by {annotator}"
    try:
        interview(items, journal_of(path, annotator), CHOICES, title, lambda given: progress(_numbers(given), items))
    finally:
        ratings_by_annotator = load_ratings(path, items)
        if any(ratings_by_annotator.values()):
            write_labels(path, ratings_by_annotator)
    # The others' ratings are not shown: nobody should see them before their own are done.
    print(summary(path, items, {annotator: ratings_by_annotator[annotator]}))


def report(path: Path) -> None:
    """Print what has been rated, by whom, and how well annotators agree. Raises UserError as `label` does."""
    items = load_items(path)
    print(summary(path, items, load_ratings(path, items)))


def load_ratings(path: Path, items: list[Item]) -> dict[str, Ratings]:
    """Read what the keys in each annotator's journal have come to, by annotator."""
    return {name: _numbers(replay(items, journal, CHOICES).given) for name, journal in journals(path).items()}


def _numbers(given: Mapping[str, str]) -> Ratings:
    return {id: int(key) for id, key in given.items()}


def write_labels(path: Path, ratings_by_annotator: dict[str, Ratings]) -> None:
    """Set "high_quality" in the file by the mean rating of each pair, and print how many pairs train now."""

    def new_label(pair: Pair) -> int | None:
        id = item_of(pair).id
        ratings = [ratings[id] for ratings in ratings_by_annotator.values() if id in ratings]
        return int(fmean(ratings) >= HIGH_QUALITY) if ratings else None

    with locked(path.parent):
        labels = relabel(path, new_label)
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


def progress(ratings: Ratings, items: list[Item]) -> str:
    """Say how many of the items are rated, and how many of them high."""
    good = sum(rating >= HIGH_QUALITY for rating in ratings.values())
    return f"{len(ratings):,} of {len(items):,} rated, {good:,} of them 4 or 5"


def summary(path: Path, items: list[Item], ratings: Mapping[str, Ratings]) -> str:
    """Tell what has been rated by each annotator, and how well each two of them agree."""
    if not any(ratings.values()):
        return f"no pair of {path} is rated yet"
    lines = [f"{name}: {progress(of_annotator, items)}" for name, of_annotator in ratings.items()]
    item_by_id = {item.id: item for item in items}
    for first, second in combinations(ratings, 2):
        lines += _agreement(first, second, ratings, item_by_id)
    return "\n".join(lines)


def _agreement(first: str, second: str, ratings: Mapping[str, Ratings], item_by_id: dict[str, Item]) -> list[str]:
    """Tell in lines how well two annotators agree, and on which items they differ most."""
    difference = {id: abs(ratings[first][id] - ratings[second][id]) for id in ratings[first] if id in ratings[second]}
    differ = sorted((id for id in difference if difference[id]), key=difference.__getitem__, reverse=True)
    alike = len(difference) - len(differ)
    lines = [f"\n{first} and {second} have both rated {len(difference):,}, {alike:,} alike"]
    kappa = weighted_kappa(ratings[first], ratings[second])
    if kappa is not None:
        lines[0] += f"; weighted kappa {kappa:.2f} (1: as one, 0: as by chance)"
    if differ:
        most = "; most on these" if len(differ) > MAX_DISAGREEMENTS_SHOWN else ""
        lines.append(f"they differ on {len(differ):,}{most}:")
    for id in differ[:MAX_DISAGREEMENTS_SHOWN]:
        lines.append(f"\n  {first} {ratings[first][id]}, {second} {ratings[second][id]}")
        lines += [f"  {heading}: {shorten(text, MAX_CHARACTERS_SHOWN)}" for heading, text in item_by_id[id].parts]
    return lines
