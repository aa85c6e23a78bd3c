"""`python -m bdcourse`: run the course's path on own images, or remake the zoo."""

from __future__ import annotations

import argparse
import sys


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bdcourse", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    b = commands.add_parser("bench", help="attacks against defenses on an image set")
    b.add_argument("--data", default="signs", help="signs, cifar10, a folder, an .npz")
    b.add_argument("--out", required=True, help="JSON file for the rows")
    b.add_argument("--attacks", nargs="+", default=["BadNets", "Blended"])
    b.add_argument("--model", default="resnet18")
    b.add_argument("--width", type=int, default=16)
    b.add_argument("--epochs", type=float, default=12)
    b.add_argument("--batch", type=int, default=128)
    b.add_argument("--lr", type=float, default=0.1)
    b.add_argument("--rate", type=float, default=0.1, help="share that is poisoned")
    b.add_argument("--clean", type=float, default=0.05, help="the defender's share")
    b.add_argument("--pad", type=int, default=4, help="crop padding in pixels")
    b.add_argument("--no-flip", action="store_true", help="do not mirror images")
    b.add_argument("--seeds", type=int, nargs="+", default=[0])
    b.add_argument("--n", type=int, help="use only this many training images")
    b.add_argument("--size", type=int, help="resize folder images to this side")
    b.add_argument("--bf16", action="store_true", default=None, help="also on the CPU")
    b.add_argument("--device", default=None, help="default: cuda if there is one")
    b.add_argument("--keep", default="runs", help="folder for trained victims")
    z = commands.add_parser("zoo", help="train the victims of the lessons again")
    z.add_argument("--only", nargs="+", help="names of victims")
    z.add_argument("--out", help="folder (default: data/zoo)")
    a = vars(parser.parse_args(argv))
    command = a.pop("command")
    try:
        if command == "zoo":
            from bdcourse.zoo import remake

            return remake(**a)
        import torch

        from bdcourse.bench import run

        a["flip"] = not a.pop("no_flip")
        a["device"] = a["device"] or ("cuda" if torch.cuda.is_available() else "cpu")
        run(a.pop("data"), a.pop("out"), **a)
    except (ValueError, FileNotFoundError, RuntimeError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; finished rows are kept, the same command goes on from here.")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
