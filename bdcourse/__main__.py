"""Measure attacks against defenses, show the numbers, and prepare the course's labs."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence; the usage is there for who asks."""

    def __init__(self, example: str = "", **how) -> None:
        shown = argparse.RawDescriptionHelpFormatter  # an example keeps its lines
        super().__init__(
            epilog=example and f"for example:\n{example}", formatter_class=shown, **how
        )

    def error(self, message: str) -> NoReturn:
        text = " ".join(message.split()).rstrip(".")
        self.exit(2, f"error: {text}; {self.prog} --help explains the options.\n")


class Names(argparse.Action):
    """Prints what `--attacks` and `--defenses` take, one name a line, and ends."""

    def __call__(self, parser: argparse.ArgumentParser, given, *_) -> NoReturn:
        from bdcourse.attacks import ATTACKS, ELSEWHERE
        from bdcourse.bench.cells import SWEEP
        from bdcourse.bench.plans import PLANS
        from bdcourse.bench.plugins import loaded

        try:
            loaded(given.plugins)
        except ValueError as e:
            parser.exit(1, f"error: {e}\n")
        for title, names in (("attacks", ATTACKS | ELSEWHERE), ("defenses", [*PLANS, SWEEP])):
            print(f"{title}:", *(f"  {name}" for name in names), sep="\n")
        parser.exit(0)


FIRST = """\
  python -m bdcourse bench --zoo badnets --out mine.json --defenses none "clp, u = 3"
  python -m bdcourse table mine.json
Each command explains its options: python -m bdcourse bench --help"""
BENCH = """\
  python -m bdcourse bench --zoo badnets --out mine.json --defenses none "clp, u = 3"
  python -m bdcourse bench --data path/to/images --out own.json --attacks BadNets --workers 4
The first one trains nothing. The same command, given again, goes on where it was stopped."""
TABLE = """\
  python -m bdcourse table mine.json
  python -m bdcourse table mine.json --kind ranking --format figure --out ranking.png"""
LABS = """\
  python -m bdcourse labs student --only 05 --out student"""
ZOO = """\
  python -m bdcourse zoo --only badnets"""


def _command(commands, name: str, does: str, example: str = "") -> Parser:
    """A command that the list of commands and its own page describe in one sentence."""
    return commands.add_parser(name, help=does, description=does, example=example)


def _bench_options(b: Parser) -> None:
    what = b.add_argument_group("what is measured")
    what.add_argument("--out", required=True, help="JSON file for the rows")
    what.add_argument(
        "--data",
        nargs="+",
        default=["signs"],
        help="signs (default), cifar10, clips, a folder, an .npz; one or several",
    )
    what.add_argument(
        "--task",
        help="images, video, points, text or detection: its drawn set instead of --data, "
        "with its usual network, recipe and attacks",
    )
    what.add_argument(
        "--attacks", nargs="*", help="names (default: what is usual for the data), or all"
    )
    what.add_argument(
        "--defenses",
        nargs="+",
        default=(),
        help="names (default: six and a sweep), or: all, or: everything (with what "
        "varies inside a method), or: across (what runs on every task)",
    )
    what.add_argument(
        "--plugin",
        dest="plugins",
        action="append",
        default=[],
        metavar="FILE",
        help="Python file with plans and attacks of your own; may be given again",
    )
    what.add_argument(
        "--list",
        action=Names,
        nargs=0,
        dest=argparse.SUPPRESS,
        default=argparse.SUPPRESS,
        help="print the names of attacks and defenses, and end",
    )
    what.add_argument("--seeds", type=int, nargs="+", default=[0], help="victims trained anew")
    what.add_argument(
        "--only",
        nargs="+",
        default=(),
        metavar="ATTACK/DEFENSE",
        help="patterns with *, such as 'BadNets/*'; other cells are left out",
    )
    what.add_argument("--zoo", nargs="*", help="victims of the course, by name, instead of --data")
    what.add_argument("--sharp", action="store_true", help="also measure how sharp each model is")
    what.add_argument(
        "--options",
        help='JSON: {"WaNet": {"craft": {"strength": 1}, "recipe": {"rate": 0.2}}}; '
        "what only one of the two knows may stand without them (default: for signs "
        "only)",
    )
    i = b.add_argument_group("images")
    i.add_argument("--n", type=int, help="use only this many training images")
    i.add_argument("--n-test", type=int, help="and only this many test images")
    i.add_argument("--size", type=int, help="resize folder images to this side")
    i.add_argument("--clean", type=float, default=0.05, help="the defender's share (default: 0.05)")
    i.add_argument(
        "--budget",
        dest="budgets",
        type=int,
        nargs="+",
        default=[None],
        help="clean images the defender really gets, of their share",
    )
    i.add_argument("--draws", type=int, nargs="+", default=[0], help="which of them")
    w = b.add_argument_group("where", "default: one cell after the other, in here")
    w.add_argument("--device", default=None, help="default: cuda if there is one")
    w.add_argument("--keep", default="runs", help="folder for trained victims (default: runs)")
    w.add_argument("--workers", type=int, default=1, help="processes on this machine")
    w.add_argument("--scheduler", help="tls://HOST:PORT of a Dask cluster, instead")
    w.add_argument("--threads", type=int, help="of torch, in each worker")
    w.add_argument("--dashboard", action="store_true", help="serve Dask's page to this machine")
    w.add_argument("--tls-ca", metavar="FILE", help="authority of a tls:// cluster")
    w.add_argument("--tls-cert", metavar="FILE", help="our certificate for it")
    w.add_argument("--tls-key", metavar="FILE", help="and its key (default: in there)")
    _recipe_options(b)


def _recipe_options(b: Parser) -> None:
    r = b.add_argument_group("recipe", "how victims are trained; by default as suits the images")
    r.add_argument("--recipe", help="fast: for photographs, of which what follows replaces entries")
    r.add_argument("--model", nargs="+", help="resnet18, preact_resnet18, vgg16_bn, airbench, ...")
    r.add_argument("--width", type=int, nargs="+", help="channels of the first layer")
    r.add_argument("--epochs", type=float, help="default: 10, 12 for signs, more for few images")
    r.add_argument("--batch", type=int, help="images in a step")
    r.add_argument("--lr", type=float, help="learning rate at its highest")
    r.add_argument("--optimizer", choices=["sgd", "adamw"], help="of the weights")
    r.add_argument("--clip", type=float, help="longest gradient, over all weights")
    r.add_argument("--weight-decay", type=float, help="pull of the weights to 0")
    r.add_argument("--rate", type=float, help="share of images that is poisoned")
    r.add_argument("--stamp", choices=["before", "after"], help="before augmentation?")
    r.add_argument("--aware", choices=["smooth", "sam"], help="an attacker who knows the defense")
    r.add_argument("--pad", type=int, help="crop padding in pixels")
    r.add_argument(
        "--flip",
        action=argparse.BooleanOptionalAction,
        help="mirror images in training; default: yes, but not for signs and gtsrb",
    )
    r.add_argument("--bf16", action=argparse.BooleanOptionalAction, help="on a CPU too")


def _table_options(t: Parser) -> None:
    t.add_argument("name", help="of a file in data/results, or the path of a .json")
    t.add_argument("--kind", default="grid", help="grid (default), summary, ranking or rows")
    t.add_argument(
        "--format", default="text", help="text (default), markdown, latex, or figure with --out"
    )
    t.add_argument("--defenses", nargs="+", default=(), help="names (default: all)")
    t.add_argument("--who", nargs="+", help="victims (default: all)")
    t.add_argument(
        "--where",
        nargs="+",
        default=(),
        metavar="KEY=VALUE",
        help="what rows must hold: budget=500 draw=null",
    )
    t.add_argument("--caption", default="", help="or the title of a figure")
    t.add_argument("--out", help="file; a figure needs one that ends in .png")


def _labs_options(n: Parser) -> None:
    what = n.add_subparsers(dest="what", required=True, metavar="COMMAND", title="commands")
    s = _command(what, "student", "Write the lessons without answers, or update such copies.", LABS)
    s.add_argument("--only", nargs="+", default=(), help="lessons, 05 is enough (default: all)")
    s.add_argument("--out", default="student", help="folder (default: student)")
    p = _command(what, "progress", "Say which exercises of your copies pass their check.")
    r = _command(
        what,
        "reset",
        "Begin one exercise anew; what you wrote goes to a file beside.",
        "  python -m bdcourse labs reset take",
    )
    r.add_argument("name", help="of the exercise")
    for own in (p, r):
        own.add_argument("--out", default="student", help="folder (default: student)")
    links = _command(
        what,
        "links",
        "Print links that open the lessons in Colab and Binder.",
        "  python -m bdcourse labs links OWNER/NAME > links.md",
    )
    links.add_argument("repository", help="OWNER/NAME on GitHub")
    links.add_argument("--branch", default="main", help="of the repository (default: main)")
    c = _command(
        what,
        "course",
        "Make a course directory for nbgrader.",
        "  python -m bdcourse labs course my-course --plan labs/two_labs.yml",
    )
    c.add_argument("folder", type=Path, help="where it is made")
    c.add_argument("--plan", type=Path, help="YAML file (default: every exercise)")
    _command(what, "confined", "Try what a submission cannot do on this machine, and say so.")


def _zoo_options(z: Parser) -> None:
    z.add_argument("--only", nargs="+", help="names of victims (default: all)")
    z.add_argument("--out", help="folder (default: data/zoo)")
    z.add_argument("--keep", default="runs", help="folder for trained victims (default: runs)")


COMMANDS = (
    ("bench", "Train victims, apply defenses to them, and keep every number.", BENCH),
    ("table", "Show the rows of a bench as text, Markdown, LaTeX or a figure.", TABLE),
    ("labs", "Prepare the lessons for students, and their grading.", LABS),
    ("zoo", "Train the victims of the lessons again, and check what is claimed of them.", ZOO),
)
OPTIONS = {
    "bench": _bench_options,
    "table": _table_options,
    "labs": _labs_options,
    "zoo": _zoo_options,
}


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="python -m bdcourse", description=__doc__, example=FIRST)
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", title="commands"
    )
    own = {}
    for name, does, example in COMMANDS:
        own[name] = _command(commands, name, does, example)
        OPTIONS[name](own[name])
    own["bench"].usage = "python -m bdcourse bench --out FILE [option ...]"  # of forty
    a = vars(parser.parse_args(argv))
    command = a.pop("command")
    try:
        return _carry_out(command, a, own["bench"].get_default)
    except (ValueError, OSError, RuntimeError) as e:
        text = str(e) if command != "bench" else _as_typed(str(e))
        print(f"error: {text}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; finished rows are kept, the same command goes on from here.")
        return 130


def _carry_out(command: str, a: dict, usual: Callable[[str], object]) -> int:
    if command == "bench":
        return _bench(a, usual)
    if command == "labs":
        return _labs(a)
    if command == "table":
        from bdcourse.report.render import write

        write(**a)
        return 0
    from bdcourse.bench.zoo import remake

    return remake(**a)


def _labs(a: dict) -> int:
    if a["what"] == "course":
        from bdcourse.teach.nbgrader_course import make_course

        make_course(a["folder"], a["plan"])
        return 0
    if a["what"] == "confined":
        from bdcourse.teach.guarantees import broken, promises

        found = broken()
        print(promises(found))
        failed = [line for lines in found.values() for line in lines]
        print(*(f"\nnot refused: {line}" for line in failed), sep="", end="")
        return int(bool(failed))
    from bdcourse.teach.labs import links, reset, student
    from bdcourse.teach.progress import text

    if a["what"] == "progress":
        print(text(Path(a["out"])))
        return 0
    if a["what"] == "reset":
        kept = reset(a["name"], a["out"])
        print(f"{a['name']} begins anew; what was in its cell is now in {kept}.")
        print("If the lesson is open, reload it: File, Reload Notebook from Disk.")
        return 0
    if a["what"] == "links":
        print(links(a["repository"], a["branch"]))
        return 0
    return int(student(a["only"], a["out"]) > 0)


def _as_typed(text: str) -> str:
    """A sentence with the options of `bench` as they stand on a command line."""
    names = "size|clean|n_test|n|epochs|batch|lr|weight_decay|optimizer|clip|rate|width|pad"
    text = text.replace("flip=False", "--no-flip")
    return re.sub(
        rf"(?<![\w/.-])({names})=(?=\S)",
        lambda m: f"--{m[1].replace('_', '-')} ",
        text,
    )


def _bench(a: dict, usual: Callable[[str], object]) -> int:
    from bdcourse.bench.names import named
    from bdcourse.bench.recipes import Recipe
    from bdcourse.bench.run import run, run_zoo
    from bdcourse.task import USUAL

    given = {f.name: a.pop(f.name, None) for f in fields(Recipe)}
    given = {k: v for k, v in given.items() if v is not None}
    lists = {k: given.pop(k) for k in ("model", "width") if k in given}
    if (zoo := a.pop("zoo")) is not None:
        alone = (
            "data",
            "task",
            "attacks",
            "options",
            "seeds",
            "clean",
            "n",
            "n_test",
            "size",
            "keep",
            "recipe",
        )
        asked = [k for k in alone if a.pop(k) != usual(k)]
        if asked := [*asked, *given, *lists]:
            raise ValueError(
                f"--zoo takes victims as they are, so --{asked[0].replace('_', '-')} "
                "has no meaning beside it; leave one of the two out."
            )
        results = run_zoo(a.pop("out"), zoo, **a)
    else:
        scales = [
            given | dict(zip(lists, values, strict=True)) for values in product(*lists.values())
        ]
        a["options"] = _options(a["options"])
        if (task := a.pop("task")) is not None:
            if a["data"] != usual("data"):
                raise ValueError(
                    "--task takes its own drawn set, so --data has no meaning beside it; "
                    "leave one of the two out."
                )
            a["data"] = [USUAL[named("task", task, USUAL)].data]
        results = run(a.pop("data"), a.pop("out"), scales=scales, **a)
    return int(bool(results.failed))


def _options(text: str | None) -> dict[str, dict] | None:
    try:
        return None if text is None else json.loads(text)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"--options is not JSON ({e}).") from None


if __name__ == "__main__":
    sys.exit(main())
