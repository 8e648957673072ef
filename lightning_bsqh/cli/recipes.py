"""The recipes: where they lie, and the command ``lightning-bsqh recipes``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

_SUFFIXES = (".yaml", ".yml")


def recipe_folder() -> Path:
    """Where the recipes lie: inside the installed package, or beside it in a checkout.

    Raises:
        FileNotFoundError: If they are in neither place.
    """
    package = Path(__file__).parents[1]
    for folder in (package / "recipes", package.parent / "recipes"):
        if any(folder.glob("*.yaml")):
            return folder
    raise FileNotFoundError(f"The recipes are neither in {package / 'recipes'} nor in {package.parent / 'recipes'}.")


def recipe_names() -> list[str]:
    """The names of all recipes, without ``.yaml``."""
    return sorted(path.stem for path in recipe_folder().glob("*.yaml"))


def recipe_path(name: str) -> Path:
    """Where a recipe lies.

    Args:
        name: Its name, with or without ``.yaml``.

    Raises:
        FileNotFoundError: If there is no such recipe.
    """
    path = recipe_folder() / f"{name.removesuffix('.yaml')}.yaml"
    if Path(name).name != name or not path.is_file():
        raise FileNotFoundError(f"There is no recipe {name}: choose from {', '.join(recipe_names())}.")
    return path


def find_recipes(args: Sequence[str]) -> list[str]:
    """The arguments of a command line, with the paths of recipes in place of their names after ``--config``.

    A file of the user's that has the name goes first.

    Args:
        args: As typed.

    Raises:
        FileNotFoundError: If there is neither a file nor a recipe of the name.
    """
    found: list[str] = []
    for index, argument in enumerate(args):
        option, equals, value = argument.partition("=")
        if option in ("--config", "-c") and equals:
            argument = f"{option}={_config(value)}"
        elif index and args[index - 1] in ("--config", "-c"):
            argument = _config(argument)
        found.append(argument)
    return found


def _config(value: str) -> str:
    path = Path(value)
    # A text with a line or a brace is a configuration itself.
    if not value or "\n" in value or "{" in value or path.exists() or path.name != value:
        return value
    if path.suffix in _SUFFIXES and value.removesuffix(".yaml") not in recipe_names():
        return value  # a file that does not exist: jsonargparse says so
    return str(recipe_path(value))


def first_sentence(path: Path) -> str:
    """What a recipe shows: the first sentence of the comment at its top."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.removeprefix("#").strip():
            break
        lines.append(line.removeprefix("#").strip())
    return " ".join(lines)


def copy_recipe(name: str, folder: Path) -> Path:
    """Copies a recipe into a folder, made if needed.

    Raises:
        FileNotFoundError: If there is no such recipe.
        FileExistsError: If there is a file of its name; it stays as it is.
    """
    source = recipe_path(name)
    target = folder / source.name
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with target.open("x", encoding="utf-8") as file:
            file.write(source.read_text(encoding="utf-8"))
    except FileExistsError as error:
        raise FileExistsError(f"{target} is there already and stays as it is: name another folder.") from error
    return target


def run(options: argparse.Namespace) -> int:
    """Lists the recipes, prints one, or copies one.

    Args:
        options: ``name``, or None for all, and ``copy``, a folder or None.

    Raises:
        SystemExit: If there is no such recipe, or a file of its name is there already.
    """
    if options.name is None and options.copy is not None:
        raise SystemExit(f"Name the recipe to copy: {', '.join(recipe_names())}.")
    try:
        if options.copy is not None:
            print(f"copied to {copy_recipe(options.name, options.copy)}")
        elif options.name is not None:
            print(recipe_path(options.name).read_text(encoding="utf-8"), end="")
        else:
            _list()
    except OSError as error:
        raise SystemExit(str(error)) from error
    return 0


def _list() -> None:
    names = recipe_names()
    width = max(map(len, names))
    for name in names:
        print(f"{name:<{width}}  {first_sentence(recipe_path(name))}")
    print("\nTrain by one:    lightning-bsqh fit --config NAME")
    print("Have it copied:  lightning-bsqh recipes NAME --copy")
