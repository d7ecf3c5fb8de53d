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


def add_speed(parser: argparse.ArgumentParser) -> "argparse._ArgumentGroup":
    """How the model computes: a group of its own in the help, for more to be added."""
    group = parser.add_argument_group("speed")
    add = group.add_argument
    add(
        "--batch-tokens",
        type=positive,
        metavar="N",
        help="residues computed at once; fewer need less memory, a longer protein goes alone "
        "(default 16384 on a GPU, 4096 on a CPU)",
    )
    add(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="auto takes the GPU where there is one (default %(default)s)",
    )
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="of the arithmetic (default %(default)s)")
    return group
