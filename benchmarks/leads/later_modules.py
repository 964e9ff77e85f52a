"""sql_scanner and script_runner, with their regular expressions, are loaded when there is a file to apply.

To be imported before initializer.
"""

from __future__ import annotations

import sys
import types
from typing import Any


class Later(types.ModuleType):
    """A module that is loaded at the first look at what is not given here."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # `import` itself looks for some
            raise AttributeError(name)
        sys.modules.pop(self.__name__, None)
        return getattr(__import__(self.__name__), name)


def later(name: str, **given: Any) -> None:
    sys.modules[name] = Later(name)
    vars(sys.modules[name]).update(given)


later("sql_scanner", Script=None, PLAIN="0:", TOKENS="1:", LONG="2:")
later("script_runner", Outcome=None)
