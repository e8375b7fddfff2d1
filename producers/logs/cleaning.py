"""Lines made harmless: escape codes and control characters go, secrets are masked, length is bounded.

Masking goes by form, so it is a net and no proof: a password in the middle of a sentence passes. What has a known form (keys in
PEM, tokens of well-known services, ``name=value`` of telling names, user information in URLs, e-mail addresses) or looks drawn
by chance (long runs of hexadecimal or base64 digits) does not.
"""

from __future__ import annotations

import re

MAX_LINE = 2_000
"""Characters of a line that are looked at; the rest of an endless one is passed over."""

MASK = "<secret>"

# CSI with any parameters, OSC up to its end (or the line's), other two-character escapes; 8-bit forms as well.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?|\x1b[ -/]*[0-~]?"
)

_TELLING = (
    r"[\w.-]*(?:pass(?:wo?r?d|phrase)?|pwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|secret[_-]?key|credential|"
    r"cookie|session[_-]?id|authorization|signature|jaas\.config)s?[\w.-]*"
)
_Rule = tuple[re.Pattern[str], str]

_BY_NAME: tuple[_Rule, ...] = (
    (re.compile(r"(?i)\b((?:basic|bearer|digest|negotiate)\s+)[\w.~+/=-]{6,}"), rf"\1{MASK}"),
    # name=value, "name": "value", name: value, --name value.
    (re.compile(rf"""(?i)(["']?\b{_TELLING}["']?\s*(?:[:=]>?|=>)\s*)(?:"[^"]*"?|'[^']*'?|[^\s,;&"'}})\]]+)"""), rf"\1{MASK}"),
    (re.compile(rf"(?i)(--{_TELLING}\s+)(\S+)"), rf"\1{MASK}"),
    (re.compile(r"(?i)\b(pass(?:word|phrase)?|secret|token)(\s+(?:is|was)\s+)\S+"), rf"\1\2{MASK}"),
)
_BY_FORM: tuple[_Rule, ...] = (
    # Tokens that carry their service's own mark.
    (re.compile(r"\b(?:gh[pousr]_|github_pat_|glpat-|xox[abprs]-|sk-|hf_|AKIA|ASIA|AIza|eyJ)[\w.-]{12,}"), MASK),
    (re.compile(r"\b[0-9a-fA-F]{24,}\b"), MASK),
    # Long runs of base64: letters of both cases and a digit, so that paths and long words stay.
    (re.compile(r"(?<![\w/+.-])(?=[\w/+-]*\d)(?=[\w/+-]*[a-z])(?=[\w/+-]*[A-Z])[\w/+-]{28,}={0,2}"), MASK),
    (re.compile(r"(?<![\w/+])[A-Za-z0-9/+]{40,}={0,2}(?![\w/+])"), MASK),
)
_BLOCK: tuple[_Rule, ...] = ((re.compile(r"-----BEGIN [A-Z0-9 ]+-----.*?(?:-----END [A-Z0-9 ]+-----|$)"), MASK),)
_URL: tuple[_Rule, ...] = ((re.compile(r"\b([a-zA-Z][\w+.-]{1,20}://)[^\s/@]*@"), rf"\1{MASK}@"),)
_MAIL: tuple[_Rule, ...] = ((re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+"), "<mail>"),)

_SECRETS: tuple[tuple[re.Pattern[str], tuple[_Rule, ...]], ...] = (
    (re.compile("-----BEGIN "), _BLOCK),
    (
        re.compile(r"(?i)pass|pwd|secret|token|key|credential|cookie|session|auth|signature|jaas|basic|bearer|digest|negot"),
        _BY_NAME,
    ),
    (re.compile("://"), _URL),
    (re.compile(r"[\w/+.-]{16}"), _BY_FORM),
    (re.compile("@"), _MAIL),
)
"""What a line must have in it for the rules after it to be worth their time, in the order in which they are applied."""


def plain(line: str) -> str:
    """Return a line that is one line and prints, of at most `MAX_LINE` characters; secrets are still in it."""
    line = line[:MAX_LINE]
    if line.isprintable():
        return line
    line = _ESCAPES.sub("", line)
    return line if line.isprintable() else "".join(c if c.isprintable() else " " for c in line)


def masked(line: str, *, size: int = MAX_LINE) -> str:
    """Return a plain line without secrets, cut to a size. What is cut is cut after masking, so that no half secret shows."""
    for hint, rules in _SECRETS:
        if hint.search(line):
            for pattern, instead in rules:
                line = pattern.sub(instead, line)
    return line if len(line) <= size else line[: size - 1] + "…"
