"""A person rates replies from the keyboard: python -m part4_sft.label FILE

Every key goes into a journal beside the file, FILE.NAME.jsonl; at the end the ratings are put into the file.
"""

from __future__ import annotations

from pathlib import Path

from part3_pretrain.runtime.cli import OneLineParser, exit_status
from part4_sft.terminal.journals import annotator, login_name


def main() -> None:
    parser = OneLineParser(
        prog="python -m part4_sft.label",
        description="Rates the replies of a file of pairs, one at a time: 1 wrong (another item, another problem), "
        "2 poor, 3 usable, 4 good, 5 ideal (acknowledges the customer, names the item, resolves each problem, says "
        "what happens next). Pairs with a rating (of several people: a mean) of 4 or more get high_quality 1, those "
        "below 0; those not rated keep what they have, or get 0 where the file had no labels. Work resumes where it "
        "stopped.",
        epilog="example: python -m part4_sft.label outputs/sft_dataset.json --annotator anna",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="JSON, JSONL or CSV file of pairs")
    parser.add_argument("--annotator", type=annotator, default=login_name(), help="who rates (default: %(default)s)")
    parser.add_argument(
        "--columns", nargs="+", default=(), metavar="KEY=NAME", help="as python -m part4_sft.sft has it"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--pair", type=int, metavar="NUMBER", help="begin with this pair of the file, rated or not")
    which.add_argument(
        "--disputed", action="store_true", help="ask only about pairs that two people rate at least two apart"
    )
    which.add_argument("--report", action="store_true", help="rate nothing, only tell how well annotators agree")
    arguments = parser.parse_args()
    from part4_sft.terminal import ratings  # only now, for it needs packages, and --help should not

    if arguments.report:
        ratings.report(arguments.file, arguments.columns)
    else:
        ratings.label(arguments.file, arguments.annotator, arguments.columns, arguments.pair, arguments.disputed)


if __name__ == "__main__":
    raise SystemExit(exit_status(main))
