"""Reading pickles as plain data: the steps are followed, but named code is never imported or called.

Python's own unpickler imports and calls what a pickle names, and reserves memory that a pickle merely claims. This
reader follows the same steps (``pickletools`` in Python's documentation lists them). Classes, functions and results of
calls become placeholders that keep only their names and arguments.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Sequence
from typing import IO, Any

from teso_deploy.errors import CheckpointError
from teso_deploy.text import to_one_line

#: The most steps of a pickle. Files of weights have fewer: 1,000 tensors take about 30,000. A step may take 60 times
#: its bytes of memory.
MOST_STEPS = 5_000_000
_MARK = object()
#: Modules and functions that a checkpoint never needs. Nothing runs here, but the next program may be less careful.
_HARMFUL_MODULES = frozenset(
    ("os", "posix", "nt", "subprocess", "shutil", "socket", "runpy", "importlib", "pty", "commands", "webbrowser")
)  # fmt: skip
_HARMFUL_FUNCTIONS = frozenset(
    f"{module}.{name}"
    for module in ("builtins", "__builtin__")
    for name in ("eval", "exec", "execfile", "compile", "open", "__import__", "breakpoint")
)


class Global:
    """A class or function that a pickle names. ``name`` includes the module."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name


class Placeholder:
    """The result of a call in a pickle: the name of the function, its arguments, and the state given to the result."""

    __slots__ = ("arguments", "name", "state")

    def __init__(self, name: str, arguments: Sequence[Any] = ()) -> None:
        self.name, self.arguments = name, tuple(arguments)
        self.state: Any = None


#: Converts a call in a pickle to a value that is not a placeholder.
Maker = Callable[[str, tuple[Any, ...]], Any]


class PickleReader:
    """Follows one pickle in a file.

    Args:
        file: A file at the start of the pickle. Afterwards it is positioned right after the pickle. Reading beyond
            its end must not take memory, as with ``BytesIO`` and ``mmap``.
        make: Maps the name of a function and its arguments to a value, or to a :class:`Placeholder` if unknown.
        persistent: Maps a persistent identifier to a value.
    """

    def __init__(self, file: IO[bytes], make: Maker, persistent: Callable[[Any], Any]) -> None:
        self._file, self._make, self._persistent = file, make, persistent
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def read(self) -> Any:
        """Return the pickled value.

        Raises:
            CheckpointError: The pickle names harmful code, or has too many steps.
            Exception: Random bytes raise ``ValueError``, ``IndexError`` and others.
        """
        for count, (opcode, argument, _) in enumerate(pickletools.genops(self._file)):
            if count == MOST_STEPS:
                raise CheckpointError(f"it holds more than {MOST_STEPS:,} objects")
            if opcode.name == "STOP":
                return self._stack.pop()
            self._follow(opcode.name, argument)
        raise ValueError("no end")

    def _follow(self, name: str, argument: Any) -> None:
        if step := _STEPS.get(name):
            step(self, argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name not in ("PROTO", "FRAME", "READONLY_BUFFER"):
            self._stack.append(argument)

    def _to_mark(self) -> list[Any]:
        place = len(self._stack) - 1
        while self._stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise ValueError("no mark")
        items = self._stack[place + 1 :]
        del self._stack[place:]
        return items

    def _pop(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise ValueError("nothing to take")
        items = self._stack[len(self._stack) - count :]
        del self._stack[len(self._stack) - count :]
        return items

    def _memoize(self, place: int | None) -> None:
        self._memo[len(self._memo) if place is None else place] = self._stack[-1]

    def _name(self, module: str, name: str) -> None:
        full = f"{module}.{name}"
        if module.split(".")[0] in _HARMFUL_MODULES or full in _HARMFUL_FUNCTIONS:
            raise CheckpointError(f"it holds {to_one_line(full, 100)}, and loading that may run code")
        self._stack.append(Global(full))

    def _global(self, argument: str) -> None:
        self._name(*argument.split(" ", 1))

    def _stack_global(self, _: Any) -> None:
        module, name = self._pop(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name that is not text")
        self._name(module, name)

    def _call(self, function: Any, arguments: Any) -> None:
        # As in Python, only a tuple is accepted. Copying a list would cost its memory at each call that names it.
        given = arguments if isinstance(arguments, tuple) else ()
        if isinstance(function, Global):
            self._stack.append(self._make(function.name, given))
        else:
            name = function.name if isinstance(function, Placeholder) else type(function).__name__
            self._stack.append(Placeholder(name, given))

    def _reduce(self, _: Any) -> None:
        self._call(*self._pop(2))

    def _new_with_keywords(self, _: Any) -> None:
        function, arguments, _keywords = self._pop(3)
        self._call(function, arguments)

    def _instance(self, argument: str) -> None:
        items = self._to_mark()
        self._global(argument)
        self._call(self._stack.pop(), tuple(items))

    def _object(self, _: Any) -> None:
        function, *arguments = self._to_mark()
        self._call(function, tuple(arguments))

    def _build(self, _: Any) -> None:
        made, state = self._pop(2)
        if isinstance(made, Placeholder):
            made.state = state
        self._stack.append(made)

    def _append_all(self, items: list[Any]) -> None:
        if isinstance(self._stack[-1], list):
            self._stack[-1].extend(items)

    def _set_all(self, items: list[Any]) -> None:
        made = self._stack[-1]
        if isinstance(made, dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                # Hashing nested tuples may take forever, and only text names a tensor.
                if isinstance(key, str | int):
                    made[key] = value

    def _dict(self, _: Any) -> None:
        items = self._to_mark()
        self._stack.append({})
        self._set_all(items)

    def _push(self, value: Any) -> None:
        self._stack.append(value)


_Step = Callable[[PickleReader, Any], None]
_CONSTANTS: dict[str, Any] = {"MARK": _MARK, "NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
# The steps may use private members of ``self``, which is the reader.
_STEPS: dict[str, _Step] = {
    "POP": lambda self, _: self._pop(1).clear(),
    "POP_MARK": lambda self, _: self._to_mark().clear(),
    "DUP": lambda self, _: self._push(self._stack[-1]),
    "EMPTY_LIST": lambda self, _: self._push([]),
    "EMPTY_DICT": lambda self, _: self._push({}),
    "EMPTY_SET": lambda self, _: self._push(Placeholder("builtins.set")),
    "TUPLE": lambda self, _: self._push(tuple(self._to_mark())),
    "TUPLE1": lambda self, _: self._push(tuple(self._pop(1))),
    "TUPLE2": lambda self, _: self._push(tuple(self._pop(2))),
    "TUPLE3": lambda self, _: self._push(tuple(self._pop(3))),
    "LIST": lambda self, _: self._push(self._to_mark()),
    "DICT": PickleReader._dict,
    "FROZENSET": lambda self, _: self._push(Placeholder("builtins.frozenset", self._to_mark())),
    "APPEND": lambda self, _: self._append_all(self._pop(1)),
    "APPENDS": lambda self, _: self._append_all(self._to_mark()),
    "SETITEM": lambda self, _: self._set_all(self._pop(2)),
    "SETITEMS": lambda self, _: self._set_all(self._to_mark()),
    "ADDITEMS": lambda self, _: self._to_mark().clear(),
    "GLOBAL": PickleReader._global,
    "STACK_GLOBAL": PickleReader._stack_global,
    "REDUCE": PickleReader._reduce,
    "NEWOBJ": PickleReader._reduce,
    "NEWOBJ_EX": PickleReader._new_with_keywords,
    "INST": PickleReader._instance,
    "OBJ": PickleReader._object,
    "BUILD": PickleReader._build,
    "PERSID": lambda self, argument: self._push(self._persistent(argument)),
    "BINPERSID": lambda self, _: self._push(self._persistent(*self._pop(1))),
    "MEMOIZE": PickleReader._memoize,
    **{name: PickleReader._memoize for name in ("PUT", "BINPUT", "LONG_BINPUT")},
    **{
        name: (lambda self, place: self._push(self._memo[place]))
        for name in ("GET", "BINGET", "LONG_BINGET")
    },
    **{name: (lambda self, number: self._push(Placeholder("copyreg", (number,)))) for name in ("EXT1", "EXT2", "EXT4")},
}  # fmt: skip
