"""Pairs for a small translation model: numbers in English words and in German ones.

    python examples/number_words.py data

writes data/numbers.jsonl, rows of {"english", "german"}: the same rows every time, made without a
network. German says the ones before the tens and writes a number as one word, so that a model
has to learn more than a list of words.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

ROWS = 6000
BELOW = 1_000_000

ENGLISH = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen",
]  # fmt: skip
ENGLISH_TENS = [
    ".", ".", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety",
]  # fmt: skip
GERMAN = [
    "null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun", "zehn",
    "elf", "zwölf", "dreizehn", "vierzehn", "fünfzehn", "sechzehn", "siebzehn", "achtzehn",
    "neunzehn",
]  # fmt: skip
GERMAN_TENS = [
    ".", ".", "zwanzig", "dreißig", "vierzig", "fünfzig", "sechzig", "siebzig", "achtzig",
    "neunzig",
]  # fmt: skip


def english(number: int) -> str:
    """1021: 'one thousand and twenty-one'."""
    if number < 20:
        return ENGLISH[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return ENGLISH_TENS[tens] + (f"-{ENGLISH[ones]}" if ones else "")
    unit, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    many, rest = divmod(number, unit)
    joint = " and " if rest < 100 else " "
    return f"{english(many)} {name}" + (joint + english(rest) if rest else "")


def german(number: int) -> str:
    """1021: 'eintausendeinundzwanzig'."""
    if number < 20:
        return GERMAN[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return (f"{_before(ones)}und" if ones else "") + GERMAN_TENS[tens]
    unit, name = (1000, "tausend") if number >= 1000 else (100, "hundert")
    many, rest = divmod(number, unit)
    return _before(many) + name + (german(rest) if rest else "")


def _before(number: int) -> str:
    """A number before another word: 'ein', where it would be 'eins' alone."""
    return german(number).removesuffix("s") if number % 100 == 1 else german(number)


def main() -> int:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(__doc__.strip(), file=sys.stderr)
        return 2
    numbers = random.Random(0).sample(range(BELOW), ROWS)
    rows = ({"english": english(number), "german": german(number)} for number in numbers)
    path = Path(sys.argv[1], "numbers.jsonl")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    print(f"{path}: {ROWS:,} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
