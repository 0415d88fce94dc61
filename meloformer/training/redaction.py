"""Taking out of a text what says who somebody is, where they work, and what opens their doors.

What is known of this machine (names, folders, secrets of its environment) goes wherever it stands;
what was written on another machine goes by its shape: folders of users, addresses, tokens.
"""

import getpass
import json
import os
import platform
import re
import socket
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SECRET, USER, HOST, ADDRESS, URL = "<secret>", "<user>", "<host>", "<address>", "<url>"

# Parts of a name by which its value is a secret; KEY alone is music.
_SECRET_PART = (
    r"token|secret|passw(?:or)?d|passphrase|pwd|pw|(?<=_)pass|credentials?|auth|authorization|cookie"
    r"|(?:api|access|private|secret|ssh|encryption|account|license|wandb|signing)[ _-]?key"
)
_SECRET_NAME = rf"(?:[\w.-]{{0,60}}?[_.-])?(?:{_SECRET_PART})(?:[_-][\w-]{{0,60}})?"
_IS_SECRET_NAME = re.compile(rf"(?:--?)?{_SECRET_NAME}", re.IGNORECASE)
# `TOKEN=x`, `token: x`, `"token": "x"`, `--token x`, `"--token", "x"`.
_ASSIGNED = re.compile(
    rf"""(?P<name>(?<![\w])(?:--?)?{_SECRET_NAME})
    (?P<between>\\?["']?\s*[=:]\s*(?:Bearer\s+|Basic\s+)?|(?<=\w)\\?["']\s*,\s*(?=\\?["']))
    (?P<value>\\?"(?:[^"\\\n]|\\(?!").)*\\?"|\\?'[^'\n]*'|[^\s,;&"'\]}}]+)""",
    re.IGNORECASE | re.VERBOSE,
)
_AFTER_A_FLAG = re.compile(rf"(?<![\w-])(--{_SECRET_NAME}\s+)(?!-)[^\s,;]+", re.IGNORECASE)

# Secrets that give themselves away, by the prefixes of those who hand them out.
_TOKENS = re.compile(
    r"(?<![A-Za-z0-9])(?:hf_\w{8,}|gh[a-z]_\w{8,}|github_pat_\w{8,}|glpat-[\w-]{8,}|sk-[\w-]{8,}"
    r"|xox[a-z]-[\w-]{8,}|(?:AKIA|ASIA)[A-Z0-9]{12,}|AIza[\w-]{20,}|pypi-[\w-]{16,}"
    r"|eyJ[\w-]{8,}\.[\w-]+\.[\w-]*|(?<![0-9a-f])[0-9a-f]{40}(?![0-9a-f]))"
)
_BEARER = re.compile(r"\b(Bearer|Basic)\s+[\w.~+/=-]{8,}", re.IGNORECASE)
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [^-]*PRIVATE KEY-----.*?(?:-----END [^-]*-----|\Z)", re.DOTALL
)
# Long, of all kinds of characters, and no word: hashes are of one case, names have no digits.
_OPAQUE = re.compile(
    r"(?<![\w+/=-])(?=[\w+=-]*[a-z])(?=[\w+=-]*[A-Z])(?=[\w+=-]*\d)[\w+=-]{32,}(?![\w+/=-])"
)

_ANY_URL = re.compile(r"\b(?!file:)([a-z][a-z0-9+.-]{1,9})://[^\s\"'<>\\)\]}|,]+", re.IGNORECASE)
# An address of mail, or of a machine as ssh and git take it.
_AT = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}(?::[^\s@/]{1,64})?@[\w-]+(?:\.[\w-]+)*(?::[^\s\"']+)?")
_HOME = re.compile(
    r"(?P<root>/homes?\d*/|/Users/|/users/|/scratch/|[A-Za-z]:(?:\\\\|\\|/)Users(?:\\\\|\\|/))(?P<user>[^\s/\\\"':;,)\]}]+)"
)
_ROOT_HOME = re.compile(r"(?<![\w./])/root(?![\w-])")
_TILDE = re.compile(r"(?<![\w~])~[A-Za-z_][\w-]*")
_IPV4 = re.compile(r"(?<![\w.])(?<!==)(?!127\.|0\.0\.0\.0)\d{1,3}(?:\.\d{1,3}){3}(?![\w.])")
_IPV6 = re.compile(
    r"(?<![\w:.])(?=:*[0-9a-f])(?=(?:[0-9a-f]{0,4}:){3})[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){3,7}"
    r"(?:%\w+)?(?![\w:])|(?<![\w:.])[0-9a-f]{2,4}::[0-9a-f]{1,4}(?:%\w+)?(?![\w:])",
    re.IGNORECASE,
)
_DOMAIN = re.compile(
    r"(?<![\w.@/-])(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+(?:local|internal|lan|intranet|corp"
    r"|localdomain)(?![\w-])"
    r"|(?<![\w.@/-])(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.){2,}(?:com|net|org|edu|gov|io|ai|dev|cloud"
    r"|cn|de|fr|uk|jp|eu|ch|at|nl|it|es|se|ca|au|in|kr|sg|us)(?![\w-])"
)
# `host : gpu-7` is how torchrun tells of a failure; schedulers and launchers have variables.
_HOST_SAID = re.compile(
    r"(?P<before>\b(?:host|hostname|nodename|MASTER_ADDR|SLURMD_NODENAME|SLURM_\w*NODELIST|node_list"
    r"|TORCHELASTIC_HOST|HOSTNAME)[\"']?\s*[=:]\s*[\"']?)(?P<name>[\w\[\],.-]+)",
    re.IGNORECASE,
)
_USER_SAID = re.compile(
    r"\b(?:USER|LOGNAME|USERNAME|SUDO_USER|SLURM_JOB_USER)[\"']?\s*[=:]\s*[\"']?(?P<user>\w[\w.-]*)"
)
_HOST_VARIABLES = ("HOSTNAME", "HOST", "MASTER_ADDR", "SLURMD_NODENAME", "HEAD")
_USER_VARIABLES = ("USER", "LOGNAME", "USERNAME", "SUDO_USER", "SLURM_JOB_USER")
# Of everybody, and so of nobody.
_NO_NAMES = {"", "root", "localhost", "localhost.localdomain", "127.0.0.1", "user", "users"}
_SHORTEST_SECRET = 6


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What is known of who writes a report, and where.

    Args:
        users: login names.
        hosts: of this machine, long and short.
        folders: absolute paths and what they become, as `~` for the home.
        secrets: values that open something.
    """

    users: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()
    folders: tuple[tuple[str, str], ...] = ()
    secrets: frozenset[str] = frozenset()


@dataclass
class Redactor:
    """Takes names, places and secrets out of texts.

    Args:
        machine: what is known.
        words: that somebody wants out besides.
    """

    machine: Machine
    words: tuple[str, ...] = ()
    _users: set[str] = field(default_factory=set)
    _hosts: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._users = set(self.machine.users) - _NO_NAMES
        self._hosts = set(self.machine.hosts) - _NO_NAMES

    def learn(self, texts: Iterable[str]) -> None:
        """Find names of users and hosts by their surroundings; they go from all texts then."""
        for text in texts:
            for pattern in (_HOME, _USER_SAID):
                self._users |= {found["user"] for found in pattern.finditer(text)} - _NO_NAMES
            # A plain word behind "host:" may be any word.
            said = {found["name"].strip(".,") for found in _HOST_SAID.finditer(text)}
            self._hosts |= {name for name in said if re.fullmatch(r".*[A-Za-z].*[\d\].-].*", name)}

    def text(self, text: str) -> str:
        """The same text without them."""
        for secret in sorted({*self.machine.secrets, *self.words}, key=len, reverse=True):
            text = text.replace(secret, SECRET)
        text = _PRIVATE_KEY.sub(SECRET, text)
        text = _ANY_URL.sub(lambda found: f"{found[1]}://{URL}", text)
        text = _ASSIGNED.sub(_without_value, text)
        text = _AFTER_A_FLAG.sub(rf"\1{SECRET}", text)
        text = _BEARER.sub(rf"\1 {SECRET}", text)
        text = _TOKENS.sub(SECRET, text)
        for folder, label in self.machine.folders:
            text = re.sub(rf"{re.escape(folder)}(?![\w-])", lambda _, to=label: to, text)  # type: ignore[misc]
        text = _HOME.sub("~", text)
        text = _ROOT_HOME.sub("~", text)
        text = _AT.sub(ADDRESS, text)
        text = _DOMAIN.sub(HOST, text)
        text = _HOST_SAID.sub(_without_host, text)
        for names, label in ((self._hosts, HOST), (self._users, USER)):
            for name in sorted(names - _NO_NAMES, key=len, reverse=True):
                text = _named(name).sub(label, text)
        text = _TILDE.sub("~", text)
        text = _IPV4.sub(ADDRESS, text)
        text = _IPV6.sub(_without_address, text)
        return _OPAQUE.sub(SECRET, text)

    def json(self, value: Any) -> Any:
        """Plain data without them: what a name calls a secret, what follows a flag, all texts."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {
                self.text(str(name)): SECRET
                if isinstance(item, str) and item and is_secret_name(str(name))
                else self.json(item)
                for name, item in value.items()
            }
        if isinstance(value, (list, tuple)):
            before = ["", *value[:-1]]
            return [
                SECRET
                if isinstance(item, str) and _is_secret_flag(flag) and not item.startswith("-")
                else self.json(item)
                for flag, item in zip(before, value, strict=True)
            ]
        return value

    def lines(self, text: str) -> str:
        """A text of JSON lines without them; lines that are no JSON are taken as texts."""
        return "".join(f"{self._line(line)}\n" for line in text.splitlines())

    def _line(self, line: str) -> str:
        try:
            return json.dumps(self.json(json.loads(line)), ensure_ascii=False)
        except ValueError:
            return self.text(line)


def this_machine(
    folders: Mapping[Path, str],
    *,
    owner_of: Path | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Machine:
    """What the system says of its user, itself, and the secrets in its environment.

    Args:
        folders: paths that stand for something, and what they are called instead.
        owner_of: a folder that may be another user's.
        environment: variables.
    """
    hosts = {platform.node(), _asked(socket.gethostname), _asked(socket.getfqdn)}
    hosts |= {environment.get(name, "") for name in _HOST_VARIABLES}
    hosts |= {host.partition(".")[0] for host in hosts if not re.fullmatch(r"[\d.]+", host)}
    home = environment.get("HOME") or str(Path.home())
    users = {environment.get(name, "") for name in _USER_VARIABLES} | {_asked(getpass.getuser)}
    users |= {Path(home).name, _asked(owner_of.owner) if owner_of else ""}
    known = {home: "~", str(Path(home).resolve()): "~"}
    for path, label in folders.items():
        known |= {str(path.resolve()): label, str(path.absolute()): label}
    return Machine(
        users=frozenset(users),
        hosts=frozenset(hosts),
        folders=tuple(
            (path, known[path])
            for path in sorted(known, key=len, reverse=True)
            if len(Path(path).parts) > 1
        ),
        secrets=frozenset(
            value
            for name, value in environment.items()
            # PWD is a folder, and a socket of ssh a file.
            if is_secret_name(name) and len(value) >= _SHORTEST_SECRET and value[0] != "/"
        ),
    )


def is_secret_name(name: str) -> bool:
    """Whether a variable, flag or field of this name holds a secret.

    >>> [is_secret_name(n) for n in ("HF_TOKEN", "aws_secret_access_key", "--password")]
    [True, True, True]
    >>> [is_secret_name(n) for n in ("tokens", "tokens_per_second", "KEY", "keep_last")]
    [False, False, False, False]
    """
    return _IS_SECRET_NAME.fullmatch(name) is not None


def _named(name: str) -> re.Pattern[str]:
    """Where a name stands by itself; an underscore may join it to others: alice_scratch."""
    start, is_list, _ = name.partition("[")  # of SLURM: gpu-[01-16]
    pattern = re.escape(start) + (r"(?:\d+|\[[\d,-]*\]?)" if is_list else "")
    return re.compile(rf"(?<![A-Za-z0-9]){pattern}(?![A-Za-z0-9])")


def _is_secret_flag(word: Any) -> bool:
    return isinstance(word, str) and word.startswith("-") and is_secret_name(word)


def _without_value(found: re.Match[str]) -> str:
    value = found["value"]
    # A number behind a colon is a figure, as in JSON: "per_token": 1.25.
    is_count = "token" in found["name"].lower() and ":" in found["between"]
    if is_count and re.fullmatch(r"-?\d+(\.\d+)?(e[+-]?\d+)?|null", value):
        return found[0]
    quote = re.match(r"\\?[\"']", value)
    mark = quote[0] if quote else ""
    return f"{found['name']}{found['between']}{mark}{SECRET}{mark}"


def _without_host(found: re.Match[str]) -> str:
    name = found["name"]
    if name in _NO_NAMES or not re.search("[A-Za-z0-9]", name):
        return found[0]
    return f"{found['before']}{HOST}"


def _without_address(found: re.Match[str]) -> str:
    # A time of day has as many colons as an address has at the least.
    return found[0] if re.fullmatch(r"\d{1,2}(:\d{2}){2,3}", found[0]) else ADDRESS


def _asked(function: Callable[[], str]) -> str:
    try:
        return function()
    except (OSError, KeyError):  # a container whose user has no name, a host without one
        return ""
