"""The recipes of launch/ as subcommands: `meloformer train ...` is `python launch/train.py ...`.

meloformer generate --output out.mid
meloformer tools watch --run runs/<name>
meloformer bench data
"""

import ast
import sys
from pathlib import Path
from types import ModuleType

from meloformer.command_line import EXIT_REFUSED, LAUNCH


def recipes() -> dict[tuple[str, ...], Path]:
    """Every recipe by the words that call it, those of launch/ itself first.

    >>> recipes()["tools", "watch"].name
    'watch.py'
    """
    scripts = [*sorted(LAUNCH.glob("*.py")), *sorted(LAUNCH.glob("*/*.py"))]
    return {
        path.relative_to(LAUNCH).with_suffix("").parts: path
        for path in scripts
        if path.stem != "__init__"
    }


def main() -> None:
    """Run the recipe that the first words of the command line name, with the words after them.

    Raises:
        SystemExit: what the recipe ends with; 2 where there is no such recipe.
    """
    known, words = recipes(), sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        print(_overview(known))
        sys.exit(0)
    spelled = tuple(word.replace("-", "_") for word in words[:2])
    name = next((spelled[:length] for length in (2, 1) if spelled[:length] in known), None)
    if name is None:
        groups = {parts[0] for parts in known if len(parts) > 1}
        found = " ".join(words[:2] if words[0] in groups else words[:1])
        sys.stderr.write(
            f"error: meloformer {found}: found no such command; allowed: those that "
            "`meloformer --help` lists\n"
        )
        sys.exit(EXIT_REFUSED)
    # What --help calls itself.
    sys.argv = [" ".join(("meloformer", *name)), *words[len(name) :]]
    _run_as_main(known[name])


def _run_as_main(path: Path) -> None:
    """Run a script as Python does, which `runpy` does too, but under its own name for argv[0]."""
    script = ModuleType("__main__")
    # Processes that are started anew import the main module from here.
    script.__file__ = str(path)
    sys.modules["__main__"] = script
    sys.path[0] = str(path.parent)
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), vars(script))


def _overview(known: dict[tuple[str, ...], Path]) -> str:
    """A line for each recipe: the words that call it, and what it does."""
    width = max(len(" ".join(parts)) for parts in known)
    lines = [f"  {' '.join(parts):<{width}}  {_first_line(path)}" for parts, path in known.items()]
    return "\n".join(["meloformer COMMAND [flags]; each has --help", "", *lines])


def _first_line(path: Path) -> str:
    """First line of a script's docstring; nothing of it is run."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").split("\n")[0]


if __name__ == "__main__":
    main()
