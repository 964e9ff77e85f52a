"""What a file does to an application that is running, as far as its text tells.

    Known(schema)                   what the files until now have made; nothing yet
    findings(name, script, known)   what the guide warns of in the next file

Each finding names the recipe of the guide that avoids it. A table that the file itself has made is
nobody's yet. Statements in a DO block count, since they run with the file. Bodies of functions do
not, since they run later; nor what EXECUTE makes of a string, which only the server sees.

Only `check` needs this. Knows PostgreSQL and scripts, no database: not how large a table is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Callable, NamedTuple

import file_names
import sql_scanner
from sql_scanner import Script


class Rule(NamedTuple):
    recipe: str  # its heading in databaseModificationGuide.md
    effect: str  # what the application suffers


_GONE = "deployed code that uses {} fails"
_CHECKED = "nobody can read or write {} while all its rows are checked"
_REWRITTEN = "nobody can read or write {} while it is rewritten"
RULES = {
    "index": Rule("Create an index", "nobody can write to {} until the index is built"),
    "drop-index": Rule("Create an index", "who uses the table of {} waits as long as this waits"),
    "reindex": Rule(
        "Create an index", "nobody can write to {}, or read it by index, until it is built"
    ),
    "not-null": Rule("Make a column NOT NULL", _CHECKED),
    "type": Rule("Change a type that is stored differently", _REWRITTEN),
    "computed-default": Rule("Add a column with a computed default", _REWRITTEN),
    "required-column": Rule(
        "Add a column", "it fails if {} has rows, or deployed code cannot add any"
    ),
    "foreign-key": Rule(
        "Add a foreign key", "nobody can write to {} while all its rows are checked"
    ),
    "check": Rule("Add a check constraint", _CHECKED),
    "unique": Rule("Make values unique", "nobody can read or write {} while an index is built"),
    "rename-column": Rule("Rename a column", _GONE),
    "rename": Rule("Rename a table", _GONE),
    "enum-value": Rule("Add an enum value", _GONE),
    "drop": Rule("Drop a column or a table", _GONE + ", and what is in it is lost"),
    "cascade": Rule("Drop a column or a table", "CASCADE drops whatever depends on {}"),
    "truncate": Rule("Drop a column or a table", "all rows of {} are lost"),
    "back-fill": Rule("Back-fill a column", "nobody can use {} while these rows are written"),
    "partition": Rule("Partition a table", "nobody can use {} while all its rows are read"),
    "rewrite": Rule("A table that is too big", _REWRITTEN),
    "row-security": Rule("Turn on row-level security", "no row of {} is there without a policy"),
    "repeatable": Rule(
        "Repeatable files",
        "when the file runs again, this fails or adds the same once more: write OR REPLACE, IF NOT "
        "EXISTS or ON CONFLICT, or drop or delete first",
    ),
    "schema": Rule("Use another schema than public", "permission denied for schema {} in the code"),
}


class Finding(NamedTuple):
    file: str
    line: int
    rule: str
    effect: str

    @property
    def recipe(self) -> str:
        return RULES[self.rule].recipe if self.rule in RULES else ""

    def __str__(self) -> str:
        recipe = f", see {self.recipe}" if self.recipe else ""
        return f"{self.file}:{self.line}: {self.effect} [{self.rule}{recipe}]"

    def told(self, level: str) -> dict[str, object]:
        """The finding in a report; `level` is warning or error."""
        more = {"recipe": self.recipe, "level": level, "message": str(self)}
        return {**self._asdict(), **more}


def findings(file: str, script: Script, known: Known, is_new: bool = True) -> list[Finding]:
    """The findings in the next file that it does not allow; of one that is applied, none."""
    review = _Review(script, known, is_new, file_names.is_repeatable(file))
    review.read()
    if not is_new:
        return []
    found = [
        Finding(file, sql_scanner.locate(script.text, offset)[0], rule, effect)
        for offset, rule, effect in review.not_allowed()
    ]
    return sorted(found)


# --- What files have made -------------------------------------------------------------------------


@dataclass
class Known:
    schema: str  # the one that needs not be named
    columns: dict[str, dict[str, Type]] = field(default_factory=dict)  # of each relation
    # By table and name: the rule that it belongs to, what it says, and whether it is valid.
    constraints: dict[tuple[str, str], tuple[str, str, bool]] = field(default_factory=dict)
    policies: set[str] = field(default_factory=set)  # the tables that have one
    granted: set[str] = field(default_factory=set)  # schemas

    def proofs(self, table: str) -> list[str]:
        """What is true of all rows of the table."""
        every = self.constraints.items()
        return [what for (on, _), (rule, what, valid) in every if (on, valid) == (table, True)]

    def rename(self, old: str, new: str) -> None:
        if old in self.columns:
            self.columns[new] = self.columns.pop(old)
        if old in self.policies:
            self.policies.add(new)
        for table, name in list(self.constraints):
            if table == old:
                self.constraints[new, name] = self.constraints.pop((old, name))


class Type(NamedTuple):
    """In PostgreSQL's own words, with the numbers in its parentheses."""

    base: str
    size: tuple[str, ...]


_ALIASES = {
    "BIGSERIAL": "BIGINT",
    "BIT VARYING": "VARBIT",
    "BOOL": "BOOLEAN",
    "CHARACTER": "CHAR",
    "CHARACTER VARYING": "VARCHAR",
    "DECIMAL": "NUMERIC",
    "INT": "INTEGER",
    "INT2": "SMALLINT",
    "INT4": "INTEGER",
    "INT8": "BIGINT",
    "SERIAL": "INTEGER",
    "TIMESTAMP WITH TIME ZONE": "TIMESTAMPTZ",
    "TIMESTAMP WITHOUT TIME ZONE": "TIMESTAMP",
}
_WIDENED = ("VARCHAR", "VARBIT", "NUMERIC", "TIME", "TIMESTAMP", "TIMESTAMPTZ", "INTERVAL")
_AFTER_A_TYPE = re.compile(
    r" (?:(?:NOT )?NULL|DEFAULT|PRIMARY|UNIQUE|REFERENCES|CHECK|CONSTRAINT|COLLATE|GENERATED|USING)"
    r"(?!\S)"
)
# What a default can name before a parenthesis, without another value for each row.
_STABLE = re.compile(
    "NOW|(STATEMENT|TRANSACTION)_TIMESTAMP|CURRENT_.*|LOCALTIME.*|TIMEZONE|DATE_(PART|TRUNC)"
    "|EXTRACT|CAST|COALESCE|NULLIF|GREATEST|LEAST|LOWER|UPPER|CONCAT|MD5|ABS|ROUND|LENGTH|ROW"
    "|(ARRAY|JSONB?|MAKE|TO|ENUM)_.*|(VAR)?CHAR|CHARACTER|VARYING|NUMERIC|DECIMAL|(VAR)?BIT"
    "|TIME|TIMESTAMP|TIMESTAMPTZ|INTERVAL|DEFAULT|AND|OR|NOT|ZONE"
)


def type_of(text: str) -> Type:
    """The type that this begins with."""
    words = re.split(_AFTER_A_TYPE, text)[0].upper().removeprefix("PG_CATALOG.")
    base = re.sub(r" \( [\d ,]*\)", "", words)
    return Type(_ALIASES.get(base, base), tuple(re.findall(r"\d+(?= [,)])", words)))


def keeps_values(old: Type, new: Type) -> bool:
    """Both types store their values alike: PostgreSQL changes nothing but the catalog."""
    if old == new or ({old.base, new.base} <= {"TEXT", "VARCHAR"} and not new.size):
        return True
    if old.base != new.base or old.base not in _WIDENED:
        return False
    if not old.size or not new.size:
        return not new.size
    return int(old.size[0]) <= int(new.size[0]) and old.size[1:] == new.size[1:]


def is_computed(definition: str) -> bool:
    """A column that is added so has another value in each row."""
    if re.match(r"(?:(?:SMALL|BIG)?SERIAL|SERIAL[248])\b|.* (?:STORED|AS IDENTITY)\b", definition):
        return True
    default = re.split(_AFTER_A_TYPE, definition.partition(" DEFAULT ")[2])[0]
    called = re.findall(r'([\w"]+) \(', default)
    return any(not _STABLE.fullmatch(name.strip('"').upper()) for name in called)


# --- The shape of a statement ---------------------------------------------------------------------

# Keywords are in capitals. A quoted name is as it is stored, with its quotes where those matter.
_NAMED = r"(?:IF (?:NOT )?EXISTS )?(?:ONLY )?(\S+)"
_NOT_LATER = r"\b(?!.* NOT (?:VALID|ENFORCED))"
_CONSTRAINT = r"ADD (?:CONSTRAINT \S+ )?"
_STATEMENTS = {
    "index": r"CREATE (?:UNIQUE )?INDEX (?!CONCURRENTLY )[^\[]*?\bON (?!ONLY )(\S+)",
    "drop-index": r"DROP INDEX (?!CONCURRENTLY )(?:IF EXISTS )?(.*)",
    "reindex": r"REINDEX (?!.*\bCONCURRENTLY\b)(?:VERBOSE )?\w+ (\S+)",
    "truncate": r"TRUNCATE (?:TABLE )?(.*)",
    "rewrite": r"(?:VACUUM(?=.* FULL\b)|CLUSTER)(?: (?:VERBOSE|ANALYZE|FREEZE|FULL))* ?(\S*)",
    "cascade": r"DROP (?!TABLE|VIEW|TYPE|DOMAIN|SCHEMA)[A-Z]+ " + _NAMED + ".* CASCADE",
    "drop": r"DROP (?:MATERIALIZED |FOREIGN )?(?:TABLE|VIEW|TYPE|DOMAIN|SCHEMA) (.*)",
    "schema": r"CREATE SCHEMA (?:IF NOT EXISTS )?(?!AUTHORIZATION )(\S+)",
}
_ACTIONS = {
    "not-null": rf"ALTER (?:COLUMN )?(\S+) SET NOT NULL|{_CONSTRAINT}NOT NULL{_NOT_LATER}",
    "type": r"ALTER (?:COLUMN )?(\S+) (?:SET DATA )?TYPE (.*)",
    "foreign-key": _CONSTRAINT + "FOREIGN KEY" + _NOT_LATER,
    "check": _CONSTRAINT + "CHECK" + _NOT_LATER,
    "unique": _CONSTRAINT + r"(?:UNIQUE|PRIMARY KEY|EXCLUDE)\b(?!.*USING INDEX)",
    "rename": r"RENAME TO (\S+)|SET SCHEMA (\S+)",
    "enum-value": r"RENAME VALUE (\S+)",
    "rename-column": r"RENAME (?:COLUMN |ATTRIBUTE )?(?!(?:CONSTRAINT|TO|VALUE) )(\S+) TO (\S+)",
    "drop": r"DROP (?!(?:CONSTRAINT|ATTRIBUTE) )(?:COLUMN )?" + _NAMED,
    "cascade": r"DROP CONSTRAINT " + _NAMED + " CASCADE",
    "partition": r"ATTACH PARTITION (\S+)",
    "rewrite": r"SET (?:LOGGED|UNLOGGED|TABLESPACE|ACCESS METHOD)",
    "row-security": r"(?:ENABLE|FORCE) ROW LEVEL SECURITY",
}

_MADE = re.compile(
    r"CREATE (?:OR REPLACE )?(?:(?:GLOBAL|LOCAL|TEMP|TEMPORARY|UNLOGGED|FOREIGN|MATERIALIZED|UNIQUE"
    r"|RECURSIVE) )*(TABLE|VIEW|INDEX|TYPE|DOMAIN|FUNCTION|PROCEDURE) (?:CONCURRENTLY )?"
    r"(IF NOT EXISTS )?(\S+)"
)
_ALTERED = re.compile(r"ALTER (?:FOREIGN |MATERIALIZED )?(TABLE|VIEW|TYPE|DOMAIN|SCHEMA) " + _NAMED)
_ACTION_VERBS = ("ADD", "ALTER", "ATTACH", "DROP", "ENABLE", "FORCE", "RENAME", "SET", "VALIDATE")
_IS_CONSTRAINT = re.compile(
    "(?:ADD )?(?:CONSTRAINT|CHECK|UNIQUE|PRIMARY|FOREIGN|EXCLUDE|LIKE|NOT) "
)
# What a repeatable file takes away, and what it makes or adds only once.
_REMOVED = re.compile(
    r"(DROP (?:MATERIALIZED |FOREIGN )?[A-Z]+|TRUNCATE(?: TABLE)?|DELETE FROM) (IF EXISTS )?(.*)"
)
_MADE_ONCE = re.compile(
    r"CREATE (?!OR REPLACE |(?:GLOBAL |LOCAL )?TEMP|.*IF NOT EXISTS )"
    r"(?:(?:UNLOGGED|FOREIGN|MATERIALIZED|UNIQUE|RECURSIVE|CONSTRAINT) )*[A-Z]+ (\S+)"
    r"|(?:WITH .*)?INSERT INTO (\S+)(?!.*(?:ON CONFLICT|NOT EXISTS|EXCEPT))|COPY (\S+) .*FROM "
    r"|ADD (?!(?:COLUMN |VALUE )?IF NOT EXISTS )(?:COLUMN |CONSTRAINT |VALUE )?(\S+)"
    r"|RENAME (?:.* )?TO (\S+)"
)
_OWNER = re.compile(r"CREATE .*?(?:INDEX|TRIGGER|POLICY|RULE) .*?\bON (\S+)")
_WRITES = re.compile("UPDATE|DELETE|MERGE|INSERT.* FROM |WITH.* (?:UPDATE|DELETE|INSERT|MERGE) ")


class Token(NamedTuple):
    text: str
    offset: int

    @property
    def word(self) -> str:
        return self.text.upper()


def _shape(tokens: Sequence[Token], schema: str) -> str:
    """The statement with single spaces, without what its strings say and without this schema."""
    words = []
    for token in tokens:
        word = token.word
        if word.startswith('"'):
            name = sql_scanner.identifier(token.text)
            is_plain = re.fullmatch("[a-z_][a-z0-9_]*", name)
            word = name if is_plain else '"' + name.replace(" ", "\u00a0") + '"'
        elif re.match(r"(?:[ENBX]|U&)?'|\$\D", word):
            word = "''"
        words.append(word)
    text = re.sub(r" ?\. ?", ".", " ".join(words))
    return re.sub(rf'(?i)(?<![\w."]){re.escape(schema)}\.', "", text)


def _outside(text: str) -> str:
    """The shape with [] for all that is in parentheses."""
    before = ""
    while before != text:
        before, text = text, re.sub(r"\([^()]*\)", "[]", text)
    return text


def _key(name: str) -> str:
    return name if '"' in name else name.lower()


def _split(tokens: Sequence[Token]) -> Iterator[list[Token]]:
    """What commas separate, up to the parenthesis that closes."""
    depth = 0
    part: list[Token] = []
    for token in tokens:
        depth += {"(": 1, ")": -1}.get(token.text, 0)
        if depth < 0:
            break
        if token.text == "," and depth == 0:
            yield part
            part = []
        else:
            part.append(token)
    if part:
        yield part


# --- Reviewing a file -----------------------------------------------------------------------------

_SWITCH = re.compile(r"--[ \t]*db_setup:[ \t]*(\S*)[ \t]*(\S*)[ \t]*(.*)")
# In PL/pgSQL a statement can begin after one of these.
_LEADERS = ("BEGIN", "THEN", "ELSE", "LOOP")
_NOWHERE = -9  # a comment in a body allows nothing: it is a part of the checksum


class Found(NamedTuple):
    statement: int
    offset: int
    rule: str
    name: str
    is_harmless: Callable[[], bool]  # as the rest of the file tells


class Switch(NamedTuple):
    """A comment that allows a finding of this statement."""

    statement: int
    offset: int
    verb: str
    rule: str
    reason: str


class _Review:
    """One file, from its first statement to its last."""

    def __init__(self, script: Script, known: Known, is_new: bool, is_repeatable: bool) -> None:
        self.script = script
        self.text = script.text
        self.known = known
        self.runs_again = is_repeatable
        self.reads_rows = is_new and len(self.text) <= sql_scanner.ONE_MESSAGE
        self.escapes = script.backslash_escapes
        self.statement = self.offset = 0  # at which it is
        self.own: set[str] = set()  # what the file has made
        self.given: set[str] = set()  # the names that it has given, also to what there was
        self.taken: set[str] = set()  # the names that it has taken away
        self.removed: set[str] = set()  # what a repeatable file makes or fills again
        self.made_once: set[str] = set()
        self.partitioned: set[str] = set()
        self.locked: set[str] = set()  # tables that others wait for
        self.found: list[Found] = []
        self.switches: list[Switch] = []

    def read(self) -> None:
        # A file that commits by itself begins in a transaction, unless it is marked.
        is_open = not self.script.no_transaction or self.script.commits_in_line is not None
        end = 0
        for statement in self.script.statements():
            control = statement.transaction_control or ""
            is_open = {"BEGIN": True, "COMMIT": False}.get(control, is_open)
            if not is_open:
                self.locked.clear()
            may_matter = self.locked or self.runs_again or statement.keyword == "SELECT"
            is_read = self.reads_rows and may_matter
            is_skipped = statement.is_dml and not is_read
            until = statement.start if is_skipped else statement.end
            tokens = self.tokens(end, statement.start, until, self.statement)
            end = statement.data[1] if statement.data else statement.end
            for command in self.commands(tokens):
                self.command(command)
            if self.runs_again:
                self.run_again(tokens)
            if statement.changes_string_syntax and statement.words[1] != "BACKSLASH_QUOTE":
                self.escapes = not self.escapes
            self.statement += 1
        self.tokens(end, len(self.text), len(self.text), self.statement)

    def tokens(self, after: int, start: int, end: int, number: int) -> list[Token]:
        """The tokens of a statement; notes the switches in it, and between it and the last one."""
        tokens = []
        offset = after
        while offset < end:
            begin = offset
            kind, offset = sql_scanner.read_token(self.text, begin, self.escapes)
            if kind != "space":
                if begin >= start:
                    tokens.append(Token(self.text[begin:offset], begin))
                continue
            switch = _SWITCH.match(self.text, begin, offset)
            if switch:
                is_behind = 0 < after <= begin < start and "\n" not in self.text[after:begin]
                self.switches.append(Switch(number - is_behind, begin, *switch.groups()))
        return tokens

    def commands(self, tokens: list[Token]) -> Iterator[list[Token]]:
        """The statement, or those of a DO block."""
        if not tokens or tokens[0].word != "DO":
            yield tokens
            return
        body = next((token for token in tokens if re.match(r"\$\D", token.text)), None)
        words = {token.word for token in tokens}
        if not body or ("LANGUAGE" in words and not {"PLPGSQL", "'PLPGSQL'"} & words):
            return
        tag = body.text.index("$", 1) + 1
        end = body.offset + tag
        inside = self.text[: body.offset + len(body.text) - tag]
        try:
            statements = [*sql_scanner.scan(inside, self.escapes, end)]
        except sql_scanner.ScanError:
            return  # the server will say so
        for statement in statements:
            command: list[Token] = []
            for token in self.tokens(end, statement.start, statement.end, _NOWHERE):
                if token.word in _LEADERS:
                    yield command
                    command = []
                else:
                    command.append(token)
            yield command
            end = statement.end

    def command(self, tokens: list[Token]) -> None:
        if not tokens:
            return
        self.offset = tokens[0].offset
        if tokens[0].word == "ALTER":
            self.alter(tokens)
            return
        text = _outside(_shape(tokens, self.known.schema))
        if tokens[0].word in ("CLUSTER", "REINDEX", "VACUUM"):  # options can be in parentheses
            text = " ".join(token.word for token in tokens if token.text not in "(,)")
        self.learn(text, tokens)
        if _WRITES.match(text):
            self.write(text)
        for rule, pattern in _STATEMENTS.items():
            match = re.match(pattern, text)
            if match:
                for part in match[1].split(" , "):
                    name = re.match(_NAMED, part)
                    self.find_named(rule, _key(name[1]) if name else "every table", text)
                return

    def find_named(self, rule: str, name: str, text: str) -> None:
        """What can be made again in the file is harmless; a table only if there was none before."""
        known, given = self.known, self.given
        is_new = " IF EXISTS " in text and name not in known.columns
        can_be_made = not text.startswith("DROP TABLE") or is_new
        if rule == "drop":
            self.find(rule, name, is_harmless=lambda: can_be_made and name in given)
            known.columns.pop(name, None)
        elif rule == "schema":
            self.find(rule, name, is_harmless=lambda: name in {*known.granted, known.schema})
        else:
            self.find(rule, name)

    def find(
        self, rule: str, name: str, *owners: str, is_harmless: Callable[[], bool] = lambda: False
    ) -> None:
        """Note it, unless the file has made what is named."""
        if self.own.isdisjoint((name, *owners)):
            self.found.append(Found(self.statement, self.offset, rule, name, is_harmless))

    def not_allowed(self) -> Iterator[tuple[int, str, str]]:
        left = [*self.switches]
        for each in self.found:
            allowed = (each.statement, "allow", each.rule)
            switch = next(
                (one for one in left if (one.statement, *one[2:4]) == allowed and one.reason), None
            )
            if each.is_harmless():
                continue
            if switch:
                left.remove(switch)
            else:
                yield each.offset, each.rule, RULES[each.rule].effect.format(each.name)
        for switch in left:
            if switch.verb != "allow" or switch.rule not in RULES:
                said = f"write -- db_setup: allow RULE REASON; the rules are {', '.join(RULES)}"
            elif not switch.reason:
                said = f"write after allow {switch.rule} why it is right here"
            else:
                said = f"the statement has no finding {switch.rule} to allow: remove this comment"
            yield switch.offset, "allow", said

    # --- Statements ---

    def learn(self, text: str, tokens: list[Token]) -> None:
        """What the statement makes."""
        made = _MADE.match(text)
        policy = re.match(r"CREATE POLICY \S+ ON (\S+)", text)
        grant = re.match("GRANT .* ON SCHEMA (.*) TO ", text)
        into = re.match(r"SELECT .* INTO (?:TEMP |TEMPORARY |UNLOGGED )?(?:TABLE )?(\S+)", text)
        if policy:
            self.known.policies.add(_key(policy[1]))
        elif grant:
            self.known.granted.update(map(_key, grant[1].split(" , ")))
        elif into:
            self.own.add(_key(into[1]))
        elif made:
            name = _key(made[3])
            self.given.add(name)
            if made[2] and name in self.known.columns:
                return
            self.own.add(name)
            if " PARTITION BY " in text:
                self.partitioned.add(name)
            if made[1] in ("TABLE", "VIEW"):
                self.known.columns[name] = self.columns_of(text[made.end() :], tokens)

    def columns_of(self, rest: str, tokens: list[Token]) -> dict[str, Type]:
        """The columns of a table that is made; none where a query gives them."""
        columns = {}
        parent = re.match(r" PARTITION OF (\S+)", rest)
        if parent:
            return dict(self.known.columns.get(_key(parent[1]), {}))
        if rest.startswith(" []"):
            at = [token.text for token in tokens].index("(")
            for part in _split(tokens[at + 1 :]):
                name, _, definition = _shape(part, self.known.schema).partition(" ")
                if not _IS_CONSTRAINT.match(f"{name} "):
                    columns[_key(name)] = type_of(definition)
        return columns

    def write(self, text: str) -> None:
        """Rows of a table that others wait for are read or written."""
        names = re.findall(r"\b(?:UPDATE|INTO|FROM|JOIN|USING) (?:ONLY )?(\S+)", text)
        for name in map(_key, names):
            if name in self.locked:
                is_copied = self.partitioned.intersection(map(_key, names))
                self.find("partition" if is_copied else "back-fill", name)
                return

    def run_again(self, tokens: list[Token]) -> None:
        """What fails or does more in the second run; conditions in a DO block are not read."""
        at = self.first_action(tokens)
        for part in _split(tokens[at:]) if at else [tokens]:
            text = _outside(_shape(part, self.known.schema))
            removed = _REMOVED.match(text)
            made = _MADE_ONCE.match(text)
            if removed:
                names = {_key(name.partition(" ")[0]) for name in removed[3].split(" , ")}
                self.removed |= names
                if not removed[1].startswith("DROP") or removed[2]:
                    continue
            elif made:
                names = {_key(made[made.lastindex or 0])}
                self.made_once |= names
                owner = _OWNER.match(text)
                if self.removed & {*names, *map(_key, owner.groups() if owner else ())}:
                    continue
            else:
                continue
            is_made_again = partial(names.__le__, self.made_once if removed else set())
            self.found.append(
                Found(self.statement, part[0].offset, "repeatable", "", is_made_again)
            )

    # --- ALTER ---

    def first_action(self, tokens: list[Token]) -> int:
        """Where the actions of an ALTER begin; 0 if there is none."""
        if not tokens or tokens[0].word != "ALTER":
            return 0
        verbs = (
            at
            for at in range(3, len(tokens))
            if tokens[at].word in _ACTION_VERBS and tokens[at - 1].text != "."
        )
        return next(verbs, 0)

    def alter(self, tokens: list[Token]) -> None:
        at = self.first_action(tokens)
        head = _ALTERED.match(_shape(tokens[:at], self.known.schema))
        if not head:
            return
        kind, table = head[1], _key(head[2])
        for part in _split(tokens[at:]):
            self.offset = part[0].offset
            text = _shape(part, self.known.schema)
            if kind == "TABLE" and not text.startswith("VALIDATE"):
                self.locked.add(table)
            if kind in ("TABLE", "DOMAIN") or re.match("RENAME|SET SCHEMA", text):
                self.act(table, text, _outside(text))

    def act(self, table: str, text: str, outer: str) -> None:
        known = self.known
        if outer.startswith("ADD ") and not _IS_CONSTRAINT.match(outer):
            self.add_column(table, text, outer)
            return
        added = re.match(r"ADD (?:CONSTRAINT (\S+) )?(FOREIGN|CHECK|NOT NULL (\S+))", outer)
        constraint = re.match(r"(VALIDATE|DROP) CONSTRAINT " + _NAMED, outer)
        if added:
            rule = {"FOREIGN": "foreign-key", "CHECK": "check"}.get(added[2], "not-null")
            what = f"{added[3]} IS NOT NULL" if added[3] else text
            is_valid = re.search(" NOT (VALID|ENFORCED)", outer) is None
            known.constraints[table, _key(added[1] or "")] = rule, what.lower(), is_valid
        elif constraint:
            name = _key(constraint[2])
            rule, what, _ = known.constraints.pop((table, name), ("check", "", True))
            if constraint[1] == "VALIDATE":
                known.constraints[table, name] = rule, what, True
                if table in self.locked:
                    self.find(rule, table)
        for rule, pattern in _ACTIONS.items():
            match = re.match(pattern, outer)
            if match:
                names = [_key(name) for name in match.groups() if name]
                self.find_in_table(rule, table, names, text)
                return

    def find_in_table(self, rule: str, table: str, names: list[str], text: str) -> None:
        known = self.known
        columns = known.columns.setdefault(table, {})
        if rule == "not-null":
            given = rf"(?<!\S){re.escape(names[0])} is not null(?!\S)" if names else "$^"
            proofs = [what for what in known.proofs(table) if " or " not in what]
            if not any(re.search(given, what) for what in proofs):
                self.find(rule, table)
        elif rule == "type":
            old, columns[names[0]] = columns.get(names[0]), type_of(text.partition(" TYPE ")[2])
            new = columns[names[0]]
            _, is_converted, using = text.partition(" USING ")
            column, _, cast = using.partition(" : : ")
            is_itself = _key(column) == names[0] and (not cast or type_of(cast) == new)
            is_other = (is_converted and not is_itself) or " COLLATE " in text
            if not old or is_other or not keeps_values(old, new):
                self.find(rule, table)
        elif rule == "rename" and text.startswith("RENAME"):
            schema = table.rpartition(".")[0]
            self.rename(rule, table, f"{schema}.{names[0]}" if schema else names[0])
        elif rule == "rename-column":
            old_name, new_name = names
            self.rename(rule, f"{table}.{old_name}", f"{table}.{new_name}", table)
            if old_name in columns:
                columns[new_name] = columns.pop(old_name)
        elif rule == "drop":
            self.find(rule, f"{table}.{names[0]}", table)
        elif rule == "partition":
            if not any(" is not null" not in what for what in known.proofs(names[0])):
                self.find(rule, names[0])
        elif rule == "row-security":
            is_switch = text.startswith("ENABLE")
            self.find(rule, table, is_harmless=lambda: is_switch and table in known.policies)
        else:
            self.find(rule, table)

    def add_column(self, table: str, text: str, outer: str) -> None:
        text = re.sub("^ADD (?:COLUMN )?(?:IF NOT EXISTS )?", "", text)
        name, _, definition = text.partition(" ")
        self.known.columns.setdefault(table, {})[_key(name)] = type_of(definition)
        self.own.add(f"{table}.{_key(name)}")
        has_default = re.search(" DEFAULT (?!NULL)", outer)
        if is_computed(definition):
            self.find("computed-default", table)
        elif not has_default and re.search(" NOT NULL| PRIMARY KEY", outer):
            self.find("required-column", table)
        elif " CHECK " in outer:
            self.find("check", table)
        elif " UNIQUE" in outer:
            self.find("unique", table)
        elif has_default and " REFERENCES " in outer:
            self.find("foreign-key", table)

    def rename(self, rule: str, old: str, new: str, *owners: str) -> None:
        """A name that the file gives to something else does not go."""
        given = self.given
        if new not in self.taken:
            self.find(rule, old, *owners, is_harmless=lambda: old in given)
        self.taken.add(old)
        given.add(new)
        self.known.rename(old, new)
        for names in (self.own, self.locked):
            if old in names:
                names.remove(old)
                names.add(new)
