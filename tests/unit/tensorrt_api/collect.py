"""Lists the names in a TensorRT Python package, for ``tests/unit/test_tensorrt_api.py``.

    python collect.py tensorrt_rtx rtx-1.7.json              an installed package, with its libraries
    python collect.py tensorrt_bindings 11.4.json --stubs    bindings alone, without their libraries

With ``--stubs``, gcc compiles empty C functions, under the libraries' names, for all functions that the bindings need
from TensorRT's libraries. That is enough to import the bindings and to inspect every class, but not to build anything.
A list is {"": [names of the module], "Class": [its names], "Class.Nested": […]}.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import importlib.util
import inspect
import json
import re
import subprocess
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any


def stub_libraries(package: str) -> None:
    """Load empty stand-ins for the TensorRT libraries that a package's extension module is linked to."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"no package {package} in this environment")
    (extension,) = Path(spec.submodule_search_locations[0]).glob("tensorrt*.so")
    needed = subprocess.run(["readelf", "-d", extension], capture_output=True, text=True, check=True).stdout
    undefined = subprocess.run(["nm", "-D", "--undefined-only", extension], capture_output=True, text=True, check=True)
    symbols = re.findall(r" U (\w*(?:_INTERNAL|PluginRegistry|ParserVersion|InferPlugins))$", undefined.stdout, re.M)
    libraries = re.findall(r"\[(lib(?:nv|tensorrt)\S+)\]", needed)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "stubs.c"
        source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in symbols))
        for library in libraries:  # each has all functions, because the loader takes the first match
            target = Path(folder) / library
            subprocess.run(["gcc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", target, source], check=True)
            ctypes.CDLL(str(target), mode=ctypes.RTLD_GLOBAL)


def public(thing: Any) -> list[str]:
    """List a thing's names, without those that begin with an underscore and without imported modules."""
    names = [name for name in dir(thing) if not name.startswith("_")]
    return [name for name in names if not inspect.ismodule(getattr(thing, name))]


def offers(module: ModuleType) -> dict[str, list[str]]:
    """Return the list of a module."""
    found = {"": sorted([*public(module), "__version__"])}
    waiting = [(name, getattr(module, name)) for name in public(module)]
    while waiting:
        name, thing = waiting.pop()
        if inspect.isclass(thing) and thing.__module__.startswith(module.__name__):
            found[name] = public(thing)
            # An enumeration's members have the enumeration's type and are not nested classes.
            waiting += [(f"{name}.{inner}", getattr(thing, inner)) for inner in found[name]]
    return dict(sorted(found.items()))


def main() -> None:
    """Write the list of a package."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package")
    parser.add_argument("out", type=Path)
    parser.add_argument("--stubs", action="store_true")
    options = parser.parse_args()
    if options.stubs:
        stub_libraries(options.package)
    found = offers(importlib.import_module(options.package))
    lines = [f"{json.dumps(name)}: {json.dumps(names)}" for name, names in found.items()]
    options.out.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(f"{options.out}: {len(found)} classes, {sum(map(len, found.values()))} names")


if __name__ == "__main__":
    main()
