"""Mining templates from lines: a tree of fixed depth, one pass, bounded memory.

A line's way through the tree is its level, its number of words, its first and its last word; there wait the templates that it
may be one of, and it joins the most similar one if that is similar enough. Words in which they differ become `ANY`.

Two things differ from the source. The last word is a step of its own, since many programs name the logger there. And a template
keeps at least six words in ten: without that, each step to `ANY` makes the next easier, until one template takes every line of
its length and nothing is new any more.

Bounds: `max_templates` templates of `MAX_WORDS` words of `MAX_WORD` characters. When there is no room, the template that was
seen once only and longest ago goes; so a program (or an attacker) that makes endless new templates throws out its own.

Source: He, Zhu, Zheng, Lyu, "Drain: An Online Log Parsing Approach with Fixed Depth Tree", ICWS 2017.
"""

from __future__ import annotations

import math
import operator
from collections import OrderedDict
from dataclasses import dataclass, field

import blake3

from refold.producers.logs.cleaning import masked
from refold.producers.logs.parsing import ANY, NUMBER, sketched, tells_of_failure, without_numbers

MAX_WORDS, MAX_WORD = 40, 60
LISTED = f"{NUMBER},"
MAX_BRANCHES = 64
"""Ways out of one node of the tree; words past them share one."""
MAX_AT_LEAF = 64
SIMILAR = 0.6
REMEMBERED_LINES = 4096

Words = tuple[str, ...]
Branch = tuple[int, int, str, str]


@dataclass(slots=True, eq=False)
class Template:
    """Lines that differ in their parameters only.

    Parameters
    ----------
    key
        Names it: of level and words when it was made.
    count, told
        Lines of it, and how many of them a digest has told that was received.
    usual, windows
        Moving average of lines a digest, and how many digests it is of.
    is_gone
        There was no room for it any more.
    """

    key: bytes
    level: int
    words: Words
    alarming: bool
    count: int = 0
    told: int = 0
    windows: int = 0
    usual: float = 0.0
    is_gone: bool = False
    _leaf: Branch = field(default=(0, 0, "", ""), repr=False)

    @property
    def text(self) -> str:
        """The words, secrets masked, cut to what a record takes."""
        return masked(" ".join(self.words), size=200)


class TemplateMiner:
    """Sorts lines into templates.

    Parameters
    ----------
    max_templates
        Most templates held at once.

    Attributes
    ----------
    evicted, sorted
        Templates that went for want of room, and lines that took the long way, through the tree.
    """

    def __init__(self, *, max_templates: int = 1000) -> None:
        self._max_templates = max_templates
        self._leaves: dict[Branch, list[Template]] = {}
        self._firsts: dict[tuple[int, int], set[str]] = {}
        self._lasts: dict[tuple[int, int, str], set[str]] = {}
        self._remembered: dict[tuple[int, str], Template] = {}
        self._once: OrderedDict[bytes, Template] = OrderedDict()
        self.templates: dict[bytes, Template] = {}
        self.evicted = 0
        self.sorted = 0

    def learn(self, line: str, level: int) -> tuple[Template, bool]:
        """Return the template of a plain line without its stamp, and whether the line made it."""
        sketch = sketched(line)
        found = self._remembered.get((level, sketch))
        if found is not None and not found.is_gone:
            return self._count(found), False
        self.sorted += 1
        template, is_new = self._sorted(without_numbers(line), level)
        if len(self._remembered) >= REMEMBERED_LINES:
            self._remembered.clear()
        self._remembered[level, sketch] = template
        return self._count(template), is_new

    def _sorted(self, text: str, level: int) -> tuple[Template, bool]:
        words = _words(text)
        branch = self._branch(words, level)
        found = _most_similar(self._leaves.get(branch, ()), words)
        if found is None:
            # A secret makes a line unlike all others, and must not become a word that is kept.
            words = _words(without_numbers(masked(text)))
            branch = self._branch(words, level)
            found = _most_similar(self._leaves.get(branch, ()), words)
        if found is None:
            return self._made(words, level, branch), True
        if found.words != words:
            found.words = _merged(found.words, words)
        return found, False

    def _branch(self, words: Words, level: int) -> Branch:
        firsts = self._firsts.setdefault((level, len(words)), set())
        first = _way(firsts, words[0])
        lasts = self._lasts.setdefault((level, len(words), first), set())
        return level, len(words), first, _way(lasts, words[-1])

    def _made(self, words: Words, level: int, branch: Branch) -> Template:
        leaf = self._leaves.setdefault(branch, [])
        if len(leaf) >= MAX_AT_LEAF:
            self._remove(min(leaf, key=lambda one: one.count))
        if len(self.templates) >= self._max_templates:
            self._remove(next(iter(self._once.values()), None) or min(self.templates.values(), key=lambda one: one.count))
        text = " ".join(words)
        key = blake3.blake3(b"%d " % level + text.encode()).digest(8)
        while key in self.templates:  # What it was made of became wider, and another now is what it was.
            key = blake3.blake3(key).digest(8)
        made = Template(key, level, words, tells_of_failure(text), _leaf=branch)
        self._leaves.setdefault(branch, leaf).append(made)
        self.templates[key] = made
        self._once[key] = made
        return made

    def _remove(self, template: Template) -> None:
        self.evicted += 1
        template.is_gone = True
        del self.templates[template.key]
        self._once.pop(template.key, None)
        leaf = self._leaves[template._leaf]
        leaf.remove(template)
        if not leaf:
            del self._leaves[template._leaf]
            self._forget_way(template._leaf)

    def _forget_way(self, branch: Branch) -> None:
        level, length, first, last = branch
        lasts = self._lasts.get((level, length, first), set())
        lasts.discard(last)
        if not lasts:
            self._lasts.pop((level, length, first), None)
            self._firsts.get((level, length), set()).discard(first)

    def _count(self, template: Template) -> Template:
        template.count += 1
        if template.count == 2:
            self._once.pop(template.key, None)
        return template


def _words(text: str) -> Words:
    """Return the words that count. Members of a list that have numbers are one, however many they are."""
    words: list[str] = []
    was_listed = False
    for word in text.split():
        is_listed = word[-1] == "," and NUMBER in word
        if is_listed and was_listed:
            words[-1] = LISTED
            continue
        was_listed = is_listed
        words.append(word if len(word) <= MAX_WORD else word[: MAX_WORD - 1] + "…")
        if len(words) == MAX_WORDS:
            break
    return tuple(words) or ("",)


def _way(known: set[str], word: str) -> str:
    """Return the way out of a node for a word: its own, or the one that is shared."""
    if word in known:
        return word
    if len(known) >= MAX_BRANCHES:
        return ANY
    known.add(word)
    return word


def _most_similar(templates: list[Template] | tuple[()], words: Words) -> Template | None:
    best, best_same = None, 0
    for template in templates:
        same = sum(map(operator.eq, template.words, words))
        if same > best_same:
            best, best_same = template, same
    return best if best is not None and best_same >= math.ceil(SIMILAR * len(words)) else None


def _merged(kept: Words, words: Words) -> Words:
    return tuple(a if a == b else ANY for a, b in zip(kept, words, strict=True))
