"""`dataclass` as the standard library has it, for a tenth of its time and a fraction of its memory.

The standard library compiles six methods a class from source, which takes 0.5 ms of a process's start for each of the
agent's 150 classes (docs/decisions/0021). Here only `__init__` is compiled, when the first object is made; the other
methods are closures that do the same. What is not used here is not offered: inheritance between such classes,
`__post_init__`, order, `init=False`.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

__all__ = ["dataclass"]

if TYPE_CHECKING:
    from dataclasses import dataclass
else:
    import functools
    import operator
    import reprlib

    def dataclass(cls=None, /, *, frozen=False, slots=False, eq=True):
        """`dataclasses.dataclass` with these of its arguments."""
        if cls is None:
            return functools.partial(dataclass, frozen=frozen, slots=slots, eq=eq)
        cls.__doc__ = cls.__doc__ or cls.__name__  # else the standard library makes one, of the signature
        made = dataclasses.dataclass(init=False, repr=False, eq=False, slots=slots)(cls)
        fields = dataclasses.fields(made)
        methods = {"__init__": _init_at_first_use(made, fields, frozen), "__repr__": _repr(fields)}
        if eq:
            methods |= _comparison(fields, frozen)
        for name, method in methods.items():
            if name not in made.__dict__:
                setattr(made, name, method)
        if frozen:
            made.__setattr__, made.__delattr__ = _refuse_change, _refuse_removal
            made.__getstate__, made.__setstate__ = _state, _restore
        return made

    def _init_at_first_use(cls, fields, frozen):
        """Most of the agent's classes are never used by most agents: 30 us and 2 KB for each."""

        def __init__(self, *args, **kwargs):  # noqa: N807
            cls.__init__ = _init(cls, fields, frozen)
            cls.__init__(self, *args, **kwargs)

        return __init__

    def _init(cls, fields, frozen):
        known, parameters, body = {}, [], []
        for each in fields:
            name, given = each.name, each.name
            parameter = name
            if each.default is not dataclasses.MISSING:
                known[f"_default_{name}"] = each.default
                parameter += f"=_default_{name}"
            elif each.default_factory is not dataclasses.MISSING:
                known["_missing"], known[f"_make_{name}"] = dataclasses.MISSING, each.default_factory
                parameter += "=_missing"
                given = f"_make_{name}() if {name} is _missing else {name}"
            parameters.append(parameter)
            if frozen:
                known[f"_set_{name}"] = _setter(cls, name)
                body.append(f" _set_{name}(self, {given})")
            else:
                body.append(f" self.{name} = {given}")
        exec(f"def __init__(self, {', '.join(parameters)}):\n" + ("\n".join(body) or " pass"), known)
        made = known.pop("__init__")
        made.__qualname__ = f"{cls.__qualname__}.__init__"
        return made

    def _setter(cls, name):
        """What sets a field in spite of `__setattr__`."""
        member = cls.__dict__.get(name)
        if type(member).__name__ == "member_descriptor":  # a slot's: the quickest
            return member.__set__
        return lambda self, value: object.__setattr__(self, name, value)

    def _values_of(fields):
        """A function from an object to a tuple of these fields' values."""
        names = [each.name for each in fields]
        if len(names) > 1:
            return operator.attrgetter(*names)
        return lambda self: tuple(getattr(self, name) for name in names)

    def _repr(fields):
        names = [each.name for each in fields if each.repr]

        @reprlib.recursive_repr()
        def __repr__(self):  # noqa: N807
            told = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
            return f"{type(self).__qualname__}({told})"

        return __repr__

    def _comparison(fields, frozen):
        values_of = _values_of([each for each in fields if each.compare])

        def __eq__(self, other):  # noqa: N807
            return values_of(self) == values_of(other) if type(other) is type(self) else NotImplemented

        def __hash__(self):  # noqa: N807
            return hash(values_of(self))

        return {"__eq__": __eq__, "__hash__": __hash__ if frozen else None}

    def _refuse_change(self, name, value):
        raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")

    def _refuse_removal(self, name):
        raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")

    def _state(self):
        return [getattr(self, each.name) for each in dataclasses.fields(self)]

    def _restore(self, state):
        for each, value in zip(dataclasses.fields(self), state, strict=True):
            object.__setattr__(self, each.name, value)
