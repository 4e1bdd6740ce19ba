"""Docstrings of public names are in numpydoc form, and their sections agree with the signature."""

from __future__ import annotations

import dataclasses
import inspect
import re

import pytest
from public_names import CLASSES_OF_OURS, PUBLIC, methods

numpydoc = pytest.importorskip("numpydoc.docscrape", reason="needs the extra docs")
validate = pytest.importorskip("numpydoc.validate", reason="needs the extra docs")

# No docstring or summary, unknown sections or their order; parameters that are missing, unknown or in another
# order.
CODES = {"GL06", "GL07", "GL08", "SS01", "PR01", "PR02", "PR03"}
MADE_BY = re.compile(r"\b[Mm]ade by `")  # a function, not the user, who need not know the signature
NOTHING = (None, "None", "NoReturn", inspect.Signature.empty)

METHODS = {
    f"{name}.{method}": value
    for name, kind in CLASSES_OF_OURS.items()
    for method, value in methods(kind).items()
}
FUNCTIONS = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value)}
DOCUMENTED = FUNCTIONS | CLASSES_OF_OURS | METHODS
# Methods that are functions of other modules, which call their own object by its kind.
OF_OTHERS = [
    value
    for value in METHODS.values()
    if inspect.isfunction(value) and [*inspect.signature(value).parameters][:1] in (["graph"], ["circuit"])
]


class Validator(validate.Validator):
    """numpydoc's, for an object instead of a name."""

    def __init__(self, obj_name: object) -> None:
        super().__init__(numpydoc.get_doc_object(obj_name))

    @property
    def signature_parameters(self) -> tuple[str, ...]:
        names = super().signature_parameters
        return names[1:] if self.obj in OF_OTHERS else names


def fields(kind: type) -> list[str]:
    """The public fields of a dataclass or named tuple."""
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind) if field.name[0] != "_"]
    return list(getattr(kind, "_fields", ()))


def problems(value: object) -> list[str]:
    """What is wrong with the docstring of a function, class, method or property."""
    errors = validate.validate(value, Validator)["errors"]
    found = [f"{code} {message}" for code, message in errors if code in CODES]
    doc = numpydoc.NumpyDocString(inspect.getdoc(value) or "")
    if inspect.isclass(value):
        is_read = MADE_BY.search(value.__doc__ or "") or doc["Attributes"]
        if is_read or issubclass(value, Exception) or getattr(value, "_is_protocol", False):
            found = [problem for problem in found if not problem.startswith("PR")]
        entries = [*doc["Parameters"], *doc["Attributes"]]
        listed = {name for entry in entries for name in entry.name.split(", ")}
        found += [f"field {name} is not described" for name in fields(value) if name not in listed]
    elif inspect.isfunction(value):
        returned = inspect.signature(value).return_annotation
        if returned not in NOTHING and not doc["Returns"] and not doc["Yields"]:
            found.append(f"no section Returns, but it returns {returned}")
    return found


@pytest.mark.parametrize("name", DOCUMENTED)
def test_sections_agree_with_the_signature(name):
    assert problems(DOCUMENTED[name]) == [], f"docstring of asp.{name}"


def _without_returns(a: int) -> int:
    """Summary.

    Parameters
    ----------
    b : int
        Another name.
    """
    return a


@dataclasses.dataclass
class _Result:
    """A result. Made by `something`.

    Attributes
    ----------
    first : int
        One of two.
    """

    first: int
    second: int


def test_the_check_can_fail():
    missing, unknown, returns = problems(_without_returns)
    assert missing.startswith("PR01")
    assert unknown.startswith("PR02")
    assert returns == "no section Returns, but it returns int"
    assert problems(_Result) == ["field second is not described"]
