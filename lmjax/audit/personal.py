"""Patterns of personal data in texts: e-mail addresses, telephone numbers, account numbers and secret keys.

A pattern finds what looks like one: numbers of accounts have the right check digits (ISO 7064), others are not checked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])")
# With a country code, or in groups as numbers are written; a plain number is none.
_PHONE = re.compile(
    r"(?<![\w.+-])(?<!\d )(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d{1,4}(?:[ .-]?\d{2,4}){1,4}"
    r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}[.-]\d{3}[.-]\d{4}|0\d{2,4}[ /-]\d{3,4}[ -]?\d{3,5})(?![\w-])(?! ?\d)"
)
_ACCOUNT = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
_KEY = re.compile(
    r"-----BEGIN [A-Z ]{0,20}PRIVATE KEY-----|(?<!\w)(?:AKIA[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{36,}"
    r"|xox[abprs]-[A-Za-z0-9-]{10,}|sk-[A-Za-z0-9_-]{20,}|AIza[A-Za-z0-9_-]{35}|hf_[A-Za-z0-9]{30,})(?!\w)"
)
# The digits of a telephone number (ITU-T E.164 allows 15 at most).
_PHONE_DIGITS = range(7, 16)


class Found(NamedTuple):
    """What a pattern found in a text."""

    kind: str
    text: str


def personal(text: str) -> Iterator[Found]:
    """Yields what looks like personal data in a text."""
    for match in _EMAIL.finditer(text):
        yield Found("e-mail", match[0])
    for match in _PHONE.finditer(text):
        if sum(c.isdigit() for c in match[0]) in _PHONE_DIGITS:
            yield Found("telephone", match[0])
    for match in _ACCOUNT.finditer(text):
        if is_account(match[0]):
            yield Found("account (IBAN)", match[0])
    for match in _KEY.finditer(text):
        yield Found("secret key", match[0])


KINDS = ("e-mail", "telephone", "account (IBAN)", "secret key")


def is_account(text: str) -> bool:
    """Returns whether an account number has 15 to 34 characters and the check digits of an IBAN (ISO 13616)."""
    plain = text.replace(" ", "")
    moved = plain[4:] + plain[:4]
    return 15 <= len(plain) <= 34 and int("".join(str(int(c, 36)) for c in moved)) % 97 == 1
