"""A line's parts: its level, and what is left once time stamp and numbers are taken out."""

from __future__ import annotations

import re

from refold.schemas.condition import CRITICAL, DEBUG, ERROR, INFO, UNKNOWN, WARNING

ANY = "<*>"
"""A word in which the lines of a template differ."""
NUMBER = "#"
"""A number, or a long id."""

LEVELS = {
    "TRACE": DEBUG,
    "DEBUG": DEBUG,
    "FINE": DEBUG,
    "INFO": INFO,
    "NOTICE": INFO,
    "WARN": WARNING,
    "WARNING": WARNING,
    "ERROR": ERROR,
    "ERR": ERROR,
    "SEVERE": ERROR,
    "CRITICAL": CRITICAL,
    "CRIT": CRITICAL,
    "FATAL": CRITICAL,
    "ALERT": CRITICAL,
    "EMERG": CRITICAL,
    "PANIC": CRITICAL,
}
_LEVEL = re.compile(r"\b(" + "|".join(LEVELS) + r")\b")
_LEVEL_IN_LOWER_CASE = re.compile(r"(?:^|[\[<=\s])(" + "|".join(LEVELS).lower() + r")[\]>:\s]")
HEAD = 80
"""Characters in which a level is looked for: further on it is a word of the message."""

# ISO 8601 and its kin, syslog's, klog's, seconds since 1970, and times alone.
_STAMP = re.compile(
    r"^[\[(<]?(?:\d{4}[-/]\d\d[-/]\d\d[T ]?(?:\d\d:\d\d:\d\d(?:[.,]\d+)?)?(?:Z|\s?[+-]\d\d:?\d\d)?"
    r"|[A-Z][a-z]{2}\s+\d{1,2} \d\d:\d\d:\d\d|\d\d:\d\d:\d\d(?:[.,]\d+)?|1\d{9}(?:[.,]\d+)?)[\])>]?:?\s*"
)

# Long runs of hexadecimal digits and dashes (ids, digests), else numbers with whatever points and colons are inside.
_VARIABLE = re.compile(r"(?<![^\W_])(?=[A-Fa-f-]*\d)(?:0x)?[0-9A-Fa-f-]{8,}(?![^\W_])|0x[0-9A-Fa-f]+|\d+(?:[.,:]\d+)*")
_DIGITS = re.compile(r"\d[\d.,:]*")
_SERIES = re.compile(rf"{NUMBER}(?:[,;]?\s*{NUMBER})+")
# Words that only ever tell of a failure, and words that sometimes occur where all is well.
_CRASH = re.compile(
    r"[A-Z]\w*(?:Error|Exception)\b|Traceback|(?i:\bpanic\b|\bfatal\b|segfault|segmentation|core dump|out of memory|\bkilled\b)"
)
_FAILURE = re.compile(
    r"(?i)exception\b|(?-i:[A-Z]\w*Error)\b|\[errno\b|traceback|\bpanic|\bfatal|segfault|segmentation|core dump|out of memory|"
    r"\bsig(?:kill|segv|abrt|bus|term)\b|\boom\b|no space|corrupt|unreachable|broken pipe|deadlock|\babort|\bcrash|\bkilled\b|"
    r"\b(?:nan|inf)\b.*\bloss|loss\b.*\b(?:nan|inf)\b|connection (?:refused|reset|lost|closed)|refused|\bdenied|not permitted|"
    r"(?<![\w.])timed?[ -]?out|\bfail(?:ed|ure|s|ing)?\b|\berrors?\b|unable to|cannot|can't|could not|couldn't|\binvalid\b|"
    r"\billegal|\bunexpected|\bbad\b|not (?:found|able|available|enough|supported|allowed|responding)|no such|unavailable|"
    r"\bexceed|\boverflow|\bexpired\b|mismatch|\binsufficient|\bexhausted|\blost\b|\bdead\b|unauthori[sz]ed|forbidden|\brejected|"
    r"\bviolat|\bmissing\b|\bdisconnect|read-only|too (?:many|large|long|big|small)|\bstale\b|\bdamaged\b|\bunknown\b|"
    r"\binterrupted\b|not a |does not |doesn't |did not |must not "
)


def split_stamp(line: str) -> str:
    """Return a line without the time stamp at its head."""
    return line[found.end() :] if (found := _STAMP.match(line)) else line


def level_of(line: str) -> int:
    """Return the level that a line says it has, or `UNKNOWN`."""
    head = line[:HEAD]
    found = _LEVEL.search(head)
    if found:
        return LEVELS[found[1]]
    found = _LEVEL_IN_LOWER_CASE.search(head)
    return LEVELS[found[1].upper()] if found else UNKNOWN


def sketched(line: str) -> str:
    """Return a line with its digits replaced: cheap, and the same for most lines of a kind."""
    return _DIGITS.sub(NUMBER, line)


def without_numbers(line: str) -> str:
    """Return a line with `NUMBER` for every number and long id, and one for a series of them."""
    return _SERIES.sub(NUMBER, _VARIABLE.sub(NUMBER, line))


def tells_of_crash(text: str) -> bool:
    """Whether the words of a line leave no doubt that something failed."""
    return _CRASH.search(text) is not None


def tells_of_failure(text: str) -> bool:
    """Whether the words of a line, or of a template, tell of a failure."""
    return _FAILURE.search(text) is not None
