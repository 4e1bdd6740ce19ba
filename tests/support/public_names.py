"""The public names: what a user writes after `asp.`, and the methods of the classes among them."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import attnsparse as asp

PACKAGES = [
    module
    for info in pkgutil.iter_modules(asp.__path__, "attnsparse.")
    if info.ispkg and hasattr(module := importlib.import_module(info.name), "__all__")
]


def addresses() -> dict[str, object]:
    """{what a user writes after `asp.`: the object}; a name of the top is not repeated by its package."""
    at_top = {name: getattr(asp, name) for name in asp.__all__ if name != "__version__"}
    found = {name: value for name, value in at_top.items() if not inspect.ismodule(value)}
    for package in PACKAGES:
        short = package.__name__.partition(".")[2]
        inside = {name: getattr(package, name) for name in package.__all__}
        found |= {f"{short}.{name}": value for name, value in inside.items() if at_top.get(name) is not value}
    return found


PUBLIC = addresses()
CLASSES_OF_OURS = {name: value for name, value in PUBLIC.items() if inspect.isclass(value)}


def methods(kind: type) -> dict[str, object]:
    """The public methods and properties that a class defines or inherits from a class of ours."""
    ours = [base for base in kind.__mro__ if base.__module__.startswith("attnsparse")]
    found = {name: value for base in reversed(ours) for name, value in vars(base).items() if name[0] != "_"}
    return {
        name: getattr(value, "__func__", value)
        for name, value in found.items()
        if isinstance(value, (property, classmethod, staticmethod)) or inspect.isfunction(value)
    }
