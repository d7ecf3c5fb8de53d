"""Types of arguments that several commands take."""

import argparse


def positive(text: str) -> int:
    """A whole number from 1, for argparse."""
    try:
        number = int(text.replace("_", ""))
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return number
