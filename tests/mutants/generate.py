"""Makes mutants with cosmic-ray, in the environment .mutants: `generate.py SEED EVERY FOLDER FILE …`.

Prints one JSON object a line, in an order that the seed gives. Only each EVERYth possible mutant is made: which ones
depends on nothing but the text of their lines, so that other changes to a file do not change them.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator

# One for each kind of mistake: the others, such as % for +, only crash.
OPERATORS = (
    *("AddNot", "ReplaceUnaryOperator_Delete_Not", "ReplaceAndWithOr", "ReplaceOrWithAnd"),
    *("ReplaceTrueWithFalse", "ReplaceFalseWithTrue", "ReplaceBreakWithContinue", "ReplaceContinueWithBreak"),
    *("ReplaceComparisonOperator_Eq_NotEq", "ReplaceComparisonOperator_NotEq_Eq"),
    *("ReplaceComparisonOperator_Lt_LtE", "ReplaceComparisonOperator_LtE_Lt"),
    *("ReplaceComparisonOperator_Gt_GtE", "ReplaceComparisonOperator_GtE_Gt"),
    *("ReplaceComparisonOperator_Is_IsNot", "ReplaceComparisonOperator_IsNot_Is"),
    *("ReplaceBinaryOperator_Add_Sub", "ReplaceBinaryOperator_Sub_Add", "ReplaceBinaryOperator_Mul_FloorDiv"),
    *("NumberReplacer", "ZeroIterationForLoop"),
)


class Possible(NamedTuple):
    """A mutant that can be made: which occurrence of the operator in the file, and in which line."""

    file: str
    operator: str
    occurrence: int
    line: int


def possible(file: str, text: str) -> Iterator[Possible]:
    tree = get_ast(text)
    for name in OPERATORS:
        operator = get_operator(f"core/{name}")()
        occurrence = 0
        for node in ast_nodes(tree):
            for (line, _), _ in operator.mutation_positions(node):
                yield Possible(file, name, occurrence, line)
                occurrence += 1


def is_chosen(every: int, text: str, found: Possible) -> bool:
    """By the words of the line alone: where it stands, and what precedes it, does not matter."""
    words = f"{found.file} {found.operator} {text.splitlines()[found.line - 1].strip()}"
    return int(hashlib.sha256(words.encode()).hexdigest(), 16) % every == 0


def main() -> None:
    seed, every, folder, *files = sys.argv[1:]
    texts = {file: (Path(folder) / file).read_text() for file in files}
    chosen = [
        found for file, text in texts.items() for found in possible(file, text) if is_chosen(int(every), text, found)
    ]
    random.Random(seed).shuffle(chosen)
    print(json.dumps(len(chosen)), flush=True)
    for file, name, occurrence, line in chosen:
        changed = mutate_code(texts[file], get_operator(f"core/{name}")(), occurrence)
        if changed is None or changed == texts[file]:
            continue
        pairs = zip(texts[file].split("\n"), changed.split("\n"))
        before, after = next((old, new) for old, new in pairs if old != new)
        known = {"file": file, "operator": name, "line": line, "before": before, "after": after}
        print(json.dumps({**known, "text": changed}), flush=True)


if __name__ == "__main__":
    main()
