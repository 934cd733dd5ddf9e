"""Who may do what on the embedded broker: mosquitto's password file and access rules, read and asked. Pure.

The files are mosquitto's own, so that a core which outgrows the embedded broker takes them along. Of the password file
only what mosquitto 2 writes is taken (PBKDF2 with SHA-512). Of the rules there are ``user``, ``topic`` and ``pattern``.

Source: mosquitto 2.0, mosquitto_passwd(1) and mosquitto.conf(5), acl_file.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field
from typing import Final

from agent.routing.topics import filter_problem, matches, overlaps
from agent.values import dataclass

OWN_NAME: Final = "marram-agent"  # the agent itself, which may do everything
ROUNDS: Final = 100_000  # of PBKDF2: 70 ms on a laptop, a second on a small device; a login that was good is remembered
SALT_BYTES: Final = 12  # mosquitto takes no other
NAME: Final = re.compile(r"[^:\s\x00-\x1f]{1,128}")
_HASH: Final = re.compile(r"\$7\$([0-9]{1,8})\$([A-Za-z0-9+/]{16})\$([A-Za-z0-9+/]{86}==)")
_ACCESS: Final = ("read", "write", "readwrite", "deny")
_IN_PATTERN: Final = re.compile(r"[+#/]")


class AccessError(ValueError):
    """What is wrong with a file, and on which line."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What a user may do with the topics that `subject` matches; `access` as in the file.

    Attributes:
        user: None: anybody, with ``%u`` and ``%c`` in `subject` being the user's name and the client's id.
    """

    user: str | None
    access: str
    subject: str


@dataclass(frozen=True, slots=True)
class Access:
    """Users with their passwords' hashes, and rules.

    Attributes:
        users: None: everybody is let in.
        rules: None: who is in may do everything.
    """

    users: Mapping[str, str] | None = None
    rules: tuple[Rule, ...] | None = None
    _subjects: dict[tuple[str, str], tuple[tuple[str, str], ...]] = field(default_factory=dict, compare=False)

    def may(self, user: str | None, client: str, access: str, topic: str) -> bool:
        """Whether `user` may ``read`` or ``write`` `topic`."""
        return self._asked(user, client, access, lambda subject: matches(subject, topic))

    def may_subscribe(self, user: str | None, client: str, subject: str) -> bool:
        """Whether there is anything that `user` might read behind a filter; what comes is looked at one by one."""
        if filter_problem(subject):
            return False
        return self._asked(user, client, "read", lambda allowed: overlaps(allowed, subject), deny=False)

    def _asked(
        self, user: str | None, client: str, access: str, meets: Callable[[str], bool], *, deny: bool = True
    ) -> bool:
        if self.rules is None or user == OWN_NAME:
            return True
        mine = self._rules_of(user or "", client)
        if deny and any(kind == "deny" and meets(subject) for kind, subject in mine):
            return False
        return any(kind in (access, "readwrite") and meets(subject) for kind, subject in mine)

    def _rules_of(self, user: str, client: str) -> tuple[tuple[str, str], ...]:
        """(access, filter) of all that hold for one; names with levels or wildcards in them fit no pattern."""
        found = self._subjects.get((user, client))
        if found is None:
            if len(self._subjects) > 10_000:
                self._subjects.clear()
            mine = ((rule.access, _filled(rule, user, client)) for rule in self.rules or ())
            found = tuple((access, subject) for access, subject in mine if subject is not None)
            self._subjects[user, client] = found
        return found


def _filled(rule: Rule, user: str, client: str) -> str | None:
    if rule.user is not None:
        return rule.subject if rule.user == user else None
    for sign, name in (("%u", user), ("%c", client)):
        if sign in rule.subject and (not name or _IN_PATTERN.search(name)):
            return None
    return rule.subject.replace("%c", client).replace("%u", user)


def read_users(text: str) -> dict[str, str]:
    """The users of a password file with their hashes.

    Raises:
        AccessError: a line cannot be used.
    """
    users: dict[str, str] = {}
    for number, line in _lines(text):
        name, _, value = line.partition(":")
        if not NAME.fullmatch(name) or not _HASH.fullmatch(value):
            raise AccessError(
                f"line {number} is not NAME:HASH as `marram broker users add` and mosquitto_passwd write it"
            )
        if name == OWN_NAME:
            raise AccessError(f"line {number}: {OWN_NAME} is the agent's own name")
        users[name] = value
    return users


def read_rules(text: str) -> tuple[Rule, ...]:
    """The rules of an access file.

    Raises:
        AccessError: a line cannot be used.
    """
    user: str | None = None
    rules = []
    for number, line in _lines(text):
        word, _, rest = line.partition(" ")
        rest = rest.strip()
        if word == "user" and rest:
            user = rest
        elif word in ("topic", "pattern") and rest:
            if word == "topic" and user is None:
                raise AccessError(f"line {number} is before the first `user`: it would be for clients without a name")
            rules.append(_rule(number, rest, user if word == "topic" else None))
        else:
            raise AccessError(f"line {number} is no `user NAME`, `topic ACCESS FILTER` or `pattern ACCESS FILTER`")
    return tuple(rules)


def _rule(number: int, rest: str, user: str | None) -> Rule:
    access, _, subject = rest.partition(" ")
    if access not in _ACCESS or not subject:
        access, subject = "readwrite", rest
    if problem := filter_problem(subject.strip()):
        raise AccessError(f"line {number}: {problem}")
    return Rule(user, access, subject.strip())


def _lines(text: str) -> Iterable[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line.strip()


def hashed(password: str, salt: bytes, rounds: int = ROUNDS) -> str:
    """The hash of a password as the file holds it. Takes long on purpose."""
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, rounds)
    return f"$7${rounds}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def fits(password: str, value: str) -> bool:
    """Whether a password has that hash. Takes long on purpose."""
    found = _HASH.fullmatch(value)
    if found is None:
        return False
    made = hashed(password, base64.b64decode(found[2]), int(found[1]))
    return hmac.compare_digest(made, value)
