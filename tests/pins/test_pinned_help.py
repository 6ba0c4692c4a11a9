"""Every command and every option that there is stays; new ones may come."""

import re

from pinned import RENEW, check, lsa, read


def commands():
    """The names in the panel of commands of ``lsa --help``."""
    return re.findall(r"(?m)^│ ([\w-]+) {2,}\w", lsa("--help").out.split("─ Commands")[1])


def options(text):
    """The flags at the beginnings of the lines in the panel of options."""
    panel = text.split("─ Options")[1]
    starts = re.findall(r"(?m)^│ +(?:\* +)?(--?[a-z][\w-]*(?:[ ,]+--?[a-z][\w-]*)*)", panel)
    return sorted({flag for start in starts for flag in re.split("[ ,]+", start)})


def arguments(text):
    """The arguments that the line of usage names, in order and without its brackets."""
    usage = re.search(r"(?m)^ Usage: .*? \[OPTIONS\](.*)$", text)[1]
    return [word.upper() for word in re.findall(r"\w+", usage)]


def test_every_command_and_option_is_still_there():
    texts = {name: lsa(name, "--help").out for name in commands()}
    found = {
        name: {"arguments": arguments(text), "options": options(text)}
        for name, text in texts.items()
    }
    if RENEW:
        check("help", "commands", found)
    pinned = read("help")["commands"]
    gone = [name for name in pinned if name not in found]
    gone += [
        f"{name} {option}"
        for name in pinned.keys() & found.keys()
        for option in sorted(set(pinned[name]["options"]) - set(found[name]["options"]))
    ]
    assert gone == []
    assert {name: found[name]["arguments"] for name in pinned} == {
        name: one["arguments"] for name, one in pinned.items()
    }
